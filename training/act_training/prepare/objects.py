"""Published sets of objects in their original formats: the files of each split, and a reader for one of them.

A `Plan` comes from listings alone; `prepare_splits` reads its items later, in other processes.
"""

import io
import json
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from act_training.data.schema import open_h5
from act_training.prepare.splits import split_files
from modeling_act.errors import InputError
from modeling_act.readers.cloud import (
    CLOUD_SUFFIXES,
    check_numbers,
    list_cloud_files,
    read_array,
    read_cloud,
    read_table,
    translate_errors,
)

Row = dict[str, np.ndarray | int | str]

SCANOBJECTNN_CLASSES = [
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door",
    "shelf", "table", "bed", "pillow", "sink", "sofa", "toilet",
]  # fmt: skip
SCANOBJECTNN_FILES = {
    "obj_bg": "main_split/{}_objectdataset.h5",
    "obj_only": "main_split_nobg/{}_objectdataset.h5",
    "pb_t50_rs": "main_split/{}_objectdataset_augmentedrot_scale75.h5",
}
# Parts of each category of ShapeNetPart; their labels count on from one category to the next.
NUM_PARTS = {
    "Airplane": 4, "Bag": 2, "Cap": 2, "Car": 4, "Chair": 4, "Earphone": 3, "Guitar": 3, "Knife": 2,
    "Lamp": 4, "Laptop": 2, "Motorbike": 6, "Mug": 2, "Pistol": 3, "Rocket": 3, "Skateboard": 3, "Table": 3,
}  # fmt: skip
# Point-BERT's few-shot folds are pickles, which are programs: only these parts of them, which build arrays, run.
PICKLE_PARTS = {"multiarray._reconstruct", "multiarray.scalar", "numpy.ndarray", "numpy.dtype", "_codecs.encode"}
SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}
ROWS_PER_ITEM = 256


@dataclass(frozen=True)
class Choices:
    """Flags that, together with the files, decide every value of a set."""

    source: str
    num_points: int | None = None
    variant: str = "pb_t50_rs"
    keep_mask: bool = False
    test_area: int = 5
    way: int = 5
    shot: int = 10
    seed: int = 0
    validation_share: float = 0.0
    test_share: float = 0.0


@dataclass(frozen=True)
class Item:
    """One file, or some rows of one, with the name and label that follow from its place among the others."""

    file: str
    name: str
    label: int | None = None
    rows: tuple[int, int] | None = None


@dataclass
class Plan:
    """Items of each split, the function that reads one, and how to process its rows."""

    splits: dict[str, list[Item]]
    read: Callable[[Item, Choices], list[Row]]
    about: str
    names: dict[str, list[str]] = field(default_factory=dict)
    num_points: int | None = None  # of each cloud after farthest point sampling
    normalize: bool = False
    items_per_shard: int = 64
    ignored: str = ""  # files that are no clouds, such as "2 .jpg"


def find_root(raw: Path, *patterns: str, required: bool = True) -> Path | None:
    """Find the folder that holds a file for each pattern: `raw` or a folder in it."""
    for folder in [raw, *sorted(folder for folder in raw.iterdir() if folder.is_dir())]:
        if all(any(folder.glob(pattern)) for pattern in patterns):
            return folder
    if required:
        raise InputError(f"{raw}: expected {' and '.join(patterns)} in it or in a folder of it; is --raw right?")
    return None


def read_list(path: Path) -> list[str]:
    lines = translate_errors(path, lambda checked: checked.read_text(encoding="utf-8").splitlines())
    names = [line.strip() for line in lines if line.strip()]
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise InputError(f"{path}: names files outside of the set's folder")
    return names


def read_matrix(path: str | Path, what: str, *widths: int) -> np.ndarray:
    """Read a text file or a .npy file with one of the numbers of columns; the first number of them is returned."""
    table = read_array(path) if Path(path).suffix == ".npy" else read_table(path)
    if table.ndim != 2 or table.shape[1] not in widths:
        raise InputError(f"{path}: must hold a table of {what}, got an array of {table.shape}")
    if not np.isfinite(table).all():
        raise InputError(f"{path}: holds numbers that are not finite")
    return table[:, : widths[0]]


