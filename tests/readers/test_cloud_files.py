"""`read_cloud`: every format it takes, what it refuses and in which words, and thousands of damaged files."""

import io
import json
import random
import resource
import signal
import struct
import time
import warnings
import zipfile

import numpy as np
import pytest

from cloud_cases import (
    BOX,
    CLOUDS,
    COLORS,
    MESHES,
    NORMALS,
    POINTS,
    RANDOM,
    npy_of,
    npz_of,
    pack_lzf,
    pcd_of,
    ply_cloud,
    text_of,
)  # fmt: skip
from hostile_cases import limited_memory
from modeling_act.errors import InputError
from modeling_act.readers.cloud import CLOUD_SUFFIXES, read_array, read_cloud, read_table
from modeling_act.readers.pcd import unpack_lzf


@pytest.fixture
def write(tmp_path):
    def write_file(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write_file


def test_a_file_of_every_suffix_is_read_here():
    assert {name[name.rindex(".") :] for name in CLOUDS | MESHES} == set(CLOUD_SUFFIXES)


@pytest.mark.parametrize("name", CLOUDS)
def test_clouds_come_back_as_they_are(name, write):
    cloud = read_cloud(write(name, CLOUDS[name]), num_points=7)
    np.testing.assert_allclose(cloud.points, POINTS, rtol=1e-6)
    assert cloud.points.dtype == np.float32
    has_normals = name in {
        "normals.xyz", "commas.txt", "six.npy", "named.npz",
        "ascii.pcd", "binary.pcd", "compressed.pcd", "ascii.ply", "little.ply", "big.ply",
    }  # fmt: skip
    has_colors = name in {"colors.txt", "named.npz"} or name.endswith((".pcd", ".ply"))
    assert (cloud.normals is not None, cloud.colors is not None) == (has_normals, has_colors)
    if has_normals:
        np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-6)
    if has_colors:
        np.testing.assert_allclose(cloud.colors, COLORS / 255, atol=1e-6)


@pytest.mark.parametrize("name", MESHES)
def test_meshes_are_sampled_evenly_on_their_surface(name, write):
    path = write(name, MESHES[name])
    cloud = read_cloud(path, num_points=20_000, seed=1)
    points = cloud.points.copy()
    if name == "scene.glb":  # three boxes, each where its node puts it
        place = np.round(points[:, 0] / 10)
        assert np.bincount(place.astype(int)) == pytest.approx([20_000 / 3] * 3, rel=0.05)
        points[:, 0] -= 10 * place
    assert abs(points / (0.5, 1, 1.5)).max(1) == pytest.approx(np.ones(20_000), abs=1e-5)  # on a face of the box
    faces = np.abs(cloud.normals).argmax(1)
    assert (
        np.take_along_axis(points * cloud.normals, faces[:, None], axis=1) > 0.49
    ).all()  # and normals point outwards
    assert np.bincount(faces) / 20_000 == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.015)
    again, other = read_cloud(path, num_points=20_000, seed=1), read_cloud(path, num_points=20_000, seed=2)
    np.testing.assert_array_equal(again.points, cloud.points)
    assert (other.points != cloud.points).any()


def test_a_mesh_gives_8192_points_unless_told_otherwise(write):
    assert read_cloud(write("box.off", MESHES["box.off"])).points.shape == (8192, 3)
    with pytest.raises(InputError, match="`num_points` must be at least 1, got 0"):
        read_cloud(write("box.off", MESHES["box.off"]), num_points=0)


def test_gltf_reads_the_buffers_of_its_own_folder_and_no_others(write, tmp_path):
    for name, data in BOX.export(file_type="gltf").items():
        write(name, data)
    np.testing.assert_array_equal(
        read_cloud(tmp_path / "model.gltf").points, read_cloud(write("box.glb", MESHES["box.glb"])).points
    )
    inner = tmp_path / "inner"
    inner.mkdir()
    tree = json.loads((tmp_path / "model.gltf").read_text())
    local = tree["buffers"][0]["uri"]
    (inner / "link.bin").symlink_to(tmp_path / local)
    for uri in (f"../{local}", f"%2e%2e/{local}", str(tmp_path / local), f"http://localhost/{local}", "link.bin"):
        tree["buffers"][0]["uri"] = uri
        (inner / "model.gltf").write_text(json.dumps(tree))
        with pytest.raises(InputError, match="not in its own folder"):
            read_cloud(inner / "model.gltf")


