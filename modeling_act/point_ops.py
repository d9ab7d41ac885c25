"""Point-cloud operations in plain torch: sampling, neighbours, grouping, masking, interpolation, Chamfer distance.

Everything is batched over clouds, runs on any device and is deterministic. Squared distances are sums of squared
differences, not a matrix product, so clouds far from the origin keep their geometry; half-precision points are
measured in float32. If the package `point_kernels` is installed, its compiled kernels find the same indices.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import point_kernels
    from point_kernels import is_available as _has_kernels  # also tells the package from a folder of that name
except ImportError:

    def _has_kernels(device_type: str) -> bool:
        return False


_kernels_wanted = ContextVar("kernels_wanted", default=True)

# Elements of one pairwise distance matrix held at a time: small enough for a CPU's cache, larger where memory is fast.
_CHUNK_ELEMENTS = {"cpu": 2**20}
_CHUNK_ELEMENTS_ACCELERATOR = 2**26


class NonFiniteError(ValueError, FloatingPointError):
    """Raised for NaN or infinite coordinates: a wrong input, or an overflow in training."""


class PointGroups(NamedTuple):
    """Groups of clouds: `centers` (batch, groups, 3) and `neighborhoods` (batch, groups, group_size, 3) relative to
    their centers."""

    centers: Tensor
    neighborhoods: Tensor


def check_points(points: Tensor, name: str = "points") -> None:
    """Raise a ValueError unless `points` is a finite floating-point tensor (batch, points, 3).

    Values are checked on the CPU only: on an accelerator every step would wait for the device, and a compiled or
    exported graph cannot read them.
    """
    if not isinstance(points, Tensor) or not points.is_floating_point():
        kind = points.dtype if isinstance(points, Tensor) else type(points).__name__
        raise ValueError(f"`{name}` must be a floating-point tensor, got {kind}")
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"`{name}` must have shape (batch, points, 3), got {tuple(points.shape)}")
    if points.device.type != "cpu" or torch.compiler.is_compiling() or points.sum().isfinite():
        return  # a sum is much cheaper than looking at each value, which is left for sums that overflow
    bad = ~points.isfinite().all(-1)
    if bad.any():
        cloud, point = bad.nonzero()[0].tolist()
        values = points[cloud, point].tolist()
        raise NonFiniteError(f"`{name}` must be finite, got {values} at cloud {cloud}, point {point}")


@contextmanager
def without_kernels() -> Iterator[None]:
    """Run everything inside in plain torch, even if the kernels are installed."""
    token = _kernels_wanted.set(False)
    try:
        yield
    finally:
        _kernels_wanted.reset(token)


@torch.compiler.assume_constant_result
def _kernels_serve(device_type: str) -> bool:
    """Return whether to use compiled kernels. An exported graph, which may run elsewhere, uses none."""
    return _kernels_wanted.get() and _has_kernels(device_type) and not torch.compiler.is_exporting()


def _becomes_onnx() -> bool:
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def gather_points(values: Tensor, indices: Tensor) -> Tensor:
    """Gather rows of `values` (batch, points, channels) at `indices` (batch, ...) -> (batch, ..., channels)."""
    batch_size, num_points, num_channels = values.shape
    offsets = torch.arange(batch_size, device=values.device) * num_points
    flat = indices + offsets.view(-1, *[1] * (indices.ndim - 1))
    rows = values.reshape(-1, num_channels).index_select(0, flat.flatten())
    return rows.view(*indices.shape, num_channels)


def bounding_sphere(points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of clouds (batch, points, 3) and the distance of their farthest point from it: (batch, 1, 3) and (batch, 1,
    1)."""
    center = points.mean(1, keepdim=True)
    radius = torch.linalg.vector_norm(points - center, dim=-1).amax(1)[:, None, None]
    return center, radius.clamp_min(torch.finfo(points.dtype).tiny)


