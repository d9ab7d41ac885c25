"""pretraining.py: its scores on hand-made features, and a quick run of a row of each kind through the command line."""

import json

import numpy as np
import pytest
import yaml
from act_training.synthetic.everyday_shapes import generate_shapes
from transformers import AutoConfig, AutoModel

import plots
import pretraining
from forked import run_command

LABELS = np.repeat(np.arange(6), 10)


def features(noise: float, seed: int = 0):
    """Rows of six classes around six directions."""
    return np.eye(6)[LABELS] + noise * np.random.default_rng(seed).standard_normal((60, 6))


def test_scores_tell_classes_from_noise():
    clear = pretraining.score_features(features(0.01), features(0.01, 1), LABELS, LABELS, 0, poolings=None)
    assert {name: round(value, 6) for name, value in clear.items()} == dict.fromkeys(
        ("nearest", "probe", "svm", "retrieval", "5_way", "10_way"), 1.0
    )
    noise = pretraining.score_features(features(100), features(100, 1), LABELS, LABELS, 0, poolings=None)
    assert all(value < 0.45 for value in noise.values())
    assert noise["5_way"] == pytest.approx(1 / 5, abs=0.12) and noise["10_way"] == pytest.approx(1 / 6, abs=0.1)


def test_each_pooling_is_scored_by_its_own_parts():
    random = np.random.default_rng(0)
    known, new = (np.hstack([features(0.01, seed), random.standard_normal((60, 12))]) for seed in (0, 1))
    scores = pretraining.score_features(known, new, LABELS, LABELS, 0)["poolings"]
    assert scores["cls"] == 1 and scores["mean_max"] < 0.5


def test_the_table_averages_sets_before_seeds(capsys):
    records = [
        {"row": "views", "seed": seed, "set": name, "steps": 10, "nearest": value}
        for (seed, name), value in {(0, "a"): 0.2, (0, "b"): 0.4, (1, "a"): 0.4, (1, "b"): 0.6}.items()
    ]
    pretraining.summarize(records)
    assert "views, 320 clouds" in (printed := capsys.readouterr().out) and "40.0% +- 10.0%" in printed


@pytest.mark.slow
def test_a_quick_run_continues(tmp_path):
    image_transformer = tmp_path / "vit"
    fields = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    AutoModel.from_config(AutoConfig.for_model("dinov2", **fields, image_size=32, patch_size=8)).save_pretrained(
        image_transformer
    )
    clouds = generate_shapes(96, seed=0, num_points=600)
    points, labels = clouds["points"], clouds["label"]
    split = np.where(np.arange(96) < 80, "train", "validation")
    np.savez(tmp_path / "pretrain.npz", points=points, split=split)
    split = np.where(np.arange(96) < 64, "train", "test")
    np.savez(tmp_path / "shapes.npz", points=points, labels=labels, split=split)
    rows = ["views", "views, random weights", "coordinates", "self"]
    command = [
        "benchmarks/pretraining.py",
        "--quick",
        "--data",
        tmp_path,
        "--work",
        tmp_path / "work",
        "--sets",
        "shapes",
    ]
    command += ["--image_transformer", image_transformer, "--rows", *rows, "--finetune", 2, "--teacher_itself"]
    command += ["--output", tmp_path / "results.jsonl"]
    printed = run_command(*command).stdout
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()[1:]]
    assert [record["row"] for record in records] == ["untrained", "shape statistics", *rows, "the teacher itself"]
    assert all(0 <= record["finetuned_2"] <= 1 for record in records if record["row"] in rows)
    assert run_command(*command, "--seeds", 1, "--sets", "shapes", "--rows", "coordinates").returncode == 0
    students = [tmp_path / "work" / "quick" / f"coordinates_2_{seed}" for seed in (0, 1)]
    assert [yaml.safe_load((folder / "recipe.yaml").read_text())["seed"] for folder in students] == [0, 1]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    assert run_command(*command).stdout == printed
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")} == times
    assert plots.plot_pretraining(records, tmp_path) == "pretraining.png"
