"""The formats that trimesh parses, and points on a mesh's surface. Used by `cloud_files`.

trimesh allocates what a header asks for and accepts files that end early, so each file is first held against its own
counts; what it may read beside the file itself are the buffers of a glTF, in the same folder.
"""

import io
import json
import logging
import re
import struct
import urllib.parse
import warnings
from pathlib import Path

import numpy as np

from ..errors import InputError
from .gltf_check import check_gltf

NUM_SURFACE_POINTS = 8192
MESH_SUFFIXES = (".ply", ".obj", ".off", ".stl", ".glb", ".gltf")
PLY_SIZES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16", "float16"), 2),
    **dict.fromkeys(("int", "uint", "float", "int32", "uint32", "float32"), 4),
    **dict.fromkeys(("double", "int64", "uint64", "float64"), 8),
}
# A scene may place one mesh many times, so its size is not bounded by the file's.
MOST_TRIANGLES = 20_000_000


def read_mesh(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Triangles (m, 3, 3) of everything in the file; where there are none, also the columns of its points."""
    try:
        import trimesh
    except ImportError as error:
        raise ImportError("reading meshes and PLY files needs trimesh: pip install trimesh") from error
    suffix, data, resolver = path.suffix.lower(), path.read_bytes(), None
    if suffix == ".ply":
        data = _check_ply(data)
    elif suffix == ".off":
        data = _check_off(data)
    elif suffix == ".stl":
        data = _check_stl(data)
    elif suffix == ".obj":
        data = _keep_geometry(data)
    else:
        resolver = LocalFiles(path.parent)
        data = _check_gltf_file(data, suffix, resolver)
    logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # it shows tracebacks of what it can do without
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "string or file could not be read", DeprecationWarning)  # half a number
        scene = trimesh.load_scene(
            io.BytesIO(data), file_type=suffix[1:], resolver=resolver, process=False, skip_materials=True
        )
    with np.errstate(all="ignore"):  # what is not finite is refused later
        triangles = _collect_triangles(scene)
        return triangles, {} if len(triangles) else _collect_points(scene)


def points_of_trimesh(loaded, seed: int, num_points: int = NUM_SURFACE_POINTS) -> np.ndarray:
    """(n, 3) of a trimesh object: drawn from the surface of a mesh or scene, or the points of a cloud."""
    scene = loaded.scene() if hasattr(loaded, "scene") else loaded
    triangles = _collect_triangles(scene)
    if len(triangles):
        return sample_surface(triangles, num_points, seed)["points"]
    return _collect_points(scene)["points"]


def sample_surface(triangles: np.ndarray, num_points: int, seed: int) -> dict[str, np.ndarray]:
    """Points (num_points, 3) drawn evenly by area from triangles (m, 3, 3), and the normals of their faces."""
    with np.errstate(all="ignore"):
        first, second = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
        normals = np.cross(first, second)
        areas = np.linalg.norm(normals, axis=1)
        cumulative = np.cumsum(areas)
    if not np.isfinite(cumulative[-1]):
        raise InputError("holds a mesh with coordinates that are not finite, or too large")
    if cumulative[-1] <= 0:
        raise InputError("holds a mesh without area")
    generator = np.random.default_rng(seed)
    faces = np.searchsorted(cumulative, generator.random(num_points) * cumulative[-1], side="right")
    faces = np.minimum(faces, areas.nonzero()[0][-1])  # rounding may reach the end
    u, v = generator.random((2, num_points, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    points = triangles[faces, 0] + u * first[faces] + v * second[faces]
    return {"points": points, "normals": normals[faces] / areas[faces, None]}


# What trimesh returned -----------------------------------------------------------------------------------------------


def _placed(scene) -> list[tuple[np.ndarray, object]]:
    """Each geometry of a scene with the transform (4, 4) of every place it stands in."""
    places = [scene.graph[node] for node in scene.graph.nodes_geometry]
    return [(transform, scene.geometry[name]) for transform, name in places]


def _collect_triangles(scene) -> np.ndarray:
    meshes = [(transform, mesh) for transform, mesh in _placed(scene) if len(getattr(mesh, "faces", ()))]
    if sum(len(mesh.faces) for _, mesh in meshes) > MOST_TRIANGLES:
        raise InputError(f"holds a scene of more than {MOST_TRIANGLES} triangles")
    parts = [np.zeros((0, 3, 3))]
    for transform, mesh in meshes:
        faces, vertices = np.asarray(mesh.faces), np.asarray(mesh.vertices, dtype=np.float64)
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise InputError(
                f"holds a face of the vertices {faces.min()} to {faces.max()}, and {len(vertices)} vertices"
            )
        parts.append((vertices @ transform[:3, :3].T + transform[:3, 3])[faces])
    return np.concatenate(parts)


def _collect_points(scene) -> dict[str, np.ndarray]:
    placed = [(transform, cloud) for transform, cloud in _placed(scene) if len(getattr(cloud, "vertices", ()))]
    if not placed:
        return {"points": np.zeros((0, 3))}
    if len(placed) == 1 and "_ply_raw" in placed[0][1].metadata:
        return _name_columns(placed[0][1].metadata["_ply_raw"]["vertex"]["data"])
    columns = {"points": np.concatenate([cloud.vertices @ turn[:3, :3].T + turn[:3, 3] for turn, cloud in placed])}
    if all(np.shape(getattr(cloud, "colors", ())) == (len(cloud.vertices), 4) for _, cloud in placed):
        columns["colors"] = np.concatenate([cloud.colors[:, :3] for _, cloud in placed]) / 255
    return columns


def _name_columns(raw: np.ndarray | dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What trimesh drops from the points of a PLY file: normals, and colors in their own precision."""
    there = set(raw if isinstance(raw, dict) else raw.dtype.names)
    named = {}
    for column, names in {"points": "x y z", "normals": "nx ny nz", "colors": "red green blue"}.items():
        if set(names.split()) <= there:
            named[column] = np.column_stack([raw[name] for name in names.split()])
    if "colors" in named:
        kind, largest = named["colors"].dtype, named["colors"].max(initial=0)
        scale = np.iinfo(kind).max if kind.kind == "u" else 255 if largest > 1 else 1
        named["colors"] = named["colors"] / scale
    return named


# Counts against sizes ------------------------------------------------------------------------------------------------


def _text_lines(data: bytes) -> list[str]:
    """The lines that hold something, each with single blanks and without a comment."""
    lines = filter(None, map(str.strip, data.decode("utf-8", errors="replace").splitlines()))
    return [" ".join(words) for line in lines if (words := line.split("#")[0].split())]


def _keep_geometry(data: bytes) -> bytes:
    """The vertices and faces of an OBJ file alone: with thousands of groups or materials trimesh takes minutes."""
    lines = _text_lines(data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" "))
    kept = [re.sub(r"/\S*", "", line) if line[0] == "f" else line for line in lines if line.startswith(("v ", "f "))]
    if not kept:
        raise InputError("holds no points")
    return "\n".join(kept).encode()


