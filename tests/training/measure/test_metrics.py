"""Every figure against scikit-learn or a case worked by hand."""

import numpy as np
import pytest
from act_training.measure.metrics import (
    class_table,
    classification_metrics,
    confusion_matrix,
    iou_table,
    mean_and_std,
    part_ious,
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


def test_classification_equals_scikit_learn(answers):
    confusion = confusion_matrix(*answers, 6)
    assert (confusion == reference.confusion_matrix(*answers, labels=range(6))).all()
    found = classification_metrics(confusion)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(*answers))
    recalls = reference.recall_score(*answers, labels=[0, 1, 2, 3, 5], average="macro")
    assert found["mean_class_accuracy"] == pytest.approx(recalls)


def test_class_table_equals_scikit_learn(answers):
    table = class_table(confusion_matrix(*answers, 6), list("abcdef"))
    names = ("precision", "recall", "f1", "support")
    expected = reference.precision_recall_fscore_support(*answers, labels=range(6), zero_division=0)
    for name, values in zip(names, expected, strict=True):
        assert [row[name] or 0 for row in table] == pytest.approx(list(values))
    assert [row["class"] for row in table] == list("abcdef")
    assert table[4]["recall"] is None  # no row to find
    assert table[5]["precision"] is None  # and none found
    assert table[5]["f1"] == 0


def test_ignored_labels_count_nowhere(answers):
    labels, predicted = answers
    hidden = labels.copy()
    hidden[:100] = -100
    assert (confusion_matrix(hidden, predicted, 6) == confusion_matrix(labels[100:], predicted[100:], 6)).all()


def test_segmentation_equals_scikit_learn(answers):
    found = segmentation_metrics(confusion_matrix(*answers, 6))
    assert found["miou"] == pytest.approx(reference.jaccard_score(*answers, labels=range(6), average="macro"))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(*answers))


def test_ignored_classes_equal_scikit_learn_without_their_points(answers):
    labels, predicted = answers
    kept = labels != 2
    found = segmentation_metrics(confusion_matrix(*answers, 6), ignore=[2])
    classes = [0, 1, 3, 4, 5]
    ious = reference.jaccard_score(labels[kept], predicted[kept], labels=classes, average=None)
    assert found["miou"] == pytest.approx(ious.mean())
    assert found["accuracy"] == pytest.approx((labels[kept] == predicted[kept]).mean())
    table = iou_table(confusion_matrix(*answers, 6), list("abcdef"), ignore=[2])
    assert [row["class"] for row in table] == list("abdef")
    assert [row["iou"] for row in table] == pytest.approx(list(ious))


