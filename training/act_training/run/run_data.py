"""Rows that a run trains on, validates on and is tested on: opened, checked, divided, and read in batches."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from act_training.data.batches import (
    VALIDATION_EPOCH,
    Sampling,
    ShuffledRows,
    StreamedRows,
    augment,
    iterate_batches,
    sample_points,
    validation_batches,
)
from act_training.data.point_sets import PointSet, StreamedPointSet, open_point_set
from act_training.data.schema import IGNORED, check_point_set
from act_training.run.script import ACTTrainingArguments, on_main_process, warn
from modeling_act.errors import InputError


@dataclass
class RunData:
    """Point sets of a run and the batches made of them, which depend on (seed, step, rank) alone. `class_names` are
    those of the column to learn; `fingerprint` identifies the rows, for checkpoints."""

    options: ACTTrainingArguments
    accelerator: Accelerator
    train: PointSet | StreamedPointSet
    validation: PointSet
    fingerprint: str
    test: PointSet | None = None
    class_names: list[str] = field(default_factory=list)

    def __post_init__(self):
        options = self.options
        seed = options.seed if options.sampling_seed is None else options.sampling_seed
        self.sampling = Sampling(options.num_points, seed, options.normalize, options.point_sampling)
        self.augmentation = options.augmentation

    def train_batches(self, start: int, stop: int, sampled: bool = True) -> Iterator[dict[str, Tensor]]:
        """Yield batches `start` to `stop` of this process: points (batch, num_points, 3), keys (batch, 2) of (epoch,
        row), and the labels that the set has; points as they are stored unless `sampled`."""
        device = self.accelerator.device
        workers, pin_memory = self.options.dataloader_num_workers, device.type == "cuda"
        for batch in iterate_batches(self.train, self._row_order(), start, stop, workers, pin_memory):
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            yield self._sample(batch) if sampled else batch

    def _row_order(self) -> ShuffledRows | StreamedRows:
        options, accelerator = self.options, self.accelerator
        process = accelerator.process_index, accelerator.num_processes, options.seed
        if isinstance(self.train, StreamedPointSet):
            sizes, window = self.train.block_sizes, self.train.window
            return StreamedRows(sizes, window, options.per_device_train_batch_size, *process)
        return ShuffledRows(len(self.train), options.per_device_train_batch_size, *process)

    def _sample(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        options, keys = self.options, batch["keys"]
        if options.samplings:
            batch = self.sample_fixed(batch, keys[:, 0] % options.samplings)
        else:
            batch = sample_points(batch, self.sampling, training=True)
        for name in ("points", "teacher_points"):
            if name in batch:
                batch[name] = augment(batch[name], keys, options.seed, self.augmentation)
        return batch | {"keys": keys}

    def sample_fixed(self, batch: dict[str, Tensor], number: Tensor) -> dict[str, Tensor]:
        """Sample points by `number` (batch,) of the --samplings; the points of number 0 are those of validation."""
        keys = torch.stack([VALIDATION_EPOCH - number, batch["keys"][:, 1]], dim=1)
        return sample_points(batch | {"keys": keys}, self.sampling)

    def validation_batches(self, point_set: PointSet | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield this process' rows of the validation set, or of another set; always the same points."""
        point_set = self.validation if point_set is None else point_set
        size, accelerator = self.options.per_device_eval_batch_size, self.accelerator
        share = accelerator.process_index, accelerator.num_processes
        return validation_batches(point_set, size, self.sampling, accelerator.device, *share)

    def all_train_batches(self, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield all training rows in their order, with the points of their first sampling."""
        return validation_batches(self.train, batch_size, self.sampling, self.accelerator.device)

    def sample_clouds(self, count: int) -> dict[str, Tensor]:
        """Return the first validation rows in one batch."""
        rows = self.validation.select(range(min(count, len(self.validation))))
        return next(validation_batches(rows, count, self.sampling, self.accelerator.device))


@dataclass(frozen=True)
class LabelColumn:
    """Column to learn, and the function that splits its set into train and validation rows."""

    column: str
    hold_out: Callable[[PointSet, float, int], tuple[np.ndarray, np.ndarray]]  # of (point_set, share, seed)
    repeats_points: bool = False  # True if a cloud with fewer points than the groups need is no bad row


def hold_out_any(point_set: PointSet, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off a random share of all rows. Returns train and validation rows."""
    order = np.random.default_rng([seed, 1]).permutation(len(point_set))
    count = min(len(point_set) - 1, max(1, round(share * len(point_set))))
    return np.sort(order[count:]), np.sort(order[:count])


def hold_out_by_class(point_set: PointSet, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off the same share of each class. Returns train and validation rows."""
    return split_rows(point_set.labels(), share, seed)


def split_rows(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off about `share` of each class, at least one of two rows. Returns train and validation rows."""
    random, held_out = np.random.default_rng([seed, 7]), []
    for label in np.unique(labels):
        rows = random.permutation((labels == label).nonzero()[0])
        held_out.append(rows[: max(1, round(share * len(rows)))] if len(rows) > 1 else rows[:0])
    held_out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def open_run_data(
    options: ACTTrainingArguments,
    accelerator: Accelerator,
    min_points: int,
    target: LabelColumn | None = None,
    test_split: str | None = None,
) -> RunData:
    """Open and check all splits, the test split too, so that damage is reported before training. Validation is a split
    of its own or a seeded part of train."""
    if options.num_points < min_points:
        raise InputError(f"--num_points {options.num_points} is fewer than the {min_points} that the groups need")

    def open_split(split: str) -> PointSet:
        with accelerator.main_process_first():  # downloads and conversions happen once
            try:
                return open_point_set(options.dataset_name, split, options.dataset_config_name)
            except InputError as error:
                if split != test_split:
                    raise
                raise InputError(f"{error}; --test_split= runs without a test") from error

    def check(point_set: PointSet, split: str) -> tuple[PointSet, str]:
        def work() -> tuple:
            num_classes = len(names) if target and target.column == "label" else None
            fewest = 1 if target and target.repeats_points else min_points
            quiet = not accelerator.is_main_process
            checked, problems, digest = check_point_set(point_set, fewest, num_classes, options.skip_bad, quiet)
            report_skipped(problems, Path(options.output_dir) / f"skipped_{split}.txt")
            return checked.rows, digest

        rows, digest = on_main_process(accelerator, work)
        return (point_set if len(rows) == len(point_set) else point_set.select(rows)), digest

    if options.streaming:
        name, config_name = options.dataset_name, options.dataset_config_name
        train = open_point_set(name, options.train_split, config_name, streaming=True, min_points=min_points)
        validation, digest = check(open_split(options.validation_split), options.validation_split)
        return RunData(options, accelerator, train, validation, f"{train.fingerprint()}, {digest}")
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
            missing = [names[label] for label in np.setdiff1d(train.labels(), opened["validation"].labels())]
            if missing:
                warn(f"validation has no row of {', '.join(missing)}: its figures do not cover classes of one row")
    return RunData(options, accelerator, train, opened["validation"], ", ".join(digests), opened.get("test"), names)


def hold_out_validation(
    train: PointSet, options: ACTTrainingArguments, target: LabelColumn | None
) -> tuple[PointSet, PointSet]:
    """Divide train into the rows to train on and those to validate on."""
    if len(train) < 2:
        raise InputError(f"{train.source}: one row cannot be cut into train and validation; name a --validation_split")
    hold_out = target.hold_out if target else hold_out_any
    train_rows, validation_rows = hold_out(train, options.validation_share, options.seed)
    if not (len(train_rows) and len(validation_rows)):
        raise InputError(f"{train.source}: no class has two rows to cut into train and validation")
    return train.select(train_rows), train.select(validation_rows)


def class_names(column: str, *point_sets: PointSet) -> list[str]:
    """Return the class names of a column, which all sets must share; numbers for unnamed classes."""
    for point_set in point_sets:
        if column not in point_set.columns:
            names = ", ".join(point_set.dataset.column_names)
            raise InputError(f"{point_set.source} has no column {column} to learn; its columns are {names}")
    first, names = point_sets[0], point_sets[0].names_of(column)
    for other in point_sets[1:]:
        if (other_names := other.names_of(column)) != names:
            raise InputError(f"{first.source} and {other.source} name different classes, {names} and {other_names}")
    if names is None:
        if column == "label":
            largest = max(point_set.labels().max(initial=0) for point_set in point_sets)
        else:
            batches = itertools.chain(*(point_set.iterate_columns() for point_set in point_sets))
            largest = max(_values_and_counts(columns[column])[0].max(initial=0) for _, columns in batches)
        names = [str(number) for number in range(int(largest) + 1)]
    return names


def _values_and_counts(values: np.ndarray | tuple) -> tuple[np.ndarray, np.ndarray | None]:
    """Values of a column, and their number in each row if rows have many."""
    return values if isinstance(values, tuple) else (values, None)


def check_targets(column: str, point_set: PointSet, num_classes: int) -> str:
    """Check that all values of a column name one of the classes (or are ignored points); return their digest."""
    digest = hashlib.blake2b(digest_size=8)
    for rows, columns in point_set.iterate_columns():
        values, counts = _values_and_counts(columns[column])
        if column == "point_labels" and (wrong := (counts != columns["points"][1]).nonzero()[0]).size:
            place, lengths = wrong[0], columns["points"][1]
            where = point_set.where(rows[place])
            raise InputError(f"{where}: {counts[place]} point labels of {lengths[place]} points")
        allowed = (values >= 0) & (values < num_classes)
        if column == "point_labels":
            allowed |= values == IGNORED
        if not allowed.all():
            place = (~allowed).nonzero()[0][0]
            row = rows[place if counts is None else np.searchsorted(counts.cumsum(), place, side="right")]
            expected = f"where 0 to {num_classes - 1} were expected"
            raise InputError(f"{point_set.where(row)}: {column} {values[place]} {expected}")
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()


def report_skipped(problems: list[str], path: Path) -> None:
    """List rows that are left out in a file, and warn."""
    if problems:
        path.write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")
        warn(f"{len(problems)} bad rows are left out, listed in {path}; the first: {problems[0]}")
