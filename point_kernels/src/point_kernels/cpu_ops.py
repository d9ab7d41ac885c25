"""The operators on the CPU: checks their arguments, and hands pointers to the compiled library.

Half precision is measured in float32. Everything is checked before a pointer is taken.
"""

import ctypes
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

_LIBRARY_PATH = Path(__file__).with_name("libpoint_kernels.so")
_MOST_POINTS = 2**31 - 1
_library: ctypes.CDLL | None = None
_instruction_set: str | None = None

_logger = logging.getLogger(__name__)

# p a pointer, n a 64-bit count, i an int: the arguments of point_kernels.h
_ARGUMENTS = {
    "farthest_point_sample": "ipnnniip",
    "k_nearest_neighbors": "ippnnnnipp",
    "chamfer_forward": "ippnnniippp",
    "chamfer_backward": "ipppppnnniipp",
    "group_max": "ipnnnipp",
    "linear_max_backward": "ippppnnnnipp",
}
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int}


def load(path: Path = _LIBRARY_PATH) -> bool:
    """Loads the compiled library; where that fails, says so in one line of the log."""
    global _library
    try:
        library = ctypes.CDLL(str(path))
        for name, arguments in _ARGUMENTS.items():
            getattr(library, f"point_kernels_{name}").argtypes = [_TYPES[letter] for letter in arguments]
        library.point_kernels_select.argtypes = [ctypes.c_char_p]
        library.point_kernels_select.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        _logger.warning("no compiled kernels for the CPU, so plain torch is used there: %s", error)
        return False
    _library = library
    wanted = os.environ.get("POINT_KERNELS_ISA")
    try:
        select_instruction_set(wanted)
    except ValueError as error:
        select_instruction_set(None)
        _logger.warning("POINT_KERNELS_ISA is ignored, %s is used: %s", _instruction_set, error)
    return True


def select_instruction_set(name: str | None) -> None:
    """Uses the build "plain", "avx2" or "avx512" from now on; None is the best that this processor runs."""
    global _instruction_set
    selected = _library.point_kernels_select(None if name is None else name.encode())
    if selected is None:
        raise ValueError(f"the instruction set must be one that is compiled and that this processor has, got {name!r}")
    _instruction_set = selected.decode()


def instruction_set() -> str | None:
    """The build in use on the CPU, "plain", "avx2" or "avx512"; None if there is none."""
    return _instruction_set


def farthest_point_sample(points: Tensor, num_samples: int, skip_near_origin: bool) -> Tensor:
    _check_cloud("points", points)
    _check_count("num_samples", num_samples, points)
    points = _measurable(points)
    batch_size, num_points, _ = points.shape
    chosen = torch.empty((batch_size, num_samples), dtype=torch.int64)
    _run(
        "farthest_point_sample", chosen.numel(), points.dtype == torch.float64, points.data_ptr(), batch_size,
        num_points, num_samples, skip_near_origin, torch.get_num_threads(), chosen.data_ptr(),
    )  # fmt: skip
    return chosen


