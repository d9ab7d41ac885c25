"""Splits of a folder that has none: the same share of each class, and copies of a shape on one side."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def split_files(files: Sequence[Path], labels: Sequence[int], shares: dict[str, float], seed: int) -> np.ndarray:
    """Return the name of the split of each file: one of `shares`, or train. A class keeps at least one shape to train
    on, and gives at least one to each split, in order, while it has more."""
    shapes = group_copies(files)
    first_of_shape = np.unique(shapes, return_index=True)[1]
    sizes, label_of_shape = np.bincount(shapes), np.asarray(labels)[first_of_shape]
    random, split_of_shape = np.random.default_rng([seed, 9]), np.full(len(sizes), "train", dtype=object)
    for label in np.unique(label_of_shape):
        waiting = random.permutation(np.flatnonzero(label_of_shape == label)).tolist()
        count = sizes[waiting].sum()
        for split, share in shares.items():
            missing = max(1, round(share * count)) if share else 0
            for shape in list(waiting):
                if sizes[shape] <= missing and len(waiting) > 1:
                    waiting.remove(shape)
                    split_of_shape[shape] = split
                    missing -= sizes[shape]
    return split_of_shape[shapes]


def group_copies(files: Sequence[Path]) -> np.ndarray:
    """Number the shapes (files,). Files are of one shape if their contents are equal, or if they lie in one folder and
    their names differ in the suffix alone."""
    shape_of: dict[object, int] = {}
    numbers = np.arange(len(files))
    for number, file in enumerate(files):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "blake2b").digest()
        for key in (digest, file.with_suffix("")):
            first = shape_of.setdefault(key, number)
            if numbers[first] != numbers[number]:
                numbers[numbers == numbers[number]] = numbers[first]
    return np.unique(numbers, return_inverse=True)[1]
