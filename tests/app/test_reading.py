"""Files that visitors send: what is read of them, and what they are told."""

import os
import re
import time
import zipfile

import numpy as np
import pytest

from modeling_act.errors import InputError


def test_z_up_is_stood_up(tmp_path):
    from reading import open_cloud

    np.save(tmp_path / "a.npy", np.array([(1.0, 2, 3), (4, 5, 6)]))
    assert open_cloud(tmp_path / "a.npy", z_up=True).points.tolist() == [[1, 3, -2], [4, 6, -5]]


def test_a_large_cloud_is_thinned_with_its_colors(tmp_path):
    from reading import MOST_POINTS, open_cloud

    points = np.random.default_rng(0).random((MOST_POINTS + 5, 3))
    np.savez(tmp_path / "a.npz", points=points, colors=points)
    cloud = open_cloud(tmp_path / "a.npz")
    assert (len(cloud.points), cloud.total) == (MOST_POINTS, MOST_POINTS + 5)
    np.testing.assert_allclose(cloud.colors, cloud.points, atol=1e-6)


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", bytes(250 * 2**20))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.ply", lambda path: path.write_bytes(b"ply\nnonsense"), "a.ply: "),
        ("a.ply", lambda path: path.write_bytes(b""), "a.ply: is empty"),
        ("a.exe", lambda path: path.write_bytes(b"MZ"), "unsupported suffix '.exe'"),
        ("a.xyz", lambda path: path.write_text("0 0 nan\n" * 9), "not finite"),
        ("a.xyz", lambda path: path.write_text("0 0 1e16\n" * 9), "coordinates beyond 1e15"),
        ("a.npz", bomb, "a.npz: holds more than 200 MB"),
        ("a.xyz", lambda path: path.write_bytes(b"0 0 0\n" * 4_000_000), "a.xyz: is larger than 20 MB"),
        ("a.xyz", lambda path: None, "there is no such file|No such file"),
    ],
)
def test_bad_files_get_one_line_that_does_not_say_where_they_lay(tmp_path, name, write, message):
    from reading import open_cloud

    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        open_cloud(tmp_path / name)
    assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)


def test_an_upload_is_read_in_another_process(tmp_path):
    from reading import open_upload

    np.save(tmp_path / "a.npy", np.array([(1.0, 2, 3), (4, 5, 6)]))
    cloud = open_upload(tmp_path / "a.npy", True)
    assert cloud.name == "a.npy" and cloud.points.tolist() == [[1, 3, -2], [4, 6, -5]]
    with pytest.raises(InputError, match=re.escape("b.npy: there is no such file")):
        open_upload(tmp_path / "b.npy")


def test_an_upload_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    import reading

    path = tmp_path / "slow.obj"
    path.write_bytes(b"v 1 2 3\nv 2 2 4\nv 3 4 5\n" + b"f " + b"1 2 3 " * 3_000_000 + b"\n")
    reading.open_upload(write_small(tmp_path))  # the server of processes has started
    monkeypatch.setattr(reading, "MOST_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(InputError, match="slow.obj: takes longer than 0.3 seconds to read"):
        reading.open_upload(path)
    assert time.monotonic() - began < 4


def test_a_reader_that_dies_is_an_error_like_others(tmp_path, monkeypatch):
    import reading

    monkeypatch.setattr(reading, "_answer", die)
    with pytest.raises(InputError, match="small.npy: cannot be read"):
        reading.open_upload(write_small(tmp_path))


def write_small(folder):
    np.save(folder / "small.npy", np.eye(3))
    return folder / "small.npy"


def die(*_):
    os._exit(9)
