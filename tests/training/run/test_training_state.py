"""Schedules against values worked out by hand, which parameters decay, averages, first batch statistics."""

import math
from fractions import Fraction

import pytest
import torch
from act_training.run.training_state import (
    RunLength,
    calibrate_batch_norm,
    cosine_between,
    learning_rate_at,
    make_optimizer,
    trained_state,
    update_average,
)
from torch import nn

from modeling_act import ACTStudentForPointCloudClassification, ACTStudentForPreTraining, ACTTeacher
from small_models import small_student_config, small_teacher_config

PAPER = RunLength(num_rows=41_952, global_batch_size=64, num_train_epochs=300)
STEPS = 41_952 / 64  # an epoch


@pytest.mark.parametrize(
    "epoch, rate",
    [
        (0, 1e-6),
        (1, 5.09e-05),  # 1e-6 + (5e-4 - 1e-6) / 10
        (5, 2.505e-4),
        (9.9, 4.501e-4),  # still that of epoch 9
        (10, 4.98632e-4),  # cos(pi / 30) = 0.994522
        (75, 4.26792e-4),  # cos(pi / 4) = 0.707107
        (150, 2.5005e-4),
        (299, 1.13706e-7),  # 1e-7 + 4.999e-4 * (1 - cos(pi / 300)) / 2
    ],
)
def test_learning_rates_of_the_paper(epoch, rate):
    found = learning_rate_at(math.ceil(epoch * STEPS), PAPER, 5e-4, 1e-7, 10, per_epoch=True)
    assert found == pytest.approx(rate, rel=1e-5)


def test_a_rate_per_step_is_the_same_curve_between_epochs():
    length = RunLength(100, 10, 4)
    smooth = [learning_rate_at(step, length, 1.0, 0.0, 1, per_epoch=False) for step in range(41)]
    assert smooth[5] == pytest.approx(0.5, abs=1e-6) and smooth[20] == pytest.approx(0.5)
    assert smooth[40] == 0 and smooth[15] == pytest.approx((1 + math.cos(math.pi * 1.5 / 4)) / 2)
    steps = [learning_rate_at(step, length, 1.0, 0.0, 1, per_epoch=True) for step in range(40)]
    assert steps == [smooth[step // 10 * 10] for step in range(40)]
    assert learning_rate_at(0, length, 1.0, 0.0, 0, per_epoch=True) == 1.0


@pytest.mark.parametrize(
    "step, temperature, kl_weight",
    [
        (0, 1, 0),
        (10_000, 0.9770572, 0),  # 0.0625 + 0.9375 * (1 + cos(pi / 10)) / 2
        (35_000, 0.7440624, 0.0146447),  # 1 - cos(pi / 4), halved, of 0.1
        (50_000, 0.53125, 0.0345492),  # 1 - cos(0.4 pi), halved, of 0.1
        (60_000, 0.3863987, 0.05),
        (100_000, 0.0625, 0.0975528),
        (110_000, 0.0625, 0.1),
        (500_000, 0.0625, 0.1),
    ],
)
def test_temperature_and_weight_of_the_paper(step, temperature, kl_weight):
    assert cosine_between(step, 0, 100_000, 1, 0.0625) == pytest.approx(temperature, rel=1e-5)
    assert cosine_between(step, 10_000, 100_000, 0, 0.1) == pytest.approx(kl_weight, rel=1e-5, abs=1e-12)


def test_a_schedule_of_no_length_is_a_step():
    assert [cosine_between(step, 5, 0, 2.0, 3.0) for step in (4, 5, 6)] == [2.0, 3.0, 3.0]


def test_lengths_are_shares_or_steps():
    length = RunLength(1000, 10, 2)
    assert length.total_steps == 200 and length.epoch(200) == 2
    assert [length.share(value) for value in (0.25, 1, 2, 10_000)] == [50, 200, 2, 10_000]
    assert RunLength(1000, 10, 2, max_train_steps=30).total_steps == 30
    assert RunLength(3, 64, 1).total_steps == 1


@pytest.mark.parametrize("every", [1, 2, 0.5, 0.3])
def test_every_stretch_of_epochs_ends_once(every):
    stretch = Fraction(str(every))
    for num_rows in (1, 2, 7, 63, 64, 65, 1000, 41_952):
        for batch in (1, 3, 64, 200):
            length = RunLength(num_rows, batch, 0, max_train_steps=min(5000, 12 * num_rows // batch + 3))
            due = [step for step in range(1, length.total_steps + 1) if length.completes(every, step)]
            ends = range(1, int(Fraction(length.total_steps * batch, num_rows) / stretch) + 1)
            expected = {math.ceil(end * stretch * num_rows / batch) for end in ends} | {length.total_steps}
            assert due == sorted(expected), (num_rows, batch)


@pytest.mark.parametrize(
    "model, decayed, plain",
    [
        (
            lambda: ACTTeacher(small_teacher_config()),
            {"codebook", "prompts.deep_positions"},
            {"prompts.deep_tokens"},
        ),
        (
            lambda: ACTStudentForPreTraining(small_student_config()),
            {"student.cls_position"},
            {"student.cls_token", "decoder.mask_token"},
        ),
    ],
)
def test_what_decays(model, decayed, plain):
    model = model()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = make_optimizer(model, 0.05).param_groups
    found = [{name for name, value in named.items() for each in group["params"] if each is value} for group in groups]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert found[0] | found[1] == named.keys() and not found[0] & found[1]
    assert decayed <= found[0] and plain <= found[1]
    assert {name for name in named if named[name].ndim == 1 or name.endswith("bias")} <= found[1]
    assert {name for name in named if name.endswith("weight") and named[name].ndim > 1} <= found[0]


def test_the_average_follows_trained_weights_and_copies_counts():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    model[2].requires_grad_(False)
    average = trained_state(model)
    assert not any(name.startswith("2.") for name in average) and "1.running_mean" in average
    before = average["0.weight"].clone()
    with torch.no_grad():
        model[0].weight += 1
        model[1].num_batches_tracked += 4
    update_average(average, model, 0.9)
    torch.testing.assert_close(average["0.weight"], before + 0.1)
    assert average["1.num_batches_tracked"] == 4


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
    """Its outputs have a variance of 1e-5: with statistics of 0 and 1 they would vanish beside its biases."""
    torch.manual_seed(0)
    model = ACTStudentForPointCloudClassification(small_student_config()).eval()
    clouds, seen = torch.randn(32, 64, 3) / 3, []
    model.student.group_embedding.norm1.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    model(clouds)
    calibrate_batch_norm(model, lambda batch: model(batch), clouds.split(8))
    model(clouds)
    before, after = seen[0].std(0).mean(), seen[-1].std(0).mean()
    assert before < 0.01 and 0.4 < after < 1.1  # not quite 1, since epsilon is as large as the variance
