"""Metrics against constants worked by hand and scikit-learn."""

import numpy as np
import pytest
from act_training.measure import metrics
from act_training.measure.metrics import (
    class_table,
    classification_metrics,
    confusion_matrix,
    iou_table,
    mean_and_std,
    part_iou,
    part_metrics,
    retrieval_map,
    segmentation_metrics,
)
from sklearn import metrics as reference

from modeling_act.errors import InputError


@pytest.fixture
def answers():
    """Labels and predictions of 500 rows of 6 classes, of which class 4 has no row and class 5 is never predicted."""
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 2, 3, 5], 500)
    predicted = np.where(random.random(500) < 0.6, labels, random.integers(0, 5, 500))
    return labels, np.where(predicted == 5, 0, predicted)


def test_classification_worked_by_hand():
    # Class 0: 3 rows, 2 right; class 1: 2 rows, 1 right; class 2: no row, 1 prediction; class 3: 1 row, none right.
    labels, predicted = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 2, 0])
    assert confusion_matrix(labels, predicted, 4).tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert classification_metrics(labels, predicted) == pytest.approx(
        {"accuracy": 3 / 6, "mean_class_accuracy": (2 / 3 + 1 / 2 + 0) / 3}
    )
    expected = [
        ("a", 3, 2 / 3, 2 / 3, 2 / 3),
        ("b", 2, 1 / 2, 1 / 2, 1 / 2),
        ("c", 0, None, 0, 0),  # no row to recall
        ("d", 1, 0, None, 0),  # no prediction to be precise in
    ]
    table = class_table(labels, predicted, list("abcd"))
    assert [row.keys() for row in table] == [{"class", "support", "recall", "precision", "f1"}] * 4
    for row, values in zip(table, expected, strict=True):
        assert tuple(row.values()) == pytest.approx(values)
    assert class_table(labels, predicted, list("abcde"))[4]["f1"] is None


def test_ignored_labels_count_nowhere(answers):
    labels, predicted = answers
    ignored = np.where(np.arange(500) < 100, -100, labels)
    assert (confusion_matrix(ignored, predicted, 6) == confusion_matrix(labels[100:], predicted[100:], 6)).all()


def test_segmentation_equals_scikit_learn(answers):
    result = segmentation_metrics(confusion_matrix(*answers, 6))
    assert result["miou"] == pytest.approx(reference.jaccard_score(*answers, labels=range(6), average="macro"))
    assert result["accuracy"] == pytest.approx(reference.accuracy_score(*answers))


def test_ignored_classes_equal_scikit_learn_without_their_points(answers):
    labels, predicted = answers
    used = labels != 2
    result = segmentation_metrics(confusion_matrix(*answers, 6), ignore=[2])
    classes = [0, 1, 3, 4, 5]
    ious = reference.jaccard_score(labels[used], predicted[used], labels=classes, average=None)
    assert result["miou"] == pytest.approx(ious.mean())
    assert result["accuracy"] == pytest.approx((labels[used] == predicted[used]).mean())
    table = iou_table(confusion_matrix(*answers, 6), list("abcdef"), ignore=[2])
    assert [row["class"] for row in table] == list("abdef")
    assert [row["iou"] for row in table] == pytest.approx(list(ious))


