"""Schema of point-cloud sets on `datasets`, converted from and to numpy without a Python object for each point.

points (n, 3) float32, and where a set has them: normals and colors alike, point_labels (n,) int64, label and category
(ClassLabel), name (str), boxes (m, 7) float32 (center, size, angle) and box_labels (m,). Clouds of one size make
fixed arrays, others ragged ones. `check_point_set` checks all rows before training.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value
from datasets.fingerprint import generate_random_fingerprint
from tqdm import tqdm

from modeling_act.errors import InputError
from modeling_act.readers.cloud import translate_errors

IGNORED = -100  # label of points without one, as in the loss
BLOCK_SIZE = 1.0  # side of the columns that rooms are cut into, in metres
MAX_COORDINATE = 1e9  # squares of larger coordinates, summed, leave the range of float32's useful digits
BATCH_ROWS = 64  # part of the digest
ARRAY_SUFFIXES = (".npz", ".h5", ".hdf5")
PER_POINT = ("points", "normals", "colors")
# Names of the columns in published sets, in order of preference.
ALIASES = {
    "points": ("points", "inputs", "point_cloud", "pc", "xyz", "pos", "coord", "coords", "data"),
    "label": ("label", "labels", "category", "cls", "class"),
    "point_labels": ("point_labels", "seg", "segment", "part_label", "pid"),
    "category": ("category", "categories"),
    "boxes": ("boxes", "bboxes"),
    "box_labels": ("box_labels",),
}
# Columns with class names, by the argument of `make_features` and `build_dataset` that holds these.
NAMED_COLUMNS = {
    "class_names": "label",
    "category_names": "category",
    "part_names": "point_labels",
    "box_names": "box_labels",
}


def find_columns(names: Sequence[str], source: str) -> dict[str, str]:
    """Map columns of the schema to the names that a set has for them."""
    columns = {}
    for column, aliases in ALIASES.items():
        match = next((alias for alias in aliases if alias in names and alias not in columns.values()), None)
        if match:
            columns[column] = match
    if "points" not in columns:
        listed, expected = ", ".join(names) or "none", ", ".join(ALIASES["points"])
        raise InputError(f"{source}: no column of points among {listed}; expected one of {expected}")
    return columns


def make_features(num_points: int | None, columns: Sequence[str], **names: Sequence[str] | None) -> Features:
    """Features of a set with these columns and `names` (keys of `NAMED_COLUMNS`); clouds of unequal size have no
    `num_points`."""
    features = {"boxes": Array2D((None, 7), "float32"), "name": Value("string")}
    features |= {column: Array2D((num_points, 3), "float32") for column in PER_POINT}
    for kind, column in NAMED_COLUMNS.items():
        feature = ClassLabel(names=list(names[kind])) if names.get(kind) else Value("int64")
        features[column] = List(feature) if column in ("point_labels", "box_labels") else feature
    return Features({column: features[column] for column in columns})


def build_dataset(columns: dict[str, Sequence], **names: Sequence[str] | None) -> Dataset:
    """Build a set from columns of the schema; `names` are those of `make_features`. Columns with an entry per point
    are (clouds, n, ...) arrays or lists of (n, ...) arrays."""
    sizes = list({len(cloud) for cloud in columns["points"]})
    schema = make_features(sizes[0] if len(sizes) == 1 else None, list(columns), **names).arrow_schema
    chunk = 2**27 // max([1, *sizes]) or 1  # clouds whose values 32-bit offsets can count
    tables = [schema.empty_table()]
    for start in range(0, len(columns["points"]), chunk):
        part = [_arrow_column(columns[field.name][start : start + chunk], field.type) for field in schema]
        tables.append(pa.table(part, schema=schema))
    # A random fingerprint spares hashing all values.
    return Dataset(pa.concat_tables(tables), fingerprint=generate_random_fingerprint())


def _arrow_column(values: Sequence, kind: pa.DataType) -> pa.Array:
    is_table = isinstance(kind, pa.ExtensionType)  # points, normals, colors, boxes
    if not is_table and not pa.types.is_list(kind):
        return pa.array(values, type=kind)
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    dtype = np.float32 if is_table else np.int64
    entries = pa.array(np.concatenate([np.asarray(cloud, dtype=dtype).reshape(-1) for cloud in values]))
    if not is_table:
        return pa.ListArray.from_arrays(ends, entries)
    starts = np.arange(0, len(entries) + 1, kind.shape[1], dtype=np.int32)
    entries = pa.ListArray.from_arrays(starts, entries)
    return pa.ExtensionArray.from_storage(kind, pa.ListArray.from_arrays(ends, entries))


def open_h5(path: Path):
    """Open an h5 file for reading."""
    try:
        import h5py
    except ImportError as error:
        raise InputError("reading h5 files needs h5py: pip install h5py") from error
    return h5py.File(path, "r")


def read_array_set(path: Path) -> dict[str, Dataset]:
    """Read the splits of an npz or h5 file; without an array `split` all of it is "train"."""
    if path.suffix not in ARRAY_SUFFIXES:
        raise InputError(f"{path}: a set is a folder, or a .parquet, .npz or .h5 file")
    return translate_errors(path, lambda checked: _split_arrays(_read_arrays(checked)))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file that a set can have; a cloud has any number of boxes, which no array can hold."""
    wanted = {"split", *NAMED_COLUMNS}.union(*(ALIASES[column] for column in ALIASES if "box" not in column))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in wanted}
    with open_h5(path) as file:
        entries = {name: file[name] for name in file.keys() & wanted if hasattr(file[name], "dtype")}
        return {name: (entry.asstr() if entry.dtype.kind in "OS" else entry)[()] for name, entry in entries.items()}


