"""What pretraining is worth: students of one architecture on a labelled set, beside the same network untrained.

python training/compare.py --students outputs/student outputs/twin --dataset_name everyday_shapes --output result.json
    fits on --fit_split (all of it, or --shapes_per_class), scores on --score_split, once, at the end

Each is probed (logistic regression on frozen features, the penalty chosen inside the fitted rows) and finetuned whole.
Nearest neighbours on simple shape statistics tell how much of the task needs no network.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from act_training.errors import InputError
from act_training.evaluation import validation_batches
from act_training.frozen_features import embed, probe_accuracy
from act_training.keyed_random import Sampling, augment
from act_training.optimization import cosine_between, make_optimizer, set_learning_rate
from act_training.outputs import write_text
from act_training.point_sets import PointSet, open_point_set
from act_training.runs import describe_versions, run_script
from torch import Tensor
from tqdm import tqdm

from modeling_act import ACTStudent, ACTStudentForPointCloudClassification


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


@torch.no_grad()
def settle_batch_norm(student: ACTStudent, clouds: Tensor) -> ACTStudent:
    """Batch statistics for a network that has not trained; without them it is no fair baseline."""
    student.train()
    for points in clouds.split(32):
        student(points)
    return student.eval()


def finetune(folder: Path | None, untrained: ACTStudent, clouds: Tensor, labels: Tensor, epochs: int, seed: int):
    """A classifier trained whole on the labelled clouds, from a pretrained folder or from scratch."""
    torch.manual_seed(seed)
    num_labels = int(labels.max()) + 1
    if folder:
        model = ACTStudentForPointCloudClassification.from_pretrained(folder, num_labels=num_labels)
    else:
        config = untrained.config.__class__.from_dict(untrained.config.to_dict() | {"num_labels": num_labels})
        model = ACTStudentForPointCloudClassification(config)
        model.student.load_state_dict(untrained.state_dict())
    model.train()
    optimizer, order = make_optimizer(model, 0.05), torch.Generator().manual_seed(seed)
    steps_per_epoch = max(1, len(clouds) // 28)
    for step in range(epochs * steps_per_epoch):
        if step % steps_per_epoch == 0:
            rows = torch.randperm(len(clouds), generator=order)
        batch = rows[step % steps_per_epoch * 28 :][:28]
        keys = torch.stack([torch.full_like(batch, step), batch], dim=1)
        points = augment(clouds[batch], keys, seed, ("scale_shift", "rotate_y"))
        set_learning_rate(optimizer, cosine_between(step, 0, epochs * steps_per_epoch, 1e-3, 1e-6))
        model(points, labels=labels[batch]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval()


@torch.no_grad()
def accuracy(model: ACTStudentForPointCloudClassification, clouds: Tensor, labels: Tensor) -> float:
    answers = torch.cat([model(points).logits.argmax(1) for points in clouds.split(64)])
    return (answers == labels).float().mean().item()


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", type=Path, required=True, help="folders of pretrained students")
    parser.add_argument("--dataset_name", required=True, help="a labelled set, as for the training scripts")
    parser.add_argument("--fit_split", default="train")
    parser.add_argument("--score_split", default="test")
    parser.add_argument("--shapes_per_class", type=int, help="fit on so many shapes of each class; default: on all")
    parser.add_argument("--num_points", type=int, default=1024)
    parser.add_argument("--finetune_epochs", type=int, default=10, help="0: only probe")
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
        untrained = settle_batch_norm(ACTStudent(ACTStudent.from_pretrained(options.students[0]).config), known)
    except (OSError, ValueError) as error:
        raise InputError(f"--students {options.students[0]}: {' '.join(str(error).split())}") from error

    results = []
    for folder in tqdm([None, *options.students], desc="comparing", unit="student"):
        student = ACTStudent.from_pretrained(folder).eval() if folder else untrained
        parts = [embed(student, part, Sampling(options.num_points), 128) for part in (fitting, scoring)]
        probe = probe_accuracy(np.concatenate(parts), both, *rows, options.seed)
        result = {"student": folder.name if folder else "untrained", "probe": probe["accuracy"], **probe}
        del result["accuracy"]
        if options.finetune_epochs:
            classifier = finetune(
                folder, untrained, known, torch.tensor(labels), options.finetune_epochs, options.seed
            )
            result["finetuned"] = accuracy(classifier, new, torch.tensor(answers))
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
        finetuned = f"  finetuned {result['finetuned']:6.1%}" if "finetuned" in result else ""
        print(f"{result['student']:<26}{result['probe']:6.1%}{finetuned}", file=sys.stdout)


if __name__ == "__main__":
    run_script(main)
