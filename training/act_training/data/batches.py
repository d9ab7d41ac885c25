"""Batches of rows: their order, their points, and random numbers as pure functions of (seed, epoch, row).

Checkpoints therefore need no state of samplers or generators. Epochs follow each other without a gap: every row comes
exactly once an epoch over all processes, and a batch may hold the last rows of one epoch and the first of the next.
"""

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from act_training.data.schema import IGNORED
from modeling_act.errors import InputError
from modeling_act.point_ops import (
    PointGroups,
    bounding_sphere,
    farthest_point_sample,
    gather_points,
    mask_lowest,
)

AUGMENTATIONS = ("scale", "scale_shift", "rotate_y", "rotate_z", "jitter", "drop_points")
MAX_DROPPED = 0.75  # share of the points
MAX_JITTER = 0.03  # deviation of the noise, in radii of the cloud
CANDIDATE_RATIO = 1200 / 1024  # training samples a random subset of this many times the points, farthest apart
_MASK64 = 2**64 - 1
_GOLDEN_RATIO = 0x9E3779B97F4A7C15 - 2**64  # step between the states of SplitMix64, as int64


class RandomStream(IntEnum):
    """One stream for each use of keyed numbers, so that no two uses share them."""

    SUBSET = 0
    SCALE = 1
    SHIFT = 2
    ROTATION = 3
    MASK = 4
    DROP = 5
    JITTER = 6
    DEVIATION = 7
    # Augmentation of scenes with boxes.
    FLIP = 100
    TURN = 101
    QUARTER_TURN = 102
    RESIZE = 103
    # Corruptions of the robustness benchmark.
    NOISE = 200
    LOST = 201
    HOLE = 202
    VIEW = 203
    AXIS = 204
    ANGLE = 205


@dataclass(frozen=True)
class Sampling:
    """Settings for the points that a network sees of a cloud.

    `method`: "random" or "farthest". With "farthest", training takes a random subset of the `CANDIDATE_RATIO *
    num_points` farthest points, as the paper does; evaluation always takes the same points.
    `normalize`: True scales the sampled points into the unit sphere, "cloud" applies the scale of the whole cloud.
    `teacher_points`: a teacher sees so many points, the student's among them, on the student's scale, whose `center`
    (batch, 1, 3) and `radius` (batch, 1, 1) in the cloud are then a part of a batch too.
    """

    num_points: int
    seed: int = 0
    normalize: bool | str = True
    method: str = "random"
    teacher_points: int | None = None


def keyed_bits(row_ids: Tensor, count: int, seed: int, stream: int) -> Tensor:
    """Random 63-bit integers (batch, count), int64, for row ids (batch, 2) of (epoch, row)."""
    state = _mix(row_ids[:, 1] + step_seed(seed, stream, 0))
    state = _mix(state + row_ids[:, 0])
    counter = torch.arange(1, count + 1, device=row_ids.device) * _GOLDEN_RATIO
    return _shift(_mix(state.unsqueeze(1) + counter), 1)