def _split_arrays(arrays: dict[str, np.ndarray]) -> dict[str, Dataset]:
    aliases = find_columns(list(arrays), "arrays")
    names = {name: arrays[name].astype(str).reshape(-1).tolist() for name in NAMED_COLUMNS if name in arrays}
    columns = {column: arrays[alias] for column, alias in aliases.items()}
    points = columns["points"]
    if points.ndim != 3 or points.shape[2] != 3 or points.dtype.kind not in "fiu":
        got = f"{points.dtype} of shape {points.shape}"
        raise InputError(f"{aliases['points']!r} must be numbers of shape (clouds, points, 3), got {got}")
    for column, alias in aliases.items():
        if column == "points":
            continue
        values, shape = columns[column], points.shape[: 2 if column == "point_labels" else 1]
        if values.shape not in (shape, (*shape, 1)):
            raise InputError(f"{alias!r} must have the shape {shape} for these points, got {values.shape}")
        columns[column] = values = values.reshape(shape)
        if column == "label" and values.dtype.kind in "USO":
            words, columns[column] = np.unique(values.astype(str), return_inverse=True)
            names["class_names"] = words.tolist()
        elif values.dtype.kind not in "iu":
            raise InputError(f"{alias!r} must be whole numbers, got {values.dtype}")
    split = arrays.get("split", np.full(len(points), "train")).astype(str)
    if split.shape != (len(points),):
        raise InputError(f"'split' must name the split of each of the {len(points)} clouds, got {split.shape}")
    return {
        name: build_dataset({column: values[split == name] for column, values in columns.items()}, **names)
        for name in dict.fromkeys(split.tolist() or ["train"])
    }


def as_lists(table: pa.Table) -> pa.Table:
    """Convert extension types to plain lists; Arrow would build a Python object for each slice of the former."""
    for place, field in enumerate(table.schema):
        if isinstance(field.type, pa.ExtensionType):
            chunks = [chunk.storage for chunk in table.column(place).chunks]
            table = table.set_column(place, field.name, pa.chunked_array(chunks, field.type.storage_type))
    return table


