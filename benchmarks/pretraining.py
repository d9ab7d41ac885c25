"""The worth of pretraining: students of several teachers, of one size and after the same clouds, on labelled shapes.

    python benchmarks/pretraining.py --data DATA --work WORK --image_transformer facebook/dinov2-small
    ... --rows views coordinates --seeds 0 1 2 --steps 300 1000 3000 6000    these rows, a student of each length
    ... --finetune 5 20                                                      all weights, on so many shapes a class

DATA holds `pretrain.npz` (points, split) and labelled sets (points, labels, split), all with y up, which no student
sees in pretraining. WORK keeps teachers, students and scores; a second call continues, and a call for other rows adds
them. Each row of ROWS is a student; beside them stand the untrained network, shape statistics and the view teacher.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

import measure
import plots

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "training"))  # where act_training is

from act_training.data.batches import Sampling, validation_batches  # noqa: E402
from act_training.data.point_sets import open_point_set  # noqa: E402
from act_training.measure import frozen_features  # noqa: E402
from act_training.measure.metrics import retrieval_map  # noqa: E402
from act_training.run.training_state import calibrate_batch_norm  # noqa: E402

from modeling_act import ACTStudent, ACTStudentConfig, ACTViewTeacher  # noqa: E402
from modeling_act.act_layers import ACTWhitening  # noqa: E402

SETS = ["everyday_objects", "ancient_objects", "kicad_parts", "ldraw_parts"]
VIEWS = ["--teacher", "{work}/views"]
ACT = ["--teacher", "{work}/act", "--target", "backbone", "--teacher_points", "512"]
GROUPS_ALONE, APART = ["--cloud_target", "false"], ["--model", "decoder_attention: visible"]
SELF = ["--ema_decay", "0.996", "--target_norm", "layer_norm", "--cache_targets", "false"]
ROWS = {  # flags of distill.py
    "views": VIEWS,
    "views, random weights": ["--teacher", "{work}/views_random"],
    "coordinates": ["--target", "coordinates", *GROUPS_ALONE, "--cache_targets", "false"],
    "views, groups alone": [*VIEWS, *GROUPS_ALONE],
    "views, masked groups apart": [*VIEWS, *APART],
    "views, apart and in blocks": [*VIEWS, "--model", "decoder_attention: visible, mask_type: blocks"],
    "views, jittered centers": [*VIEWS, "--model", "center_jitter: 0.05"],
    "views, no visible groups": [*VIEWS, "--model", "decoder_attention: none"],
    "views, phi_s": [*VIEWS, "--target_norm", "phi_s"],
    "views, layer_norm": [*VIEWS, "--target_norm", "layer_norm"],
    "views, turned about the vertical": [*VIEWS, "--augmentation", "scale", "rotate_y"],
    "self": ["--teacher", "self", *SELF],
    "views and self": [*VIEWS, "self", "--ema_decay", "0.996"],
    "ACT": [*ACT, *GROUPS_ALONE],
    "ACT, random weights": ["--teacher", "{work}/act_random", *ACT[2:], *GROUPS_ALONE],
    "ACT, class token": ACT,
    "ACT, class token, apart": [*ACT, *APART],
    "views and ACT": [*VIEWS, "{work}/act", "--teacher_points", "512"],
}
POOLINGS = {"cls_max": (0, 2), "mean_max": (1, 2), "cls": (0,), "cls_mean_max": (0, 1, 2)}  # parts of cls_mean_max
EPISODES, QUERIES = 200, 10
FINETUNE_STEPS = {5: 300, 20: 600}  # of 32 clouds, for so many shapes a class; 1,200 for all


def run(script: str, *flags: object) -> None:
    subprocess.run(
        [sys.executable, ROOT / "training" / script, *map(str, flags)], check=True, stdout=subprocess.DEVNULL
    )


# Teachers and students -----------------------------------------------------------------------------------------------


def make_teacher(name: str, options: argparse.Namespace) -> None:
    """Make one of the teachers of ROWS in its folder of WORK, unless it is there."""
    folder, pretrained = options.work / name, not name.endswith("_random")
    if (folder / "config.json").exists():
        return
    torch.manual_seed(0)
    if name.startswith("views"):
        ACTViewTeacher.from_backbone(options.image_transformer, pretrained=pretrained).save_pretrained(folder)
    else:
        flags = ["--backbone", options.language_model, "--pretrained_backbone", pretrained, *options.pretraining_set]
        flags += ["--max_train_steps", 2, "--max_train_samples", 64] if options.quick else []
        run("autoencode.py", "--config", options.teacher_config, *flags, "--output_dir", folder)


def pretrain(row: str, steps: int, seed: int, options: argparse.Namespace) -> Path:
    """Pretrain the student of a row, unless that was done before; return its folder."""
    folder = options.work / f"{row.replace(',', '').replace(' ', '_')}_{steps}_{seed}"
    if (folder / "metrics.json").exists():
        return folder
    flags = [flag.format(work=options.work) for flag in ROWS[row]]
    teachers = [Path(flag).name for flag in flags if flag.startswith(f"{options.work}/")]
    for teacher in teachers:
        make_teacher(teacher, options)
    if "--model" in flags:  # the recipe's fields and these: a flag would replace them all
        place = flags.index("--model") + 1
        fields = student_fields(options) | yaml.safe_load(f"{{{flags[place]}}}")
        flags[place] = yaml.safe_dump(fields, default_flow_style=True, width=10_000).strip()
    cache = options.work / "_".join(["targets", *teachers])  # shared by the rows of these teachers
    common = ["--config", options.config, *options.pretraining_set, "--cache_folder", cache]
    common += ["--max_train_steps", steps, "--seed", seed]
    common += ["--max_train_samples", 64] if options.quick else []
    resume = ["--resume_from_checkpoint", "latest"] if (folder / "checkpoints").exists() else []
    run("distill.py", *common, "--output_dir", folder, *flags, *resume)
    return folder


def student_fields(options: argparse.Namespace) -> dict:
    return yaml.safe_load(options.config.read_text())["model"]


# Scores --------------------------------------------------------------------------------------------------------------


def kept(function: Callable, *arguments, options: argparse.Namespace) -> dict:
    """Return what a function returns, from a file of WORK where an earlier call has left it."""
    words = [value.name if isinstance(value, Path) else str(value or 0) for value in arguments]
    path = options.work / "scores" / f"{'_'.join([function.__name__, *words])}.json"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(function(*arguments, options)))
    return json.loads(path.read_text())


def labelled(name: str, options: argparse.Namespace) -> list:
    return [open_point_set(str(options.data / f"{name}.npz"), split, None) for split in ("train", "test")]


def score_student(folder: Path | None, name: str, seed: int, options: argparse.Namespace) -> dict:
    """Scores of a student's frozen features on a labelled set; of the untrained network where no folder is given."""
    sets, sampling = labelled(name, options), Sampling(512, seed)
    if folder:
        student = ACTStudent.from_pretrained(folder).eval()
    else:
        torch.manual_seed(seed)
        student = ACTStudent(ACTStudentConfig(**student_fields(options))).eval()
        batches = validation_batches(sets[0], 32, sampling, torch.device("cpu"))
        calibrate_batch_norm(student, lambda batch: student(batch["points"]), batches)
    pretraining = open_point_set(str(options.data / "pretrain.npz"), "train")
    pretraining = pretraining.select(range(min(2000, len(pretraining))))
    known, new, seen = (
        frozen_features.embed(student, rows, sampling, 64, pooling="cls_mean_max") for rows in (*sets, pretraining)
    )
    labels = [rows.labels() for rows in sets]
    if (whitening := student.whitening) is None:
        whitening = ACTWhitening(known.shape[1])
        whitening.measure(torch.from_numpy(seen))
    whitened = [whitening(torch.from_numpy(part)).numpy() for part in (known, new)]
    return score_features(known, new, *labels, seed, options.svm) | {"whitened": nearest(*whitened, *labels)}