def k_nearest_neighbors(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    _check_cloud("queries", queries)
    _check_cloud("points", points)
    _check_batch("queries", queries, "points", points)
    _check_count("k", k, points)
    dtype = measured_dtype(queries, points)
    queries, points = _measurable(queries, dtype), _measurable(points, dtype)
    batch_size, num_queries, _ = queries.shape
    distances = torch.empty((batch_size, num_queries, k), dtype=dtype)
    indices = torch.empty((batch_size, num_queries, k), dtype=torch.int64)
    _run(
        "k_nearest_neighbors", indices.numel(), dtype == torch.float64, queries.data_ptr(), points.data_ptr(),
        batch_size, num_queries, points.shape[1], k, torch.get_num_threads(), distances.data_ptr(),
        indices.data_ptr(),
    )  # fmt: skip
    return distances, indices


def nearest_pairs(points: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return _chamfer_forward(points, target, squared=True, loss=None)


def chamfer(points: Tensor, target: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    loss = torch.empty(points.shape[:1], dtype=measured_dtype(points, target))
    return loss, *_chamfer_forward(points, target, squared, loss)


def _chamfer_forward(
    points: Tensor,
    target: Tensor,
    squared: bool,
    loss: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check_pair(points, target)
    dtype = measured_dtype(points, target)
    points, target = _measurable(points, dtype), _measurable(target, dtype)
    nearest_target = torch.empty(points.shape[:2], dtype=torch.int64)
    nearest_point = torch.empty(target.shape[:2], dtype=torch.int64)
    _run(
        "chamfer_forward", nearest_target.numel(), dtype == torch.float64, points.data_ptr(), target.data_ptr(),
        points.shape[0], points.shape[1], target.shape[1], squared, torch.get_num_threads(), _pointer(loss),
        nearest_target.data_ptr(), nearest_point.data_ptr(),
    )  # fmt: skip
    return nearest_target, nearest_point


def chamfer_backward(
    grad_loss: Tensor,
    points: Tensor,
    target: Tensor,
    nearest_target: Tensor,
    nearest_point: Tensor,
    squared: bool,
) -> tuple[Tensor, Tensor]:
    _check_pair(points, target)
    for name, indices, cloud in (("nearest_target", nearest_target, points), ("nearest_point", nearest_point, target)):
        if indices.dtype != torch.int64 or indices.shape != cloud.shape[:2] or not indices.is_cpu:
            raise ValueError(
                f"`{name}` must be int64 of shape {tuple(cloud.shape[:2])} on the CPU, got {_describe(indices)}"
            )
    if grad_loss.shape != points.shape[:1] or not grad_loss.is_cpu:
        raise ValueError(f"`grad_loss` must have shape ({len(points)},) on the CPU, got {_describe(grad_loss)}")
    dtypes, dtype = (points.dtype, target.dtype), measured_dtype(points, target)
    grad_loss, points, target = (_measurable(values, dtype) for values in (grad_loss, points, target))
    nearest_target, nearest_point = nearest_target.contiguous(), nearest_point.contiguous()
    gradients = torch.empty_like(points), torch.empty_like(target)
    _run(
        "chamfer_backward", points.numel(), dtype == torch.float64, grad_loss.data_ptr(), points.data_ptr(),
        target.data_ptr(), nearest_target.data_ptr(), nearest_point.data_ptr(),
        points.shape[0], points.shape[1], target.shape[1], squared, torch.get_num_threads(), gradients[0].data_ptr(),
        gradients[1].data_ptr(),
    )  # fmt: skip
    return gradients[0].to(dtypes[0]), gradients[1].to(dtypes[1])


def linear_max(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    _check_linear(values, weight)
    products = torch.nn.functional.linear(values, weight)
    groups, rows, channels = products.shape
    maximum = products.new_empty((groups, channels))
    indices = torch.empty((groups, channels), dtype=torch.int32)
    _run(
        "group_max", maximum.numel(), products.dtype == torch.float64, products.data_ptr(), groups, rows, channels,
        torch.get_num_threads(), maximum.data_ptr(), indices.data_ptr(),
    )  # fmt: skip
    return maximum, indices


def linear_max_backward(grad: Tensor, indices: Tensor, values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    _check_linear(values, weight)
    (groups, rows, features), channels = values.shape, weight.shape[0]
    for name, tensor, dtype in (("grad", grad, values.dtype), ("indices", indices, torch.int32)):
        if tensor.shape != (groups, channels) or tensor.dtype != dtype or not tensor.is_cpu:
            raise ValueError(f"`{name}` must be {dtype} of shape {(groups, channels)}, got {_describe(tensor)}")
    grad, indices, values, weight = (tensor.contiguous() for tensor in (grad, indices, values, weight))
    make = torch.empty_like if grad.numel() else torch.zeros_like
    gradients = make(values), make(weight)
    _run(
        "linear_max_backward", grad.numel(), values.dtype == torch.float64, grad.data_ptr(), indices.data_ptr(),
        values.data_ptr(), weight.data_ptr(), groups, rows, channels, features, torch.get_num_threads(),
        gradients[0].data_ptr(), gradients[1].data_ptr(),
    )  # fmt: skip
    return gradients


def measured_dtype(points: Tensor, other: Tensor) -> torch.dtype:
    """Return the dtype in which distances between two clouds are computed."""
    return torch.float64 if torch.float64 in (points.dtype, other.dtype) else torch.float32


def _run(name: str, num_results: int, *arguments) -> None:
    if num_results == 0:
        return
    status = getattr(_library, f"point_kernels_{name}")(*arguments)
    if status == 1:
        raise MemoryError(f"{name} found no memory to work in")
    if status == 2:
        raise ValueError("indices must lie within the points that they choose from")


def _measurable(points: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    if dtype is None:
        dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    return points.to(dtype).contiguous()


def _pointer(values: Tensor | None) -> int | None:
    return None if values is None else values.data_ptr()


def _describe(values: Tensor) -> str:
    return f"{values.dtype} of shape {tuple(values.shape)} on {values.device}"


def _check_cloud(name: str, points: Tensor) -> None:
    if points.ndim != 3 or points.shape[2] != 3 or not points.is_floating_point() or not points.is_cpu:
        raise ValueError(
            f"`{name}` must be floating-point of shape (batch, points, 3) on the CPU, got {_describe(points)}"
        )
    if points.shape[1] > _MOST_POINTS:
        raise ValueError(f"`{name}` must hold at most {_MOST_POINTS} points a cloud, got {points.shape[1]}")


def _check_linear(values: Tensor, weight: Tensor) -> None:
    if (
        values.ndim != 3 or values.shape[1] == 0 or values.dtype not in (torch.float32, torch.float64)
        or not values.is_cpu
    ):  # fmt: skip
        raise ValueError(
            f"`values` must be float32 or float64 of shape (groups, points, features), got {_describe(values)}"
        )
    if weight.ndim != 2 or weight.shape[1] != values.shape[2] or weight.dtype != values.dtype or not weight.is_cpu:
        raise ValueError(
            f"`weight` must be {values.dtype} of shape (channels, {values.shape[2]}), got {_describe(weight)}"
        )


def _check_batch(name: str, points: Tensor, other_name: str, other: Tensor) -> None:
    if points.shape[0] != other.shape[0]:
        raise ValueError(
            f"`{name}` and `{other_name}` must share a batch, got {points.shape[0]} and {other.shape[0]} clouds"
        )


def _check_count(name: str, count: int, points: Tensor) -> None:
    if not 1 <= count <= points.shape[1]:
        raise ValueError(f"`{name}` must be from 1 to the number of points, {points.shape[1]}, got {count}")


def _check_pair(points: Tensor, target: Tensor) -> None:
    _check_cloud("points", points)
    _check_cloud("target", target)
    _check_batch("points", points, "target", target)
    if 0 in (points.shape[1], target.shape[1]):
        raise ValueError(
            "`points` and `target` must hold a point a cloud, "
            f"got shapes {tuple(points.shape)} and {tuple(target.shape)}"
        )
