"""Checkpoints to convert that mean harm: one line, no code run, no memory that the file does not hold."""

import collections
import json
import re
import struct
import zipfile
from _codecs import encode

import numpy as np
import pytest
import torch
from safetensors.torch import save

from golden_weights import official_state
from hostile_cases import Call, Payload, plain_pickle, safetensors_of, zip_of
from modeling_act.convert.official_checkpoint import main as convert
from modeling_act.convert.official_checkpoint import read_state
from modeling_act.errors import InputError

# Converts each file with no more than 1 GiB beyond what the process has: exit code, what it printed, seconds, MiB.
CONVERT = """
import contextlib, io, json, resource, sys, time
from pathlib import Path
from modeling_act.convert.official_checkpoint import main

main([sys.argv[2], sys.argv[3], "--num_groups=16", "--num_attention_heads=6"])  # what is imported late is imported now
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print()
for path in json.loads(sys.argv[1]):
    said, start, before = io.StringIO(), time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stderr(said):
        code = main([path, path + ".out", "--num_groups=16", "--num_attention_heads=6"])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps([code, said.getvalue(), time.perf_counter() - start, grown]))
"""
PLAIN = {"base_model": {"a": torch.zeros(1000)}}
LINE = "cannot be read as a checkpoint of plain tensors"


def linear() -> dict[str, torch.Tensor]:
    return dict(official_state("classifier_linear_state"))


def lie(data: bytes) -> bytes:
    """A storage and a tensor of a hundred million numbers, where there are a thousand."""
    return data.replace(b"M\xe8\x03", b"J" + struct.pack("<i", 10**8))


def overlapping() -> bytes:
    """A zip whose directory names the same bytes a thousand times."""
    data = zip_of({"base_model": {"a": torch.zeros(10**5)}})
    start, count, size = struct.unpack("<IHI", struct.pack("<I", 0) + data[-12:-10] + data[-10:-6])
    offset = struct.unpack("<I", data[-6:-2])[0]
    directory = data[offset : offset + size]
    end = bytearray(data[-22:])
    end[8:12] = struct.pack("<HH", count * 1000, count * 1000)
    end[12:16] = struct.pack("<I", size * 1000)
    return data[:offset] + directory * 1000 + bytes(end)


def wide() -> dict[str, torch.Tensor]:
    """Twelve megabytes that say the position MLP is a million wide; its second layer alone would take 400."""
    return linear() | {"pos_embed.0.weight": torch.zeros(2**20, 3), "pos_embed.0.bias": torch.zeros(2**20)}


