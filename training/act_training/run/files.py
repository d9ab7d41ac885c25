"""Files and folders that are written whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from modeling_act.errors import InputError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing that name no file, such as those of a full disk, name `path`."""
    try:
        yield
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be written ({error}); complete checkpoints are untouched") from error
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """All of it or nothing."""
    temporary = path.with_name(f".{path.name}.writing")
    with naming(path):
        temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """A folder as `write` fills it, in place of the one that was there."""
    new, old = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    with naming(path):
        write(new)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def save_weights(folder: Path, model: PreTrainedModel, weights: dict[str, torch.Tensor] | None = None) -> None:
    """A folder for `from_pretrained`, with these weights in place of some of the model's own."""
    state = None if weights is None else model.state_dict() | weights
    replace_folder(folder, lambda path: model.save_pretrained(path, state_dict=state))
