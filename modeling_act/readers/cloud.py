"""Read points from a file of any format. Nothing is unpickled, and every error is one line that names the file."""

import io
import itertools
import re
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError, printable
from .mesh import MESH_SUFFIXES, NUM_SURFACE_POINTS, read_mesh, refuse_utf16

TEXT_SUFFIXES = (".xyz", ".txt", ".pts", ".csv")
CLOUD_SUFFIXES = (*MESH_SUFFIXES, ".pcd", *TEXT_SUFFIXES, ".npy", ".npz")
# Names of the points in an npz archive, in order of preference.
ALIASES = ("points", "xyz", "pc", "pos", "point_cloud", "pointcloud", "coords", "coord", "vertices", "data", "inputs")
# Text files that accompany clouds and hold none.
NOTES = re.compile(r"(read_?me|licen[cs]e|copying|copyright|notice|authors|changelog|citation)([^a-z].*)?\.txt", re.I)
NUMBER = re.compile(r"(?<!\S)[-+]?(\.?\d\S*|inf|nan)(?!\S)", re.IGNORECASE)  # which a header of a table does not have


@dataclass
class Cloud:
    """Points (n, 3), and where the file has them normals (n, 3) and colors (n, 3) in [0, 1]."""

    points: np.ndarray
    normals: np.ndarray | None = None
    colors: np.ndarray | None = None


def read_cloud(
    path: str | Path, num_points: int | None = None, seed: int = 0, dtype: type[np.floating] = np.float32
) -> Cloud:
    """Read all points of a cloud, or sample `num_points` (default 8192) uniformly from the surface of a mesh, with
    normals. Coordinates of maps need float64 as `dtype`."""
    count = NUM_SURFACE_POINTS if num_points is None else num_points
    if count < 1:
        raise InputError(f"`num_points` must be at least 1, got {count}")
    return translate_errors(path, lambda checked: check_cloud(read_columns(checked, count, seed), dtype))


def read_table(path: str | Path) -> np.ndarray:
    """Read the numbers of a text file, (rows, columns) float64, separated by blanks or commas; a header is skipped."""
    return translate_errors(path, lambda checked: parse_table(checked.read_bytes()))


def read_array(path: str | Path) -> np.ndarray:
    """Read the array of a .npy file, of any shape; numbers only."""
    return translate_errors(path, lambda checked: check_numbers(np.load(checked, allow_pickle=False)))


def translate_errors(path: str | Path, read: Callable[[Path], object]):
    """Return `read(path)`. Whatever a parser raises on a damaged file becomes one line with the file's name."""
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError("is not a file" if path.exists() else "there is no such file")
        if path.stat().st_size == 0:
            raise InputError("is empty")
        return read(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)[:200]}: cannot be read: {reason}") from error
    except MemoryError as error:
        raise InputError(f"{path}: needs more memory than there is") from error
    except Exception as error:  # a parser's own words are for programmers
        objects = ", or holds Python objects, which are not loaded" if path.suffix in (".npy", ".npz") else ""
        raise InputError(f"{path}: is damaged, or no {path.suffix} file{objects}") from error


def list_cloud_files(folder: str | Path) -> tuple[list[Path], str]:
    """List the files of clouds and meshes below a folder, and describe the files that are none, such as "2 .jpg, 1
    README.txt". What macOS puts beside a file, ._NAME, and hidden files of other suffixes do not count."""
    clouds, others = [], Counter()
    for path in sorted(Path(folder).rglob("*")):
        if path.name.startswith("._") or not path.is_file():
            continue
        if NOTES.fullmatch(path.name):
            others[path.name] += 1
        elif path.suffix.lower() in CLOUD_SUFFIXES:
            clouds.append(path)
        elif not path.name.startswith("."):
            others[path.suffix or "without suffix"] += 1
    return clouds, printable(", ".join(f"{count} {kind}" for kind, count in others.items()))


