"""precision.py: its figures on hand-made numbers, what it puts into bf16, its sections through the command line."""

import json

import pytest
import torch

import precision
from forked import run_command
from modeling_act import ACTTeacher, ACTTeacherConfig


def test_agreement_of_hand_made_features():
    exact = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 3.0]]])
    rounded = exact.clone()
    rounded[0, 0] = torch.tensor([1.0, 1.0])  # one of four rows turned by 45 degrees
    found = precision.agreement(rounded, exact)
    assert found["relative_error"] == pytest.approx((1 / 20) ** 0.5)
    assert found["cosine"] == pytest.approx((3 + 0.5**0.5) / 4)
    assert found["smallest_cosine"] == pytest.approx(0.5**0.5)
    assert found["below_0.999"] == 0.25
    # From the mean (1, 1) the first row is (0, -1), and rounded it is nothing at all.
    assert found["centered_cosine"] == pytest.approx(3 / 4)


def test_a_common_part_hides_from_the_cosine_what_the_centered_one_shows():
    exact = 100 + torch.randn(64, 8)
    found = precision.agreement(exact + torch.randn(64, 8), exact)
    assert found["cosine"] > 0.999 and found["below_0.999"] == 0 and found["centered_cosine"] < 0.9


def test_curves_are_averaged_over_ten_steps():
    assert precision.smooth([float(step) for step in range(25)]) == [4.5, 14.5, 22.0]
    assert precision.distance([1.0, 2.0], [1.5, 1.0]) == 0.75


def test_a_summary_keeps_seeds_apart():
    values = {
        ("fp32", 0): [5.0, 1.0], ("fp32", 1): [6.0, 3.0], ("bf16", 0): [5.5, 1.5], ("bf16", 1): [6.0, 2.0],
    }  # fmt: skip
    records = [{"precision": kind, "seed": seed, "curve": curve} for (kind, seed), curve in values.items()]
    found = precision.summarize(records, "precision", "fp32", "bf16", lambda record: record["curve"])
    assert found == {
        "distance_same_seed": 0.5,  # seed 0: (0.5 + 0.5) / 2; seed 1: (0 + 1) / 2
        "distance_between_seeds": 1.5,  # (1 + 2) / 2
        "fp32_mean": 2.0,
        "bf16_mean": 1.75,
        "changes": [0.5, -1.0],
        "deviation_over_seeds": pytest.approx(2**0.5),
    }


@pytest.mark.parametrize("prompt_type", ["deep", "shallow", "none"])
def test_only_the_backbone_in_bf16(prompt_type):
    teacher = ACTTeacher(ACTTeacherConfig(**precision.TINY_TEACHER, prompt_type=prompt_type)).eval()
    groups = teacher.group(torch.randn(2, 64, 3))
    exact = precision.outputs_of(teacher, groups, autocast=False)
    rounded = precision.in_bfloat16(teacher, "backbone")
    dtypes = {name.startswith("backbone."): value.dtype for name, value in rounded.named_parameters()}
    assert dtypes == {True: torch.bfloat16, False: torch.float32}
    assert {value.dtype for value in teacher.parameters()} == {torch.float32}
    found = precision.outputs_of(rounded, groups, autocast=False)
    assert torch.equal(found.logits, exact.logits) and found.teacher_features.dtype == torch.float32
    error = precision.agreement(found.teacher_features, exact.teacher_features)["relative_error"]
    assert 1e-4 < error < 5e-2


def run_quick(tmp_path, section, *flags):
    path = tmp_path / "precision.jsonl"
    run_command("benchmarks/precision.py", section, "--quick", "--output", path, *flags, timeout=900)
    machine, *records = [json.loads(line) for line in path.read_text().splitlines()]
    assert machine["versions"]["torch"] == torch.__version__
    return records


@pytest.mark.slow
def test_features(tmp_path):
    teacher = ACTTeacher(ACTTeacherConfig(**precision.TINY_TEACHER))
    teacher.save_pretrained(tmp_path / "teacher")
    student, *teachers = run_quick(tmp_path, "features", "--teacher", tmp_path / "teacher")
    assert student["tokens"]["cosine"] > 0.999
    assert [record["model"] for record in teachers] == ["teacher, random weights"] * 6 + ["teacher, trained"] * 6
    for record in teachers:
        if record["codes"] == "of fp32":
            assert record["codes_changed"] == 0 and record["logits"]["relative_error"] == 0
            assert record["teacher_features"]["cosine"] > 0.999


def check_runs(records, key, kinds, scripts):
    runs = [record for record in records if key in record]
    assert {(run["script"], run[key], run["seed"]) for run in runs} == {
        (script, kind, seed) for script in scripts for kind in kinds for seed in (0, 1)
    }
    assert all(len(run["loss_curve"]) == 1 and run["loss_curve"][0] > 0 for run in runs)
    probe = next(record["probe"] for record in records if "probe" in record)
    summaries = {(record["summary"], record["figure"]): record for record in records if "summary" in record}
    for kind in kinds:
        accuracies = [value for name, value in probe.items() if f"{kind}_" in name]
        assert len(accuracies) == 2
        assert summaries["distill.py", "probe"][f"{kind}_mean"] == pytest.approx(sum(accuracies) / 2)
    return summaries


@pytest.mark.slow
def test_training(tmp_path):
    records = run_quick(tmp_path, "training")
    summaries = check_runs(records, "precision", ("fp32", "bf16"), ("autoencode.py", "distill.py"))
    for script in ("autoencode.py", "distill.py"):
        curves = summaries[script, "train/loss"]
        assert 0 < curves["distance_same_seed"] < curves["distance_between_seeds"]


@pytest.mark.slow
def test_visible_only(tmp_path):
    records = run_quick(tmp_path, "visible_only")
    summaries = check_runs(records, "embed", ("default", "visible_only"), ("distill.py",))
    assert summaries["distill.py", "train/loss"]["distance_same_seed"] > 0
    gflop = {record["cost_of"]: record["gflop_per_cloud"] for record in records if "cost_of" in record}
    assert gflop["student, embed_visible_only True"] < gflop["student, embed_visible_only False"]