def rows_of(columns: dict) -> list[Row]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def plan_shapenet55(raw: Path, choices: Choices) -> Plan:
    root = find_root(raw, "shapenet_pc")
    lists = find_root(root, "train.txt", "test.txt")
    files = {split: read_list(lists / f"{split}.txt") for split in ("train", "test")}
    classes = sorted({name.split("-")[0] for names in files.values() for name in names})

    def item(name: str) -> Item:
        return Item(str(root / "shapenet_pc" / name), name.removesuffix(".npy"), classes.index(name.split("-")[0]))

    splits = {split: [item(name) for name in names] for split, names in files.items()}
    about = (
        "ShapeNet55 as Point-BERT published it: 8192 surface points a shape, classes are ShapeNet's taxonomy. Points "
        "are as on disk: center and scale each cloud after taking the points of a training step, as the paper does."
    )
    return Plan(splits, read_points, about, {"class_names": classes}, num_points=choices.num_points)


def read_points(item: Item, choices: Choices) -> list[Row]:
    return [{"points": read_matrix(item.file, "x y z", 3), "label": item.label, "name": item.name}]


def plan_modelnet40(raw: Path, choices: Choices) -> Plan:
    """Plan the release that `raw` holds: text files with normals, h5 files or meshes."""
    if root := find_root(raw, "modelnet40_shape_names.txt", required=False):
        return _plan_modelnet40_text(root, choices)
    if root := find_root(raw, "shape_names.txt", required=False):
        return _plan_modelnet40_h5(root, choices)
    root = find_root(raw, "*/train/*.off", required=False)
    if root is None:
        releases = "modelnet40_shape_names.txt, shape_names.txt with h5 files, or CLASS/train/*.off"
        raise InputError(f"{raw}: expected {releases}")
    classes = sorted(folder.name for folder in root.iterdir() if (folder / "train").is_dir())
    splits = {"train": [], "test": []}
    for split, items in splits.items():
        for label, name in enumerate(classes):
            files = sorted((root / name / split).glob("*.off"))
            items += [Item(str(file), f"{name}/{file.stem}", label) for file in files]
    about = "ModelNet40 from its meshes: points sampled evenly by area, with face normals, in the unit sphere."
    return Plan(splits, read_file, about, {"class_names": classes}, normalize=True)


def _plan_modelnet40_text(root: Path, choices: Choices) -> Plan:
    classes = read_list(root / "modelnet40_shape_names.txt")
    splits = {}
    for split in ("train", "test"):
        listing = root / f"modelnet40_{split}.txt"
        placed = [(name.rpartition("_")[0], name) for name in read_list(listing)]
        if unknown := {kind for kind, _ in placed} - set(classes):
            raise InputError(f"{listing}: unknown class {min(unknown)!r}")
        splits[split] = [
            Item(str(root / kind / f"{name}.txt"), f"{kind}/{name}", classes.index(kind)) for kind, name in placed
        ]
    num_points = choices.num_points or 8192
    about = (
        f"ModelNet40 (normal_resampled, 10,000 points with normals): farthest point sampling to {num_points}, then "
        f"centered and scaled into the unit sphere on those points, as the paper does."
    )
    return Plan(splits, read_text, about, {"class_names": classes}, num_points, normalize=True)


def read_text(item: Item, choices: Choices) -> list[Row]:
    table = read_matrix(item.file, "x y z and a normal", 6)
    return [{"points": table[:, :3], "normals": table[:, 3:], "label": item.label, "name": item.name}]


def _plan_modelnet40_h5(root: Path, choices: Choices) -> Plan:
    splits = {}
    for split in ("train", "test"):
        names = [Path(line).name for line in read_list(root / f"{split}_files.txt")]  # of paths on another disk
        splits[split] = [item for name in names for item in _items_of_h5(root / name)]
    about = "ModelNet40 (ply_hdf5_2048): 2048 points a shape, in the unit sphere as on disk."
    names = {"class_names": read_list(root / "shape_names.txt")}
    return Plan(splits, read_h5, about, names, choices.num_points, items_per_shard=1)


