"""Rows that no training should meet are named, each with its reason; damaged files are refused in one line."""

import random

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from act_training.data.point_sets import open_point_set
from act_training.data.schema import build_dataset, check_offsets, check_point_set
from datasets import disable_progress_bars

from hostile_cases import limited_memory
from modeling_act.errors import InputError

disable_progress_bars()
RANDOM = np.random.default_rng(0)
GOOD = RANDOM.normal(size=(8, 3)).tolist()
BAD = {
    "1 NaN coordinates": [[np.nan, 0, 0], *GOOD],
    "3 infinite coordinates": [[np.inf, -np.inf, np.inf], *GOOD],
    "1 NaN and 2 huge coordinates": [[np.nan, 1e10, -1e30], *GOOD],
    "no points": [],
    "2 points, fewer than the 5 that groups need": GOOD[:2],
    "all points are equal": [GOOD[0]] * 8,
    "a point of 2 numbers where three were expected": [*GOOD, [0, 1]],
    "a point of 4 numbers where three were expected": [[0, 1, 2, 3], *GOOD, [0, 1]],
    "a point of 0 numbers where three were expected": [*GOOD, None],
    "2 NaN coordinates": [[None, None, 0], *GOOD],
}


def write(path, rows, **columns):
    kind = pa.list_(pa.list_(pa.float64()))
    pa.parquet.write_table(pa.table({"points": pa.array(rows, kind), **columns}), path)
    return open_point_set(str(path))


def check(point_set, **options):
    return check_point_set(point_set, 5, quiet=True, **options)


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize("place", [0, 70, 129])
def test_a_bad_row_is_named(tmp_path, reason, place):
    rows = [GOOD] * 130
    rows[place] = BAD[reason]
    with pytest.raises(InputError) as caught:
        check(write(tmp_path / "a.parquet", rows))
    where = f"row {place} of {tmp_path / 'a.parquet'} (train): {reason}"
    assert str(caught.value) == f"1 bad rows; mend them or pass --skip_bad. {where}"


def test_bad_rows_are_named_together_and_left_out(tmp_path):
    rows, expected = [GOOD, None], ["no points"]
    for reason, row in BAD.items():
        rows += [GOOD, row]
        expected.append(reason)
    point_set = write(tmp_path / "a.parquet", rows)
    with pytest.raises(InputError, match="11 bad rows; .*: no points; .* NaN") as caught:
        check(point_set)
    assert str(caught.value).endswith("; ...") and str(caught.value).count("row ") == 10
    kept, problems, _ = check(point_set, skip_bad=True)
    assert problems == [
        f"row {2 * number + 1} of {point_set.source}: {reason}" for number, reason in enumerate(expected)
    ]
    assert kept.rows.tolist() == list(range(0, 22, 2)) and kept.read([10])["points"][1].tolist() == [8]
    with pytest.raises(InputError, match=r"no row to train on \(2 rows, 2 of them bad\)"):
        check(point_set.select([1, 3]), skip_bad=True)


def test_labels_are_checked_where_classes_are_known(tmp_path):
    point_set = write(tmp_path / "a.parquet", [GOOD] * 5, label=pa.array([0, 3, -1, None, 2]))
    assert check(point_set)[1] == []
    problems = check(point_set, num_classes=3, skip_bad=True)[1]
    assert [problem.split(": ")[1] for problem in problems] == [
        f"label {label} where 0 to 2 were expected" for label in (3, -1, -1)
    ]


