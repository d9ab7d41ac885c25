"""Clouds that a reader turns, zooms and clicks, as one HTML page that opens offline; the app shows them the same way.

What runs in the browser stands in viewer_script.py.
"""

import base64
import colorsys
import html
import json
import re
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .script import PAGE, VIEWER_SCRIPT, VIEWER_STYLE

MOST_POINTS = 200_000  # drawn of one cloud,
MOST_POINTS_OF_PAGE = 2_000_000  # and of all clouds of a page
# From low to high; readable on white and on black.
SCALE = np.array([(58, 88, 216), (126, 92, 212), (214, 84, 150), (245, 137, 86), (250, 208, 94)]) / 255
PALETTE = np.array(
    [
        (78, 121, 220), (242, 142, 43), (76, 172, 96), (225, 87, 89), (150, 110, 210), (53, 182, 189),
        (237, 201, 72), (214, 110, 170), (156, 117, 95), (130, 150, 170), (160, 190, 70), (255, 157, 137),
    ]
) / 255  # fmt: skip


@dataclass
class ShownCloud:
    """Points (n, 3), y up, and what colors them, one of: colors (n, 3) in [0, 1]; labels (n,), indices of
    `label_names`, which a legend lists; values (n,), which a scale explains. Without any, their height does."""

    points: np.ndarray
    name: str = ""
    colors: np.ndarray | None = None
    labels: np.ndarray | None = None
    label_names: list[str] | dict[int, str] | None = None
    values: np.ndarray | None = None


def viewer_page(clouds: list[ShownCloud], title: str) -> str:
    """One HTML page with all clouds, which turn together; it loads nothing from anywhere."""
    data = json.dumps({"clouds": pack_clouds(clouds)}, allow_nan=False)
    parts = {
        "title": html.escape(title),
        "style": VIEWER_STYLE,
        "script": VIEWER_SCRIPT,
        "data": data.replace("<", "\\u003c"),  # a name could end the script that holds it
    }
    # In one pass: a title may look like a placeholder.
    return re.sub(r"\{\{(title|style|script|data)\}\}", lambda match: parts[match[1]], PAGE)


def pack_clouds(clouds: list[ShownCloud], same_frame: bool = False) -> list[dict]:
    """What the script draws, ready for JSON. `same_frame` keeps the clouds' sizes and places relative to each other;
    otherwise each fills its picture."""
    if not clouds:
        raise InputError("there is no cloud to show")
    for cloud in clouds:
        _check(cloud)
    present = sorted({int(label) for cloud in clouds if cloud.labels is not None for label in np.unique(cloud.labels)})
    colors = dict(zip(present, label_colors(len(present)), strict=True))  # the same in every cloud
    every = np.concatenate([cloud.points for cloud in clouds]) if same_frame else None
    most = min(MOST_POINTS, max(1, MOST_POINTS_OF_PAGE // len(clouds)))
    return [_pack(cloud, cloud.points if every is None else every, colors, most) for cloud in clouds]


def label_colors(count: int) -> np.ndarray:
    """(count, 3) in [0, 1]: a fixed palette, then as many hues as are needed."""
    more = [
        colorsys.hls_to_rgb(0.61803 * place % 1, 0.45 + 0.2 * (place % 2), 0.6) for place in range(len(PALETTE), count)
    ]
    return np.concatenate([PALETTE, np.reshape(more, (-1, 3))])[:count]


def scale_colors(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colors (n, 3) in [0, 1] of values (n,)."""
    place = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(SCALE) - 1)
    return np.stack([np.interp(place, np.arange(len(SCALE)), channel) for channel in SCALE.T], axis=1)


def _check(cloud: ShownCloud) -> None:
    name = f"cloud {cloud.name!r}"
    points = np.asarray(cloud.points)
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise InputError(f"{name} must have points of shape (n, 3), got {points.shape}")
    columns = {"colors": (len(points), 3), "labels": (len(points),), "values": (len(points),)}
    given = [column for column in columns if getattr(cloud, column) is not None]
    if len(given) > 1:
        raise InputError(f"{name} must be colored by one of colors, labels and values, got {' and '.join(given)}")
    for column in ("points", *given):
        array = np.asarray(getattr(cloud, column))
        if column in columns and array.shape != columns[column]:
            raise InputError(f"{name} must have {column} of shape {columns[column]}, got {array.shape}")
        if not np.isfinite(array).all():
            raise InputError(f"{name} must have finite {column}")
    if cloud.labels is not None and cloud.label_names is None:
        raise InputError(f"{name} has labels and no `label_names`")


def _pack(cloud: ShownCloud, frame: np.ndarray, colors: dict[int, np.ndarray], most: int) -> dict:
    """`frame` holds the points that shall fit into the picture."""
    points, frame = np.asarray(cloud.points, np.float64), np.asarray(frame, np.float64)
    low, high = frame.min(axis=0), frame.max(axis=0)
    center = (low + high) / 2
    radius = max(float(np.linalg.norm(frame - center, axis=1).max()), 1e-30)
    chosen = np.arange(len(points))
    if len(points) > most:
        chosen = np.sort(np.random.default_rng(0).permutation(len(points))[:most])
    unit = (points[chosen] - center) / radius
    packed = {
        "name": cloud.name,
        "points": _base64(np.rint(unit * 32767), "<i2"),
        "drawn": len(chosen),
        "total": len(points),
        "center": center.tolist(),
        "radius": radius,
    }
    if cloud.colors is not None:
        shown = np.clip(np.asarray(cloud.colors, np.float64)[chosen], 0, 1)
    elif cloud.labels is not None:
        labels = np.asarray(cloud.labels)[chosen].astype(int)
        present, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
        shown = np.array([colors[label] for label in present])[places]
        packed["legend"] = [
            [_name_of(cloud, label), _css(colors[label]), count]
            for label, count in zip(present.tolist(), counts.tolist(), strict=True)
        ]
        packed["labels"] = _base64(places, "<u4")
    elif cloud.values is not None:
        values = np.asarray(cloud.values, np.float64)[chosen]
        ends = float(values.min()), float(values.max())
        shown = scale_colors(values, *ends)
        packed |= {"values": _base64(values, "<f4"), "scale": [*ends, [_css(color) for color in SCALE]]}
    else:
        shown = scale_colors(points[chosen, 1], low[1], high[1])
    return packed | {"colors": _base64(np.rint(255 * shown), "u1")}


def _name_of(cloud: ShownCloud, label: int) -> str:
    names = cloud.label_names if isinstance(cloud.label_names, dict) else dict(enumerate(cloud.label_names))
    return str(names.get(label, f"label {label}"))


def _css(color: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in color)


def _base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()


__all__ = ["ShownCloud", "viewer_page", "pack_clouds"]
