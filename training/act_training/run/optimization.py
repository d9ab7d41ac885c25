"""Optimizer groups, schedules as pure functions of the step, and the average of the weights."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def repeat_exactly() -> None:
    """Of a GPU: from now on the same inputs give the same gradients. Otherwise what many rows send to one is summed in
    the order in which blocks finish, and a resumed run ends elsewhere. An operator that might not repeat itself warns.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a check of programs, which costs time


@dataclass
class RunLength:
    """How long a run is: epochs are joined end to end, so a step belongs to the epoch in which it begins."""

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
        """Whether `step` (counted from 1) is the first that ends a stretch of `every` epochs, or the run."""
        ended = math.floor(self.epoch(step) / every + 1e-9) > math.floor(self.epoch(step - 1) / every + 1e-9)
        return ended or step == self.total_steps

    def share(self, length: float) -> float:
        """A length given as a share of the run (at most 1) or in steps, in steps."""
        return length * self.total_steps if length <= 1 else length


def learning_rate_at(
    step: int,
    length: RunLength,
    peak: float,
    lowest: float,
    warmup_epochs: float,
    per_epoch: bool,
) -> float:
    """Linear warm-up, then a cosine over the whole run whose beginning the warm-up replaces, as the paper has it."""
    start = 1e-6
    epoch = length.epoch(step)
    epoch = math.floor(epoch + 1e-9) if per_epoch else epoch
    if epoch < warmup_epochs:
        return start + (peak - start) * epoch / warmup_epochs
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * min(1.0, epoch / length.num_epochs))) / 2


def cosine_between(step: float, start: float, length: float, first: float, last: float) -> float:
    """`first` until step `start`, then along a cosine to `last` within `length` steps."""
    progress = min(1.0, max(0.0, (step - start) / length)) if length > 0 else float(step >= start)
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay of 1-d parameters, biases and tokens; the learning rate is set anew before each step."""
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
    """Exponential average of all trained weights; buffers such as batch statistics are taken as they are."""
    for name, value in model.state_dict().items():
        if name not in average:
            continue
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights that training changes, and of all buffers."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value.detach().clone() for name, value in model.state_dict().items() if name not in frozen}