def cases(marker):
    bomb = {"base_model": {"a": torch.zeros(10**7)}}
    yield "code.pth", zip_of(PLAIN | {"optimizer": Payload(marker)}), f"{LINE}: it names the GLOBAL"
    yield "plain.pth", plain_pickle(Payload(marker)), "it is no zip, as torch has saved them since 1.6"
    yield "renamed.safetensors", zip_of(PLAIN | {"optimizer": Payload(marker)}), LINE
    yield "eval.pth", zip_of(PLAIN | {"x": Call(eval, "1")}), "GLOBAL __builtin__ eval"
    yield "memory.pth", zip_of(PLAIN | {"x": Call(bytearray, 3 * 10**9)}), "GLOBAL __builtin__ bytearray"
    yield "counter.pth", zip_of(PLAIN | {"x": collections.Counter("a")}), "GLOBAL collections Counter"
    yield "array.pth", zip_of(PLAIN | {"x": np.zeros(3)}), "GLOBAL numpy"
    yield "void.pth", zip_of(PLAIN | {"x": Call(np.dtype, "V2000000000")}), "holds no state dict|holds|lacks|no known"
    yield "packed.pth", zip_of(bomb, compression=zipfile.ZIP_DEFLATED), "it is compressed, or announces more"
    yield "overlapping.pth", overlapping(), "it is compressed, or announces more than it holds"
    yield "numel.pth", zip_of(PLAIN, lie), LINE
    yield (
        "nested.pth",
        zip_of(PLAIN, lambda _: b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
        "no state dict",
    )
    yield "truncated.pth", zip_of(PLAIN)[:-30], LINE
    yield "empty.pth", b"", LINE
    yield (
        "repeated.pth",
        zip_of({"base_model": {"a": torch.zeros(1).expand(10**6, 10**6)}}),
        "bytes that are not there",
    )
    shared = torch.zeros(10**6)
    yield (
        "shared.pth",
        zip_of({"base_model": {f"a{n}": shared for n in range(100)}}),
        "holds tensors of 400000000 bytes",
    )
    yield "meta.pth", zip_of({"base_model": {"a": torch.zeros(10**9, device="meta")}}), LINE
    yield "sparse.pth", zip_of({"base_model": {"a": torch.eye(3).to_sparse()}}), "GLOBAL torch._utils _rebuild_sparse"
    yield "names.pth", zip_of({"base_model": {"a\n\x1b[2Jb": torch.zeros(1)}}), r"by the name 'a\\n\\x1b\[2Jb'"
    yield "numbers.pth", zip_of({"base_model": {3: torch.zeros(1)}}), "holds a tensor by the name 3"
    yield "wide.pth", zip_of({"base_model": wide()}), "expected shape"
    yield "scalars.pth", zip_of({"base_model": {key: torch.zeros(()) for key in linear()}}), "lacks what belongs"
    deep = {f"blocks.blocks.{layer}.norm1.weight": torch.zeros(96) for layer in range(5000)}
    yield "deep.pth", zip_of({"base_model": linear() | deep}), "`num_hidden_layers` must be at most 256"
    label = {"cls_head_finetune.99999999999999999999.weight": torch.zeros(1, 1)}
    yield "layer.pth", zip_of({"base_model": linear() | label}), "error: "
    header = {"a": {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}}
    yield "length.safetensors", safetensors_of({}, length=2**60), LINE
    yield "offsets.safetensors", safetensors_of(header, b"short"), LINE
    giant = {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 96]}}
    yield "giant.safetensors", safetensors_of(giant, bytes(96)), LINE
    nothing = {"norm.weight": {"dtype": "F32", "shape": [10**12, 0], "data_offsets": [0, 0]}}
    yield "nothing.safetensors", safetensors_of(nothing), "no known checkpoint"
    yield "wide.safetensors", save(wide()), "expected shape"


def test_checkpoints_that_mean_harm(tmp_path, run_python):
    marker, good = tmp_path / "marker", tmp_path / "good.pth"
    good.write_bytes(zip_of({"base_model": linear()}))
    attacks = list(cases(marker))
    for name, data, _ in attacks:
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name, _, _ in attacks]
    process = run_python("-c", CONVERT, json.dumps(paths), good, tmp_path / "good")
    results = [json.loads(line) for line in process.stdout.split("\n\n")[1].splitlines()]
    wrong = []
    for (name, data, reason), (code, said, seconds, grown) in zip(attacks, results, strict=True):
        one_line = code == 1 and said.startswith("error: ") and said.count("\n") == 1 and len(said) < 700
        cheap = seconds < 5 and grown < 100 + 3 * len(data) / 2**20
        if not (one_line and cheap and re.search(reason, said)) or (tmp_path / f"{name}.out").exists():
            wrong.append((name, said, seconds, grown))
    assert not wrong, "\n".join(map(str, wrong))
    assert not marker.exists()


def test_what_the_authors_saved_is_read(tmp_path):
    """Numpy scalars among the metrics, bytes that pickle as `_codecs.encode`, parameters, tied tensors, all types."""
    tied = torch.randn(8, 8)
    state = {f"module.{kind}": torch.zeros(3).to(kind) for kind in (torch.float16, torch.int64, torch.bool)}
    state |= {"parameter": torch.nn.Parameter(torch.ones(2)), "a": tied, "b": tied, "row": torch.arange(9.0)[3:6]}
    metrics = {"acc": np.float64(93.2), "note": Call(encode, "abc", "latin1")}
    torch.save({"base_model": state, "metrics": metrics, "epoch": 3}, tmp_path / "checkpoint.pth")
    read = read_state(tmp_path / "checkpoint.pth")
    assert set(read) == {key.removeprefix("module.") for key in state}
    assert read["row"].tolist() == [3, 4, 5] and torch.equal(read["b"], tied)


def test_the_old_format_says_what_to_do(tmp_path, capsys):
    torch.save(PLAIN, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert convert([str(tmp_path / "old.pth"), str(tmp_path / "out")]) == 1
    assert "load an older one with torch and save it anew" in capsys.readouterr().err
    with pytest.raises(InputError, match="it is no zip"):
        read_state(tmp_path / "old.pth")
