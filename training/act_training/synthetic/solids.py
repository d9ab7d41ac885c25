"""Solids put together: points on their common surface, with cuts, and deformations of points."""

import numpy as np

from act_training.synthetic.shape_kit import (
    BALL,
    BOX,
    CONE,
    CYLINDER,
    Surface,
    log_uniform,
    pick,
    sample_triangles,
    triangles_of_surfaces,
)

Generator = np.random.Generator
WEDGE = BOX * (1, 1, 1)
WEDGE[WEDGE[..., 1] > 0, 2] = -0.5  # the top's front edge moves back
# Insides of solids of unit size, as their surfaces stand in everyday_shapes, for points (points, 3).
INSIDES = {
    "box": (BOX, lambda p: np.abs(p).max(1) < 0.5),
    "cylinder": (CYLINDER, lambda p: (np.hypot(p[:, 0], p[:, 2]) < 0.5) & (np.abs(p[:, 1]) < 0.5)),
    "ball": (BALL, lambda p: np.square(p).sum(1) < 0.25),
    "cone": (CONE - (0, 0.5, 0), lambda p: (np.hypot(p[:, 0], p[:, 2]) < 0.25 - p[:, 1] / 2) & (p[:, 1] > -0.5)),
    "wedge": (WEDGE, lambda p: (np.abs(p).max(1) < 0.5) & (p[:, 1] + p[:, 2] < 0)),
}
SOLIDS = list(INSIDES)


def composition(rng: Generator, num_points: int) -> np.ndarray:
    """Points (num_points, 3) on random solids put together, mirrored or cut."""
    solids, center, size = [], np.zeros(3), log_uniform(rng, 0.3, 1.2, 3)
    for _ in range(rng.integers(1, 8)):
        solids.append((INSIDES[pick(rng, *SOLIDS)], center, size, rng.permutation(3), 1))
        _, base, old, _, _ = solids[rng.integers(len(solids))]
        size, axis = log_uniform(rng, 0.15, 1.0, 3), rng.integers(3)
        center = base + rng.uniform(-0.3, 0.3, 3) * old
        center[axis] = base[axis] + pick(rng, 1, -1) * (old[axis] + 0.8 * size[axis]) / 2  # it touches one before
    if mirror := rng.random() < 0.4:
        solids += [(kind, at * (-1, 1, 1), size, order, sign) for kind, at, size, order, sign in solids[1:]]
    for _ in range(rng.integers(0, 4) if not mirror else 0):
        kind, at, size = pick(rng, "box", "cylinder", "cylinder", "ball"), *(solids[rng.integers(len(solids))][1:3])
        cut = size * rng.uniform(0.3, 0.7, 3)
        cut[rng.integers(3)] *= 5  # through and through
        order = np.roll(np.arange(3), cut.argmax() - 1) if kind == "cylinder" else np.arange(3)
        solids.append((INSIDES[kind], at + rng.uniform(-0.5, 0.5, 3) * size, cut, order, -1))
    return sample_solids(solids, num_points, rng)


def sample_solids(solids: list[tuple], num_points: int, rng: Generator) -> np.ndarray:
    """Points (num_points, 3) on solids, without what lies inside another; those of sign -1 are cut out of the others.

    A solid is an entry of INSIDES, center, size, order of axes and sign.
    """
    triangles = triangles_of_surfaces([place(kind[0], *where) for kind, *where, _ in solids])
    owner = np.repeat(np.arange(len(solids)), [len(triangles_of_surfaces([kind[0]])) for kind, *_ in solids])
    points, chosen = sample_triangles(triangles, 6 * num_points, rng)
    inside = np.stack([kind[1](local(points, *where)) for kind, *where, _ in solids])
    signs, own = np.array([solid[-1] for solid in solids]), owner[chosen]
    inside[own, np.arange(len(points))] = False
    in_cut, in_solid = inside[signs < 0].any(0), inside[signs > 0].any(0)
    points = points[~in_cut & (in_solid == (signs[own] < 0))]
    return points[:num_points] if len(points) >= num_points else points[rng.integers(len(points), size=num_points)]


def place(surface: Surface, center: np.ndarray, size: np.ndarray, order: np.ndarray) -> Surface:
    """Put a surface of unit size somewhere, with its axes in another order."""
    return surface[..., order] * size + center


def local(points: np.ndarray, center: np.ndarray, size: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Points where `place` would have them from."""
    return ((points - center) / size)[:, np.argsort(order)]


def deform(rng: Generator, points: np.ndarray) -> np.ndarray:
    """Taper, twist, bend or dent points (points, 3) of the unit sphere."""
    x, y, z = points.T
    kind, strength = rng.integers(4), rng.uniform(0.3, 1.0)
    if kind == 0:
        return points * np.stack([1 + strength * y * 0.7, np.ones_like(y), 1 + strength * y * 0.7], axis=1)
    if kind == 1:
        cos, sin = np.cos(strength * 2 * y), np.sin(strength * 2 * y)
        return np.stack([cos * x - sin * z, y, sin * x + cos * z], axis=1)
    if kind == 2:
        angle = strength * y
        return np.stack([(x + 1.5) * np.cos(angle) - 1.5, (x + 1.5) * np.sin(angle), z], axis=1)
    waves = rng.normal(size=(6, 3)) * rng.uniform(1, 4)
    offsets = np.sin(points @ waves.T + rng.uniform(0, 6, 6)) @ rng.normal(size=(6, 3))
    return points + 0.04 * strength * offsets
