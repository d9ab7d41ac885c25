"""Pictures of point clouds in plain torch, and the way back: features of pictures as features of groups of points.

Everything is batched over clouds and views, runs on any device and is deterministic.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, normalize, pad

from .point_ops import PointGroups, gather_points, k_nearest_neighbors

BACKGROUND = -2.0  # depth where nothing is; surfaces lie between -1 and 1
MAX_SPLAT = 8  # pixels
LIGHT = (-0.4, 0.6, 0.7)  # direction to the light: left, above and behind the viewer


class Renders(NamedTuple):
    """Views of clouds: `images` (batch, views, 3, size, size) between 0 and 1, and `depth` (batch, views, size, size)
    of the nearest surface, larger towards the viewer."""

    images: Tensor
    depth: Tensor


def make_cameras(num_views: int, elevation: float, up_axis: str = "y") -> Tensor:
    """Rotations (views, 3, 3) from a cloud to what viewers on a ring around it see: right, up, and towards them.

    The viewers look down by `elevation` degrees.
    """
    azimuth = torch.arange(num_views, dtype=torch.float64) * (2 * math.pi / num_views)
    sine, cosine, zero = azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)
    up, out = math.sin(math.radians(elevation)), math.cos(math.radians(elevation))
    towards = torch.stack([sine * out, zero + up, cosine * out], dim=-1)
    right = torch.stack([cosine, zero, -sine], dim=-1)
    cameras = torch.stack([right, torch.linalg.cross(towards, right), towards], dim=1)
    if up_axis == "z":  # (x, y, z) of such a cloud is (x, z, -y) of one with y up
        cameras = torch.stack([cameras[..., 0], -cameras[..., 2], cameras[..., 1]], dim=-1)
    return cameras.float()


def point_spacing(points: Tensor) -> Tensor:
    """Distance (batch,) at which points (batch, points, 3) of surfaces lie from each other: the side of the square
    that a point has to itself, in a disc that holds 16 of them. Repeated points count once."""
    samples = points[:, :: max(1, points.shape[1] // 64)]
    squares = k_nearest_neighbors(samples, points, min(64, points.shape[1]))[0]  # (batch, samples, nearest)
    copies = (squares == 0).sum(2).median(1).values  # of each point, itself among them
    last = (16 * copies).clamp(max=squares.shape[2])
    reach = squares.sqrt().median(1).values.gather(1, last.unsqueeze(1) - 1).squeeze(1)
    return reach * (math.pi * copies / last).sqrt()


def project(points: Tensor, cameras: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Points (batch, points, 3) of the unit sphere -> flat index of their pixel in a picture of `size` pixels a side,
    and their depth, both (batch, views, points)."""
    right, up, depth = torch.einsum("vij,bnj->ibvn", cameras.to(points), points)
    column, row = (((axis + 1) * (size / 2)).long().clamp(0, size - 1) for axis in (right, -up))
    return row * size + column, depth


def render(points: Tensor, cameras: Tensor, size: int, splat: float, shading: str) -> Renders:
    """Render clouds (batch, points, 3) of the unit sphere from all cameras.

    Each point covers a square whose half side is `splat` times the distance between points; gaps that remain are
    closed. `shading`: "light" (grey, lit from the upper left), "depth" (grey, nearer is darker) or "normals"
    (colours of the surface's direction), on white.
    """
    batch_size, num_views = len(points), len(cameras)
    pixels, depth = project(points, cameras, size)
    image = depth.new_full((batch_size, num_views, size * size), BACKGROUND)
    image = image.scatter_reduce(2, pixels, depth, "amax").view(batch_size, num_views, size, size)
    half_sides = (point_spacing(points) * (splat * size / 2)).round().clamp(1, MAX_SPLAT)[:, None, None, None]
    for step in range(int(half_sides.max())):
        image = torch.where(half_sides > step, max_pool2d(image, 3, 1, 1), image)
    image = -max_pool2d(-max_pool2d(image, 3, 1, 1), 3, 1, 1)
    return Renders(shade(image, half_sides, shading), image)


