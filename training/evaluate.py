"""Evaluate a finished classifier, or the features of frozen students, on a labelled split.

python training/evaluate.py --model outputs/classifier --dataset_name PREPARED_SET --output_dir outputs/evaluation
    accuracy, classes, confusion; --votes 10 averages ten random views; --robustness; --latency
python training/evaluate.py --student outputs/student --dataset_name PREPARED_SET --output_dir outputs/features
    --tasks svm knn probe: classifiers fitted to --fit_split; retrieval: within --split; --layer 8 --pooling mean
python training/evaluate.py --student outputs/student outputs/twin --untrained true ...
    a row for each, for the same network untrained, and for 1-NN on shape statistics; the first one in detail

Nothing is chosen on --split. Points are sampled as a model's folder says, unless a flag says otherwise.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from act_training.data.batches import validation_batches
from act_training.data.checks import check_point_set
from act_training.data.keyed_random import Sampling
from act_training.data.point_sets import PointSet, open_point_set
from act_training.measure import robustness
from act_training.measure.frozen_features import (
    CLASSIFIERS,
    embed,
    measure_features,
    nearest_shape_accuracy,
    resolve_pooling,
)
from act_training.measure.metrics import class_table, classification_metrics, confusion_matrix
from act_training.report.pictures import save_confusion_matrix, save_feature_map
from act_training.report.run_folder import write_report
from act_training.run.arguments import check_disjoint, parse_arguments
from act_training.run.checkpoints import name_in_errors, write_text
from act_training.run.optimization import calibrate_batch_norm
from act_training.run.process import describe_versions, run_script, warn
from act_training.run.run_data import class_names, report_skipped
from act_training.tasks.transfer import required_points
from tqdm import tqdm

from modeling_act import ACTPointCloudProcessor, ACTStudent, ACTStudentConfig
from modeling_act.errors import InputError
from modeling_act.hub.load_model import load_model

TASKS = (*CLASSIFIERS, "retrieval")
MODEL_FLAGS = ("votes", "robustness", "latency")
STUDENT_FLAGS = ("untrained", "shapes_per_class", "layer", "pooling")


@dataclass
class EvaluateArguments:
    dataset_name: str = field(metadata={"help": "a labelled set, as for the training scripts"})
    output_dir: Path = field(metadata={"help": "folder for metrics.json, pictures and report.html"})
    model: str | None = field(default=None, metadata={"help": "folder or Hub id of a classifier"})
    student: list[str] = field(default_factory=list, metadata={"help": "folders or Hub ids of students"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "configuration of a Hub dataset"})
    split: str = field(default="test", metadata={"help": "split to measure on"})
    skip_bad: bool = field(default=False, metadata={"help": "leave out rows that cannot be read, and list them"})
    num_points: int | None = field(default=None, metadata={"help": "points sampled from each cloud"})
    point_sampling: Literal["random", "farthest"] | None = None
    normalize: bool | None = field(default=None, metadata={"help": "scale each cloud into the unit sphere"})
    batch_size: int = 64
    seed: int = field(default=0, metadata={"help": "of points, views, corruptions, fits and the untrained network"})
    cpu: bool = field(default=False, metadata={"help": "ignore accelerators"})
    votes: int | None = field(default=None, metadata={"help": "views whose logits are averaged"})
    robustness: bool = field(default=False, metadata={"help": ", ".join(robustness.CORRUPTIONS)})
    up_axis: Literal["y", "z"] = field(default="y", metadata={"help": "axis of rotation_up"})
    latency: bool = field(default=False, metadata={"help": "milliseconds from points to logits"})
    fit_split: str = field(default="train", metadata={"help": "split that classifiers are fitted to"})
    shapes_per_class: int | None = field(default=None, metadata={"help": "fit to so many rows of each class"})
    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"choices": TASKS})
    layer: int | None = field(default=None, metadata={"help": "1 to the depth; default: after the final norm"})
    pooling: str | None = field(default=None, metadata={"help": "any of cls, max, mean joined by _"})
    untrained: bool = field(default=False, metadata={"help": "also the network of the first student, untrained"})

    def __post_init__(self):
        if bool(self.model) == bool(self.student):
            raise InputError("name either a --model or at least one --student")
        for name in STUDENT_FLAGS if self.model else MODEL_FLAGS:
            if getattr(self, name) not in (None, False):
                raise InputError(f"--{name} needs --{'student' if self.model else 'model'}")
        for name in ("num_points", "batch_size", "votes", "shapes_per_class"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"--{name} must be positive, got {getattr(self, name)}")
        if self.student:
            check_disjoint({"--fit_split": self.fit_split, "--split": self.split})
        if (self.output_dir / "config.json").exists():
            raise InputError(f"--output_dir {self.output_dir} holds a model and its metrics.json; name another folder")


def load(name: str, kind: str, options: EvaluateArguments) -> tuple[ACTStudent, Sampling]:
    """Load a model, and how its points are sampled, which its folder says unless flags do."""
    model = load_model(name, kind)
    try:
        processor = ACTPointCloudProcessor.from_pretrained(name)
    except OSError:
        processor = ACTPointCloudProcessor()
        warn(f"{name} has no preprocessor_config.json: sampling {processor.num_points} points unless flags say more")
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: preprocessor_config.json: {error}") from error
    num_points, method, normalize = (
        getattr(processor if getattr(options, flag) is None else options, flag)
        for flag in ("num_points", "point_sampling", "normalize")
    )
    max_drop = max(robustness.CORRUPTIONS["dropout"]) if options.robustness else 0
    fewest, required = robustness.num_points_left(num_points, max_drop), required_points(model.config)
    if fewest < required:
        rest = f", of which --robustness leaves {fewest}," if options.robustness else ""
        raise InputError(f"{num_points} points{rest} are fewer than the {required} that the groups need")
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    return model.to(device), Sampling(num_points, options.seed, normalize, method)


def open_split(split: str, options: EvaluateArguments) -> PointSet:
    return open_point_set(options.dataset_name, split, options.dataset_config_name)


def check_rows(
    point_set: PointSet, split: str, min_points: int, num_classes: int, options: EvaluateArguments
) -> PointSet:
    good, problems, _ = check_point_set(point_set, min_points, num_classes, options.skip_bad)
    report_skipped(problems, options.output_dir / f"skipped_{split}.txt")
    return good


def first_of_each_class(point_set: PointSet, count: int) -> PointSet:
    labels = point_set.labels()
    rows = [(labels == label).nonzero()[0][:count] for label in np.unique(labels)]
    return point_set.select(np.sort(np.concatenate(rows)))


def match_class_names(config: ACTStudentConfig, point_set: PointSet) -> list[str]:
    """Return the names of the classes, which must agree if both the model and the set have names."""
    labels = range(config.num_labels)
    own = [config.id2label[label] for label in labels]
    is_unnamed = own in ([f"LABEL_{label}" for label in labels], [str(label) for label in labels])
    names = point_set.names_of("label") or own
    if names != own and not (is_unnamed and len(names) == len(own)):
        wanted = f"those of --model {', '.join(own)}"
        raise InputError(f"the classes of {point_set.source} are {', '.join(names)}, {wanted}")
    return names


def evaluate_model(options: EvaluateArguments) -> tuple[dict, np.ndarray, np.ndarray, list[dict]]:
    """Measure a classifier; return the entries of metrics.json, labels, features, and clouds for the report."""
    model, sampling = load(options.model, "ACTStudentForPointCloudClassification", options)
    point_set = open_split(options.split, options)
    names = match_class_names(model.config, point_set)
    point_set = check_rows(point_set, options.split, required_points(model.config), len(names), options)
    labels, plain = point_set.labels(), robustness.plain_view(sampling)

    def predict(*views) -> np.ndarray:
        return robustness.predict_logits(model, point_set, options.batch_size, views).argmax(1).numpy()

    def draw(row: int, view) -> np.ndarray:
        return view(robustness.read_rows(point_set, range(row, row + 1), torch.device("cpu")))[0].numpy()

    predicted = predict(plain)
    metrics, tables = classification_metrics(labels, predicted), {"classes": class_table(labels, predicted, names)}
    mistakes = {
        f"row {row}: {names[labels[row]]}, taken for {names[predicted[row]]}": draw(row, plain)
        for row in (labels != predicted).nonzero()[0][:4].tolist()
    }
    clouds = [mistakes] if mistakes else []
    if options.votes:
        voted = predict(*robustness.voting_views(sampling, options.votes))
        values = classification_metrics(labels, voted)
        metrics |= {f"{name}_{options.votes}_votes": value for name, value in values.items()}
    if options.robustness:
        tables["robustness"] = robustness.robustness_table(
            lambda view: classification_metrics(labels, predict(view)), sampling, options.up_axis
        )
        views = {"as it is": plain}
        for name, (_, strength, _) in robustness.CORRUPTIONS.items():
            views[f"{name} {strength:g}"] = robustness.corrupted_view(sampling, name, strength, options.up_axis)
        clouds.append({name: draw(0, view) for name, view in views.items()})
    if options.latency:
        rows = range(min(options.batch_size, len(labels)))
        points = plain(robustness.read_rows(point_set, rows, model.device))
        tables["latency"] = robustness.latency_table(model, points, sorted({1, options.batch_size}))
    record = {
        "metrics": metrics, "rows": len(labels), "points": asdict(sampling), "tables": tables, "classes": names,
        "confusions": {"confusion": confusion_matrix(labels, predicted, len(names))},
    }  # fmt: skip
    return record, labels, embed(model.student, point_set, sampling, options.batch_size), clouds


def evaluate_students(options: EvaluateArguments) -> tuple[dict, np.ndarray, np.ndarray, list[dict]]:
    """Measure the features of students; return the same of the first one, with the results of all."""
    networks = [(Path(name).name, *load(name, "ACTStudent", options)) for name in options.student]
    _, student, sampling = networks[0]
    splits = {split: open_split(split, options) for split in (options.fit_split, options.split)}
    names, min_points = class_names("label", *splits.values()), max(required_points(n.config) for _, n, _ in networks)
    fit_set, test_set = (check_rows(rows, split, min_points, len(names), options) for split, rows in splits.items())
    if options.shapes_per_class:
        fit_set = first_of_each_class(fit_set, options.shapes_per_class)
    if options.untrained:
        torch.manual_seed(options.seed)
        untrained = ACTStudent(student.config).to(student.device)
        batches = validation_batches(fit_set, 32, sampling, student.device)
        calibrate_batch_norm(untrained, lambda batch: untrained(batch["points"]), batches)
        networks.append(("untrained", untrained, sampling))
    fit_labels, labels, results, first = fit_set.labels(), test_set.labels(), [], None
    for name, network, network_sampling in tqdm(networks, desc="students", leave=False):
        fit_features, features = (
            embed(network, rows, network_sampling, options.batch_size, options.layer, options.pooling)
            for rows in (fit_set, test_set)
        )
        metrics, predictions = measure_features(
            options.tasks, fit_features, fit_labels, features, labels, options.seed
        )
        scores = {
            task: metrics[f"{task}_map" if task == "retrieval" else f"{task}_accuracy"] for task in options.tasks
        }
        results.append({"student": name, **scores})
        first = first or (metrics, predictions, features)
    baseline = nearest_shape_accuracy(fit_set, test_set, sampling)
    results.append({"student": "1-NN on shape statistics", **dict.fromkeys(predictions, baseline)})
    metrics, predictions, features = first
    tables = {f"classes by {task}": class_table(labels, each, names) for task, each in predictions.items()}
    record = {
        "metrics": metrics, "results": results, "rows": len(labels), "fitted": len(fit_set),
        "layer": options.layer or "last", "pooling": resolve_pooling(student, options.layer, options.pooling),
        "points": asdict(sampling), "tables": {"students": results, **tables}, "classes": names,
        "confusions": {task: confusion_matrix(labels, each, len(names)) for task, each in predictions.items()},
    }  # fmt: skip
    return record, labels, features, []


def main(arguments: list[str]) -> None:
    options = parse_arguments(EvaluateArguments, __doc__, arguments)
    pictures = options.output_dir / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    record, labels, features, clouds = evaluate_model(options) if options.model else evaluate_students(options)
    confusions = record.pop("confusions")
    record["confusions"] = {name: confusion.tolist() for name, confusion in confusions.items()}
    record["options"] = asdict(options) | {"output_dir": str(options.output_dir)}
    details = record["options"] | {name: record[name] for name in record.keys() & {"rows", "fitted", "points"}}
    with name_in_errors(options.output_dir):
        for name, confusion in confusions.items():
            save_confusion_matrix(pictures / f"{name}.png", confusion, record["classes"], name)
        save_feature_map(pictures / "features.png", features, labels, record["classes"])
        images = {name: pictures / f"{name}.png" for name in (*confusions, "features")}
        write_text(
            options.output_dir / "metrics.json", json.dumps(record | {"versions": describe_versions()}, indent=1)
        )
        title = f"{Path(options.model or options.student[0]).name} on {Path(options.dataset_name).name}"
        write_report(
            options.output_dir / "report.html", f"{title} ({options.split})", record["metrics"], [], clouds,
            record["tables"], images, details,
        )  # fmt: skip
    if options.model:
        print(json.dumps(record["metrics"]))
    for row in record.get("results", ()):
        print(f"{row['student']:<26}" + "".join(f"  {task} {row[task]:6.1%}" for task in options.tasks if task in row))
    print(f"{options.output_dir}: metrics.json, pictures, report.html")


if __name__ == "__main__":
    run_script(main)
