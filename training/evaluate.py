"""What a model is worth: a finished classifier on a labelled split, or what a frozen student's features tell.

python training/evaluate.py --model outputs/classifier --dataset_name PREPARED_SET --output_dir outputs/evaluation
    accuracy, classes, confusion; --votes 10 beside it the mean logits of ten random views; --robustness; --latency
python training/evaluate.py --student outputs/student --dataset_name PREPARED_SET --output_dir outputs/features
    --tasks svm knn probe: classifiers fitted to --fit_split; retrieval: within --split; --layer 8 --pooling mean

Nothing is chosen on --split. What points a network sees is what its folder says, unless a flag says otherwise.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from act_training.data.checks import check_point_set
from act_training.data.keyed_random import Sampling
from act_training.data.point_sets import PointSet, open_point_set
from act_training.measure.corruptions import CORRUPTIONS, UP_AXES, num_left
from act_training.measure.frozen_features import CLASSIFIERS, check_features, embed, predict
from act_training.measure.metrics import class_table, classification_metrics, confusion_matrix, retrieval_map
from act_training.measure.views import (
    corrupted_view,
    measure_latency,
    measure_robustness,
    plain_view,
    predict_logits,
    read_rows,
    voting_views,
)
from act_training.report.html import write_report
from act_training.report.pictures import save_confusion_matrix, save_feature_map
from act_training.run.arguments import check_disjoint
from act_training.run.checkpoints import name_in_errors, write_text
from act_training.run.process import describe_versions, run_script, warn
from act_training.run.run_data import class_names, report_skipped
from act_training.tasks.transfer import required_points
from tqdm import tqdm
from transformers import PreTrainedModel

from modeling_act import ACTPointCloudProcessor, ACTStudent, ACTStudentForPointCloudClassification
from modeling_act.errors import InputError
from modeling_act.processing_act import SAMPLINGS

TASKS = (*CLASSIFIERS, "retrieval")
ONLY_OF = {"model": ("votes", "robustness", "latency"), "student": ("fit_split", "tasks", "layer", "pooling")}


def parse(arguments: list[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--model", help="folder or Hub id of a classifier")
    subject.add_argument("--student", help="folder or Hub id of a student, whose features are judged")
    parser.add_argument("--dataset_name", required=True, help="a labelled set, as for the training scripts")
    parser.add_argument("--dataset_config_name", help="configuration of a set on the Hub")
    parser.add_argument("--split", default="test", help="what to judge on")
    parser.add_argument("--output_dir", type=Path, required=True, help="for metrics.json, pictures and report.html")
    parser.add_argument("--skip_bad", action="store_true", help="leave out rows that cannot be read, and list them")
    parser.add_argument("--num_points", type=int, help="points taken of each cloud")
    parser.add_argument("--point_sampling", choices=SAMPLINGS, help="how they are taken")
    parser.add_argument("--normalize", action=argparse.BooleanOptionalAction, help="scale into the unit sphere")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the points, views and corruptions")
    parser.add_argument("--cpu", action="store_true", help="ignore accelerators")
    of_model = parser.add_argument_group("of a --model")
    of_model.add_argument("--votes", type=int, help="random views of each cloud whose logits are averaged")
    of_model.add_argument("--robustness", action="store_true", help=f"corruptions: {', '.join(CORRUPTIONS)}")
    of_model.add_argument("--up_axis", choices=UP_AXES, default="y", help="what rotation_up turns about")
    of_model.add_argument("--latency", action="store_true", help="milliseconds from points to logits")
    of_student = parser.add_argument_group("of a --student")
    of_student.add_argument("--fit_split", help="what classifiers are fitted to; default: train")
    of_student.add_argument("--tasks", nargs="+", choices=TASKS, help="default: all")
    of_student.add_argument("--layer", type=int, help="1 to the depth, before the final norm; default: after it")
    of_student.add_argument("--pooling", help="any of cls, max, mean joined by _; default: cls_max")
    options = parser.parse_args(arguments)
    other = "student" if options.model else "model"
    if wasted := [name for name in ONLY_OF[other] if getattr(options, name) not in (None, False)]:
        raise InputError(f"--{wasted[0]} goes with --{other}")
    for name in ("num_points", "batch_size", "votes"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name} must be positive, got {getattr(options, name)}")
    options.fit_split, options.tasks = options.fit_split or "train", options.tasks or list(TASKS)
    if options.student:
        check_disjoint({"--fit_split": options.fit_split, "--split": options.split})
    if (options.output_dir / "config.json").exists():
        raise InputError(f"--output_dir {options.output_dir} holds a model, and its metrics.json; name another folder")
    return options


# What is opened ------------------------------------------------------------------------------------------------------


def load(kind: type[PreTrainedModel], flag: str, name: str, device: torch.device) -> PreTrainedModel:
    """A model in eval mode of which every tensor was found; heads that a student has no use for stay behind."""
    if not os.path.isdir(name) and (os.path.isabs(name) or name.count("/") != 1):
        raise InputError(f"{flag} {name}: there is no such folder, nor is it ORGANIZATION/NAME on the Hub")
    try:
        model, loading = kind.from_pretrained(name, output_loading_info=True)
    except (ValueError, OSError, RuntimeError) as error:
        raise InputError(f"{flag} {name}: {' '.join(str(error).split())}") from error
    problems = [f"{what}: {', '.join(sorted(map(str, loading[what]))[:3])}" for what in
                ("missing_keys", "mismatched_keys") if loading[what]]  # fmt: skip
    if problems:
        raise InputError(f"{flag} {name} is no complete {kind.__name__} ({'; '.join(problems)})")
    return model.to(device).eval()


def read_sampling(name: str, options: argparse.Namespace, min_points: int) -> Sampling:
    """What points the network sees: as its folder says, but for what flags say."""
    try:
        processor = ACTPointCloudProcessor.from_pretrained(name)
    except OSError:
        processor = ACTPointCloudProcessor()
        taken = f"{processor.num_points} points, {processor.point_sampling}, in the unit sphere"
        warn(f"{name} has no preprocessor_config.json: taking {taken}, but for what flags say")
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: preprocessor_config.json: {error}") from error
    num_points, method, normalize = (
        getattr(processor if getattr(options, field) is None else options, field)
        for field in ("num_points", "point_sampling", "normalize")
    )
    strongest = [(name, max(strengths)) for name, strengths in CORRUPTIONS.items()] if options.robustness else []
    fewest = min([num_points, *(num_left(num_points, *corruption) for corruption in strongest)])
    if fewest < min_points:
        left = f", of which --robustness leaves {fewest}," if options.robustness else ""
        raise InputError(f"{num_points} points{left} are fewer than the {min_points} that the groups need")
    return Sampling(num_points, options.seed, normalize, method)


def open_split(split: str, options: argparse.Namespace) -> PointSet:
    return open_point_set(options.dataset_name, split, options.dataset_config_name)


def checked(
    point_set: PointSet, split: str, min_points: int, num_classes: int, options: argparse.Namespace
) -> PointSet:
    good, problems, _ = check_point_set(point_set, min_points, num_classes, options.skip_bad)
    report_skipped(problems, options.output_dir / f"skipped_{split}.txt")
    return good


def names_of_both(model: PreTrainedModel, point_set: PointSet) -> list[str]:
    """The classes of a model, by the names that it or the set has for them; where both have, they must agree."""
    own = [model.config.id2label[label] for label in range(model.config.num_labels)]
    unnamed = any(own == [f"{prefix}{label}" for label in range(len(own))] for prefix in ("LABEL_", ""))
    found = point_set.names_of("label")
    if found is None:
        return own
    if found != own and not (unnamed and len(found) == len(own)):
        raise InputError(
            f"the classes of {point_set.source} are {', '.join(found)}, those of --model {', '.join(own)}"
        )
    return found


# What is measured ----------------------------------------------------------------------------------------------------


def evaluate_model(options: argparse.Namespace, device: torch.device) -> dict:
    """Figures, tables and what to draw of a finished classifier."""
    model = load(ACTStudentForPointCloudClassification, "--model", options.model, device)
    sampling = read_sampling(options.model, options, required_points(model.config))
    point_set = open_split(options.split, options)
    names = names_of_both(model, point_set)
    point_set = checked(point_set, options.split, required_points(model.config), len(names), options)
    labels = point_set.labels()

    def classify(*views) -> tuple[np.ndarray, np.ndarray]:
        predicted = predict_logits(model, point_set, options.batch_size, views).argmax(1).numpy()
        return predicted, confusion_matrix(labels, predicted, len(names))

    plain = plain_view(sampling)
    predicted, confusion = classify(plain)
    metrics, tables = classification_metrics(confusion), {"classes": class_table(confusion, names)}
    if options.votes:
        voted = classification_metrics(classify(*voting_views(sampling, options.votes))[1])
        metrics |= {f"{name}_{options.votes}_votes": value for name, value in voted.items()}
    clouds = draw_mistakes(point_set, labels, predicted, names, plain)
    if options.robustness:
        tables["robustness"] = measure_robustness(
            lambda view: classification_metrics(classify(view)[1]), sampling, options.up_axis
        )
        clouds.append(draw_corruptions(point_set, sampling, options.up_axis))
    if options.latency:
        points = plain(read_rows(point_set, range(min(options.batch_size, len(labels))), device))
        tables["latency"] = measure_latency(model, points, sorted({1, options.batch_size}))
    features = embed(model.student, point_set, sampling, options.batch_size)
    return {
        "metrics": metrics, "tables": tables, "confusions": {"confusion": confusion}, "names": names, "clouds": clouds,
        "features": features, "labels": labels, "about": {"rows": len(labels), "points": asdict(sampling)},
    }  # fmt: skip


def draw_mistakes(
    point_set: PointSet, labels: np.ndarray, predicted: np.ndarray, names: list[str], view
) -> list[dict[str, np.ndarray]]:
    """The first clouds that were taken for another class, side by side."""
    found = {}
    for row in (labels != predicted).nonzero()[0][:4].tolist():
        points = view(read_rows(point_set, range(row, row + 1), torch.device("cpu")))[0]
        found[f"row {row}: {names[labels[row]]}, taken for {names[predicted[row]]}"] = points.numpy()
    return [found] if found else []


def draw_corruptions(point_set: PointSet, sampling: Sampling, up_axis: str) -> dict[str, np.ndarray]:
    """The first cloud as it is, and under each corruption at its middle strength."""
    batch = read_rows(point_set, range(1), torch.device("cpu"))
    views = {"as it is": plain_view(sampling)}
    for name, strengths in CORRUPTIONS.items():
        views[f"{name} {strengths[1]:g}"] = corrupted_view(sampling, name, strengths[1], up_axis)
    return {name: view(batch)[0].numpy() for name, view in views.items()}


def evaluate_student(options: argparse.Namespace, device: torch.device) -> dict:
    """Figures, tables and what to draw of a frozen student's features."""
    student = load(ACTStudent, "--student", options.student, device)
    pooling = check_features(student, options.layer, options.pooling)
    min_points = required_points(student.config)
    sampling = read_sampling(options.student, options, min_points)
    opened = {split: open_split(split, options) for split in (options.fit_split, options.split)}
    names = class_names("label", *opened.values())
    fitting, judging = (
        checked(point_set, split, min_points, len(names), options) for split, point_set in opened.items()
    )
    known, features = (
        embed(student, point_set, sampling, options.batch_size, options.layer, pooling)
        for point_set in (fitting, judging)
    )
    labels, metrics, tables, confusions = judging.labels(), {}, {}, {}
    for task in tqdm([task for task in CLASSIFIERS if task in options.tasks], desc="fitting", leave=False):
        predicted, choice = predict(task, known, fitting.labels(), features, options.seed)
        confusions[task] = confusion_matrix(labels, predicted, len(names))
        found = classification_metrics(confusions[task]) | {"neighbors" if task == "knn" else "penalty": choice}
        metrics |= {f"{task}_{name}": value for name, value in found.items()}
        tables[f"classes by {task}"] = class_table(confusions[task], names)
    if "retrieval" in options.tasks:  # each row of --split looks for the others of its class
        metrics["retrieval_map"] = retrieval_map((features - known.mean(0)) / known.std(0).clip(1e-6), labels)
    about = {"rows": len(labels), "fitted": len(fitting), "layer": options.layer or "last", "pooling": pooling}
    return {
        "metrics": metrics, "tables": tables, "confusions": confusions, "names": names, "clouds": [],
        "features": features, "labels": labels, "about": about | {"points": asdict(sampling)},
    }  # fmt: skip


