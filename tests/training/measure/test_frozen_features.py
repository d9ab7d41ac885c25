"""Features against a plain forward pass, in any batches; what is fitted to them, and to which rows."""

import numpy as np
import pytest
import torch
from act_training.data.batches import Sampling, validation_batches
from act_training.data.point_sets import PointSet
from act_training.data.schema import build_dataset
from act_training.measure.frozen_features import (
    CLASSIFIERS,
    embed,
    fit_and_predict,
    probe_accuracy,
)
from act_training.run.run_data import split_rows

from modeling_act import ACTStudent
from modeling_act.errors import InputError
from small_models import small_student_config

SAMPLING = Sampling(64)


@pytest.fixture(scope="module")
def point_set():
    clouds = [np.random.default_rng(row).normal(size=(90 + row % 3, 3)) for row in range(11)]
    return PointSet(build_dataset({"points": clouds, "label": np.arange(11) % 3}), "eleven")


def test_features_do_not_depend_on_the_batch_size(point_set):
    student = ACTStudent(small_student_config()).train()
    one, other = (embed(student, point_set, SAMPLING, size) for size in (3, 11))
    assert one.shape == (11, 48) and student.training
    np.testing.assert_allclose(one, other, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("use_cls_token", [True, False])
def test_features_are_those_of_a_plain_forward_pass(point_set, use_cls_token):
    student = ACTStudent(small_student_config(use_cls_token=use_cls_token)).eval()
    points = next(validation_batches(point_set, 11, SAMPLING, torch.device("cpu")))["points"]
    output = student(points, output_hidden_states=True)
    np.testing.assert_allclose(embed(student, point_set, SAMPLING, 11), output.pooler_output, atol=1e-6)

    for layer, states in enumerate(output.hidden_states[1:], start=1):  # the first is the input
        groups = states[:, int(use_cls_token) :].numpy()
        found = embed(student, point_set, SAMPLING, 11, layer, "max_mean")
        np.testing.assert_allclose(found, np.concatenate([groups.max(1), groups.mean(1)], 1), atol=1e-6)
    if use_cls_token:
        found = embed(student, point_set, SAMPLING, 11, pooling="cls")
        np.testing.assert_allclose(found, output.last_hidden_state[:, 0], atol=1e-6)


def test_features_that_are_not_there_are_refused(point_set):
    student = ACTStudent(small_student_config(use_cls_token=False))
    for options, message in (
        ({"layer": 4}, "`layer` must lie between 1 and 3, got 4"),
        ({"layer": 0}, "`layer` must lie between 1 and 3, got 0"),
        ({"pooling": "cls_max"}, "`pooling` cls_max needs a class token, and this student has none"),
        ({"pooling": "sum"}, "must join any of cls, max, mean with _, such as cls_max, got 'sum'"),
        ({"pooling": "max_"}, "must join any of cls, max, mean"),
    ):
        with pytest.raises(InputError, match=message):
            embed(student, point_set, SAMPLING, 11, **options)


# What is fitted ------------------------------------------------------------------------------------------------------


def make_features(separable):
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    return random.normal(size=(300, 8)) + 12 * separable * np.eye(8)[labels], labels


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers_find_what_is_there_and_nothing_else(kind):
    for separable, low, high in ((True, 1, 1), (False, 0.15, 0.52)):
        features, labels = make_features(separable)
        train, held_out = split_rows(labels, 0.3, 0)
        predicted, _ = fit_and_predict(kind, features[train], labels[train], features[held_out], 0)
        assert low <= (predicted == labels[held_out]).mean() <= high


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_only_fitted_rows_scale_features(kind):
    features, labels = make_features(True)
    train, held_out = split_rows(labels, 0.3, 0)
    alone = [fit_and_predict(kind, features[train], labels[train], features[[row]], 0)[0][0] for row in held_out[:5]]
    features[held_out[5:]] *= 1e6
    assert fit_and_predict(kind, features[train], labels[train], features[held_out], 0)[0][:5].tolist() == alone


def test_neighbors_are_found_by_cosine():
    # Standardised, the fitted rows are (+-1, +-1). The new row is nearest to class 1 by distance and to 0 by cosine.
    features = np.array([[1.0, 1], [1, 1], [-1, -1], [-1, -1], [1, -1], [-1, 1]])
    labels = np.array([0, 0, 1, 1, 2, 2])
    predicted, count = fit_and_predict("knn", features, labels, np.array([[0.01, 0.01]]), 0)
    assert (predicted.tolist(), count) == ([0], 1)


def test_the_choice_is_made_without_the_rows_that_judge():
    features, labels = make_features(False)
    train, held_out = split_rows(labels, 0.3, 0)
    first = probe_accuracy(features, labels, train, held_out, 0)
    features[held_out], labels[held_out] = 50, 0
    second = probe_accuracy(features, labels, train, held_out, 0)
    assert first["penalty"] == second["penalty"] and first["accuracy"] != second["accuracy"]
    assert second["accuracy"] in (0, 1)  # equal features, one prediction


def test_few_rows_bound_the_number_of_neighbors():
    random = np.random.default_rng(0)
    _, count = fit_and_predict("knn", random.normal(size=(8, 4)), np.arange(8) % 2, random.normal(size=(3, 4)), 0)
    assert count in (1, 3, 5)  # of six rows that are left when two are held out to choose


def test_what_cannot_be_fitted_is_refused():
    features, labels = make_features(True)
    with pytest.raises(InputError, match="rows of two classes"):
        fit_and_predict("svm", features, np.zeros(300, int), features, 0)
    with pytest.raises(InputError, match="two rows of one of them"):
        fit_and_predict("svm", features[:3], np.arange(3), features, 0)
    features[3, 2] = np.nan
    with pytest.raises(InputError, match="not finite"):
        probe_accuracy(features, labels, *split_rows(labels, 0.3, 0), 0)


@pytest.mark.parametrize("counts", [(10, 10, 10), (1, 2, 100), (3, 50, 7)])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_rows_are_held_out_of_each_class(counts, share):
    labels = np.random.default_rng(0).permutation(np.repeat(range(3), counts))
    kept, held_out = split_rows(labels, share, 0)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        assert (labels[held_out] == label).sum() == (max(1, round(share * count)) if count > 1 else 0)
    assert not np.array_equal(held_out, split_rows(labels, share, 1)[1])