def _items_of_h5(path: Path) -> list[Item]:
    def count(checked: Path) -> int:
        with open_h5(checked) as file:
            return len(file["data"])

    total = translate_errors(path, count)
    ranges = [(start, min(start + ROWS_PER_ITEM, total)) for start in range(0, total, ROWS_PER_ITEM)]
    return [Item(str(path), f"{path.stem}:{rows[0]}", rows=rows) for rows in ranges]


def read_h5(item: Item, choices: Choices) -> list[Row]:
    start, stop = item.rows

    def read(path: Path) -> list[Row]:
        with open_h5(path) as file:
            columns = {"points": file["data"][start:stop], "label": file["label"][start:stop]}
            if "normal" in file:
                columns["normals"] = file["normal"][start:stop]
            if choices.keep_mask:  # -1 is background, anything else a part of the object
                columns["point_labels"] = (file["mask"][start:stop] != -1).astype(np.int64)
        columns["label"] = columns["label"].reshape(-1).astype(np.int64)
        return rows_of(columns | {"name": [f"{path.stem}:{number}" for number in range(start, stop)]})

    return translate_errors(item.file, read)


def plan_scanobjectnn(raw: Path, choices: Choices) -> Plan:
    pattern = SCANOBJECTNN_FILES[choices.variant]
    files = {"train": pattern.format("training"), "test": pattern.format("test")}
    root = find_root(raw, *files.values())
    splits = {split: _items_of_h5(root / file) for split, file in files.items()}
    about = f"ScanObjectNN, {choices.variant}: 2048 points a shape as on disk; the paper does not normalise them."
    names = {"class_names": SCANOBJECTNN_CLASSES}
    if choices.keep_mask:
        names["part_names"] = ["background", "object"]
    return Plan(splits, read_h5, about, names, choices.num_points, items_per_shard=1)


def plan_shapenetpart(raw: Path, choices: Choices) -> Plan:
    root = find_root(raw, "synsetoffset2category.txt", "train_test_split")
    listing = root / "synsetoffset2category.txt"
    folders = {words[1]: words[0] for line in read_list(listing) if len(words := line.split()) == 2}
    if set(folders.values()) != set(NUM_PARTS):
        raise InputError(f"{listing}: must name the 16 categories of ShapeNetPart, got {', '.join(folders.values())}")
    categories = list(NUM_PARTS)
    splits = {}
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        listing = root / "train_test_split" / f"shuffled_{short}_file_list.json"
        entries = translate_errors(listing, lambda path: json.loads(path.read_text(encoding="utf-8")))
        places = [str(entry).split("/")[-2:] for entry in entries]
        if unknown := [place for place in places if len(place) != 2 or place[0] not in folders or ".." in place]:
            raise InputError(f"{listing}: must name files as shape_data/CATEGORY/SHAPE, got {'/'.join(unknown[0])!r}")
        splits[split] = [
            Item(str(root / folder / f"{shape}.txt"), f"{folder}/{shape}", categories.index(folders[folder]))
            for folder, shape in places
        ]
    about = "ShapeNetPart (partanno v0, with normals): points as on disk, some 2,600 a shape; 16 categories, 50 parts."
    parts = [f"{category} {part}" for category, count in NUM_PARTS.items() for part in range(count)]
    return Plan(splits, read_part_text, about, {"category_names": categories, "part_names": parts}, choices.num_points)


def read_part_text(item: Item, choices: Choices) -> list[Row]:
    table = read_matrix(item.file, "x y z, a normal and a part", 7)
    columns = {"points": table[:, :3], "normals": table[:, 3:6], "point_labels": table[:, 6].astype(np.int64)}
    return [columns | {"category": item.label, "name": item.name}]