def _check_off(data: bytes) -> bytes:
    lines = _text_lines(data)
    header = re.fullmatch(r"(?:C|N|ST)*OFF ?(.*)", lines[0]) if lines else None
    if header is None:
        raise InputError("does not begin with OFF")
    counts = header[1] or (lines.pop(1) if len(lines) > 1 else "")  # ModelNet40 has both on one line in places
    if not re.fullmatch(r"\d{1,18} \d{1,18}( \d+)?", counts):
        raise InputError(f"must give its numbers of vertices and faces after OFF, got {counts[:40]!r}")
    num_vertices, num_faces = map(int, counts.split()[:2])
    if num_vertices + num_faces > len(lines) - 1:
        raise InputError(f"announces {num_vertices} vertices and {num_faces} faces and holds {len(lines) - 1} lines")
    return "\n".join(["OFF", counts, *lines[1:]]).encode()


def _check_stl(data: bytes) -> bytes:
    if len(data) >= 84 and len(data) == 84 + 50 * struct.unpack("<I", data[80:84])[0]:
        return data
    text = data.decode("utf-8", errors="replace").lstrip("\ufeff \r\n\t").lower()
    if not text.startswith("solid"):
        announced = struct.unpack("<I", data[80:84])[0] if len(data) >= 84 else "no"
        raise InputError(f"is no text STL, and as a binary one announces {announced} triangles in {len(data)} bytes")
    if text.count("endsolid") < len(re.findall(r"^\s*solid\b", text, re.MULTILINE)):
        raise InputError("ends before its endsolid")
    return text.encode()