def test_lzf_references_may_run_into_themselves():
    assert unpack_lzf(bytes([0, ord("a"), 7 << 5, 3, 0]), 13) == b"a" * 13
    data = RANDOM.integers(0, 3, 30_000).astype(np.uint8).tobytes() + bytes(5000)
    assert len(pack_lzf(data)) < 20_000
    assert unpack_lzf(pack_lzf(data), len(data)) == data


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        ([0, 97, 1 << 5, 1], "refers to bytes before the beginning"),
        ([0, 97, 7 << 5, 255, 0], "unpacks to 265 bytes or more, and announces 4"),
        ([0, 97], "unpacks to 1 bytes or more, and announces 4"),
        ([3, 97], "unpacks to 1 bytes or more, and announces 4"),
    ],
)
def test_lzf_holds_to_its_size(packed, reason):
    with pytest.raises(InputError, match=reason):
        unpack_lzf(bytes(packed), 4)


def test_tables_and_arrays_of_any_width(write):
    np.testing.assert_array_equal(
        read_table(write("part.txt", b"1 2 3 4 5 6 7\n8 9 10 11 12 13 14\n")), np.arange(1, 15).reshape(2, 7)
    )
    np.testing.assert_array_equal(
        read_array(write("room.npy", npy_of(np.arange(14).reshape(2, 7)))), np.arange(14).reshape(2, 7)
    )


def test_an_obj_of_many_groups_is_read_as_fast_as_one_of_few(write):
    corners = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvn 0 0 1\n"
    faces = b"".join(b"o part%d\nusemtl paint%d\nf 1/1/1 2/1/1 \\\n3/1/1\n" % (place, place) for place in range(5000))
    start = time.perf_counter()
    cloud = read_cloud(write("groups.obj", corners + faces), num_points=100)
    assert time.perf_counter() - start < 2  # trimesh, shown the groups, takes time by their square
    assert (cloud.points[:, 2] == 0).all() and (cloud.normals == (0, 0, 1)).all()


# What is refused -----------------------------------------------------------------------------------------------------


