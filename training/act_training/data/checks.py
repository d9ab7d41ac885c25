"""Checks of all rows before training, and a digest that tells sets apart."""

import hashlib

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from act_training.data.schema import read_rows, read_widths
from modeling_act.errors import InputError

MAX_COORDINATE = 1e9  # squares of larger coordinates, summed, leave the range of float32's useful digits
BATCH_ROWS = 64  # part of the digest


def check_offsets(table: pa.Table, source: str) -> None:
    """Validate a table before any row of it is read: offsets of a damaged file may point anywhere."""
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise InputError(f"{source}: damaged ({str(error).splitlines()[0]})") from error


def find_bad_rows(table: pa.Table, column: str, min_points: int) -> dict[int, str]:
    """Find clouds that cannot be trained on. Returns the reason for each such row of the table."""
    _check_type(table.schema.field(column))
    values, lengths = read_rows(table, column)
    widths = read_widths(table, column)
    reasons: dict[int, str] = {}
    if (widths != 3).any():
        row_of_point = np.repeat(np.arange(len(lengths)), lengths)
        rows, places = np.unique(row_of_point[widths != 3], return_index=True)
        for row, width in zip(rows, widths[widths != 3][places], strict=True):
            reasons[int(row)] = f"a point of {width} numbers where three were expected"
    ends = np.concatenate([[0], widths.cumsum()])[lengths.cumsum()]  # where the values of each row end
    with np.errstate(invalid="ignore"):
        wrong = (~(np.abs(values) <= MAX_COORDINATE)).nonzero()[0]
    rows = np.searchsorted(ends, wrong, side="right")
    for row in np.unique(rows):
        bad = values[wrong[rows == row]]
        kinds = {"NaN": np.isnan(bad).sum(), "infinite": np.isinf(bad).sum(), "huge": np.isfinite(bad).sum()}
        counts = " and ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        reasons.setdefault(int(row), f"{counts} coordinates")
    for row in (lengths < max(1, min_points)).nonzero()[0]:
        few = f"{lengths[row]} points, fewer than the {min_points} that groups need" if lengths[row] else "no points"
        reasons.setdefault(int(row), few)
    for row, points in enumerate(np.split(values, ends[:-1])):
        first = points[:3]
        if row not in reasons and (points[-3:] == first).all() and (points.reshape(-1, 3) == first).all():
            reasons[row] = "all points are equal"
    return dict(sorted(reasons.items()))


def _check_type(column: pa.Field) -> None:
    kind, depth = column.type, 0
    kind = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth != 2 or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise InputError(f"column {column.name!r} must hold lists of points of three numbers each, got {column.type}")


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
        try:
            reasons = find_bad_rows(table, point_set.columns["points"], min_points)
        except InputError as error:
            raise InputError(f"{point_set.source}, rows {rows.start} to {rows.stop - 1}: {error}") from error
        if all_labels is not None:
            labels = all_labels[rows.start : rows.stop]
            for place in ((labels < 0) | (labels >= num_classes)).nonzero()[0]:
                reasons.setdefault(int(place), f"label {labels[place]} where 0 to {num_classes - 1} were expected")
        problems += [f"{point_set.where(rows[place])}: {reason}" for place, reason in reasons.items()]
        good += [row for place, row in enumerate(rows) if place not in reasons]
        values, lengths = read_rows(table, point_set.columns["points"])
        digest.update(lengths.tobytes())
        digest.update(np.ascontiguousarray(values))
        progress.update(len(rows))
    progress.close()
    if problems and not skip_bad:
        listed = "; ".join(problems[:10]) + ("; ..." if len(problems) > 10 else "")
        raise InputError(f"{len(problems)} bad rows; mend them or pass --skip_bad. {listed}")
    if not good:
        raise InputError(
            f"{point_set.source}: no row to train on ({len(point_set)} rows, {len(problems)} of them bad)"
        )
    return (point_set.select(good) if problems else point_set), problems, digest.hexdigest()
