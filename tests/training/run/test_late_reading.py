"""What a GPU run does with losses: reads each a step late, and never updates after one that is not finite.

The run here is told to read late on the CPU, so the same lines run; a GPU adds only that the values are on their way.
"""

import math

import pytest
import torch
from act_training.run.arguments import TrainingArguments
from act_training.run.training_run import TrainingRun

from modeling_act import ACTStudentConfig, ACTStudentForPointCloudClassification
from modeling_act.errors import InputError


def make_run(folder, reads_late):
    options = TrainingArguments(
        output_dir=str(folder), dataset_name="everyday_shapes", max_train_samples=16, num_points=64,
        per_device_train_batch_size=2, max_train_steps=6, report_to="none", cpu=True, checkpointing_steps="100",
    )  # fmt: skip
    run = TrainingRun(options)
    run.reads_late = reads_late
    run.open_data(min_points=16)
    config = ACTStudentConfig(
        num_groups=8, group_size=8, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        pointnet_dims=[8, 8, 8], num_labels=3,
    )  # fmt: skip
    run.prepare(lambda: ACTStudentForPointCloudClassification(config))
    return run


def train(run, poisoned=None):
    """Weights and losses as the host knew them after each step; the loss of step `poisoned` is not finite."""
    known, weights = [], []
    for step, parts in run.steps():
        for batch in parts:
            points = batch["points"]
            loss = run.model(points, torch.zeros(len(points), dtype=torch.long)).loss
            run.backward(loss * math.inf if step == poisoned else loss)
        run.update()
        known.append(getattr(run, "loss", None))
        weights.append(run.weights.classifier.layers[0].weight.detach().clone())
        run.save_or_stop()
    return known, weights


def test_late_reading_changes_no_update(tmp_path):
    at_once, weights = train(make_run(tmp_path / "at_once", False))
    late, late_weights = train(make_run(tmp_path / "late", True))
    assert all(map(torch.equal, weights, late_weights))
    assert late == [None, *at_once[:-1]]  # each a step late ...
    assert len(set(at_once)) == len(at_once) == 6


def test_the_last_step_is_read_before_the_end(tmp_path):
    run = make_run(tmp_path, True)
    known, _ = train(run)
    assert run.loss != known[-1] and math.isfinite(run.loss) and not run._unread


@pytest.mark.parametrize("reads_late", [False, True])
def test_nothing_is_updated_from_a_loss_that_is_not_finite_on(tmp_path, reads_late):
    run = make_run(tmp_path, reads_late)
    seen = []
    original = run.optimizer.step

    def step():
        original()
        seen.append(run.weights.classifier.layers[0].weight.detach().clone())

    run.optimizer.step = step
    with pytest.raises(InputError, match="step 3: loss inf.*nothing was updated. The step held 2 rows"):
        train(run, poisoned=3)
    assert len(seen) == (5 if reads_late else 4)
    assert not torch.equal(seen[1], seen[2])
    for weight in seen[3:]:
        assert torch.equal(weight, seen[2])
