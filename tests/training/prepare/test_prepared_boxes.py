"""Sets with boxes: the schema's columns, and ScanNet from the files people have."""

import numpy as np
import pytest
from act_training.data.batches import read_batch
from act_training.data.point_sets import PointSet, open_point_set
from act_training.data.schema import build_dataset
from act_training.prepare.jobs import prepare_splits, summarize
from act_training.prepare.objects import Choices
from act_training.prepare.scenes import BOX_CLASSES
from prepare_data import SOURCES

from modeling_act.errors import InputError

RANDOM = np.random.default_rng(0)
BOXES = [RANDOM.uniform(0.1, 2, (count, 7)).astype(np.float32) for count in (2, 0, 3)]


def test_boxes_are_read_as_they_were_built(tmp_path):
    points = [RANDOM.normal(size=(5, 3)) for _ in BOXES]
    labels = [[1, 0], [], [0, 0, 1]]
    built = build_dataset({"points": points, "boxes": BOXES, "box_labels": labels}, box_names=["bed", "lamp"])
    assert [built.with_format("numpy")[row]["boxes"].shape for row in range(3)] == [(2, 7), (0, 7), (3, 7)]
    built.save_to_disk(tmp_path / "set")
    built.to_parquet(tmp_path / "set.parquet")
    for name in ("set", "set.parquet"):
        opened = open_point_set(str(tmp_path / name))
        assert opened.dataset.features["box_labels"].feature.names == ["bed", "lamp"]
        batch = read_batch(opened, [(0, 2), (0, 1), (0, 0)])
        assert batch["boxes"].shape == (3, 3, 7) and batch["box_labels"].tolist() == [
            [0, 0, 1],
            [-1, -1, -1],
            [1, 0, -1],
        ]
        np.testing.assert_array_equal(batch["boxes"][0], BOXES[2])
        np.testing.assert_array_equal(batch["boxes"][2, :2], BOXES[0])


def test_scenes_without_any_box(tmp_path):
    built = build_dataset({"points": np.zeros((2, 4, 3)), "boxes": [BOXES[1]] * 2, "box_labels": [[], []]})
    batch = read_batch(PointSet(built, "empty"), [(0, 0), (0, 1)])
    assert batch["boxes"].shape == (2, 0, 7) and batch["box_labels"].shape == (2, 0)


# ScanNet -------------------------------------------------------------------------------------------------------------


def write_scans(raw):
    scans, lists = raw / "scannet_train_detection_data", raw / "meta_data"
    scans.mkdir(parents=True)
    lists.mkdir()
    found = {}
    for place, name in enumerate(("scene0000_00", "scene0001_00", "scene0002_01")):
        points = np.hstack([RANDOM.normal(size=(40 + place, 3)), RANDOM.integers(0, 256, (40 + place, 3))])
        boxes = RANDOM.uniform(0.1, 2, (place, 6))
        # A chair, and in the last scan a thing of a class that is not detected.
        classes = np.array([5, 40])[:place, None]
        found[name] = points, boxes
        np.save(scans / f"{name}_vert.npy", points.astype(np.float32))
        np.save(scans / f"{name}_bbox.npy", np.hstack([boxes, classes]))
        for kind in ("ins", "sem"):
            np.save(scans / f"{name}_{kind}_label.npy", np.zeros(40 + place, dtype=np.uint32))
    (lists / "scannetv2_train.txt").write_text("scene0001_00\nscene0000_00\n")
    (lists / "scannetv2_val.txt").write_text("scene0002_01\n")
    (lists / "scannetv2_test.txt").write_text("scene0707_00\n")
    return found


def prepare(raw, work, **choices):
    choices = Choices("scannet", **choices)
    return prepare_splits(SOURCES["scannet"](raw, choices), choices, work)


def test_scannet_scans_with_their_boxes(tmp_path):
    scans = write_scans(tmp_path / "raw")
    prepared, rejected = prepare(tmp_path / "raw", tmp_path / "work")
    assert prepared["train"]["name"][:] == ["scene0001_00", "scene0000_00"]
    row = prepared["train"].with_format("numpy")[0]
    points, boxes = scans["scene0001_00"]
    np.testing.assert_allclose(row["points"], points[:, :3], atol=1e-6)
    np.testing.assert_allclose(row["colors"], points[:, 3:] / 255, atol=1e-6)
    np.testing.assert_allclose(row["boxes"], [[*boxes[0], 0]], atol=1e-6)
    assert row["box_labels"].tolist() == [2]
    names = prepared["train"].features["box_labels"].feature.names
    assert len(names) == 18 and names[2] == "chair" and names[-1] == "garbage bin"
    assert list(BOX_CLASSES) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39]
    assert prepared["train"].with_format("numpy")[1]["boxes"].shape == (0, 7)
    assert prepared["validation"][0]["box_labels"] == [2]  # the other was of no detected class
    assert summarize(prepared)["train"]["classes"] == {"chair": 1} and not rejected


def test_scannet_scans_are_thinned_and_their_boxes_are_not(tmp_path):
    write_scans(tmp_path / "raw")
    prepared, _ = prepare(tmp_path / "raw", tmp_path / "work", num_points=20)
    row = prepared["validation"].with_format("numpy")[0]
    assert row["points"].shape == row["colors"].shape == (20, 3) and row["boxes"].shape == (1, 7)


def test_bad_scans_are_named(tmp_path):
    write_scans(tmp_path / "raw")
    folder = tmp_path / "raw" / "scannet_train_detection_data"
    np.save(folder / "scene0000_00_bbox.npy", np.zeros((2, 6)))
    (folder / "scene0001_00_bbox.npy").unlink()
    _, rejected = prepare(tmp_path / "raw", tmp_path / "work")
    reasons = [bad["why"] for bad in rejected]
    assert "scene0001_00_bbox.npy: there is no such file" in reasons[0]
    assert "must hold a table of center, size and class, got an array of (2, 6)" in reasons[1]
    with pytest.raises(InputError, match="expected scannet_train_detection_data and .*is --raw right"):
        prepare(folder, tmp_path / "none")
