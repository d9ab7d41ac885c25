"""Point clouds, confusion matrices and maps of features as PNG files, drawn with matplotlib and without a display."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from act_training.report.html import HEIGHT_COLORS, bounding_ball, checked_points, write_atomically
from modeling_act.errors import InputError

PANEL_SIZE = 320  # pixels
TITLE_HEIGHT = 48  # pixels, also of the names above the columns
DOTS_PER_INCH = 100
COLORS = LinearSegmentedColormap.from_list("height", HEIGHT_COLORS)
INK = "#1b2230"
RIGHT = LinearSegmentedColormap.from_list("right", ("#ffffff", "#c8d3f5", "#4c5fd7"))
WRONG = LinearSegmentedColormap.from_list("wrong", ("#ffffff", "#f6c29a", "#c2410c"))
CELL_SIZES = (26, 72)  # pixels of a confusion matrix's cells: of many classes, of few
MAPPED_ROWS = 2000  # more dots hide one another, and t-SNE takes minutes
MARKERS = ("o", "^", "s")  # tell classes of one color apart


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
    text = {"ha": "center", "va": "center", "color": INK, "parse_math": False}
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


def save_confusion_matrix(
    path: str | Path, confusion: np.ndarray, class_names: Sequence[str], title: str = ""
) -> None:
    """A PNG of a confusion matrix (labels, predictions): how many percent of a label's rows got each prediction."""
    count, support = len(confusion), confusion.sum(1, keepdims=True)
    shares = confusion / support.clip(1)
    diagonal = np.eye(count, dtype=bool)
    cell = float(np.clip(600 / count, *CELL_SIZES))
    figure = Figure(figsize=(count * cell / DOTS_PER_INCH,) * 2, dpi=DOTS_PER_INCH, facecolor="white")
    canvas, axes = FigureCanvasAgg(figure), figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.where(diagonal[..., None], RIGHT(shares), WRONG((2 * shares).clip(0, 1))), interpolation="nearest")
    for row, column in zip(*confusion.nonzero(), strict=True):
        share = shares[row, column]
        text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        color = "white" if share > (0.7 if row == column else 0.35) else INK
        axes.text(column, row, text, ha="center", va="center", size=min(10, cell * 0.27), color=color)
    for label in (support[:, 0] == 0).nonzero()[0]:
        axes.text(
            (count - 1) / 2, label, "no rows", ha="center", va="center", size=min(10, cell * 0.27), color="#6b7280"
        )
    names = [_short(name) for name in class_names]
    style = {"size": float(np.clip(cell * 0.3, 8, 11)), "color": INK, "parse_math": False}
    axes.set_xticks(range(count), names, rotation=90, **style)
    axes.set_yticks(
        range(count), [f"{name} ({rows})" for name, rows in zip(names, support[:, 0], strict=True)], **style
    )
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#dfe3ea", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("prediction", color=INK, size=12)
    axes.set_ylabel("label (rows), cells in percent of its rows", color=INK, size=12)
    if title:
        axes.set_title(title, color=INK, size=14, weight="bold", parse_math=False)
    _write(canvas, path)


def save_feature_map(
    path: str | Path, features: np.ndarray, labels: np.ndarray, class_names: Sequence[str], title: str = ""
) -> None:
    """A PNG of features (rows, width) in the plane, by principal components and by t-SNE, a color for each class.

    Of many rows some are drawn, always the same.
    """
    finite = np.isfinite(features).all(1)
    features, labels = features[finite], labels[finite]
    chosen = np.sort(np.random.default_rng(0).permutation(len(features))[:MAPPED_ROWS])
    labels = labels[chosen]
    maps = _planes(features[chosen])
    figure = Figure(figsize=(7 * len(maps), 7), dpi=DOTS_PER_INCH, facecolor="white")
    canvas, classes = FigureCanvasAgg(figure), np.unique(labels)
    colors = colormaps["tab20"].colors
    for place, (name, points) in enumerate(maps.items()):
        axes = figure.add_axes(((place + 0.02) / len(maps), 0, 0.96 / len(maps), 0.94))
        for number, label in enumerate(classes):
            own = points[labels == label]
            style = {"color": colors[number % 20], "marker": MARKERS[number // 20 % len(MARKERS)]}
            shown = _short(class_names[label]).replace("$", r"\$")
            axes.scatter(*own.T, s=14, linewidths=0, alpha=0.8, label=shown, **style)
            if name == "t-SNE":
                halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
                axes.text(*np.median(own, axis=0), shown, ha="center", size=8, color=INK, path_effects=halo)
        axes.set_title(name, color=INK, size=12)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_color("#dfe3ea")
    columns = -(-len(classes) // 26)
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=columns, frameon=False, markerscale=2, fontsize=10
    )
    if title:
        figure.text(0.5, 1.03, title, size=14, weight="bold", ha="center", color=INK, parse_math=False)
    _write(canvas, path)


def _planes(features: np.ndarray) -> dict[str, np.ndarray]:
    """Maps of features (rows, width), (rows, 2) each."""
    from sklearn.manifold import TSNE

    scaled = (features - features.mean(0)) / features.std(0).clip(1e-6)
    left, scale, _ = np.linalg.svd(scaled.astype(np.float64), full_matrices=False)
    components = np.pad((left * scale)[:, :50], ((0, 0), (0, 2)))  # so that there are two
    share = (scale[:2] ** 2).sum() / max((scale**2).sum(), 1e-12)
    maps = {f"two principal components ({share:.0%} of the variance)": components[:, :2]}
    if len(features) > 10:
        perplexity = min(30, (len(features) - 1) / 3)
        maps["t-SNE"] = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(components)
    return maps


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:22] + ".."


def _write(canvas: FigureCanvasAgg, path: str | Path) -> None:
    """The whole figure, with whatever stands beside its axes."""
    content = io.BytesIO()
    canvas.print_figure(content, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.2)
    write_atomically(Path(path), content.getvalue())
