"""S3DIS for `prepare_data.py`: rooms, cut into blocks of one square metre."""

import re
from pathlib import Path

import numpy as np

from act_training.data.schema import BLOCK_SIZE
from act_training.prepare.objects import Choices, Item, Plan, Row
from modeling_act.errors import InputError
from modeling_act.readers.cloud import read_array, read_table

SCENE_CLASSES = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door",
    "table", "chair", "sofa", "bookcase", "board", "clutter",
)  # fmt: skip
MIN_POINTS = 100  # the authors' preparation drops smaller blocks


def plan_s3dis(raw: Path, choices: Choices) -> Plan:
    """Plan rooms stored as folders of annotated objects, or as arrays of x y z r g b label."""
    rooms = {}
    for file in sorted(raw.rglob("Area_*.npy")):
        match = re.fullmatch(r"(Area_(\d+))_(.+)", file.stem)
        if match:
            rooms[f"{match[1]}/{match[3]}"] = (int(match[2]), file)
    for folder in [] if rooms else sorted(raw.rglob("Annotations")):
        match = re.fullmatch(r"Area_(\d+)", folder.parent.parent.name)
        if match and folder.is_dir():
            rooms[f"{match[0]}/{folder.parent.name}"] = (int(match[1]), folder)
    if not rooms:
        raise InputError(f"{raw}: expected Area_N/ROOM/Annotations/*.txt or Area_N_ROOM.npy; is --raw right?")
    splits: dict[str, list[Item]] = {"train": [], "test": []}
    for name, (area, place) in rooms.items():
        splits["test" if area == choices.test_area else "train"].append(Item(str(place), name))
    if not splits["test"]:
        areas = sorted({area for area, _ in rooms.values()})
        raise InputError(f"--test_area {choices.test_area} is not there; there are {', '.join(map(str, areas))}")
    about = (
        f"S3DIS in blocks of 1 m by 1 m that do not overlap, of at least {MIN_POINTS} points, all points of each: "
        f"x and y from the middle of the block, z from the lowest point of the room, in metres, not scaled. Area "
        f"{choices.test_area} is the test split. Points of unlisted classes count as clutter."
    )
    return Plan(splits, read_room, about, {"part_names": list(SCENE_CLASSES)}, choices.num_points, items_per_shard=1)


def read_room(item: Item, choices: Choices) -> list[Row]:
    """Read a room and cut it into blocks, one row each."""
    place = Path(item.file)
    room = _read_annotations(place) if place.is_dir() else read_array(place)
    if room.ndim != 2 or room.shape[1] != 7 or not len(room):
        raise InputError(f"{place}: must hold a table of x y z r g b label, got an array of {room.shape}")
    if not np.isfinite(room).all():
        raise InputError(f"{place}: holds numbers that are not finite")
    points = room[:, :3] - room[:, :3].min(axis=0)
    last = np.maximum(np.ceil(points[:, :2].max(axis=0) / BLOCK_SIZE) - 1, 0)
    blocks = np.minimum(np.floor(points[:, :2] / BLOCK_SIZE), last).astype(np.int64)
    order = np.lexsort((blocks[:, 1], blocks[:, 0]))
    starts = np.flatnonzero(np.any(np.diff(blocks[order], axis=0, prepend=-1), axis=1))
    rows = []
    for members in np.split(order, starts[1:]):
        if len(members) < MIN_POINTS:
            continue
        x, y = blocks[members[0]]
        middle = np.array([(x + 0.5) * BLOCK_SIZE, (y + 0.5) * BLOCK_SIZE, 0])
        rows.append(
            {
                "points": points[members] - middle,
                "colors": room[members, 3:6] / 255,
                "point_labels": room[members, 6].astype(np.int64),
                "name": f"{item.name}/{x}_{y}",
            }
        )
    return rows


def _read_annotations(folder: Path) -> np.ndarray:
    parts = []
    for file in sorted(folder.glob("*.txt")):
        kind = file.stem.split("_")[0]
        table = read_table(file)
        if table.shape[1] != 6:
            raise InputError(f"{file}: must hold 6 columns, x y z r g b, got {table.shape[1]}")
        label = SCENE_CLASSES.index(kind if kind in SCENE_CLASSES else "clutter")
        parts.append(np.column_stack([table, np.full(len(table), label)]))
    if not parts:
        raise InputError(f"{folder}: holds no annotated objects")
    return np.concatenate(parts)
