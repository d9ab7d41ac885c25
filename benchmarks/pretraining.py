"""The worth of pretraining: students of several teachers, of one size and after the same clouds, by frozen features.

    python benchmarks/pretraining.py --data DATA --work WORK --image_transformer facebook/dinov2-small [--seeds 0 1 2]

DATA holds `pretrain.npz` (points) and labelled sets (points, labels, split), all with y up, which no student sees in
pretraining. WORK keeps students and cached features; a second call continues. Each row of ROWS is a student; beside
them stand the untrained network and nearest neighbors on shape statistics.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

import measure
from modeling_act import ACTViewTeacher

TRAINING = Path(__file__).resolve().parents[1] / "training"
TASKS = ["knn", "probe", "retrieval"]
SETS = ["ldraw_parts", "kicad_parts", "everyday_objects", "ancient_objects"]
VIEWS = ["--teacher", "{work}/views"]
ROWS = {
    "views": VIEWS,
    "views, random weights": ["--teacher", "{work}/views_random"],
    "views, groups alone": [*VIEWS, "--cloud_target", "false"],
    "views, masked groups apart": [*VIEWS, "--model", "decoder_attention: visible"],
    "views, masked groups apart and in blocks": [*VIEWS, "--model", "decoder_attention: visible, mask_type: blocks"],
    "views, no visible groups": [*VIEWS, "--model", "decoder_attention: none"],
    "views, phi_s": [*VIEWS, "--target_norm", "phi_s"],
    "views, layer_norm": [*VIEWS, "--target_norm", "layer_norm"],
    "views, turned about the vertical": [*VIEWS, "--augmentation", "scale", "rotate_y"],
    "self": ["--teacher", "self", "--ema_decay", "0.996", "--target_norm", "layer_norm", "--cache_targets", "false"],
    "views and self": [*VIEWS, "self", "--ema_decay", "0.996"],
    "coordinates": ["--target", "coordinates", "--cloud_target", "false", "--cache_targets", "false"],
}


def run(script: str, *flags: object) -> None:
    subprocess.run([sys.executable, TRAINING / script, *map(str, flags)], check=True, stdout=subprocess.DEVNULL)


def pretrain(row: str, seed: int, options: argparse.Namespace) -> Path:
    """Pretrain the student of a row, unless that was done before; return its folder."""
    flags = [flag.format(work=options.work) for flag in ROWS[row]]
    if "--model" in flags:  # the recipe's fields and these: a flag would replace them all
        place = flags.index("--model") + 1
        fields = yaml.safe_load(options.config.read_text())["model"] | yaml.safe_load(f"{{{flags[place]}}}")
        flags[place] = yaml.safe_dump(fields, default_flow_style=True, width=10_000).strip()
    folder = options.work / "_".join([*row.replace(",", "").split(), str(seed), "quick" * options.quick])
    if not (folder / "metrics.json").exists():
        cache = options.work / f"targets_{Path(flags[1]).name}"  # of a teacher, shared by its rows
        data = ["--dataset_name", options.data / "pretrain.npz", "--validation_split", "validation"]
        resume = ["--resume_from_checkpoint", "latest"] if (folder / "checkpoints").exists() else []
        common = ["--config", options.config, *data, "--cache_folder", cache]
        common += ["--max_train_steps", 2 if options.quick else options.steps]
        common += ["--max_train_samples", 64] if options.quick else []
        run("distill.py", *common, "--output_dir", folder, "--seed", seed, *flags, *resume)
    return folder


def evaluate(students: dict[str, Path], name: str, seed: int, options: argparse.Namespace) -> dict[str, dict]:
    """Scores by task of each student, of the untrained network and of shape statistics on a labelled set."""
    folder = options.work / f"scores_{name}_{seed}"
    data = ["--dataset_name", options.data / f"{name}.npz", "--tasks", *TASKS, "--seed", seed, "--output_dir", folder]
    run("evaluate.py", "--student", *students.values(), "--untrained", "true", *data)
    results = json.loads((folder / "metrics.json").read_text())["results"]
    return dict(zip([*students, "untrained", "shape statistics"], results, strict=True))


def main() -> None:
    parser = measure.argument_parser("pretraining", __doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--image_transformer", default="facebook/dinov2-small", help="folder or Hub id")
    parser.add_argument("--config", type=Path, default=TRAINING / "recipes" / "distill_views_small.yaml")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=6000, help="of 32 clouds")
    options = parser.parse_args()
    results = measure.ResultFile(measure.output_path("pretraining", options), "pretraining")
    for name, pretrained in (("views", True), ("views_random", False)):
        if not (options.work / name / "config.json").exists():
            teacher = ACTViewTeacher.from_backbone(options.image_transformer, pretrained=pretrained)
            teacher.save_pretrained(options.work / name)
    scores = {}
    for seed in options.seeds:
        students = {row: pretrain(row, seed, options) for row in options.rows}
        for name in options.sets:
            for row, values in evaluate(students, name, seed, options).items():
                values = {task: values[task] for task in TASKS if task in values}
                results.append({"row": row, "seed": seed, "set": name, "steps": options.steps, **values})
                scores.setdefault(row, []).append(values)
    print(f"{'mean over sets':<44}" + "".join(f"{task:>16}" for task in TASKS))
    for row, values in scores.items():
        columns = []
        for task in TASKS:
            known = [value[task] for value in values if task in value]
            of_seeds = np.reshape(known, (len(options.seeds), -1)).mean(1) if known else None
            columns.append(f"{of_seeds.mean():.1%} +- {of_seeds.std():.1%}" if known else "-")
        print(f"{row:<44}" + "".join(f"{column:>16}" for column in columns))


if __name__ == "__main__":
    main()