def _check_ply(data: bytes) -> bytes:
    header = re.match(rb"ply\s.*?\bend_header[ \t]*\r?\n", data, re.DOTALL)
    if header is None:
        raise InputError("has no header from ply to end_header")
    body = data[header.end() :]
    lines = header[0].decode("ascii", errors="replace").splitlines()
    is_text = any(line.split()[:2] == ["format", "ascii"] for line in lines)
    wanted, num_rows, count = 0, 0, 0
    for words in map(str.split, lines):
        if words[:1] == ["element"]:
            if len(words) != 3 or not re.fullmatch(r"\d{1,18}", words[2]):
                raise InputError(f"must have elements with a name and a count, got {' '.join(words)[:60]!r}")
            count = int(words[2])
            num_rows += count
        elif words[:1] == ["property"]:
            kind = words[2] if words[1:2] == ["list"] and len(words) == 5 else words[1] if len(words) == 3 else None
            if kind not in PLY_SIZES:
                raise InputError(f"must have properties of a known type, got {' '.join(words)[:60]!r}")
            wanted += count * (2 if is_text else PLY_SIZES[kind])  # in text a digit and a blank at the least
    if wanted > len(body) + is_text:
        raise InputError(f"announces elements that take {wanted} bytes or more and holds {len(body)}")
    if not is_text:
        return data
    rows = _text_lines(body)
    if len(rows) != num_rows:
        raise InputError(f"announces elements of {num_rows} lines and holds {len(rows)}")
    return header[0] + "\n".join(rows).encode()


# glTF ----------------------------------------------------------------------------------------------------------------


class LocalFiles:
    """What a glTF refers to, from its own folder alone; trimesh asks for it by name."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()

    def find(self, uri: str) -> Path:
        path = (self.folder / urllib.parse.unquote(uri)).resolve()
        if ":" in uri or self.folder not in path.parents:
            raise InputError(f"refers to {uri[:100]!r}, which is not in its own folder")
        if not path.is_file():
            raise InputError(f"refers to {uri[:100]!r}, which is not there")
        return path

    def __getitem__(self, uri: str) -> bytes:
        return self.find(uri).read_bytes()


def _check_gltf_file(data: bytes, suffix: str, files: LocalFiles) -> bytes:
    if suffix == ".gltf":
        tree, binary_size = json.loads(data.decode("utf-8-sig")), 0
    else:
        tree, binary_size = _read_glb_header(data)
    check_gltf(tree, binary_size, lambda uri: files.find(uri).stat().st_size)
    return data


def _read_glb_header(data: bytes) -> tuple[dict, int]:
    """The JSON of a GLB file, and the size of its binary chunk."""
    if data[:4] != b"glTF" or len(data) < 20:
        raise InputError("does not begin as a GLB file")
    length, json_length = struct.unpack("<I", data[8:12])[0], struct.unpack("<I", data[12:16])[0]
    if length != len(data) or json_length > len(data) - 20:
        raise InputError(f"announces {length} bytes with {json_length} of JSON and holds {len(data)}")
    rest = data[20 + json_length :]
    binary_size = struct.unpack("<I", rest[:4])[0] if len(rest) >= 8 else 0
    if binary_size > max(0, len(rest) - 8):
        raise InputError(f"announces a chunk of {binary_size} bytes and holds {len(rest) - 8}")
    return json.loads(data[20 : 20 + json_length].decode()), binary_size
