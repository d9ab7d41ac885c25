"""Clouds for the tests of the kernels, and the plain-torch path of modeling_act as their oracle."""

import torch

from modeling_act import point_ops

KINDS = ["random", "grid", "duplicates", "line", "far", "huge", "surface"]


def make_clouds(kind, num_clouds, num_points, dtype=torch.float32):
    """Clouds (num_clouds, num_points, 3), made to tie, to coincide, to overflow or to be like scans."""
    shape = (num_clouds, num_points, 3)
    if kind == "random":
        clouds = torch.randn(shape)
    elif kind == "grid":  # many equal distances, many points twice
        clouds = torch.randint(-3, 4, shape)
    elif kind == "duplicates":
        clouds = torch.full(shape, 0.25)
    elif kind == "line":
        clouds = torch.randint(0, 50, shape) * torch.tensor([1, 0, 0])
    elif kind == "far":  # most digits are spent on the offset
        clouds = torch.rand(shape) + 1000
    elif kind == "huge":  # squares overflow to infinity in float32
        clouds = torch.randint(-1, 2, shape) * torch.tensor([1.0, 1e19, 1e30])
    elif kind == "surface":
        clouds = torch.nn.functional.normalize(torch.randn(shape), dim=-1)
    else:
        raise ValueError(f"`kind` must be one of {KINDS}, got {kind!r}")
    return clouds.to(dtype)


def oracle_farthest_point_sample(points, num_samples, skip_near_origin=False):
    with point_ops.without_kernels():
        return point_ops._farthest_point_sample(points, num_samples, skip_near_origin)


def oracle_k_nearest_neighbors(queries, points, k):
    with point_ops.without_kernels():
        return point_ops._k_nearest_neighbors(queries, points, k)


def oracle_nearest_pairs(points, target):
    return point_ops._nearest_pairs(point_ops._upcast(points.detach()), point_ops._upcast(target.detach()))


def oracle_chamfer(points, target, squared=False):
    """The loss (batch,) of chamfer_l1 or chamfer_l2."""
    chamfer = point_ops.chamfer_l2 if squared else point_ops.chamfer_l1
    with point_ops.without_kernels():
        return chamfer(points, target, reduction="none")
