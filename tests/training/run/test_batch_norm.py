"""Batch statistics of layers that never trained are measured; those that came with weights stay as they are."""

import torch
from act_training.run.training_state import calibrate_batch_norm
from torch import nn

from modeling_act import ACTStudentForPointCloudClassification
from small_models import small_student_config


def test_new_layers_are_measured_and_nothing_else_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[3].eval()
    model[0].running_mean.fill_(0.25)  # as if it had trained; files may lack the counter
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [torch.randn(16, 3) * 0.01 for _ in range(5)]
    calibrate_batch_norm(model, model, batches)
    measured = [model[1]((batch - 0.25) / torch.tensor(1 + 1e-5).sqrt()).detach() for batch in batches]
    torch.testing.assert_close(model[2].running_mean, torch.stack([rows.mean(0) for rows in measured]).mean(0))
    torch.testing.assert_close(model[2].running_var, torch.stack([rows.var(0) for rows in measured]).mean(0))
    assert model[2].momentum == 0.1 and model.training and model[2].training and not model[3].training
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    calibrate_batch_norm(model, lambda batch: 1 / 0, batches)  # there is nothing left to measure


def test_a_mini_pointnet_that_never_trained_sees_its_groups():
    """From 0 and 1, what it makes of points, of a variance of 1e-5, would vanish beside its biases."""
    torch.manual_seed(0)
    model = ACTStudentForPointCloudClassification(small_student_config()).eval()
    clouds, seen = torch.randn(32, 64, 3) / 3, []
    model.student.group_embedding.norm1.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    model(clouds)
    calibrate_batch_norm(model, lambda batch: model(batch), clouds.split(8))
    model(clouds)
    before, after = seen[0].std(0).mean(), seen[-1].std(0).mean()
    assert before < 0.01 and 0.4 < after < 1.1  # not quite 1, since epsilon is as large as the variance