def score_teacher(name: str, options: argparse.Namespace) -> dict:
    """Scores of what the view teacher itself says of clouds."""
    teacher = ACTViewTeacher.from_pretrained(options.work / "views").eval()
    sets, features = labelled(name, options), []
    for rows in sets:
        batches = validation_batches(rows, 32, Sampling(2048), torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16):
            parts = [teacher(points=batch["points"]).cloud_features for batch in batches]
        features.append(torch.cat(parts).float().numpy())
    return score_features(*features, *(rows.labels() for rows in sets), seed=0, svm=options.svm, poolings=None)


def score_features(known, new, known_labels, new_labels, seed: int, svm: bool = True, poolings=POOLINGS) -> dict:
    """Accuracies of classifiers on features, mean average precision of retrieval, accuracies of few-shot episodes.

    Features are standardized by those of the train rows. With `poolings` the nearest neighbor is asked for each.
    """
    mean, deviation = known.mean(0), known.std(0).clip(1e-6)
    known, new = (known - mean) / deviation, (new - mean) / deviation
    scores = {}
    if poolings:
        known, new = (np.split(features, 3, axis=1) for features in (known, new))
        joined = {
            name: [np.hstack([part[i] for i in places]) for part in (known, new)] for name, places in poolings.items()
        }
        scores["poolings"] = {name: nearest(*pair, known_labels, new_labels) for name, pair in joined.items()}
        known, new = joined["cls_mean_max"]
    scores["nearest"] = nearest(known, new, known_labels, new_labels)
    for task in ("probe", "svm") if svm else ("probe",):
        predicted, _ = frozen_features.fit_and_predict(task, known, known_labels, new, seed)
        scores[task] = float((predicted == new_labels).mean())
    scores["retrieval"] = retrieval_map(new, new_labels)
    for ways in (5, 10):
        scores[f"{ways}_way"] = few_shot(known, new, known_labels, new_labels, ways, seed)
    return scores


