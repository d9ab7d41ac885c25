"""ScanNet with boxes for `prepare_data.py`, from the arrays that VoteNet's preparation writes."""

from pathlib import Path

import numpy as np

from act_training.prepare.objects import Choices, Item, Plan, Row, need_root, read_list
from modeling_act.errors import InputError
from modeling_act.readers.cloud import read_array

SCANS, LISTS = "scannet_train_detection_data", "meta_data"
# The classes that are detected, by their number in NYU40.
BOX_CLASSES = {
    3: "cabinet", 4: "bed", 5: "chair", 6: "sofa", 7: "table", 8: "door", 9: "window", 10: "bookshelf", 11: "picture",
    12: "counter", 14: "desk", 16: "curtain", 24: "refrigerator", 28: "shower curtain", 33: "toilet", 34: "sink",
    36: "bathtub", 39: "garbage bin",
}  # fmt: skip


def plan_scannet(raw: Path, choices: Choices) -> Plan:
    root = need_root(raw, SCANS, f"{LISTS}/scannetv2_train.txt", f"{LISTS}/scannetv2_val.txt")
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
    points = read_table(file, 6, "x y z r g b")
    boxes = read_table(file.with_name(f"{item.name}_bbox.npy"), 7, "center, size and class")
    numbers = boxes[:, 6].astype(np.int64)
    boxes, numbers = (values[np.isin(numbers, list(BOX_CLASSES))] for values in (boxes, numbers))
    return [
        {
            "points": points[:, :3],
            "colors": points[:, 3:] / 255,
            "boxes": np.concatenate([boxes[:, :6], np.zeros((len(boxes), 1))], axis=1),
            "box_labels": np.searchsorted(list(BOX_CLASSES), numbers),
            "name": item.name,
        }
    ]


def read_table(path: Path, width: int, what: str) -> np.ndarray:
    """Read the first columns of an array; some copies of the set have one more, the number of the object."""
    values = read_array(path)
    if values.ndim != 2 or values.shape[1] < width:
        raise InputError(f"{path}: must hold a table of {what}, got an array of {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds numbers that are not finite")
    return values[:, :width]
