"""Optimizer groups, schedules as pure functions of the step, averages of the weights, first batch statistics."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def use_deterministic_algorithms() -> None:
    """Make CUDA backward passes deterministic; otherwise a resumed run diverges.

    An operator without a deterministic form warns.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # fills memory to find bugs, which costs time


@dataclass
class RunLength:
    """Length of a run. Epochs are joined end to end, and a step belongs to the epoch in which it begins."""

    num_rows: int
    global_batch_size: int
    num_train_epochs: float
    max_train_steps: int | None = None

    @property
    def total_steps(self) -> int:
        return self.max_train_steps or max(1, round(self.num_train_epochs * self.num_rows / self.global_batch_size))

    @property
    def num_epochs(self) -> float:
        return self.total_steps * self.global_batch_size / self.num_rows

    def epoch(self, step: int) -> float:
        return step * self.global_batch_size / self.num_rows

    def completes(self, every: float, step: int) -> bool:
        """Return True if `step` (counted from 1) is the first to complete another `every` epochs, or the last."""
        ended = math.floor(self.epoch(step) / every + 1e-9) > math.floor(self.epoch(step - 1) / every + 1e-9)
        return ended or step == self.total_steps

    def share(self, length: float) -> float:
        """Convert a length, given as a share of the run (at most 1) or in steps, to steps."""
        return length * self.total_steps if length <= 1 else length


def learning_rate_at(
    step: int,
    length: RunLength,
    peak: float,
    lowest: float,
    warmup_epochs: float,
    per_epoch: bool,
) -> float:
    """Linear warm-up, then the paper's cosine over the whole run, whose beginning the warm-up replaces."""
    start = 1e-6
    epoch = length.epoch(step)
    if per_epoch:
        epoch = math.floor(epoch + 1e-9)
    if epoch < warmup_epochs:
        return start + (peak - start) * epoch / warmup_epochs
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * min(1.0, epoch / length.num_epochs))) / 2


def cosine_between(step: float, start: float, length: float, first: float, last: float) -> float:
    """Return `first` until step `start`, then follow a cosine to `last` within `length` steps."""
    progress = min(1.0, max(0.0, (step - start) / length)) if length > 0 else float(step >= start)
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without weight decay of 1-d parameters, biases and tokens; the rate is set before each step."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith("bias") or "token" in name
            (others if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Update the exponential average of all trained weights; buffers such as batch statistics are copied."""
    for name, value in model.state_dict().items():
        if name not in average:
            continue
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy the weights that training changes, and all buffers."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value.detach().clone() for name, value in model.state_dict().items() if name not in frozen}


@torch.no_grad()
def calibrate_batch_norm(model: nn.Module, forward: Callable, batches: Iterable) -> None:
    """Measure running statistics of batch norms that never trained, as means over `forward(batch)` of all batches.

    They start as 0 and 1. The variance of a mini-PointNet's points is 1e-5, so the 1 would dominate evaluation for 150
    steps: a model trained in fewer would give one answer for all clouds. Training does not read them.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.SyncBatchNorm)]
    layers = [layer for layer in layers if not layer.running_mean.any() and (layer.running_var == 1).all()]
    if not layers:
        return
    training = {module: module.training for module in model.modules()}
    momentum = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.train()
        layer.momentum = None  # the mean of all batches
    for batch in batches:
        forward(batch)
    for layer, value in zip(layers, momentum, strict=True):
        layer.momentum = value
    for module, mode in training.items():
        module.training = mode