def farthest_point_sample(points: Tensor, num_samples: int, skip_near_origin: bool = False) -> Tensor:
    """Sample points (batch, points, 3) far from each other: indices (batch, num_samples).

    Starts at the first point; of equally far points the first wins, so a cloud with fewer distinct points than samples
    repeats its first one. `skip_near_origin` never picks a point with squared norm <= 1e-3 after the start unless
    nothing else is there: the rule of the CUDA kernel behind the released checkpoints, which padded clouds with zeros.
    """
    check_points(points)
    _check_count("num_samples", num_samples, points)
    return _farthest_point_sample(points, num_samples, skip_near_origin)


def _farthest_point_sample(points: Tensor, num_samples: int, skip_near_origin: bool) -> Tensor:
    if _kernels_serve(points.device.type):
        return point_kernels.farthest_point_sample(points.detach(), num_samples, skip_near_origin=skip_near_origin)
    coordinates = _upcast(points.detach()).permute(2, 0, 1).contiguous()  # (3, batch, points)
    distances = torch.full_like(coordinates[0], torch.inf)  # to the nearest chosen point
    if skip_near_origin:
        distances.masked_fill_(coordinates.square().sum(0) <= 1e-3, -1.0)  # loses against every real distance
    current = torch.zeros(points.shape[0], dtype=torch.int64, device=points.device)
    if torch.compiler.is_exporting():
        return _scan_farthest(coordinates, distances, current, num_samples)

    chosen, difference = [], torch.empty_like(coordinates)
    for _ in range(num_samples):
        chosen.append(current)
        center = coordinates.gather(2, current.expand(3, -1).unsqueeze(-1))  # (3, batch, 1)
        torch.sub(coordinates, center, out=difference).square_()
        squared = difference[0].add_(difference[1]).add_(difference[2])
        torch.minimum(distances, squared, out=distances)
        current = distances.argmax(1)
    return torch.stack(chosen, dim=1)


