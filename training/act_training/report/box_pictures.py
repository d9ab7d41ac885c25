"""Scenes with boxes as PNG files: what is there beside what was found."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from act_training.report.html import write_atomically
from modeling_act.box_ops import box_corners

EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]
LEAST_SCORE = 0.3  # of a box that is drawn
INCHES = 4.5  # of a panel


def save_scenes(
    path: Path, points: np.ndarray, scenes: list[dict[str, np.ndarray]], class_names: Sequence[str]
) -> None:
    """A row for each of `scenes`, as `detection_metrics` describes them, with points (scenes, points, 3)."""
    figure = Figure(figsize=(2 * INCHES, INCHES * len(scenes) + 0.8), dpi=100, facecolor="white")
    canvas, colors, used = FigureCanvasAgg(figure), colormaps["tab20"].colors, set()
    for row, (cloud, scene) in enumerate(zip(points, scenes, strict=True)):
        sure = scene["scores"] > LEAST_SCORE
        panels = {
            "there": (scene["true_boxes"], scene["true_labels"]),
            f"found (scores above {LEAST_SCORE})": (scene["boxes"][sure], scene["labels"][sure]),
        }
        for column, (title, (boxes, labels)) in enumerate(panels.items()):
            axes = figure.add_subplot(len(scenes), 2, 2 * row + column + 1, projection="3d")
            axes.set_title(title, y=0.95, color="#1b2230", size=12)
            draw_scene(axes, cloud, boxes, [colors[label % len(colors)] for label in labels])
            used |= set(labels.tolist())
    figure.subplots_adjust(left=0, right=1, bottom=0.6 / figure.get_figheight(), top=1, wspace=0, hspace=0)
    for label in sorted(used):
        figure.axes[0].plot([], [], [], color=colors[label % len(colors)], linewidth=3, label=class_names[label])
    figure.legend(loc="lower center", ncols=9, frameon=False)
    content = io.BytesIO()
    canvas.print_png(content)
    write_atomically(path, content.getvalue())


def draw_scene(axes: Axes3D, points: np.ndarray, boxes: np.ndarray, colors: list) -> None:
    low, high = points.min(axis=0), points.max(axis=0)
    axes.set_axis_off()
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axes.set_box_aspect(np.maximum(high - low, 0.1), zoom=1.0)
    axes.view_init(elev=50, azim=-60)
    axes.scatter(*points.T, c="#98a2b3", s=2, linewidths=0)
    for corners, color in zip(box_corners(torch.from_numpy(boxes)).numpy(), colors, strict=True):
        axes.add_collection3d(
            Line3DCollection([corners[list(edge)] for edge in EDGES], colors=[color], linewidths=1.5)
        )