def read_rows(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the flat values of a list column of any nesting, and the number of entries of each row. Nulls become empty
    rows and NaN values, which the checks report."""
    array = table.column(column).combine_chunks()
    entries = array.flatten()
    values = entries.flatten() if _is_list(entries.type) else entries
    return values.to_numpy(zero_copy_only=False), _lengths(array)


def read_widths(table: pa.Table, column: str) -> np.ndarray:
    """Number of values in each entry of a list of lists."""
    return _lengths(table.column(column).combine_chunks().flatten())


def _lengths(array: pa.Array) -> np.ndarray:
    return pa.compute.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def place_of_block(name: str) -> tuple[str, np.ndarray] | None:
    """Room and origin in it of a block, which is a row named ROOM/X_Y; None for any other name."""
    if match := re.fullmatch(r"(.+)/(\d+)_(\d+)", name):
        return match[1], np.array([(int(match[2]) + 0.5) * BLOCK_SIZE, (int(match[3]) + 0.5) * BLOCK_SIZE, 0])
    return None


def find_bad_rows(table: pa.Table, column: str, min_points: int) -> dict[int, str]:
    """Find clouds that cannot be trained on. Returns the reason for each such row of the table."""
    kind, depth = table.schema.field(column).type, 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth != 2 or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        kind = table.schema.field(column).type
        raise InputError(f"column {column!r} must hold lists of points of three numbers each, got {kind}")
    values, lengths = read_rows(table, column)
    widths = read_widths(table, column)
    stops = lengths.cumsum()[:-1]
    clouds = zip(np.split(values, np.append(0, widths.cumsum())[stops]), np.split(widths, stops), strict=True)
    reasons = {row: _find_problem(points, own_widths, min_points) for row, (points, own_widths) in enumerate(clouds)}
    return {row: reason for row, reason in reasons.items() if reason}


def _find_problem(values: np.ndarray, widths: np.ndarray, min_points: int) -> str | None:
    """Find the problem of a cloud from its flat coordinates and the width of each point."""
    if (widths != 3).any():
        return f"a point of {widths[widths != 3][0]} numbers where three were expected"
    bad = values[~(np.abs(values) <= MAX_COORDINATE)]
    if bad.size:
        counts = {"NaN": np.isnan(bad).sum(), "infinite": np.isinf(bad).sum(), "huge": np.isfinite(bad).sum()}
        return " and ".join(f"{count} {kind}" for kind, count in counts.items() if count) + " coordinates"
    if not len(widths):
        return "no points"
    if len(widths) < min_points:
        return f"{len(widths)} points, fewer than the {min_points} that groups need"
    return "all points are equal" if (values.reshape(-1, 3) == values[:3]).all() else None


def check_offsets(table: pa.Table, source: str) -> None:
    """Validate a table before any row of it is read: offsets of a damaged file may point anywhere."""
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise InputError(f"{source}: damaged ({str(error).splitlines()[0]})") from error


def check_point_set(
    point_set, min_points: int, num_classes: int | None = None, skip_bad: bool = False, quiet: bool = False
):
    """Check every row. Returns the set without its bad rows, their descriptions, and a digest of all points.

    Without `skip_bad`, bad rows are an error. Labels are checked if `num_classes` is given.
    """
    check_offsets(point_set.dataset.data.table, point_set.source)
    problems, good, digest = [], [], hashlib.blake2b(digest_size=16)
    all_labels = None if num_classes is None else point_set.labels()
    progress = tqdm(desc=f"checking {point_set.source}", total=len(point_set), unit="row", leave=False, disable=quiet)
    for rows, table in point_set.iterate_tables(BATCH_ROWS):
        progress.update(len(rows))
        try:
            reasons = find_bad_rows(table, point_set.columns["points"], min_points)
        except InputError as error:
            raise InputError(f"{point_set.source}, rows {rows.start} to {rows.stop - 1}: {error}") from error
        if all_labels is not None:
            labels = all_labels[rows.start : rows.stop]
            for place in ((labels < 0) | (labels >= num_classes)).nonzero()[0]:
                reasons.setdefault(int(place), f"label {labels[place]} where 0 to {num_classes - 1} were expected")
        problems += [f"{point_set.where(rows[place])}: {reason}" for place, reason in sorted(reasons.items())]
        good += [row for place, row in enumerate(rows) if place not in reasons]
        values, lengths = read_rows(table, point_set.columns["points"])
        digest.update(lengths.tobytes())
        digest.update(np.ascontiguousarray(values))
    progress.close()
    if problems and not skip_bad:
        listed = "; ".join(problems[:10]) + ("; ..." if len(problems) > 10 else "")
        raise InputError(f"{len(problems)} bad rows; mend them or pass --skip_bad. {listed}")
    if not good:
        counts = f"{len(point_set)} rows, {len(problems)} of them bad"
        raise InputError(f"{point_set.source}: no row to train on ({counts})")
    return (point_set.select(good) if problems else point_set), problems, digest.hexdigest()
