"""Which rows a process sees when, as a pure function of the step: no sampler state that a checkpoint must carry.

Epochs are joined end to end: every row comes exactly once an epoch over all processes, and a batch may hold the last
rows of one epoch and the first of the next.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from act_training.data.keyed_random import Sampling, sample_points
from act_training.data.schema import IGNORED
from modeling_act.errors import InputError

VALIDATION_EPOCH = -1  # keys subsets and masks of validation, so that they never change


@dataclass
class ShuffledRows:
    """A fresh permutation of all rows each epoch, dealt to the processes batch by batch."""

    num_rows: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def batch(self, number: int) -> list[tuple[int, int]]:
        """(epoch, row) of the rows in this process' batch `number`, counted from the start of the run."""
        start = (number * self.world_size + self.rank) * self.batch_size
        return [self._locate(position) for position in range(start, start + self.batch_size)]

    def _locate(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.num_rows)
        if epoch not in self._epochs:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
            self._epochs = {known: rows for known, rows in self._epochs.items() if known == epoch - 1} | {epoch: order}
        return epoch, int(self._epochs[epoch][place])


@dataclass
class StreamedRows:
    """Rows in the order in which blocks of storage are read, for sets that only stream.

    Each epoch permutes the blocks (row groups of parquet shards), cuts them into one run of rows for each process, and
    shuffles the rows of a run within windows, the fewest whole blocks of `window` rows. So a process reads its share
    of the blocks, once, if it keeps those of a window in memory.
    """

    block_sizes: list[int]
    window: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        self.num_rows = sum(self.block_sizes)
        self.block_starts = np.concatenate([[0], np.cumsum(self.block_sizes)])

    def batch(self, number: int) -> list[tuple[int, int]]:
        start = number * self.batch_size
        return [self._locate(position) for position in range(start, start + self.batch_size)]

    def _start(self, epoch: int, rank: int) -> int:
        """Rows that process `rank` has seen when `epoch` begins. Over all processes they add up to epoch * num_rows
        (Hermite's identity), and no process is ever more than one row ahead of another."""
        return (epoch * self.num_rows + rank) // self.world_size

    def _locate(self, position: int) -> tuple[int, int]:
        epoch = position * self.world_size // self.num_rows  # off by one at most
        while position >= self._start(epoch + 1, self.rank):
            epoch += 1
        while position < self._start(epoch, self.rank):
            epoch -= 1
        if epoch not in self._epochs:
            kept = {known: rows for known, rows in self._epochs.items() if known == epoch - 1}
            self._epochs = kept | {epoch: self._order(epoch)}
        return epoch, int(self._epochs[epoch][position - self._start(epoch, self.rank)])

    def _order(self, epoch: int) -> np.ndarray:
        """This process' rows of an epoch, in the order of reading."""
        random = np.random.default_rng([self.seed, epoch])
        blocks = random.permutation(len(self.block_sizes))
        lengths = [self._start(epoch + 1, rank) - self._start(epoch, rank) for rank in range(self.world_size)]
        first, stop, position = sum(lengths[: self.rank]), sum(lengths[: self.rank + 1]), 0
        windows, held = [[]], 0
        for block in blocks:
            low, high = max(first - position, 0), min(stop - position, self.block_sizes[block])
            position += self.block_sizes[block]
            if low < high:
                if held >= self.window:
                    windows, held = [*windows, []], 0
                windows[-1].append(self.block_starts[block] + np.arange(low, high))
                held += self.block_sizes[block]
        random = np.random.default_rng([self.seed, epoch, self.rank])
        return np.concatenate([random.permutation(np.concatenate(runs)) for runs in windows if runs])


class _Reader(Dataset):
    """Reads whole batches of (epoch, row). An error is returned: raised in a worker, it would become a traceback."""

    def __init__(self, point_set):
        self.point_set = point_set

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Tensor] | InputError:
        try:
            return read_batch(self.point_set, keys)
        except InputError as error:
            return error


PADDING = {"points": 0, "point_labels": IGNORED, "boxes": 0, "box_labels": -1}  # of columns of many a row


def read_batch(point_set, keys: list[tuple[int, int]]) -> dict[str, Tensor]:
    """points (batch, most points, 3), lengths (batch,), keys (batch, 2), and what else the set has: label and
    category (batch,), point_labels (batch, most points), boxes (batch, most boxes, 7), box_labels alike; padded."""
    columns = point_set.read([row for _, row in keys])
    batch = {"keys": torch.tensor(keys), "lengths": torch.tensor(columns["points"][1])}
    for name, values in columns.items():
        batch[name] = pad_rows(*values, PADDING[name]) if name in PADDING else torch.tensor(values)
    return batch


def pad_rows(values: np.ndarray, lengths: np.ndarray, padding: float = 0) -> Tensor:
    """Rows of unequal length end to end (total, ...) -> (rows, longest, ...)."""
    if len(set(lengths.tolist())) == 1:
        return torch.tensor(values.reshape(len(lengths), lengths[0], *values.shape[1:]))
    padded = np.full((len(lengths), lengths.max(), *values.shape[1:]), padding, dtype=values.dtype)
    for row, entries in zip(padded, np.split(values, lengths.cumsum()[:-1]), strict=True):
        row[: len(entries)] = entries
    return torch.from_numpy(padded)


def _ignore_stop_signals(worker: int) -> None:
    """Let a worker outlive SIGTERM and SIGINT, which schedulers send to whole process groups."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _as_read(batch: dict[str, Tensor] | InputError) -> dict[str, Tensor] | InputError:
    return batch


def iterate_batches(point_set, rows, start: int, stop: int, num_workers: int, pin_memory: bool) -> Iterator[dict]:
    """Batches `start` to `stop` of this process. Workers only read; the order was fixed before they began."""
    loader = DataLoader(
        _Reader(point_set),
        batch_sampler=(rows.batch(number) for number in range(start, stop)),
        collate_fn=_as_read,
        # Each worker of a stream would read every block for itself.
        num_workers=min(num_workers, 1) if isinstance(rows, StreamedRows) else num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        worker_init_fn=_ignore_stop_signals,
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def validation_batches(
    point_set, batch_size: int, sampling: Sampling, device: torch.device, rank: int = 0, world_size: int = 1
) -> Iterator[dict[str, Tensor]]:
    """The rows of one process, each row of the set in one process; always the same points."""
    rows = range(rank, len(point_set), world_size)
    for start in range(0, len(rows), batch_size):
        keys = [(VALIDATION_EPOCH, row) for row in rows[start : start + batch_size]]
        batch = {name: value.to(device) for name, value in read_batch(point_set, keys).items()}
        yield sample_points(batch, sampling)
