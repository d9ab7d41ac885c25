"""compare.py on a tiny student, and how autoencode.py begins with codes that are all alike."""

import json

import numpy as np
import torch
from act_training.synthetic.everyday_shapes import generate_shapes
from autoencode import calibrate_logits
from compare import nearest_neighbor_accuracy

from modeling_act import ACTTeacher
from small_models import small_teacher_config


def test_every_student_is_probed(inputs, tmp_path, run_python):
    shapes = generate_shapes(56, 160)
    names = np.array(["train"] * 42 + ["test"] * 14)
    np.savez(tmp_path / "shapes.npz", points=shapes["points"], labels=shapes["label"], split=names)
    flags = ("--dataset_name", tmp_path / "shapes.npz", "--num_points", "128")
    output = ("--output", tmp_path / "result.json")
    run_python("training/compare.py", "--students", inputs / "student", *flags, *output)
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["fitted"], record["scored"], record["classes"]) == (42, 14, 14)
    untrained, student, neighbors = record["results"]
    assert [untrained["student"], student["student"]] == ["untrained", "student"]
    assert all(0 <= row["probe"] <= 1 for row in (untrained, student))
    assert neighbors["student"] == "1-NN on shape statistics" and 0 <= neighbors["probe"] <= 1
    failed = run_python("training/compare.py", "--students", tmp_path, *flags, returncode=1)
    assert failed.stderr.splitlines()[-1].startswith(f"compare.py: error: --students {tmp_path}: ")


def test_neighbors_are_measured_in_deviations_of_the_known():
    known, new = np.array([[0.0, 0.0], [1.0, 100.0]]), np.array([[0.9, 40.0]])
    assert nearest_neighbor_accuracy(known, np.array([0, 1]), new, np.array([1])) == 1.0


def test_calibrated_logits_begin_alike():
    teacher = ACTTeacher(small_teacher_config()).train()
    clouds = torch.rand(96, 64, 3) * 2 - 1
    calibrate_logits(teacher, clouds, 8.0)
    seen = []
    teacher.code_network.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        for points in clouds.split(64):
            teacher(points)
    logits = torch.cat(seen).flatten(2).transpose(1, 2).flatten(0, 1)  # (all groups, codes), before the activation
    torch.testing.assert_close(logits.mean(0), torch.zeros(logits.shape[1]), rtol=0, atol=0.5)
    torch.testing.assert_close(logits.std(0), torch.full((logits.shape[1],), 8.0), rtol=0.1, atol=0)
