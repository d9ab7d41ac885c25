"""The one schema of point-cloud sets on `datasets`, built from and read into numpy without a Python object a point.

points (n, 3) float32, and where a set has them: normals and colors alike, point_labels (n,) int64, label and category
(ClassLabel), name (str), boxes (m, 7) float32 (modeling_act/box_ops.py) and box_labels (m,). Clouds of one size make
fixed arrays, others ragged ones.
"""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value

from modeling_act.errors import InputError

IGNORED = -100  # label of points without one, as in the loss
BLOCK_SIZE = 1.0  # side of the columns that rooms are cut into, in metres
PER_POINT = ("points", "normals", "colors")
# What the columns of published sets are called, the first that is there is taken.
ALIASES = {
    "points": ("points", "inputs", "point_cloud", "pc", "xyz", "pos", "coord", "coords", "data"),
    "label": ("label", "labels", "category", "cls", "class"),
    "point_labels": ("point_labels", "seg", "segment", "part_label", "pid"),
    "category": ("category", "categories"),
    "boxes": ("boxes", "bboxes"),
    "box_labels": ("box_labels",),
}


def find_columns(names: Sequence[str], source: str) -> dict[str, str]:
    """Which of a set's columns is which of the schema's."""
    found = {}
    for column, aliases in ALIASES.items():
        match = next((alias for alias in aliases if alias in names and alias not in found.values()), None)
        if match:
            found[column] = match
    if "points" not in found:
        raise InputError(
            f"{source}: no column of points among {', '.join(names) or 'none'}; expected one of "
            f"{', '.join(ALIASES['points'])}"
        )
    return found


def make_features(
    num_points: int | None,
    columns: Sequence[str],
    class_names: Sequence[str] | None = None,
    part_names: Sequence[str] | None = None,
    category_names: Sequence[str] | None = None,
    box_names: Sequence[str] | None = None,
) -> Features:
    """The features of a set with these columns; `num_points` is None where clouds differ in size."""
    known = {
        "label": ClassLabel(names=list(class_names)) if class_names else Value("int64"),
        "category": ClassLabel(names=list(category_names)) if category_names else Value("int64"),
        "point_labels": List(ClassLabel(names=list(part_names)) if part_names else Value("int64")),
        "boxes": Array2D((None, 7), "float32"),
        "box_labels": List(ClassLabel(names=list(box_names)) if box_names else Value("int64")),
        "name": Value("string"),
    }
    known |= {column: Array2D((num_points, 3), "float32") for column in PER_POINT}
    return Features({column: known[column] for column in columns})


def build_dataset(columns: dict[str, Sequence], **names: Sequence[str] | None) -> Dataset:
    """A set from columns of the schema. Per-point columns are (clouds, n, 3) arrays or lists of (n, 3) arrays;
    `names` are `class_names`, `part_names`, `category_names`, `box_names`."""
    sizes = {len(cloud) for cloud in columns["points"]}
    num_points = sizes.pop() if len(sizes) == 1 else None
    features = make_features(num_points, list(columns), **names)
    schema, chunk = features.arrow_schema, max(1, 2**27 // max(1, num_points or max(sizes, default=1)))
    parts = [
        pa.table(
            [
                _arrow_column(values[start : start + chunk], schema.field(name).type)
                for name, values in columns.items()
            ],
            schema=schema,
        )
        for start in range(0, len(columns["points"]), chunk)
    ]
    return Dataset(pa.concat_tables(parts) if parts else schema.empty_table())


def _arrow_column(values: Sequence, kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.ExtensionType):  # points, normals, colors, boxes
        return pa.ExtensionArray.from_storage(kind, _nest(*_join(values, kind.shape[1:], np.float32)))
    if pa.types.is_list(kind):
        joined, ends = _join(values, (), np.int64)
        return pa.ListArray.from_arrays(ends, pa.array(joined))
    return pa.array(values, type=kind)


def _join(values: Sequence, width: tuple[int, ...], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Clouds end to end, and the offsets that cut them apart."""
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
    """The same columns without extension types, which Arrow would make anew for each slice of them."""
    for place, field in enumerate(table.schema):
        if isinstance(field.type, pa.ExtensionType):
            chunks = [chunk.storage for chunk in table.column(place).chunks]
            table = table.set_column(place, field.name, pa.chunked_array(chunks, field.type.storage_type))
    return table


def read_rows(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column of any nesting as it is: flat values, and the number of entries of each row.

    Nulls read as empty rows and NaN values, for the checks to find.
    """
    array = _storage(table, column)
    entries = array.flatten()
    values = entries.flatten() if _is_list(entries.type) else entries
    return values.to_numpy(zero_copy_only=False), _lengths(array)


def read_widths(table: pa.Table, column: str) -> np.ndarray:
    """How many numbers each entry of a list of lists has."""
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
    """Room of a block, a row named ROOM/X_Y, and the block's origin in it; None for any other name."""
    match = re.fullmatch(r"(.+)/(\d+)_(\d+)", name)
    if match is None:
        return None
    return match[1], np.array([(int(match[2]) + 0.5) * BLOCK_SIZE, (int(match[3]) + 0.5) * BLOCK_SIZE, 0])
