"""The report of a training run: one HTML file with everything in it, which opens offline.

The page, report_template.html, draws itself from the JSON that is put into it; nothing here builds markup.
"""

import base64
import json
import math
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from modeling_act.errors import InputError

# Of the lowest to the highest point of a cloud; all of them stand out on white and on black.
HEIGHT_COLORS = ("#4c5fd7", "#3b82d6", "#1f9cc0", "#19a78f", "#4caf50", "#94b02c", "#d9a406", "#f08c1a", "#e8622c")
PACKAGES = ("modeling_act", "torch", "transformers", "accelerate", "datasets", "numpy")
TEMPLATE = Path(__file__).with_name("report_template.html")


def write_report(
    path: str | Path,
    title: str,
    summary: dict[str, object],
    records: list[dict],
    clouds: list[dict[str, np.ndarray]],
    tables: dict[str, list[dict]] | None = None,
    images: dict[str, Path] | None = None,
    recipe: dict | None = None,
) -> None:
    """Write the page: headline figures, curves, clouds that turn, tables, pictures, the recipe.

    `records` are the lines of the log: "step", "epoch" and any "group/name" with its number. A cloud is a dict of its
    panels' points (points, 3) with y up, drawn side by side and turned together. `images` are PNG files by caption.
    """
    data = {
        "title": title,
        "summary": summary,
        "records": records,
        "clouds": [_encode_cloud(panels) for panels in clouds],
        "tables": tables or {},
        "images": {name: _encode_image(Path(image)) for name, image in (images or {}).items()},
        "recipe": recipe or {},
        "versions": _versions(),
        "height_colors": HEIGHT_COLORS,
    }
    # "<" ends a script element or opens a comment in it, and stands nowhere in JSON but inside strings.
    text = json.dumps(_plain(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", text)
    write_atomically(Path(path), page.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Whoever opens `path` meanwhile, or after a crash, sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checked_points(name: str, points: np.ndarray) -> np.ndarray:
    """(points, 3) float64, those that are not finite left out: a run that diverges still gets its report."""
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"panel {name!r} of a cloud must be of shape (points, 3), got {points.shape}")
    return points[np.isfinite(points).all(axis=1)]


def bounding_ball(clouds: Iterable[np.ndarray]) -> tuple[np.ndarray, float]:
    """Center (3,) of the bounding box and radius of the ball around all points, which fits whichever way it turns."""
    points = np.concatenate([np.zeros((0, 3)), *clouds])
    if len(points) == 0:
        return np.zeros(3), 1.0
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    return center, max(np.linalg.norm(points - center, axis=1).max(), 1e-9)


def _encode_cloud(panels: dict[str, np.ndarray]) -> list[dict]:
    """16-bit coordinates, a sixth of the length of their decimals: a cloud of 3 x 1024 points takes 24 kB."""
    finite = {name: checked_points(name, points) for name, points in panels.items()}
    center, radius = bounding_ball(finite.values())
    encoded = []
    for name, points in finite.items():
        whole = np.rint((points - center) / radius * 32767).astype("<i2")
        text = base64.b64encode(whole.tobytes()).decode()
        encoded.append({"name": name, "points": text, "not_finite": len(panels[name]) - len(points)})
    return encoded


def _encode_image(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"image {str(path)!r} of a report must be a PNG file, but there is no such file")
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n"):
        raise InputError(f"image {str(path)!r} of a report must be a PNG file, got one that begins {content[:8]!r}")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _plain(value: object) -> object:
    """What JSON can hold: NumPy and torch values as numbers and lists, NaN and infinity as "NaN" and "Infinity"."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
