"""few_shot.py through its command line: folds that are what they say, published folds, resuming, what is refused."""

import json
import re

import few_shot
import numpy as np
import pytest
from act_training.data.point_sets import open_point_set
from act_training.data.schema import build_dataset
from datasets import DatasetDict

from training_runs import STUDENT, start

FLAGS = ("--ways", 2, "--shots", 3, 4, "--folds", 3, "--queries", 2, "--num_train_epochs", 4, "--learning_rate", 3e-3)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Five classes that a sign of a coordinate's spread tells apart, so that a few clouds teach something."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % 5
    clouds = random.normal(size=(60, 64, 3)) * np.eye(5, 3)[labels][:, None] + 0.1 * random.normal(size=(60, 64, 3))
    path = tmp_path_factory.mktemp("shapes") / "shapes.npz"
    split = np.where(np.arange(60) // 5 % 3, "train", "test")
    np.savez(path, points=clouds.astype(np.float32), labels=labels, split=split, class_names=np.array(list("abcde")))
    return path


def recipe(folder, shapes):
    sizes = {name: value for name, value in STUDENT.items() if name not in ("num_groups", "group_size")}
    sizes |= {"num_groups": 8, "group_size": 8}
    text = {"model": sizes, "dataset_name": str(shapes), "num_points": 64, "per_device_train_batch_size": 4}
    (folder / "few_shot.yaml").write_text(json.dumps(text))
    return folder


def test_folds_are_seeded_and_their_rows_are_counted(shapes):
    known, queries = open_point_set(str(shapes), "train"), open_point_set(str(shapes), "test")
    options = few_shot.FewShotArguments(dataset_name="", output_dir="", queries=3)
    names = known.names_of("label")
    folds = [few_shot.draw_rows(known, queries, 3, 4, number, options) for number in (0, 1, 0)]
    for drawn, asked, classes in folds:
        assert np.unique(drawn.labels(), return_counts=True)[1].tolist() == [4, 4, 4]
        assert np.unique(asked.labels(), return_counts=True)[1].tolist() == [3, 3, 3]
        assert set(drawn.labels()) == set(asked.labels()) == set(classes) and len(set(drawn.rows)) == 12
    rows = [drawn.rows.tolist() for drawn, _, _ in folds]
    assert rows[0] == rows[2] != rows[1]
    fold = few_shot.make_fold(options, (known, queries, names, ""), 3, 4, 0)
    assert fold.label_of[folds[0][2]].tolist() == [0, 1, 2] and (fold.label_of >= 0).sum() == 3
    assert fold.names == [names[label] for label in folds[0][2]]


def test_every_way_with_every_shot_and_what_is_interrupted_goes_on(shapes, tmp_path):
    inputs, output = recipe(tmp_path, shapes), tmp_path / "run"
    start(inputs, "few_shot", output, *FLAGS).finish()
    record = json.loads((output / "metrics.json").read_text())
    assert record["metrics"].keys() == {"2 way 3 shot", "2 way 4 shot"}
    results = [json.loads((output / f"2way3shot/fold-{i}/result.json").read_text()) for i in range(3)]
    values = [result["metrics"]["accuracy"] for result in results]
    assert record["metrics"]["2 way 3 shot"]["values"] == values
    assert record["metrics"]["2 way 3 shot"]["mean"] == pytest.approx(np.mean(values))
    assert not list(output.rglob("checkpoints"))

    assert "holds folds; pass --resume_from_checkpoint latest" in start(inputs, "few_shot", output, *FLAGS).fail()
    changed = (*FLAGS, "--queries", 3, "--resume_from_checkpoint", "latest")
    assert "belongs to another run: recipe.queries was 2, now 3" in start(inputs, "few_shot", output, *changed).fail()
    (output / "2way4shot/fold-1/result.json").unlink()
    start(inputs, "few_shot", output, *FLAGS, "--resume_from_checkpoint", "latest").finish()
    again = json.loads((output / "metrics.json").read_text())
    assert again["metrics"] == record["metrics"]

    other = dict(np.load(shapes)) | {"points": np.load(shapes)["points"][::-1]}
    np.savez(tmp_path / "other.npz", **other)
    recipe(tmp_path, tmp_path / "other.npz")
    line = start(inputs, "few_shot", output, *FLAGS, "--resume_from_checkpoint", "latest").fail()
    assert "result.json belongs to another run: data was" in line


def test_a_probe_of_published_folds(shapes, tmp_path, inputs):
    archive = np.load(shapes)
    splits = {}
    for fold in range(2):
        for part, rows in (("train", range(0, 8)), ("test", range(8, 20))):
            chosen = np.array([5 * row + label for row in rows for label in (fold, fold + 1)]) % 60
            columns = {"points": archive["points"][chosen], "label": archive["labels"][chosen] - fold}
            splits[f"fold_{fold}_{part}"] = build_dataset(columns, class_names=["first", "second"])
    DatasetDict(splits).save_to_disk(str(tmp_path / "folds"))
    folder = recipe(tmp_path, tmp_path / "folds")
    flags = ("--published_folds", "--ways", 2, "--shots", 8, "--folds", 2, "--protocol", "linear")
    flags += ("--student", inputs / "student", "--model", "{}", "--num_train_epochs", 30, "--learning_rate", 1e-2)
    start(folder, "few_shot", tmp_path / "run", *flags).finish()
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["metrics"]["2 way 8 shot"]["mean"] > 0.75
    line = start(folder, "few_shot", tmp_path / "other", *flags, "--shots", 4).fail()
    assert "holds 2 classes of [8, 8] clouds, not 2 of 4" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--ways", 6), "6 way 3 shot needs 6 classes of 3 clouds in train and 2 in test, got 5"),
        (("--shots", 9), "needs 2 classes of 9 clouds in train and 2 in test, got 0"),
        (("--ways", 1), "--ways must be at least 2"),
        (("--seeds", 1, 2), "takes no --seeds"),
        (("--final_weights", "best"), "needs --final_weights last"),
        (("--published_folds",), "--published_folds are of one way and one shot"),
    ],
)
def test_what_cannot_be_is_one_line(shapes, tmp_path, flags, message):
    line = start(recipe(tmp_path, shapes), "few_shot", tmp_path / "run", *FLAGS, *flags).fail()
    assert re.search(message, line), line


def test_its_defaults_are_the_papers():
    options = few_shot.FewShotArguments(dataset_name="", output_dir="")
    assert (options.ways, options.shots, options.folds, options.queries) == ([5, 10], [10, 20], 10, 20)
    assert (options.num_train_epochs, options.learning_rate, options.weight_decay) == (150, 5e-4, 0.05)
    assert (options.per_device_train_batch_size, options.max_grad_norm) == (32, 10)
