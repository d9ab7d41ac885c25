"""Malicious files: folders and repositories of models that nobody should load, and checkpoints to convert."""

import contextlib
import io
import json
import resource
import struct
from pathlib import Path

import torch
from safetensors.torch import save


def model_files(model) -> dict[str, bytes]:
    names = {"model_type": model.config.model_type, "architectures": [type(model).__name__]}
    config = model.config.to_dict() | names
    weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(weights, {"format": "pt"})}


def changed(files: dict[str, bytes], **fields) -> dict[str, bytes]:
    """Change fields of the config.json."""
    return files | {"config.json": json.dumps(json.loads(files["config.json"]) | fields).encode()}


def sharded(files: dict[str, bytes], weight_map: dict, **content) -> dict[str, bytes]:
    """Put the weights into one shard under an index."""
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map} | content).encode()
    shard = files["model.safetensors"]
    others = {name: data for name, data in files.items() if name != "model.safetensors"}
    return others | {"model.safetensors.index.json": index, "model-00001-of-00001.safetensors": shard}


def write_folder(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


class Payload:
    """Object that writes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w').write('ran')",)


def pickled_weights(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"cls_token": torch.zeros(1), "payload": Payload(marker)}, stream)
    return stream.getvalue()


def safetensors_of(header: dict | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """Make a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


# Memory --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited_memory(extra=2**30):
    """Limit the memory of this process to `extra` bytes above what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
