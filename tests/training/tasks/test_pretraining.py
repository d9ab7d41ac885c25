"""Validation against independent numpy, whatever the batch size; targets and losses of pretraining."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from act_training.data.batches import Sampling, keyed_mask, validation_batches
from act_training.data.point_sets import PointSet
from act_training.data.schema import build_dataset
from act_training.run.run_data import RunData
from act_training.run.script import ACTTrainingArguments
from act_training.tasks.pretraining import (
    SelfTeacher,
    TeacherTargets,
    code_use,
    evaluate_autoencoder,
    evaluate_distillation,
    identify,
    is_collapsed,
)

from modeling_act import ACTStudentForPreTraining, ACTTeacher, ACTViewTeacher
from small_models import small_student_config, small_teacher_config, small_view_teacher_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def point_set():
    clouds = [np.random.default_rng(row).normal(size=(90 + row % 3, 3)) for row in range(11)]
    return PointSet(build_dataset({"points": clouds, "label": np.arange(11) % 3}), "eleven")


def batches_of(point_set, batch_size, **options):
    return validation_batches(point_set, batch_size, Sampling(64), CPU, **options)


@torch.no_grad()
def expected_figures(teacher, points):
    """Means over clouds of what `evaluate_autoencoder` measures, in double precision."""
    output = teacher.eval()(points)
    rebuilt = output.reconstruction.double().numpy()
    figures = {"chamfer_l1": [], "chamfer_l2": [], "f_score": []}
    for cloud, copy in zip(points.double().numpy(), rebuilt, strict=True):
        squares = ((cloud[:, None] - copy[None]) ** 2).sum(-1)
        back, there = squares.min(1), squares.min(0)
        figures["chamfer_l1"].append((np.sqrt(there).mean() + np.sqrt(back).mean()) / 2)
        figures["chamfer_l2"].append(there.mean() + back.mean())
        precision, recall = (np.sqrt(there) < 0.05).mean(), (np.sqrt(back) < 0.05).mean()
        figures["f_score"].append(2 * precision * recall / max(precision + recall, 1e-12))
    shares = np.unique(output.code_indices.numpy(), return_counts=True)[1] / output.code_indices.numel()
    figures["perplexity"], figures["codes_used"] = math.exp(-(shares * np.log(shares)).sum()), len(shares)
    figures["logit_scale"] = output.logits.double().numpy().std(-1, ddof=1).mean()
    return {name: np.mean(values) for name, values in figures.items()}


@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_reconstruction_is_measured_alike_in_any_batches(point_set, batch_size):
    torch.manual_seed(0)
    teacher = ACTTeacher(small_teacher_config()).train()
    # Rebuilt points close to the true ones, so that the F-score is neither 0 nor 1.
    for parameter in teacher.decoder.parameters():
        parameter.data *= 0.8
    found = evaluate_autoencoder(teacher, batches_of(point_set, batch_size), Accelerator(cpu=True))
    assert teacher.training
    points = torch.cat([batch["points"] for batch in batches_of(point_set, 3)])
    expected = expected_figures(teacher, points)
    assert 0 < expected["f_score"] < 1
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    with torch.no_grad():
        output = teacher(points)
    assert found["reconstruction_loss"] == pytest.approx(output.reconstruction_loss.item(), rel=1e-5)
    assert found["kl_loss"] == pytest.approx(output.kl_loss.item(), rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_processes_share_the_rows(point_set, world_size):
    keys = [
        batch["keys"]
        for rank in range(world_size)
        for batch in batches_of(point_set, 2, rank=rank, world_size=world_size)
    ]
    assert sorted(torch.cat(keys).tolist()) == [[-1, row] for row in range(11)]


def make_target(dim):
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(24, dim, generator=generator)
    return lambda groups, batch: {"teacher_features": groups.neighborhoods.flatten(2) @ projection + 0.5}


def make_mask(keys, groups):
    return keyed_mask(keys, groups.centers, 12, "random", 0)


@pytest.mark.parametrize("loss_type", ["cosine", "l2", "smooth_l1"])
def test_distillation_is_measured_alike_in_any_batches(point_set, loss_type):
    torch.manual_seed(0)
    student = ACTStudentForPreTraining(small_student_config(loss_type=loss_type))
    target = make_target(20)
    found = [
        evaluate_distillation(student, target, make_mask, batches_of(point_set, batch_size))
        for batch_size in (1, 4, 11)
    ]
    for each in found:
        assert each == pytest.approx(found[0], rel=1e-5)
    (batch,) = batches_of(point_set, 11)
    groups = student.group(batch["points"])
    masked = target(groups, batch)["teacher_features"][make_mask(batch["keys"], groups)].double()
    constant = torch.nn.functional.normalize(masked, dim=-1).mean(0) if loss_type == "cosine" else masked.mean(0)
    expected = {
        "cosine": 1 - torch.cosine_similarity(masked, constant.unsqueeze(0)).mean(),
        "l2": (masked - constant).square().mean(),
        "smooth_l1": None,  # the best constant has no closed form
    }[loss_type]
    if expected is None:
        assert found[0].keys() == {"loss"}
    else:
        assert found[0]["constant_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_of_coordinates_is_measured_without_features(point_set):
    student = ACTStudentForPreTraining(small_student_config(teacher_dim=24, target="coordinates"))
    found = [
        evaluate_distillation(student, lambda groups, batch: {}, make_mask, batches_of(point_set, size))
        for size in (2, 11)
    ]
    assert found[0].keys() == {"loss"} and found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return ACTTeacher(small_teacher_config()).eval().requires_grad_(False)


@pytest.mark.parametrize("of_backbone", [False, True])
def test_measured_targets_have_mean_0_and_std_1(point_set, teacher, tmp_path, of_backbone):
    options = ACTTrainingArguments(dataset_name="eleven", output_dir=str(tmp_path), num_points=64)
    data = RunData(options, Accelerator(cpu=True), point_set, point_set, "")
    width = 12 if of_backbone else 20
    student = ACTStudentForPreTraining(
        small_student_config(teacher_dim=width, target_norm="standardize", cloud_dims=[width])
    )
    targets = TeacherTargets([teacher], of_backbone=of_backbone)
    targets.learns_cloud = True
    targets.measure(SimpleNamespace(data=data), student)
    batch = data.sample_clouds(11)
    features = targets(student.group(batch["points"]), batch)
    assert features["teacher_features"].std(dim=(0, 1)).mean() < 0.9  # not so before
    normalized = student.target_norm(features["teacher_features"]).flatten(0, 1)
    for values in (normalized, student.cloud_norm(features["cloud_features"])):
        torch.testing.assert_close(values.mean(0), torch.zeros(width), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std(0), torch.ones(width), atol=1e-3, rtol=0)


def test_gumbel_targets_are_noisy(point_set, teacher):
    (batch,) = batches_of(point_set, 11)
    groups = teacher.group(batch["points"])
    for mode, noisy in (("argmax", False), ("gumbel", True)):
        targets = TeacherTargets([teacher], mode)
        first, second = (targets(groups, batch)["teacher_features"] for _ in range(2))
        assert torch.equal(first, second) is not noisy


def test_several_teachers_lie_beside_each_other_and_the_student_itself_is_one(point_set, teacher):
    (batch,) = batches_of(point_set, 11)
    views = ACTViewTeacher(small_view_teacher_config()).eval()
    student = ACTStudentForPreTraining(
        small_student_config(teacher_dim=68, teacher_dims=[20, 24, 24], cloud_dims=[20, 48, 24])
    )
    targets = TeacherTargets([teacher, views])
    targets.self_teacher, targets.learns_cloud = SelfTeacher(student), True
    groups = student.group(batch["points"])
    features = targets(groups, batch)
    first, second, third = features["teacher_features"].split([20, 24, 24], dim=2)
    assert torch.equal(first, teacher.get_teacher_features(groups=groups))
    assert torch.equal(second, views.get_teacher_features(batch["points"], groups))
    torch.testing.assert_close(third.std(2, correction=0), torch.ones(11, 16), atol=1e-3, rtol=0)
    assert features["cloud_features"].shape == (11, 20 + 48 + 24)

    with torch.no_grad():
        average = {name: value + 0.1 for name, value in student.state_dict().items()}
        targets.self_teacher.update(average)
    assert not torch.equal(targets(groups, batch)["teacher_features"][..., 44:], third)
    output = student(groups=groups, bool_masked_pos=make_mask(batch["keys"], groups), **features)
    output.loss.backward()
    assert all(weight.grad is None for weight in targets.self_teacher.model.parameters())


def test_kl_over_the_batch_pools_the_codes_of_all_clouds(teacher):
    points = torch.randn(3, 64, 3)
    output = teacher(points, kl_over="batch", kl_weight=0.5)
    usage = output.logits.double().softmax(-1).mean(dim=(0, 1))  # (codes,)
    expected = -math.log(len(usage)) - usage.log().mean()
    assert output.kl_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(output.loss, output.reconstruction_loss + 0.5 * output.kl_loss)
    assert teacher(points).kl_loss > output.kl_loss  # each cloud uses fewer codes than all together
    with pytest.raises(ValueError, match="`kl_over` must be 'cloud' or 'batch', got 'epoch'"):
        teacher(points, kl_over="epoch")


def test_use_of_codes():
    assert code_use(torch.tensor([5.0, 5, 0, 5, 5])) == {"codes_used": 4, "perplexity": pytest.approx(4)}
    assert code_use(torch.tensor([0.0, 9])) == {"codes_used": 1, "perplexity": pytest.approx(1)}
    assert [is_collapsed({"perplexity": value}, 512) for value in (11.3, 11.4)] == [True, False]
    assert [is_collapsed({"perplexity": value}, 16) for value in (3.9, 4)] == [True, False]


def test_a_teacher_is_identified_by_weights_and_configuration():
    torch.manual_seed(0)
    first = ACTViewTeacher(small_view_teacher_config())
    other = ACTViewTeacher(small_view_teacher_config(shading="depth"))
    other.load_state_dict(first.state_dict())
    assert identify(first) != identify(other)
    other.config.shading = "light"
    assert identify(first) == identify(other)
