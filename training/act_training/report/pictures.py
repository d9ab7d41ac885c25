"""Pictures of a run: PNG files of clouds, boxes, confusion matrices and feature maps, and the report's curves."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from modeling_act.errors import InputError
from modeling_act.modeling_act_detection import box_corners
from modeling_act.viewer.page import VALUE_COLORS, bounding_ball, label_colors

PANEL_SIZE = 320  # pixels of a cloud
TITLE_HEIGHT = 48  # pixels, also of the names above the columns
INK, QUIET, LINE, CURVE, BAD = "#1b2230", "#5d6778", "#dfe3ea", "#3657d6", "#d6336c"
HEIGHT = LinearSegmentedColormap.from_list("height", VALUE_COLORS)
RIGHT = LinearSegmentedColormap.from_list("right", ("#ffffff", "#c8d3f5", "#4c5fd7"))
WRONG = LinearSegmentedColormap.from_list("wrong", ("#ffffff", "#f6c29a", "#c2410c"))
MIN_CELL, MAX_CELL = 26, 72  # pixels of a confusion matrix's cells
MAX_MAPPED_ROWS = 2000  # more dots hide one another, and t-SNE takes minutes
MIN_SMOOTHED = 40  # values of a curve with a moving average; shorter ones have dots
MIN_BOX_SCORE = 0.3
BOX_EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]


def finite_panels(panels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the finite points (points, 3) of each panel, without the panels that have none."""
    arrays = {name: np.asarray(points) for name, points in panels.items()}
    finite = {name: points[np.isfinite(points).all(axis=1)] for name, points in arrays.items()}
    return {name: points for name, points in finite.items() if len(points)}


