"""Point-cloud operations in plain torch: sampling, neighbours, grouping, interpolation, Chamfer distance.

Everything is batched over clouds, runs on any device and is deterministic. Squared distances are taken as sums of
squared differences, never through a matrix product, so clouds far from the origin keep their geometry; half-precision
points are measured in float32. Where the package `point_kernels` is installed, its compiled kernels do the searching
and find the same indices. Used by every model here; knows nothing of them.
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
    """What a cloud is cut into: `centers` (batch, groups, 3) and `neighborhoods` (batch, groups, group_size, 3)
    relative to their centers."""

    centers: Tensor
    neighborhoods: Tensor


def check_points(points: Tensor, name: str = "points", mask: Tensor | None = None) -> None:
    """Raises one clear ValueError unless `points` is a finite floating tensor (batch, points, 3).

    The values are read on the CPU only: on an accelerator reading them would make every step wait for the device, and
    inside a compiled or exported graph they cannot be read.
    """
    if not isinstance(points, Tensor) or not points.is_floating_point():
        kind = points.dtype if isinstance(points, Tensor) else type(points).__name__
        raise ValueError(f"`{name}` must be a floating-point tensor, got {kind}")
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"`{name}` must have shape (batch, points, 3), got {tuple(points.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != points.shape[:2]):
        raise ValueError(
            f"the mask of `{name}` must be bool of shape {tuple(points.shape[:2])}, True where a point is valid, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    if points.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if mask is None and points.sum().isfinite():
        return  # nothing else sums to that; far cheaper than a look at each value, left for sums that overflow
    bad = ~points.isfinite().all(-1)
    if mask is not None:
        bad, empty = bad & mask, ~mask.any(1)
        if empty.any():
            cloud = int(empty.nonzero()[0])
            raise ValueError(f"the mask of `{name}` must leave every cloud a valid point, got none in cloud {cloud}")
    if bad.any():
        cloud, point = bad.nonzero()[0].tolist()
        raise NonFiniteError(
            f"`{name}` must be finite, got {points[cloud, point].tolist()} at cloud {cloud}, point {point}"
        )


@contextmanager
def without_kernels() -> Iterator[None]:
    """Everything inside runs in plain torch, whatever is installed."""
    token = _kernels_wanted.set(False)
    try:
        yield
    finally:
        _kernels_wanted.reset(token)


@torch.compiler.assume_constant_result
def _kernels_serve(device_type: str) -> bool:
    """Whether compiled kernels do the work. An exported graph, which may run elsewhere, gets none of them."""
    return _kernels_wanted.get() and _has_kernels(device_type) and not torch.compiler.is_exporting()


def _becomes_onnx() -> bool:
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def gather_points(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of `values` (batch, points, channels) at `indices` (batch, ...) -> (batch, ..., channels)."""
    batch_size, num_points, num_channels = values.shape
    offsets = torch.arange(batch_size, device=values.device) * num_points
    flat = indices + offsets.view(-1, *[1] * (indices.ndim - 1))
    rows = values.reshape(-1, num_channels).index_select(0, flat.flatten())
    return rows.view(*indices.shape, num_channels)


def farthest_point_sample(
    points: Tensor, num_samples: int, mask: Tensor | None = None, skip_near_origin: bool = False
) -> Tensor:
    """Indices (batch, num_samples) of points (batch, points, 3) that lie far from each other.

    Starts at the first (valid) point; of equally far points the first wins, so a cloud with fewer distinct points
    than samples repeats its first one. `mask` (batch, points) is True where a point is valid. `skip_near_origin`
    never picks a point with squared norm <= 1e-3 after the start unless nothing else is there: the rule of the CUDA
    kernel behind the released checkpoints, which padded clouds with zeros.
    """
    check_points(points, mask=mask)
    _check_count("num_samples", num_samples, points, mask)
    return _farthest_point_sample(points, num_samples, mask, skip_near_origin)


def _farthest_point_sample(points: Tensor, num_samples: int, mask: Tensor | None, skip_near_origin: bool) -> Tensor:
    if _kernels_serve(points.device.type):
        return point_kernels.farthest_point_sample(points.detach(), num_samples, mask, skip_near_origin)
    coordinates = _measurable(points, mask).permute(2, 0, 1).contiguous()  # (3, batch, points)
    distances = torch.full_like(coordinates[0], torch.inf)  # to the nearest chosen point
    if skip_near_origin:
        distances.masked_fill_(coordinates.square().sum(0) <= 1e-3, -1.0)  # loses against every real distance
    current = torch.zeros(points.shape[0], dtype=torch.int64, device=points.device)
    if mask is not None:
        distances.masked_fill_(~mask, -torch.inf)
        current = mask.int().argmax(1)
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
    """The loop of farthest point sampling as one operator, which ONNX has too. Unrolled, a graph of 512 samples takes
    6,153 nodes and 44 seconds to load (docs/experiments.md)."""

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