def write(folder: Path, title: str, found: dict, flags: dict) -> None:
    """metrics.json, pictures/ and report.html."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for name, confusion in found["confusions"].items():
        save_confusion_matrix(pictures / f"{name}.png", confusion, found["names"], name)
    save_feature_map(pictures / "features.png", found["features"], found["labels"], found["names"])
    record = {
        "metrics": found["metrics"], **found["about"], "tables": found["tables"], "classes": found["names"],
        "confusions": {name: confusion.tolist() for name, confusion in found["confusions"].items()},
        "options": flags, "versions": describe_versions(),
    }  # fmt: skip
    write_text(folder / "metrics.json", json.dumps(record, indent=1))
    images = {name: pictures / f"{name}.png" for name in (*found["confusions"], "features")}
    write_report(
        folder / "report.html", title, found["metrics"], [], found["clouds"], found["tables"], images,
        flags | found["about"],
    )  # fmt: skip


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    found = evaluate_model(options, device) if options.model else evaluate_student(options, device)
    name = Path(options.model or options.student).name
    title = f"{name} on {Path(options.dataset_name).name} ({options.split})"
    flags = {flag: str(value) if isinstance(value, Path) else value for flag, value in vars(options).items()}
    with name_in_errors(options.output_dir):
        write(options.output_dir, title, found, flags)
    print(json.dumps(found["metrics"]))
    print(f"{options.output_dir}: metrics.json, pictures, report.html")


if __name__ == "__main__":
    run_script(main)
