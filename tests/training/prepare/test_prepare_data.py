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
from act_training.prepare.jobs import join_parts, make_part, make_parts, split_parts, summarize
from act_training.prepare.objects import Choices, Item, Plan, plan_folder
from datasets import load_from_disk

from modeling_act.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = "training/prepare_data.py"


def touch(path, text):
    path.write_text(text)
    return path


def write_box(path, sizes=(1, 1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(trimesh.creation.box(sizes).export(file_type="off"))


def make_set(raw, work, **choices):
    choices = Choices("folder", **choices)
    parts = split_parts(plan_folder(raw, choices), choices, work)
    work.mkdir()
    for part in parts:
        make_part(part)
    return join_parts(parts, {})


def read_or_die(item, choices):
    if Path(item.file).read_text() == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return [{"points": np.full((3, 3), float(item.name)), "name": item.name}]


def test_files_that_kill_their_reader_are_named_and_the_others_kept(tmp_path):
    items = [Item(str(touch(tmp_path / f"{n}.x", "kill" if n in (1, 2, 5) else "")), str(n)) for n in range(6)]
    choices, work = Choices("folder"), tmp_path / "work"
    plan = Plan({"train": items}, read_or_die, "")
    parts, heard = split_parts(plan, choices, work, items_per_part=3), []
    make_parts(parts, work, 2, heard.append)
    summary = summarize(parts, plan, choices)
    assert [bad["name"] for bad in summary["rejected"]] == ["1", "2", "5"]
    assert summary["rejected"][0]["why"] == f"{items[1].file}: the process that reads it dies"
    assert join_parts(parts, {})["train"]["name"][:] == [str(n) for n in (0, 3, 4)]
    assert sum(heard) == 6 and not list(work.glob("*.reading"))


def test_parts_depend_on_their_own_files_and_choices(tmp_path):
    items = [Item(str(touch(tmp_path / f"{n}.x", "")), str(n)) for n in range(4)]
    plan, choices = Plan({"train": items}, read_or_die, ""), Choices("folder")
    before = split_parts(plan, choices, tmp_path, 2)
    os.utime(tmp_path / "3.x", (1, 1))
    after = split_parts(plan, choices, tmp_path, 2)
    assert [old.folder == new.folder for old, new in zip(before, after, strict=True)] == [True, False]
    assert split_parts(plan, replace(choices, seed=1), tmp_path, 2)[0].folder != before[0].folder


def test_bad_files_are_refused_and_then_left_out(run_python, tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "sets" / "mine"
    write_box(raw / "box" / "good.off")
    (raw / "box" / "bad.off").write_text("OFF\n9 9 9\n")
    flags = ["folder", "--raw", str(raw), "--out", str(out), "--num_points", "64", "--num_workers", "1"]
    with pytest.raises(InputError, match="^1 files or clouds are bad; mend them, or leave them out by --skip_bad$"):
        prepare_data.main(flags)
    reason = f"rejected: {raw}/box/bad.off: announces 9 vertices and 9 faces and holds 0 lines\n"
    assert reason in capsys.readouterr().err and not out.exists()

    made = run_python(SCRIPT, *flags, "--skip_bad")
    assert "1 of 1 parts are there from an earlier run" in made.stdout and "box 1" in made.stdout
    rows = load_from_disk(str(out))["train"].with_format("numpy")
    assert rows[0]["points"].shape == (64, 3) and rows[0]["name"] == "box/good.off"
    assert json.loads((out / "summary.json").read_text())["rejected"][0]["name"] == "box/bad.off"
    card = (out / "README.md").read_text()
    assert "| train | 1 | 64, 64, 64 | 1 |" in card and "1 clouds were left out" in card and card.isascii()
    assert [path.name for path in out.parent.iterdir()] == ["mine"]  # no parts are left
    again = run_python(SCRIPT, *flags, returncode=1)
    assert again.stderr == f"prepare_data.py: error: --out {out}: is there already; remove it or name another\n"


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(run_python, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "set"
    for number in range(30):
        write_box(raw / f"{number:02d}.off", (1, 1, 1 + number))
    expected = make_set(raw, tmp_path / "uninterrupted", num_points=100_000)
    flags = ["folder", "--raw", raw, "--out", out, "--num_points", 100_000, "--num_workers", 1, "--files_per_part", 1]
    command = [sys.executable, SCRIPT, *map(str, flags)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    work = tmp_path / ".set.parts"
    while process.poll() is None and len(list(work.glob("train-*-????????????????"))) < 3:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not out.exists()
    wait_for_group_to_end(process.pid)

    finished = sorted(folder for folder in work.iterdir() if not folder.suffix)
    assert 3 <= len(finished) < 30
    for (
        folder
    ) in finished:  # other contents of the same size and time: had they been read again, the result would differ
        path = raw / f"{int(folder.name.split('-')[1]):02d}.off"
        times, text = path.stat().st_mtime_ns, path.read_text()
        path.write_text(text.replace("0.5", "0.7"))
        os.utime(path, ns=(times, times))
    again = run_python(SCRIPT, *flags)
    assert f"{len(finished)} of 30 parts are there from an earlier run" in again.stdout
    result = load_from_disk(str(out))["train"]
    assert result.features == expected["train"].features
    assert result.data.table.combine_chunks().equals(expected["train"].data.table.combine_chunks())


def wait_for_group_to_end(group):
    """The workers see that their parent is gone."""
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("workers outlive the script by ten seconds")


def test_pushing_keeps_what_the_hub_knows_and_adds_the_card(tmp_path, monkeypatch):
    pushed = {}

    class Card:
        content = "---\ndataset_info: splits\n---\n"

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
        (["--raw", "nowhere"], "--raw nowhere: there is no such folder"),
        (["--raw", ".", "--num_points", "0"], "--num_points must be at least 1, got 0"),
        (["--raw", ".", "--seed", "-1"], "--seed must not be negative, got -1"),
        (["--raw", ".", "--out", "."], "--out .: is there already; remove it or name another"),
    ],
)
def test_bad_flags_are_one_line(flags, line):
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        prepare_data.main(["folder", "--out", "nowhere", *flags])
