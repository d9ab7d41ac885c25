"""ScanNet with boxes for `prepare_data.py`, from the arrays that VoteNet's preparation writes."""

from pathlib import Path

import numpy as np

from act_training.prepare.objects import Choices, Item, Plan, Row, find_root, read_list, read_matrix

SCANS, LISTS = "scannet_train_detection_data", "meta_data"
# The classes that are detected, by their number in NYU40.
BOX_CLASSES = {
    3: "cabinet", 4: "bed", 5: "chair", 6: "sofa", 7: "table", 8: "door", 9: "window", 10: "bookshelf", 11: "picture",
    12: "counter", 14: "desk", 16: "curtain", 24: "refrigerator", 28: "shower curtain", 33: "toilet", 34: "sink",
    36: "bathtub", 39: "garbage bin",
}  # fmt: skip


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
