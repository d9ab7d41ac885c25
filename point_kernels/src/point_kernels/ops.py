"""The operators torch.ops.point_kernels.*: schemas, shapes for tracing, gradients, and who computes them where.

On the CPU the functions of cpu_ops.py, on CUDA those of triton_ops.py, which is imported by the first call.
"""

import importlib.util

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import cpu_ops

_SCHEMAS = {
    "farthest_point_sample": "(Tensor points, int num_samples, bool skip_near_origin) -> Tensor",
    "k_nearest_neighbors": "(Tensor queries, Tensor points, int k) -> (Tensor, Tensor)",
    "nearest_pairs": "(Tensor points, Tensor target) -> (Tensor, Tensor)",
    "chamfer": "(Tensor points, Tensor target, bool squared) -> (Tensor, Tensor, Tensor)",
    "chamfer_backward": "(Tensor grad_loss, Tensor points, Tensor target, Tensor nearest_target, "
    "Tensor nearest_point, bool squared) -> (Tensor, Tensor)",
    "linear_max": "(Tensor values, Tensor weight) -> (Tensor, Tensor)",
    "linear_max_backward": "(Tensor grad, Tensor indices, Tensor values, Tensor weight) -> (Tensor, Tensor)",
}
_WITHOUT_GRADIENT = ("farthest_point_sample", "k_nearest_neighbors", "nearest_pairs")
_CPU_ONLY = ("linear_max", "linear_max_backward")  # a GPU's matrix units do the dense form faster

_library: torch.library.Library | None = None  # the operators live as long as it does


def register() -> None:
    """Defines the operators, once a process: a second copy of the package uses those of the first."""
    global _library
    if hasattr(torch.ops.point_kernels, "chamfer"):
        return
    _library = torch.library.Library("point_kernels", "FRAGMENT")
    cpu_available = cpu_ops.load()
    cuda_available = importlib.util.find_spec("triton") is not None
    for name, schema in _SCHEMAS.items():
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"point_kernels::{name}", _FAKES[name], lib=_library)
        if cpu_available:
            _library.impl(name, getattr(cpu_ops, name), "CPU")
        if cuda_available and name not in _CPU_ONLY:
            _library.impl(name, _on_cuda(name), "CUDA")
        if name in _WITHOUT_GRADIENT:
            _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_autograd(
        "point_kernels::chamfer", _differentiate_chamfer, setup_context=_keep_for_gradient, lib=_library
    )
    torch.library.register_autograd(
        "point_kernels::linear_max", _differentiate_linear_max, setup_context=_keep_linear_max, lib=_library
    )
    register_flop_formula(torch.ops.point_kernels.linear_max)(_count_linear_max)
    register_flop_formula(torch.ops.point_kernels.linear_max_backward)(_count_linear_max_backward)
    for name in ("chamfer_backward", "linear_max_backward"):
        torch.library.register_autograd(f"point_kernels::{name}", _refuse_second_gradient, lib=_library)


def _on_cuda(name: str):
    def compute(*arguments):
        from . import triton_ops

        return getattr(triton_ops, "chamfer_forward" if name == "chamfer" else name)(*arguments)

    return compute


def _keep_for_gradient(ctx, inputs, output) -> None:
    points, target, ctx.squared = inputs
    _, nearest_target, nearest_point = output
    ctx.save_for_backward(points, target, nearest_target, nearest_point)


def _differentiate_chamfer(ctx, grad_loss: Tensor, *_) -> tuple[Tensor, Tensor, None]:
    gradients = torch.ops.point_kernels.chamfer_backward(grad_loss, *ctx.saved_tensors, ctx.squared)
    return *gradients, None


def _keep_linear_max(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1], *inputs)


def _differentiate_linear_max(ctx, grad: Tensor, _) -> tuple[Tensor, Tensor]:
    return torch.ops.point_kernels.linear_max_backward(grad, *ctx.saved_tensors)


def _count_linear_max(values, weight, *_, **__) -> int:
    """Floating-point operations, from shapes."""
    return 2 * values[0] * values[1] * values[2] * weight[0]


def _count_linear_max_backward(grad, indices, values, weight, *_, **__) -> int:
    return 4 * grad[0] * grad[1] * values[2]


def _refuse_second_gradient(ctx, *_) -> None:
    raise NotImplementedError("this operator is differentiable once; its gradient has no gradient of its own")


# Shapes and dtypes of the results, for tracing ----------------------------------------------------------------------


def _fake_farthest_point_sample(points, num_samples, skip_near_origin):
    return points.new_empty((points.shape[0], num_samples), dtype=torch.int64)


def _fake_k_nearest_neighbors(queries, points, k):
    shape = (queries.shape[0], queries.shape[1], k)
    dtype = cpu_ops.measured_dtype(queries, points)
    return queries.new_empty(shape, dtype=dtype), queries.new_empty(shape, dtype=torch.int64)


def _fake_nearest_pairs(points, target):
    return points.new_empty(points.shape[:2], dtype=torch.int64), target.new_empty(target.shape[:2], dtype=torch.int64)


def _fake_chamfer(points, target, squared):
    loss = points.new_empty(points.shape[:1], dtype=cpu_ops.measured_dtype(points, target))
    return loss, *_fake_nearest_pairs(points, target)


def _fake_chamfer_backward(grad_loss, points, target, nearest_target, nearest_point, squared):
    return points.new_empty(points.shape), target.new_empty(target.shape)


def _fake_linear_max(values, weight):
    shape = (values.shape[0], weight.shape[0])
    return values.new_empty(shape), values.new_empty(shape, dtype=torch.int32)


def _fake_linear_max_backward(grad, indices, values, weight):
    return values.new_empty(values.shape), weight.new_empty(weight.shape)


_FAKES = {
    "farthest_point_sample": _fake_farthest_point_sample,
    "k_nearest_neighbors": _fake_k_nearest_neighbors,
    "nearest_pairs": _fake_nearest_pairs,
    "chamfer": _fake_chamfer,
    "chamfer_backward": _fake_chamfer_backward,
    "linear_max": _fake_linear_max,
    "linear_max_backward": _fake_linear_max_backward,
}
