"""Random numbers that depend on (seed, epoch, row) alone: equal on every device, in any batch, after a resume.

`sample_points` and `augment` change a batch with them where it lies; `step_seed` seeds what torch draws in a step.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modeling_act.errors import InputError
from modeling_act.point_ops import farthest_point_sample, gather_points
from modeling_act.processing_act import to_unit_sphere

# One stream for each use, so that no two share numbers.
SUBSET, SCALE, SHIFT, ROTATION, MASK = range(5)
AUGMENTATIONS = ("scale_shift", "rotate_y", "rotate_z")
SPREAD = 1200 / 1024  # in training, a random subset of so many times the points, taken farthest from one another
_MASK64 = 2**64 - 1


@dataclass(frozen=True)
class Sampling:
    """How a network's points are taken from a cloud: at random, or farthest from one another. They are put into the
    unit sphere by themselves, or with `normalize="cloud"` as the whole cloud fits it.

    Of the latter, training takes a random subset of `SPREAD` times as many, as the paper does, and evaluation always
    the same points.
    """

    num_points: int
    seed: int = 0
    normalize: bool | str = True
    method: str = "random"


def keyed_bits(keys: Tensor, count: int, seed: int, stream: int) -> Tensor:
    """(batch, 2) int64 of (epoch, row) -> (batch, count) of 63 random bits as int64."""
    state = _mix(keys[:, 1] + _signed(step_seed(seed, stream, 0)))
    state = _mix(state + keys[:, 0])
    counter = torch.arange(1, count + 1, device=keys.device) * _signed(0x9E3779B97F4A7C15)
    return _shift(_mix(state.unsqueeze(1) + counter), 1)


def keyed_uniform(keys: Tensor, count: int, seed: int, stream: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """(batch, count) float32, uniform in [low, high)."""
    return low + (high - low) * _shift(keyed_bits(keys, count, seed, stream), 39).float() * 2.0**-24


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for all that torch draws in one step of one process (dropout, drop path, Gumbel noise)."""
    value = seed & _MASK64
    for part in (step, rank):
        value = _mix64((value + 0x9E3779B97F4A7C15 * (part + 1)) & _MASK64)
    return value >> 1


def sample_points(batch: dict[str, Tensor], sampling: Sampling, training: bool = False) -> dict[str, Tensor]:
    """The batch with a subset of each cloud, points (batch, num_points, 3) in the unit sphere if asked.

    `batch` holds points (batch, most points, 3), their lengths (batch,) and keys (batch, 2), and may hold
    point_labels (batch, most points). A cloud with fewer than `num_points` repeats some of them.
    """
    if sampling.method == "farthest":
        chosen = _spread(batch, sampling, training)
    else:
        chosen = _subset(batch["lengths"], batch["keys"], batch["points"].shape[1], sampling)
    points = gather_points(batch["points"], chosen)
    if sampling.normalize == "cloud":
        center, radius = _measure(batch["points"], batch["lengths"])
        points = (points - center) / radius
    sampled = {"points": to_unit_sphere(points) if sampling.normalize is True else points}
    if "point_labels" in batch:
        sampled["point_labels"] = batch["point_labels"].gather(1, chosen)
    return {name: values for name, values in batch.items() if name != "lengths"} | sampled


def _measure(points: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Center (batch, 1, 3) and radius (batch, 1, 1) of clouds of these lengths, padded to (batch, most points, 3)."""
    there = (torch.arange(points.shape[1], device=points.device) < lengths.unsqueeze(1)).unsqueeze(2)
    center = (points * there).sum(1, keepdim=True) / lengths[:, None, None]
    radius = torch.linalg.vector_norm((points - center) * there, dim=2, keepdim=True).amax(1, keepdim=True)
    return center, radius.clamp_min(torch.finfo(points.dtype).tiny)


def _subset(lengths: Tensor, keys: Tensor, most: int, sampling: Sampling) -> Tensor:
    """Indices (batch, num_points) of a random subset of clouds of these lengths, padded to `most`."""
    order = keyed_bits(keys, most, sampling.seed, SUBSET)
    padding = torch.arange(most, device=keys.device) >= lengths.unsqueeze(1)
    order = order.masked_fill_(padding, torch.iinfo(torch.int64).max).argsort(1)[:, : sampling.num_points]
    return order.gather(1, torch.arange(sampling.num_points, device=keys.device) % lengths.unsqueeze(1))


def _spread(batch: dict[str, Tensor], sampling: Sampling, training: bool) -> Tensor:
    """Indices (batch, num_points) of points far from one another; in training a random subset of some more."""
    points, lengths = batch["points"], batch["lengths"]
    count = math.ceil(SPREAD * sampling.num_points) if training else sampling.num_points
    # Points repeat in place of the padding, and once more where the longest cloud is too short. A point that is there
    # twice is picked again after all others.
    rows = torch.arange(max(points.shape[1], sampling.num_points), device=points.device) % lengths.unsqueeze(1)
    count = min(count, rows.shape[1])
    spread = rows.gather(1, farthest_point_sample(gather_points(points, rows), count))
    if not training:
        return spread
    return spread.gather(1, _subset(lengths.clamp(max=count), batch["keys"], count, sampling))


def augment(points: Tensor, keys: Tensor, seed: int, augmentation: tuple[str, ...] | list[str]) -> Tensor:
    """`scale_shift`: each axis times U[2/3, 3/2] plus U[-0.2, 0.2]; `rotate_y`, `rotate_z`: a random turn about it."""
    for name in augmentation:
        if name == "scale_shift":
            scale = keyed_uniform(keys, 3, seed, SCALE, 2 / 3, 3 / 2).unsqueeze(1)
            points = points * scale + keyed_uniform(keys, 3, seed, SHIFT, -0.2, 0.2).unsqueeze(1)
        elif name in ("rotate_y", "rotate_z"):
            angle = keyed_uniform(keys, 1, seed, ROTATION, 0.0, 2 * math.pi)
            x, y, z = points.unbind(-1)
            sine, cosine = angle.sin(), angle.cos()
            if name == "rotate_y":
                points = torch.stack([cosine * x + sine * z, y, cosine * z - sine * x], dim=-1)
            else:
                points = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-1)
        else:
            raise InputError(f"`augmentation` must be among {', '.join(AUGMENTATIONS)}, got {name!r}")
    return points


def keyed_mask(keys: Tensor, centers: Tensor, num_masked: int, mask_type: str, seed: int) -> Tensor:
    """Which groups a row hides in an epoch, (batch, groups), True = hidden: at random, or nearest to a random one."""
    scores = keyed_uniform(keys, centers.shape[1], seed, MASK)
    if mask_type == "block":
        rows = torch.arange(len(centers), device=centers.device)
        scores = (centers - centers[rows, scores.argmax(1)].unsqueeze(1)).float().square().sum(-1)
    hidden = scores.argsort(dim=1, stable=True)[:, :num_masked]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, hidden, True)


def _mix(value: Tensor) -> Tensor:
    """The finalizer of SplitMix64 on int64, whose products wrap around as those of uint64 do."""
    value = (value ^ _shift(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift(value, 31)


def _mix64(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """A logical shift to the right."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