def plan_folder(raw: Path, choices: Choices) -> Plan:
    """Plan any folder of clouds: subfolders name the split, optionally, and the class if all files are in one. Without
    folders of splits, shares of the files can be held out."""
    files, ignored = list_cloud_files(raw)
    clouds = [file.relative_to(raw) for file in files if not file.name.startswith(".")]
    if not clouds:
        raise InputError(f"{raw}: holds no file with one of the suffixes {', '.join(CLOUD_SUFFIXES)}")
    has_splits = all(len(file.parts) > 1 and file.parts[0].lower() in SPLIT_FOLDERS for file in clouds)
    inner = {file: file.parts[1:] if has_splits else file.parts for file in clouds}
    flat = [file for file, parts in inner.items() if len(parts) == 1]
    has_classes = not flat
    if 0 < len(flat) < len(clouds):
        raise InputError(f"{raw / flat[0]}: lies beside folders of classes; move it into one")
    classes = sorted({parts[0] for parts in inner.values()}) if has_classes else []
    labels = [classes.index(parts[0]) if has_classes else None for parts in inner.values()]
    shares = {"test": choices.test_share, "validation": choices.validation_share}
    if has_splits and any(shares.values()):
        raise InputError(f"{raw}: its folders name the splits; leave out --validation_share and --test_share")
    split_names = [SPLIT_FOLDERS[file.parts[0].lower()] if has_splits else "train" for file in clouds]
    if any(shares.values()):
        numbers = [label or 0 for label in labels]
        split_names = split_files([raw / file for file in clouds], numbers, shares, choices.seed)
    splits: dict[str, list[Item]] = {}
    for file, split, label in zip(clouds, split_names, labels, strict=True):
        splits.setdefault(split, []).append(Item(str(raw / file), file.as_posix(), label))
    about = f"Clouds as in their files; {choices.num_points or 8192} points sampled evenly by area from each mesh."
    names = {"class_names": classes} if classes else {}
    return Plan(splits, read_file, about, names, choices.num_points, ignored=ignored)


def read_file(item: Item, choices: Choices) -> list[Row]:
    """Read any cloud, or sample a mesh with a seed made of its name, so that other files do not change its points."""
    cloud = read_cloud(item.file, choices.num_points, seed=zlib.crc32(item.name.encode()) + choices.seed)
    columns = vars(cloud) | {"label": item.label, "name": item.name}
    return [{name: values for name, values in columns.items() if values is not None}]


def plan_few_shot(raw: Path, choices: Choices) -> Plan:
    """Plan splits fold_0_train, fold_0_test, ... of `--way` classes of `--shot` clouds; each fold labels from 0."""
    names = (f"{choices.way}way{choices.shot}shot", f"{choices.way}way_{choices.shot}shot")
    files = [file for name in names for file in (raw / name).glob("*.pkl")]
    if not files:
        advice = "few_shot.py samples folds of other sets itself"
        raise InputError(f"{raw}: expected the folder {names[0]} of pickled folds; {advice}")
    files = sorted(files, key=lambda file: (len(file.stem), file.stem))
    splits = {f"fold_{file.stem}_{part}": [Item(str(file), part)] for file in files for part in ("train", "test")}
    about = f"Few-shot ModelNet40, {choices.way} way {choices.shot} shot: Point-BERT's folds, each in the unit sphere."
    return Plan(splits, read_fold, about, num_points=choices.num_points, normalize=True, items_per_shard=1)


def read_fold(item: Item, choices: Choices) -> list[Row]:
    """Read the train or the test clouds of a fold: a dict of lists of (points, label in the fold, class)."""

    def read(path: Path) -> list[Row]:
        entries = enumerate(ArrayUnpickler(io.BytesIO(path.read_bytes())).load()[item.name])
        return [
            {
                "points": check_numbers(points)[:, :3],
                "label": int(label),
                "name": f"{path.stem}/{item.name}/{number} (class {original})",
            }
            for number, (points, label, original) in entries
        ]

    return translate_errors(item.file, read)


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler of numpy arrays, numbers, strings, lists, tuples and dicts that refuses everything else."""

    def find_class(self, module: str, name: str):
        if f"{module}.{name}".removeprefix("numpy.core.").removeprefix("numpy._core.") not in PICKLE_PARTS:
            raise InputError(f"is a pickle that asks for {module}.{name}, which is not read")
        return super().find_class(module, name)
