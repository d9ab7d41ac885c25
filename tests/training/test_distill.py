"""Targets that are computed once: the same student, exact resuming, and a refusal where targets change."""

import pytest
import torch
from safetensors.torch import load_file

from training_runs import copy_run, digest, start

FIXED = ("--fixed_points", "--augmentation")


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


@pytest.mark.parametrize("flags", [(), ("--fixed_points", "--augmentation", "rotate_y"), ("--augmentation",)])
def test_targets_that_change_are_not_computed_once(inputs, tmp_path, flags):
    text = start(inputs, "distill", tmp_path / "run", "--cache_targets", *flags).fail()
    assert "--cache_targets needs clouds and targets that stay the same" in text
