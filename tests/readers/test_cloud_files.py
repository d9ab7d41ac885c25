"""`read_cloud`: every format, truncated and damaged files, and the messages of what it refuses."""

import json
import random
import struct
import time
import warnings

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
    damage,
    npy_of,
    npz_of,
    pack_lzf,
    pcd_of,
    ply_cloud,
    text_of,
)
from hostile_cases import limited_memory
from modeling_act.errors import InputError
from modeling_act.readers.cloud import CLOUD_SUFFIXES, read_array, read_cloud, read_table, unpack_lzf


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
    is_full = name.endswith((".pcd", ".ply"))
    has_normals = name in {"normals.xyz", "commas.txt", "six.npy", "named.npz"} or (is_full and name != "plain.pcd")
    has_colors = name in {"colors.txt", "named.npz"} or is_full
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
    outwards = np.take_along_axis(points * cloud.normals, faces[:, None], axis=1)
    assert (outwards > 0.49).all()
    assert np.bincount(faces) / 20_000 == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.015)
    again, other = read_cloud(path, num_points=20_000, seed=1), read_cloud(path, num_points=20_000, seed=2)
    np.testing.assert_array_equal(again.points, cloud.points)
    assert (other.points != cloud.points).any()


def test_a_mesh_gives_8192_points_unless_told_otherwise(write):
    assert read_cloud(write("box.off", MESHES["box.off"])).points.shape == (8192, 3)
    with pytest.raises(InputError, match="`num_points` must be at least 1, got 0"):
        read_cloud(write("box.off", MESHES["box.off"]), num_points=0)


def test_gltf_reads_buffers_beside_it_whose_names_may_be_encoded(write, tmp_path):
    files = BOX.export(file_type="gltf")
    tree = json.loads(files["model.gltf"])
    for number, buffer in enumerate(tree["buffers"]):
        write(f"my buffer {number}.bin", files[buffer["uri"]])
        buffer["uri"] = f"my%20buffer%20{number}.bin"
    (tmp_path / "model.gltf").write_text(json.dumps(tree))
    expected = read_cloud(write("box.glb", MESHES["box.glb"])).points
    np.testing.assert_array_equal(read_cloud(tmp_path / "model.gltf").points, expected)


def test_faces_of_other_sizes_than_three(write):
    square = b"0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
    cloud = read_cloud(write("square.off", b"OFF\n4 1 0\n" + square + b"4 0 1 2 3\n"), num_points=5000)
    assert np.bincount((cloud.points[:, 0] > cloud.points[:, 1]).astype(int)) == pytest.approx([2500] * 2, rel=0.1)


def test_lzf_references_may_run_into_themselves():
    assert unpack_lzf(bytes([0, ord("a"), 7 << 5, 3, 0]), 13) == b"a" * 13
    data = RANDOM.integers(0, 3, 30_000).astype(np.uint8).tobytes() + bytes(5000)
    assert len(pack_lzf(data)) < 20_000
    assert unpack_lzf(pack_lzf(data), len(data)) == data


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        ([0, 97, 1 << 5, 1], "refers to bytes before the beginning"),
        ([0, 97, 7 << 5, 255, 0], "announces 4 bytes of points, got 265"),
        ([0, 97], "announces 4 bytes of points, got 1"),
    ],
)
def test_lzf_of_another_size_is_refused(packed, reason):
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


def glb_of(**changes):
    tree = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": 36}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 3}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    text = json.dumps(tree | changes).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I", len(text)) + b"JSON" + text + struct.pack("<I", 36) + b"BIN\0" + bytes(36)
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def compressed_glb():
    """A primitive whose points lie in an extension, as Draco stores them: trimesh would read zeros."""
    primitive = {"attributes": {"POSITION": 0}, "extensions": {"KHR_draco_mesh_compression": {}}}
    accessor = {"componentType": 5126, "type": "VEC3", "count": 3}
    required = ["KHR_draco_mesh_compression"]
    return glb_of(accessors=[accessor], meshes=[{"primitives": [primitive]}], extensionsRequired=required)