def _scan_farthest(coordinates: Tensor, distances: Tensor, current: Tensor, num_samples: int) -> Tensor:
    """Loop of farthest point sampling as one operator, which ONNX has too. Unrolled, a graph of 512 samples has 6,153
    nodes and takes 44 seconds to load (docs/experiments.md)."""

    def step(carried: tuple[Tensor, Tensor], _: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        distances, current = carried
        center = coordinates.gather(2, current.expand(3, -1).unsqueeze(-1))  # (3, batch, 1)
        squared = (coordinates - center).square()
        distances = torch.minimum(distances, squared[0] + squared[1] + squared[2])
        return (distances, distances.argmax(1)), current.clone()

    from torch._higher_order_ops import scan  # not public yet

    if _becomes_onnx():  # which has no assertions: a TopK refuses clouds of fewer points than samples
        current = current + 0 * distances.topk(num_samples).indices[:, 0]
    return scan(step, (distances, current), torch.arange(num_samples, device=current.device))[1].t()


def k_nearest_neighbors(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k points nearest to each query: squared distances and indices, both (batch, queries, k), ascending.

    Of equally near points the lower index comes first. The distances carry no gradient.
    """
    check_points(queries, "queries")
    check_points(points)
    if queries.shape[0] != points.shape[0]:
        raise ValueError(f"`queries` and `points` must share a batch, got {len(queries)} and {len(points)} clouds")
    _check_count("k", k, points)
    return _k_nearest_neighbors(queries, points, k)


def _k_nearest_neighbors(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if _kernels_serve(points.device.type):
        return point_kernels.k_nearest_neighbors(queries.detach(), points.detach(), k)
    queries, points = _upcast(queries.detach()), _upcast(points.detach())
    nearest = []
    for part in _split_queries(queries, points):
        distances = _squared_distances(part, points)
        indices = _smallest(distances, k)
        nearest.append((distances.gather(-1, indices), indices))
    distances, indices = zip(*nearest, strict=True)
    return torch.cat(distances, dim=1), torch.cat(indices, dim=1)


def group_points(points: Tensor, num_groups: int, group_size: int, skip_near_origin: bool = False) -> PointGroups:
    """Cut each cloud into `num_groups` centers by farthest point sampling and their `group_size` nearest points."""
    check_points(points)
    _check_count("num_groups", num_groups, points)
    _check_count("group_size", group_size, points)
    centers = gather_points(points, _farthest_point_sample(points, num_groups, skip_near_origin))
    _, indices = _k_nearest_neighbors(centers, points, group_size)
    return PointGroups(centers, gather_points(points, indices) - centers.unsqueeze(2))


def sample_mask(
    centers: Tensor, num_masked: int, mask_type: str = "random", generator: torch.Generator | None = None
) -> Tensor:
    """Sample a mask (batch, groups) of `num_masked` groups of each cloud, True = masked.

    "random" samples them independently; "block" takes those nearest to a random one of the centers (batch, groups, 3),
    "blocks" those nearest to any of four.
    """
    batch_size, num_groups, _ = centers.shape
    scores = torch.empty(batch_size, num_groups, device=centers.device).uniform_(generator=generator)
    return mask_lowest(scores, centers, num_masked, mask_type)


def mask_lowest(scores: Tensor, centers: Tensor, num_masked: int, mask_type: str) -> Tensor:
    """Mask the groups of the lowest random scores (batch, groups), or blocks around those of the highest."""
    if mask_type in ("block", "blocks"):
        seeds = gather_points(centers, scores.topk(min(4, scores.shape[1]) if mask_type == "blocks" else 1).indices)
        scores = (centers.unsqueeze(1) - seeds.unsqueeze(2)).float().square().sum(-1).amin(1)
    elif mask_type != "random":
        raise ValueError(f"`mask_type` must be 'random', 'block' or 'blocks', got {mask_type!r}")
    masked = scores.argsort(dim=1, stable=True)[:, :num_masked]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, masked, True)


def interpolation_weights(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh the three points nearest to each query by inverse squared distance: weights and indices (batch, queries,
    3), or fewer if there are fewer points. The weights sum to one and carry no gradient."""
    distances, indices = k_nearest_neighbors(queries, points, min(3, points.shape[1]))
    # Both are the same; the optimizer of ONNX graphs drops a summand of 1e-8.
    weights = 1.0 / (distances * 1e8 + 1.0 if _becomes_onnx() else distances + 1e-8)
    return weights / weights.sum(-1, keepdim=True), indices


def interpolate(features: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Interpolate features (batch, points, channels) by `interpolation_weights` -> (batch, queries, channels)."""
    if _becomes_onnx():  # has no bag of embeddings
        return (gather_points(features, indices) * weights.to(features.dtype).unsqueeze(-1)).sum(2)
    batch_size, num_points, num_channels = features.shape
    rows = indices + torch.arange(batch_size, device=features.device).view(-1, 1, 1) * num_points
    weights = weights.to(features.dtype).flatten(0, 1)
    mixed = torch.nn.functional.embedding_bag(
        rows.flatten(0, 1), features.reshape(-1, num_channels), per_sample_weights=weights, mode="sum"
    )
    return mixed.view(batch_size, -1, num_channels)


def chamfer_l1(points: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Compute half the sum of both mean nearest distances between clouds (batch, points, 3) and (batch, targets, 3).

    The gradient is the analytic one, through the nearest pairs alone, and zero where a pair coincides. `reduction` is
    "mean" over the batch or "none" (batch,).
    """
    return _chamfer(points, target, reduction, squared=False)


def chamfer_l2(points: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Compute the sum of both mean squared nearest distances; otherwise as `chamfer_l1`."""
    return _chamfer(points, target, reduction, squared=True)


def _chamfer(points: Tensor, target: Tensor, reduction: str, squared: bool) -> Tensor:
    if reduction not in ("mean", "none"):
        raise ValueError(f"`reduction` must be 'mean' or 'none', got {reduction!r}")
    check_points(points)
    check_points(target, "target")
    if points.shape[0] != target.shape[0] or 0 in (points.shape[1], target.shape[1]):
        shapes = f"shapes {tuple(points.shape)} and {tuple(target.shape)}"
        raise ValueError(f"`points` and `target` must hold the same number of clouds with a point each, got {shapes}")
    if _kernels_serve(points.device.type):
        distances = point_kernels.chamfer(points, target, squared=squared)[0]
    else:
        points, target = _upcast(points), _upcast(target)
        nearest_target, nearest_point = _nearest_pairs(points.detach(), target.detach())
        there, back = points - gather_points(target, nearest_target), target - gather_points(points, nearest_point)
        if squared:
            distances = there.square().sum(-1).mean(1) + back.square().sum(-1).mean(1)
        else:
            there, back = torch.linalg.vector_norm(there, dim=-1), torch.linalg.vector_norm(back, dim=-1)
            distances = (there.mean(1) + back.mean(1)) / 2
    return distances.mean() if reduction == "mean" else distances


def max_of_products(values: Tensor, weight: Tensor) -> Tensor:
    """Compute the maximum over points of `values @ weight.T`: (groups, points, features), (channels, features) ->
    (groups, channels). The gradient goes to the first of equal points."""
    measured = values.dtype == weight.dtype and values.dtype in (torch.float32, torch.float64)
    needs_gradient = torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad)
    measured = measured and values.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if measured and needs_gradient and _kernels_serve("cpu"):
        return point_kernels.linear_max(values, weight)[0]
    products = torch.nn.functional.linear(values, weight)
    return products.max(1).values if needs_gradient else products.amax(1)  # which is faster


def _nearest_pairs(points: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest target of each point and the nearest point of each target, from one distance matrix."""
    best = torch.full_like(target[..., 0], torch.inf)
    nearest_target, nearest_point, start = [], torch.zeros_like(best, dtype=torch.int64), 0
    for part in _split_queries(points, target):
        distances = _squared_distances(part, target)
        column_distance, column_index = distances.min(1)
        closer = column_distance < best
        best = torch.where(closer, column_distance, best)
        nearest_point = torch.where(closer, column_index + start, nearest_point)
        nearest_target.append(distances.min(2).indices)
        start += part.shape[1]
    return torch.cat(nearest_target, dim=1), nearest_point


def _squared_distances(queries: Tensor, points: Tensor) -> Tensor:
    """(batch, queries, 3), (batch, points, 3) -> (batch, queries, points)."""
    queries = queries.movedim(2, 0).contiguous().unsqueeze(3)  # (3, batch, queries, 1)
    points = points.movedim(2, 0).contiguous().unsqueeze(2)  # (3, batch, 1, points): rows without gaps vectorise
    total = (queries[0] - points[0]).square_()
    for axis in (1, 2):
        total.add_((queries[axis] - points[axis]).square_())
    return total


def _smallest(distances: Tensor, k: int) -> Tensor:
    """Find the k smallest entries of the last dimension: indices, ascending, the lower index first on a tie."""
    if _becomes_onnx():  # whose TopK puts the lower index first by definition
        return distances.topk(k, dim=-1, largest=False, sorted=True).indices
    if distances.dtype != torch.float32:
        return distances.sort(dim=-1, stable=True).indices[..., :k]
    # topk breaks ties arbitrarily. The bits of a float32 >= 0 sort as it does; the index below them breaks the ties.
    keys = distances.view(torch.int32).long().bitwise_left_shift_(32)
    keys.add_(torch.arange(distances.shape[-1], device=distances.device))
    return keys.topk(k, dim=-1, largest=False, sorted=True).indices


def _split_queries(queries: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    """Split the queries so that each distance matrix to `points` stays within the chunk size; not in an exported
    graph, whose sizes are dynamic."""
    if torch.compiler.is_exporting():
        return (queries,)
    elements = _CHUNK_ELEMENTS.get(points.device.type, _CHUNK_ELEMENTS_ACCELERATOR)
    return queries.split(max(1, elements // max(1, points.shape[0] * points.shape[1])), dim=1)


def _upcast(points: Tensor) -> Tensor:
    return points if points.dtype == torch.float64 else points.float()


def _check_count(name: str, count: int, points: Tensor) -> None:
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}")
    if count > points.shape[1]:
        sizes = f"{name}={count} and points of shape {tuple(points.shape)}"
        raise ValueError(f"`{name}` must not exceed the number of points, got {sizes}")