def test_mean_iou_worked_by_hand():
    # Class 0: 3 points, 2 right, 1 more was given 0: 2 / 4. Class 1: 2 points, 1 right, 1 more given: 1 / 3.
    # Class 2: 1 point, right: 1 / 1. Class 3: neither a point nor a prediction, left out.
    labels, predicted = np.array([[0, 0, 0], [1, 1, 2]]), np.array([[0, 0, 1], [1, 0, 2]])
    confusion = confusion_matrix(labels, predicted, 4)
    result = segmentation_metrics(confusion)
    assert result["miou"] == pytest.approx((2 / 4 + 1 / 3 + 1) / 3)
    assert result["mean_class_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert iou_table(confusion, list("abcd"))[3] == {"class": "d", "points": 0, "iou": None, "accuracy": None}


def test_a_class_only_predicted_counts_zero():
    result = segmentation_metrics(confusion_matrix(np.array([0, 0]), np.array([0, 1]), 2))
    assert result == {"miou": 0.25, "mean_class_accuracy": 0.5, "accuracy": 0.5}


def test_part_iou_worked_by_hand():
    parts = [[0, 1], [2, 3, 4]]
    labels = [np.array([0, 0, 1, 1]), np.array([2, 2, 3, 3, -100]), np.array([0, 0]), np.array([2, 3, 4, 4])]
    predicted = [np.array([0, 1, 1, 1]), np.array([2, 2, 3, 2, 4]), np.array([0, 0]), np.array([0, 3, 4, 4])]
    category = [0, 1, 0, 1]
    ious = np.array([part_iou(*cloud, parts[kind]) for *cloud, kind in zip(labels, predicted, category, strict=True)])
    assert ious == pytest.approx(
        [
            (1 / 2 + 2 / 3) / 2,
            (2 / 3 + 1 / 2 + 1) / 3,  # part 4 stands in no label that counts and in no prediction that does
            1.0,  # so does part 1
            (0 + 1 + 1) / 3,  # 0 is no part of category 1: a prediction of it is wrong for part 2 and counts for none
        ]
    )
    result = part_metrics(ious, category)
    assert result["instance_miou"] == pytest.approx((7 / 12 + 13 / 18 + 1 + 2 / 3) / 4)
    assert result["class_miou"] == pytest.approx(((7 / 12 + 1) / 2 + (13 / 18 + 2 / 3) / 2) / 2)


def test_class_miou_gives_each_category_one_voice():
    ious = np.array([1.0, 1.0, 1.0, 0.5])
    assert part_metrics(ious, [3, 3, 3, 9]) == {"instance_miou": 0.875, "class_miou": 0.75}


@pytest.mark.parametrize("batch_size", [1024, 7])  # one batch of queries, and several
def test_retrieval_is_the_mean_of_average_precisions(batch_size, monkeypatch):
    monkeypatch.setattr(metrics, "QUERY_BATCH_SIZE", batch_size)
    random = np.random.default_rng(1)
    features, labels = random.normal(size=(40, 8)), random.integers(0, 5, 40)
    features += np.eye(8)[labels]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    scores = [
        reference.average_precision_score(np.delete(labels == labels[row], row), np.delete(unit @ unit[row], row))
        for row in range(40)
    ]
    assert retrieval_map(features, labels) == pytest.approx(np.mean(scores))


def test_retrieval_worked_by_hand():
    # Lengths do not matter. b is the only row of its class and is left out. In aba, each a ranks b before the other a.
    # In baa, the first a (19 degrees) ranks b (10) before the other a (30), which ranks the first a before b.
    angles = np.radians([10.0, 19.0, 30.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[5.0], [1.0], [0.1]]
    assert retrieval_map(features, np.array(list("aba"))) == pytest.approx(1 / 2)
    assert retrieval_map(features, np.array(list("baa"))) == pytest.approx((1 / 2 + 1) / 2)
    with pytest.raises(InputError, match="every row is the only one of its class"):
        retrieval_map(features, np.arange(3))


def test_mean_and_std_are_those_of_a_sample():
    result = mean_and_std([{"accuracy": 0.5}, {"accuracy": 0.7}, {"accuracy": 0.9}])
    assert result["accuracy"]["mean"] == pytest.approx(0.7)
    assert result["accuracy"]["std"] == pytest.approx(0.2)  # sqrt((0.04 + 0 + 0.04) / 2)
    assert result["accuracy"]["values"] == [0.5, 0.7, 0.9]
    assert mean_and_std([{"accuracy": 0.5}])["accuracy"] == {"mean": 0.5, "std": None, "values": [0.5]}


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match="nothing to measure: no point has a label"):
        segmentation_metrics(np.diag([0, 4]), ignore=[1])
    with pytest.raises(InputError, match="labels outside the parts .0, 1. of its category"):
        part_iou(np.array([7]), np.array([0]), [0, 1])
