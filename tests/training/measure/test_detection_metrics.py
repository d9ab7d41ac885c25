"""Average precision against cases worked by hand."""

import numpy as np
import pytest
import torch
from act_training.measure.detection_metrics import (
    average_precisions,
    detection_metrics,
    match_boxes,
    precision_recall_area,
)

from modeling_act.modeling_act_detection import box_iou


def box(x, size=2.0):
    return [x, 0, 0, size, size, size, 0]


def scene(detected, true):
    """`detected`: (score, label, box); `true`: (label, box)."""
    return {
        "scores": np.array([score for score, _, _ in detected]),
        "labels": np.array([label for _, label, _ in detected], dtype=np.int64),
        "boxes": np.array([place for _, _, place in detected], dtype=np.float32).reshape(-1, 7),
        "true_labels": np.array([label for label, _ in true], dtype=np.int64),
        "true_boxes": np.array([place for _, place in true], dtype=np.float32).reshape(-1, 7),
    }


# box(0) and box(1) overlap by 1 / 3, box(0) and box(0.5) by 3 / 5.
TWO = [(0, box(0)), (0, box(10))]


@pytest.mark.parametrize(
    ("right", "count", "expected"),
    [
        ([1, 1], 2, 1),
        ([1, 0], 2, 1 / 2),  # the second was never found
        ([0, 1], 1, 1 / 2),
        ([1, 0, 1], 2, (1 + 2 / 3) / 2),
        ([0, 1, 1], 2, 2 / 3),  # precision 1 / 2 at the first hit is raised to the later 2 / 3
        ([0, 0], 3, 0),
        ([], 3, 0),
    ],
)
def test_area(right, count, expected):
    assert precision_recall_area(np.array(right, dtype=bool), count) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("detected", "true", "expected"),
    [
        ([(0.9, 0, box(0)), (0.8, 0, box(10))], TWO, [True, True]),
        ([(0.8, 0, box(0)), (0.9, 0, box(0.1))], TWO, [False, True]),  # the better score takes it, the other repeats
        ([(0.9, 1, box(0))], TWO, [False]),  # another class
        ([(0.9, 0, box(1))], TWO, [True]),
        ([(0.9, 0, box(1.3))], TWO, [False]),  # 0.7 / 3.3 is too little
        # Both overlap the first most, so the second repeats it, though it overlaps another as well.
        ([(0.9, 0, box(0)), (0.8, 0, box(0.4))], [(0, box(0)), (0, box(1))], [True, False]),
        ([(0.9, 0, box(0))], [], [False]),
        ([], TWO, []),
    ],
)
def test_matched_boxes(detected, true, expected):
    assert match_boxes(scene(detected, true), 0.25).tolist() == expected


def test_thresholds_scenes_and_classes_worked_by_hand():
    """Worked by hand. Class 0, three boxes. At 0.25: right 0.9, wrong 0.8, right 0.7, right 0.6, so the precisions at
    the hits, raised, are 1, 3 / 4, 3 / 4. At 0.5 the box of 0.7, which overlaps by 1 / 3, is wrong as well: 1, 1 / 2.
    Class 1 is there once, and the better of two scores misses. Class 2 is found but nowhere there."""
    scenes = [
        scene([(0.9, 0, box(0)), (0.8, 0, box(50)), (0.7, 0, box(11)), (0.3, 1, box(20))], [*TWO, (1, box(20))]),
        scene([(0.6, 0, box(0)), (0.5, 2, box(0)), (0.5, 1, box(0))], [(0, box(0.5))]),
    ]
    quarter, half = average_precisions(scenes, 0.25), average_precisions(scenes, 0.5)
    assert quarter == pytest.approx({0: (1 + 3 / 4 + 3 / 4) / 3, 1: 1 / 2})
    assert half == pytest.approx({0: (1 + 1 / 2) / 3, 1: 1 / 2})
    metrics, table = detection_metrics(scenes, ["chair", "bed", "lamp"])
    assert metrics == pytest.approx({"map_25": (5 / 6 + 1 / 2) / 2, "map_50": (1 / 2 + 1 / 2) / 2})
    assert table == [
        {"class": "chair", "boxes": 3, "ap_25": pytest.approx(5 / 6), "ap_50": pytest.approx(1 / 2)},
        {"class": "bed", "boxes": 1, "ap_25": pytest.approx(1 / 2), "ap_50": pytest.approx(1 / 2)},
    ]


def looped_precision(scenes, label, threshold):
    """One detection after the other, and recall one true box after the other."""
    found = [
        (score, number, place)
        for number, scene in enumerate(scenes)
        for place, score in enumerate(scene["scores"])
        if scene["labels"][place] == label
    ]
    taken, right, points = set(), 0, []
    total = sum((scene["true_labels"] == label).sum() for scene in scenes)
    for rank, (_, number, place) in enumerate(sorted(found, reverse=True), start=1):
        true = [i for i, kind in enumerate(scenes[number]["true_labels"]) if kind == label]
        pairs = [(scenes[number]["boxes"][place], scenes[number]["true_boxes"][i]) for i in true]
        overlaps = [box_iou(*(torch.tensor(each)[None] for each in pair)).item() for pair in pairs]
        best = int(np.argmax(overlaps)) if overlaps else 0
        if overlaps and overlaps[best] > threshold and (number, best) not in taken:
            taken.add((number, best))
            right += 1
        points.append((right / total, right / rank))
    levels = [(count + 1) / total for count in range(total)]
    return sum(max((p for recall, p in points if recall >= level - 1e-9), default=0) for level in levels) / total


@pytest.mark.parametrize("threshold", [0.1, 0.25, 0.5])
def test_random_scenes_against_a_loop(threshold):
    random, scenes = np.random.default_rng(0), []
    for _ in range(6):
        there = [(random.integers(3), box(x)) for x in random.uniform(0, 6, 5)]
        found = [(random.random(), random.integers(3), box(x)) for x in random.uniform(0, 6, 30)]
        scenes.append(scene(found, there))
    precisions = average_precisions(scenes, threshold)
    assert precisions == pytest.approx({label: looped_precision(scenes, label, threshold) for label in range(3)})
    assert min(precisions.values()) > 0 and max(precisions.values()) < 1


def test_rotated_boxes_count_by_their_true_overlap():
    rotated = [0, 0, 0, 4, 1, 1, np.pi / 2]
    assert match_boxes(scene([(0.9, 0, rotated)], [(0, [0, 0, 0, 1, 4, 1, 0])]), 0.9).tolist() == [True]
    assert match_boxes(scene([(0.9, 0, rotated)], [(0, [0, 0, 0, 4, 1, 1, 0])]), 0.25).tolist() == [False]


def test_scenes_without_boxes_are_refused():
    with pytest.raises(ValueError, match="at least one true box"):
        average_precisions([scene([(0.9, 0, box(0))], [])], 0.25)
