"""Clouds that mean harm, beside those of test_cloud_files.py: paths, names, files that ask for more than they hold."""

import gzip
import io
import json
import os
import struct
import time
import zipfile

import numpy as np
import pytest

from cloud_cases import POINTS, npy_of, npz_of, text_of
from hostile_cases import limited_memory
from modeling_act.errors import InputError
from modeling_act.readers.cloud import read_array, read_cloud, read_table


def refusal(path, read=read_cloud):
    """The one line that reading a path gives, within a second or two and 1 GiB."""
    start = time.perf_counter()
    with limited_memory(), pytest.raises(InputError) as caught:
        read(path)
    assert time.perf_counter() - start < 5
    assert str(caught.value).isprintable()
    return str(caught.value)


# Paths ---------------------------------------------------------------------------------------------------------------


def test_what_is_no_file_is_not_read(tmp_path):
    """A FIFO would wait for ever, a device never end."""
    os.mkfifo(tmp_path / "fifo.ply")
    (tmp_path / "folder.ply").mkdir()
    (tmp_path / "zero.xyz").symlink_to("/dev/zero")
    (tmp_path / "loop.ply").symlink_to(tmp_path / "loop.ply")
    for name in ("fifo.ply", "folder.ply", "zero.xyz"):
        assert refusal(tmp_path / name) == f"{tmp_path / name}: is not a file"
    assert refusal(tmp_path / "loop.ply") == f"{tmp_path / 'loop.ply'}: there is no such file"
    assert refusal("/dev/zero") == "/dev/zero: is not a file"
    assert refusal("/proc/self/mem") == "/proc/self/mem: is empty"


def test_names_that_no_system_has(tmp_path):
    assert refusal("x" * 5000 + ".ply").endswith("x: cannot be read: File name too long")
    assert refusal("a/" * 5000 + ".ply").endswith("cannot be read: File name too long")
    assert refusal("a\0b.ply") == "a\\x00b.ply: there is no such file"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nerror: all is well\x1b[2J.ply", "a\\nerror: all is well\\x1b[2J.ply"),
        ("a\u202eylp.exe.ply", "a\\u202eylp.exe.ply"),
        ("a\udcff.ply", "a\\udcff.ply"),
        ("caf\u00e9.ply", "caf\u00e9.ply"),
        ("-rf.ply", "-rf.ply"),
    ],
)
def test_names_are_shown_without_what_a_terminal_acts_upon(tmp_path, name, shown):
    (tmp_path / name).write_bytes(b"junk")
    assert refusal(tmp_path / name) == f"{tmp_path}/{shown}: has no header from ply to end_header"
    (tmp_path / name).with_suffix(".xyz").write_bytes(text_of(POINTS))
    assert len(read_cloud((tmp_path / name).with_suffix(".xyz")).points) == len(POINTS)


# Files ---------------------------------------------------------------------------------------------------------------


