"""Read the tensors of a checkpoint as the authors published it: safetensors, or a pickle with weights alone."""

from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import InputError

WRAPPERS = ("base_model", "model_state_dict", "model", "state_dict")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict without what it was wrapped in."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else load_pickle(path)
    except Exception as error:  # whatever a parser raises on a damaged file
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "GLOBAL" in line), lines[0]).strip()[:200]
        raise InputError(f"{path} cannot be read as a checkpoint of plain tensors: {reason}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path} holds no state dict under {', '.join(WRAPPERS)}")
    for key, tensor in content.items():
        is_dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        # The file must hold each number; a view can repeat one a billion times.
        if not is_dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(f"{path} holds {key} as no plain tensor with all of its numbers")
    return {key.removeprefix("module."): tensor for key, tensor in content.items()}


def load_pickle(path: Path) -> object:
    """Load tensors, and the NumPy scalars that the authors saved beside them; anything else is refused."""
    scalar = numpy._core.multiarray.scalar if hasattr(numpy, "_core") else numpy.core.multiarray.scalar
    allowed = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed += [numpy.dtype, *(type(numpy.dtype(kind)) for kind in ("f4", "f8", "i8"))]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)