def shade(depth: Tensor, half_sides: Tensor, shading: str) -> Tensor:
    """Depth (batch, views, size, size) of splats with `half_sides` (batch, 1, 1, 1) -> images (batch, views, 3, size,
    size)."""
    surface = depth > BACKGROUND
    if shading == "depth":
        colors = (0.75 - 0.5 * (depth + 1) / 2).unsqueeze(2).expand(-1, -1, 3, -1, -1)
    else:
        normals = surface_normals(smooth_depth(depth, surface, half_sides), surface)
        if shading == "normals":
            colors = (normals + 1) / 2
        else:
            light = normalize(normals.new_tensor(LIGHT), dim=0).view(3, 1, 1)
            colors = 0.15 + 0.75 * (normals * light).sum(2, keepdim=True).clamp_min(0)
            colors = colors.expand(-1, -1, 3, -1, -1)
    return torch.where(surface.unsqueeze(2), colors, 1.0)


def smooth_depth(depth: Tensor, surface: Tensor, half_sides: Tensor) -> Tensor:
    """Average the depth of a surface over the pixels around, as widely as splats reach."""
    share = avg_pool2d(surface.to(depth.dtype), 3, 1, 1).clamp_min(1e-6)
    for step in range(int(half_sides.max())):
        average = avg_pool2d(depth * surface, 3, 1, 1) / share
        depth = torch.where(half_sides > step, average, depth)
    return depth


def surface_normals(depth: Tensor, surface: Tensor) -> Tensor:
    """Directions (batch, views, 3, size, size) of a surface, from its depth (batch, views, size, size)."""
    smooth = torch.where(surface, depth, torch.nan)
    around = pad(smooth, (1, 1, 1, 1), value=torch.nan)
    left, right = around[..., 1:-1, :-2], around[..., 1:-1, 2:]
    above, below = around[..., :-2, 1:-1], around[..., 2:, 1:-1]
    # The rise over two pixels, each 2 / size wide; towards the background there is none.
    scale = depth.shape[-1] / 4
    slope_x = ((right - smooth).nan_to_num(0) + (smooth - left).nan_to_num(0)) * scale
    slope_y = ((above - smooth).nan_to_num(0) + (smooth - below).nan_to_num(0)) * scale
    return normalize(torch.stack([-slope_x, -slope_y, torch.ones_like(slope_x)], dim=2), dim=2)


def lift_features(patches: Tensor, renders: Renders, points: PointGroups, cameras: Tensor, tolerance: float) -> Tensor:
    """Carry features of patches (batch, views, patches, dim) back to groups -> (batch, groups, dim).

    A group gets the mean over all views of the patches where its visible points lie; a point is visible in a view if
    no surface lies more than `tolerance` before it. A group that no view sees gets the features of the nearest one
    that is seen.
    """
    size = renders.depth.shape[-1]
    batch_size, num_views, num_patches, _ = patches.shape
    centers, neighborhoods = points
    members = (centers.unsqueeze(2) + neighborhoods).flatten(1, 2)
    pixels, depth = project(members, cameras, size)  # (batch, views, groups * group_size)
    visible = renders.depth.flatten(2).gather(2, pixels) - depth < tolerance
    side = math.isqrt(num_patches)
    row, column = pixels // size * side // size, pixels % size * side // size
    first = torch.arange(num_views, device=pixels.device).view(1, -1, 1) * num_patches
    places = (first + row * side + column).unflatten(2, centers.shape[1:2] + (-1,)).transpose(1, 2).flatten(2)
    visible = visible.unflatten(2, centers.shape[1:2] + (-1,)).transpose(1, 2).flatten(2).to(patches.dtype)
    weights = patches.new_zeros(batch_size, centers.shape[1], num_views * num_patches).scatter_add(2, places, visible)
    total = weights.sum(2, keepdim=True)
    features = weights @ patches.flatten(1, 2) / total.clamp_min(1)
    return fill_unseen(features, centers, total.squeeze(2) > 0)


def fill_unseen(features: Tensor, centers: Tensor, seen: Tensor) -> Tensor:
    """Give groups that are not `seen` (batch, groups) the features of the nearest group that is."""
    far = torch.where(seen.unsqueeze(2), centers, torch.finfo(centers.dtype).max ** 0.25)
    nearest = k_nearest_neighbors(centers, far, 1)[1].squeeze(2)
    return gather_points(features, nearest)
