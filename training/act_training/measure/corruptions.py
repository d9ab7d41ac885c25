"""What sensors and the world do to clouds, each at several strengths, to measure how well a finished model bears it.

Everything is drawn from (seed, epoch, row) as in `keyed_random`: the same in any batch, and the same random numbers
at every strength, so that a weaker corruption of a cloud is a part of a stronger one.
"""

import math

import torch
from torch import Tensor

from act_training.data.keyed_random import RandomStream, keyed_bits, keyed_uniform
from modeling_act.errors import InputError

CORRUPTIONS = {  # what the numbers are stands in `corrupt`
    "jitter": (0.01, 0.02, 0.05),
    "dropout": (0.25, 0.5, 0.75),
    "local_dropout": (0.1, 0.25, 0.5),
    "occlusion": (0.25, 0.5, 0.75),
    "rotation_up": (30.0, 90.0, 180.0),
    "rotation_any": (30.0, 90.0, 180.0),
}
CELL = 0.15  # of occlusion, in radii of the cloud
UP_AXES = ("y", "z")


def corrupt(points: Tensor, keys: Tensor, name: str, strength: float, seed: int, up_axis: str = "y") -> Tensor:
    """Clouds (batch, points, 3), each by its key (batch, 2) of (epoch, row); dropping leaves as many points in each.

    `jitter`: normal noise, `strength` in radii of the cloud (its farthest point from the mean). `dropout`: this share
    of the points, any of them. `local_dropout`: this share, those nearest to one of them. `occlusion`: this share,
    those farthest behind what is in front of them when seen from a random side. `rotation_up`, `rotation_any`: a turn
    of up to so many degrees about `up_axis`, or any axis; up to 180, all rotations are equally likely.
    """
    if name == "jitter":
        return points + strength * radius_of(points)[:, None, None] * _normal(keys, points.shape[1], seed)
    if name == "dropout":
        return _keep(points, keyed_uniform(keys, points.shape[1], seed, RandomStream.LOST), strength)
    if name == "local_dropout":
        rows = torch.arange(len(points), device=points.device)
        middle = points[rows, keyed_bits(keys, 1, seed, RandomStream.HOLE)[:, 0] % points.shape[1]]
        return _keep(points, (points - middle.unsqueeze(1)).square().sum(-1).neg(), strength)
    if name == "occlusion":
        return _keep(points, _depth_behind(points, _directions(keys, seed, RandomStream.VIEW)), strength)
    if name == "rotation_up":
        axis = torch.eye(3)["xyz".index(up_axis)].to(points)
        angle = keyed_uniform(keys, 1, seed, RandomStream.ANGLE, -1.0, 1.0)[:, 0] * math.radians(strength)
        return rotate(points, axis.expand(len(points), 3), angle)
    if name == "rotation_any":
        angle = _angle_of_uniform_rotation(
            keyed_uniform(keys, 1, seed, RandomStream.ANGLE)[:, 0], math.radians(strength)
        )
        return rotate(points, _directions(keys, seed, RandomStream.AXIS), angle)
    raise InputError(f"a corruption must be one of {', '.join(CORRUPTIONS)}, got {name!r}")


def num_left(num_points: int, name: str, strength: float) -> int:
    """How many points of a cloud there are after a corruption."""
    lost = strength if name in ("dropout", "local_dropout", "occlusion") else 0.0
    return num_points - round(lost * num_points)


def rotate(points: Tensor, axis: Tensor, angle: Tensor) -> Tensor:
    """Points (batch, points, 3) turned about unit axes (batch, 3) through the origin by angles (batch,) in radians."""
    axis, sine, cosine = axis.unsqueeze(1), angle.sin()[:, None, None], angle.cos()[:, None, None]
    along = (points * axis).sum(-1, keepdim=True) * axis
    return along + cosine * (points - along) + sine * torch.linalg.cross(axis.expand_as(points), points)


def radius_of(points: Tensor) -> Tensor:
    """(batch, points, 3) -> (batch,)."""
    return torch.linalg.vector_norm(points - points.mean(1, keepdim=True), dim=-1).amax(1)


def _keep(points: Tensor, loss_order: Tensor, share: float) -> Tensor:
    """Clouds without this share of their points, those that come last by `loss_order` (batch, points)."""
    kept = num_left(points.shape[1], "dropout", share)
    rows = loss_order.argsort(dim=1, stable=True)[:, :kept].sort(1).values
    return points.gather(1, rows.unsqueeze(2).expand(-1, -1, 3))


def _depth_behind(points: Tensor, view: Tensor) -> Tensor:
    """How far each point (batch, points, 3) lies behind the first one in its cell of the picture that an eye far away
    in direction `view` (batch, 3) sees; (batch, points)."""
    centered = points - points.mean(1, keepdim=True)
    right = torch.linalg.cross(view, torch.eye(3).to(view)[view.abs().argmin(1)])
    right = right / torch.linalg.vector_norm(right, dim=1, keepdim=True)
    frame = torch.stack([right, torch.linalg.cross(view, right), view], dim=2)
    across, up, toward = (centered @ frame).unbind(-1)
    size = CELL * radius_of(points).clamp_min(torch.finfo(points.dtype).tiny).unsqueeze(1)
    width = math.ceil(2 / CELL) + 2  # cells beside one another, with room for rounding
    column, row = (((place / size).floor().long() + width // 2).clamp(0, width - 1) for place in (across, up))
    cell = row * width + column
    front = torch.full((len(points), width * width), -torch.inf, dtype=points.dtype, device=points.device)
    front.scatter_reduce_(1, cell, toward, "amax")
    return front.gather(1, cell) - toward


def _normal(keys: Tensor, num_points: int, seed: int) -> Tensor:
    """(batch, points, 3), from pairs of uniform numbers (Box and Muller)."""
    first, second = keyed_uniform(keys, 6 * num_points, seed, RandomStream.NOISE).chunk(2, dim=1)
    values = (-2 * torch.log1p(-first)).sqrt() * (2 * math.pi * second).cos()
    return values.unflatten(1, (num_points, 3))


def _directions(keys: Tensor, seed: int, stream: int) -> Tensor:
    """(batch, 3), uniform on the sphere: height and longitude are."""
    height, longitude = keyed_uniform(keys, 2, seed, stream, -1.0, 1.0).unbind(1)
    level = (1 - height.square()).clamp_min(0).sqrt()
    return torch.stack([level * (math.pi * longitude).cos(), level * (math.pi * longitude).sin(), height], dim=1)


def _angle_of_uniform_rotation(share: Tensor, largest: float) -> Tensor:
    """The angle below which this share of all rotations by at most `largest` lie; (batch,) each.

    Of all rotations, (angle - sin angle) / pi turn by less than an angle; inverted by halving intervals.
    """
    wanted = share.double() * (largest - math.sin(largest))
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, largest)
    for _ in range(50):
        middle = (low + high) / 2
        below = middle - middle.sin() < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high.to(share.dtype)
