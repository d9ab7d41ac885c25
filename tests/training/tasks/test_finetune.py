"""finetune.py through its command line: protocols, seeds, what is chosen by what, what is refused; a leak."""

import json
import re

import numpy as np
import pytest
import torch
from act_training.data.point_sets import open_point_set
from act_training.run.run_data import hold_out_by_class
from act_training.synthetic.everyday_shapes import CLASS_NAMES, generate_shapes
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor

from modeling_act import ACTPointCloudProcessor, ACTStudentForPointCloudClassification
from training_runs import digest, start

FAST = ("--max_train_steps", 6, "--augmentation", "--ema_decay", 0.5)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def accuracy_of(model, processor, inputs):
    archive = np.load(inputs / "parts.npz")
    test = archive["split"] == "test"
    logits = model(**processor(archive["points"][test])).logits
    return (logits.argmax(1).numpy() == archive["labels"][test]).mean()


def test_a_folder_holds_all_that_is_needed_to_use_it(inputs):
    folder = inputs / "classifier"
    model = ACTStudentForPointCloudClassification.from_pretrained(folder).eval()
    processor = ACTPointCloudProcessor.from_pretrained(folder)
    assert model.config.id2label == {0: "0", 1: "1", 2: "2"}
    assert (processor.num_points, processor.normalize, processor.point_sampling) == (128, True, "farthest")
    assert type(AutoFeatureExtractor.from_pretrained(folder)) is ACTPointCloudProcessor
    record = metrics_of(folder)
    assert record["test"]["accuracy"] == pytest.approx(accuracy_of(model, processor, inputs))
    assert record["metrics"].keys() == record["test"].keys() == {"loss", "accuracy", "mean_class_accuracy"}
    report = (folder / "report.html").read_text()
    assert "confusion_matrix" in report and "classes of the test split" in report
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["confusion_matrix.png", "features.png"]


def test_the_weights_are_those_that_did_best_on_rows_held_out_of_train(inputs):
    folder = inputs / "classifier"
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    validated = [r for r in records if r["step"] and "validation/accuracy" in r]
    found = {r["step"]: (r["validation/accuracy"], -r["validation/loss"]) for r in validated}
    record = metrics_of(folder)
    best = record["best"]
    assert (best["accuracy"], -best["loss"]) == max(found.values()) and best["step"] == max(found, key=found.get)
    assert record["measured_at"] == best["step"]
    assert record["metrics"] == {name: value for name, value in best.items() if name != "step"}
    assert not any("test" in name for record in records for name in record)
    kept, left = (load_file(folder / name) for name in ("best/model.safetensors", "model.safetensors"))
    assert all(torch.equal(kept[name], left[name]) for name in left)


@pytest.mark.parametrize("protocol", ["linear", "mlp3", "bitfit", "full"])
def test_a_protocol_trains_what_it_says(inputs, tmp_path, protocol):
    flags = ("--student", inputs / "student", "--model", "{}", "--protocol", protocol, "--final_weights", "last")
    text = start(inputs, "finetune", tmp_path / "run", *flags, *FAST).finish()
    before, after = load_file(inputs / "student" / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    moved = {name for name in after if name in before and not torch.equal(before[name], after[name])}
    parameters = {name for name in moved if "running" not in name and "num_batches" not in name}
    if protocol in ("linear", "mlp3"):
        assert not moved  # batch statistics neither
        assert "features: " in text  # computed once
    elif protocol == "bitfit":
        assert parameters and all(name.endswith("bias") for name in parameters)
    else:
        assert {name.rpartition(".")[2] for name in parameters} >= {"weight", "bias", "cls_token", "cls_position"}
    assert sum(name.startswith("classifier.") for name in after) == (2 if protocol == "linear" else 16)


def test_known_features_teach_what_encoding_each_time_does(inputs, tmp_path):
    flags = ("--student", inputs / "student", "--model", "{}", "--protocol", "linear", *FAST)
    start(inputs, "finetune", tmp_path / "once", *flags).finish()
    # Turned by an augmentation that is the identity, so nothing may be remembered.
    each_time = (*flags, "--augmentation", "rotate_y", "--samplings", "1")
    text = start(inputs, "finetune", tmp_path / "turned", *each_time).finish()
    assert "features: " not in text
    once, turned = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "turned"))
    assert not torch.equal(once["classifier.layers.0.weight"], turned["classifier.layers.0.weight"])


