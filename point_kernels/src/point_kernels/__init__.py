"""Compiled kernels for point clouds: farthest point sampling, nearest neighbours, Chamfer distance.

C++ on the CPU, Triton on a GPU; both give the same indices as brute force in plain torch, ties included. The functions
are torch operators, so torch.compile and torch.export see through them. Where nothing could be compiled, the package
still imports: ask `is_available`.
"""

import torch
from torch import Tensor

from . import ops
from .cpu_ops import instruction_set

__version__ = "0.2.0"
__all__ = [
    "chamfer",
    "farthest_point_sample",
    "instruction_set",
    "is_available",
    "k_nearest_neighbors",
    "linear_max",
    "nearest_pairs",
]

ops.register()
_ops = torch.ops.point_kernels


def is_available(device_type: str) -> bool:
    """Return True if there are kernels for tensors on "cpu" or "cuda"."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key("point_kernels::chamfer", key)


def farthest_point_sample(points: Tensor, num_samples: int, skip_near_origin: bool = False) -> Tensor:
    """Sample points (batch, points, 3) far from each other: indices (batch, num_samples).

    Starts at the first point; of equally far points the first wins. `skip_near_origin` picks points with squared norm
    <= 1e-3 only if nothing else is left.
    """
    return _ops.farthest_point_sample(points, num_samples, skip_near_origin)


def k_nearest_neighbors(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k points nearest to each query: squared distances and indices, both (batch, queries, k), ascending.

    Of equally near points the lower index comes first.
    """
    return _ops.k_nearest_neighbors(queries, points, k)


def nearest_pairs(points: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Find the target nearest to each point (batch, points) and the point nearest to each target (batch, targets)."""
    return _ops.nearest_pairs(points, target)


def chamfer(points: Tensor, target: Tensor, squared: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the Chamfer distance (batch,) of each pair of clouds, and the indices of `nearest_pairs`.

    Half the sum of both mean distances, or, if `squared`, the sum of both mean squared distances. Differentiable once
    in both clouds, through the nearest pairs alone; the gradient of a distance is zero where a pair coincides.
    """
    return _ops.chamfer(points, target, squared)


def linear_max(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the maximum over points of `values @ weight.T`, and which point has it (int32; the first of equal ones):
    (groups, points, features), (channels, features) -> (groups, channels) twice.

    On the CPU only. Its gradient reaches one point for each group and channel, and the backward pass does no more work
    than that.
    """
    return _ops.linear_max(values, weight)
