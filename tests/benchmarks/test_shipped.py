"""shipped.py: what the damages do to clouds, its scores, and a quick run through the command line."""

import json

import numpy as np
import pytest
import torch
from act_training.synthetic.everyday_shapes import generate_shapes

import shipped
from forked import run_command
from modeling_act import ACTPointCloudProcessor, ACTStudent, ACTStudentConfig


def test_damages_do_what_they_say():
    points = generate_shapes(8, seed=0, num_points=512)["points"]
    assert shipped.damaged(points, None) is points
    left = {name: shipped.damaged(points, damage) for name, damage in shipped.DAMAGES.items()}
    assert left["256 points"].shape == (8, 256, 3) and np.isin(left["256 points"][0], points[0]).all()
    turned = left["turned about the vertical"]
    np.testing.assert_allclose(turned[..., 1], points[..., 1], atol=1e-6)
    assert np.abs(turned - points).max() > 0.5
    assert left["seen from one side, half hidden"].shape == (8, 256, 3)
    noise = left["noise of 2 % of the radius"] - points
    assert noise.std() == pytest.approx(
        0.02 * np.linalg.norm(points - points.mean(1, keepdims=True), axis=2).max(1).mean(), rel=0.1
    )


def test_a_score_is_the_share_of_right_nearest_rows(tmp_path):
    directions = np.eye(3, dtype=np.float32)[[0, 1] * 6 + [0, 1, 2]]
    split = np.repeat(["train", "test"], [12, 3])
    labels = [0, 1] * 6 + [0, 1, 0]
    np.savez(tmp_path / "set.npz", points=directions[:, None].repeat(4, 1), labels=labels, split=split)
    encode = lambda clouds: torch.from_numpy(clouds.mean(1)) + torch.tensor([0, 0.1, 0])  # noqa: E731
    scores = shipped.score(encode, tmp_path / "set.npz", {"whole": None}, standardize=False)
    assert scores["accuracies"] == {"whole": pytest.approx(2 / 3)}


@pytest.mark.slow
def test_a_quick_run_scores_a_student_beside_its_untrained_network(tmp_path):
    config = ACTStudentConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_groups=8, group_size=8)
    student, processor = ACTStudent(config).eval(), ACTPointCloudProcessor(num_points=128)
    student.save_pretrained(tmp_path / "act-mini")
    processor.save_pretrained(tmp_path / "act-mini")
    clouds = generate_shapes(40, seed=0, num_points=300)
    split = np.where(np.arange(40) < 30, "train", "test")
    np.savez(tmp_path / "shapes.npz", points=clouds["points"], labels=clouds["label"] % 3, split=split)
    output = tmp_path / "scores.jsonl"
    flags = [
        "--quick",
        "--data",
        tmp_path,
        "--sets",
        "shapes",
        "--students",
        tmp_path / "act-mini",
        "--output",
        output,
    ]
    printed = run_command("benchmarks/shipped.py", *flags).stdout
    assert "| whole |" in printed
    records = [json.loads(line) for line in output.read_text().splitlines()[1:]]
    assert [record["row"] for record in records] == ["act-mini", "act-mini, untrained", "shape statistics"]
    assert all(set(record["accuracies"]) == {"whole", "256 points"} for record in records)
