"""The rows a run trains and validates on: opened, checked before anything else happens, and cut apart."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from act_training.arguments import TrainingArguments
from act_training.batches import ShuffledRows, StreamedRows
from act_training.errors import InputError
from act_training.point_checks import check_point_set
from act_training.point_sets import PointSet, StreamedPointSet, open_point_set
from act_training.runs import on_main_process, warn


@dataclass
class TrainingData:
    train: PointSet | StreamedPointSet
    validation: PointSet
    fingerprint: str


def open_training_data(options: TrainingArguments, accelerator: Accelerator, min_points: int) -> TrainingData:
    """Train and validation rows. Validation is a split of its own or a seeded part of train; test is never touched."""
    if options.num_points < min_points:
        raise InputError(f"--num_points {options.num_points} is fewer than the {min_points} that the groups need")

    def open_checked(split: str) -> tuple[PointSet, str]:
        with accelerator.main_process_first():  # whatever is downloaded or converted is so once
            point_set = open_point_set(options.dataset_name, split, options.dataset_config_name)

        def check() -> tuple:
            quiet = not accelerator.is_main_process
            checked, problems, digest = check_point_set(point_set, min_points, None, options.skip_bad, quiet)
            report_skipped(problems, Path(options.output_dir) / f"skipped_{split}.txt")
            return checked.rows, digest

        rows, digest = on_main_process(accelerator, check)
        return (point_set if len(rows) == len(point_set) else point_set.select(rows)), digest

    if options.streaming:
        train = open_point_set(
            options.dataset_name, options.train_split, options.dataset_config_name, True, min_points
        )
        digest = train.fingerprint()
    else:
        train, digest = open_checked(options.train_split)
        if options.max_train_samples:
            train = train.select(range(min(options.max_train_samples, len(train))))
    if options.validation_split:
        validation, validation_digest = open_checked(options.validation_split)
        return TrainingData(train, validation, f"{digest}, {validation_digest}")
    if len(train) < 2:
        raise InputError(f"{train.source}: one row cannot be cut into train and validation; name a --validation_split")
    order = np.random.default_rng([options.seed, 1]).permutation(len(train))
    count = min(len(train) - 1, max(1, round(options.validation_share * len(train))))
    return TrainingData(train.select(np.sort(order[count:])), train.select(np.sort(order[:count])), digest)


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


def report_skipped(problems: list[str], path: Path) -> None:
    if problems:
        path.write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")
        warn(f"{len(problems)} bad rows are left out, listed in {path}; the first: {problems[0]}")