def read_columns(path: Path, num_points: int, seed: int) -> dict[str, np.ndarray]:
    suffix = path.suffix.lower()
    if suffix not in CLOUD_SUFFIXES:
        raise InputError(f"has the unsupported suffix {suffix!r}; supported are {', '.join(CLOUD_SUFFIXES)}")
    if suffix in MESH_SUFFIXES:
        return read_mesh(path, num_points, seed)
    if suffix == ".npz":
        return read_npz(path)
    if suffix == ".npy":
        return split_columns(np.load(path, allow_pickle=False))
    data = path.read_bytes()
    return parse_pcd(data) if suffix == ".pcd" else split_columns(parse_table(data))


def check_cloud(columns: dict[str, np.ndarray], dtype: type[np.floating]) -> Cloud:
    points = columns["points"]
    if not len(points):
        raise InputError("holds no points")
    for name, values in columns.items():
        if values.shape != points.shape:
            raise InputError(f"holds {name} of shape {values.shape} for points of shape {points.shape}")
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            columns[name] = np.ascontiguousarray(check_numbers(values), dtype=dtype)
        bad = (~np.isfinite(columns[name]).all(axis=1)).nonzero()[0]
        if len(bad):
            first = values[bad[0]].tolist()
            raise InputError(f"holds {len(bad)} {name} that are not finite, first {first} at {bad[0]}")
    return Cloud(**columns)


def check_numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiu":
        raise InputError(f"must hold numbers, got an array of {values.dtype}")
    return values


def split_columns(table: np.ndarray) -> dict[str, np.ndarray]:
    """Split a table without names: x y z, then normals if they can be negative or have length 1, else colors."""
    if check_numbers(table).ndim != 2 or table.shape[1] not in (3, 6):
        raise InputError(f"must hold 3 columns (x y z) or 6 (and normals or colors), got an array of {table.shape}")
    points, rest = table[:, :3], table[:, 3:].astype(np.float64)
    if not rest.size:
        return {"points": points}
    if (rest < 0).any() or not np.isfinite(rest).all() or abs(np.median(np.linalg.norm(rest, axis=1)) - 1) < 0.05:
        return {"points": points, "normals": rest}
    if rest.max() > 255:
        raise InputError(f"holds columns 4 to 6 that are neither normals nor colors: they reach {rest.max():g}")
    return {"points": points, "colors": rest / (255 if rest.max() > 1 else 1)}


def parse_table(data: bytes) -> np.ndarray:
    refuse_utf16(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"is not text: byte {data[error.start]:#04x} at {error.start}") from error
    text = re.sub("[,;]", " ", re.sub("(#|//).*", "", text)).lstrip()
    first, _, rest = text.partition("\n")
    count = int(first) if first.strip().isdecimal() else None  # a .pts file begins with its number of points
    if count is None and NUMBER.search(first):
        rest = text
    if not rest.strip():
        raise InputError("holds no points")
    try:
        table = np.loadtxt(io.StringIO(rest), comments=None, ndmin=2)
    except ValueError as error:
        raise InputError(f"is not a table of numbers: {describe_bad_row(rest.splitlines())}") from error
    if count not in (None, len(table)):
        raise InputError(f"announces {count} points, got {len(table)}")
    return table


def describe_bad_row(lines: list[str]) -> str:
    """Describe the first row that has a word in it, or another width than the rows before."""
    width = None
    for words in filter(None, map(str.split, lines)):
        for word in words:
            try:
                float(word)
            except ValueError:
                return f"{word[:40]!r} is no number, in the row {' '.join(words)[:60]!r}"
        if width not in (None, len(words)):
            return f"the row {' '.join(words)[:60]!r} has {len(words)} columns, the rows before have {width}"
        width = len(words)
    return "its rows cannot be parsed"


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        tables = [name for name in ALIASES if name in archive][:1]
        tables = tables or [name for name in archive if archive[name].ndim == 2]
        if len(tables) != 1:
            names = ", ".join(archive)[:200]
            raise InputError(f"must hold an array named {', '.join(ALIASES)}, or one table, got {names}")
        columns = split_columns(archive[tables[0]])
        columns |= {extra: archive[extra] for extra in ("normals", "colors") if extra in archive}
    if "colors" in columns and check_numbers(columns["colors"]).max(initial=0) > 1:
        columns["colors"] = columns["colors"] / 255
    return columns


