"""State of training (optimizer, schedules, averages) and its files, which are written whole or not at all.

A checkpoint is a folder of safetensors and JSON, written to a temporary name, flushed, closed by a manifest of SHA-256
digests, then renamed; damage is detected before it is loaded. Randomness and data order need no state.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling_act.errors import InputError


def use_deterministic_algorithms() -> None:
    """Make CUDA backward passes deterministic, or a resumed run diverges. Operators that cannot be so warn."""
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
    step: int, length: RunLength, peak: float, lowest: float, warmup_epochs: float, per_epoch: bool
) -> float:
    """Linear warm-up, then the paper's cosine over the whole run, whose beginning the warm-up replaces."""
    start = 1e-6
    epoch = math.floor(length.epoch(step) + 1e-9) if per_epoch else length.epoch(step)
    if epoch < warmup_epochs:
        return start + (peak - start) * epoch / warmup_epochs
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * min(1.0, epoch / length.epoch(length.total_steps)))) / 2


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


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Update the exponential average of all trained weights; buffers such as batch statistics are copied."""
    for name, value in model.state_dict().items():
        if name in average:
            average[name].lerp_(value, 1 - decay) if value.is_floating_point() else average[name].copy_(value)


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


MANIFEST = "manifest.json"


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Name `path` in errors of writing that name no file, such as those of a full disk."""
    try:
        yield
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be written ({error}); complete checkpoints are untouched") from error
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.writing")
    with name_in_errors(path):
        temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then put it in place of the old one."""
    new, old = path.with_name(f".writing-{path.name}"), path.with_name(f".old-{path.name}")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    with name_in_errors(path):
        write(new)
    if path.exists():
        path.rename(old)
    new.rename(path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def save_weights(folder: Path, model: PreTrainedModel, weights: dict[str, Tensor] | None = None) -> None:
    """Save a folder for `from_pretrained`, with `weights` in place of some of the model's own."""
    state = None if weights is None else model.state_dict() | weights
    replace_folder(folder, lambda path: model.save_pretrained(path, state_dict=state))


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in `folder`, newest first."""
    paths = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def write_checkpoint(folder: Path, step: int, write: Callable[[Path], None], limit: int) -> Path:
    """Let `write` fill a folder, seal and rename it, then remove the oldest checkpoints beyond `limit`. Newer ones are
    damaged, or of a part of the run that is repeated, and are neither counted nor removed."""
    final = folder / f"step-{step:08d}"

    def write_sealed(path: Path) -> None:
        try:
            write(path)
            seal(path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(path, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{final}: cannot be written ({reason}); earlier checkpoints are whole") from error

    replace_folder(final, write_sealed)
    checkpoints = list_checkpoints(folder)
    for path in checkpoints[checkpoints.index(final) + limit :]:
        shutil.rmtree(path.rename(folder / f".old-{path.name}"), ignore_errors=True)
    return final


def seal(folder: Path) -> None:
    """Write the manifest of all files in `folder`, after they have reached the disk."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(path)
        digests[path.relative_to(folder).as_posix()] = _digest(path)
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")
    _flush(folder / MANIFEST)
    _flush(folder)


def find_damage(folder: Path) -> str | None:
    """Return the first file of a checkpoint that is not what was written, with the reason, or None."""
    try:
        digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                return f"{folder / name} is damaged"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (ValueError, AttributeError):
        return f"{folder / MANIFEST} is damaged"
    return None


def find_checkpoint(folder: Path, wanted: str, warn: Callable[[str], None]) -> Path | None:
    """Return the checkpoint to resume from: the one named, or the newest whole one. None if there is none yet."""
    if wanted != "latest":
        path = Path(wanted)
        if not path.is_dir():
            raise InputError(f"--resume_from_checkpoint {wanted}: there is no such folder")
        if damage := find_damage(path):
            raise InputError(f"--resume_from_checkpoint {wanted}: {damage}")
        return path
    damages = []
    for path in list_checkpoints(folder):
        if not (damage := find_damage(path)):
            return path
        damages.append(damage)
        warn(f"{damage}; trying the checkpoint before it")
    if damages:
        listed = "; ".join(damages)
        raise InputError(f"no whole checkpoint in {folder} ({listed}); to train anew, pass --overwrite_output_dir")
    return None


def write_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, average: dict[str, Tensor] | None
) -> None:
    """Write the model, loadable by `from_pretrained`, optimizer, `state` as JSON, and the average of the weights."""
    model.config.save_pretrained(folder)
    names, states = _parameter_names(model, optimizer), optimizer.state_dict()["state"]
    parts = {f"{names[index]}/{part}": value for index, parts in states.items() for part, value in parts.items()}
    tensors = {"model": model.state_dict(), "optimizer": parts} | ({"ema": average} if average else {})
    for name, values in tensors.items():
        values = {key: value.detach().cpu().contiguous() for key, value in values.items()}
        save_file(values, folder / f"{name}.safetensors", metadata={"format": "pt"})
    (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


def read_state(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def read_training_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restore model and optimizer, and return the state."""
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    saved, names = load_file(folder / "optimizer.safetensors"), _parameter_names(model, optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, _, part = key.rpartition("/")
        state.setdefault(names.index(name), {})[part] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return read_state(folder)


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters in the order of the optimizer."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(model: torch.nn.Module) -> str:
    """Digest of all weights and buffers, which identifies a model."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def differences(saved: dict, now: dict, prefix: str = "") -> list[str]:
    """List what differs between two descriptions of a run."""
    changes = []
    for name in sorted(saved.keys() | now.keys()):
        before, after = saved.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += differences(before, after, f"{prefix}{name}.")
        elif json.dumps(before) != json.dumps(after):
            changes.append(f"{prefix}{name} was {before}, now {after}")
    return changes
