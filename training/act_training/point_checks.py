"""Rows that no training should meet, found before it starts and named, and a digest that tells sets apart."""

import hashlib

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from act_training.errors import InputError
from act_training.point_schema import read_rows

LARGEST = 1e9  # squares of larger coordinates, summed, leave the range of float32's useful digits


def bad_rows(table: pa.Table, column: str, min_points: int) -> list[tuple[int, str]]:
    """(row of the table, reason) of each cloud that cannot be trained on."""
    kind = table.schema.field(column).type
    kind = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth != 2 or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise InputError(
            f"column {column!r} must hold lists of points of three numbers each, got {table.schema.field(column).type}"
        )
    values, lengths, widths = read_rows(table, column)
    found: dict[int, str] = {}
    row_of_point = np.repeat(np.arange(len(lengths)), lengths)
    wrong_width = widths != 3
    for row in np.unique(row_of_point[wrong_width]):
        odd = widths[(row_of_point == row) & wrong_width][0]
        found[int(row)] = f"a point of {odd} numbers where three were expected"
    row_of_value = np.repeat(row_of_point, widths)
    values = values.astype(np.float64 if values.dtype == object else values.dtype, copy=False)
    for name, wrong in (("NaN", np.isnan(values)), ("infinite", np.isinf(values)), ("huge", np.abs(values) > LARGEST)):
        if wrong.any():
            counts = np.bincount(row_of_value[wrong], minlength=len(lengths))
            for row in counts.nonzero()[0]:
                found.setdefault(int(row), f"{counts[row]} {name} coordinates")
    for row in (lengths < max(1, min_points)).nonzero()[0]:
        few = (
            "no points"
            if lengths[row] == 0
            else f"{lengths[row]} points, fewer than the {min_points} that groups need"
        )
        found.setdefault(int(row), few)
    whole = np.array([row not in found for row in range(len(lengths))])
    if whole.any():
        points = values[np.repeat(np.repeat(whole, lengths), widths)].reshape(-1, 3)
        starts = np.concatenate([[0], lengths[whole].cumsum()[:-1]])
        spread = np.maximum.reduceat(points, starts) - np.minimum.reduceat(points, starts)
        for row in whole.nonzero()[0][(spread == 0).all(1)]:
            found[int(row)] = "all points are equal"
    return sorted(found.items())


def check_point_set(
    point_set, min_points: int, num_classes: int | None = None, skip_bad: bool = False, quiet: bool = False
):
    """Reads every row once. Returns the set without its bad rows, their descriptions, and a digest of the rest.

    Without `skip_bad` the first bad rows are an error.
    """
    problems, good, digest = [], [], hashlib.blake2b(digest_size=16)
    batch = max(1, 2**20 // max(1, min_points * 8))
    steps = range(0, len(point_set), batch)
    for start in tqdm(steps, desc=f"checking {point_set.source}", unit="batch", leave=False, disable=quiet):
        rows = range(start, min(start + batch, len(point_set)))
        table = point_set.read_table(rows)
        found = dict(bad_rows(table, point_set.columns["points"], min_points))
        if "label" in point_set.columns and num_classes is not None:
            labels = table.column(point_set.columns["label"]).to_numpy()
            for place in ((labels < 0) | (labels >= num_classes)).nonzero()[0]:
                found.setdefault(int(place), f"label {labels[place]} where 0 to {num_classes - 1} were expected")
        problems += [f"{point_set.where(rows[place])}: {reason}" for place, reason in found.items()]
        good += [row for place, row in enumerate(rows) if place not in found]
        values, lengths, _ = read_rows(table, point_set.columns["points"])
        digest.update(lengths.tobytes())
        digest.update(np.ascontiguousarray(values).tobytes() if values.dtype != object else repr(values).encode())
    if problems and not skip_bad:
        shown = "; ".join(problems[:10]) + ("; ..." if len(problems) > 10 else "")
        raise InputError(f"{len(problems)} bad rows; mend them or pass --skip_bad. {shown}")
    if not good:
        raise InputError(
            f"{point_set.source}: no row to train on ({len(point_set)} rows, {len(problems)} of them bad)"
        )
    return (point_set.select(good) if problems else point_set), problems, digest.hexdigest()