def nearest(known, new, known_labels, new_labels) -> float:
    """Accuracy of the nearest neighbor by cosine."""
    known, new = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (known, new))
    return float((known_labels[(new @ known.T).argmax(1)] == new_labels).mean())


def few_shot(known, new, known_labels, new_labels, ways: int, seed: int, shots: int = 5) -> float:
    """Mean accuracy of the nearest class mean over episodes: classes at random, `shots` train rows of each."""
    random, accuracies = np.random.default_rng(seed), []
    known, new = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (known, new))
    rows = [
        [np.flatnonzero(part == label) for part in (known_labels, new_labels)] for label in np.unique(known_labels)
    ]
    rows = [pair for pair in rows if len(pair[0]) >= shots and len(pair[1])]
    for _ in range(EPISODES):
        chosen = [rows[place] for place in random.choice(len(rows), min(ways, len(rows)), replace=False)]
        means = np.stack([known[random.choice(pair[0], shots, replace=False)].mean(0) for pair in chosen])
        for place, (_, queries) in enumerate(chosen):
            queries = random.choice(queries, min(QUERIES, len(queries)), replace=False)
            accuracies.append(float(((new[queries] @ means.T).argmax(1) == place).mean()))
    return float(np.mean(accuracies))


def finetune(folder: Path | None, name: str, count: int, seed: int, options: argparse.Namespace) -> dict:
    """Accuracy after all weights trained on `count` shapes of each class (0: all); from scratch without a folder."""
    arrays = dict(np.load(options.data / f"{name}.npz"))
    random, train = np.random.default_rng(seed), np.flatnonzero(arrays["split"] == "train")
    order = random.permutation(train)
    classes = [order[arrays["labels"][order] == label] for label in np.unique(arrays["labels"][train])]
    few = np.concatenate([rows[: count or len(rows)] for rows in classes])
    rows = np.concatenate([few, few[:1], np.flatnonzero(arrays["split"] == "test")])
    arrays = {key: values[rows] if key != "class_names" else values for key, values in arrays.items()}
    arrays["split"] = np.repeat(["train", "validation", "test"], [len(few), 1, len(rows) - len(few) - 1])
    output = options.work / "finetuned" / f"{name}_{count}_{seed}_{folder.name if folder else 'scratch'}"
    output.parent.mkdir(exist_ok=True)
    path = output.with_suffix(".npz")
    np.savez(path, **arrays)
    steps = 2 if options.quick else FINETUNE_STEPS.get(count, 1200)
    # Nothing is chosen: the last weights count, and the split "validation" is one row.
    flags = ["--dataset_name", path, "--validation_split", "validation", "--final_weights", "last", "--up_axis", "y"]
    flags += ["--num_points", 512, "--augmentation", "scale_shift", "--samplings", 8, "--max_train_steps", steps]
    flags += ["--learning_rate", 1e-3, "--lr_per_epoch", "false", "--warmup_epochs", 1, "--validation_epochs", 10_000]
    flags += ["--student", folder, "--model", "{}"] if folder else ["--model", json.dumps(student_fields(options))]
    run("finetune.py", *flags, "--seed", seed, "--output_dir", output)
    path.unlink()
    return {f"finetuned_{count or 'all'}": json.loads((output / "metrics.json").read_text())["test"]["accuracy"]}