def header_of(shape, kind="'<f4'"):
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def glb_of(tree, binary=bytes(36)):
    text = json.dumps({"asset": {"version": "2.0"}, **tree}).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I", len(text)) + b"JSON" + text + struct.pack("<I", len(binary)) + b"BIN\0" + binary
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def gltf_tree(**changes):
    tree = {
        "buffers": [{"byteLength": 36}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 3}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    return glb_of(tree | changes)


def copies_of_vertices():
    """A small file whose primitives would each be given a copy of its 30,000 elements."""
    sizes = {"buffers": [{"byteLength": 30_000}], "bufferViews": [{"buffer": 0, "byteLength": 30_000}]}
    accessor = {"bufferView": 0, "componentType": 5121, "type": "SCALAR", "count": 30_000}
    primitives = [{"attributes": {"POSITION": 0}}] * 1001
    return glb_of({**sizes, "accessors": [accessor], "meshes": [{"primitives": primitives}]}, bytes(30_000))


PLY = b"ply\nformat binary_little_endian 1.0\nelement vertex %d\n"
PLY += b"".join(b"property float %c\n" % axis for axis in b"xyz") + b"end_header\n"
REFUSED = {
    "empty.xyz": (b"", "is empty"),
    "cloud.dae": (b"<xml/>", "unsupported suffix '.dae'"),
    "nothing.xyz": (b"# nothing\n", "holds no points"),
    "nothing.npy": (npy_of(np.zeros((0, 3))), "holds no points"),
    "nan.xyz": (b"1 2 3\nnan 0 0\n1 1 1\n", r"1 points that are not finite, first \[nan, 0.0, 0.0\] at 1"),
    "large.npy": (npy_of(np.full((2, 3), 1e39)), "2 points that are not finite"),
    "nan.pcd": (pcd_of("ascii").replace(text_of(POINTS[:1]).split()[0], b"nan", 1), "1 points that are not finite"),
    "words.xyz": (b"1 2 3\n1 two 3\n", "not a table of numbers: could not convert string 'two'"),
    "half.xyz": (b"1 2x 3\n1 2 3\n", "not a table of numbers: could not convert string '2x'"),
    "ragged.xyz": (b"1 2 3\n1 2\n", "not a table of numbers"),
    "wide.xyz": (b"1 2 3 4\n", r"3 columns \(x y z\) or 6 .* got an array of \(1, 4\)"),
    "binary.xyz": (b"1 2 3\n\xff\xfe", "is not text: byte 0xff at 6"),
    "fewer.pts": (b"3\n1 2 3\n", "announces 3 points and holds 1"),
    "sixteen_bit.txt": (b"1 2 3 65535 0 9\n", "neither normals nor colors: they reach 65535"),
    "flat.npy": (npy_of(np.zeros(3)), r"got an array of \(3,\)"),
    "batch.npy": (npy_of(np.zeros((2, 4, 3))), r"got an array of \(2, 4, 3\)"),
    "strings.npy": (npy_of(np.array([["a", "b", "c"]])), "must hold numbers, got an array of <U1"),
    "objects.npy": (npy_of(np.array([[None, 1, 2]])), "must hold numbers, got an array of object"),
    "claims.npy": (header_of((10**12, 3)) + bytes(12), r"claims an array of \(1000000000000, 3\) float32"),
    "minus.npy": (header_of((-1, 3)) + bytes(12), r"claims an array of \(-1, 3\)"),
    "truncated.npy": (npy_of(POINTS)[:-4], "480 bytes, and holds 476"),
    "garbage.npy": (b"no array", "is damaged, or no .npy file"),
    "truncated.npz": (npz_of(points=POINTS)[:200], "is damaged, or no .npz file: BadZipFile"),
    "two.npz": (npz_of(a=POINTS, b=POINTS), "an array named points, .* or one table, got a, b"),
    "objects.npz": (npz_of(points=np.array([[None, 1, 2]])), "must hold numbers, got an array of object"),
    "bomb.npz": (npz_of(np.savez_compressed, points=np.zeros((10**6, 3))), "claims 24000128 bytes for points.npy"),
    "width.npz": (npz_of(points=POINTS, normals=NORMALS[:3]), r"normals of shape \(3, 3\) for points"),
    "points.pcd": (pcd_of("binary", count=10**12), "points that take 28000000000000 bytes and holds 1120"),
    "ascii.pcd": (pcd_of("ascii", count=10**12), "announces points that take"),
    "lzf.pcd": (pcd_of("binary_compressed", count=10**9), "28000000000 bytes and packs 1120"),
    "truncated.pcd": (pcd_of("binary_compressed")[:-9], "bytes and holds"),
    "headless.pcd": (b"VERSION 0.7\nFIELDS x y z\n", "has no DATA line"),
    "fields.pcd": (pcd_of("binary").replace(b"FIELDS x y z", b"FIELDS u v w"), "must have the fields x, y and z"),
    "count.ply": (PLY % 10**9 + bytes(12), "announces elements that take 12000000000 bytes or more and holds 12"),
    "truncated.ply": (b"\n".join(ply_cloud("ascii").split(b"\n")[:-2]), "announces elements of 40 lines and holds 39"),
    "headless.ply": (b"ply\nformat ascii 1.0\n", "has no header from ply to end_header"),
    "nothing.ply": (PLY % 0, "holds no points"),
    "count.off": (b"OFF\n999999999 1 0\n0 0 0\n", "announces 999999999 vertices and 1 faces and holds 1 lines"),
    "truncated.off": (MESHES["box.off"].rstrip().rsplit(b"\n", 1)[0], "8 vertices and 12 faces and holds 19 lines"),
    "index.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "is damaged, or no .off file: ValueError"),
    "line.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "holds a mesh without area"),
    "nan.off": (b"OFF\n3 1 0\n0 0 0\nnan 0 0\n0 1 0\n3 0 1 2\n", "coordinates that are not finite"),
    "count.stl": (bytes(80) + struct.pack("<I", 10**9) + bytes(50), "announces 1000000000 triangles in 134 bytes"),
    "truncated.stl": (MESHES["text.stl"][:-30], "ends before its endsolid"),
    "index.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "is damaged, or no .obj file: IndexError"),
    "words.obj": (b"hello\n", "holds no points"),
    "length.glb": (MESHES["box.glb"][:-1], "announces .* bytes with .* of JSON and holds"),
    "magic.glb": (b"GLTF" + MESHES["box.glb"][4:], "does not begin as a GLB file"),
    "buffer.glb": (gltf_tree(buffers=[{"byteLength": 10**12}]), "a buffer of 1000000000000 bytes and holds 36"),
    "view.glb": (gltf_tree(bufferViews=[{"buffer": 0, "byteLength": 99}]), "a view that ends at byte 99"),
    "accessor.glb": (
        gltf_tree(accessors=[{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 10**12}]),
        "an accessor of 1000000000000 elements",
    ),
    "placeholder.glb": (
        gltf_tree(accessors=[{"componentType": 5126, "type": "VEC3", "count": 10**12}]),
        "without a view",
    ),
    "reference.glb": (
        gltf_tree(meshes=[{"primitives": [{"attributes": {"POSITION": 7}}]}]),
        "refers to number 7 of its 1 accessors",
    ),
    "copies.glb": (copies_of_vertices(), "primitives of 30030000 elements, more than 30000000"),
    "loop.glb": (gltf_tree(nodes=[{"mesh": 0}, {"children": [2]}, {"children": [1]}]), "their own ancestors"),
    "parents.glb": (gltf_tree(nodes=[{"mesh": 0}, {"children": [0]}, {"children": [0]}]), "a node with two parents"),
    "draco.glb": (
        gltf_tree(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "extensions": {"KHR_draco": {}}}]}]),
        "is compressed by KHR_draco",
    ),
    "flat.glb": (gltf_tree(), "holds a mesh without area"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused_in_one_line_with_their_name(name, write):
    data, reason = REFUSED[name]
    path = write(name, data)
    with limited_memory(), pytest.raises(InputError, match=reason) as caught:
        read_cloud(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="none.ply: there is no such file"):
        read_cloud(tmp_path / "none.ply")
    with pytest.raises(InputError, match="is not a file"):
        read_cloud(tmp_path)


def test_a_member_may_not_hold_more_than_it_claims(write):
    data = bytearray(npz_of(points=POINTS))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = archive.getinfo("points.npy")
    start = data.index(POINTS.tobytes())
    data[start] ^= 1
    with pytest.raises(InputError, match="Bad CRC-32"):
        read_cloud(write("flipped.npz", bytes(data)))
    assert info.file_size == len(npy_of(POINTS))


# Damaged files -------------------------------------------------------------------------------------------------------


class TooSlow(BaseException):
    pass


def damage(data, draw):
    """One of the ways in which files break, or are broken."""
    data, size = bytearray(data), len(data)
    start, stop = sorted((draw.randrange(size), draw.randrange(size)))
    stop = min(stop, start + 300)
    way = draw.randrange(7)
    if way == 0:
        for _ in range(draw.randrange(1, 9)):
            data[draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif way == 1:
        del data[start:]
    elif way == 2:
        data[start:start] = draw.randbytes(draw.randrange(1, 200))
    elif way == 3:
        data[start:start] = data[start:stop] * draw.randrange(1, 4)
    elif way == 4:
        del data[start:stop]
    elif way == 5:  # a number in the header of a binary file
        place = draw.randrange(min(160, size))
        data[place : place + 4] = struct.pack("<I", draw.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)))
    else:  # a number in a text header
        numbers = [place for place in range(min(2000, size)) if data[place : place + 1].isdigit()]
        place = draw.choice(numbers or [0])
        data[place : place + 1] = draw.choice((b"999999999999", b"-1", b"1e30", b"4294967295", b"0", b"99999", b"nan"))
    return bytes(data)


