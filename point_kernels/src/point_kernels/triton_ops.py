"""Point-cloud operations on CUDA, in Triton: the wrappers allocate, choose block sizes and launch `triton_kernels.py`.

float64 is measured in float64, all else in float32, without fused multiply-add, and of equal distances the lower index
wins: indices and distances are those of plain torch bit for bit, and all results the same on every run. Values are not
looked at, but whatever they are, no kernel leaves its tensors. With TRITON_INTERPRET=1, set before Triton is imported,
CPU tensors work too.
"""

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels

_ON_CHIP_BYTES = 2**15  # of one coordinate of the largest cloud that one program samples from its registers
_SAMPLE_BLOCK = 4096  # points a program takes of a larger cloud
_QUERIES = 4  # that a program searches neighbours for
_MOST_POINTS = 2**29  # of a cloud, so that its offsets fit into 32 bits
_ROWS = 8  # points of a cloud that a program searches pairs or gradients for


def farthest_point_sample(points: Tensor, num_samples: int, skip_near_origin: bool) -> Tensor:
    """(batch, points, 3) -> int64 indices (batch, num_samples); one program a cloud while a cloud fits into one."""
    _check_clouds(points)
    _check_count("num_samples", num_samples, points)
    points = points.contiguous()
    batch_size, num_points, _ = points.shape
    chosen = torch.empty(batch_size, num_samples, dtype=torch.int64, device=points.device)
    block, bits = triton.next_power_of_2(num_points), _bits(points)
    if block * bits // 8 > _ON_CHIP_BYTES:
        return _sample_blocks(points, chosen, skip_near_origin)
    _launch(
        kernels.sample_on_chip, batch_size, points, chosen, num_points, num_samples, SKIP=skip_near_origin,
        BITS=bits, BLOCK=block, num_warps=min(16, max(1, block // 256)),
    )  # fmt: skip
    return chosen


def _sample_blocks(points: Tensor, chosen: Tensor, skip_near_origin: bool) -> Tensor:
    """A launch a sample. In each, every program finds the new center among the farthest points of all blocks."""
    batch_size, num_points, _ = points.shape
    num_samples, num_blocks, bits = chosen.shape[1], triton.cdiv(num_points, _SAMPLE_BLOCK), _bits(points)
    integers = {"dtype": torch.int64 if bits == 64 else torch.int32, "device": points.device}
    nearest = torch.empty(batch_size, num_points, **integers)
    farthest = torch.zeros(2, batch_size, num_blocks, **integers)
    farthest_index = torch.zeros_like(farthest, dtype=torch.int32)
    for sample in range(num_samples):
        before, after = sample % 2, 1 - sample % 2
        _launch(
            kernels.sample_next, batch_size * num_blocks, points, nearest, farthest[before],
            farthest_index[before], farthest[after], farthest_index[after], chosen, num_points, num_samples, sample,
            SKIP=skip_near_origin, BITS=bits, BLOCK=_SAMPLE_BLOCK, BLOCKS=triton.next_power_of_2(num_blocks),
            num_warps=8,
        )  # fmt: skip
    return chosen


def k_nearest_neighbors(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances and int64 indices of the k points nearest to each query, both (batch, queries, k), ascending.

    A tournament: a cloud is dealt out to subsets, of which only the nearest point is kept. The nearest of these is the
    next neighbour, and its subset, measured again, sends its next one. So a neighbour costs a thirtieth of a pass over
    the cloud, nothing is sorted, and there is no largest k.
    """
    _check_clouds(points, queries)
    _check_count("k", k, points)
    queries, points = queries.contiguous(), points.contiguous()
    (batch_size, num_queries, _), num_points, bits = queries.shape, points.shape[1], _bits(queries, points)
    distances = queries.new_empty(batch_size, num_queries, k, dtype=_measured_in(bits))
    indices = torch.empty_like(distances, dtype=torch.int64)
    subsets = min(1024, max(32, triton.next_power_of_2(triton.cdiv(num_points, 32))))
    _launch(
        kernels.find_neighbors, batch_size * triton.cdiv(num_queries, _QUERIES), queries, points, distances,
        indices, num_queries, num_points, k, BITS=bits, QUERIES=_QUERIES, SUBSETS=subsets,
        MEMBERS=triton.next_power_of_2(triton.cdiv(num_points, subsets)), num_warps=max(1, subsets // 256),
    )  # fmt: skip
    return distances, indices


def nearest_pairs(points: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """int64 index of the nearest target of each point (batch, points), and of the nearest point of each target."""
    nearest_target, nearest_point, _, _ = _nearest_pairs_and_distances(points, target)
    return nearest_target, nearest_point


def chamfer_forward(points: Tensor, target: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The Chamfer distance of each pair of clouds (batch,), and `nearest_pairs`. Squared: the sum of both mean squared
    distances; else half the sum of both mean distances."""
    *nearest, there, back = _nearest_pairs_and_distances(points, target)
    if squared:
        return (there.mean(1) + back.mean(1), *nearest)
    return ((there.sqrt().mean(1) + back.sqrt().mean(1)) / 2, *nearest)


def chamfer_backward(
    grad_loss: Tensor,
    points: Tensor,
    target: Tensor,
    nearest_target: Tensor,
    nearest_point: Tensor,
    squared: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `points` and `target`, the same on every run: a point sums over the pairs that chose it."""
    _check_clouds(points, target)
    points, target = points.contiguous(), target.contiguous()
    (batch_size, num_points, _), num_target, bits = points.shape, target.shape[1], _bits(points, target)
    grad_points, grad_target = (torch.empty_like(cloud, dtype=_measured_in(bits)) for cloud in (points, target))
    grad_loss = grad_loss.to(_measured_in(bits)) * (1.0 if squared else 0.5)
    weights = grad_loss / num_points, grad_loss / num_target
    nearest = nearest_target.contiguous(), nearest_point.contiguous()
    programs, columns = _pair_tiles(batch_size, num_points, num_target)
    _launch(
        kernels.chamfer_gradients, programs, points, target, *nearest, *weights, grad_points,
        grad_target, num_points, num_target, SQUARED=squared, BITS=bits, ROWS=_ROWS, COLUMNS=columns,
        num_warps=max(1, columns // 32),
    )  # fmt: skip
    return grad_points.to(points.dtype), grad_target.to(target.dtype)


def _nearest_pairs_and_distances(points: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`nearest_pairs`, and the squared distances of both."""
    _check_clouds(points, target)
    points, target = points.contiguous(), target.contiguous()
    (batch_size, num_points, _), num_target, bits = points.shape, target.shape[1], _bits(points, target)
    there = points.new_empty(batch_size, num_points, dtype=_measured_in(bits))
    back = there.new_empty(batch_size, num_target)
    nearest_target, nearest_point = (torch.empty_like(side, dtype=torch.int64) for side in (there, back))
    programs, columns = _pair_tiles(batch_size, num_points, num_target)
    _launch(
        kernels.find_nearest_pairs, programs, points, target, nearest_target, nearest_point, there,
        back, num_points, num_target, BITS=bits, ROWS=_ROWS, SUBSETS=columns, num_warps=max(1, columns // 32),
    )  # fmt: skip
    return nearest_target, nearest_point, there, back


def _pair_tiles(batch_size: int, num_points: int, num_target: int) -> tuple[int, int]:
    """Return the number of programs, each for _ROWS points of either cloud, and of points that they see at a time."""
    programs = batch_size * (triton.cdiv(num_points, _ROWS) + triton.cdiv(num_target, _ROWS))
    return programs, min(128, triton.next_power_of_2(max(num_points, num_target, 16)))


def _check_clouds(first: Tensor, *others: Tensor) -> None:
    """Raise unless the kernels can read the clouds: of fitting shapes, and all on one device."""
    for points in (first, *others):
        fits = points.is_floating_point() and points.ndim == 3 and 0 < points.shape[1] <= _MOST_POINTS
        if not (fits and points.shape[0::2] == (len(first), 3) and points.device == first.device):
            raise ValueError(
                "clouds must be floating-point (batch, points, 3), with at least one point, all of one batch and on "
                f"one device, got {points.dtype} {tuple(points.shape)} on {points.device} beside a batch of "
                f"{len(first)} on {first.device}"
            )


def _check_count(name: str, count: int, points: Tensor) -> None:
    if not 1 <= count <= points.shape[1]:
        raise ValueError(f"`{name}` must be from 1 to the number of points, {points.shape[1]}, got {count}")


def _launch(kernel, programs: int, first: Tensor, *arguments, **options) -> None:
    """Runs a kernel on the device of its first argument, each product and sum rounded by itself."""
    if not (first.is_cuda or triton.knobs.runtime.interpret):
        raise ValueError(f"Triton kernels need tensors on a CUDA device, got one on {first.device}")
    with torch.cuda.device_of(first):
        kernel[(programs,)](first, *arguments, enable_fp_fusion=False, **options)


def _bits(*clouds: Tensor) -> int:
    """Return the bits of the numbers in which distances of such points are measured."""
    return 64 if any(cloud.dtype == torch.float64 for cloud in clouds) else 32


def _measured_in(bits: int) -> torch.dtype:
    return torch.float64 if bits == 64 else torch.float32
