"""Sets in one file of arrays, npz or h5, named like the columns of published sets."""

import itertools
from pathlib import Path

import numpy as np
from datasets import Dataset

from act_training.data.schema import ALIASES, build_dataset, find_columns
from modeling_act.errors import InputError
from modeling_act.readers.cloud import translate_errors

NAMES = ("class_names", "part_names", "category_names")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive if name in _array_names()}


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise InputError("reading h5 needs h5py; pip install h5py") from error
    arrays = {}
    with h5py.File(path, "r") as file:
        for name in file.keys() & _array_names():
            entry = file[name]
            if not isinstance(entry, h5py.Dataset):
                continue
            arrays[name] = (entry.asstr() if h5py.check_string_dtype(entry.dtype) else entry)[()]
    return arrays


READERS = {".npz": _read_npz, ".h5": _read_h5, ".hdf5": _read_h5}
ARRAY_SUFFIXES = tuple(READERS)


def _array_names() -> set[str]:
    columns = ALIASES.keys() - {"boxes", "box_labels"}  # of which a cloud has any number, and an array has not
    return {*itertools.chain(*(ALIASES[column] for column in columns)), *NAMES, "split"}


def read_array_set(path: Path) -> dict[str, Dataset]:
    """The splits of an npz or h5 file; without a `split` array all of it is "train"."""
    if path.suffix not in READERS:
        raise InputError(f"{path}: a set is a folder, or a .parquet, .npz or .h5 file")
    return translate_errors(path, lambda checked: _split_arrays(READERS[path.suffix](checked)))


def _split_arrays(arrays: dict[str, np.ndarray]) -> dict[str, Dataset]:
    """Sets from arrays named like columns, with `split`, `class_names`, `part_names` beside them if they like."""
    found = find_columns(list(arrays), "arrays")
    columns = {column: arrays[name] for column, name in found.items()}
    names = {name: arrays[name].astype(str).reshape(-1).tolist() for name in NAMES if name in arrays}
    points = columns["points"]
    if points.ndim != 3 or points.shape[2] != 3 or points.dtype.kind not in "fiu":
        raise InputError(
            f"{found['points']!r} must be numbers of shape (clouds, points, 3), got {points.dtype} of shape "
            f"{points.shape}"
        )
    for column, values in columns.items():
        expected = points.shape[: 2 if column == "point_labels" else 1]
        columns[column] = values = values if column in ("points", "point_labels") else values.reshape(-1)
        if values.shape[: len(expected)] != expected:
            raise InputError(f"{found[column]!r} must have the shape {expected} for these points, got {values.shape}")
        if column != "points" and values.dtype.kind not in "iu":
            if column == "label" and values.dtype.kind in "USO":
                names["class_names"], columns[column] = _number(values)
            else:
                raise InputError(f"{found[column]!r} must be whole numbers, got {values.dtype}")
    split = arrays.get("split", np.full(len(points), "train")).astype(str)
    if split.shape != (len(points),):
        raise InputError(f"'split' must name the split of each of the {len(points)} clouds, got {split.shape}")
    return {
        name: build_dataset({column: values[split == name] for column, values in columns.items()}, **names)
        for name in dict.fromkeys(split.tolist() or ["train"])
    }


def _number(words: np.ndarray) -> tuple[list[str], np.ndarray]:
    names, numbers = np.unique(words.astype(str), return_inverse=True)
    return names.tolist(), numbers
