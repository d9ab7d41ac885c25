"""Random numbers that depend on (seed, epoch, row) alone: the same on every device, in any batch and after a resume.

`sample_points` and `augment` apply them to a batch on its device; `step_seed` seeds torch's own generator for a step.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from modeling_act.errors import InputError
from modeling_act.point_ops import farthest_point_sample, gather_points, mask_lowest
from modeling_act.processing_act import to_unit_sphere

AUGMENTATIONS = ("scale_shift", "rotate_y", "rotate_z")
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
    """

    num_points: int
    seed: int = 0
    normalize: bool | str = True
    method: str = "random"


def keyed_bits(row_ids: Tensor, count: int, seed: int, stream: int) -> Tensor:
    """Random 63-bit integers (batch, count), int64, for row ids (batch, 2) of (epoch, row)."""
    state = _mix(row_ids[:, 1] + step_seed(seed, stream, 0))
    state = _mix(state + row_ids[:, 0])
    counter = torch.arange(1, count + 1, device=row_ids.device) * _GOLDEN_RATIO
    return _shift(_mix(state.unsqueeze(1) + counter), 1)


def keyed_uniform(row_ids: Tensor, count: int, seed: int, stream: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Random float32 numbers (batch, count), uniform in [low, high)."""
    return low + (high - low) * _shift(keyed_bits(row_ids, count, seed, stream), 39).float() * 2.0**-24


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
        chosen = _sample_uniform(batch["lengths"], batch["keys"], batch["points"].shape[1], sampling)
    points = gather_points(batch["points"], chosen)
    if sampling.normalize == "cloud":
        center, radius = _center_and_radius(batch["points"], batch["lengths"])
        points = (points - center) / radius
    sampled = {"points": to_unit_sphere(points) if sampling.normalize is True else points}
    if "point_labels" in batch:
        sampled["point_labels"] = batch["point_labels"].gather(1, chosen)
    return {name: values for name, values in batch.items() if name != "lengths"} | sampled


def _center_and_radius(points: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Center (batch, 1, 3) and radius (batch, 1, 1) of padded clouds (batch, max_points, 3)."""
    is_point = (torch.arange(points.shape[1], device=points.device) < lengths.unsqueeze(1)).unsqueeze(2)
    center = (points * is_point).sum(1, keepdim=True) / lengths[:, None, None]
    radius = torch.linalg.vector_norm((points - center) * is_point, dim=2, keepdim=True).amax(1, keepdim=True)
    return center, radius.clamp_min(torch.finfo(points.dtype).tiny)


def _sample_uniform(lengths: Tensor, row_ids: Tensor, max_points: int, sampling: Sampling) -> Tensor:
    """Indices (batch, num_points) of a random subset of each padded cloud."""
    order = keyed_bits(row_ids, max_points, sampling.seed, RandomStream.SUBSET)
    padding = torch.arange(max_points, device=row_ids.device) >= lengths.unsqueeze(1)
    order = order.masked_fill_(padding, torch.iinfo(torch.int64).max).argsort(1)[:, : sampling.num_points]
    return order.gather(1, torch.arange(sampling.num_points, device=row_ids.device) % lengths.unsqueeze(1))


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
    return farthest.gather(1, _sample_uniform(lengths.clamp(max=count), batch["keys"], count, sampling))


def augment(points: Tensor, row_ids: Tensor, seed: int, augmentation: tuple[str, ...] | list[str]) -> Tensor:
    """Augment clouds (batch, points, 3).

    `scale_shift`: multiply each axis by U[2/3, 3/2] and add U[-0.2, 0.2]; `rotate_y`, `rotate_z`: rotate about the
    axis by a random angle.
    """
    for name in augmentation:
        if name == "scale_shift":
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


def keyed_mask(row_ids: Tensor, centers: Tensor, num_masked: int, mask_type: str, seed: int) -> Tensor:
    """Random mask of groups (batch, groups), True = masked.

    `mask_type` is as in `modeling_act.point_ops.sample_mask`; `centers` is (batch, groups, 3).
    """
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
