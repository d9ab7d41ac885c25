"""Point clouds as PNG files, drawn with matplotlib and without a display."""

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from act_training.errors import InputError
from act_training.report import HEIGHT_COLORS, bounding_ball, checked_points, write_atomically

PANEL_SIZE = 320  # pixels
TITLE_HEIGHT = 48  # pixels, also of the names above the columns
DOTS_PER_INCH = 100
COLORS = LinearSegmentedColormap.from_list("height", HEIGHT_COLORS)


def save_cloud_panels(path: str | Path, rows: list[dict[str, np.ndarray]], title: str = "") -> None:
    """A PNG with a row for each cloud and a column for each of its panels, say "input", "visible", "reconstruction".

    Panels hold points (points, 3) with y up. The panels of a row share limits and colors, which show height. A panel
    that a row lacks stays empty.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        raise InputError("`rows` of a picture must hold at least one cloud with one panel, got none")
    header = TITLE_HEIGHT * (2 if title else 1)
    width, height = PANEL_SIZE * len(columns), PANEL_SIZE * len(rows) + header
    figure = Figure(figsize=(width / DOTS_PER_INCH, height / DOTS_PER_INCH), dpi=DOTS_PER_INCH, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    text = {"ha": "center", "va": "center", "color": "#1b2230", "parse_math": False}
    if title:
        figure.text(0.5, 1 - TITLE_HEIGHT / 2 / height, title, size=15, weight="bold", **text)
    for column, name in enumerate(columns):
        figure.text((column + 0.5) / len(columns), 1 - (header - TITLE_HEIGHT / 2) / height, name, size=12, **text)
    for position, row in enumerate(rows):
        finite = {name: checked_points(name, points) for name, points in row.items()}
        center, radius = bounding_ball(finite.values())
        scaled = {name: (points - center) / radius for name, points in finite.items()}
        highest = max([1e-9, *(np.abs(points[:, 1]).max(initial=0) for points in scaled.values())])
        dot = float(np.clip(9000 / max([1, *map(len, scaled.values())]), 2, 16))
        for name, points in scaled.items():
            left, bottom = columns.index(name) * PANEL_SIZE, (len(rows) - 1 - position) * PANEL_SIZE
            box = (left / width, bottom / height, PANEL_SIZE / width, PANEL_SIZE / height)
            _draw_panel(figure.add_axes(box, projection="3d"), points, highest, dot)
    content = io.BytesIO()
    canvas.print_png(content)
    write_atomically(Path(path), content.getvalue())


def _draw_panel(axes: Axes3D, points: np.ndarray, highest: float, dot: float) -> None:
    """Points (points, 3) in the unit ball, seen from the front, the right and above; y is matplotlib's z."""
    axes.set_axis_off()
    axes.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    axes.set_box_aspect((1, 1, 1), zoom=1.5)
    axes.view_init(elev=20, azim=-55)
    x, y, z = points.T
    axes.scatter(x, -z, y, c=y, cmap=COLORS, vmin=-highest, vmax=highest, s=dot, linewidths=0, depthshade=True)
