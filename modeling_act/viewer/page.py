"""Interactive point clouds on one HTML page that opens offline: of the command `view`, the app and the reports."""

import base64
import colorsys
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from ..errors import InputError

MAX_POINTS = 200_000  # drawn of one cloud
MAX_PAGE_POINTS = 2_000_000  # drawn of all clouds of a page
# Both scales are readable on white and on black. VALUE_COLORS runs from low to high.
VALUE_COLORS = ("#3a58d8", "#7e5cd4", "#d65496", "#f58956", "#fad05e")
LABEL_COLORS = (
    "#4e79dc", "#f28e2b", "#4cac60", "#e15759", "#966ed2", "#35b6bd",
    "#edc948", "#d66eaa", "#9c755f", "#8296aa", "#a0be46", "#ff9d89",
)  # fmt: skip
VIEWER_SCRIPT, VIEWER_STYLE, PAGE = (
    files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("viewer.js", "viewer.css", "page.html")
)


@dataclass
class ViewerCloud:
    """Points (n, 3), y up, colored by one of: `colors` (n, 3) in [0, 1]; `labels` (n,), listed in a legend by their
    `label_names`; `values` (n,), shown with a scale; otherwise by height."""

    points: np.ndarray
    name: str = ""
    colors: np.ndarray | None = None
    labels: np.ndarray | None = None
    label_names: dict[int, str] | None = None
    values: np.ndarray | None = None


def viewer_page(clouds: list[ViewerCloud], title: str) -> str:
    """Return one HTML page with all clouds, which rotate together. It loads nothing else."""
    data = json.dumps({"clouds": pack_clouds(clouds)}, allow_nan=False)
    data = data.replace("<", "\\u003c")  # a name could end the script element around it
    parts = {"title": html.escape(title), "style": VIEWER_STYLE, "script": VIEWER_SCRIPT, "data": data}
    # In one pass: a title may look like a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], PAGE)


def pack_clouds(clouds: list[ViewerCloud], same_frame: bool = False) -> list[dict]:
    """Encode clouds as the JSON that viewer.js draws. With `same_frame` they keep their relative sizes and places;
    otherwise each fills its panel."""
    if not clouds:
        raise InputError("there is no cloud to show")
    for cloud in clouds:
        _check(cloud)
    used = sorted({int(label) for cloud in clouds if cloud.labels is not None for label in np.unique(cloud.labels)})
    label_color = dict(zip(used, label_colors(len(used)), strict=True))  # a label has one color in all clouds
    frame = np.concatenate([cloud.points for cloud in clouds]) if same_frame else None
    limit = min(MAX_POINTS, max(1, MAX_PAGE_POINTS // len(clouds)))
    return [_pack(cloud, cloud.points if frame is None else frame, label_color, limit) for cloud in clouds]


def bounding_ball(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Center (3,) of the bounding box of points (n, 3), and radius of the ball around it that holds them all."""
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    return center, max(float(np.linalg.norm(points - center, axis=1).max()), 1e-30)


def label_colors(count: int) -> np.ndarray:
    """Return `count` distinct colors (count, 3) in [0, 1]: a fixed palette, continued by evenly spread hues."""
    more = range(len(LABEL_COLORS), count)
    hues = [colorsys.hls_to_rgb(0.61803 * index % 1, 0.45 + 0.2 * (index % 2), 0.6) for index in more]
    return np.concatenate([_rgb(LABEL_COLORS), np.reshape(hues, (-1, 3))])[:count]


def value_colors(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map values (n,) between `low` and `high` to colors (n, 3) in [0, 1]."""
    position = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(VALUE_COLORS) - 1)
    channels = _rgb(VALUE_COLORS).T
    return np.stack([np.interp(position, np.arange(len(VALUE_COLORS)), channel) for channel in channels], axis=1)


def _check(cloud: ViewerCloud) -> None:
    count = len(cloud.points)
    for column, shape in {"points": (count, 3), "colors": (count, 3), "labels": (count,), "values": (count,)}.items():
        array = getattr(cloud, column)
        if array is not None and (np.shape(array) != shape or not count or not np.isfinite(array).all()):
            name = f"cloud {cloud.name!r}"
            raise InputError(f"{name} must have finite {column} of shape {shape}, got {np.shape(array)}")


def _pack(cloud: ViewerCloud, frame: np.ndarray, label_color: dict[int, np.ndarray], limit: int) -> dict:
    """Encode one cloud; all points of `frame` fit into its panel."""
    frame = np.asarray(frame, np.float64)
    center, radius = bounding_ball(frame)
    total = len(cloud.points)
    chosen = np.sort(np.random.default_rng(0).permutation(total)[:limit])
    points = np.asarray(cloud.points, np.float64)[chosen]
    packed = {"name": cloud.name, "points": _base64((points - center) / radius * 32767, "<i2")}
    packed |= {"drawn": len(chosen), "total": total, "center": center.tolist(), "radius": radius}
    if cloud.colors is not None:
        colors = np.clip(np.asarray(cloud.colors, np.float64)[chosen], 0, 1)
    elif cloud.labels is not None:
        labels, positions = np.unique(np.asarray(cloud.labels)[chosen].astype(int), return_inverse=True)
        names = [str((cloud.label_names or {}).get(label, f"label {label}")) for label in labels.tolist()]
        colors = np.array([label_color[label] for label in labels.tolist()])
        hexadecimal = ["#" + row.tobytes().hex() for row in np.rint(255 * colors).astype("u1")]
        packed |= {"legend": list(zip(names, hexadecimal, strict=True)), "labels": _base64(positions, "<u4")}
        colors = colors[positions]
    elif cloud.values is not None:
        values = np.asarray(cloud.values, np.float64)[chosen]
        low, high = float(values.min()), float(values.max())
        colors = value_colors(values, low, high)
        packed |= {"values": _base64(values, "<f4"), "scale": [low, high, VALUE_COLORS]}
    else:
        colors = value_colors(points[:, 1], frame[:, 1].min(), frame[:, 1].max())
    return packed | {"colors": _base64(255 * colors, "u1")}


def _rgb(colors: Sequence[str]) -> np.ndarray:
    return np.array([list(bytes.fromhex(color[1:])) for color in colors]) / 255


def _base64(values: np.ndarray, kind: str) -> str:
    values = np.rint(values) if kind[-2] in "iu" else values
    return base64.b64encode(values.astype(kind).tobytes()).decode()
