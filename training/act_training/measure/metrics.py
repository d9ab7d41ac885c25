"""Metrics of labels and predictions: classification, segmentation, parts, retrieval, and summaries of several runs.

Confusion matrices are those of scikit-learn, a row for each label and a column for each prediction, and can be added.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn import metrics as sklearn_metrics
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.utils import gen_batches

from act_training.data.schema import IGNORED
from modeling_act.errors import InputError

QUERY_BATCH_SIZE = 1024  # rows of the similarity matrix that are in memory together


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (num_classes, num_classes) of [label, prediction] in arrays of one shape; labels of -100 are ignored."""
    used = labels != IGNORED
    return sklearn_metrics.confusion_matrix(labels[used], predicted[used], labels=range(num_classes))


def classification_metrics(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, and the mean of the accuracies (recalls) of the classes that have a row."""
    recall = sklearn_metrics.recall_score(labels, predicted, labels=np.unique(labels), average="macro")
    return {"accuracy": float((labels == predicted).mean()), "mean_class_accuracy": float(recall)}


def class_table(labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> list[dict]:
    """Support, recall, precision and F1 of each class; None where the denominator is zero."""
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(len(class_names)), zero_division=np.nan
    )
    columns = {"recall": recall, "precision": precision, "f1": f1}
    return [
        {"class": name, "support": int(support[label])}
        | {column: None if np.isnan(values[label]) else float(values[label]) for column, values in columns.items()}
        for label, name in enumerate(class_names)
    ]


def segmentation_metrics(confusion: np.ndarray, ignore: Sequence[int] = ()) -> dict[str, float]:
    """Mean IoU of the classes that are labelled or predicted, mean accuracy of those that are labelled, and accuracy.
    Points labelled with a class in `ignore` do not count; other points that are predicted as such a class are wrong.
    """
    correct, support, union = _count_overlaps(confusion, ignore)
    if not support.sum():
        raise InputError("there is nothing to measure: no point has a label")
    labelled, used = support > 0, union > 0
    used[list(ignore)] = False
    return {
        "miou": float((correct[used] / union[used]).mean()),
        "mean_class_accuracy": float((correct[labelled] / support[labelled]).mean()),
        "accuracy": float(correct.sum() / support.sum()),
    }


def iou_table(confusion: np.ndarray, class_names: Sequence[str], ignore: Sequence[int] = ()) -> list[dict]:
    """Points, IoU and accuracy of each class that is not ignored; None where the denominator is zero."""
    correct, support, union = (counts.tolist() for counts in _count_overlaps(confusion, ignore))
    return [
        {
            "class": name,
            "points": support[label],
            "iou": correct[label] / union[label] if union[label] else None,
            "accuracy": correct[label] / support[label] if support[label] else None,
        }
        for label, name in enumerate(class_names)
        if label not in ignore
    ]


def _count_overlaps(confusion: np.ndarray, ignore: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts (classes,) of points that are correct, that have the label, and that have the label or its prediction."""
    confusion = confusion.copy()
    confusion[list(ignore)] = 0
    correct, support = np.diag(confusion), confusion.sum(1)
    return correct, support, support + confusion.sum(0) - correct


def part_iou(labels: np.ndarray, predicted: np.ndarray, parts: Sequence[int]) -> float:
    """Mean IoU over the parts of a cloud's category, from labels (points,), -100 to ignore, and predictions (points,).
    A part that is neither labelled nor predicted counts 1."""
    used = labels != IGNORED
    target, prediction = labels[used, None] == parts, predicted[used, None] == parts  # (points, parts)
    if not target.any(1).all():
        raise InputError(f"a cloud has labels outside the parts {list(parts)} of its category")
    union = (target | prediction).sum(0)
    return float(np.where(union > 0, (target & prediction).sum(0) / union.clip(1), 1.0).mean())


def part_metrics(ious: np.ndarray, categories: Sequence[int]) -> dict[str, float]:
    """Mean IoU over clouds, and the mean over categories of the means over their clouds."""
    category_means = [ious[np.asarray(categories) == category].mean() for category in np.unique(categories)]
    return {"instance_miou": float(ious.mean()), "class_miou": float(np.mean(category_means))}


def retrieval_map(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean average precision when each row ranks the others by the cosine similarity of their features (rows, width).
    Rows of the same class are relevant. A row whose class has no other row is left out of the mean."""
    features, scores = features.astype(np.float64), []
    for queries in gen_batches(len(labels), QUERY_BATCH_SIZE):
        similarity = cosine_similarity(features[queries], features)  # (queries, rows)
        relevant = labels[queries, None] == labels
        itself = np.arange(len(labels))[queries, None] == np.arange(len(labels))
        similarity[itself], relevant[itself] = -2, False  # ranks last, where it changes no precision
        answerable = relevant.any(1)
        if answerable.any():
            ranked = relevant[answerable], similarity[answerable]
            scores += [sklearn_metrics.label_ranking_average_precision_score(*ranked)] * answerable.sum()
    if not scores:
        raise InputError("there is nothing to measure: every row is the only one of its class")
    return float(np.mean(scores))


def mean_and_std(runs: Sequence[Mapping[str, float]]) -> dict[str, dict]:
    """Mean, sample standard deviation (None for one run) and values of each metric of several runs."""
    summary = {}
    for name in runs[0]:
        values = [float(run[name]) for run in runs]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        summary[name] = {"mean": float(np.mean(values)), "std": std, "values": values}
    return summary
