"""Read the formats that trimesh parses, and sample points on surfaces. Text files that end early are refused here,
because trimesh takes them for complete ones."""

import io
import json
import logging
import re
import warnings
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import trimesh
from trimesh.resolvers import FilePathResolver

from ..errors import InputError

NUM_SURFACE_POINTS = 8192
MESH_SUFFIXES = (".ply", ".obj", ".off", ".stl", ".glb", ".gltf")


class BufferResolver(FilePathResolver):
    """Opens the buffers of a glTF file, which must lie in its own folder; their names may be percent-encoded."""

    def get(self, name: str) -> bytes:
        try:
            return super().get(unquote(name))
        except (OSError, ValueError) as error:  # missing, or outside of the folder
            raise InputError(f"needs the file {name[:100]!r}, which is not in its folder") from error


def read_mesh(path: Path, num_points: int, seed: int) -> dict[str, np.ndarray]:
    """Read points (n, 3), and normals and colors where there are any: sampled from a mesh, or those of a cloud."""
    suffix = path.suffix.lower()
    clean = {".ply": clean_ply, ".off": clean_off, ".stl": clean_stl, ".obj": clean_obj}.get(suffix, clean_gltf)
    data = path.read_bytes()
    refuse_utf16(data)
    data = clean(data)
    resolver = BufferResolver(str(path)) if clean is clean_gltf else None
    logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # it logs tracebacks of optional parts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "string or file could not be read", DeprecationWarning)  # half a number
        options = {"file_type": suffix[1:], "resolver": resolver, "process": False, "skip_materials": True}
        scene = trimesh.load_scene(io.BytesIO(data), **options)
    for part in scene.geometry.values():
        if hasattr(part, "faces"):
            part.visual = trimesh.visual.ColorVisuals()  # nothing reads textures, and copies of them need pillow
    has_faces = any(len(getattr(part, "faces", ())) for part in scene.geometry.values())
    if suffix == ".ply" and not has_faces and re.search(rb"element\s+face\s+[1-9]", data.partition(b"end_header")[0]):
        raise InputError("announces faces and holds none")
    return collect_columns(scene, num_points, seed)


def points_of_trimesh(geometry, seed: int, num_points: int = NUM_SURFACE_POINTS) -> np.ndarray:
    """Return (n, 3) of a trimesh object: sampled from the surface of a mesh or scene, or the points of a cloud."""
    scene = geometry.scene() if hasattr(geometry, "scene") else geometry
    return collect_columns(scene, num_points, seed)["points"]


def collect_columns(scene: trimesh.Scene, num_points: int, seed: int) -> dict[str, np.ndarray]:
    """Sample the meshes of a scene; if it has none, collect its points."""
    with np.errstate(all="ignore"):  # values that are not finite are refused later
        parts = scene.dump()
        meshes = [part for part in parts if len(getattr(part, "faces", ()))]
        for mesh in meshes:
            if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
                raise InputError(f"holds a face that refers to no vertex: there are {len(mesh.vertices)}")
        if meshes:
            triangles = np.concatenate([mesh.vertices[mesh.faces] for mesh in meshes])
            return sample_surface(np.asarray(triangles, np.float64), num_points, seed)
        clouds = [part for part in parts if len(getattr(part, "vertices", ()))]
        if not clouds:
            return {"points": np.zeros((0, 3))}
        if len(clouds) == 1 and "_ply_raw" in clouds[0].metadata:
            return name_columns(clouds[0].metadata["_ply_raw"]["vertex"]["data"])
        columns = {"points": np.concatenate([cloud.vertices for cloud in clouds])}
        if all(np.shape(getattr(cloud, "colors", ())) == (len(cloud.vertices), 4) for cloud in clouds):
            columns["colors"] = np.concatenate([cloud.colors[:, :3] for cloud in clouds]) / 255
        return columns


