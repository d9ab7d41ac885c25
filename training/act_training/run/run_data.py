"""The rows a run trains, validates and is tested on: opened, checked before anything else happens, and cut apart."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from act_training.data.batches import ShuffledRows, StreamedRows
from act_training.data.checks import check_point_set
from act_training.data.point_sets import PointSet, StreamedPointSet, open_point_set
from act_training.data.schema import IGNORED
from act_training.data.splits import LabelColumn, hold_out_any
from act_training.run.arguments import TrainingArguments
from act_training.run.process import on_main_process, warn
from modeling_act.errors import InputError


@dataclass
class TrainingData:
    train: PointSet | StreamedPointSet
    validation: PointSet
    fingerprint: str
    test: PointSet | None = None
    names: list[str] = field(default_factory=list)  # of the classes to learn, where there are any


def open_training_data(
    options: TrainingArguments,
    accelerator: Accelerator,
    min_points: int,
    target: LabelColumn | None = None,
    test_split: str | None = None,
) -> TrainingData:
    """Train and validation rows. Validation is a split of its own or a seeded part of train. The test split is opened
    where a script names it, and checked like the others, so that a damaged one says so before and not after training.
    """
    if options.num_points < min_points:
        raise InputError(f"--num_points {options.num_points} is fewer than the {min_points} that the groups need")

    def open_split(split: str) -> PointSet:
        with accelerator.main_process_first():  # whatever is downloaded or converted is so once
            try:
                return open_point_set(options.dataset_name, split, options.dataset_config_name)
            except InputError as error:
                if split != test_split:
                    raise
                raise InputError(f"{error}; --test_split= runs without a test") from error

    def check(point_set: PointSet, split: str) -> tuple[PointSet, str]:
        def work() -> tuple:
            quiet = not accelerator.is_main_process
            num_classes = len(names) if target and target.column == "label" else None
            least = 1 if target and target.repeats_points else min_points
            checked, problems, digest = check_point_set(point_set, least, num_classes, options.skip_bad, quiet)
            report_skipped(problems, Path(options.output_dir) / f"skipped_{split}.txt")
            return checked.rows, digest

        rows, digest = on_main_process(accelerator, work)
        return (point_set if len(rows) == len(point_set) else point_set.select(rows)), digest

    if options.streaming:
        train = open_point_set(
            options.dataset_name, options.train_split, options.dataset_config_name, True, min_points
        )
        validation, digest = check(open_split(options.validation_split), options.validation_split)
        return TrainingData(train, validation, f"{train.fingerprint()}, {digest}")
    splits = {"train": options.train_split, "validation": options.validation_split, "test": test_split}
    opened = {part: open_split(split) for part, split in splits.items() if split}
    names = class_names(target.column, *opened.values()) if target else []
    digests = []
    for part, point_set in opened.items():
        opened[part], digest = check(point_set, splits[part])
        digests.append(digest)
    if target:
        digests.append(hashlib.blake2b(repr(names).encode(), digest_size=8).hexdigest())
        digests += [check_targets(target.column, point_set, len(names)) for point_set in opened.values()]
    train = opened["train"]
    if options.max_train_samples:
        train = train.select(range(min(options.max_train_samples, len(train))))
    if not options.validation_split:
        train, opened["validation"] = hold_out_validation(train, options, target)
        if target and target.column == "label" and accelerator.is_main_process:
            warn_of_unjudged(train.labels(), opened["validation"].labels(), names)
    return TrainingData(train, opened["validation"], ", ".join(digests), opened.get("test"), names)


def hold_out_validation(
    train: PointSet, options: TrainingArguments, target: LabelColumn | None
) -> tuple[PointSet, PointSet]:
    """What is left of train, and what validates."""
    if len(train) < 2:
        raise InputError(f"{train.source}: one row cannot be cut into train and validation; name a --validation_split")
    hold_out = target.hold_out if target else hold_out_any
    kept, held_out = hold_out(train, options.validation_share, options.seed)
    if not (len(kept) and len(held_out)):
        raise InputError(f"{train.source}: no class has two rows to cut into train and validation")
    return train.select(kept), train.select(held_out)


# Labels --------------------------------------------------------------------------------------------------------------


def class_names(column: str, *point_sets: PointSet) -> list[str]:
    """The names of the classes of a column, which all sets must share; numbers where they have none."""
    for point_set in point_sets:
        if column not in point_set.columns:
            names = ", ".join(point_set.dataset.column_names)
            raise InputError(f"{point_set.source} has no {column}, which are to be learned; its columns are {names}")
    named = [(point_set, point_set.names_of(column)) for point_set in point_sets]
    first, names = named[0]
    for other, other_names in named[1:]:
        if other_names != names:
            raise InputError(f"{first.source} and {other.source} name different classes, {names} and {other_names}")
    if names is None:
        largest = max(_values_of(column, point_set).max(initial=0) for point_set in point_sets)
        names = [str(number) for number in range(int(largest) + 1)]
    return names


def check_targets(column: str, point_set: PointSet, num_classes: int) -> str:
    """A digest of a column, all of whose values must name one of the classes; those of points may be ignored."""
    digest = hashlib.blake2b(digest_size=8)
    for rows, columns in point_set.iterate_columns():
        values, counts = columns[column] if isinstance(columns[column], tuple) else (columns[column], None)
        if column == "point_labels" and (wrong := (counts != columns["points"][1]).nonzero()[0]).size:
            place = wrong[0]
            raise InputError(
                f"{point_set.where(rows[place])}: {counts[place]} point labels of {columns['points'][1][place]} points"
            )
        allowed = (values >= 0) & (values < num_classes)
        if column == "point_labels":
            allowed |= values == IGNORED
        if not allowed.all():
            place = (~allowed).nonzero()[0][0]
            row = rows[place if counts is None else np.searchsorted(counts.cumsum(), place, side="right")]
            what = f"{column} {values[place]} where 0 to {num_classes - 1} were expected"
            raise InputError(f"{point_set.where(row)}: {what}")
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()


def _values_of(column: str, point_set: PointSet) -> np.ndarray:
    if column == "label":
        return point_set.labels()
    parts = (columns[column] for _, columns in point_set.iterate_columns())
    return np.concatenate([part[0] if isinstance(part, tuple) else part for part in parts])


def make_row_order(
    data: TrainingData, options: TrainingArguments, accelerator: Accelerator
) -> ShuffledRows | StreamedRows:
    """Which rows this process sees in which of its batches."""
    common = {
        "batch_size": options.per_device_train_batch_size,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "seed": options.seed,
    }
    if isinstance(data.train, StreamedPointSet):
        return StreamedRows(data.train.block_sizes, window=data.train.window, **common)
    return ShuffledRows(len(data.train), **common)


def warn_of_unjudged(train: np.ndarray, validation: np.ndarray, names: list[str]) -> None:
    """Classes of one row, which stays in train: a validation accuracy of 100 % would say nothing of them."""
    if unjudged := [names[label] for label in np.setdiff1d(train, validation)]:
        warn(f"validation has no row of {', '.join(unjudged)}: its figures say nothing of what has one row alone")


def report_skipped(problems: list[str], path: Path) -> None:
    if problems:
        path.write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")
        warn(f"{len(problems)} bad rows are left out, listed in {path}; the first: {problems[0]}")
