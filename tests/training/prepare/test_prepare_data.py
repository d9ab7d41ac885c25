"""`prepare_data.py` as a run: bad files, files that kill their reader, and runs that were killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import prepare_data
import pytest
import trimesh
from act_training.prepare.jobs import prepare_splits, read_shard
from act_training.prepare.objects import Choices, Item, Plan, plan_folder
from datasets import load_from_disk

from forked import fork_command, run_command
from modeling_act.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = "training/prepare_data.py"


def write_box(path, sizes=(1, 1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(trimesh.creation.box(sizes).export(file_type="off"))


def read_or_die(item, choices):
    if Path(item.file).read_text() == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return [{"points": np.full((3, 3), float(item.name)), "name": item.name}]


def write_items(folder, *texts):
    items = [Item(str(folder / f"{number}.x"), str(number)) for number in range(len(texts))]
    for item, text in zip(items, texts, strict=True):
        Path(item.file).write_text(text)
    return items


def test_a_file_that_kills_its_reader_is_one_line_and_loses_no_finished_shard(tmp_path):
    plan = Plan({"train": write_items(tmp_path, "", "", "kill", "")}, read_or_die, "", items_per_shard=1)
    for _ in range(2):
        with pytest.raises(InputError, match="^a process died while it read some of 4 files: out of memory [^\n]*$"):
            prepare_splits(plan, Choices("folder"), tmp_path / "work", num_workers=2)
    (tmp_path / "2.x").write_text("")
    joined, rejected = prepare_splits(plan, Choices("folder"), tmp_path / "work", num_workers=2)
    assert joined["train"]["name"][:] == ["0", "1", "2", "3"] and not rejected


def test_a_shard_depends_on_its_own_files_and_choices(tmp_path):
    items = write_items(tmp_path, "", "", "", "")
    plan, choices = Plan({"train": items}, read_or_die, ""), Choices("folder")

    def folders(choices=choices):
        return [read_shard(part, plan, choices, tmp_path) for part in (items[:2], items[2:])]

    before = folders()
    assert folders() == before
    os.utime(tmp_path / "3.x", (1, 1))
    assert [old == new for old, new in zip(before, folders(), strict=True)] == [True, False]
    assert folders(replace(choices, seed=1))[0] != before[0]


def test_bad_files_are_refused_and_then_left_out(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "sets" / "mine"
    write_box(raw / "box" / "good.off")
    (raw / "box" / "bad.off").write_text("OFF\n9 9 9\n")
    flags = ["folder", "--raw", str(raw), "--out", str(out), "--num_points", "64", "--num_workers", "1"]
    with pytest.raises(InputError, match="^1 files or clouds are bad; mend them, or leave them out by --skip_bad$"):
        prepare_data.main(flags)
    reason = f"rejected: {raw}/box/bad.off: is truncated: announces 9 vertices and 9 faces, got 0 lines\n"
    assert reason in capsys.readouterr().err and not out.exists()

    with pytest.raises(InputError, match=f"^{raw}/box/bad.off: is truncated"):
        prepare_data.main([*flags, "--strict"])
    assert "rejected" not in capsys.readouterr().err
    (raw / "box" / "License.txt").write_text("Free.")

    made = run_command(SCRIPT, *flags, "--skip_bad")
    assert "ignored, no clouds: 1 License.txt\n" in made.stdout
    assert "box 1" in made.stdout and made.stdout.endswith(f"saved {out}, 1 left out\n")
    rows = load_from_disk(str(out))["train"].with_format("numpy")
    assert rows[0]["points"].shape == (64, 3) and rows[0]["name"] == "box/good.off"
    assert json.loads((out / "summary.json").read_text())["rejected"][0]["name"] == "box/bad.off"
    card = (out / "README.md").read_text()
    assert "| train | 1 | 64, 64, 64 | 1 |" in card and "1 clouds were left out" in card and card.isascii()
    assert [path.name for path in out.parent.iterdir()] == ["mine"]  # no shards are left
    again = run_command(SCRIPT, *flags, returncode=1)
    assert again.stderr == f"prepare_data.py: error: --out {out}: is there already; remove it or name another\n"


@pytest.mark.slow
def test_a_killed_run_continues_with_the_missing_shards(tmp_path):
    raw, out, work = tmp_path / "raw", tmp_path / "set", tmp_path / ".set.shards"
    for number in range(150):
        write_box(raw / f"{number:03d}.off", (1, 1, 1 + number))
    choices = Choices("folder", num_points=20_000)
    expected, _ = prepare_splits(plan_folder(raw, choices), choices, tmp_path / "uninterrupted")
    flags = ["folder", "--raw", raw, "--out", out, "--num_points", 20_000, "--num_workers", 1]
    command = [sys.executable, SCRIPT, *map(str, flags)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(work.glob("*/rejected.json"))) < 1:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not out.exists()
    # Other contents of the same size and time: were they read again, the result would differ.
    for number in range(64):
        path = raw / f"{number:03d}.off"
        times, text = path.stat().st_mtime_ns, path.read_text()
        path.write_text(text.replace("0.5", "0.7"))
        os.utime(path, ns=(times, times))
    run_command(SCRIPT, *flags)
    result = load_from_disk(str(out))["train"]
    assert result.features == expected["train"].features
    assert result.data.table.combine_chunks().equals(expected["train"].data.table.combine_chunks())


def test_workers_end_with_a_killed_run(tmp_path):
    raw = tmp_path / "raw"
    for number in range(130):
        write_box(raw / f"{number:03d}.off")
    flags = ["folder", "--raw", raw, "--out", tmp_path / "set", "--num_points", 50_000, "--num_workers", 2]
    process = fork_command([SCRIPT, *flags], tmp_path / "log", tmp_path / "log")
    while process.is_alive() and not list((tmp_path / ".set.shards").glob("*")):
        time.sleep(0.005)
    process.kill()
    process.join()
    for _ in range(1000):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("workers outlive the script by ten seconds")


def test_pushing_keeps_the_metadata_of_the_hub_and_adds_the_card(monkeypatch):
    pushed = {}

    class Card:
        def __init__(self):
            self.text = ""

        @classmethod
        def load(cls, name):
            pushed["loaded"] = name
            return cls()

        def push_to_hub(self, name):
            pushed["card"] = (name, self.text)

    class Joined:
        def push_to_hub(self, name, private):
            pushed["set"] = (name, private)

    monkeypatch.setattr(prepare_data, "DatasetCard", Card)
    prepare_data.push_set("group/set", Joined(), "---\npretty_name: x\n---\n# Title\n\n---\nend\n")
    assert pushed == {
        "set": ("group/set", True),
        "loaded": "group/set",
        "card": ("group/set", "# Title\n\n---\nend\n"),
    }


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["folder"], "folder needs --raw"),
        (["folder", "--raww", "x"], "unrecognized arguments: --raww; did you mean --raw?"),
        (["folder", "--num-point=3"], "unrecognized arguments: --num-point; did you mean --num_points?"),
        (["everyday_shapes", "--raw", "."], "everyday_shapes is generated and takes no --raw"),
        (["folder", "--raw", "nowhere"], "--raw nowhere: there is no such folder"),
        (["folder", "--raw", ".", "--num_points", "0"], "--num_points must be at least 1, got 0"),
        (["folder", "--raw", ".", "--test_share", "1"], "--test_share must lie between 0 and 1, got 1.0"),
        (
            ["folder", "--raw", ".", "--test_share", ".5", "--validation_share", ".5"],
            "--validation_share and --test_share must add up to less than 1",
        ),
        (
            ["shapenet55", "--raw", ".", "--test_share", ".5"],
            "--validation_share and --test_share go with folder: shapenet55 has splits of its own",
        ),
        (["folder", "--raw", ".", "--seed", "-1"], "--seed must not be negative, got -1"),
        (["folder", "--raw", ".", "--out", "."], "--out .: is there already; remove it or name another"),
    ],
)
def test_bad_flags_are_one_line(flags, line):
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        prepare_data.main([flags[0], "--out", "nowhere", *flags[1:]])
