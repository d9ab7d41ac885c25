"""What pretraining is worth: students of one architecture on a labelled set, beside the same network untrained.

python training/compare.py --students outputs/student outputs/twin --dataset_name everyday_shapes --output result.json
    fits on --fit_split (all of it, or --shapes_per_class), scores on --score_split, once, at the end

Each is probed: logistic regression on frozen features, the penalty chosen inside the fitted rows. What finetuning
makes of it, finetune.py tells. Nearest neighbours on simple shape statistics tell how much needs no network.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from act_training.data.batches import validation_batches
from act_training.data.keyed_random import Sampling
from act_training.data.point_sets import PointSet, open_point_set
from act_training.measure.frozen_features import embed, probe_accuracy
from act_training.run.checkpoints import write_text
from act_training.run.optimization import calibrate_batch_norm
from act_training.run.process import describe_versions, run_script
from torch import Tensor
from tqdm import tqdm

from modeling_act import ACTStudent
from modeling_act.errors import InputError


def all_points(point_set: PointSet, num_points: int) -> Tensor:
    batches = validation_batches(point_set, 256, Sampling(num_points), torch.device("cpu"))
    return torch.cat([batch["points"] for batch in batches])


def first_of_each_class(point_set: PointSet, count: int | None) -> PointSet:
    labels = point_set.labels()
    rows = [(labels == label).nonzero()[0][:count] for label in np.unique(labels)]
    return point_set.select(np.sort(np.concatenate(rows)))


def shape_statistics(points: Tensor) -> np.ndarray:
    """Extents, covariance spectrum, moments and histograms of height and radius: what no network is needed for."""
    points = points.numpy()
    height, radius = points[..., 1], np.linalg.norm(points[..., [0, 2]], axis=-1)
    spectrum = np.linalg.eigvalsh(np.einsum("bni,bnj->bij", points, points) / points.shape[1])
    columns = [spectrum, np.ptp(points, axis=1)[:, [1]], height.std(1, keepdims=True), (height**3).mean(1)[:, None]]
    for values in (height, radius):
        edges = np.linspace(-1 if values is height else 0, 1, 9)
        columns.append(np.stack([np.histogram(row, edges)[0] / len(row) for row in values]))
    return np.concatenate(columns, axis=1)


def nearest_neighbor_accuracy(known: np.ndarray, labels: np.ndarray, new: np.ndarray, answers: np.ndarray) -> float:
    deviation = known.std(0).clip(1e-6)
    known, new = known / deviation, new / deviation
    nearest = ((new[:, None] - known) ** 2).sum(-1).argmin(1)
    return float((labels[nearest] == answers).mean())


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", type=Path, required=True, help="folders of pretrained students")
    parser.add_argument("--dataset_name", required=True, help="a labelled set, as for the training scripts")
    parser.add_argument("--fit_split", default="train")
    parser.add_argument("--score_split", default="test")
    parser.add_argument("--shapes_per_class", type=int, help="fit on so many shapes of each class; default: on all")
    parser.add_argument("--num_points", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    fitting = first_of_each_class(open_point_set(options.dataset_name, options.fit_split), options.shapes_per_class)
    scoring = open_point_set(options.dataset_name, options.score_split)
    known, new = (all_points(part, options.num_points) for part in (fitting, scoring))
    labels, answers = fitting.labels(), scoring.labels()
    both, rows = np.concatenate([labels, answers]), (np.arange(len(known)), len(known) + np.arange(len(new)))
    torch.manual_seed(options.seed)
    try:
        untrained = ACTStudent(ACTStudent.from_pretrained(options.students[0]).config)
    except (OSError, ValueError) as error:
        raise InputError(f"--students {options.students[0]}: {' '.join(str(error).split())}") from error
    calibrate_batch_norm(untrained, untrained, known.split(32))  # without, it is no fair baseline
    results = []
    for folder in tqdm([None, *options.students], desc="comparing", unit="student"):
        student = ACTStudent.from_pretrained(folder).eval() if folder else untrained
        parts = [embed(student, part, Sampling(options.num_points), 128) for part in (fitting, scoring)]
        probe = probe_accuracy(np.concatenate(parts), both, *rows, options.seed)
        result = {"student": folder.name if folder else "untrained", "probe": probe["accuracy"], **probe}
        del result["accuracy"]
        results.append(result)
    statistics = shape_statistics(known), labels, shape_statistics(new), answers
    results.append({"student": "1-NN on shape statistics", "probe": nearest_neighbor_accuracy(*statistics)})
    record = {
        "results": results, "fitted": len(known), "scored": len(new), "classes": len(np.unique(both)),
        "options": {name: str(value) for name, value in vars(options).items()}, "versions": describe_versions(),
    }  # fmt: skip
    if options.output:
        write_text(options.output, json.dumps(record, indent=1))
    for result in results:
        print(f"{result['student']:<26}{result['probe']:6.1%}", file=sys.stdout)


if __name__ == "__main__":
    run_script(main)
