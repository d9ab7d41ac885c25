"""Average precision of detected boxes at thresholds of overlap, as VoteNet's evaluation computes it.

A scene is a dict of arrays: the detections `scores` (n,), `labels` (n,) and `boxes` (n, 7), and the ground truth
`true_labels` (m,) and `true_boxes` (m, 7).
"""

from collections.abc import Sequence

import numpy as np
import torch

from modeling_act.errors import InputError
from modeling_act.modeling_act_detection import box_iou

THRESHOLDS = (0.25, 0.5)


def detection_metrics(
    scenes: list[dict[str, np.ndarray]], class_names: Sequence[str]
) -> tuple[dict[str, float], list[dict]]:
    """`map_25` and `map_50`, means over the classes that have a true box, and a table with a row for each of them."""
    by_threshold = {f"{100 * threshold:.0f}": average_precisions(scenes, threshold) for threshold in THRESHOLDS}
    labels, counts = np.unique(np.concatenate([scene["true_labels"] for scene in scenes]), return_counts=True)
    table = [
        {"class": class_names[label], "boxes": count}
        | {f"ap_{name}": precisions[label] for name, precisions in by_threshold.items()}
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True)
    ]
    return {f"map_{name}": float(np.mean(list(values.values()))) for name, values in by_threshold.items()}, table


def average_precisions(scenes: list[dict[str, np.ndarray]], threshold: float) -> dict[int, float]:
    """Average precision of each class that has a true box."""
    true_labels = np.concatenate([scene["true_labels"] for scene in scenes])
    if not len(true_labels):
        raise InputError("`scenes` must hold at least one true box, got none")
    labels = np.concatenate([scene["labels"] for scene in scenes])
    scores = np.concatenate([scene["scores"] for scene in scenes])
    correct = np.concatenate([match_boxes(scene, threshold) for scene in scenes])
    precisions = {}
    for label, count in zip(*np.unique(true_labels, return_counts=True), strict=True):
        order = np.argsort(-scores[labels == label], kind="stable")
        precisions[int(label)] = precision_recall_area(correct[labels == label][order], count)
    return precisions


def match_boxes(scene: dict[str, np.ndarray], threshold: float) -> np.ndarray:
    """Flags (n,) of the correct detections of a scene: those that overlap the true box of their class which they
    overlap most by more than `threshold`, and have the highest score of those at the same box."""
    correct = np.zeros(len(scene["scores"]), dtype=bool)
    if not len(scene["true_labels"]) or not len(correct):
        return correct
    overlap = box_iou(*(torch.from_numpy(np.asarray(scene[name])) for name in ("boxes", "true_boxes"))).numpy()
    overlap = np.where(scene["labels"][:, None] == scene["true_labels"], overlap, 0)
    nearest = overlap.argmax(1)
    order = np.argsort(-scene["scores"], kind="stable")
    order = order[overlap.max(1)[order] > threshold]
    first_of_each = np.unique(nearest[order], return_index=True)[1]  # others repeat it
    correct[order[first_of_each]] = True
    return correct


def precision_recall_area(correct: np.ndarray, num_true: int) -> float:
    """Area under precision over recall, each precision raised to the best at a higher recall. `correct` (n,) is in
    the order of descending scores."""
    precision = correct.cumsum() / np.arange(1, len(correct) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[correct].sum() / num_true)  # recall grows by 1 / num_true at each correct detection
