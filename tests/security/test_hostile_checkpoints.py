"""Malicious and damaged checkpoints to convert: one line of error, and no code runs."""

import zipfile
from _codecs import encode

import numpy as np
import pytest
import torch

from hostile_cases import Call, Payload, plain_pickle, safetensors_of, zip_of
from modeling_act.convert.official_checkpoint import main as convert
from modeling_act.convert.read_checkpoint import read_state

PLAIN = {"base_model": {"a": torch.zeros(1000)}}
HEADER = {"a": {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}}
CASES = {
    "code.pth": lambda marker: zip_of(PLAIN | {"optimizer": Payload(marker)}),
    "plain.pth": lambda marker: plain_pickle(Payload(marker)),
    "renamed.safetensors": lambda marker: zip_of(PLAIN | {"optimizer": Payload(marker)}),
    "eval.pth": lambda marker: zip_of(PLAIN | {"x": Call(eval, f"open({str(marker)!r}, 'w')")}),
    "truncated.pth": lambda marker: zip_of(PLAIN)[:-30],
    "deflated.pth": lambda marker: zip_of(PLAIN, compression=zipfile.ZIP_DEFLATED),
    "empty.pth": lambda marker: b"",
    "other.pth": lambda marker: zip_of({"base_model": {"a": torch.zeros(3)}}),
    "length.safetensors": lambda marker: safetensors_of({}, length=2**60),
    "offsets.safetensors": lambda marker: safetensors_of(HEADER, b"short"),
}


@pytest.mark.parametrize("name", CASES)
def test_checkpoints_that_are_refused(name, tmp_path, capsys):
    marker = tmp_path / "marker"
    (tmp_path / name).write_bytes(CASES[name](marker))
    assert convert([str(tmp_path / name), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_what_the_authors_saved_is_read(tmp_path):
    """Numpy scalars among the metrics, bytes that pickle as `_codecs.encode`, parameters, tied tensors, all types."""
    tied = torch.randn(8, 8)
    state = {f"module.{kind}": torch.zeros(3).to(kind) for kind in (torch.float16, torch.int64, torch.bool)}
    state |= {"parameter": torch.nn.Parameter(torch.ones(2)), "a": tied, "b": tied, "row": torch.arange(9.0)[3:6]}
    metrics = {"acc": np.float64(93.2), "note": Call(encode, "abc", "latin1")}
    torch.save({"base_model": state, "metrics": metrics, "epoch": 3}, tmp_path / "checkpoint.pth")
    tensors = read_state(tmp_path / "checkpoint.pth")
    assert set(tensors) == {key.removeprefix("module.") for key in state}
    assert tensors["row"].tolist() == [3, 4, 5] and torch.equal(tensors["b"], tied)
