"""evaluate.py against metrics computed here row by row, on a tiny classifier, and on students of known features."""

import json
import shutil

import evaluate
import numpy as np
import pytest
import torch
from act_training.data.batches import Sampling, augment, sample_points, validation_batches
from act_training.data.point_sets import PointSet, open_point_set
from act_training.data.schema import build_dataset
from act_training.measure.frozen_features import embed, fit_and_predict
from act_training.measure.metrics import retrieval_map
from act_training.measure.robustness import CORRUPTIONS
from act_training.run.training_state import calibrate_batch_norm
from datasets import DatasetDict

from forked import run_command
from modeling_act import (
    ACTPointCloudProcessor,
    ACTStudent,
    ACTStudentForPointCloudClassification,
    ACTTeacher,
)
from modeling_act.errors import InputError
from small_models import small_student_config, small_teacher_config

NAMES = ["rod", "disk", "ball"]
SAMPLING = Sampling(96, method="farthest")


def make_clouds(count, seed):
    """Normal clouds, long, flat or round, of 100 to 102 points."""
    random, labels = np.random.default_rng(seed), np.arange(count) % 3
    scales = np.array([[3.0, 1, 1], [3, 3, 1], [1, 1, 1]])
    clouds = [random.normal(size=(100 + row % 3, 3)) * scales[label] for row, label in enumerate(labels)]
    return {"points": clouds, "label": labels}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set with names, one without, and a classifier of 96 points far from one another, trained for seconds."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("evaluate")
    splits = {split: make_clouds(count, count) for split, count in (("train", 60), ("test", 31))}
    for name, names in (("set", NAMES), ("nameless", None)):
        built = {split: build_dataset(columns, class_names=names) for split, columns in splits.items()}
        DatasetDict(built).save_to_disk(folder / name)
    config = small_student_config(
        num_labels=3, id2label=dict(enumerate(NAMES)), classifier_dropout=0.0, drop_path_rate=0.0
    )
    model = ACTStudentForPointCloudClassification(config).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 1.0  # statistics of the last batch, which holds all rows
    train = PointSet(build_dataset(splits["train"]), "train")
    batch = next(validation_batches(train, 60, SAMPLING, torch.device("cpu")))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(25):
        model(batch["points"], labels=batch["label"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "model")
    ACTPointCloudProcessor(96, "farthest", True).save_pretrained(folder / "model")
    return folder


def run(folder, output, *flags):
    subject = () if "--model" in flags or "--student" in flags else ("--model", folder / "model")
    dataset = () if "--dataset_name" in flags else ("--dataset_name", folder / "set")
    words = [*subject, *dataset, "--output_dir", output, "--batch_size", 8, "--cpu", *flags]
    evaluate.main([str(word) for word in words])
    return json.loads((output / "metrics.json").read_text())


def fail(folder, output, *flags):
    with pytest.raises(InputError) as caught:
        run(folder, output, *flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


@torch.no_grad()
def logits_of(folder, view):
    """Logits of each row of the test split alone, by a `view` of its batch."""
    model = ACTStudentForPointCloudClassification.from_pretrained(folder / "model").eval()
    test = make_clouds(31, 31)
    logits = []
    for row, cloud in enumerate(test["points"]):
        batch = {"points": torch.tensor(cloud[None], dtype=torch.float32), "lengths": torch.tensor([len(cloud)])}
        logits.append(model(view(batch, row)).logits[0])
    return torch.stack(logits), test["label"]


def test_a_classifier_is_measured_on_every_row(folder, tmp_path):
    record = run(folder, tmp_path / "out")

    def plain(batch, row):
        return sample_points(batch | {"keys": torch.tensor([[-1, row]])}, SAMPLING)["points"]

    logits, labels = logits_of(folder, plain)
    predicted = logits.argmax(1).numpy()
    assert 0.5 < (predicted == labels).mean() < 1  # so that there is something to get wrong
    assert record["metrics"]["accuracy"] == pytest.approx((predicted == labels).mean())
    recalls = [(predicted == labels)[labels == label].mean() for label in range(3)]
    assert record["metrics"]["mean_class_accuracy"] == pytest.approx(np.mean(recalls))
    assert [row["class"] for row in record["tables"]["classes"]] == NAMES
    assert [row["recall"] for row in record["tables"]["classes"]] == pytest.approx(recalls)
    assert np.sum(record["confusions"]["confusion"]) == record["rows"] == 31
    assert record["points"] == {
        "num_points": 96,
        "seed": 0,
        "normalize": True,
        "method": "farthest",
        "teacher_points": None,
    }
    assert record["options"]["split"] == "test" and record["versions"]["torch"]

    for name in ("confusion", "features"):
        assert (tmp_path / "out" / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.html").read_text()
    row = int((predicted != labels).nonzero()[0][0])
    assert f"row {row}: {NAMES[labels[row]]}, taken for {NAMES[predicted[row]]}" in page


def test_votes_robustness_and_latency_stand_beside_the_plain_metrics(folder, tmp_path):
    def vote(epoch):
        def view(batch, row):
            row_ids = torch.tensor([[epoch, row]])
            points = sample_points(batch | {"keys": row_ids}, SAMPLING, training=True)["points"]
            return augment(points, row_ids, 0, ["scale_shift"])

        return logits_of(folder, view)

    (first, labels), (second, _), (third, _) = vote(0), vote(1), vote(2)
    assert not torch.equal(first, second)
    plain = run(folder, tmp_path / "plain")["metrics"]
    record = run(folder, tmp_path, "--votes", 3, "--robustness", "--latency")
    assert plain.items() <= record["metrics"].items()
    predicted = (first + second + third).argmax(1).numpy()
    assert record["metrics"]["accuracy_3_votes"] == pytest.approx((predicted == labels).mean())

    accuracies = {(row["corruption"], row["strength"]): row["accuracy"] for row in record["tables"]["robustness"]}
    expected = [(name, strength) for name, strengths in CORRUPTIONS.items() for strength in strengths]
    assert list(accuracies) == [("none", 0), *expected]
    assert accuracies["none", 0] == plain["accuracy"] and len(set(accuracies.values())) > 3
    assert accuracies["jitter", 0.01] >= plain["accuracy"] - 0.2
    assert accuracies["dropout", 0.75] < plain["accuracy"] + 0.2
    assert "occlusion 0.5" in (tmp_path / "report.html").read_text()
    for row, batch_size in zip(record["tables"]["latency"], (1, 8), strict=True):
        assert row["batch_size"] == batch_size and 0 < row["tenth"] <= row["milliseconds"] <= row["nine_tenths"]
        assert row["clouds_per_second"] == pytest.approx(1000 * batch_size / row["milliseconds"])


def test_flags_override_the_folder_and_its_class_names_serve_a_set_without(folder, tmp_path):
    flags = ("--num_points", 50, "--normalize", "false", "--point_sampling", "random", "--seed", 3)
    record = run(folder, tmp_path, "--dataset_name", folder / "nameless", *flags)
    assert record["points"] == {
        "num_points": 50,
        "seed": 3,
        "normalize": False,
        "method": "random",
        "teacher_points": None,
    }
    assert record["classes"] == NAMES


def test_other_classes_than_the_models_are_refused(folder, tmp_path):
    columns = make_clouds(9, 0)
    for name, names in (("renamed", ["rod", "disk", "cube"]), ("fewer", NAMES[:2])):
        labels = np.minimum(columns["label"], len(names) - 1)
        built = build_dataset(columns | {"label": labels}, class_names=names)
        DatasetDict({"test": built}).save_to_disk(tmp_path / name)
        message = fail(folder, tmp_path / "out", "--dataset_name", tmp_path / name)
        assert f"{', '.join(names)}, those of --model rod, disk, ball" in message
    columns["label"] = np.array([0, 1, 2, 0, 3, 0, 0, -1, 0])
    DatasetDict({"test": build_dataset(columns)}).save_to_disk(tmp_path / "far")
    message = fail(folder, tmp_path / "out", "--dataset_name", tmp_path / "far")
    assert message.startswith("2 bad rows") and "row 4 of" in message
    assert "label 3 where 0 to 2 were expected" in message
    record = run(folder, tmp_path / "out", "--dataset_name", tmp_path / "far", "--skip_bad")
    assert record["rows"] == 7 and len((tmp_path / "out" / "skipped_test.txt").read_text().splitlines()) == 2


@pytest.fixture(scope="module")
def students(folder):
    """Two students of one architecture with different weights: that of the classifier, and an untrained one."""
    torch.manual_seed(1)
    config = ACTStudent.from_pretrained(folder / "model").config
    ACTStudent(config).save_pretrained(folder / "other")
    ACTPointCloudProcessor(96, "farthest", True).save_pretrained(folder / "other")
    return folder / "model", folder / "other"


def measure_alone(folder, student, layer=None, pooling=None):
    """Expected metrics and predictions of a student's features of the set."""
    sets = [open_point_set(str(folder / "set"), split) for split in ("train", "test")]
    fit_features, features = (embed(student, point_set, SAMPLING, 31, layer, pooling) for point_set in sets)
    metrics, predictions, labels = {}, {}, sets[1].labels()
    for task in ("probe", "svm", "knn"):
        predictions[task], value = fit_and_predict(task, fit_features, sets[0].labels(), features, 0)
        metrics[f"{task}_accuracy"] = (predictions[task] == labels).mean()
        metrics["knn_neighbors" if task == "knn" else f"{task}_penalty"] = value
    scaled = (features - fit_features.mean(0)) / fit_features.std(0)
    return metrics | {"retrieval_map": retrieval_map(scaled, labels)}, predictions, labels


def test_a_student_is_measured_by_each_task(folder, students, tmp_path):
    record = run(folder, tmp_path, "--student", students[0], "--layer", 2, "--pooling", "mean")
    metrics, predictions, labels = measure_alone(folder, ACTStudent.from_pretrained(students[0]).eval(), 2, "mean")
    assert {name: record["metrics"][name] for name in metrics} == pytest.approx(metrics, abs=1e-6)
    for task, predicted in predictions.items():
        assert np.trace(record["confusions"][task]) == (predicted == labels).sum()
        assert len(record["tables"][f"classes by {task}"]) == 3
        assert (tmp_path / "pictures" / f"{task}.png").exists()
    assert (record["layer"], record["pooling"], record["fitted"], record["rows"]) == (2, "mean", 60, 31)

    record = run(folder, tmp_path / "one", "--student", students[0], "--tasks", "retrieval")
    assert record["metrics"].keys() == {"retrieval_map"}
    assert (record["layer"], record["pooling"]) == ("last", "cls_max")


def test_several_students_are_measured_as_each_alone(folder, students, tmp_path, capsys):
    record = run(folder, tmp_path, "--student", *students, "--untrained", "true", "--tasks", "probe", "retrieval")
    torch.manual_seed(0)
    untrained = ACTStudent(ACTStudent.from_pretrained(students[0]).config)
    batches = validation_batches(open_point_set(str(folder / "set"), "train"), 32, SAMPLING, torch.device("cpu"))
    calibrate_batch_norm(untrained, lambda batch: untrained(batch["points"]), batches)
    networks = [*(ACTStudent.from_pretrained(path).eval() for path in students), untrained]
    *results, neighbor = record["results"]
    assert [row["student"] for row in results] == ["model", "other", "untrained"]
    for row, network in zip(results, networks, strict=True):
        metrics, _, _ = measure_alone(folder, network)
        assert row["probe"] == pytest.approx(metrics["probe_accuracy"])
        assert row["retrieval"] == pytest.approx(metrics["retrieval_map"], abs=1e-6)
    assert len({row["retrieval"] for row in results}) == 3  # the networks differ, and so must their features
    assert record["metrics"]["probe_accuracy"] == results[0]["probe"]
    assert neighbor.keys() == {"student", "probe"} and neighbor["student"] == "1-NN on shape statistics"
    assert neighbor["probe"] > 0.8  # rods, disks and balls differ in their extents
    printed = capsys.readouterr().out.splitlines()
    assert [line[:26].strip() for line in printed[:4]] == [row["student"] for row in record["results"]]

    record = run(folder, tmp_path / "few", "--student", students[0], "--shapes_per_class", 3, "--tasks", "knn")
    assert record["fitted"] == 9


def test_what_cannot_be_evaluated_is_one_line(folder, tmp_path):
    ACTStudent(small_student_config()).save_pretrained(tmp_path / "student")
    ACTTeacher(small_teacher_config()).save_pretrained(tmp_path / "teacher")
    (tmp_path / "broken").mkdir()
    for flags, expected in (
        (
            ("--model", tmp_path / "student"),
            "student holds ACTStudent, where ACTStudentForPointCloudClassification is needed",
        ),
        (
            ("--student", folder / "model", tmp_path / "teacher"),
            "teacher holds ACTTeacher, where ACTStudent is needed",
        ),
        (("--model", tmp_path / "nowhere"), "nowhere: there is no such folder, nor is it ORGANIZATION/NAME"),
        (("--model", tmp_path / "broken"), "broken: no model can be read from there"),
        (("--num_points", 15), "15 points are fewer than the 16 that the groups need"),
        (("--num_points", 60, "--robustness"), "60 points, of which --robustness leaves 15, are fewer than the 16"),
        (("--num_points", 0), "--num_points must be positive, got 0"),
        (("--split", "tests"), "has no split 'tests'; it has train, test"),
        (("--layer", 2), "--layer needs --student"),
        (("--student", folder / "model", "--votes", 2), "--votes needs --model"),
        (("--student", folder / "model", "--split", "train"), "--fit_split and --split both name train"),
        (("--student", folder / "model", "--layer", 4), "`layer` must lie between 1 and 3, got 4"),
        (("--student", folder / "model", "--pooling", "sum"), "`pooling` must join any of cls, max, mean"),
    ):
        assert expected in fail(folder, tmp_path / "out", *flags)
    message = fail(folder, folder / "model")
    assert "holds a model and its metrics.json; name another folder" in message


def test_points_are_the_usual_ones_where_a_folder_does_not_say(folder, tmp_path, capsys):
    ACTStudent(small_student_config()).save_pretrained(tmp_path / "student")
    record = run(folder, tmp_path / "out", "--student", tmp_path / "student", "--tasks", "knn")
    assert record["points"] == {
        "num_points": 1024,
        "seed": 0,
        "normalize": True,
        "method": "random",
        "teacher_points": None,
    }
    assert "has no preprocessor_config.json: sampling 1024 points" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line(folder, tmp_path):
    flags = ("--model", folder / "model", "--dataset_name", folder / "set", "--output_dir", tmp_path, "--cpu")
    printed = run_command("training/evaluate.py", *flags).stdout.splitlines()
    assert json.loads(printed[0]) == json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert printed[1] == f"{tmp_path}: metrics.json, pictures, report.html"
    failed = run_command("training/evaluate.py", *flags, "--vote", 3, returncode=1)
    assert (
        failed.stderr.splitlines()[-1] == "evaluate.py: error: unrecognized arguments: --vote; did you mean --votes?"
    )


@torch.no_grad()
def test_clouds_that_were_normalized_before_are_judged_as_in_training(folder, tmp_path, monkeypatch):
    """Its processor says "cloud": training left the points it took where they lay in clouds that fit the sphere."""
    shutil.copytree(folder / "model", tmp_path / "model")
    ACTPointCloudProcessor(64, "farthest", "cloud").save_pretrained(tmp_path / "model")
    seen, forward = [], ACTStudentForPointCloudClassification.forward

    def watched(self, points):
        seen.append(points)
        return forward(self, points)

    monkeypatch.setattr(ACTStudentForPointCloudClassification, "forward", watched)
    run(folder, tmp_path / "out", "--model", tmp_path / "model")
    whole = [torch.tensor(cloud - cloud.mean(0), dtype=torch.float32) for cloud in make_clouds(31, 31)["points"]]
    for row, cloud in enumerate(whole):
        cloud = cloud / cloud.norm(dim=1).max()
        batch = {"points": cloud[None], "lengths": torch.tensor([len(cloud)])}
        trained = sample_points(batch, Sampling(64, 0, False, "farthest"))["points"]
        assert torch.allclose(torch.cat(seen)[row], trained[0], atol=1e-5)
