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
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from act_training.data.batches import Sampling, validation_batches
from act_training.data.point_sets import PointSet, open_point_set
from act_training.data.schema import check_point_set
from act_training.measure import frozen_features, robustness
from act_training.measure.frozen_features import embed
from act_training.measure.metrics import class_table, classification_metrics, confusion_matrix, retrieval_map
from act_training.report.pictures import save_confusion_matrix, save_feature_map
from act_training.report.run_folder import write_report
from act_training.run.run_data import class_names, report_skipped
from act_training.run.script import check_disjoint, describe_versions, parse_arguments, run_script, warn
from act_training.run.training_state import calibrate_batch_norm, name_in_errors, write_text
from act_training.tasks.transfer import required_points
from tqdm import tqdm

from modeling_act import ACTPointCloudProcessor, ACTStudent, ACTStudentConfig
from modeling_act.errors import InputError
from modeling_act.hub.load_model import load_model

TASKS = (*frozen_features.CLASSIFIERS, "retrieval")
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
        warn(f"{name} has no preprocessor_config.json: sampling {processor.num_points} points unless flags differ")
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


def open_rows(
    options: EvaluateArguments, min_points: int, splits: list[str], config: ACTStudentConfig | None = None
) -> tuple[list[str], list[PointSet]]:
    """Open and check the rows of splits; return the names of the classes too, which a classifier's must equal."""
    point_sets = [open_point_set(options.dataset_name, split, options.dataset_config_name) for split in splits]
    names = match_class_names(config, point_sets[0]) if config else class_names("label", *point_sets)
    for index, split in enumerate(splits):
        point_sets[index], problems, _ = check_point_set(point_sets[index], min_points, len(names), options.skip_bad)
        report_skipped(problems, options.output_dir / f"skipped_{split}.txt")
    return names, point_sets


def match_class_names(config: ACTStudentConfig, point_set: PointSet) -> list[str]:
    labels = range(config.num_labels)
    own = [config.id2label[label] for label in labels]
    names = point_set.names_of("label") or own
    is_unnamed = own in ([f"LABEL_{label}" for label in labels], [str(label) for label in labels])
    if names != own and not (is_unnamed and len(names) == len(own)):
        wanted = f"those of --model {', '.join(own)}"
        raise InputError(f"the classes of {point_set.source} are {', '.join(names)}, {wanted}")
    return names


def evaluate_model(options: EvaluateArguments) -> tuple[dict, np.ndarray, np.ndarray, list[dict]]:
    """Measure a classifier; return the entries of metrics.json, labels, features, and clouds for the report."""
    model, sampling = load(options.model, "ACTStudentForPointCloudClassification", options)
    names, (point_set,) = open_rows(options, required_points(model.config), [options.split], model.config)
    labels, plain = point_set.labels(), partial(robustness.plain_view, sampling=sampling)

    def measure(*views) -> tuple[dict[str, float], np.ndarray]:
        predicted = robustness.predict_logits(model, point_set, options.batch_size, views).argmax(1).numpy()
        return classification_metrics(labels, predicted), predicted

    def draw(row: int, view) -> np.ndarray:
        return view(robustness.read_rows(point_set, range(row, row + 1), torch.device("cpu")))[0].numpy()

    metrics, predicted = measure(plain)
    tables = {"classes": class_table(labels, predicted, names)}
    mistakes = {
        f"row {row}: {names[labels[row]]}, taken for {names[predicted[row]]}": draw(row, plain)
        for row in (labels != predicted).nonzero()[0][:4].tolist()
    }
    clouds = [mistakes] if mistakes else []
    if options.votes:
        views = [partial(robustness.training_view, sampling=sampling, epoch=epoch) for epoch in range(options.votes)]
        metrics |= {f"{name}_{options.votes}_votes": value for name, value in measure(*views)[0].items()}
    if options.robustness:
        views = robustness.corrupted_views(sampling, options.up_axis)
        tables["robustness"] = [
            {"corruption": name, "strength": strength, **measure(view)[0]}
            for (name, strength), view in tqdm(views.items(), desc="robustness", leave=False)
        ]
        drawn = [("none", 0.0), *((name, strengths[1]) for name, strengths in robustness.CORRUPTIONS.items())]
        clouds.append({f"{name} {strength:g}": draw(0, views[name, strength]) for name, strength in drawn})
    if options.latency:
        points = plain(robustness.read_rows(point_set, range(min(options.batch_size, len(labels))), model.device))
        tables["latency"] = robustness.latency_table(model, points, sorted({1, options.batch_size}))
    confusions = {"confusion": confusion_matrix(labels, predicted, len(names))}
    record = {"metrics": metrics, "tables": tables, "confusions": confusions, "classes": names}
    record |= {"rows": len(labels), "points": asdict(sampling)}
    return record, labels, embed(model.student, point_set, sampling, options.batch_size), clouds