def keyed_uniform(row_ids: Tensor, count: int, seed: int, stream: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Random float32 numbers (batch, count), uniform in [low, high)."""
    return low + (high - low) * _shift(keyed_bits(row_ids, count, seed, stream), 39).float() * 2.0**-24


def keyed_normal(row_ids: Tensor, count: int, seed: int, stream: int) -> Tensor:
    """Random normal float32 numbers (batch, count), two of each bits by the Box-Muller transform."""
    bits = keyed_bits(row_ids, (count + 1) // 2, seed, stream)
    share, angle = (_shift(bits, 39).float() * 2.0**-24, (_shift(bits, 15) & 0xFFFFFF).float() * (math.pi * 2.0**-23))
    radius = torch.log1p(-share).mul_(-2).sqrt_()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed for torch's generator in one step of one process (dropout, drop path, Gumbel noise)."""
    value = seed
    for part in (step, rank):
        value = _mix(value + _GOLDEN_RATIO * (part + 1)) & _MASK64
    return value >> 1


def sample_points(batch: dict[str, Tensor], sampling: Sampling, training: bool = False) -> dict[str, Tensor]:
    """Sample `num_points` points of each cloud, with their labels, and normalize them.

    `batch` holds points (batch, max_points, 3), padded, lengths (batch,) and keys (batch, 2), and may hold
    point_labels (batch, max_points). A cloud with fewer than `num_points` points repeats some of them.
    """
    if sampling.method == "farthest":
        chosen = _sample_farthest(batch, sampling, training)
    else:
        count = max(sampling.num_points, sampling.teacher_points or 0)
        chosen = _sample_uniform(batch["lengths"], batch["keys"], batch["points"].shape[1], count, sampling.seed)
    all_points = gather_points(batch["points"], chosen)
    points, chosen = all_points[:, : sampling.num_points], chosen[:, : sampling.num_points]
    center, radius = torch.zeros_like(points[:, :1]), torch.ones_like(points[:, :1, :1])
    if sampling.normalize == "cloud":
        clouds, lengths = batch["points"], batch["lengths"]
        is_point = (torch.arange(clouds.shape[1], device=clouds.device) < lengths.unsqueeze(1)).unsqueeze(2)
        center = (clouds * is_point).sum(1, keepdim=True) / lengths[:, None, None]
        radius = torch.linalg.vector_norm((clouds - center) * is_point, dim=2, keepdim=True).amax(1, keepdim=True)
        radius = radius.clamp_min(torch.finfo(clouds.dtype).tiny)
    elif sampling.normalize:
        center, radius = bounding_sphere(points)
    sampled = {"points": (points - center) / radius}
    if sampling.teacher_points:
        sampled |= {"teacher_points": (all_points - center) / radius, "center": center, "radius": radius}
    if "point_labels" in batch:
        sampled["point_labels"] = batch["point_labels"].gather(1, chosen)
    return {name: values for name, values in batch.items() if name != "lengths"} | sampled


def _sample_uniform(lengths: Tensor, row_ids: Tensor, max_points: int, count: int, seed: int) -> Tensor:
    """Indices (batch, count) of a random subset of each padded cloud."""
    order = keyed_bits(row_ids, max_points, seed, RandomStream.SUBSET)
    padding = torch.arange(max_points, device=row_ids.device) >= lengths.unsqueeze(1)
    order = order.masked_fill_(padding, torch.iinfo(torch.int64).max).argsort(1)[:, :count]
    return order.gather(1, torch.arange(count, device=row_ids.device) % lengths.unsqueeze(1))


def _sample_farthest(batch: dict[str, Tensor], sampling: Sampling, training: bool) -> Tensor:
    """Indices (batch, num_points) of points far apart; in training a random subset of a few more."""
    points, lengths = batch["points"], batch["lengths"]
    count = math.ceil(CANDIDATE_RATIO * sampling.num_points) if training else sampling.num_points
    # Repeated points replace the padding; where even the longest cloud is too short, points repeat once more.
    # Sampling picks a repeated point only after all others.
    rows = torch.arange(max(points.shape[1], sampling.num_points), device=points.device) % lengths.unsqueeze(1)
    count = min(count, rows.shape[1])
    farthest = rows.gather(1, farthest_point_sample(gather_points(points, rows), count))
    if not training:
        return farthest
    subset = _sample_uniform(lengths.clamp(max=count), batch["keys"], count, sampling.num_points, sampling.seed)
    return farthest.gather(1, subset)


def augment(points: Tensor, row_ids: Tensor, seed: int, augmentation: tuple[str, ...] | list[str]) -> Tensor:
    """Augment clouds (batch, points, 3): `scale_shift` multiplies each axis by U[2/3, 3/2] and adds U[-0.2, 0.2];
    `scale` multiplies all by U[4/5, 5/4]; `rotate_y` and `rotate_z` rotate about the axis by a random angle;
    `jitter` adds normal noise of a deviation of U[0, MAX_JITTER] to the points; `drop_points` puts a share of
    U[0, MAX_DROPPED] of them where the first one is."""
    for name in augmentation:
        if name == "scale":
            points = points * keyed_uniform(row_ids, 1, seed, RandomStream.SCALE, 4 / 5, 5 / 4).unsqueeze(1)
        elif name == "drop_points":
            dropped = drop_points(points.shape[1], row_ids, seed)
            points = torch.where(dropped.unsqueeze(2), points[:, :1], points)
        elif name == "jitter":
            deviation = keyed_uniform(row_ids, 1, seed, RandomStream.DEVIATION, 0.0, MAX_JITTER).unsqueeze(1)
            noise = keyed_normal(row_ids, 3 * points.shape[1], seed, RandomStream.JITTER).view_as(points)
            points = points + deviation * noise
        elif name == "scale_shift":
            scale = keyed_uniform(row_ids, 3, seed, RandomStream.SCALE, 2 / 3, 3 / 2).unsqueeze(1)
            points = points * scale + keyed_uniform(row_ids, 3, seed, RandomStream.SHIFT, -0.2, 0.2).unsqueeze(1)
        elif name in ("rotate_y", "rotate_z"):
            angle = keyed_uniform(row_ids, 1, seed, RandomStream.ROTATION, 0.0, 2 * math.pi)
            sine, cosine = angle.sin(), angle.cos()
            x, y, z = points.unbind(-1)
            if name == "rotate_y":
                points = torch.stack([cosine * x + sine * z, y, cosine * z - sine * x], dim=-1)
            else:
                points = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-1)
        else:
            raise InputError(f"`augmentation` must be among {', '.join(AUGMENTATIONS)}, got {name!r}")
    return points


