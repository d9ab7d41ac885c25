"""Corruptions of clouds at several strengths, and the views of a cloud on which `evaluate.py` measures a classifier.

Random numbers depend on (seed, epoch, row), as in training: they are the same in any batch and at every strength, so
that a stronger corruption drops all that a weaker one drops. A view turns a batch, as it is read, into points
(batch, points, 3).
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from act_training.data.batches import (
    VALIDATION_EPOCH,
    RandomStream,
    Sampling,
    augment,
    keyed_bits,
    keyed_normal,
    keyed_uniform,
    read_batch,
    sample_points,
)
from modeling_act.errors import InputError
from modeling_act.processing_act import to_unit_sphere

CORRUPTIONS = {  # strengths, in the units that `corrupt` names
    "jitter": (0.01, 0.02, 0.05),
    "dropout": (0.25, 0.5, 0.75),
    "local_dropout": (0.1, 0.25, 0.5),
    "occlusion": (0.25, 0.5, 0.75),
    "rotation_up": (30.0, 90.0, 180.0),
    "rotation_any": (30.0, 90.0, 180.0),
}
OCCLUSION_CELL = 0.15  # in radii of the cloud

View = Callable[[dict[str, Tensor]], Tensor]


def corrupt(points: Tensor, row_ids: Tensor, name: str, strength: float, seed: int, up_axis: str = "y") -> Tensor:
    """Corrupt clouds (batch, points, 3) with row ids (batch, 2) of (epoch, row).

    `jitter` adds normal noise, `strength` in radii of the cloud. These drop the share `strength` of the points:
    `dropout` any of them, `local_dropout` those nearest to a random one, `occlusion` those farthest behind others when
    seen from a random direction. `rotation_up` and `rotation_any` rotate by at most `strength` degrees about `up_axis`
    or a random axis; up to 180 degrees, all rotations are equally likely.
    """
    num_points = points.shape[1]
    if name == "jitter":
        noise = keyed_normal(row_ids, 3 * num_points, seed, RandomStream.NOISE).view_as(points)
        return points + strength * radius_of(points)[:, None, None] * noise
    if name == "dropout":
        return _drop(points, keyed_uniform(row_ids, num_points, seed, RandomStream.LOST), strength)
    if name == "local_dropout":
        rows = torch.arange(len(points), device=points.device)
        center = points[rows, keyed_bits(row_ids, 1, seed, RandomStream.HOLE)[:, 0] % num_points]
        return _drop(points, (points - center.unsqueeze(1)).square().sum(-1).neg(), strength)
    if name == "occlusion":
        view = _sample_directions(row_ids, seed, RandomStream.VIEW)
        return _drop(points, _depth_behind_front(points, view), strength)
    if name == "rotation_up":
        axis = torch.eye(3)["xyz".index(up_axis)].to(points)
        angle = keyed_uniform(row_ids, 1, seed, RandomStream.ANGLE, -1.0, 1.0)[:, 0] * math.radians(strength)
        return rotate(points, axis.expand(len(points), 3), angle)
    if name == "rotation_any":
        share = keyed_uniform(row_ids, 1, seed, RandomStream.ANGLE)[:, 0]
        angle = _quantile_of_rotation_angle(share, math.radians(strength))
        return rotate(points, _sample_directions(row_ids, seed, RandomStream.AXIS), angle)
    raise InputError(f"a corruption must be one of {', '.join(CORRUPTIONS)}, got {name!r}")


def num_points_left(num_points: int, share: float) -> int:
    """Number of points of a cloud after a share of them is dropped."""
    return num_points - round(share * num_points)


def rotate(points: Tensor, axis: Tensor, angle: Tensor) -> Tensor:
    """Rotate points (batch, points, 3) about unit axes (batch, 3) through the origin by angles (batch,) in radians."""
    axis, sine, cosine = axis.unsqueeze(1), angle.sin()[:, None, None], angle.cos()[:, None, None]
    parallel = (points * axis).sum(-1, keepdim=True) * axis
    return parallel + cosine * (points - parallel) + sine * torch.linalg.cross(axis.expand_as(points), points)


def radius_of(points: Tensor) -> Tensor:
    """Distances (batch,) of the farthest point of each cloud (batch, points, 3) from the mean."""
    return torch.linalg.vector_norm(points - points.mean(1, keepdim=True), dim=-1).amax(1)


def _drop(points: Tensor, scores: Tensor, share: float) -> Tensor:
    """Drop the share of the points (batch, points, 3) with the highest scores (batch, points)."""
    rows = scores.argsort(dim=1, stable=True)[:, : num_points_left(points.shape[1], share)].sort(1).values
    return points.gather(1, rows.unsqueeze(2).expand(-1, -1, 3))


def _depth_behind_front(points: Tensor, view: Tensor) -> Tensor:
    """Depth (batch, points) of each point behind the foremost one in its cell of a grid, seen from far away in the
    directions `view` (batch, 3)."""
    centered = points - points.mean(1, keepdim=True)
    right = normalize(torch.linalg.cross(view, torch.eye(3).to(view)[view.abs().argmin(1)]))
    frame = torch.stack([right, torch.linalg.cross(view, right), view], dim=2)
    x, y, toward = (centered @ frame).unbind(-1)
    cell_size = OCCLUSION_CELL * radius_of(points).clamp_min(torch.finfo(points.dtype).tiny).unsqueeze(1)
    width = math.ceil(2 / OCCLUSION_CELL) + 2  # cells in a row, with space for rounding
    column, row = (((values / cell_size).floor().long() + width // 2).clamp(0, width - 1) for values in (x, y))
    cell = row * width + column
    front = torch.full((len(points), width * width), -torch.inf, dtype=points.dtype, device=points.device)
    front.scatter_reduce_(1, cell, toward, "amax")
    return front.gather(1, cell) - toward


def _sample_directions(row_ids: Tensor, seed: int, stream: int) -> Tensor:
    """Unit vectors (batch, 3), uniform on the sphere."""
    height, longitude = keyed_uniform(row_ids, 2, seed, stream, -1.0, 1.0).unbind(1)
    radius = (1 - height.square()).clamp_min(0).sqrt()
    return torch.stack([radius * (math.pi * longitude).cos(), radius * (math.pi * longitude).sin(), height], dim=1)


def _quantile_of_rotation_angle(share: Tensor, max_angle: float) -> Tensor:
    """Angles (batch,) that these shares (batch,) of all rotations by at most `max_angle` do not exceed. The share of
    rotations by less than an angle is (angle - sin angle) / pi, which is inverted by bisection."""
    target = share.double() * (max_angle - math.sin(max_angle))
    low, high = torch.zeros_like(target), torch.full_like(target, max_angle)
    for _ in range(50):
        middle = (low + high) / 2
        is_below = middle - middle.sin() < target
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return high.to(share.dtype)


def plain_view(batch: dict[str, Tensor], sampling: Sampling) -> Tensor:
    """View of validation."""
    return sample_points(batch, sampling)["points"]


def training_view(batch: dict[str, Tensor], sampling: Sampling, epoch: int) -> Tensor:
    """View of training: a random subset of each cloud, scaled and shifted."""
    row_ids = torch.stack([torch.full_like(batch["keys"][:, 0], epoch), batch["keys"][:, 1]], dim=1)
    points = sample_points(batch | {"keys": row_ids}, sampling, training=True)["points"]
    return augment(points, row_ids, sampling.seed, ("scale_shift",))


def corrupted_views(sampling: Sampling, up_axis: str) -> dict[tuple[str, float], View]:
    """Views by corruption and strength; the first, ("none", 0.0), is the plain view. The others are put into the unit
    sphere after the corruption, as a scan would be."""

    def view(batch: dict[str, Tensor], name: str, strength: float) -> Tensor:
        points = corrupt(plain_view(batch, sampling), batch["keys"], name, strength, sampling.seed, up_axis)
        return to_unit_sphere(points) if sampling.normalize is True else points

    views = {("none", 0.0): partial(plain_view, sampling=sampling)}
    for name, strengths in CORRUPTIONS.items():
        views |= {(name, strength): partial(view, name=name, strength=strength) for strength in strengths}
    return views


def read_rows(point_set, rows: range, device: torch.device) -> dict[str, Tensor]:
    """Read the batch of these rows, with the row ids of validation."""
    batch = read_batch(point_set, [(VALIDATION_EPOCH, row) for row in rows])
    return {name: values.to(device) for name, values in batch.items()}


@torch.no_grad()
def predict_logits(model: PreTrainedModel, point_set, batch_size: int, views: Sequence[View]) -> Tensor:
    """Logits (rows, num_labels) of all rows, averaged over views."""
    logits = []
    for start in range(0, len(point_set), batch_size):
        batch = read_rows(point_set, range(start, min(start + batch_size, len(point_set))), model.device)
        logits.append(torch.stack([model(view(batch)).logits.float() for view in views]).mean(0).cpu())
    return torch.cat(logits)


@torch.no_grad()
def latency_table(model: PreTrainedModel, points: Tensor, batch_sizes: list[int], repeats: int = 30) -> list[dict]:
    """Milliseconds from points (clouds, points, 3) to logits, both on the device: median, first and last decile."""
    cpu = f"cpu, {torch.get_num_threads()} threads"
    device, table = torch.cuda.get_device_name(points.device) if points.is_cuda else cpu, []
    for batch_size in batch_sizes:
        batch, times = points[torch.arange(batch_size) % len(points)], []
        for _ in range(3 + repeats):
            start = time.perf_counter()
            model(batch).logits.sum().item()  # waits for the device
            times.append(1000 * (time.perf_counter() - start))
        tenth, median, nine_tenths = np.percentile(times[3:], (10, 50, 90)).tolist()  # after a warm-up
        row = {"batch_size": batch_size, "milliseconds": median, "tenth": tenth, "nine_tenths": nine_tenths}
        table.append(row | {"clouds_per_second": 1000 * batch_size / median, "device": device})
    return table
