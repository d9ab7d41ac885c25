"""Log of a run, and trackers."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from act_training.run import training_run
from act_training.run.script import ACTTrainingArguments
from act_training.run.training_run import RunLog, check_tracker
from act_training.run.training_state import RunLength

from modeling_act.errors import InputError

ONE_PROCESS = SimpleNamespace(is_main_process=True, log=lambda values, step: None, trackers=[])
LENGTH = RunLength(num_rows=40, global_batch_size=4, num_train_epochs=1)


def arguments(folder: Path, **values) -> ACTTrainingArguments:
    return ACTTrainingArguments(dataset_name="everyday_shapes", output_dir=str(folder), **values)


@pytest.mark.parametrize(
    ("wanted", "there", "message"),
    [
        ("wandb", ["tensorboard"], "--report_to wandb: not installed here; pip install wandb"),
        ("trackio", [], "--report_to trackio: not installed here; pip install trackio"),
        ("all", [], "--report_to all: no tracker is installed; pip install tensorboard, wandb or trackio"),
        ("all", ["tensorboard"], None),
        ("tensorboard", ["tensorboard"], None),
        ("none", [], None),
    ],
)
def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch, wanted, there, message):
    monkeypatch.setattr(training_run, "get_available_trackers", lambda: there)
    if message is None:
        assert check_tracker(wanted) is None
    else:
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            check_tracker(wanted)


def test_a_tracker_that_does_not_start_is_one_line(tmp_path):
    def refuse(name: str) -> None:
        raise RuntimeError("No API key configured.\nLog in.")

    accelerator = SimpleNamespace(is_main_process=True, init_trackers=refuse)
    with pytest.raises(InputError, match="^--report_to wandb: No API key configured. Log in.$"):
        RunLog(arguments(tmp_path, report_to="wandb"), accelerator, LENGTH, start=0)


@pytest.mark.parametrize("end", ['{"step": 8, "epo', '{"step": 8, "epoch": 0.8}', "[1]\n", "\0\0\0", b"\xff\xfe", ""])
def test_a_resumed_log_drops_what_came_after_its_checkpoint(tmp_path, end):
    lines = "".join(json.dumps({"step": step, "train/loss": 1.0}) + "\n" for step in (0, 2, 4, 6))
    (tmp_path / "log.jsonl").write_bytes(lines.encode() + (end if isinstance(end, bytes) else end.encode()))
    run_log = RunLog(arguments(tmp_path), ONE_PROCESS, LENGTH, start=4)
    run_log.write(5, {"train/loss": 0.5})
    run_log.close()
    assert [record["step"] for record in run_log.records()] == [0, 2, 4, 5]
    assert run_log.records()[-1] == {"step": 5, "epoch": 0.5, "train/loss": 0.5}


def test_a_run_that_starts_anew_has_a_log_of_its_own(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "train/loss": 1.0}\n')
    run_log = RunLog(arguments(tmp_path), ONE_PROCESS, LENGTH, start=0)
    run_log.close()
    assert run_log.records() == []
