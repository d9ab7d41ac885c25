"""How well boxes are found: average precision at thresholds of overlap, as VoteNet's evaluation counts it.

A scene is a dict of arrays: what was found, `scores` (n,), `labels` (n,) and `boxes` (n, 7), and what is there,
`true_labels` (m,) and `true_boxes` (m, 7).
"""

from collections.abc import Sequence

import numpy as np
import torch

from modeling_act.box_ops import box_iou
from modeling_act.errors import InputError

THRESHOLDS = (0.25, 0.5)


def detection_metrics(
    scenes: list[dict[str, np.ndarray]], class_names: Sequence[str]
) -> tuple[dict[str, float], list[dict]]:
    """`map_25` and `map_50`, means over the classes that are there, and a table with a row for each of these."""
    precisions = {f"{100 * threshold:.0f}": average_precisions(scenes, threshold) for threshold in THRESHOLDS}
    labels, counts = np.unique(np.concatenate([scene["true_labels"] for scene in scenes]), return_counts=True)
    table = [
        {"class": class_names[label], "boxes": count}
        | {f"ap_{name}": found[label] for name, found in precisions.items()}
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True)
    ]
    return {f"map_{name}": float(np.mean(list(found.values()))) for name, found in precisions.items()}, table


def average_precisions(scenes: list[dict[str, np.ndarray]], threshold: float) -> dict[int, float]:
    """By class: the area under precision over recall, each precision raised to the best at a higher recall.

    From the highest score on, a box is right if the box of its class that it overlaps most is overlapped by more than
    `threshold` and was not found before. Classes of which no scene has a box are left out.
    """
    there = np.concatenate([scene["true_labels"] for scene in scenes])
    if not len(there):
        raise InputError("`scenes` must hold at least one box to be found, got none")
    labels = np.concatenate([scene["labels"] for scene in scenes])
    scores = np.concatenate([scene["scores"] for scene in scenes])
    right = np.concatenate([find_right(scene, threshold) for scene in scenes])
    found = {}
    for label, count in zip(*np.unique(there, return_counts=True), strict=True):
        chosen = labels == label
        order = np.argsort(-scores[chosen], kind="stable")
        found[int(label)] = precision_recall_area(right[chosen][order], count)
    return found


def find_right(scene: dict[str, np.ndarray], threshold: float) -> np.ndarray:
    """Which of a scene's boxes (n,) are right."""
    right = np.zeros(len(scene["scores"]), dtype=bool)
    if not len(scene["true_labels"]) or not len(right):
        return right
    overlap = box_iou(*(torch.from_numpy(np.asarray(scene[name])) for name in ("boxes", "true_boxes"))).numpy()
    overlap = np.where(scene["labels"][:, None] == scene["true_labels"], overlap, 0)
    nearest = overlap.argmax(1)
    order = np.argsort(-scene["scores"], kind="stable")
    order = order[overlap.max(1)[order] > threshold]
    firsts = np.unique(nearest[order], return_index=True)[1]  # the first to find each; others repeat it
    right[order[firsts]] = True
    return right


def precision_recall_area(right: np.ndarray, count: int) -> float:
    """`right` (n,) from the highest score on, of `count` boxes that there were to find."""
    hits = right.cumsum()
    precision = hits / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[right].sum() / count)  # recall grows by 1 / count where a box is right
