"""Any one file of points or of a mesh -> points. Used wherever a script takes files that somebody else wrote.

Nothing here trusts a file: counts are checked against its size before anything is allocated, nothing is unpickled, and
whatever is wrong becomes an `InputError` of one line that names the file.
"""

import io
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .mesh import MESH_SUFFIXES, NUM_SURFACE_POINTS, read_mesh, sample_surface
from .pcd import read_pcd

TEXT_SUFFIXES = (".xyz", ".txt", ".pts", ".csv")
CLOUD_SUFFIXES = (*MESH_SUFFIXES, ".pcd", *TEXT_SUFFIXES, ".npy", ".npz")
# What an archive of points calls them, the surest name first.
POINT_ARRAYS = (
    "points",
    "xyz",
    "pc",
    "pos",
    "point_cloud",
    "pointcloud",
    "coords",
    "coord",
    "vertices",
    "data",
    "inputs",
)
LONGEST_LINE = 100_000  # characters; of a table of points, a thousand columns
# Points hardly compress; whatever shrinks more than this is a bomb, or says nothing.
LARGEST_COMPRESSION = 200


@dataclass
class Cloud:
    """All (n, 3): points, and where the file has them normals, and colors in [0, 1]."""

    points: np.ndarray
    normals: np.ndarray | None = None
    colors: np.ndarray | None = None


def read_cloud(
    path: str | Path, num_points: int | None = None, seed: int = 0, dtype: type[np.floating] = np.float32
) -> Cloud:
    """All points of a cloud as they are, or `num_points` (default 8192) of a mesh's surface with its face normals.

    The surface is sampled evenly by area; `seed` alone decides the draw. Coordinates of maps need float64 as `dtype`.
    """
    if num_points is not None and num_points < 1:
        raise InputError(f"`num_points` must be at least 1, got {num_points}")
    wanted = num_points or NUM_SURFACE_POINTS
    return translate_errors(path, lambda checked: _check_cloud(_read_columns(checked, wanted, seed), dtype))


def read_table(path: str | Path) -> np.ndarray:
    """The numbers of a text file, (rows, columns) float64, separated by blanks or commas, under at most one header."""
    return translate_errors(path, lambda checked: parse_table(checked.read_bytes()))


def read_array(path: str | Path) -> np.ndarray:
    """The array of a .npy file, of whatever shape; numbers only."""

    def read(checked: Path) -> np.ndarray:
        with checked.open("rb") as stream:
            return _read_npy(stream, checked.stat().st_size)

    return translate_errors(path, read)