def parse_pcd(data: bytes) -> dict[str, np.ndarray]:
    """Parse points, normals and colors of a PCD file: text, binary, or binary compressed with LZF."""
    last = re.search(rb"^DATA[ \t]+(\w+)[ \t]*\r?\n", data, re.MULTILINE)
    if last is None:
        raise InputError("has no DATA line at the end of its header")
    lines = data[: last.start()].decode("ascii").splitlines()
    header = {words[0]: words[1:] for line in lines if (words := line.split())}
    names, body = header["FIELDS"], data[last.end() :]
    if not {"x", "y", "z"} <= set(names):
        raise InputError(f"must have the fields x, y and z, got {' '.join(names)[:100]}")
    kinds = [f"<{kind.lower()}{size}" for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)]
    shapes = [(int(count),) for count in header.get("COUNT", ["1"] * len(names))]
    # Numbered, because padding fields may share the name "_".
    fields = [(str(place), *field) for place, field in enumerate(zip(kinds, shapes, strict=True))]
    num_points = int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
    if last[1] == b"ascii":
        rows = np.loadtxt(io.BytesIO(body), fields, comments=None, ndmin=1)
        if len(rows) != num_points:
            raise InputError(f"announces {num_points} points, got {len(rows)}")
    elif last[1] == b"binary":
        rows = np.frombuffer(body, fields, num_points)
    elif last[1] == b"binary_compressed":  # one field after the other
        packed_size, size = struct.unpack("<II", body[:8])
        unpacked, rows, start = unpack_lzf(body[8 : 8 + packed_size], size), {}, 0
        for name, kind, (count,) in fields:
            rows[name] = np.frombuffer(unpacked, kind, num_points * count, start).reshape(num_points, count)
            start += rows[name].nbytes
    else:
        raise InputError(f"must have DATA ascii, binary or binary_compressed, got {last[1].decode()[:40]!r}")
    columns = {name: rows[str(place)][:, 0] for place, name in enumerate(names)}
    cloud = {"points": np.stack([columns[axis] for axis in "xyz"], axis=1)}
    if {"normal_x", "normal_y", "normal_z"} <= set(columns):
        cloud["normals"] = np.stack([columns[f"normal_{axis}"] for axis in "xyz"], axis=1)
    packed = columns.get("rgb", columns.get("rgba"))
    if packed is not None and packed.dtype.itemsize == 4:  # three bytes in the bits of one number
        bits = np.ascontiguousarray(packed).view(np.uint32)
        cloud["colors"] = np.stack([bits >> shift & 255 for shift in (16, 8, 0)], axis=1) / 255
    return cloud


def unpack_lzf(packed: bytes, size: int) -> bytes:
    """Unpack runs of up to 32 plain bytes, and references of up to 264 bytes to the 8192 bytes unpacked before."""
    unpacked, stream = bytearray(), iter(packed)
    for control in stream:
        if control < 32:
            unpacked += bytes(itertools.islice(stream, control + 1))
            continue
        length = control >> 5
        if length == 7:
            length += next(stream)
        start = len(unpacked) - ((control & 31) << 8) - next(stream) - 1
        if start < 0:
            raise InputError("refers to bytes before the beginning of its packed points")
        period = unpacked[start : start + length + 2]  # shorter than the reference where that runs into itself
        unpacked += (period * ((length + 2) // len(period) + 1))[: length + 2]
    if len(unpacked) != size:
        raise InputError(f"announces {size} bytes of points, got {len(unpacked)}")
    return bytes(unpacked)