def zip_file(members, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def npy_header(text, length=None, version=1):
    text = text.ljust(117) + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


def gltf_of(uri, length=3):
    return json.dumps({"asset": {"version": "2.0"}, "buffers": [{"uri": uri, "byteLength": length}]}).encode()


PLY = b"ply\nformat %s 1.0\nelement vertex %d\nproperty float x\nproperty float y\nproperty float z\n%send_header\n"
LIST = b"element face 1\nproperty list uint int vertex_indices\n"
BOMB = npz_of(np.savez_compressed, points=np.zeros((10**6, 3)))
PCD = b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH %d\nHEIGHT 1\nDATA binary\n"
ZEROS, VOID = npy_of(np.zeros((10**6, 3))), b"{'descr': 'V1000000000000', 'fortran_order': False, 'shape': (3,), }"
FILES = {
    "count.ply": (PLY % (b"ascii", 10**17, b"") + b"1 2 3\n", "take 600000000000000000 bytes or more and holds 6"),
    "huge.ply": (PLY % (b"ascii", 10**30, b"") + b"1 2 3\n", "elements with a name and a count"),
    "list.ply": (PLY % (b"binary_little_endian", 1, LIST) + bytes(12) + b"\xff" * 4, "is damaged, or no .ply file"),
    "index.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 99999999999999999999\n", "is damaged, or no .obj file"),
    "count.stl": (bytes(80) + b"\xff" * 4 + bytes(50), "announces 4294967295 triangles in 134 bytes"),
    "count.pcd": (PCD % 10**20, "points that take"),
    "columns.xyz": (b"1 " * 10**7 + b"\n", "a line has 100000 characters or more"),
    "later.xyz": (b"1 2 3\n" + b"1 " * 10**7 + b"\n", "a line has 100000 characters or more"),
    "digits.xyz": (b"1" * 99_000 + b" 2 3\n", "points that are not finite"),
    "code.npy": (npy_header(b"{'descr': __import__('os').mkdir('ran'), 'shape': (3,), }"), "malformed node or string"),
    "nested.npy": (npy_header(b"(" * 10**5 + b")" * 10**5, version=2), "is damaged, or no .npy file"),
    "length.npy": (npy_header(b"{", length=2**32 - 1, version=2), "is damaged, or no .npy file"),
    "item.npy": (npy_header(VOID), "not a valid dtype"),
    "packed.npz": (gzip.compress(npz_of(points=POINTS)), "is damaged, or no .npz file: BadZipFile"),
    "nested.npz": (zip_file({"points.npy": BOMB}), "the magic string is not correct"),
    "bzip.npz": (zip_file({"points.npy": ZEROS}, zipfile.ZIP_BZIP2), "claims 24000128 bytes"),
    "lzma.npz": (zip_file({"points.npy": ZEROS}, zipfile.ZIP_LZMA), "claims 24000128 bytes"),
    "names.npz": (zip_file({"/a\n\x1b[2J.npy": npy_of(POINTS), "../b.npy": npy_of(POINTS)}), r"got /a\n\x1b[2J, ../b"),
    "nested.gltf": (b"[" * 10**5, "is damaged, or no .gltf file: RecursionError"),
    "data.gltf": (gltf_of("data:application/octet-stream;base64,AAAA", 10**9), "a buffer of 1000000000 bytes"),
    "scheme.gltf": (gltf_of("file:///etc/passwd"), "which is not in its own folder"),
    "host.gltf": (gltf_of("//host/x.bin"), "which is not in its own folder"),
    "detour.gltf": (gltf_of("a/../../x.bin"), "which is not in its own folder"),
    "windows.gltf": (gltf_of("..\\x.bin"), "which is not there"),
    "null.gltf": (gltf_of("x.bin\0.png"), "is damaged, or no .gltf file"),
    "device.gltf": (gltf_of("/dev/zero"), "which is not in its own folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_that_mean_harm_are_refused_in_one_line(name, tmp_path, monkeypatch):
    data, reason = FILES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(data)
    message = refusal(tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: ") and reason in message, message
    assert os.listdir(tmp_path) == [name]  # and nothing ran or was unpacked


def test_tables_and_arrays_are_read_as_carefully(tmp_path):
    (tmp_path / "wide.txt").write_bytes(b"1 " * 10**7)
    (tmp_path / "objects.npy").write_bytes(npy_of(np.array([{"a": 1}], dtype=object)))
    assert "a line has 100000 characters" in refusal(tmp_path / "wide.txt", read_table)
    assert "must hold numbers, got an array of object" in refusal(tmp_path / "objects.npy", read_array)


def test_an_obj_reads_no_other_file(tmp_path):
    """Its materials are a FIFO, which would make whoever opens it wait."""
    os.mkfifo(tmp_path / "paint.mtl")
    triangle = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl paint\nf 1 2 3\n"
    (tmp_path / "mesh.obj").write_bytes(b"mtllib paint.mtl\nmtllib ../../etc/passwd\ncall /etc/passwd\n" + triangle)
    assert read_cloud(tmp_path / "mesh.obj", num_points=9).points.shape == (9, 3)


def test_pictures_of_a_gltf_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "paint.png")
    triangle = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype="<f4").tobytes()
    (tmp_path / "points.bin").write_bytes(triangle)
    tree = {
        "asset": {"version": "2.0"},
        "buffers": [{"uri": "points.bin", "byteLength": 36}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 3}],
        "images": [{"uri": "paint.png"}, {"uri": "../../../etc/passwd"}],
        "textures": [{"source": 0}, {"source": 1}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": index}}} for index in range(2)],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "material": index} for index in range(2)]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    (tmp_path / "mesh.gltf").write_text(json.dumps(tree))
    assert read_cloud(tmp_path / "mesh.gltf", num_points=9).points.shape == (9, 3)


def test_members_of_an_archive_are_read_where_they_are(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "cloud.npz").write_bytes(zip_file({"../../escaped.npy": npy_of(POINTS)}))
    np.testing.assert_array_equal(read_cloud(tmp_path / "inner" / "cloud.npz").points, POINTS)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cloud.npz", "inner"]