def mend_lengths(data):
    """A damaged GLB file whose lengths hold again, so that what is inside is read."""
    binary = data.find(b"BIN\0")
    if len(data) < 20 or binary < 24:
        return data
    lengths = struct.pack("<II", len(data), binary - 24)
    return data[:8] + lengths + data[16 : binary - 4] + struct.pack("<I", len(data) - binary - 4) + data[binary:]


def read_damaged(count, folder):
    """Counts of files read and refused, the slowest read in seconds, and the peak memory above the start in bytes."""
    draw, seeds = random.Random(0), list((CLOUDS | MESHES).items())
    read, refused, slowest = 0, 0, 0.0
    for number in range(count):
        name, data = seeds[number % len(seeds)]
        path = folder / f"{number}_{name}"
        path.write_bytes(mend_lengths(damage(data, draw)) if name.endswith(".glb") else damage(data, draw))
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, 20)
        try:
            cloud = read_cloud(path, num_points=64)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error) and "MemoryError" not in str(error)
        else:
            read += 1
            assert cloud.points.ndim == 2 and cloud.points.shape[1] == 3 and np.isfinite(cloud.points).all()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.perf_counter() - start)
        path.unlink()
    return read, refused, slowest


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused(count, tmp_path):
    def stop(*_):
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with limited_memory(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            read, refused, slowest = read_damaged(count, tmp_path)
    finally:
        signal.signal(signal.SIGALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    print(
        f"{count} damaged files: {read} read, {refused} refused, slowest {slowest:.2f} s, memory grew {grown:.0f} MiB"
    )
    assert read + refused == count and read > count // 10 and refused > count // 4
    assert slowest < 5 and grown < 300
    assert not warned, str(warned[0])
