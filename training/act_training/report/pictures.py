"""Pictures of an evaluation: PNG files of boxes in scenes, confusion matrices and feature maps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from act_training.report.run_folder import INK, LINE, QUIET, make_figure, save_figure, set_camera
from modeling_act.modeling_act_detection import box_corners
from modeling_act.viewer.page import label_colors

RIGHT = LinearSegmentedColormap.from_list("right", ("#ffffff", "#c8d3f5", "#4c5fd7"))
WRONG = LinearSegmentedColormap.from_list("wrong", ("#ffffff", "#f6c29a", "#c2410c"))
MIN_CELL, MAX_CELL = 26, 72  # pixels of a confusion matrix's cells
MAX_MAPPED_ROWS = 2000  # more dots hide one another, and t-SNE takes minutes
MIN_BOX_SCORE = 0.3
BOX_EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]


def save_scenes(
    path: str | Path, points: np.ndarray, scenes: list[dict[str, np.ndarray]], class_names: Sequence[str]
) -> None:
    """Save a PNG with true beside predicted boxes, a row for each of `scenes`, as `detection_metrics` describes them,
    with points (scenes, points, 3), z up."""
    figure = make_figure(900, 450 * len(scenes) + 80)
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
            set_camera(axes, np.stack([cloud.min(axis=0), cloud.max(axis=0)], axis=1), elev=50, azim=-60)
            axes.scatter(*cloud.T, c="#98a2b3", s=2, linewidths=0)
            for corners, label in zip(box_corners(torch.from_numpy(boxes)).numpy(), labels, strict=True):
                axes.add_collection3d(Line3DCollection(corners[BOX_EDGES], colors=[colors[label]], linewidths=1.5))
            used |= set(labels.tolist())
    figure.subplots_adjust(left=0, right=1, bottom=60 / figure.bbox.height, top=1, wspace=0, hspace=0)
    for label in sorted(used):
        figure.axes[0].plot([], [], [], color=colors[label], linewidth=3, label=class_names[label])
    figure.legend(loc="lower center", ncols=9, frameon=False)
    save_figure(figure, path)


def save_confusion_matrix(
    path: str | Path, confusion: np.ndarray, class_names: Sequence[str], title: str = ""
) -> None:
    """Save a PNG of a confusion matrix (labels, predictions), in percent of each label's rows."""
    count, support = len(confusion), confusion.sum(1)
    shares = confusion / support[:, None].clip(1)
    cell = float(np.clip(600 / count, MIN_CELL, MAX_CELL))
    figure = make_figure(count * cell, count * cell)
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
    save_figure(figure, path, bbox_inches="tight", pad_inches=0.2)


def save_feature_map(path: str | Path, features: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Save a PNG of features (rows, width), at most `MAX_MAPPED_ROWS`, in two dimensions, colored by class."""
    finite = np.isfinite(features).all(1).nonzero()[0]
    chosen = finite[np.sort(np.random.default_rng(0).permutation(len(finite))[:MAX_MAPPED_ROWS])]
    labels, maps = labels[chosen], _project(features[chosen])
    figure = make_figure(700 * len(maps), 700)
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
    save_figure(figure, path, bbox_inches="tight", pad_inches=0.2)


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


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:22] + ".."