# The table -----------------------------------------------------------------------------------------------------------


def summarize(records: list[dict]) -> None:
    """Print mean and deviation over seeds of the means over sets, a line for each row and length."""
    tasks = list(dict.fromkeys(key for record in records for key, value in record.items() if isinstance(value, float)))
    print(f"{'mean over sets':<44}" + "".join(f"{task:>16}" for task in tasks))
    for row, steps in dict.fromkeys((record["row"], record["steps"]) for record in records):
        own = [record for record in records if (record["row"], record["steps"]) == (row, steps)]
        columns = []
        for task in tasks:
            seeds = {record["seed"] for record in own if task in record}
            means = [np.mean([r[task] for r in own if r["seed"] == seed and task in r]) for seed in sorted(seeds)]
            columns.append(f"{np.mean(means):.1%} +- {np.std(means):.1%}" if means else "-")
        print(f"{row + (f', {steps * 32:,} clouds' if steps else ''):<44}" + "".join(f"{c:>16}" for c in columns))


def main() -> None:
    parser = measure.argument_parser("pretraining", __doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--image_transformer", default="facebook/dinov2-small", help="folder or Hub id")
    parser.add_argument("--language_model", default="sentence-transformers/all-MiniLM-L6-v2", help="folder or Hub id")
    parser.add_argument("--config", type=Path, default=ROOT / "training/recipes/distill_views_small.yaml")
    parser.add_argument("--teacher_config", type=Path, default=ROOT / "training/recipes/autoencode_small.yaml")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", nargs="+", type=int, default=[6000], help="of 32 clouds; a student of each length")
    parser.add_argument("--finetune", nargs="*", type=int, default=[], help="shapes of each class; 0: all")
    parser.add_argument("--svm", action="store_true", help="score by support vector machines too, which takes minutes")
    parser.add_argument("--teacher_itself", action="store_true", help="score the view teacher as well")
    options = parser.parse_args()
    if options.quick:
        options.work, options.steps = options.work / "quick", [2]
    options.work.mkdir(parents=True, exist_ok=True)
    options.pretraining_set = ["--dataset_name", options.data / "pretrain.npz", "--validation_split", "validation"]
    results, records = measure.ResultFile(measure.output_path("pretraining", options), "pretraining"), []

    def add(row: str, steps: int, seed: int, name: str, values: dict) -> None:
        records.append({"row": row, "seed": seed, "set": name, "steps": steps, **values})
        results.append(records[-1])

    def add_student(row: str, steps: int, seed: int, student: Path | None, counts: list[int]) -> None:
        for name in options.sets:
            values = kept(score_student, student, name, seed, options=options)
            for count in counts:
                values |= kept(finetune, student, name, count, seed, options=options)
            add(row, steps, seed, name, values)

    for seed in options.seeds:
        add_student("untrained", 0, seed, None, options.finetune)
        for name in options.sets:
            accuracy = frozen_features.nearest_shape_accuracy(*labelled(name, options), Sampling(512, seed))
            add("shape statistics", 0, seed, name, {"nearest": accuracy})
        for row, steps in itertools.product(options.rows, options.steps):
            counts = options.finetune if steps == options.steps[-1] else []
            add_student(row, steps, seed, pretrain(row, steps, seed, options), counts)
    if options.teacher_itself:
        make_teacher("views", options)
        for name in options.sets:
            add("the teacher itself", 0, 0, name, kept(score_teacher, name, options=options))
    summarize(records)
    if not options.quick:
        plots.plot_pretraining(records, ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
