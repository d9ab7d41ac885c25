"""Attacks, as files: folders and repositories of models that nobody should load, and the process that tries to."""

import contextlib
import io
import json
import resource
import struct
from pathlib import Path

import torch
from safetensors.torch import save

from modeling_act import ACTStudent, ACTTeacher
from small_models import small_student_config, small_teacher_config

# Loads what it is told with no more than 1 GiB beyond what it has, and says for each what came, how long it took and
# by how many MiB the process grew.
ATTEMPT = """
import json, logging, resource, sys, time
from pathlib import Path

import torch
import modeling_act
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, logging as transformers_logging
from modeling_act import ACTStudent, ACTStudentForPreTraining, ACTTeacher

transformers_logging.set_verbosity_error()
torch.set_num_threads(1)
loaders = {"auto": AutoModel, "config": AutoConfig, "processor": AutoFeatureExtractor, "student": ACTStudent,
           "pretraining": ACTStudentForPreTraining, "teacher": ACTTeacher}
ACTStudent.from_pretrained(sys.argv[2])  # whatever is imported late is imported now
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for loader, source, options in json.loads(sys.argv[1]):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        kind, message = "loaded", type(loaders[loader].from_pretrained(source, **options)).__name__
    except Exception as error:
        kind, message = type(error).__name__, str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps([kind, message, time.perf_counter() - start, grown]), flush=True)
"""


def attempts(run_python, jobs, harmless, **options):
    """What came of each (loader, path or repository, arguments): kind of error, message, seconds, MiB."""
    process = run_python("-c", ATTEMPT, json.dumps(jobs), harmless, **options)
    results = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(results) == len(jobs), process.stdout + process.stderr
    return results


def student_files() -> dict[str, bytes]:
    return model_files(ACTStudent(small_student_config()))


def teacher_files() -> dict[str, bytes]:
    return model_files(ACTTeacher(small_teacher_config()))


def model_files(model) -> dict[str, bytes]:
    config = model.config.to_dict() | {"model_type": model.config.model_type}
    weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(weights, {"format": "pt"})}


def changed(files: dict[str, bytes], **fields) -> dict[str, bytes]:
    """The same with other fields in its config.json."""
    return files | {"config.json": json.dumps(json.loads(files["config.json"]) | fields).encode()}


def sharded(files: dict[str, bytes], weight_map: dict, **content) -> dict[str, bytes]:
    """The weights under an index instead, beside a shard that holds them all."""
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map} | content).encode()
    shard = files["model.safetensors"]
    kept = {name: data for name, data in files.items() if name != "model.safetensors"}
    return kept | {"model.safetensors.index.json": index, "model-00001-of-00001.safetensors": shard}


def write_folder(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


class Payload:
    """Unpickled without care, writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w').write('ran')",)


def pickled_weights(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"cls_token": torch.zeros(1), "payload": Payload(marker)}, stream)
    return stream.getvalue()


def safetensors_of(header: dict | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file whose header may say anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


# Memory --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited_memory(extra=2**30):
    """No more than `extra` bytes above what the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
