"""Schema of point-cloud sets on `datasets`, converted from and to numpy without a Python object for each point.

points (n, 3) float32, and where a set has them: normals and colors alike, point_labels (n,) int64, label and category
(ClassLabel), name (str), boxes (m, 7) float32 (center, size, angle) and box_labels (m,). Clouds of one size make
fixed arrays, others ragged ones.
"""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value
from datasets.fingerprint import generate_random_fingerprint

from modeling_act.errors import InputError

IGNORED = -100  # label of points without one, as in the loss
BLOCK_SIZE = 1.0  # side of the columns that rooms are cut into, in metres
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


def find_columns(names: Sequence[str], source: str) -> dict[str, str]:
    """Map columns of the schema to the names that a set has for them."""
    columns = {}
    for column, aliases in ALIASES.items():
        match = next((alias for alias in aliases if alias in names and alias not in columns.values()), None)
        if match:
            columns[column] = match
    if "points" not in columns:
        raise InputError(
            f"{source}: no column of points among {', '.join(names) or 'none'}; expected one of "
            f"{', '.join(ALIASES['points'])}"
        )
    return columns


def make_features(
    num_points: int | None,
    columns: Sequence[str],
    class_names: Sequence[str] | None = None,
    part_names: Sequence[str] | None = None,
    category_names: Sequence[str] | None = None,
    box_names: Sequence[str] | None = None,
) -> Features:
    """Features of a set with these columns; `num_points` is None if clouds differ in size."""
    features = {
        "label": ClassLabel(names=list(class_names)) if class_names else Value("int64"),
        "category": ClassLabel(names=list(category_names)) if category_names else Value("int64"),
        "point_labels": List(ClassLabel(names=list(part_names)) if part_names else Value("int64")),
        "boxes": Array2D((None, 7), "float32"),
        "box_labels": List(ClassLabel(names=list(box_names)) if box_names else Value("int64")),
        "name": Value("string"),
    }
    features |= {column: Array2D((num_points, 3), "float32") for column in PER_POINT}
    return Features({column: features[column] for column in columns})


def build_dataset(columns: dict[str, Sequence], **names: Sequence[str] | None) -> Dataset:
    """Build a set from columns of the schema.

    Columns with an entry per point are (clouds, n, ...) arrays or lists of (n, ...) arrays; `names` are `class_names`,
    `part_names`, `category_names` and `box_names`.
    """
    sizes = {len(cloud) for cloud in columns["points"]}
    num_points = sizes.pop() if len(sizes) == 1 else None
    features = make_features(num_points, list(columns), **names)
    schema, chunk = features.arrow_schema, max(1, 2**27 // max(1, num_points or max(sizes, default=1)))
    tables = [schema.empty_table()]
    for start in range(0, len(columns["points"]), chunk):
        part = [_arrow_column(columns[field.name][start : start + chunk], field.type) for field in schema]
        tables.append(pa.table(part, schema=schema))
    return Dataset(
        pa.concat_tables(tables), fingerprint=generate_random_fingerprint()
    )  # instead of hashing all values


def _arrow_column(values: Sequence, kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.ExtensionType):  # points, normals, colors, boxes
        return pa.ExtensionArray.from_storage(kind, _nest(*_join(values, kind.shape[1:], np.float32)))
    if pa.types.is_list(kind):
        joined, ends = _join(values, (), np.int64)
        return pa.ListArray.from_arrays(ends, pa.array(joined))
    return pa.array(values, type=kind)


def _join(values: Sequence, width: tuple[int, ...], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate clouds; returns the values and the offsets of the clouds in them."""
    if isinstance(values, np.ndarray):
        lengths = np.full(len(values), values.shape[1])
        joined = values.reshape(-1, *width)
    else:
        lengths = np.array([len(cloud) for cloud in values], dtype=np.int64)
        joined = np.concatenate([np.asarray(cloud, dtype=dtype).reshape(-1, *width) for cloud in values])
    return np.ascontiguousarray(joined, dtype=dtype), np.concatenate([[0], lengths.cumsum()]).astype(np.int32)


def _nest(joined: np.ndarray, ends: np.ndarray) -> pa.Array:
    starts = np.arange(0, joined.size + 1, joined.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, pa.ListArray.from_arrays(starts, pa.array(joined.reshape(-1))))


def as_lists(table: pa.Table) -> pa.Table:
    """Convert extension types to plain lists; Arrow would build a Python object for each slice of the former."""
    for place, field in enumerate(table.schema):
        if isinstance(field.type, pa.ExtensionType):
            chunks = [chunk.storage for chunk in table.column(place).chunks]
            table = table.set_column(place, field.name, pa.chunked_array(chunks, field.type.storage_type))
    return table


def read_rows(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a list column of any nesting: its flat values, and the number of entries of each row.

    Nulls become empty rows and NaN values, which the checks report.
    """
    array = _storage(table, column)
    entries = array.flatten()
    values = entries.flatten() if _is_list(entries.type) else entries
    return values.to_numpy(zero_copy_only=False), _lengths(array)


def read_widths(table: pa.Table, column: str) -> np.ndarray:
    """Number of values in each entry of a list of lists."""
    return _lengths(_storage(table, column).flatten())


def _storage(table: pa.Table, column: str) -> pa.Array:
    array = table.column(column).combine_chunks()
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _lengths(array: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(array.type):
        return np.where(array.is_null().to_numpy(zero_copy_only=False), 0, array.type.list_size)
    return array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def place_of_block(name: str) -> tuple[str, np.ndarray] | None:
    """Room and origin in it of a block, which is a row named ROOM/X_Y; None for any other name."""
    match = re.fullmatch(r"(.+)/(\d+)_(\d+)", name)
    if match is None:
        return None
    return match[1], np.array([(int(match[2]) + 0.5) * BLOCK_SIZE, (int(match[3]) + 0.5) * BLOCK_SIZE, 0])
