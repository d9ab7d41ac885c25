"""S3DIS for `prepare_data.py`: rooms, cut into blocks of one square metre."""

import re
from pathlib import Path

import numpy as np

from act_training.data.schema import BLOCK_SIZE
from act_training.prepare.objects import Choices, Item, Plan, Row, read_matrix
from modeling_act.errors import InputError

SCENE_CLASSES = [
    "ceiling", "floor", "wall", "beam", "column", "window", "door",
    "table", "chair", "sofa", "bookcase", "board", "clutter",
]  # fmt: skip
MIN_POINTS = 100  # the authors' preparation drops smaller blocks


def plan_s3dis(raw: Path, choices: Choices) -> Plan:
    """Plan rooms stored as folders of annotated objects, or as arrays of x y z r g b label."""
    places = {file.stem: file for file in sorted(raw.rglob("Area_*.npy"))}
    places = places or {"_".join(place.parts[-3:-1]): place for place in sorted(raw.rglob("Annotations"))}
    rooms = {}
    for name, place in places.items():
        if match := re.fullmatch(r"(Area_(\d+))_(.+)", name):
            rooms[f"{match[1]}/{match[3]}"] = (int(match[2]), place)
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
    return Plan(splits, read_room, about, {"part_names": SCENE_CLASSES}, choices.num_points, items_per_shard=1)


def read_room(item: Item, choices: Choices) -> list[Row]:
    """Read a room and cut it into blocks, one row each."""
    place = Path(item.file)
    room = _read_annotations(place) if place.is_dir() else read_matrix(place, "x y z r g b label", 7)
    if not len(room):
        raise InputError(f"{place}: holds no points")
    points = room[:, :3] - room[:, :3].min(axis=0)
    last = np.maximum(np.ceil(points[:, :2].max(axis=0) / BLOCK_SIZE) - 1, 0)
    blocks = np.minimum(np.floor(points[:, :2] / BLOCK_SIZE), last).astype(np.int64)
    corners, block_of_point = np.unique(blocks, axis=0, return_inverse=True)
    rows = []
    for number, (x, y) in enumerate(corners):
        members = np.flatnonzero(block_of_point.reshape(-1) == number)
        if len(members) >= MIN_POINTS:
            middle = np.array([(x + 0.5) * BLOCK_SIZE, (y + 0.5) * BLOCK_SIZE, 0])
            columns = {"points": points[members] - middle, "colors": room[members, 3:6] / 255}
            columns["point_labels"] = room[members, 6].astype(np.int64)
            rows.append(columns | {"name": f"{item.name}/{x}_{y}"})
    return rows


def _read_annotations(folder: Path) -> np.ndarray:
    parts = [np.empty((0, 7))]
    for file in sorted(folder.glob("*.txt")):
        kind = file.stem.split("_")[0]
        label = SCENE_CLASSES.index(kind if kind in SCENE_CLASSES else "clutter")
        parts.append(np.insert(read_matrix(file, "x y z r g b", 6), 6, label, axis=1))
    return np.concatenate(parts)