def test_several_seeds_are_summed_up_and_resumed(inputs, tmp_path):
    output = tmp_path / "seeds"
    start(inputs, "finetune", output, "--seeds", 3, 5, *FAST).finish()
    alone = start(inputs, "finetune", tmp_path / "alone", "--seed", 5, *FAST)
    alone.finish()
    runs = [metrics_of(output / f"seed-{seed}")["test"] for seed in (3, 5)]
    assert runs[1] == metrics_of(tmp_path / "alone")["test"] and runs[0] != runs[1]
    summary = metrics_of(output)
    values = [run["accuracy"] for run in runs]
    assert summary["seeds"] == [3, 5] and summary["metrics"]["accuracy"]["values"] == values
    assert summary["metrics"]["accuracy"]["std"] == pytest.approx(np.std(values, ddof=1))
    (output / "seed-5" / "model.safetensors").unlink()
    start(inputs, "finetune", output, "--seeds", 3, 5, 7, *FAST, "--resume_from_checkpoint", "latest").finish()
    assert [metrics_of(output / f"seed-{seed}")["test"] for seed in (3, 5)] == runs
    assert len(metrics_of(output)["metrics"]["accuracy"]["values"]) == 3


def test_two_processes_judge_every_row_once(inputs, tmp_path):
    start(inputs, "finetune", tmp_path / "two", "--seeds", 0, 1, *FAST, ranks=2).finish()
    for seed in (0, 1):
        folder = tmp_path / "two" / f"seed-{seed}"
        model = ACTStudentForPointCloudClassification.from_pretrained(folder).eval()
        accuracy = accuracy_of(model, ACTPointCloudProcessor.from_pretrained(folder), inputs)
        assert metrics_of(folder)["test"]["accuracy"] == pytest.approx(accuracy)
    assert len(metrics_of(tmp_path / "two")["metrics"]["loss"]["values"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--test_split", "train"), "--train_split and --test_split both name train: data to test on must not be"),
        (("--train_split", "train+test"), "--train_split and --test_split both name test"),
        (("--validation_split", "test"), "--validation_split and --test_split both name test"),
        (("--validation_split", "train"), "--train_split and --validation_split both name train"),
        (("--validation_split", "", "--validation_share", "0.05"), "--validation_share must be at least 0.1"),
        (("--validation_share", "0.05"), "--validation_share must be at least 0.1 to choose by, got 0.05"),
        (("--protocol", "linaer"), "argument --protocol: invalid choice: 'linaer'"),
        (("--student", "nowhere"), "--student: nowhere: there is no such folder, nor is it ORGANIZATION/NAME"),
        (("--student", "act.pth"), "--student act.pth: convert it first, with python -m"),
        (("--student", "{inputs}/teacher"), "is no complete ACTStudent|act_teacher"),
        (("--student", "{inputs}/student", "--model", "{{hidden_size: 32}}"), "hidden_size of .* is 16, got 32"),
        (("--model", "{{head: linear}}"), "--model: head follows from the set and the other flags"),
        (("--seeds", "1", "1"), r"--seeds must be different whole numbers from 0 up, got \[1, 1\]"),
        (("--test_split", "other"), "has no split 'other'; it has test, train; --test_split= runs without a test"),
        (("--dataset_name", "{inputs}/unlabelled.npz"), "has no column label to learn; its columns"),
        (("--dataset_name", "{inputs}/negative.npz"), "1 bad rows; .*label -1 where 0 to 2 were expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(inputs, tmp_path, flags, message):
    archive = dict(np.load(inputs / "parts.npz"))
    np.savez(inputs / "unlabelled.npz", points=archive["points"], split=archive["split"])
    labels = archive["labels"].copy()
    labels[7] = -1
    np.savez(inputs / "negative.npz", points=archive["points"], labels=labels, split=archive["split"])
    flags = [flag.format(inputs=inputs) for flag in flags]
    line = start(inputs, "finetune", tmp_path / "run", *flags).fail()
    assert re.search(message, line), line


@pytest.mark.parametrize("kind", ["last", "best", "ema"])
def test_figures_are_those_of_the_weights_that_are_saved(inputs, tmp_path, kind):
    """Measured here from the folder alone; and without a test split, validation gets table and pictures."""
    output, seeds = tmp_path / "run", (0, 1)
    flags = (*FAST, "--validation_epochs", 0.25, "--test_split", "", "--final_weights", kind, "--learning_rate", 0.01)
    text = start(inputs, "finetune", output, "--seeds", *seeds, *flags).finish()
    losses = []
    for seed in seeds:
        folder = output / f"seed-{seed}"
        model = ACTStudentForPointCloudClassification.from_pretrained(folder).eval()
        point_set = open_point_set(str(inputs / "parts.npz"), "train")
        held_out = point_set.select(hold_out_by_class(point_set, 0.12, seed)[1])
        clouds = held_out.read(range(len(held_out)))["points"][0].reshape(len(held_out), -1, 3)
        with torch.no_grad():
            logits = model(**ACTPointCloudProcessor.from_pretrained(folder)(clouds)).logits
        labels = torch.from_numpy(held_out.labels())
        record = metrics_of(folder)
        assert record["split"] == "12% of train" and record["test"] is None
        assert record["metrics"]["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())
        assert record["metrics"]["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        assert record["measured_at"] == (record["best"]["step"] if kind == "best" else 6)
        report = (folder / "report.html").read_text()
        assert "classes of validation" in report and "confusion_matrix" in report
        losses.append(record["metrics"]["loss"])
    summary = metrics_of(output)
    assert summary["metrics"]["loss"]["values"] == losses and summary["split"] == "12% of train"
    assert "12% of train: loss " in text


def test_a_run_goes_on_in_another_folder_with_its_best_weights(inputs, tmp_path):
    checkpoint = inputs / "classifier" / "checkpoints" / "step-00000024"
    start(inputs, "finetune", tmp_path / "other", "--resume_from_checkpoint", checkpoint).finish()
    assert digest(tmp_path / "other") == digest(inputs / "classifier")


def test_a_class_of_one_row_is_not_judged_and_said_so(inputs, tmp_path):
    archive = dict(np.load(inputs / "parts.npz"))
    kept = archive["labels"] != 2
    kept[(~kept & (archive["split"] == "train")).nonzero()[0][0]] = True
    np.savez(tmp_path / "lonely.npz", **{name: archive[name][kept] for name in ("points", "labels", "split")})
    flags = ("--dataset_name", tmp_path / "lonely.npz", "--test_split", "", *FAST)
    assert "warning: validation has no row of 2: " in start(inputs, "finetune", tmp_path / "run", *flags).finish()


def test_labels_that_are_words_and_a_last_batch_of_one(inputs, tmp_path):
    """Thirty-three training rows, of which two batches measure statistics; a category of words that nobody needs."""
    archive = np.load(inputs / "parts.npz")
    names = np.array(["ant", "bee", "cow"])[archive["labels"]]
    splits = {"train": np.arange(39), "test": np.arange(39, 51)}
    rows = {
        split: Dataset.from_dict(
            {
                "points": archive["points"][part].tolist(),
                "label": names[part].tolist(),
                "category": names[part].tolist(),
            }
        )
        for split, part in splits.items()
    }
    DatasetDict(rows).save_to_disk(str(tmp_path / "words"))
    flags = ("--dataset_name", tmp_path / "words", "--validation_share", 0.16, *FAST)
    text = start(inputs, "finetune", tmp_path / "run", *flags).finish()
    assert "validation has no row" not in text and "Writing model shards" not in text
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["ant", "bee", "cow"]


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(inputs, tmp_path):
    """A leak of test rows into training, or of their labels into the choice of weights, would show as accuracy."""
    shapes = generate_shapes(560, 256)
    split = np.where(np.arange(560) % 4 == 3, "test", "train")
    labels = shapes["label"].copy()
    train = split == "train"
    labels[train] = np.random.default_rng(0).permutation(labels[train])
    accuracy = {}
    for name, taught in (("true", shapes["label"]), ("shuffled", labels)):
        np.savez(tmp_path / f"{name}.npz", points=shapes["points"], labels=taught, split=split)
        flags = ("--dataset_name", tmp_path / f"{name}.npz", "--max_train_steps", 600, "--model", "{}")
        flags += ("--student", inputs / "student", "--gradient_accumulation_steps", 1, "--learning_rate", 3e-3)
        start(inputs, "finetune", tmp_path / name, *flags, "--per_device_train_batch_size", 16).finish()
        accuracy[name] = metrics_of(tmp_path / name)["test"]["accuracy"]
    chance, rows = 1 / len(CLASS_NAMES), (~train).sum()
    deviation = np.sqrt(chance * (1 - chance) / rows)
    assert accuracy["shuffled"] < chance + 4 * deviation
    assert accuracy["true"] > chance + 8 * deviation