@pytest.mark.parametrize("rows", [["a", "b"], [1.0, 2.0], [[1.0], [2.0]], [[["a"]]] * 2, [[[[1.0]]]] * 2])
def test_a_column_of_something_else_is_refused(tmp_path, rows):
    pa.parquet.write_table(pa.table({"points": rows}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a.parquet.*column 'points' must hold lists of points of three numbers each"):
        check(open_point_set(str(tmp_path / "a.parquet")))


def test_a_set_without_rows_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", points=np.zeros((0, 9, 3)))
    with pytest.raises(InputError, match=r"no row to train on \(0 rows"):
        check(open_point_set(str(tmp_path / "a.npz")))


def test_a_digest_tells_points_apart(tmp_path):
    clouds = RANDOM.normal(size=(70, 6, 3))
    digests = []
    for change in (0, 0, 1e-3):
        np.savez(tmp_path / "a.npz", points=clouds + change * (np.arange(70) == 69)[:, None, None])
        digests.append(check(open_point_set(str(tmp_path / "a.npz")))[2])
    cut_elsewhere = [clouds.reshape(-1, 3)[first : first + 7] for first in range(0, 420, 7)]
    build_dataset({"points": cut_elsewhere}).save_to_disk(str(tmp_path / "cut"))
    digests.append(check(open_point_set(str(tmp_path / "cut")))[2])
    assert digests[0] == digests[1] and len(set(digests)) == 3


# Damaged files -------------------------------------------------------------------------------------------------------


def save_h5(path):
    with h5py.File(path, "w") as file:
        file["data"] = CLOUDS
        file.create_dataset("seg", data=np.zeros(CLOUDS.shape[:2], int), compression="gzip")


CLOUDS = RANDOM.normal(size=(30, 20, 3)).astype(np.float32)
ROWS = build_dataset({"points": CLOUDS, "label": np.arange(30)})
RAGGED = build_dataset({"points": [cloud[row // 3 :] for row, cloud in enumerate(CLOUDS)]})
SEEDS = {
    "a.npz": lambda path: np.savez(path, points=CLOUDS, label=np.arange(30)),
    "packed.npz": lambda path: np.savez_compressed(path, points=CLOUDS, split=["train"] * 30),
    "a.h5": save_h5,
    "a.parquet": lambda path: ROWS.to_parquet(str(path)),
    "disk": lambda path: RAGGED.save_to_disk(str(path)),
}


def open_and_check(path, streaming=False):
    point_set = open_point_set(str(path), streaming=streaming, min_points=5)
    if not streaming:
        point_set = check(point_set, skip_bad=True)[0]
    return [point_set.read([row]) for row in range(len(point_set))]


def damage(path, draw):
    """Flip bits of a file, cut it, or insert or overwrite bytes."""
    data = bytearray(path.read_bytes())
    start, way = draw.randrange(len(data)), draw.randrange(4)
    if way == 0:
        data[start] ^= 1 << draw.randrange(8)
    elif way == 1:
        del data[start:]
    elif way == 2:
        data[start:start] = draw.randbytes(draw.randrange(1, 200))
    else:
        start = draw.randrange(min(160, len(data)))
        data[start : start + 4] = draw.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1)).to_bytes(4, "little")
    path.write_bytes(data)


@pytest.mark.parametrize("ends", [[0, 9999, 8], [0, 5, 3, 8]])
def test_offsets_that_point_elsewhere_are_not_followed(ends):
    points = pa.ListArray.from_arrays(np.arange(0, 25, 3, dtype=np.int32), pa.array(np.arange(24.0)))
    offsets = pa.array(ends, pa.int32()).buffers()[1]
    rows = pa.ListArray.from_buffers(pa.list_(points.type), len(ends) - 1, [None, offsets], children=[points])
    with pytest.raises(InputError, match="^a set: damaged [^\n]*$"):
        check_offsets(pa.table({"points": rows}), "a set")


class TooSlow(BaseException):
    pass


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*SEEDS, "stream"])
def test_damaged_sets_are_read_or_refused(tmp_path, name, count):
    streaming, name = name == "stream", "a.parquet" if name == "stream" else name
    draw, refused = random.Random(0), 0
    for number in range(count):
        path = tmp_path / f"{number}_{name}"
        SEEDS[name](path)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        damage(draw.choice(files), draw)
        try:
            with limited_memory():
                open_and_check(path, streaming)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert refused > count / 4


@pytest.mark.parametrize("name", [*SEEDS, "stream"])
@pytest.mark.parametrize("share", [0, 0.5, 0.98])
def test_truncated_sets_are_refused(tmp_path, name, share):
    streaming, name = name == "stream", "a.parquet" if name == "stream" else name
    SEEDS[name](tmp_path / name)
    path = next((tmp_path / name).glob("*.arrow")) if name == "disk" else tmp_path / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=f"^{tmp_path / name}[^\n]*$"):
        open_and_check(tmp_path / name, streaming)
