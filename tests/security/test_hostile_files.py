"""Malicious clouds and meshes: paths that are no files, names with control characters, files that point elsewhere."""

import json
import os

import numpy as np
import pytest

from cloud_cases import POINTS, npy_of, text_of
from hostile_cases import Payload
from modeling_act.errors import InputError
from modeling_act.readers.cloud import read_array, read_cloud


def refusal(path, read=read_cloud):
    """The one line of error for a path."""
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_devices_and_pipes_are_not_read(tmp_path):
    """A FIFO would wait forever, and a device has no end."""
    os.mkfifo(tmp_path / "fifo.ply")
    (tmp_path / "zero.xyz").symlink_to("/dev/zero")
    (tmp_path / "loop.ply").symlink_to(tmp_path / "loop.ply")
    for name in ("fifo.ply", "zero.xyz"):
        assert refusal(tmp_path / name) == f"{tmp_path / name}: is not a file"
    assert refusal(tmp_path / "loop.ply") == f"{tmp_path / 'loop.ply'}: there is no such file"
    assert refusal("a/" * 5000 + ".ply").endswith("cannot be read: File name too long")
    assert refusal("a\0b.ply") == "a\\x00b.ply: there is no such file"


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("a\nerror: all is well\x1b[2J.ply", "a\\nerror: all is well\\x1b[2J.ply"),
        ("a\u202eylp.exe.ply", "a\\u202eylp.exe.ply"),
        ("a\udcff.ply", "a\\udcff.ply"),
        ("caf\u00e9.ply", "caf\u00e9.ply"),
    ],
)
def test_control_characters_of_names_are_escaped(tmp_path, name, printed):
    (tmp_path / name).write_bytes(b"junk")
    assert refusal(tmp_path / name) == f"{tmp_path}/{printed}: has no header from ply to end_header"
    (tmp_path / name).with_suffix(".xyz").write_bytes(text_of(POINTS))
    assert len(read_cloud((tmp_path / name).with_suffix(".xyz")).points) == len(POINTS)


def test_arrays_run_no_code(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "objects.npy").write_bytes(npy_of(np.array([Payload(marker)], dtype=object)))
    np.savez(tmp_path / "objects.npz", points=np.array([Payload(marker)], dtype=object))
    assert "holds Python objects, which are not loaded" in refusal(tmp_path / "objects.npy", read_array)
    assert "holds Python objects, which are not loaded" in refusal(tmp_path / "objects.npz")
    assert not marker.exists()


@pytest.mark.parametrize("uri", ["../x.bin", "%2e%2e/x.bin", "{folder}/x.bin", "link.bin"])
def test_a_gltf_reads_no_file_outside_of_its_folder(tmp_path, uri):
    (tmp_path / "x.bin").write_bytes(bytes(36))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "x.bin")
    tree = {"asset": {"version": "2.0"}, "buffers": [{"uri": uri.format(folder=tmp_path), "byteLength": 36}]}
    (tmp_path / "inner" / "model.gltf").write_text(json.dumps(tree))
    assert "which is not in its folder" in refusal(tmp_path / "inner" / "model.gltf")


def test_materials_are_not_opened(tmp_path):
    """They are pipes here, which would make whoever opens them wait."""
    for name in ("paint.mtl", "paint.png"):
        os.mkfifo(tmp_path / name)
    triangle = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl paint\nf 1 2 3\n"
    (tmp_path / "mesh.obj").write_bytes(b"mtllib paint.mtl\nmtllib ../../etc/passwd\n" + triangle)
    assert read_cloud(tmp_path / "mesh.obj", num_points=9).points.shape == (9, 3)
    (tmp_path / "points.bin").write_bytes(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype="<f4").tobytes())
    tree = {
        "asset": {"version": "2.0"},
        "buffers": [{"uri": "points.bin", "byteLength": 36}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 3}],
        "images": [{"uri": "paint.png"}],
        "textures": [{"source": 0}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "material": 0}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    (tmp_path / "mesh.gltf").write_text(json.dumps(tree))
    assert read_cloud(tmp_path / "mesh.gltf", num_points=9).points.shape == (9, 3)