def test_mean_iou_worked_by_hand():
    # Class 0: 3 points, 2 right, 1 more was given 0: 2 / 4. Class 1: 2 points, 1 right, 1 more given: 1 / 3.
    # Class 2: 1 point, right: 1 / 1. Class 3: neither a point nor a prediction, left out.
    labels, predicted = np.array([[0, 0, 0], [1, 1, 2]]), np.array([[0, 0, 1], [1, 0, 2]])
    confusion = confusion_matrix(labels, predicted, 4)
    found = segmentation_metrics(confusion)
    assert found["miou"] == pytest.approx((2 / 4 + 1 / 3 + 1) / 3)
    assert found["mean_class_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert iou_table(confusion, list("abcd"))[3] == {"class": "d", "points": 0, "iou": None, "accuracy": None}


def test_a_class_only_predicted_counts_zero():
    found = segmentation_metrics(confusion_matrix(np.array([0, 0]), np.array([0, 1]), 2))
    assert found == {"miou": 0.25, "mean_class_accuracy": 0.5, "accuracy": 0.5}


def test_part_ious_worked_by_hand():
    parts = {0: [0, 1], 1: [2, 3, 4]}
    labels = [np.array([0, 0, 1, 1]), np.array([2, 2, 3, 3, -100]), np.array([0, 0]), np.array([2, 3, 4, 4])]
    predicted = [np.array([0, 1, 1, 1]), np.array([2, 2, 3, 2, 4]), np.array([0, 0]), np.array([0, 3, 4, 4])]
    category = np.array([0, 1, 0, 1])
    ious = part_ious(labels, predicted, category, parts)
    assert ious == pytest.approx(
        [
            (1 / 2 + 2 / 3) / 2,
            (2 / 3 + 1 / 2 + 1) / 3,  # part 4 stands in no label that counts and in no prediction that does
            1.0,  # so does part 1
            (0 + 1 + 1) / 3,  # 0 is no part of category 1: a prediction of it is wrong for part 2 and counts for none
        ]
    )
    found = part_metrics(ious, category)
    assert found["instance_miou"] == pytest.approx((7 / 12 + 13 / 18 + 1 + 2 / 3) / 4)
    assert found["class_miou"] == pytest.approx(((7 / 12 + 1) / 2 + (13 / 18 + 2 / 3) / 2) / 2)


def test_class_miou_gives_each_category_one_voice():
    ious = np.array([1.0, 1.0, 1.0, 0.5])
    assert part_metrics(ious, [3, 3, 3, 9]) == {"instance_miou": 0.875, "class_miou": 0.75}


@pytest.mark.parametrize("num_rows", [40, 300])  # within a block of queries, and over several
def test_retrieval_equals_scikit_learn(num_rows):
    random = np.random.default_rng(1)
    features, labels = random.normal(size=(num_rows, 8)), random.integers(0, 5, num_rows)
    features += np.eye(8)[labels]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    scores = [
        reference.average_precision_score(np.delete(labels == labels[row], row), np.delete(unit @ unit[row], row))
        for row in range(num_rows)
    ]
    assert retrieval_map(features, labels) == pytest.approx(np.mean(scores))

    queries, wanted = random.normal(size=(7, 8)), random.integers(0, 5, 7)
    scores = [
        reference.average_precision_score(labels == label, unit @ query)
        for query, label in zip(queries, wanted, strict=True)
    ]
    assert retrieval_map(features, labels, queries, wanted) == pytest.approx(np.mean(scores))


def test_retrieval_worked_by_hand():
    # Seen from the first: b (first), a, a: precisions 1/2 and 2/3. The scale of a row is no matter.
    angles = np.radians([10.0, 19.0, 30.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[5.0], [1.0], [0.1]]
    assert retrieval_map(features, np.array(list("baa")), np.array([[1.0, 0.0]]), np.array(["a"])) == pytest.approx(
        (1 / 2 + 2 / 3) / 2
    )
    # Alone, each looks for the others: b finds none and is left out, the first a is nearer to b than to the other.
    assert retrieval_map(features, np.array(list("baa"))) == pytest.approx((1 / 2 + 1) / 2)


def test_mean_and_std_are_those_of_a_sample():
    found = mean_and_std([{"accuracy": 0.5}, {"accuracy": 0.7}, {"accuracy": 0.9}])
    assert found["accuracy"]["mean"] == pytest.approx(0.7)
    assert found["accuracy"]["std"] == pytest.approx(0.2)  # sqrt((0.04 + 0 + 0.04) / 2)
    assert found["accuracy"]["values"] == [0.5, 0.7, 0.9]
    assert mean_and_std([{"accuracy": 0.5}])["accuracy"] == {"mean": 0.5, "std": None, "values": [0.5]}


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match="`labels` must lie between 0 and 1, got 2"):
        confusion_matrix(np.array([0, 2]), np.array([0, 1]), 2)
    with pytest.raises(InputError, match="`predicted` must lie between 0 and 1, got -1"):
        confusion_matrix(np.array([0, 1]), np.array([0, -1]), 2)
    with pytest.raises(InputError, match=r"must have the shape of `labels`, got \(3,\) and \(2,\)"):
        confusion_matrix(np.zeros(2), np.zeros(3), 2)
    with pytest.raises(InputError, match="nothing to measure: no label"):
        classification_metrics(np.zeros((3, 3), dtype=np.int64))
    with pytest.raises(InputError, match="nothing to measure: no label"):
        segmentation_metrics(np.diag([0, 4]), ignore=[1])
    with pytest.raises(InputError, match="cloud 1 of category 0 has labels outside its parts"):
        part_ious([np.array([0]), np.array([7])], [np.array([0]), np.array([0])], [0, 0], {0: [0, 1]})
    with pytest.raises(InputError, match="nothing to measure: no query"):
        retrieval_map(np.eye(3), np.arange(3))
    with pytest.raises(InputError, match="must name 2 classes, got 3"):
        class_table(np.eye(2), list("abc"))
    with pytest.raises(InputError, match="figures of the same names"):
        mean_and_std([{"accuracy": 1}, {"miou": 1}])
