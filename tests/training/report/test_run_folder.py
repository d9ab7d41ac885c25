"""Folder of a finished run; run/test_finished_runs.py has whole runs."""

import json
from types import SimpleNamespace

import pytest
import torch
from act_training.data.batches import Sampling
from act_training.report.run_folder import finish_run
from act_training.run.script import ACTTrainingArguments
from act_training.run.training_run import RunLog, TrainingRun
from act_training.run.training_state import RunLength, save_weights
from safetensors.torch import load_file

from modeling_act import ACTPointCloudProcessor
from small_models import small_models

ONE_PROCESS = SimpleNamespace(is_main_process=True, log=lambda values, step: None, trackers=[])
LENGTH = RunLength(num_rows=40, global_batch_size=4, num_train_epochs=1)


@pytest.mark.parametrize(
    ("kind", "best", "added", "said"),
    [
        ("last", {"loss": 0.25, "step": 3}, 0.0, "weights after the last step, 10."),
        ("best", {"loss": 0.25, "step": 3}, 1.0, "weights that did best in validation, after step 3."),
        ("best", {}, 0.0, "weights after the last step, 10."),
        ("ema", {"loss": 0.25, "step": 3}, 2.0, "averaged weights after step 10."),
    ],
)
def test_final_weights_are_the_ones_asked_for(tmp_path, kind, best, added, said):
    model_class, config, _ = small_models()["pretraining"]
    model = model_class(config)
    last = {name: value.clone() for name, value in model.state_dict().items()}
    floats = [name for name, value in last.items() if value.is_floating_point()]
    moved = {by: last | {name: last[name] + by for name in floats} for by in (1, 2)}
    save_weights(tmp_path / "best", model, moved[1])
    options = ACTTrainingArguments(
        dataset_name="everyday_shapes", output_dir=str(tmp_path), final_weights=kind, ema_decay=0.9
    )
    run = TrainingRun.__new__(TrainingRun)  # without data and a model to train
    vars(run).update(
        options=options, folder=tmp_path, accelerator=ONE_PROCESS, weights=model, average=moved[2], best=best,
        global_step=10,
        log=RunLog(options, ONE_PROCESS, LENGTH, start=0), length=LENGTH,
        data=SimpleNamespace(sampling=Sampling(64, normalize=False)),
    )  # fmt: skip
    assert run.load_final_weights() == (added > 0)  # as a script does before it measures
    tested = model.state_dict()
    finish_run(run, "Title", "Text.", "usage", {"loss": 0.5}, [{"input": torch.rand(8, 3)}], test={"accuracy": 0.125})
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], last[name] + added) for name in floats)
    assert all(torch.equal(written[name], tested[name]) for name in floats)
    processor = ACTPointCloudProcessor.from_pretrained(tmp_path)
    assert (processor.num_points, processor.point_sampling, processor.normalize) == (64, "random", False)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"] == {"loss": 0.5} and record["test"] == {"accuracy": 0.125}
    assert (record["measured_at"], record["split"]) == (3 if added == 1 else 10, "10% of train")
    card = (tmp_path / "README.md").read_text()
    assert "license:" not in card and "No license of the weights was given" in card
    assert "| accuracy | 0.125 |" in card.split("## Test")[1]
    assert f"Metrics on 10% of train, of the {said}" in card and "| loss | 0.5 |" in card
