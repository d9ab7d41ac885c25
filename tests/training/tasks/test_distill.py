"""Targets of distillation, cached or not, and the probe of the frozen student."""

import json

import numpy as np
import pytest
import torch
import yaml
from act_training.data.batches import Sampling
from act_training.data.point_sets import open_point_set
from act_training.measure.frozen_features import embed, probe_accuracy
from act_training.run.run_data import split_rows
from safetensors.torch import load_file
from transformers import AutoModel

from modeling_act import ACTStudent, ACTTeacher, ACTViewTeacher
from small_models import small_view_teacher_config
from training_runs import RECIPES, copy_run, digest, start

FIXED = ("--samplings", "1", "--augmentation")


def test_targets_computed_once_teach_the_same(inputs, tmp_path):
    once, each_time = tmp_path / "once", tmp_path / "each_time"
    start(inputs, "distill", each_time, *FIXED).finish()
    start(inputs, "distill", once, *FIXED, "--cache_targets", "--checkpoints_total_limit", "20").finish()
    first, second = (load_file(path / "model.safetensors") for path in (once, each_time))
    whole = [torch.cat([weights[name].flatten().double() for name in sorted(first)]) for weights in (first, second)]
    assert (whole[0] - whole[1]).norm() < 1e-3 * whole[1].norm()

    again = tmp_path / "again"
    copy_run(once, again, 21)
    flags = ("--cache_targets", "--checkpoints_total_limit", "20", "--resume_from_checkpoint", "latest")
    start(inputs, "distill", again, *FIXED, *flags).finish()
    assert digest(again) == digest(once)


@pytest.mark.parametrize("flags", [(), ("--samplings", "1", "--teacher_code_mode", "gumbel")])
def test_targets_that_change_are_not_computed_once(inputs, tmp_path, flags):
    text = start(inputs, "distill", tmp_path / "run", "--cache_targets", *flags).fail()
    assert "--cache_targets needs a --teacher, --samplings, and no" in text


def test_features_of_the_backbone_can_be_the_target(inputs, tmp_path):
    start(inputs, "distill", tmp_path / "run", "--target", "backbone", "--max_train_steps", 6).finish()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert 0 < metrics["loss"] < 2 and "constant_loss" in metrics
    teacher = ACTTeacher.from_pretrained(inputs / "teacher").eval()
    points = torch.randn(2, 128, 3)
    output = teacher(points)
    features = teacher.get_teacher_features(points, of_backbone=True)
    assert torch.equal(features, output.backbone_features)
    torch.testing.assert_close(teacher.decode_features(features, output.centers, of_backbone=True), output.fine_points)
    torch.testing.assert_close(teacher.decode_features(output.teacher_features, output.centers), output.fine_points)


def test_the_probe_scores_the_frozen_student_on_rows_held_out(inputs, tmp_path):
    flags = ("--probe_dataset", inputs / "parts.npz", "--probe_epochs", 1, "--max_train_steps", 12)
    start(inputs, "distill", tmp_path / "run", *flags).finish()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    student, rows = ACTStudent.from_pretrained(tmp_path / "run"), open_point_set(str(inputs / "parts.npz"), "train")
    features = embed(student, rows, Sampling(128), batch_size=64)
    expected = probe_accuracy(features, rows.labels(), *split_rows(rows.labels(), 0.2, 0), 0)
    assert {name: metrics[f"probe_{name}"] for name in expected} == expected
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "probe/accuracy" in record] == [0, 7, 12]


def test_views_teach_groups_and_clouds_from_a_cache_that_runs_share(inputs, tmp_path):
    """A killed and a shared cache give the same weights; other data is refused."""
    ACTViewTeacher(small_view_teacher_config()).save_pretrained(tmp_path / "views")
    model = {"decoder_attention": "visible", "mask_type": "blocks", "pooling": "cls_mean_max", "loss_type": "l2"}
    flags = ("--teacher", tmp_path / "views", "self", "--ema_decay", 0.9, "--cloud_target", "--target_norm", "phi_s")
    flags += ("--samplings", 2, "--sampling_seed", 5, "--cache_targets", "--augmentation", "scale", "drop_points")
    flags += ("--num_points", 100, "--teacher_points", 120, "--max_train_steps", 6)
    flags += ("--cache_folder", tmp_path / "cache")
    flags += ("--model", yaml.safe_dump(RECIPES["distill"]["model"] | model, default_flow_style=True))
    start(inputs, "distill", tmp_path / "first", *flags).finish()
    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text())["metrics"]
    assert metrics["loss"] == pytest.approx(metrics["group_loss"] + metrics["cloud_loss"], rel=1e-5)

    done = np.load(tmp_path / "cache" / "train" / "done.npy", mmap_mode="r+")
    features = np.load(tmp_path / "cache" / "train" / "features.npy", mmap_mode="r+")
    assert done.all() and features.shape[1:] == (2, 16, 24) and not np.array_equal(features[:, 0], features[:, 1])
    done[:64], features[:64] = False, 0  # as after a kill
    done.flush(), features.flush()
    start(inputs, "distill", tmp_path / "second", *flags).finish()
    assert digest(tmp_path / "second") == digest(tmp_path / "first")

    text = start(inputs, "distill", tmp_path / "third", *flags, "--sampling_seed", 6).fail()
    assert "features of other data or teachers; name another --cache_folder" in text


def test_an_image_transformer_is_a_teacher_of_groups_of_any_size(inputs, tmp_path):
    AutoModel.from_config(small_view_teacher_config().backbone_config).save_pretrained(tmp_path / "transformer")
    flags = ("--teacher", tmp_path / "transformer", "--cloud_target", "--max_train_steps", 3)
    start(inputs, "distill", tmp_path / "run", *flags).finish()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["cloud_dims"] == [48] and config["teacher_dim"] == 24


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--teacher", "self", "views"), "--teacher self comes last, and needs --ema_decay"),
        (("--teacher_weights", 1, 2), "--teacher_weights needs 1 numbers, got 2"),
        (("--teacher_points", 3), "--teacher_points must be at least --num_points"),
    ],
)
def test_flags_that_do_not_go_together(inputs, tmp_path, flags, message):
    assert message in start(inputs, "distill", tmp_path / "run", *flags).fail()