def k_nearest_neighbors(queries: Tensor, points: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k points nearest to each query: squared distances and indices, both (batch, queries, k), ascending.

    Of equally near points the lower index comes first. `mask` (batch, points) is True where a point is valid. The
    distances carry no gradient.
    """
    check_points(queries, "queries")
    check_points(points, mask=mask)
    if queries.shape[0] != points.shape[0]:
        raise ValueError(
            f"`queries` and `points` must share a batch, got {queries.shape[0]} and {points.shape[0]} clouds"
        )
    _check_count("k", k, points, mask)
    return _k_nearest_neighbors(queries, points, k, mask)


def _k_nearest_neighbors(queries: Tensor, points: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if _kernels_serve(points.device.type):
        return point_kernels.k_nearest_neighbors(queries.detach(), points.detach(), k, mask)
    queries, points = _measurable(queries), _measurable(points, mask)
    nearest = []
    for part in _split_queries(queries, points):
        distances = _squared_distances(part, points)
        if mask is not None:
            distances.masked_fill_(~mask.unsqueeze(1), torch.inf)
        indices = _smallest(distances, k)
        nearest.append((distances.gather(-1, indices), indices))
    distances, indices = zip(*nearest, strict=True)
    return torch.cat(distances, dim=1), torch.cat(indices, dim=1)


def group_points(
    points: Tensor, num_groups: int, group_size: int, mask: Tensor | None = None, skip_near_origin: bool = False
) -> PointGroups:
    """Cuts each cloud into `num_groups` centers by farthest point sampling and their `group_size` nearest points."""
    check_points(points, mask=mask)
    _check_count("num_groups", num_groups, points, mask)
    _check_count("group_size", group_size, points, mask)
    centers = gather_points(points, _farthest_point_sample(points, num_groups, mask, skip_near_origin))
    _, indices = _k_nearest_neighbors(centers, points, group_size, mask)
    return PointGroups(centers, gather_points(points, indices) - centers.unsqueeze(2))


def interpolation_weights(queries: Tensor, points: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights and indices (batch, queries, 3) of the three points nearest to each query, by inverse squared distance.

    Fewer than three points: all of them. The weights sum to one and carry no gradient.
    """
    distances, indices = k_nearest_neighbors(queries, points, min(3, points.shape[1]), mask)
    if _becomes_onnx():  # the same; the optimiser of ONNX graphs takes 1e-8 for nothing and drops it
        weights = 1.0 / (distances * 1e8 + 1.0)
    else:
        weights = 1.0 / (distances + 1e-8)
    return weights / weights.sum(-1, keepdim=True), indices


def interpolate(features: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Features (batch, points, channels) at the queries of `interpolation_weights` -> (batch, queries, channels)."""
    if _becomes_onnx():  # has no bag of embeddings
        return (gather_points(features, indices) * weights.to(features.dtype).unsqueeze(-1)).sum(2)
    batch_size, num_points, num_channels = features.shape
    rows = indices + torch.arange(batch_size, device=features.device).view(-1, 1, 1) * num_points
    weights = weights.to(features.dtype).flatten(0, 1)
    mixed = torch.nn.functional.embedding_bag(
        rows.flatten(0, 1), features.reshape(-1, num_channels), per_sample_weights=weights, mode="sum"
    )
    return mixed.view(batch_size, -1, num_channels)


def chamfer_l1(
    points: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    target_mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Half the sum of both mean nearest distances between clouds (batch, points, 3) and (batch, target points, 3).

    The gradient is the analytic one, through the chosen pairs alone, and zero where a pair coincides. Masks are True
    where a point is valid. `reduction` is "mean" over the batch or "none" (batch,).
    """
    return _reduce(_chamfer(points, target, mask, target_mask, squared=False), reduction)


def chamfer_l2(
    points: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    target_mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The sum of both mean squared nearest distances; otherwise as `chamfer_l1`."""
    return _reduce(_chamfer(points, target, mask, target_mask, squared=True), reduction)


def _chamfer(points: Tensor, target: Tensor, mask: Tensor | None, target_mask: Tensor | None, squared: bool) -> Tensor:
    """The distance (batch,) of each pair of clouds; differentiable in both."""
    check_points(points, mask=mask)
    check_points(target, "target", mask=target_mask)
    if points.shape[0] != target.shape[0] or 0 in (points.shape[1], target.shape[1]):
        raise ValueError(
            "`points` and `target` must hold the same number of clouds with a point each, "
            f"got shapes {tuple(points.shape)} and {tuple(target.shape)}"
        )
    if _kernels_serve(points.device.type):
        return point_kernels.chamfer(points, target, mask, target_mask, squared)[0]
    points, target = _upcast(points, mask), _upcast(target, target_mask)
    nearest_target, nearest_point = _nearest_pairs(points.detach(), target.detach(), mask, target_mask)
    there, back = points - gather_points(target, nearest_target), target - gather_points(points, nearest_point)
    if squared:
        return _masked_mean(there.square().sum(-1), mask) + _masked_mean(back.square().sum(-1), target_mask)
    there, back = torch.linalg.vector_norm(there, dim=-1), torch.linalg.vector_norm(back, dim=-1)
    return (_masked_mean(there, mask) + _masked_mean(back, target_mask)) / 2


def max_of_products(values: Tensor, weight: Tensor) -> Tensor:
    """Maximum over the points of `values @ weight.T`: (groups, points, features), (channels, features) -> (groups,
    channels). The gradient goes to the first of equal points."""
    measured = values.dtype == weight.dtype and values.dtype in (torch.float32, torch.float64)
    needs_gradient = torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad)
    measured = measured and values.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if measured and needs_gradient and _kernels_serve("cpu"):
        return point_kernels.linear_max(values, weight)[0]
    products = torch.nn.functional.linear(values, weight)
    return products.max(1).values if needs_gradient else products.amax(1)  # which is faster


def _nearest_pairs(
    points: Tensor, target: Tensor, mask: Tensor | None, target_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Index of the nearest target of each point, and of the nearest point of each target, from one distance matrix."""
    nearest_target, best, nearest_point, start = [], None, None, 0
    for part in _split_queries(points, target):
        distances = _squared_distances(part, target)
        stop = start + part.shape[1]
        if mask is not None:
            distances.masked_fill_(~mask[:, start:stop].unsqueeze(2), torch.inf)
        column_distance, column_index = distances.min(1)
        if best is None:
            best, nearest_point = column_distance, column_index
        else:
            closer = column_distance < best
            best = torch.where(closer, column_distance, best)
            nearest_point = torch.where(closer, column_index + start, nearest_point)
        if target_mask is not None:
            distances.masked_fill_(~target_mask.unsqueeze(1), torch.inf)
        nearest_target.append(distances.min(2).indices)
        start = stop
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
    """Indices of the k smallest entries of the last dimension, ascending, the lower index first on a tie."""
    if _becomes_onnx():  # whose TopK puts the lower index first by definition
        return distances.topk(k, dim=-1, largest=False, sorted=True).indices
    if distances.dtype != torch.float32:
        return distances.sort(dim=-1, stable=True).indices[..., :k]
    # topk breaks ties at will. The bits of a float32 >= 0 order as it does; the index put below them breaks the ties.
    keys = distances.view(torch.int32).long().bitwise_left_shift_(32)
    keys.add_(torch.arange(distances.shape[-1], device=distances.device))
    return keys.topk(k, dim=-1, largest=False, sorted=True).indices


def _split_queries(queries: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    """Parts of the queries whose distance matrix to `points` stays within the chunk's size; one part in an exported
    graph, whose sizes are open."""
    if torch.compiler.is_exporting():
        return (queries,)
    elements = _CHUNK_ELEMENTS.get(points.device.type, _CHUNK_ELEMENTS_ACCELERATOR)
    return queries.split(max(1, elements // max(1, points.shape[0] * points.shape[1])), dim=1)


def _upcast(points: Tensor, mask: Tensor | None = None) -> Tensor:
    """At least float32, and zero where a mask says that whatever stands there is no point."""
    points = points if points.dtype == torch.float64 else points.float()
    return points if mask is None else points.where(mask.unsqueeze(-1), 0)


def _measurable(points: Tensor, mask: Tensor | None = None) -> Tensor:
    return _upcast(points.detach(), mask)


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(1)
    return values.where(mask, 0).sum(1) / mask.sum(1)


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return values.mean()
    if reduction == "none":
        return values
    raise ValueError(f"`reduction` must be 'mean' or 'none', got {reduction!r}")


def _check_count(name: str, count: int, points: Tensor, mask: Tensor | None) -> None:
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}")
    if count > points.shape[1]:
        raise ValueError(
            f"`{name}` must not exceed the number of points, got {name}={count} and points of shape "
            f"{tuple(points.shape)}"
        )
    if mask is not None and not torch.compiler.is_compiling() and (mask.sum(1) < count).any():
        raise ValueError(
            f"`{name}` must not exceed the number of valid points, got {name}={count} and a cloud with "
            f"{int(mask.sum(1).min())} of them"
        )