def translate_errors(path: str | Path, read: Callable[[Path], object]):
    """What `read(path)` returns. Whatever a parser raises on a damaged file becomes one line with the file's name."""
    path = Path(path)
    try:
        if not path.exists():
            raise InputError("there is no such file")
        if not path.is_file():
            raise InputError("is not a file")
        if path.stat().st_size == 0:
            raise InputError("is empty")
        return read(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except ImportError:  # a missing parser is no fault of the file
        raise
    except OSError as error:
        raise InputError(f"{str(path)[:200]}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"{path}: is damaged, or no {path.suffix} file: {reason}") from error


def _read_columns(path: Path, num_points: int, seed: int) -> dict[str, np.ndarray]:
    suffix = path.suffix.lower()
    if suffix in MESH_SUFFIXES:
        triangles, columns = read_mesh(path)
        if len(triangles):
            columns = sample_surface(triangles, num_points, seed)
    elif suffix == ".pcd":
        columns = read_pcd(path.read_bytes())
    elif suffix in TEXT_SUFFIXES:
        columns = _split_columns(parse_table(path.read_bytes()))
    elif suffix == ".npy":
        with path.open("rb") as stream:
            columns = _split_columns(_read_npy(stream, path.stat().st_size))
    elif suffix == ".npz":
        columns = _read_npz(path)
    else:
        raise InputError(f"has the unsupported suffix {suffix!r}; supported are {', '.join(CLOUD_SUFFIXES)}")
    return columns


def _check_cloud(columns: dict[str, np.ndarray], dtype: type[np.floating]) -> Cloud:
    points = columns["points"]
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"must hold points of shape (n, 3), got {points.shape}")
    if not len(points):
        raise InputError("holds no points")
    for name, values in columns.items():
        if values.shape != points.shape:
            raise InputError(f"holds {name} of shape {values.shape} for points of shape {points.shape}")
        with np.errstate(over="ignore"):  # too large for float32 is infinite
            columns[name] = np.ascontiguousarray(values, dtype=dtype)
        bad = ~np.isfinite(columns[name]).all(axis=1)
        if bad.any():
            row = int(bad.argmax())
            raise InputError(
                f"holds {int(bad.sum())} {name} that are not finite, first {values[row].tolist()} at {row}"
            )
    return Cloud(**columns)


def _split_columns(table: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a table without names: x y z, then normals if they can be negative or have length 1, else colors."""
    if table.ndim != 2 or table.shape[1] not in (3, 6):
        raise InputError(f"must hold 3 columns (x y z) or 6 (and normals or colors), got an array of {table.shape}")
    points, rest = table[:, :3], table[:, 3:].astype(np.float64)
    if not rest.size:
        return {"points": points}
    if (rest < 0).any() or not np.isfinite(rest).all() or abs(np.median(np.linalg.norm(rest, axis=1)) - 1) < 0.05:
        return {"points": points, "normals": rest}
    if rest.max() > 255:
        raise InputError(f"holds columns 4 to 6 that are neither normals nor colors: they reach {rest.max():g}")
    return {"points": points, "colors": rest / (255 if rest.max() > 1 else 1)}


# Text ----------------------------------------------------------------------------------------------------------------


def parse_table(data: bytes) -> np.ndarray:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"is not text: byte {data[error.start]:#04x} at {error.start}") from error
    if re.search(rf"[^\n]{{{LONGEST_LINE}}}", text):
        raise InputError(f"is no table of points: a line has {LONGEST_LINE} characters or more")
    text = re.sub("[,;]", " ", re.sub("(#|//).*", "", text)).lstrip()
    first, _, rest = text.partition("\n")
    words = first.split()
    counted = len(words) == 1 and words[0].isdecimal()  # a .pts file begins with its number of points
    if not counted and any(map(_is_number, words)):
        rest = text
    if not rest.strip():
        raise InputError("holds no points")
    try:
        table = np.loadtxt(io.StringIO(rest), comments=None, ndmin=2)
    except ValueError as error:
        raise InputError(f"is not a table of numbers: {error}") from error
    if counted and len(table) != int(words[0]):
        raise InputError(f"announces {words[0][:20]} points and holds {len(table)}")
    return table


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# Arrays --------------------------------------------------------------------------------------------------------------


def _read_npy(stream: io.BufferedIOBase, size: int, kinds: str = "fiu") -> np.ndarray:
    """An array of numbers from a stream of `size` bytes, whose header may claim anything."""
    shape, order, kind = _read_npy_header(stream)
    if kind.kind not in kinds:
        raise InputError(f"must hold numbers, got an array of {kind}")
    wanted, there = math.prod(shape) * kind.itemsize, size - stream.tell()
    if wanted > there:
        raise InputError(f"claims an array of {shape} {kind}, {wanted} bytes, and holds {there}")
    return np.frombuffer(stream.read(wanted), dtype=kind).reshape(shape, order=order)


def _read_npy_header(stream: io.BufferedIOBase) -> tuple[tuple[int, ...], str, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"is of the version {version} of npy, which holds no plain numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, kind = read(stream)
    if min(shape, default=0) < 0:
        raise InputError(f"claims an array of {shape}")
    return shape, "F" if fortran_order else "C", kind


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        named = next((name for name in POINT_ARRAYS if name in members), None) or _only_table(archive, members)
        columns = _split_columns(read_member(archive, members[named]))
        for extra in ("normals", "colors"):
            if extra in members:
                columns[extra] = read_member(archive, members[extra])
    if columns.get("colors", np.zeros(1)).max(initial=0) > 1:
        columns["colors"] = columns["colors"] / 255
    return columns


def _only_table(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> str:
    tables = []
    for name, info in members.items():
        with archive.open(info) as stream:
            tables += [name] if len(_read_npy_header(stream)[0]) == 2 else []
    if len(tables) != 1:
        raise InputError(
            f"must hold an array named {', '.join(POINT_ARRAYS)}, or one table, got {', '.join(members)[:200]}"
        )
    return tables[0]


def read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, kinds: str = "fiu", harmless: int = 4096
) -> np.ndarray:
    """One array of an npz file. `kinds` are the letters of the NumPy types that it may have, `harmless` the bytes that
    any packed size may stand for."""
    if info.file_size > harmless + LARGEST_COMPRESSION * info.compress_size:
        raise InputError(f"claims {info.file_size} bytes for {info.filename}, packed into {info.compress_size}")
    with archive.open(info) as stream:
        values = _read_npy(stream, info.file_size, kinds)
        stream.read()  # to the end, where zipfile compares the checksum
    return values
