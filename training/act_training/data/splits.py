"""Validation rows held out of the training split, for each kind of label."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from act_training.data.point_sets import PointSet


@dataclass(frozen=True)
class LabelColumn:
    """Column to learn, and the function that splits its set into train and validation rows."""

    column: str
    hold_out: Callable[[PointSet, float, int], tuple[np.ndarray, np.ndarray]]  # of (point_set, share, seed)
    repeats_points: bool = False  # True if a cloud with fewer points than the groups need is no bad row


def hold_out_any(point_set: PointSet, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off a random share of all rows. Returns train and validation rows."""
    order = np.random.default_rng([seed, 1]).permutation(len(point_set))
    count = min(len(point_set) - 1, max(1, round(share * len(point_set))))
    return np.sort(order[count:]), np.sort(order[:count])


def hold_out_by_class(point_set: PointSet, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off the same share of each class. Returns train and validation rows."""
    return split_rows(point_set.labels(), share, seed)


def split_rows(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off about `share` of each class, at least one row of each class of two or more.

    Returns train and validation rows.
    """
    random, held_out = np.random.default_rng([seed, 7]), []
    for label in np.unique(labels):
        rows = random.permutation((labels == label).nonzero()[0])
        held_out.append(rows[: max(1, round(share * len(rows)))] if len(rows) > 1 else rows[:0])
    held_out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out
