"""Sets in one npz or h5 file, with arrays named like the columns of published sets."""

from pathlib import Path

import numpy as np
from datasets import Dataset

from act_training.data.schema import ALIASES, build_dataset, find_columns
from modeling_act.errors import InputError
from modeling_act.readers.cloud import translate_errors

ARRAY_SUFFIXES = (".npz", ".h5", ".hdf5")
NAMES = ("class_names", "part_names", "category_names")


def open_h5(path: Path):
    """Open an h5 file for reading."""
    try:
        import h5py
    except ImportError as error:
        raise InputError("reading h5 files needs h5py: pip install h5py") from error
    return h5py.File(path, "r")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file that a set can have; a cloud has any number of boxes, which no array can hold."""
    wanted = {"split", *NAMES}.union(*(ALIASES[column] for column in ALIASES if "box" not in column))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in wanted}
    with open_h5(path) as file:
        entries = {name: file[name] for name in file.keys() & wanted if hasattr(file[name], "dtype")}
        return {name: (entry.asstr() if entry.dtype.kind in "OS" else entry)[()] for name, entry in entries.items()}


def read_array_set(path: Path) -> dict[str, Dataset]:
    """Read the splits of an npz or h5 file; without an array `split` all of it is "train"."""
    if path.suffix not in ARRAY_SUFFIXES:
        raise InputError(f"{path}: a set is a folder, or a .parquet, .npz or .h5 file")
    return translate_errors(path, lambda checked: _split_arrays(read_arrays(checked)))


def _split_arrays(arrays: dict[str, np.ndarray]) -> dict[str, Dataset]:
    aliases = find_columns(list(arrays), "arrays")
    columns = {column: arrays[name] for column, name in aliases.items()}
    names = {name: arrays[name].astype(str).reshape(-1).tolist() for name in NAMES if name in arrays}
    points = columns["points"]
    if points.ndim != 3 or points.shape[2] != 3 or points.dtype.kind not in "fiu":
        raise InputError(
            f"{aliases['points']!r} must be numbers of shape (clouds, points, 3), got {points.dtype} of shape "
            f"{points.shape}"
        )
    for column, alias in aliases.items():
        if column == "points":
            continue
        expected = points.shape[: 2 if column == "point_labels" else 1]
        columns[column] = values = columns[column] if column == "point_labels" else columns[column].reshape(-1)
        if values.shape[: len(expected)] != expected:
            raise InputError(f"{alias!r} must have the shape {expected} for these points, got {values.shape}")
        if column == "label" and values.dtype.kind in "USO":
            words, columns[column] = np.unique(values.astype(str), return_inverse=True)
            names["class_names"] = words.tolist()
        elif values.dtype.kind not in "iu":
            raise InputError(f"{alias!r} must be whole numbers, got {values.dtype}")
    split = arrays.get("split", np.full(len(points), "train")).astype(str)
    if split.shape != (len(points),):
        raise InputError(f"'split' must name the split of each of the {len(points)} clouds, got {split.shape}")
    return {
        name: build_dataset({column: values[split == name] for column, values in columns.items()}, **names)
        for name in dict.fromkeys(split.tolist() or ["train"])
    }
