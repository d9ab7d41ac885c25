"""Few-shot classification: a student finetuned or probed on a few clouds of a few classes, fold by fold.

python training/few_shot.py --config training/recipes/few_shot_modelnet40.yaml \\
    --dataset_name PREPARED_MODELNET40 --student outputs/student --output_dir outputs/few_shot
python training/few_shot.py ... --ways 5 10 --shots 10 20 --folds 10    each way with each shot; seeded folds
python training/few_shot.py ... --published_folds --ways 5 --shots 10   a set of splits fold_0_train, fold_0_test ...
... --resume_from_checkpoint latest                                     continues where it was interrupted

A fold draws its classes, its training clouds from --train_split and its queries from --test_split. It trains for all
its epochs, since so few clouds leave none to choose by, and what counts is the model of the last step.
"""

import hashlib
import itertools
import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from accelerate import PartialState
from act_training.data.point_sets import PointSet, open_point_set
from act_training.data.schema import check_point_set
from act_training.run.run_data import RunData, check_targets, class_names, report_skipped
from act_training.run.script import as_recipe, parse_arguments, parse_mapping, run_script
from act_training.run.training_run import FREE_FLAGS, TrainingRun
from act_training.run.training_state import differences, digest_of, write_text
from act_training.tasks.classification import (
    ClassificationArguments,
    make_classifier,
    measure,
    model_inputs,
    predict,
    prepare_for_protocol,
)
from act_training.tasks.transfer import read_config, required_points, write_summary

from modeling_act import ACTStudentConfig
from modeling_act.errors import InputError


@dataclass
class FewShotArguments(ClassificationArguments):
    ways: list[int] = field(default_factory=lambda: [5, 10], metadata={"help": "classes of a fold"})
    shots: list[int] = field(default_factory=lambda: [10, 20], metadata={"help": "training clouds of a class"})
    folds: int = field(default=10, metadata={"help": "folds of each way and shot"})
    queries: int = field(default=20, metadata={"help": "test clouds of a class"})
    published_folds: bool = field(default=False, metadata={"help": "splits are fold_0_train, fold_0_test ..."})
    num_train_epochs: float = 150
    checkpointing_steps: str = field(default="1000000", metadata={"help": "a number of steps, or epoch"})
    final_weights: Literal["last", "best", "ema"] = field(default="last", metadata={"help": "must be last"})
    logging_steps: int = 100

    def __post_init__(self):
        super().__post_init__()
        for name, fewest in {"ways": 2, "shots": 1, "folds": 1, "queries": 1}.items():
            values = getattr(self, name)
            if not values or np.min(values) < fewest:
                raise InputError(f"--{name} must be at least {fewest}, got {values}")
        if self.published_folds and (len(self.ways), len(self.shots)) != (1, 1):
            raise InputError("--published_folds are of one way and one shot: name those of the set")
        # Each fold trains to its end, on all of its clouds.
        for name in ("validation_split", "max_train_samples", "seeds", "push_to_hub"):
            if getattr(self, name):
                raise InputError(f"few_shot.py takes no --{name}")
        if self.final_weights != "last" or not self.test_split:
            raise InputError("few_shot.py needs --final_weights last and a --test_split")


@dataclass
class Fold:
    """Clouds to train on, queries, and the label of each class within the fold, from 0."""

    known: PointSet
    queries: PointSet
    label_of: torch.Tensor
    names: list[str]
    fingerprint: str


def draw_rows(
    known: PointSet, queries: PointSet, way: int, shot: int, number: int, options: FewShotArguments
) -> tuple[PointSet, PointSet, np.ndarray]:
    """Draw classes and clouds of a fold, from those classes that have enough of both."""
    random = np.random.default_rng((options.seed, way, shot, number))
    sets, wanted = (known, queries), (shot, options.queries)
    counts = [np.bincount(part.labels(), minlength=max(part.labels().max() for part in sets) + 1) for part in sets]
    usable = np.flatnonzero((counts[0] >= shot) & (counts[1] >= options.queries))
    if len(usable) < way:
        counts = f"{shot} clouds in {options.train_split} and {options.queries} in {options.test_split}"
        raise InputError(f"{way} way {shot} shot needs {way} classes of {counts}, got {len(usable)}")
    classes = random.choice(usable, way, replace=False)
    drawn = []
    for part, count in zip(sets, wanted, strict=True):
        rows = [random.choice(np.flatnonzero(part.labels() == label), count, replace=False) for label in classes]
        drawn.append(part.select(np.concatenate(rows)))
    return *drawn, classes


Clouds = tuple[PointSet, PointSet, list[str], str]  # to train on, queries, names of all classes, digest


def open_clouds(options: FewShotArguments, min_points: int, *splits: str) -> Clouds:
    """Open and check the clouds of a split to train on and of one of queries."""
    parts = [open_point_set(options.dataset_name, split, options.dataset_config_name) for split in splits]
    names, digests = class_names("label", *parts), []
    for place, part in enumerate(parts):
        parts[place], problems, digest = check_point_set(part, min_points, len(names), options.skip_bad, True)
        report_skipped(problems, Path(options.output_dir) / f"skipped_{splits[place]}.txt")
        digests += [digest, check_targets("label", parts[place], len(names))]
    return *parts, names, ", ".join(digests)