def evaluate_students(options: EvaluateArguments) -> tuple[dict, np.ndarray, np.ndarray, list[dict]]:
    """Measure the features of students; return the same of the first one, with the results of all."""
    networks = [(Path(name).name, *load(name, "ACTStudent", options)) for name in options.student]
    _, student, sampling = networks[0]
    min_points = max(required_points(network.config) for _, network, _ in networks)
    names, (fit_set, test_set) = open_rows(options, min_points, [options.fit_split, options.split])
    if options.shapes_per_class:
        rows = [(fit_set.labels() == label).nonzero()[0][: options.shapes_per_class] for label in range(len(names))]
        fit_set = fit_set.select(np.sort(np.concatenate(rows)))
    if options.untrained:
        torch.manual_seed(options.seed)
        untrained = ACTStudent(student.config).to(student.device)
        batches = validation_batches(fit_set, 32, sampling, student.device)
        calibrate_batch_norm(untrained, lambda batch: untrained(batch["points"]), batches)
        networks.append(("untrained", untrained, sampling))
    labels, fit_labels, results, entries = test_set.labels(), fit_set.labels(), [], []
    for name, network, network_sampling in tqdm(networks, desc="students", leave=False):
        settings = network_sampling, options.batch_size, options.layer, options.pooling
        fit_features, features = (embed(network, rows, *settings) for rows in (fit_set, test_set))
        result, metrics, tables, confusions = {"student": name}, {}, {}, {}
        for task in options.tasks:
            if task == "retrieval":
                standardized = (features - fit_features.mean(0)) / fit_features.std(0).clip(1e-6)
                result[task] = metrics["retrieval_map"] = retrieval_map(standardized, labels)
                continue
            predicted, choice = frozen_features.fit_and_predict(task, fit_features, fit_labels, features, options.seed)
            values = classification_metrics(labels, predicted) | {"neighbors" if task == "knn" else "penalty": choice}
            result[task] = values["accuracy"]
            metrics |= {f"{task}_{key}": value for key, value in values.items()}
            tables[f"classes by {task}"] = class_table(labels, predicted, names)
            confusions[task] = confusion_matrix(labels, predicted, len(names))
        results.append(result)
        entries.append(({"metrics": metrics, "tables": tables, "confusions": confusions}, features))
    record, features = entries[0]
    accuracy = frozen_features.nearest_shape_accuracy(fit_set, test_set, sampling)
    results.append({"student": "1-NN on shape statistics"} | dict.fromkeys(record["confusions"], accuracy))
    record["tables"] = {"students": results} | record["tables"]
    record |= {"results": results, "rows": len(labels), "fitted": len(fit_set), "points": asdict(sampling)}
    pooling = frozen_features.resolve_pooling(student, options.layer, options.pooling)
    record |= {"layer": options.layer or "last", "pooling": pooling, "classes": names}
    return record, labels, features, []


def main(arguments: list[str]) -> None:
    options = parse_arguments(EvaluateArguments, __doc__, arguments)
    folder, pictures = options.output_dir, options.output_dir / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    record, labels, features, clouds = evaluate_model(options) if options.model else evaluate_students(options)
    confusions, flags = record["confusions"], asdict(options) | {"output_dir": str(folder)}
    images = {name: pictures / f"{name}.png" for name in (*confusions, "features")}
    with name_in_errors(folder):
        for name, confusion in confusions.items():
            save_confusion_matrix(images[name], confusion, record["classes"], name)
        save_feature_map(images["features"], features, labels, record["classes"])
        record["confusions"] = {name: confusion.tolist() for name, confusion in confusions.items()}
        record |= {"options": flags, "versions": describe_versions()}
        write_text(folder / "metrics.json", json.dumps(record, indent=1))
        network = Path(options.model or options.student[0]).name
        title = f"{network} on {Path(options.dataset_name).name} ({options.split})"
        details = flags | {name: record[name] for name in ("rows", "points")}
        write_report(folder / "report.html", title, record["metrics"], [], clouds, record["tables"], images, details)
    if options.model:
        print(json.dumps(record["metrics"]))
    for row in record.get("results", ()):
        print(f"{row['student']:<26}" + "".join(f"  {task} {row[task]:6.1%}" for task in options.tasks if task in row))
    print(f"{folder}: metrics.json, pictures, report.html")


if __name__ == "__main__":
    run_script(main)
