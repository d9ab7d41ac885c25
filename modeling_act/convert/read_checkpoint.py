"""Tensors from a checkpoint file as the authors published it, a pickle in a zip. Used by `convert_checkpoint`.

`torch.load(weights_only=True)` runs no code, and yet lets a small file ask for any amount of memory: the zip is first
held against its own size, and the pickle may name nothing but what a state dict of plain tensors needs.
"""

import pickletools
import zipfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import InputError

NUMPY_CORES = ("core", "_core")
PLAIN_GLOBALS = {
    "_codecs encode",
    "collections OrderedDict",
    "numpy dtype",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"numpy.{core}.multiarray scalar" for core in NUMPY_CORES),
    *(
        f"torch {kind}Storage"
        for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Byte", "Bool")
    ),
}


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, without their wrappers."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except Exception as error:  # whatever a parser raises on a damaged file
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "GLOBAL" in line), lines[0]).strip()[:200]
        raise InputError(f"{path} cannot be read as a checkpoint of plain tensors: {reason}") from error
    for wrapper in ("base_model", "model_state_dict", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path} holds no state dict under base_model, model_state_dict, model or state_dict")
    _check_tensors(content, path)
    return {key.removeprefix("module."): tensor for key, tensor in content.items()}


def _load_pickle(path: Path) -> object:
    if not zipfile.is_zipfile(path):
        raise InputError(
            "it is no zip, as torch has saved them since 1.6; load an older one with torch and save it anew"
        )
    with zipfile.ZipFile(path) as archive:
        packed = [info.filename for info in archive.infolist() if info.compress_type or info.flag_bits & 1]
        announced, size = sum(info.file_size for info in archive.infolist()), path.stat().st_size
        if packed or announced > size:
            raise InputError(
                f"it is compressed, or announces more than it holds: {announced} bytes in a file of {size}"
            )
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"it must hold one data.pkl, got {len(pickles)}")
        _check_pickle(archive.read(pickles[0]))
    scalar = numpy._core.multiarray.scalar if hasattr(numpy, "_core") else numpy.core.multiarray.scalar
    allowed = [(scalar, f"numpy.{core}.multiarray.scalar") for core in NUMPY_CORES]
    allowed += [numpy.dtype, type(numpy.dtype("f4")), type(numpy.dtype("f8")), type(numpy.dtype("i8"))]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_pickle(data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STACK_GLOBAL" or (opcode.name == "GLOBAL" and argument not in PLAIN_GLOBALS):
            raise InputError(f"it names the GLOBAL {str(argument)[:100]}, which no plain tensor needs")


def _check_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Names that can be printed, and memory that the file really holds: a view may repeat one number for ever."""
    total = 0
    for key, tensor in state.items():
        if not isinstance(key, str) or not key.isprintable():
            raise InputError(f"{path} holds a tensor by the name {repr(key)[:100]}, which is no name of a weight")
        size = tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or size > tensor.untyped_storage().nbytes():
            raise InputError(f"{path} holds {key[:100]} as no plain tensor: {size} bytes that are not there")
        total += size
    if total > 2 * path.stat().st_size:
        raise InputError(f"{path} holds tensors of {total} bytes in a file of {path.stat().st_size}")
