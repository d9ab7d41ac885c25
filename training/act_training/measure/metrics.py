"""Figures of a model from labels and predictions: classification, segmentation, parts, retrieval, several seeds.

Plain numpy. A confusion matrix has a row for each label and a column for each prediction, so parts of it add up.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from act_training.data.schema import IGNORED
from modeling_act.errors import InputError

QUERIES_AT_ONCE = 256


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (num_classes, num_classes) of [label, prediction], of arrays of one shape; labels -100 count nowhere."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape:
        raise InputError(f"`predicted` must have the shape of `labels`, got {predicted.shape} and {labels.shape}")
    counted = labels != IGNORED
    labels, predicted = labels[counted], predicted[counted]
    for name, values in (("labels", labels), ("predicted", predicted)):
        outside = values[(values < 0) | (values >= num_classes)]
        if len(outside):
            raise InputError(f"`{name}` must lie between 0 and {num_classes - 1}, got {outside[0]}")
    cells = labels.astype(np.int64) * num_classes + predicted.astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def classification_metrics(confusion: np.ndarray) -> dict[str, float]:
    """Overall accuracy, and the mean of the accuracies (recalls) of the classes that have a row."""
    right, support = np.diag(confusion), confusion.sum(1)
    _check_any(support.sum(), "label")
    there = support > 0
    return {
        "accuracy": float(right.sum() / support.sum()),
        "mean_class_accuracy": float((right[there] / support[there]).mean()),
    }


def class_table(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict]:
    """For each class its rows, recall, precision and F1; None where there was nothing to divide by."""
    right, support, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return [
        {
            "class": name,
            "support": int(support[i]),
            "recall": _share(right[i], support[i]),
            "precision": _share(right[i], predicted[i]),
            "f1": _share(2 * right[i], support[i] + predicted[i]),
        }
        for i, name in _enumerate_names(class_names, confusion)
    ]


def segmentation_metrics(confusion: np.ndarray, ignore: Sequence[int] = ()) -> dict[str, float]:
    """Mean IoU, mean class accuracy and accuracy of points.

    A class that no point has and none was given is left out of the mean IoU, and one that no point has out of the
    mean accuracy. Points whose label is in `ignore` count nowhere; a point of another class that was given one of
    these is wrong.
    """
    right, support, union = _intersections_and_unions(confusion, ignore)
    _check_any(support.sum(), "label")
    kept = ~np.isin(np.arange(len(confusion)), ignore)
    seen, there = kept & (union > 0), support > 0
    return {
        "miou": float((right[seen] / union[seen]).mean()),
        "mean_class_accuracy": float((right[there] / support[there]).mean()),
        "accuracy": float(right.sum() / support.sum()),
    }


def iou_table(confusion: np.ndarray, class_names: Sequence[str], ignore: Sequence[int] = ()) -> list[dict]:
    """For each class but the ignored its points, IoU and accuracy; None where there was nothing to divide by."""
    right, support, union = _intersections_and_unions(confusion, ignore)
    return [
        {
            "class": name,
            "points": int(support[i]),
            "iou": _share(right[i], union[i]),
            "accuracy": _share(right[i], support[i]),
        }
        for i, name in _enumerate_names(class_names, confusion)
        if i not in ignore
    ]


def part_ious(
    labels: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    category: Sequence[int],
    parts_of_category: Mapping[int, Sequence[int]] | Sequence[Sequence[int]],
) -> np.ndarray:
    """The IoU of each cloud (clouds,): the mean over the parts of its category, where a part that neither labels nor
    predictions hold counts 1. `labels` and `predicted` hold the parts of each cloud's points; -100 labels count
    nowhere."""
    ious = np.empty(len(category))
    for cloud, (true, guess, kind) in enumerate(zip(labels, predicted, category, strict=True)):
        true, guess = np.asarray(true), np.asarray(guess)
        parts = np.asarray(parts_of_category[int(kind)])
        counted = true != IGNORED
        true, guess = true[counted, None] == parts, guess[counted, None] == parts  # (points, parts)
        if not true.any(1).all():
            raise InputError(f"cloud {cloud} of category {int(kind)} has labels outside its parts {parts.tolist()}")
        union = (true | guess).sum(0)
        ious[cloud] = np.where(union > 0, (true & guess).sum(0) / union.clip(1), 1.0).mean()
    return ious


def part_metrics(ious: np.ndarray, category: Sequence[int]) -> dict[str, float]:
    """The mean over clouds, and the mean over categories of the means over their clouds."""
    ious, category = np.asarray(ious), np.asarray(category)
    _check_any(len(ious), "cloud")
    means = [ious[category == kind].mean() for kind in np.unique(category)]
    return {"instance_miou": float(ious.mean()), "class_miou": float(np.mean(means))}


def retrieval_map(
    features: np.ndarray,
    labels: np.ndarray,
    query_features: np.ndarray | None = None,
    query_labels: np.ndarray | None = None,
) -> float:
    """Mean average precision of ranking rows by the cosine of their features (rows, width) to each query's.

    Without queries each row looks for the others of its class. A query whose class no row has is left out of the
    mean. Of equally near rows the first comes first.
    """
    features, labels = _unit_length(features), np.asarray(labels)
    alone = query_features is None
    queries, wanted = (features, labels) if alone else (_unit_length(query_features), np.asarray(query_labels))
    precisions = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        cosines = queries[part] @ features.T  # (queries, rows)
        relevant = wanted[part, None] == labels
        if alone:  # itself goes last, where it is no find
            rows = np.arange(len(cosines))
            cosines[rows, start + rows], relevant[rows, start + rows] = -np.inf, False
        ranked = np.take_along_axis(relevant, np.argsort(-cosines, axis=1, kind="stable"), axis=1)
        precision = ranked.cumsum(1) / np.arange(1, len(labels) + 1)
        count = ranked.sum(1)
        precisions.append(((precision * ranked).sum(1) / count.clip(1))[count > 0])
    precisions = np.concatenate(precisions) if precisions else np.empty(0)
    _check_any(len(precisions), "query has another row of its class")
    return float(precisions.mean())


def mean_and_std(runs: Sequence[Mapping[str, float]]) -> dict[str, dict]:
    """{name: {"mean", "std", "values"}} of the figures of several runs, such as seeds or folds.

    `std` is that of a sample (divided by runs - 1), None of a single run.
    """
    if not runs or any(run.keys() != runs[0].keys() for run in runs):
        raise InputError(f"`runs` must be figures of the same names, got {[sorted(run) for run in runs]}")
    found = {}
    for name in runs[0]:
        values = [float(run[name]) for run in runs]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        found[name] = {"mean": float(np.mean(values)), "std": deviation, "values": values}
    return found


def _intersections_and_unions(
    confusion: np.ndarray, ignore: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points that are right, that have the label, and that have the label or were given it; (classes,) each."""
    confusion = confusion.copy()
    confusion[list(ignore)] = 0
    right, support = np.diag(confusion), confusion.sum(1)
    return right, support, support + confusion.sum(0) - right


def _unit_length(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(np.finfo(np.float64).tiny)


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _check_any(count: int, what: str) -> None:
    if not count:
        raise InputError(f"there is nothing to measure: no {what}")


def _enumerate_names(class_names: Sequence[str], confusion: np.ndarray) -> enumerate:
    if len(class_names) != len(confusion):
        raise InputError(f"`class_names` must name {len(confusion)} classes, got {len(class_names)}")
    return enumerate(class_names)
