"""Show in about five minutes of CPU time what pretraining is worth: `make demo`, or `python training/demo.py`.

DINOv2-small, an image Transformer, looks at pictures of 800 generated shapes. A student of half a million parameters,
which is given points alone, learns to predict what it sees. Then new shapes are compared by the student's vectors and
by those of the same network untrained: nearest neighbors in a picture, and a linear probe. Scripts run as a user would
run them, on one thread each: on small models, more threads cost more CPU time than they save.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from act_training.data.batches import Sampling, validation_batches
from act_training.data.point_sets import open_point_set
from act_training.prepare.dinov2_small import save_dinov2_small
from act_training.report.run_folder import make_figure, save_figure, write_report
from act_training.run.training_state import calibrate_batch_norm
from transformers.utils import logging

from modeling_act import ACTStudent, ACTViewTeacher, ACTViewTeacherConfig

TRAINING = Path(__file__).resolve().parent
GALLERY, NEIGHBORS = 700, 3


def run_stages(folder: Path, steps: int, seed: int) -> None:
    """Run distillation and probes, each a script of its own."""
    recipe = f"--config={TRAINING / 'recipes' / 'distill_views_tiny.yaml'}"
    precision = "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"
    stages = {
        "the student learns what the image Transformer sees": [
            "distill.py", recipe, f"--teacher={folder / 'teacher'}", f"--teacher_precision={precision}",
            f"--max_train_steps={steps}", f"--seed={seed}", f"--output_dir={folder / 'student'}",
            "--overwrite_output_dir",
        ],
        "linear probes of the student, and of the same network untrained": [
            "evaluate.py", "--student", str(folder / "student"), "--untrained", "--tasks=probe", f"--seed={seed}",
            "--dataset_name=everyday_shapes", "--shapes_per_class=20", f"--output_dir={folder / 'probes'}",
        ],
    }  # fmt: skip
    for number, (title, (script, *flags)) in enumerate(stages.items(), start=1):
        print(f"stage {number} of {len(stages)}: {title} ({script})", flush=True)
        command, environment = [sys.executable, TRAINING / script, *flags], os.environ | {"OMP_NUM_THREADS": "1"}
        if code := subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"demo.py: error: {script} ended with exit code {code}")


def compare_neighbors(folder: Path, seed: int) -> dict[str, float]:
    """Draw the nearest of new shapes to a few of them, before and after training; return the share of all neighbors
    that are of their shape's class."""
    shapes = open_point_set("everyday_shapes", "test").select(range(GALLERY))
    labels, names, cpu = shapes.labels(), shapes.names_of("label"), torch.device("cpu")
    clouds = torch.cat([batch["points"] for batch in validation_batches(shapes, 64, Sampling(2048), cpu)])
    student = ACTStudent.from_pretrained(folder / "student").eval()
    torch.manual_seed(seed)
    untrained = ACTStudent(student.config)
    batches = validation_batches(shapes, 32, Sampling(512), cpu)
    calibrate_batch_norm(untrained, lambda batch: untrained(batch["points"]), batches)
    nearest, shares = {}, {}
    for name, network in (("untrained", untrained), ("pretrained", student)):
        network.fit_whitening(clouds, show_progress=False)
        vectors = network.encode(clouds, show_progress=False)
        similarity = network.similarity(vectors, vectors).fill_diagonal_(-1)
        nearest[name] = similarity.topk(NEIGHBORS).indices.numpy()
        shares[name] = float((labels[nearest[name]] == labels[:, None]).mean())
    queries = [int((labels == label).argmax()) for label in range(0, len(names), 2)]  # the first of every second class
    draw_neighbors(folder / "neighbors.png", clouds, labels, queries, nearest)
    return shares


def draw_neighbors(
    path: Path, clouds: torch.Tensor, labels: np.ndarray, queries: list[int], nearest: dict[str, np.ndarray]
) -> None:
    """Draw each query and its nearest shapes, in a green frame if they are of its class, else in a red one."""
    teacher = ACTViewTeacher(ACTViewTeacherConfig(num_views=8, image_size=168))  # draws; its weights do not matter
    figure = make_figure(1400, 1440)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.96, wspace=0.05, hspace=0.05)
    for row, query in enumerate(queries):
        cells = [("shape", query), *((name, other) for name, found in nearest.items() for other in found[query])]
        images = teacher.render(clouds[[place for _, place in cells]]).images[:, 1].permute(0, 2, 3, 1)
        for column, ((name, place), image) in enumerate(zip(cells, images, strict=True)):
            axes = figure.add_subplot(len(queries), len(cells), row * len(cells) + column + 1, xticks=[], yticks=[])
            axes.imshow(image.numpy())
            color = "#2e9e5b" if labels[place] == labels[query] else "#d6336c"
            axes.spines[:].set(color=color if column else "white", linewidth=3)
            if row == 0:
                axes.set_title(name)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start, folder = time.perf_counter(), options.output_dir
    print(
        "about five minutes of CPU time on one core, longer where it is busy; first, DINOv2-small: 90 MB", flush=True
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    save_dinov2_small(folder / "dinov2-small")
    ACTViewTeacher.from_backbone(folder / "dinov2-small", num_views=4).save_pretrained(folder / "teacher")
    run_stages(folder, options.steps, options.seed)
    shares = compare_neighbors(folder, options.seed)

    record = json.loads((folder / "probes" / "metrics.json").read_text())
    probes = {row["student"]: row["probe"] for row in record["results"]}
    probes = {"pretrained" if Path(name).name == "student" else name: value for name, value in probes.items()}
    caption = f"{record['rows']} new shapes of {len(record['classes'])} classes"
    table = [{"network": name, "probe": value, "neighbors": shares.get(name)} for name, value in probes.items()]
    cpu_seconds, seconds = sum(os.times()[:4]), time.perf_counter() - start
    log = [json.loads(line) for line in (folder / "student" / "log.jsonl").read_text().splitlines()]
    images = {"nearest shapes before and after pretraining": folder / "neighbors.png"}
    write_report(folder / "report.html", "ACT in minutes", {"CPU s": cpu_seconds}, log, [], {caption: table}, images)
    print(
        f"{caption}: a linear probe fitted to 20 of each; the {NEIGHBORS} nearest of {GALLERY} that are of one class"
    )
    for row in table:
        neighbors = "" if row["neighbors"] is None else f"   neighbors {row['neighbors']:6.1%}"
        print(f"    {row['network']:<26}probe {row['probe']:6.1%}{neighbors}")
    print(f"picture  {folder / 'neighbors.png'}\nreport   {folder / 'report.html'}")
    print(f"time     {cpu_seconds:.0f} s of CPU, {seconds:.0f} s in all, seed {options.seed}")


if __name__ == "__main__":
    main()