def make_fold(options: FewShotArguments, clouds: Clouds, way: int, shot: int, number: int) -> Fold:
    """Draw a fold, or check that all the clouds are a published one of this way and shot."""
    known, queries, names, digest = clouds
    if options.published_folds:
        classes, counts = np.unique(known.labels(), return_counts=True)
        if len(classes) != way or set(counts) != {shot}:
            sizes = f"{len(classes)} classes of {counts.tolist()} clouds"
            raise InputError(f"{known.source} holds {sizes}, not {way} of {shot}")
        if unknown := sorted(set(queries.labels()) - set(classes)):
            raise InputError(f"{queries.source} asks for {names[unknown[0]]}, of which its fold knows no cloud")
    else:
        known, queries, classes = draw_rows(known, queries, way, shot, number, options)
    label_of = torch.full((len(names),), -1)
    label_of[torch.from_numpy(classes)] = torch.arange(len(classes))
    return Fold(known, queries, label_of, [names[label] for label in classes], digest)


def train_fold(options: FewShotArguments, fold: Fold, fields: dict) -> dict[str, float]:
    """Train on a fold's clouds; return the metrics of its queries."""
    run = TrainingRun(options)
    data = RunData(options, run.accelerator, fold.known, fold.queries, fold.fingerprint, fold.queries, fold.names)
    run.use_data(data)
    model = make_classifier(options, fields, fold.names)
    run.prepare(model, student=digest_of(model))
    features, label_of = prepare_for_protocol(run, model), fold.label_of.to(run.device)
    for batch in run.batches(sampled=features is None):
        batch["label"] = label_of[batch["label"]]
        with run.autocast():
            loss = run.model(**model_inputs(run, batch, features), smoothing=options.label_smoothing).loss
        run.step(loss)
        if run.is_log_due():
            run.log_training()
    run.log.close()
    answers = fold.label_of[torch.from_numpy(fold.queries.labels())].numpy()
    return measure(predict(run, model, fold.queries, features), answers)[0]


def prepare_folder(folder: Path, options: FewShotArguments) -> None:
    """Write the recipe into the output folder, which must hold no folds unless they are continued or deleted."""
    if not options.resume_from_checkpoint:
        old_folds = list(folder.glob("*way*shot"))
        if old_folds and not options.overwrite_output_dir:
            raise InputError(f"{folder} holds folds; pass --resume_from_checkpoint latest, or --overwrite_output_dir")
        for place in old_folds:
            shutil.rmtree(place)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.yaml", yaml.safe_dump(as_recipe(options), sort_keys=False))


def main(arguments: list[str]) -> None:
    options = parse_arguments(FewShotArguments, __doc__, arguments)
    fields = parse_mapping("--model", options.model, set(ACTStudentConfig.__dataclass_fields__))
    if PartialState().num_processes > 1:
        raise InputError("few_shot.py trains small models one after the other: start it in one process")
    folder = Path(options.output_dir)
    prepare_folder(folder, options)
    min_points = required_points(read_config(options, fields))
    if not options.published_folds:
        clouds = open_clouds(options, min_points, options.train_split, options.test_split)
    recipe = {name: value for name, value in as_recipe(options).items() if name not in FREE_FLAGS}
    weights = Path(options.student or "") / "model.safetensors"  # a student on the Hub goes by its name
    student = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else str(options.student)
    settings, rows = {}, []
    for way, shot in itertools.product(options.ways, options.shots):
        name = f"{way} way {shot} shot"
        for number in range(options.folds):
            place = folder / f"{way}way{shot}shot" / f"fold-{number}"
            if options.published_folds:
                clouds = open_clouds(options, min_points, f"fold_{number}_train", f"fold_{number}_test")
            result, fold = place / "result.json", make_fold(options, clouds, way, shot, number)
            identity = {"classes": fold.names, "data": fold.fingerprint, "student": student, "recipe": recipe}
            if not result.is_file():
                metrics = train_fold(replace(options, output_dir=str(place)), fold, fields)
                write_text(result, json.dumps({"metrics": metrics, "fold": identity}, indent=1))
                shutil.rmtree(place / "checkpoints")  # the size of the model, for each fold
            record = json.loads(result.read_text(encoding="utf-8"))
            if changes := differences(record["fold"], identity):
                raise InputError(f"{result} belongs to another run: {'; '.join(changes)}")
            settings.setdefault(name, []).append(record["metrics"]["accuracy"])
            rows.append({"setting": name, "fold": number} | record["metrics"])
    runs = [dict(zip(settings, values, strict=True)) for values in zip(*settings.values(), strict=True)]
    about, tables = {"recipe": asdict(options)}, {"each fold": rows}
    write_summary(folder, "ACT few-shot", runs, about, tables, f"queries of {options.test_split}")


if __name__ == "__main__":
    run_script(main)