def sample_surface(triangles: np.ndarray, num_points: int, seed: int) -> dict[str, np.ndarray]:
    """Sample points (num_points, 3) uniformly by area from triangles (m, 3, 3), with the normals of their faces."""
    first, second = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    normals = np.cross(first, second)
    areas = np.linalg.norm(normals, axis=1)
    cumulative = np.cumsum(areas)
    if not np.isfinite(cumulative[-1]):
        raise InputError("holds a mesh with coordinates that are not finite, or too large")
    if not cumulative[-1]:
        raise InputError("holds a mesh without area")
    generator = np.random.default_rng(seed)
    faces = np.searchsorted(cumulative, generator.random(num_points) * cumulative[-1], side="right")
    faces = np.minimum(faces, areas.nonzero()[0][-1])  # rounding may reach the end
    u, v = generator.random((2, num_points, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    points = triangles[faces, 0] + u * first[faces] + v * second[faces]
    return {"points": points, "normals": normals[faces] / areas[faces, None]}


def name_columns(vertices: np.ndarray | dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of a PLY cloud with what trimesh drops: normals, and colors in their own precision."""
    names, columns = set(vertices if isinstance(vertices, dict) else vertices.dtype.names), {}
    for column, parts in (("points", "x y z"), ("normals", "nx ny nz"), ("colors", "red green blue")):
        if set(parts.split()) <= names:
            columns[column] = np.column_stack([vertices[name] for name in parts.split()])
    if "colors" in columns:
        kind, largest = columns["colors"].dtype, columns["colors"].max(initial=0)
        scale = np.iinfo(kind).max if kind.kind == "u" else 255 if largest > 1 else 1
        columns["colors"] = columns["colors"] / scale
    return columns


def refuse_utf16(data: bytes) -> None:
    """Refuse text as some programs on Windows save it: with a byte order mark, or with a zero beside each letter."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or re.match(rb"([\t\r\n -~]\0){8}|(\0[\t\r\n -~]){8}", data):
        raise InputError("is text in UTF-16; save it as UTF-8")


def text_rows(data: bytes) -> list[str]:
    """Split a text file into lines, without comments and blank lines."""
    return [line for line in re.sub("#.*", "", data.decode(errors="replace")).splitlines() if line.strip()]


def has_all_numbers(row: str) -> bool:
    """Check that a list such as "3 0 1 2" is as long as its first number says."""
    return len(row.split()) > float(row.split()[0])


def clean_ply(data: bytes) -> bytes:
    """Refuse a text PLY with fewer lines than its header announces; trimesh reads what is left."""
    header, end, body = data.partition(b"end_header")
    if not end:
        raise InputError("has no header from ply to end_header")
    if re.search(rb"^format\s+ascii", header, re.MULTILINE):
        announced = sum(map(int, re.findall(rb"^element\s+\S+\s+(\d+)", header, re.MULTILINE)))
        rows = text_rows(body)
        ends_with_list = re.search(rb"element\s+\S+\s+[1-9]\d*\s+property\s+list[^\n]*\s*$", header)
        if len(rows) < announced or (ends_with_list and not has_all_numbers(rows[announced - 1])):
            raise InputError(f"is truncated: announces {announced} lines of elements, got {len(rows)}")
    return data


def clean_off(data: bytes) -> bytes:
    """Text of an OFF file as UTF-8. Its last face must be complete; trimesh leaves faces out of a truncated file."""
    rows = text_rows(data)
    counts = re.match(r"\s*[A-Z]*OFF\s*(\d+)\s+(\d+)", "\n".join(rows[:2]))
    if counts is None:
        raise InputError("does not begin with OFF and its numbers of vertices and faces")
    num_vertices, num_faces = map(int, counts.groups())
    lines = rows[1 + ("\n" in counts[0]) :][: num_vertices + num_faces]
    if len(lines) < num_vertices + num_faces or (num_faces and not has_all_numbers(lines[-1])):
        announced = f"{num_vertices} vertices and {num_faces} faces"
        raise InputError(f"is truncated: announces {announced}, got {len(lines)} lines")
    return "\n".join(rows).encode()


def clean_stl(data: bytes) -> bytes:
    """An STL file that is complete; of text as UTF-8, because trimesh would skip its last solid if that has no end."""
    if len(data) >= 84 and len(data) == 84 + 50 * int.from_bytes(data[80:84], "little"):
        return data
    text = data.decode(errors="replace")
    solids = re.findall(r"^\s*(solid|endsolid)\b", text.lower(), re.MULTILINE)
    if "solid" not in solids or solids.count("endsolid") < solids.count("solid"):
        raise InputError("is truncated, or no STL file")
    return text.encode()


def clean_obj(data: bytes) -> bytes:
    """The vertices and faces of an OBJ file alone: trimesh takes minutes for thousands of groups or materials."""
    rows = [row.split() for row in text_rows(re.sub(rb"\\\r?\n", b" ", data))]
    if not any(row[0] == "v" for row in rows):
        raise InputError("holds no points")
    return re.sub(r"/\S*", "", "\n".join(" ".join(row) for row in rows if row[0] in ("v", "f"))).encode()


def clean_gltf(data: bytes) -> bytes:
    """Refuse glTF 1.0, compressed files, which trimesh would read as zeros, and damaged JSON, which it hides."""
    if data.startswith(b"glTF"):
        version = str(int.from_bytes(data[4:8], "little"))
    else:
        version = str(json.loads(data).get("asset", {}).get("version", "1.0"))  # 1.0 need not say so
    if version.startswith("1"):
        raise InputError("is glTF 1.0, which is not supported; save it as glTF 2.0")
    required = re.search(rb'"extensionsRequired"\s*:\s*\[(.*?)\]', data, re.DOTALL)
    if compression := required and re.search(rb"KHR_draco_mesh_compression|EXT_meshopt_compression", required[1]):
        raise InputError(f"is compressed by {compression[0].decode()}, which is not supported")
    return data