REFUSED = {
    "empty.xyz": (b"", "is empty"),
    "cloud.dae": (b"<xml/>", "unsupported suffix '.dae'"),
    "nothing.xyz": (b"# nothing\n", "holds no points"),
    "nothing.npy": (npy_of(np.zeros((0, 3))), "holds no points"),
    "nan.xyz": (b"1 2 3\nnan 0 0\n1 1 1\n", r"1 points that are not finite, first \[nan, 0.0, 0.0\] at 1"),
    "large.npy": (npy_of(np.full((2, 3), 1e39)), "2 points that are not finite"),
    "nan.pcd": (pcd_of("ascii").replace(text_of(POINTS[:1]).split()[0], b"nan", 1), "1 points that are not finite"),
    "words.xyz": (b"1 2 3\n1 two 3\n", "not a table of numbers: 'two' is no number, in the row '1 two 3'$"),
    "half.xyz": (b"1 2x 3\n1 2 3\n", "not a table of numbers: '2x' is no number, in the row '1 2x 3'$"),
    "half.obj": (b"v 1 2x 3\nv 1 2 3\n", "is damaged, or no .obj file$"),
    "ragged.xyz": (b"1 2 3\n1 2\n", "numbers: the row '1 2' has 2 columns, the rows before have 3$"),
    "wide.xyz": (b"1 2 3 4\n", r"3 columns \(x y z\) or 6 .* got an array of \(1, 4\)"),
    "binary.xyz": (b"1 2 3\n\xff\xfe", "is not text: byte 0xff at 6"),
    "fewer.pts": (b"3\n1 2 3\n", "announces 3 points, got 1"),
    "sixteen_bit.txt": (b"1 2 3 65535 0 9\n", "neither normals nor colors: they reach 65535"),
    "flat.npy": (npy_of(np.zeros(3)), r"got an array of \(3,\)"),
    "batch.npy": (npy_of(np.zeros((2, 4, 3))), r"got an array of \(2, 4, 3\)"),
    "strings.npy": (npy_of(np.array([["a", "b", "c"]])), "must hold numbers, got an array of <U1"),
    "objects.npy": (npy_of(np.array([[None, 1, 2]])), "or holds Python objects, which are not loaded$"),
    "garbage.npy": (b"no array", "is damaged, or no .npy file"),
    "wide.txt": ("1 2 3\n4 5 6\n".encode("utf-16"), "is text in UTF-16; save it as UTF-8$"),
    "wide.csv": ("x,y,z\n1,2,3\n".encode("utf-16-be"), "is text in UTF-16; save it as UTF-8$"),
    "wide.obj": ("v 1 2 3\nv 4 5 6\n".encode("utf-16-le"), "is text in UTF-16; save it as UTF-8$"),
    "first.gltf": (b'{"asset": {"version": "1.0"}, "meshes": {}}', "is glTF 1.0, .* save it as glTF 2.0$"),
    "older.gltf": (b'{"meshes": {"a": {}}}', "is glTF 1.0, .* save it as glTF 2.0$"),
    "first.glb": (b"glTF" + struct.pack("<5I", 1, 24, 4, 0, 0), "is glTF 1.0, .* save it as glTF 2.0$"),
    "buffer.gltf": (
        b'{"asset": {"version": "2.0"}, "buffers": [{"uri": "box.bin", "byteLength": 36}]}',
        "needs the file 'box.bin', which is not in its folder$",
    ),
    "two.npz": (npz_of(a=POINTS, b=POINTS), "an array named points, .* or one table, got a, b"),
    "objects.npz": (npz_of(points=np.array([[None, 1, 2]])), "or holds Python objects, which are not loaded$"),
    "width.npz": (npz_of(points=POINTS, normals=NORMALS[:3]), r"normals of shape \(3, 3\) for points"),
    "flipped.npz": (npz_of(points=POINTS).replace(POINTS.tobytes()[:4], b"\0\0\0\0"), "is damaged, or no .npz file"),
    "points.pcd": (pcd_of("binary", count=41), "is damaged, or no .pcd file$"),
    "ascii.pcd": (pcd_of("ascii", count=41), "announces 41 points, got 40"),
    "fields.pcd": (pcd_of("binary").replace(b"FIELDS x y z", b"FIELDS u v w"), "must have the fields x, y and z"),
    "form.pcd": (pcd_of("ascii").replace(b"DATA ascii", b"DATA other"), "must have DATA ascii, .* got 'other'"),
    "nothing.ply": (ply_cloud("ascii").split(b"end_header")[0].replace(b"40", b"0") + b"end_header\n", "no points"),
    "index.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "is damaged, or no .off file$"),
    "index.ply": (MESHES["text.ply"].replace(b"\n3 1 3 0", b"\n3 1 -3 0"), "face that refers to no vertex"),
    "index.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "is damaged, or no .obj file$"),
    "line.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "holds a mesh without area"),
    "nan.off": (b"OFF\n3 1 0\n0 0 0\nnan 0 0\n0 1 0\n3 0 1 2\n", "coordinates that are not finite"),
    "latin.off": (b"OFF # \xe9\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "holds a mesh without area"),
    "words.obj": (b"hello\n", "holds no points"),
    "magic.glb": (b"GLTF" + MESHES["box.glb"][4:], "is damaged, or no .glb file"),
    "draco.glb": (compressed_glb(), "is compressed by KHR_draco_mesh_compression, which is not supported"),
    "flat.glb": (glb_of(), "holds a mesh without area"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused_in_one_line_with_their_name(name, write):
    data, reason = REFUSED[name]
    path = write(name, data)
    with pytest.raises(InputError, match=reason) as caught:
        read_cloud(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="none.ply: there is no such file"):
        read_cloud(tmp_path / "none.ply")
    with pytest.raises(InputError, match="is not a file"):
        read_cloud(tmp_path)


# Truncated and damaged files -----------------------------------------------------------------------------------------

SELF_DELIMITING = sorted(
    name for name in CLOUDS | MESHES if not name.endswith((".xyz", ".txt", ".csv", ".obj")) and name != "counted.pts"
)


@pytest.mark.parametrize("name", SELF_DELIMITING)
def test_truncated_files_are_refused_wherever_they_end(name, write):
    """The formats tell how much they hold. trimesh alone accepts text PLY, OFF and STL files that end early."""
    data = (CLOUDS | MESHES)[name]
    whole = read_cloud(write(name, data), num_points=50).points
    step = max(1, len(data) // 60)
    for size in sorted({*range(1, len(data), step), *range(max(1, len(data) - 60), len(data))}):
        try:
            cloud = read_cloud(write(name, data[:size]), num_points=50)
        except InputError as error:
            assert "\n" not in str(error)
        else:  # all numbers are there, and only a line's end is missing
            np.testing.assert_allclose(cloud.points, whole, atol=1e-6, err_msg=f"{size} of {len(data)} bytes")


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused(count, tmp_path):
    draw, files = random.Random(0), list((CLOUDS | MESHES).items())
    num_read = 0
    with limited_memory(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(count):
            name, data = files[number % len(files)]
            path = tmp_path / f"{number}_{name}"
            path.write_bytes(damage(data, draw))
            try:
                cloud = read_cloud(path, num_points=64)
            except InputError as error:
                assert "\n" not in str(error) and str(path) in str(error)
            else:
                num_read += 1
                assert cloud.points.ndim == 2 and cloud.points.shape[1] == 3 and np.isfinite(cloud.points).all()
    assert count // 10 < num_read < count * 3 // 4


WITHOUT_PILLOW = """
import sys
sys.modules["PIL"] = None
from modeling_act.readers.cloud import read_cloud
print(read_cloud(sys.argv[1]).points.shape)
"""


def test_a_mesh_with_texture_coordinates_needs_no_pillow(tmp_path, run_python):
    columns = "".join(f"property float {name}\n" for name in ("x", "y", "z", "s", "t"))
    header = f"ply\nformat ascii 1.0\nelement vertex 3\n{columns}element face 1\n"
    body = "property list uchar int vertex_indices\nend_header\n0 0 0 0 0\n1 0 0 1 0\n0 1 0 0 1\n3 0 1 2\n"
    (tmp_path / "textured.ply").write_text(header + body)
    assert run_python("-c", WITHOUT_PILLOW, tmp_path / "textured.ply").stdout == "(8192, 3)\n"
