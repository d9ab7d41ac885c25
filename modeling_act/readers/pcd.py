"""PCD, the format of the Point Cloud Library: text, binary, and binary compressed with LZF. Used by `cloud_files`."""

import struct

import numpy as np

from ..errors import InputError

# TYPE and SIZE of a field
KINDS = {f"{kind}{size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)} | {
    "F4": "<f4",
    "F8": "<f8",
}
# Three bytes of LZF, a reference of the longest kind, unpack to 264 bytes.
LARGEST_EXPANSION = 88


def read_pcd(data: bytes) -> dict[str, np.ndarray]:
    """Columns points, normals and colors (n, 3), the latter two where the file has them."""
    header, body = _read_header(data)
    fields = _parse_fields(header)
    num_points = _count_points(header)
    kind = header["DATA"][0].lower()
    if kind == "ascii":
        columns = _read_ascii(body, fields, num_points)
    elif kind == "binary":
        columns = _read_rows(body, fields, num_points)
    elif kind == "binary_compressed":
        columns = _read_columns(_unpack(body, num_points * _row_size(fields)), fields, num_points)
    else:
        raise InputError(f"must have DATA ascii, binary or binary_compressed, got {kind[:40]!r}")
    return _name_columns(columns)


def _read_header(data: bytes) -> tuple[dict[str, list[str]], memoryview]:
    header, start = {}, 0
    while "DATA" not in header:
        end = data.find(b"\n", start)
        if end < 0:
            raise InputError("has no DATA line at the end of its header")
        words = data[start:end].decode("ascii").split()
        start = end + 1
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
    missing = {"FIELDS", "SIZE", "TYPE", "DATA"} - {key for key, words in header.items() if words}
    if missing:
        raise InputError(f"has no {', '.join(sorted(missing))} in its header")
    return header, memoryview(data)[start:]


def _parse_fields(header: dict[str, list[str]]) -> list[tuple[str, str, int]]:
    """Name, numpy type and count of each field."""
    names, counts = header["FIELDS"], header.get("COUNT") or ["1"] * len(header["FIELDS"])
    kinds = [kind + size for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not len(names) == len(kinds) == len(counts):
        raise InputError(f"must give each of its {len(names)} fields a TYPE, a SIZE and a COUNT that go together")
    fields = [(name, KINDS[kind], int(count)) for name, kind, count in zip(names, kinds, counts, strict=True)]
    if any(not 0 < count <= 10_000 for _, _, count in fields):
        raise InputError(f"must have fields with a COUNT from 1 to 10000, got {' '.join(counts)[:100]}")
    if not {"x", "y", "z"} <= {name for name, _, count in fields if count == 1}:
        raise InputError(f"must have the fields x, y and z, got {' '.join(names)[:100]}")
    return fields


def _count_points(header: dict[str, list[str]]) -> int:
    counts = [int(header[key][0]) for key in ("WIDTH", "HEIGHT", "POINTS") if header.get(key)]
    if len(counts) == 3 and counts[0] * counts[1] != counts[2]:
        raise InputError(f"announces {counts[2]} points, and a width and height of {counts[0]} and {counts[1]}")
    if len(counts) == 2:
        counts.append(counts[0] * counts[1])
    if not counts or counts[-1] < 1:
        raise InputError("holds no points")
    return counts[-1]


def _row_size(fields: list[tuple[str, str, int]]) -> int:
    return sum(np.dtype(kind).itemsize * count for _, kind, count in fields)


def _check_size(wanted: int, there: int) -> None:
    if wanted > there:
        raise InputError(f"announces points that take {wanted} bytes and holds {there}")


def _read_ascii(body: memoryview, fields: list[tuple[str, str, int]], num_points: int) -> dict[str, np.ndarray]:
    width = sum(count for _, _, count in fields)
    _check_size(2 * width * num_points, len(body) + 1)  # a digit and a blank at the least
    rows = bytes(body).decode("ascii").split("\n")
    table = np.loadtxt([row for row in rows if row.strip()], ndmin=2, comments=None)
    if table.shape != (num_points, width):
        raise InputError(f"announces {num_points} points of {width} numbers and holds a table of {table.shape}")
    columns, start = {}, 0
    for name, kind, count in fields:
        with np.errstate(invalid="ignore", over="ignore"):
            columns |= {name: table[:, start].astype(kind)} if count == 1 else {}
        start += count
    return columns


def _read_rows(body: memoryview, fields: list[tuple[str, str, int]], num_points: int) -> dict[str, np.ndarray]:
    _check_size(num_points * _row_size(fields), len(body))
    # Padding fields may share the name "_".
    layout = np.dtype([(str(place), kind, (count,)) for place, (_, kind, count) in enumerate(fields)])
    rows = np.frombuffer(body, dtype=layout, count=num_points)
    return {name: rows[str(place)][:, 0] for place, (name, _, count) in enumerate(fields) if count == 1}


def _read_columns(body: bytes, fields: list[tuple[str, str, int]], num_points: int) -> dict[str, np.ndarray]:
    """Unpacked bytes hold one field after the other."""
    columns, start = {}, 0
    for name, kind, count in fields:
        values = np.frombuffer(body, dtype=kind, count=num_points * count, offset=start)
        start += values.nbytes
        columns |= {name: values} if count == 1 else {}
    return columns


def _unpack(body: memoryview, size: int) -> bytes:
    packed_size, unpacked_size = struct.unpack("<II", body[:8])
    if unpacked_size != size:
        raise InputError(f"announces points that take {size} bytes and packs {unpacked_size}")
    _check_size(packed_size, len(body) - 8)
    if size > LARGEST_EXPANSION * packed_size:
        raise InputError(f"announces {size} bytes packed into {packed_size}, more than LZF can do")
    return unpack_lzf(bytes(body[8 : 8 + packed_size]), size)


def unpack_lzf(packed: bytes, size: int) -> bytes:
    """Runs of up to 32 plain bytes, and references of up to 264 bytes to what was unpacked within the last 8192."""
    unpacked, at = bytearray(), 0
    while at < len(packed) and len(unpacked) <= size:
        control = packed[at]
        at += 1
        if control < 32:
            unpacked += packed[at : at + control + 1]
            at += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += packed[at]
            at += 1
        start = len(unpacked) - ((control & 31) << 8) - packed[at] - 1
        at += 1
        if start < 0:
            raise InputError("refers to bytes before the beginning of its packed points")
        period = unpacked[start : start + length + 2]  # shorter than the reference where that runs into itself
        unpacked += (period * ((length + 2) // len(period) + 1))[: length + 2]
    if len(unpacked) != size or at != len(packed):
        raise InputError(f"unpacks to {len(unpacked)} bytes or more, and announces {size}")
    return bytes(unpacked)


def _name_columns(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    named = {"points": np.stack([columns[axis] for axis in "xyz"], axis=1)}
    if {"normal_x", "normal_y", "normal_z"} <= set(columns):
        named["normals"] = np.stack([columns[f"normal_{axis}"] for axis in "xyz"], axis=1)
    packed = columns.get("rgb", columns.get("rgba"))
    if packed is not None and packed.dtype.itemsize == 4:  # three bytes in the bits of one number
        bits = np.ascontiguousarray(packed).view(np.uint32)
        named["colors"] = np.stack([bits >> shift & 255 for shift in (16, 8, 0)], axis=1) / 255
    return named
