"""Few-shot classification: a student finetuned or probed on a few clouds of a few classes, fold by fold.

python training/few_shot.py --config training/recipes/few_shot_modelnet40.yaml \\
    --dataset_name PREPARED_MODELNET40 --student outputs/student --output_dir outputs/few_shot
python training/few_shot.py ... --ways 5 10 --shots 10 20 --folds 10    each way with each shot; seeded folds
python training/few_shot.py ... --published_folds --ways 5 --shots 10   a set of splits fold_0_train, fold_0_test ...
... --resume_from_checkpoint latest                                     goes on where it was interrupted

A fold draws its classes, its training clouds from --train_split and its queries from --test_split. It trains for all
its epochs, since so few clouds leave none to choose by, and what counts is the model of the last step.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import PartialState
from act_training.arguments import parse_arguments, parse_mapping, save_recipe
from act_training.checkpoints import differences, digest_of
from act_training.classification import (
    ClassificationArguments,
    begin,
    classification_loss,
    make_classifier,
    measure,
    predict,
)
from act_training.data.point_checks import check_point_set
from act_training.data.point_sets import PointSet, open_point_set
from act_training.errors import InputError
from act_training.outputs import write_text
from act_training.runs import run_script
from act_training.training_data import TrainingData, class_names
from act_training.training_run import FREE_FLAGS, TrainingRun
from act_training.transfer import fewest_points, read_config, write_summary

from modeling_act import ACTStudentConfig


@dataclass
class FewShotArguments(ClassificationArguments):
    ways: list[int] = field(default_factory=lambda: [5, 10], metadata={"help": "classes of a fold"})
    shots: list[int] = field(default_factory=lambda: [10, 20], metadata={"help": "training clouds of a class"})
    folds: int = field(default=10, metadata={"help": "folds of each way and shot"})
    queries: int = field(default=20, metadata={"help": "test clouds of a class"})
    published_folds: bool = field(
        default=False, metadata={"help": "the set holds its folds as splits, fold_0_train and fold_0_test and so on"}
    )
    num_train_epochs: float = 150
    checkpointing_steps: str = field(default="1000000", metadata={"help": "a number of steps, or epoch"})
    logging_steps: int = 100

    def check(self) -> None:
        super().check()
        for name, values in {"ways": self.ways, "shots": self.shots}.items():
            if not values or min(values) < 1:
                raise InputError(f"--{name} must be positive, got {values}")
        if min(self.ways) < 2 or min(self.folds, self.queries) < 1:
            raise InputError(
                f"--ways must be at least 2, --folds and --queries at least 1, got {self.ways}, {self.folds}, "
                f"{self.queries}"
            )
        if self.published_folds and (len(self.ways), len(self.shots)) != (1, 1):
            raise InputError("--published_folds are of one way and one shot: name those of the set")
        if self.push_to_hub or self.seeds or not self.test_split:
            raise InputError("few_shot.py needs a --test_split, and takes no --seeds and no --push_to_hub")
        self.final_weights = "last"


@dataclass
class Fold:
    """Clouds to train on and to answer for, and what each of their labels is called here, from 0."""

    known: PointSet
    queries: PointSet
    label_of: torch.Tensor
    names: list[str]


def draw_fold(known: PointSet, queries: PointSet, names: list[str], way: int, shot: int, number: int, options) -> Fold:
    """Classes and clouds of a fold, from those classes that have enough of both."""
    random = np.random.default_rng((options.seed, way, shot, number))
    labels = {"train": known.labels(), "test": queries.labels()}
    wanted = {"train": shot, "test": options.queries}
    enough = [(np.bincount(values, minlength=len(names)) >= wanted[part]) for part, values in labels.items()]
    usable = np.flatnonzero(enough[0] & enough[1])
    if len(usable) < way:
        raise InputError(
            f"{options.dataset_name}: {way} way {shot} shot needs {way} classes of {shot} clouds in "
            f"{options.train_split} and {options.queries} in {options.test_split}, got {len(usable)}"
        )
    classes = random.choice(usable, way, replace=False)
    rows = {
        part: np.concatenate(
            [random.choice(np.flatnonzero(labels[part] == label), wanted[part], replace=False) for label in classes]
        )
        for part in labels
    }
    return make_fold(known.select(rows["train"]), queries.select(rows["test"]), classes, names)


def make_fold(known: PointSet, queries: PointSet, classes: np.ndarray, names: list[str]) -> Fold:
    label_of = torch.full((len(names),), -1)
    label_of[torch.from_numpy(classes)] = torch.arange(len(classes))
    return Fold(known, queries, label_of, [names[label] for label in classes])


class Folds:
    """All folds of a set, whose rows are checked once."""

    def __init__(self, options: FewShotArguments, min_points: int):
        self.options, self.min_points = options, min_points
        if not options.published_folds:
            self.known, self.queries = self.open(options.train_split), self.open(options.test_split)
            self.names = class_names("label", self.known, self.queries)
            for part in (self.known, self.queries):
                check_point_set(part, min_points, len(self.names))

    def open(self, split: str) -> PointSet:
        return open_point_set(self.options.dataset_name, split, self.options.dataset_config_name)

    def make(self, way: int, shot: int, number: int) -> Fold:
        if not self.options.published_folds:
            return draw_fold(self.known, self.queries, self.names, way, shot, number, self.options)
        known, queries = self.open(f"fold_{number}_train"), self.open(f"fold_{number}_test")
        names = class_names("label", known, queries)
        for part in (known, queries):
            check_point_set(part, self.min_points, len(names), quiet=True)
        classes, counts = np.unique(known.labels(), return_counts=True)
        if len(classes) != way or set(counts) != {shot}:
            raise InputError(
                f"{known.source} holds {len(classes)} classes of {counts.tolist()} clouds, not {way} of {shot}"
            )
        return make_fold(known, queries, classes, names)


def train_fold(options: FewShotArguments, fold: Fold, fields: dict) -> dict[str, float]:
    run = TrainingRun(options)
    run.use_data(TrainingData(fold.known, fold.queries, "", fold.queries, fold.names))
    made = make_classifier(options, fields, fold.names)
    model = run.prepare(lambda: made, student=digest_of(made))
    features, label_of = begin(run, model), fold.label_of.to(run.device)
    for _, parts in run.steps(sampled=features is None):
        for batch in parts:
            batch["label"] = label_of[batch["label"]]
            loss, _ = classification_loss(run, batch, features)
            run.backward(loss)
        run.update()
        if run.is_log_due():
            run.log_training()
        run.save_or_stop()
    run.log.close()
    answers = fold.label_of[torch.from_numpy(fold.queries.labels())].numpy()
    found, _ = measure(predict(run, model, fold.queries, features), answers)
    return found


def claim(folder: Path, options: FewShotArguments) -> None:
    """Finished folds in the folder must be of this very command."""
    if options.overwrite_output_dir and not options.resume_from_checkpoint:
        for place in folder.glob("*way*shot"):
            shutil.rmtree(place)
    elif any(folder.glob("*way*shot")):
        if not options.resume_from_checkpoint:
            raise InputError(
                f"{folder} holds folds; pass --resume_from_checkpoint latest to go on, or --overwrite_output_dir"
            )
        before = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        now = asdict(options) | {"model": yaml.safe_load(options.model or "{}")}
        kept = [{name: value for name, value in recipe.items() if name not in FREE_FLAGS} for recipe in (before, now)]
        if different := differences(*kept):
            raise InputError(f"{folder} belongs to another run: {'; '.join(different)}")
    folder.mkdir(parents=True, exist_ok=True)
    save_recipe(folder / "recipe.yaml", options)


def main(arguments: list[str]) -> None:
    options = parse_arguments(FewShotArguments, __doc__, arguments)
    fields = parse_mapping("--model", options.model, set(ACTStudentConfig.__dataclass_fields__))
    if PartialState().num_processes > 1:
        raise InputError("few_shot.py trains small models one after the other: start it in one process")
    folder = Path(options.output_dir)
    claim(folder, options)
    folds = Folds(options, fewest_points(read_config(options, fields)))
    settings, rows = {}, []
    for way, shot in [(way, shot) for way in options.ways for shot in options.shots]:
        name, results = f"{way} way {shot} shot", []
        for number in range(options.folds):
            place = folder / f"{way}way{shot}shot" / f"fold-{number}"
            result = place / "result.json"
            if not result.is_file():
                fold = folds.make(way, shot, number)
                found = train_fold(replace(options, output_dir=str(place)), fold, fields)
                write_text(result, json.dumps(found | {"classes": fold.names}, indent=1))
                shutil.rmtree(place / "checkpoints")  # the size of the model, for each fold
            results.append(json.loads(result.read_text(encoding="utf-8")))
        settings[name] = [result["accuracy"] for result in results]
        rows += [{"setting": name, "fold": i} | result for i, result in enumerate(results)]
    runs = [dict(zip(settings, values, strict=True)) for values in zip(*settings.values(), strict=True)]
    write_summary(folder, "ACT few-shot", runs, {"recipe": asdict(options)}, {"each fold": rows})


if __name__ == "__main__":
    run_script(main)