def save_cloud_panels(path: str | Path, rows: list[dict[str, np.ndarray]], title: str = "") -> None:
    """Save a PNG with a row for each cloud and a column for each of its panels, say "input" and "reconstruction":
    points (points, 3), y up. The panels of a row share limits and colors, which show height; missing ones stay empty.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        raise InputError("`rows` of a picture must hold at least one cloud with one panel, got none")
    header = TITLE_HEIGHT * (2 if title else 1)
    height = PANEL_SIZE * len(rows) + header
    figure = _figure(PANEL_SIZE * len(columns), height)
    text = {"ha": "center", "va": "center", "color": INK, "parse_math": False}
    figure.text(0.5, 1 - TITLE_HEIGHT / 2 / height, title, size=15, weight="bold", **text)
    for column, name in enumerate(columns):
        figure.text((column + 0.5) / len(columns), 1 - (header - TITLE_HEIGHT / 2) / height, name, size=12, **text)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - header / height, wspace=0, hspace=0)
    for position, row in enumerate(rows):
        panels = finite_panels(row)
        if not panels:
            continue
        every = np.concatenate(list(panels.values()))
        center, radius = bounding_ball(every)
        highest = max(np.abs(every[:, 1] - center[1]).max() / radius, 1e-9)
        dot = float(np.clip(9000 / max(map(len, panels.values())), 2, 16))
        for name, points in panels.items():
            cell = position * len(columns) + columns.index(name) + 1
            axes = figure.add_subplot(len(rows), len(columns), cell, projection="3d")
            x, y, z = ((points - center) / radius).T
            _set_camera(axes, np.array([[-1, 1]] * 3), elev=20, azim=-55, zoom=1.5)
            axes.scatter(x, -z, y, c=y, cmap=HEIGHT, vmin=-highest, vmax=highest, s=dot, linewidths=0)
    _save(figure, path)


def save_scenes(
    path: str | Path, points: np.ndarray, scenes: list[dict[str, np.ndarray]], class_names: Sequence[str]
) -> None:
    """Save a PNG with true beside predicted boxes, a row for each of `scenes`, as `detection_metrics` describes them,
    with points (scenes, points, 3), z up."""
    figure = _figure(900, 450 * len(scenes) + 80)
    colors, used = label_colors(len(class_names)), set()
    for row, (cloud, scene) in enumerate(zip(points, scenes, strict=True)):
        confident = scene["scores"] > MIN_BOX_SCORE
        panels = {
            "ground truth": (scene["true_boxes"], scene["true_labels"]),
            f"predictions (scores above {MIN_BOX_SCORE})": (scene["boxes"][confident], scene["labels"][confident]),
        }
        for column, (title, (boxes, labels)) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(len(scenes), 2, 2 * row + column, projection="3d")
            axes.set_title(title, y=0.95, color=INK, size=12)
            _set_camera(axes, np.stack([cloud.min(axis=0), cloud.max(axis=0)], axis=1), elev=50, azim=-60)
            axes.scatter(*cloud.T, c="#98a2b3", s=2, linewidths=0)
            for corners, label in zip(box_corners(torch.from_numpy(boxes)).numpy(), labels, strict=True):
                axes.add_collection3d(Line3DCollection(corners[BOX_EDGES], colors=[colors[label]], linewidths=1.5))
            used |= set(labels.tolist())
    figure.subplots_adjust(left=0, right=1, bottom=60 / figure.bbox.height, top=1, wspace=0, hspace=0)
    for label in sorted(used):
        figure.axes[0].plot([], [], [], color=colors[label], linewidth=3, label=class_names[label])
    figure.legend(loc="lower center", ncols=9, frameon=False)
    _save(figure, path)


def save_confusion_matrix(
    path: str | Path, confusion: np.ndarray, class_names: Sequence[str], title: str = ""
) -> None:
    """Save a PNG of a confusion matrix (labels, predictions), in percent of each label's rows."""
    count, support = len(confusion), confusion.sum(1)
    shares = confusion / support[:, None].clip(1)
    cell = float(np.clip(600 / count, MIN_CELL, MAX_CELL))
    figure = _figure(count * cell, count * cell)
    axes = figure.add_axes((0, 0, 1, 1))
    is_right = np.eye(count, dtype=bool)[..., None]
    axes.imshow(np.where(is_right, RIGHT(shares), WRONG((2 * shares).clip(0, 1))), interpolation="nearest")
    text = {"ha": "center", "va": "center", "size": min(10, cell * 0.27)}
    for row, column in zip(*confusion.nonzero(), strict=True):
        share = shares[row, column]
        is_dark = share > (0.7 if row == column else 0.35)
        percent = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        axes.text(column, row, percent, color="white" if is_dark else INK, **text)
    for label in (support == 0).nonzero()[0]:
        axes.text((count - 1) / 2, label, "no rows", color=QUIET, **text)
    names = [_short(name) for name in class_names]
    style = {"size": float(np.clip(cell * 0.3, 8, 11)), "color": INK, "parse_math": False}
    axes.set_xticks(range(count), names, rotation=90, **style)
    axes.set_yticks(range(count), [f"{name} ({rows})" for name, rows in zip(names, support, strict=True)], **style)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=LINE, linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("prediction", color=INK, size=12)
    axes.set_ylabel("label (rows), cells in percent of its rows", color=INK, size=12)
    axes.set_title(title, color=INK, size=14, weight="bold", parse_math=False)
    _save(figure, path, bbox_inches="tight", pad_inches=0.2)


