"""Batch statistics: over all processes, on any device, where torch's own `SyncBatchNorm` refuses CPU tensors; and
measured where there are none yet.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Sum(torch.autograd.Function):
    """The sum over all processes, each of which has a loss of its own that depends on it."""

    @staticmethod
    def forward(context, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor) -> Tensor:
        return _Sum.forward(context, gradient)


class SyncBatchNorm1d(nn.BatchNorm1d):
    """`BatchNorm1d` of (rows, channels) whose mean and variance are those of the rows of all processes."""

    def forward(self, rows: Tensor) -> Tensor:
        if not self.training:
            return super().forward(rows)
        values = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        count = torch.tensor([len(values)], device=values.device, dtype=values.dtype)
        torch.distributed.all_reduce(count)
        mean = _Sum.apply(values.sum(0)) / count
        centered = values - mean
        variance = _Sum.apply(centered.square().sum(0)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)
        return (centered * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(rows.dtype)


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Replaces every `BatchNorm1d` in place, sharing its parameters and buffers; state-dict keys stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = SyncBatchNorm1d
    return model


@torch.no_grad()
def settle_batch_norm(model: nn.Module, run: Callable, batches: Iterable) -> None:
    """Measures the statistics that evaluation takes of layers that never trained, as means over these batches.

    They start as 0 and 1, and of a mini-PointNet's variance of 1e-5 the 1 leaves something in the running mean for 150
    steps: a model trained in fewer would give one answer for all clouds. Training itself does not look at them.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.SyncBatchNorm)]
    fresh = [layer for layer in layers if not layer.running_mean.any() and (layer.running_var == 1).all()]
    training = {module: module.training for module in model.modules()}
    momentum = [layer.momentum for layer in fresh]
    model.eval()
    for layer in fresh:
        layer.train()
        layer.momentum = None  # the mean of all batches
    for batch in batches if fresh else ():
        run(batch)
    for layer, value in zip(fresh, momentum, strict=True):
        layer.momentum = value
    for module, value in training.items():
        module.training = value
