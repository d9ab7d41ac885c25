"""The parts of what a run leaves and publishes; test_finished_runs.py has whole runs."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from act_training.data.keyed_random import Sampling
from act_training.report import run_folder as outputs
from act_training.report.run_folder import finish_run, load_final_weights
from act_training.run.arguments import TrainingArguments
from act_training.run.checkpoints import save_weights
from act_training.run.log import RunLog, check_hub, check_tracker
from act_training.run.optimization import RunLength
from safetensors.torch import load_file

from loopback_hub import LoopbackHub
from modeling_act import ACTPointCloudProcessor
from modeling_act.errors import InputError
from small_models import small_models

ONE_PROCESS = SimpleNamespace(is_main_process=True, log=lambda values, step: None, trackers=[])
LENGTH = RunLength(num_rows=40, global_batch_size=4, num_train_epochs=1)
# A set as prepare_data.py uploads it, opened whole and as a stream.
SETS = """
import sys
sys.path.insert(0, "training")
import numpy as np
from act_training.data.point_sets import open_point_set
from datasets import Dataset, DatasetDict

points = np.random.default_rng(0).normal(size=(8, 64, 3)).astype("f4")
rows = {"points": points.tolist(), "label": [0] * 8}
DatasetDict({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(rows)}).push_to_hub("org/set", private=True)
whole = open_point_set("org/set", "test", None)
stream = open_point_set("org/set", "train", None, True, 8)
print(len(whole), len(stream))
"""


# The Hub and trackers ------------------------------------------------------------------------------------------------


def arguments(folder: Path, **values) -> TrainingArguments:
    return TrainingArguments(dataset_name="everyday_shapes", output_dir=str(folder), **values)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("org/model", {"HF_TOKEN": "", "HF_TOKEN_PATH": "nowhere"}, "cannot be written to (Token is required"),
        ("org/model", {"HF_TOKEN": "hf_wrong"}, "cannot be written to (Invalid user token."),
        ("org/model", {"ENDPOINT": "http://127.0.0.1:1"}, "cannot be written to ([Errno 111] Connection refused)"),
        ("org/model", {"broken": "/api/whoami-v2"}, "the server is out of order"),
        ("org/model", {"broken": "/api/repos/create"}, "the server is out of order"),
        ("org/mo del", {}, "cannot be written to (Repo id must use alphanumeric chars"),
        ("model", {}, "--hub_model_id must be ORGANIZATION/NAME, got 'model'"),
        ("org/model/v2", {}, "--hub_model_id must be ORGANIZATION/NAME, got 'org/model/v2'"),
    ],
)
def test_a_hub_that_takes_nothing_is_one_line_before_training(own_hub, monkeypatch, tmp_path, name, changed, message):
    for key, value in changed.items():
        if key == "broken":
            own_hub.fail(value)
        elif key == "HF_TOKEN":
            monkeypatch.setenv(key, value)
        else:
            monkeypatch.setattr(huggingface_hub.constants, key, value)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        check_hub(arguments(tmp_path, push_to_hub=True, hub_model_id=name))
    assert "\n" not in str(error.value)
    assert not own_hub.commits


def test_a_hub_that_takes_the_model_has_its_repository_before_training(own_hub, tmp_path):
    for _ in range(2):
        check_hub(arguments(tmp_path, push_to_hub=True, hub_model_id="org/model"))
    assert list(own_hub.commits) == ["models/org/model"]


@pytest.mark.slow
def test_a_set_on_the_hub_opens_whole_and_streamed(run_python, tmp_path):
    with LoopbackHub() as hub:
        process = run_python("-c", SETS, environment=hub.environment | {"HF_HOME": str(tmp_path)})
        assert process.stdout.split()[-2:] == ["8", "8"]
        assert set(hub.files("datasets/org/set")) > {"README.md", "data/test-00000-of-00001.parquet"}


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
    monkeypatch.setattr(outputs, "get_available_trackers", lambda: there)
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


# The log and the final weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ['{"step": 8, "epo', '{"step": 8, "epoch": 0.8}', "[1]\n", "\0\0\0", b"\xff\xfe", ""])
def test_a_resumed_log_drops_what_came_after_its_checkpoint(tmp_path, end):
    lines = "".join(json.dumps({"step": step, "train/loss": 1.0}) + "\n" for step in (0, 2, 4, 6))
    (tmp_path / "log.jsonl").write_bytes(lines.encode() + (end if isinstance(end, bytes) else end.encode()))
    log = RunLog(arguments(tmp_path), ONE_PROCESS, LENGTH, start=4)
    log.write(5, {"train/loss": 0.5})
    log.close()
    assert [record["step"] for record in log.records()] == [0, 2, 4, 5]
    assert log.records()[-1] == {"step": 5, "epoch": 0.5, "train/loss": 0.5}


def test_a_run_that_starts_anew_has_a_log_of_its_own(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "train/loss": 1.0}\n')
    log = RunLog(arguments(tmp_path), ONE_PROCESS, LENGTH, start=0)
    log.close()
    assert log.records() == []


@pytest.mark.parametrize(
    ("kind", "best", "added", "said"),
    [
        ("last", {"loss": 0.25, "step": 3}, 0.0, "after the last step."),
        ("best", {"loss": 0.25, "step": 3}, 1.0, "that did best in validation, after step 3."),
        ("best", {}, 0.0, "after the last step."),
        ("ema", {"loss": 0.25, "step": 3}, 2.0, "after the last step, not of their average, which this model holds."),
    ],
)
def test_final_weights_are_the_ones_asked_for(tmp_path, kind, best, added, said):
    model_class, config, _ = small_models()["pretraining"]
    model = model_class(config)
    last = {name: value.clone() for name, value in model.state_dict().items()}
    floats = [name for name, value in last.items() if value.is_floating_point()]
    moved = {by: last | {name: last[name] + by for name in floats} for by in (1, 2)}
    save_weights(tmp_path / "best", model, moved[1])
    options = arguments(tmp_path, final_weights=kind, ema_decay=0.9)
    run = SimpleNamespace(
        options=options, folder=tmp_path, accelerator=ONE_PROCESS, weights=model, average=moved[2], best=best, step=10,
        log=RunLog(options, ONE_PROCESS, LENGTH, start=0), sampling=Sampling(64, normalize=False),
    )  # fmt: skip
    load_final_weights(run)  # as a script does that then reads the test split
    tested = model.state_dict()
    finish_run(run, "Title", "Text.", "usage", {"loss": 0.5}, [{"input": torch.rand(8, 3)}], test={"accuracy": 0.125})
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], last[name] + added) for name in floats)
    assert all(torch.equal(written[name], tested[name]) for name in floats)
    processor = ACTPointCloudProcessor.from_pretrained(tmp_path)
    assert (processor.num_points, processor.point_sampling, processor.normalize) == (64, "random", False)
    assert json.loads((tmp_path / "metrics.json").read_text())["test"] == {"accuracy": 0.125}
    card = (tmp_path / "README.md").read_text()
    assert "license:" not in card and "No licence of the weights was given" in card
    assert "| accuracy | 0.125 |" in card.split("## Test")[1]
    assert said in card and f"| loss | {0.25 if 'step 3' in said else 0.5} |" in card
