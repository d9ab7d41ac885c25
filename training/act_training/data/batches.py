"""The order of rows as a pure function of the step, so that checkpoints need no sampler state, and batches of rows.

Epochs follow each other without a gap: every row comes exactly once an epoch over all processes, and a batch may hold
the last rows of one epoch and the first of the next.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from act_training.data.keyed_random import Sampling, sample_points
from act_training.data.schema import IGNORED
from modeling_act.errors import InputError

VALIDATION_EPOCH = -1  # in the row ids of validation, so that its subsets and masks never change


@dataclass
class ShuffledRows:
    """A new permutation of all rows in each epoch, dealt to the processes batch by batch."""

    num_rows: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0

    def __post_init__(self):
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def batch(self, number: int) -> list[tuple[int, int]]:
        """Row ids (epoch, row) of this process' batch `number`, counted from the start of the run."""
        start = (number * self.world_size + self.rank) * self.batch_size
        return [self._locate(position) for position in range(start, start + self.batch_size)]

    def _locate(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.num_rows)
        return epoch, int(self._order(epoch)[place])

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)


class StreamedRows(ShuffledRows):
    """An order for sets that only stream: each process reads its share of the blocks of storage, each block once.

    Each epoch permutes the blocks (row groups of parquet shards), cuts them into one run of rows for each process, and
    shuffles a run within windows: the rows of all blocks that begin within the same `window` rows.
    """

    def __init__(
        self, block_sizes: list[int], window: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0
    ):
        self.block_sizes, self.window = np.array(block_sizes), window
        self.block_starts = self.block_sizes.cumsum() - self.block_sizes
        super().__init__(int(self.block_sizes.sum()), batch_size, rank, world_size, seed)

    def _locate(self, position: int) -> tuple[int, int]:
        epoch = position // self.num_rows
        place = self._count_dealt(position, self.rank) - self._count_dealt(epoch * self.num_rows, self.rank)
        return epoch, int(self._order(epoch)[place])

    def _count_dealt(self, position: int, rank: int) -> int:
        """Number of rows that process `rank` has among the first `position` rows of the run."""
        rounds, rest = divmod(position, self.batch_size * self.world_size)
        return rounds * self.batch_size + min(max(rest - rank * self.batch_size, 0), self.batch_size)

    def _shuffle(self, epoch: int) -> np.ndarray:
        """Rows of this process in an epoch, in the order of reading."""
        first, stop = epoch * self.num_rows, (epoch + 1) * self.num_rows
        shares = [self._count_dealt(stop, rank) - self._count_dealt(first, rank) for rank in range(self.world_size)]
        places = sum(shares[: self.rank]) + np.arange(shares[self.rank])
        blocks = np.random.default_rng([self.seed, epoch]).permutation(len(self.block_sizes))
        ends = self.block_sizes[blocks].cumsum()
        index = np.searchsorted(ends, places, side="right")
        starts = (ends - self.block_sizes[blocks])[index]
        rows = self.block_starts[blocks[index]] + places - starts
        random = np.random.default_rng([self.seed, epoch, self.rank]).random(len(rows))
        return rows[np.lexsort([random, starts // self.window])]


class _Reader(Dataset):
    """Reader of whole batches. It returns an error: raised in a worker, it would become a traceback."""

    def __init__(self, point_set):
        self.point_set = point_set

    def __getitem__(self, row_ids: list[tuple[int, int]]) -> dict[str, Tensor] | InputError:
        try:
            return read_batch(self.point_set, row_ids)
        except InputError as error:
            return error


PADDING = {"points": 0, "point_labels": IGNORED, "boxes": 0, "box_labels": -1}  # of columns with many values a row


def read_batch(point_set, row_ids: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Read rows by their ids (epoch, row).

    Returns points (batch, max_points, 3), lengths (batch,), keys (batch, 2), which are the row ids, and the columns
    that the set has: label and category (batch,), point_labels (batch, max_points), boxes (batch, max_boxes, 7) and
    box_labels (batch, max_boxes), padded.
    """
    columns = point_set.read([row for _, row in row_ids])
    batch = {"keys": torch.tensor(row_ids), "lengths": torch.tensor(columns["points"][1])}
    for name, values in columns.items():
        batch[name] = pad_rows(*values, PADDING[name]) if name in PADDING else torch.tensor(values)
    return batch


def pad_rows(values: np.ndarray, lengths: np.ndarray, padding: float = 0) -> Tensor:
    """Pad rows of unequal length, concatenated to (total, ...), to (rows, max_length, ...)."""
    rows = torch.tensor(values).split(lengths.tolist())
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)


def _ignore_stop_signals(worker: int) -> None:
    """Let a worker outlive SIGTERM and SIGINT, which schedulers send to whole process groups."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def iterate_batches(point_set, rows, start: int, stop: int, num_workers: int, pin_memory: bool) -> Iterator[dict]:
    """Read batches `start` to `stop` of this process. Workers only read; the order is fixed before they start."""
    loader = DataLoader(
        _Reader(point_set),
        batch_size=None,  # an index is the row ids of a whole batch
        sampler=(rows.batch(number) for number in range(start, stop)),
        # Each worker of a stream would read every block itself.
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
    """Sample validation batches: each row of the set in one process, always with the same points."""
    rows = range(rank, len(point_set), world_size)
    for start in range(0, len(rows), batch_size):
        row_ids = [(VALIDATION_EPOCH, row) for row in rows[start : start + batch_size]]
        batch = {name: value.to(device) for name, value in read_batch(point_set, row_ids).items()}
        yield sample_points(batch, sampling)
