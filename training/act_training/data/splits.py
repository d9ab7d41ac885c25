"""Which rows are held out of train: the column to learn, and how its rows are divided."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from act_training.data.point_sets import PointSet


@dataclass(frozen=True)
class LabelColumn:
    """The column to learn, and how rows are held out of train: (rows, share, seed) -> kept and held out."""

    column: str
    hold_out: Callable[[PointSet, float, int], tuple[np.ndarray, np.ndarray]]
    repeats_points: bool = False  # in clouds with fewer than the groups need, which else are bad rows


def hold_out_any(point_set: PointSet, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows kept and held out, drawn from all."""
    order = np.random.default_rng([seed, 1]).permutation(len(point_set))
    count = min(len(point_set) - 1, max(1, round(share * len(point_set))))
    return np.sort(order[count:]), np.sort(order[:count])


def hold_out_by_class(point_set: PointSet, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same share of each class."""
    return split_rows(point_set.labels(), share, seed)


def split_rows(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows kept and held out, the latter about `share` of each class, at least one of each class of two or more."""
    random, held_out = np.random.default_rng([seed, 7]), []
    for label in np.unique(labels):
        rows = random.permutation((labels == label).nonzero()[0])
        held_out.append(rows[: max(1, round(share * len(rows)))] if len(rows) > 1 else rows[:0])
    held_out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out