def save_feature_map(
    path: str | Path, features: np.ndarray, labels: np.ndarray, class_names: Sequence[str], title: str = ""
) -> None:
    """Save a PNG of features (rows, width), at most `MAX_MAPPED_ROWS`, in two dimensions, colored by class."""
    finite = np.isfinite(features).all(1).nonzero()[0]
    chosen = finite[np.sort(np.random.default_rng(0).permutation(len(finite))[:MAX_MAPPED_ROWS])]
    labels, maps = labels[chosen], _project(features[chosen])
    figure = _figure(700 * len(maps), 700)
    classes = np.unique(labels)
    for position, (name, points) in enumerate(maps.items()):
        axes = figure.add_axes(((position + 0.02) / len(maps), 0, 0.96 / len(maps), 0.94))
        for label, color in zip(classes, label_colors(len(class_names))[classes], strict=True):
            style = {"label": _short(class_names[label]).replace("$", r"\$"), "color": color}
            axes.scatter(*points[labels == label].T, s=14, linewidths=0, alpha=0.8, **style)
        axes.set_title(name, color=INK, size=12)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(LINE)
    style = {"ncols": -(-len(classes) // 26), "frameon": False, "markerscale": 2, "fontsize": 10}
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **style)
    figure.text(0.5, 1.03, title, size=14, weight="bold", ha="center", color=INK, parse_math=False)
    _save(figure, path, bbox_inches="tight", pad_inches=0.2)


def curve_svg(steps: np.ndarray, values: np.ndarray, limits: tuple[float, float]) -> str:
    """Draw values over steps as an SVG element whose colors are variables of the report's page. The scale is
    logarithmic where the values span a hundredfold. Noisy curves get their moving average."""
    finite = np.isfinite(values)
    x, y = steps[finite], values[finite]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves"}):
        figure = Figure(figsize=(3.8, 1.9), facecolor="none")
        axes = figure.add_axes((0.13, 0.12, 0.84, 0.84), facecolor="none")
        turns = (np.diff(np.sign(np.diff(y))) != 0).sum()
        is_short, is_noisy = len(y) < MIN_SMOOTHED, turns > 0.1 * len(y)  # a schedule is drawn as it is
        if is_noisy and not is_short:
            axes.plot(x, y, color=CURVE, linewidth=0.7, alpha=0.35)
            window = np.ones(2 * -(-len(y) // 40) + 1)
            y = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
        axes.plot(x, y, color=CURVE, linewidth=1.4, marker="o" if is_short else None, markersize=3)
        for step in steps[~finite]:
            axes.plot(step, 0.03, "x", color=BAD, markersize=4, transform=axes.get_xaxis_transform())
        if len(y) and 0 < 100 * y.min() < y.max():
            axes.set_yscale("log")
        margin = 0.02 * (limits[1] - limits[0]) or 1
        axes.set_xlim(limits[0] - margin, limits[1] + margin)
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        axes.tick_params(length=0, labelsize=7, labelcolor=QUIET)
        axes.spines[:].set_visible(False)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = content.getvalue()
    for color, name in ((CURVE, "curve"), (LINE, "line"), (QUIET, "quiet"), (BAD, "bad")):
        svg = svg.replace(color, f"var(--{name})")
    return svg[svg.index("<svg") :]


def _project(features: np.ndarray) -> dict[str, np.ndarray]:
    """Map features (rows, width) to two dimensions (rows, 2), in two ways if there are enough rows."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features)
    pca = PCA(min(50, *scaled.shape), svd_solver="full", random_state=0)
    components = np.pad(pca.fit_transform(scaled), ((0, 0), (0, 1)))  # at least two
    share = np.nan_to_num(pca.explained_variance_ratio_[:2]).sum()
    maps = {f"two principal components ({share:.0%} of the variance)": components[:, :2]}
    if len(features) > 10:
        perplexity = min(30, (len(features) - 1) / 3)
        maps["t-SNE"] = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(components)
    return maps


def _figure(width: float, height: float) -> Figure:
    """Figure of this size in pixels, without pyplot and its state."""
    return Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")


def _set_camera(axes: Axes3D, limits: np.ndarray, elev: float, azim: float, zoom: float = 1.0) -> None:
    """Look at the box of these limits (3, 2)."""
    axes.set_axis_off()
    axes.set(xlim=limits[0], ylim=limits[1], zlim=limits[2])
    axes.set_box_aspect(np.maximum(np.ptp(limits, axis=1), 0.1), zoom=zoom)
    axes.view_init(elev=elev, azim=azim)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:22] + ".."


def _save(figure: Figure, path: str | Path, **options) -> None:
    """Write a PNG, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    figure.savefig(temporary, format="png", **options)
    os.replace(temporary, path)