def drop_points(num_points: int, row_ids: Tensor, seed: int) -> Tensor:
    """Random mask (batch, num_points) of the points to drop, a share of U[0, MAX_DROPPED] of each cloud."""
    share = keyed_uniform(row_ids, num_points + 1, seed, RandomStream.DROP)
    return share[:, 1:] < share[:, :1] * MAX_DROPPED


def augment_groups(groups: PointGroups, row_ids: Tensor, seed: int, augmentation: list[str]) -> PointGroups:
    """Augment clouds that are cut into groups already. Dropped points are put into the center of their group."""
    centers, neighborhoods = groups
    moving = [name for name in augmentation if name != "drop_points"]
    points = torch.cat([centers, (centers.unsqueeze(2) + neighborhoods).flatten(1, 2)], dim=1)
    points = augment(points, row_ids, seed, moving)
    centers = points[:, : centers.shape[1]]
    neighborhoods = points[:, centers.shape[1] :].view_as(neighborhoods) - centers.unsqueeze(2)
    if "drop_points" in augmentation:
        dropped = drop_points(neighborhoods[0, ..., 0].numel(), row_ids, seed).view(neighborhoods.shape[:3])
        neighborhoods = neighborhoods.masked_fill(dropped.unsqueeze(3), 0)
    return PointGroups(centers, neighborhoods)


def keyed_mask(row_ids: Tensor, centers: Tensor, num_masked: int, mask_type: str, seed: int) -> Tensor:
    """Random mask of groups (batch, groups), True = masked, as of `modeling_act.point_ops.sample_mask`."""
    scores = keyed_uniform(row_ids, centers.shape[1], seed, RandomStream.MASK)
    return mask_lowest(scores, centers, num_masked, mask_type)


def _mix(value: Tensor | int) -> Tensor | int:
    """Finalizer of SplitMix64 on int64, whose products wrap around, or on Python's integers, modulo 2**64."""
    value = (value ^ _shift(value, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    value = (value ^ _shift(value, 27)) * (0x94D049BB133111EB - 2**64)
    return value ^ _shift(value, 31)


def _shift(value: Tensor | int, bits: int) -> Tensor | int:
    """Shift 64-bit integers right and fill with zeros."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


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
