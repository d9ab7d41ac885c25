"""Shares of a folder that are held out: of each class, seeded, and copies on one side."""

import shutil
from collections import Counter

import numpy as np
import pytest
from act_training.prepare.objects import Choices, plan_folder
from act_training.prepare.splits import group_copies, split_files
from datasets import load_from_disk

from forked import run_command
from modeling_act.errors import InputError


def write_clouds(folder, sizes):
    """Write different clouds, `sizes` of each class."""
    random = np.random.default_rng(0)
    for name, count in sizes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            np.savetxt(folder / name / f"{number:02d}.xyz", random.normal(size=(64, 3)))
    return folder


def test_finetune_needs_no_flag_for_a_set_with_a_share_to_test_on(tmp_path):
    raw = write_clouds(tmp_path / "raw", {"ant": 20, "bee": 10})
    flags = ("--test_share", 0.2, "--validation_share", 0.1, "--num_workers", 1)
    run_command("training/prepare_data.py", "folder", "--raw", raw, "--out", tmp_path / "set", *flags)
    prepared = load_from_disk(str(tmp_path / "set"))
    names = {split: rows["name"][:] for split, rows in prepared.items()}
    counts = {split: dict(Counter(name[:3] for name in rows)) for split, rows in names.items()}
    expected = {"train": {"ant": 14, "bee": 7}, "test": {"ant": 4, "bee": 2}, "validation": {"ant": 2, "bee": 1}}
    assert counts == expected and len(set().union(*names.values())) == 30
    sizes = "{num_groups: 8, group_size: 8, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
    flags = ("--num_points", 64, "--model", sizes, "--max_train_steps", 1, "--cpu")
    run = ("--dataset_name", tmp_path / "set", "--output_dir", tmp_path / "run", *flags)
    printed = run_command("training/finetune.py", *run).stdout
    assert '"validation split": "10% of train"' in printed and "test accuracy" in printed


def test_the_seed_decides(tmp_path):
    raw = write_clouds(tmp_path / "raw", {"ant": 20, "bee": 10})

    def test_files(seed):
        plan = plan_folder(raw, Choices("folder", seed=seed, test_share=0.2))
        return [item.name for item in plan.splits["test"]]

    assert test_files(3) == test_files(3) != test_files(4)


def test_copies_are_on_one_side(tmp_path):
    """Fifteen files have a copy of another name, ten a second format."""
    raw = write_clouds(tmp_path / "raw", {"ant": 30})
    for number in range(15):
        shutil.copy(raw / "ant" / f"{number:02d}.xyz", raw / "ant" / f"copy_{number}.xyz")
    for number in range(10, 20):
        np.save(raw / "ant" / f"{number:02d}.npy", np.random.default_rng(number).normal(size=(64, 3)))
    files = sorted((raw / "ant").iterdir())
    shapes = group_copies(files)
    assert len(set(shapes)) == 30 and Counter(Counter(shapes.tolist()).values()) == {1: 10, 2: 15, 3: 5}
    for seed in range(5):
        splits = split_files(files, [0] * len(files), {"test": 0.3, "validation": 0.1}, seed)
        assert all(len(set(splits[shapes == shape])) == 1 for shape in range(30))
        assert abs((splits == "test").sum() - 0.3 * len(files)) <= 1


def test_a_class_keeps_a_shape_to_train_on(tmp_path):
    files = sorted(write_clouds(tmp_path / "raw", {"ant": 1, "bee": 2, "cow": 3}).rglob("*.xyz"))
    splits = split_files(files, [0, 1, 1, 2, 2, 2], {"test": 0.6, "validation": 0.3}, 0)
    assert splits[0] == "train"
    assert sorted(splits[1:3]) == ["test", "train"]
    assert sorted(splits[3:]) == ["test", "test", "train"]


def test_folders_of_splits_cannot_be_split_again(tmp_path):
    write_clouds(tmp_path, {"train/ant": 2, "test/ant": 2})
    with pytest.raises(InputError, match="its folders name the splits; leave out --validation_share and --test_share"):
        plan_folder(tmp_path, Choices("folder", test_share=0.2))
