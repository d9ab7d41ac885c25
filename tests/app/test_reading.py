"""Files of visitors: what is read, the limits, and the messages."""

import multiprocessing
import os
import re
import sys
import time

import numpy as np
import pytest
import reading
from reading import MAX_POINTS, open_cloud, open_upload

from modeling_act.errors import InputError

LONG = "a_very_long_name_" * 12


def test_z_up_is_stood_up(tmp_path):
    np.save(tmp_path / "a.npy", np.array([(1.0, 2, 3), (4, 5, 6)]))
    assert open_cloud(tmp_path / "a.npy", z_up=True).points.tolist() == [[1, 3, -2], [4, 6, -5]]


def test_a_large_cloud_is_thinned_with_its_colors(tmp_path):
    points = np.random.default_rng(0).random((MAX_POINTS + 5, 3))
    np.savez(tmp_path / "a.npz", points=points, colors=points)
    cloud = open_cloud(tmp_path / "a.npz")
    assert (len(cloud.points), cloud.total) == (MAX_POINTS, MAX_POINTS + 5)
    np.testing.assert_allclose(cloud.colors, cloud.points, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ply", b"ply\nnonsense", "a.ply: "),
        ("a.ply", b"", "a.ply: is empty"),
        ("a.exe", b"MZ", "unsupported suffix '.exe'"),
        ("a.xyz", b"0 0 nan\n" * 9, "not finite"),
        ("a.xyz", b"0 0 1e16\n" * 9, "coordinates beyond 1e15"),
        ("a.xyz", b"0 0 0\n" * 4_000_000, "a.xyz: is larger than 20 MB"),
        ("a.xyz", None, "there is no such file|No such file"),
        (f"{LONG}.ply", b"ply\nnonsense", r"^.{40}\.\.\..{13}\.ply: "),
    ],
)
def test_bad_files_get_one_line_without_their_folder(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_cloud(tmp_path / name)
    assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)


def test_an_upload_is_read_in_another_process(tmp_path):
    np.save(tmp_path / "a.npy", np.array([(1.0, 2, 3), (4, 5, 6)]))
    cloud = open_upload(tmp_path / "a.npy", True)
    assert cloud.name == "a.npy" and cloud.points.tolist() == [[1, 3, -2], [4, 6, -5]]
    with pytest.raises(InputError, match=re.escape("b.npy: there is no such file")):
        open_upload(tmp_path / "b.npy")


def test_an_upload_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    path = tmp_path / "slow.obj"
    path.write_bytes(b"v 1 2 3\nv 2 2 4\nv 3 4 5\n" + b"f " + b"1 2 3 " * 3_000_000 + b"\n")
    open_upload(write_small(tmp_path))  # the server of processes has started
    monkeypatch.setattr(reading, "MAX_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(InputError, match="slow.obj: takes longer than 0.3 seconds to read"):
        open_upload(path)
    assert time.monotonic() - began < 4


def test_the_largest_honest_files_fit_into_the_memory(tmp_path):
    points = np.random.default_rng(0).random((800_000, 3)).round(5)
    np.savetxt(tmp_path / "a.xyz", points[:700_000], fmt="%.5f")
    np.save(tmp_path / "b.npy", points)
    for name, total in (("a.xyz", 700_000), ("b.npy", 800_000)):
        assert (tmp_path / name).stat().st_size > 0.8 * reading.MAX_BYTES
        assert open_upload(tmp_path / name).total == total


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_an_upload_that_takes_too_much_memory_is_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((800_000, 3)))
    monkeypatch.setattr(reading, "MAX_MEMORY", 8 * 2**20)
    # A fresh process: the fork server of the tests has freed memory to hand out.
    monkeypatch.setattr(reading, "PROCESSES", multiprocessing.get_context("spawn"))
    with pytest.raises(InputError, match="a.npy: .*(needs more than 8 MB|needs more memory than there is)"):
        open_upload(tmp_path / "a.npy")


def test_a_reader_that_crashes_is_an_error_like_others(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_read", crash)
    with pytest.raises(InputError, match="small.npy: cannot be read"):
        open_upload(write_small(tmp_path))


def write_small(folder):
    np.save(folder / "small.npy", np.eye(3))
    return folder / "small.npy"


def crash(*_):
    os._exit(9)
