"""Compiled kernels for point clouds: farthest point sampling, nearest neighbours, Chamfer distance.

C++ on the CPU, Triton on a GPU; both give the same indices as brute force in plain torch, ties included. The functions
are torch operators, so torch.compile and torch.export see through them. Where nothing could be compiled, the package
still imports: ask `is_available`.
"""

import torch
from torch import Tensor

from . import ops
from .cpu_ops import instruction_set

__version__ = "0.1.0"
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
    """Whether there are kernels for tensors on "cpu" or "cuda"."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key("point_kernels::chamfer", key)


def farthest_point_sample(
    points: Tensor, num_samples: int, mask: Tensor | None = None, skip_near_origin: bool = False
) -> Tensor:
    """Indices (batch, num_samples) of points (batch, points, 3) that lie far from each other.

    Starts at the first valid point; of equally far points the first wins. `mask` (batch, points) is True where a point
    is valid. `skip_near_origin` picks points with squared norm <= 1e-3 only where nothing else is left.
    """
    return _ops.farthest_point_sample(points, num_samples, mask, skip_near_origin)


def k_nearest_neighbors(queries: Tensor, points: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k points nearest to each query: squared distances and indices, both (batch, queries, k), ascending.

    Of equally near points the lower index comes first. Masked points are infinitely far.
    """
    return _ops.k_nearest_neighbors(queries, points, k, mask)


def nearest_pairs(
    points: Tensor, target: Tensor, mask: Tensor | None = None, target_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Index (batch, points) of the target nearest to each point, and (batch, targets) of the point nearest to each
    target; what is masked is nobody's nearest."""
    return _ops.nearest_pairs(points, target, mask, target_mask)


def chamfer(
    points: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    target_mask: Tensor | None = None,
    squared: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The Chamfer distance (batch,) of each pair of clouds, and the indices of `nearest_pairs`.

    Half the sum of both mean distances, or, if `squared`, the sum of both mean squared distances. Differentiable once
    in both clouds, through the nearest pairs alone; the gradient of a distance is zero where a pair coincides.
    """
    return _ops.chamfer(points, target, mask, target_mask, squared)


def linear_max(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum over points of `values @ weight.T`, and which point has it (int32; the first of equal ones):
    (groups, points, features), (channels, features) -> (groups, channels) twice.

    On the CPU only. Its gradient reaches one point for each group and channel, and the backward pass does no more work
    than that.
    """
    return _ops.linear_max(values, weight)
