"""Data sets that mean harm: lists that lead out of their folder, and files and classes with hostile names."""

import json
import os

import numpy as np
import pytest
from act_training.prepare.objects import NUM_PARTS, Choices, plan_folder, plan_shapenet55, plan_shapenetpart

from modeling_act.errors import InputError


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


@pytest.mark.parametrize("name", ["../../secret.npy", "1-/../../../secret.npy", "/etc/secret.npy"])
def test_lists_of_shapenet55_stay_in_their_folder(tmp_path, name):
    raw = tmp_path / "raw"
    save(tmp_path / "secret.npy", np.zeros((8, 3)))
    save(raw / "shapenet_pc" / "1-" / "a.npy", np.zeros((8, 3)))
    (raw / "train.txt").write_text(f"{name}\n")
    (raw / "test.txt").write_text("1-/a.npy\n")
    with pytest.raises(InputError, match="train.txt: names files outside of the set's folder"):
        plan_shapenet55(raw, Choices("shapenet55"))


@pytest.mark.parametrize("entry", ["shape_data/../secret", "../secret", "secret", "/etc/passwd", 5, None, {"a": "b"}])
def test_lists_of_shapenetpart_stay_in_their_folder(tmp_path, entry):
    folders = "".join(f"{name}\t{number:08}\n" for number, name in enumerate(NUM_PARTS))
    (tmp_path / "train_test_split").mkdir()
    (tmp_path / "synsetoffset2category.txt").write_text(folders)
    for split in ("train", "val", "test"):
        (tmp_path / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match="must name files as shape_data/CATEGORY/SHAPE"):
        plan_shapenetpart(tmp_path, Choices("shapenetpart"))


def test_a_folder_of_hostile_names_is_read_as_any_other(tmp_path):
    """Names are text in a table; none becomes a path, and what is no file is passed over."""
    names = ["a\nb/x\x1b[2J.xyz", "-rf/--out=y.xyz", "..\\up/z.xyz", "\u202egpj/w.xyz"]
    for name in names:
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, np.random.default_rng(0).normal(size=(20, 3)))
    os.mkfifo(tmp_path / "raw" / "-rf" / "fifo.xyz")
    (tmp_path / "raw" / "-rf" / "loop.xyz").symlink_to("loop.xyz")
    plan = plan_folder(tmp_path / "raw", Choices("folder"))
    rows = [row for items in plan.splits.values() for item in items for row in plan.read(item, Choices("folder"))]
    assert sorted(row["name"] for row in rows) == sorted(names)
    assert all(row["points"].shape == (20, 3) for row in rows)
