"""Scenes for `prepare_data.py`: S3DIS in blocks of one square metre, and ScanNet with boxes, from VoteNet's arrays."""

import re
from pathlib import Path

import numpy as np

from act_training.data.schema import BLOCK_SIZE
from act_training.prepare.objects import Choices, Item, Plan, Row, find_root, read_list, read_matrix
from modeling_act.errors import InputError

SCENE_CLASSES = [
    "ceiling", "floor", "wall", "beam", "column", "window", "door",
    "table", "chair", "sofa", "bookcase", "board", "clutter",
]  # fmt: skip
MIN_POINTS = 100  # the authors' preparation drops smaller blocks
SCANS, LISTS = "scannet_train_detection_data", "meta_data"
# The classes that are detected, by their number in NYU40.
BOX_CLASSES = {
    3: "cabinet", 4: "bed", 5: "chair", 6: "sofa", 7: "table", 8: "door", 9: "window", 10: "bookshelf", 11: "picture",
    12: "counter", 14: "desk", 16: "curtain", 24: "refrigerator", 28: "shower curtain", 33: "toilet", 34: "sink",
    36: "bathtub", 39: "garbage bin",
}  # fmt: skip


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


def plan_scannet(raw: Path, choices: Choices) -> Plan:
    root = find_root(raw, SCANS, f"{LISTS}/scannetv2_train.txt", f"{LISTS}/scannetv2_val.txt")
    splits = {}
    for split, short in (("train", "train"), ("validation", "val")):
        names = read_list(root / LISTS / f"scannetv2_{short}.txt")
        splits[split] = [Item(str(root / SCANS / f"{name}_vert.npy"), name) for name in names]
    about = (
        "ScanNetV2 for the detection of 18 classes: points of whole scans in metres, z up, as VoteNet's preparation "
        "aligned and thinned them, and an axis-aligned box around each object of these classes. Results are reported "
        "on the validation split; the test split has no boxes."
    )
    names = {"box_names": list(BOX_CLASSES.values())}
    return Plan(splits, read_scan, about, names, choices.num_points, items_per_shard=16)


def read_scan(item: Item, choices: Choices) -> list[Row]:
    file = Path(item.file)
    # Some copies of the set have one more column, the number of the object.
    points = read_matrix(file, "x y z r g b", 6, 7)
    boxes = read_matrix(file.with_name(f"{item.name}_bbox.npy"), "center, size and class", 7, 8)
    numbers = list(BOX_CLASSES)
    boxes = boxes[np.isin(boxes[:, 6].astype(np.int64), numbers)]
    labels = np.searchsorted(numbers, boxes[:, 6].astype(np.int64))
    boxes[:, 6] = 0  # the angle
    columns = {"points": points[:, :3], "colors": points[:, 3:] / 255, "boxes": boxes, "box_labels": labels}
    return [columns | {"name": item.name}]
