"""Surfaces of simple solids, how they are put together, and points on them.

A surface is a grid of corners (rows, columns, 3) whose cells are pairs of triangles. y is up.
"""

from functools import lru_cache
from typing import Any

import numpy as np

Surface = np.ndarray

X, Y, Z = range(3)
ANGLES = np.linspace(0.0, 2.0 * np.pi, 21)
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
HALF_CIRCLE = np.concatenate([CIRCLE[:11], CIRCLE[:1]])
SQUARE = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1), (1, 1)], dtype=float)
PRISM = np.array([(0, -0.5), (1, -0.5), (1, 0.5), (0, 0.5)])  # a profile for `lathe`


def lathe(profile: Any, section: np.ndarray = CIRCLE) -> Surface:
    """Sweep a cross-section along the y axis; `profile` has (scale, height) rows, where scale 0 closes the surface."""
    scale, height = np.array(profile, dtype=float).T[..., None]
    return np.stack([scale * section[:, 0], height + 0 * section[:, 0], scale * section[:, 1]], axis=-1)


def rotate(surface: Surface, axis: int, angle: float) -> Surface:
    """Rotate about an axis through the origin: from y to z about x, from z to x about y, from x to y about z."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotated = surface.copy()
    rotated[..., first] = np.cos(angle) * surface[..., first] - np.sin(angle) * surface[..., second]
    rotated[..., second] = np.sin(angle) * surface[..., first] + np.cos(angle) * surface[..., second]
    return rotated


# Centered, of unit size, to be placed as surface * size + center; dome and cone start at y = 0 and are open below.
BOX, CYLINDER = lathe(PRISM * (0.5, 1), SQUARE), lathe(PRISM * (0.5, 1))
BALL = lathe(0.5 * CIRCLE[5:16] * (-1, -1))
DOME, CONE = lathe(CIRCLE[:6] * (0.5, 1)), lathe([(0.5, 0), (0, 1)])
CYLINDER_ALONG_X, CYLINDER_ALONG_Z = rotate(CYLINDER, Z, np.pi / 2), rotate(CYLINDER, X, np.pi / 2)


def tube(path: Any, radius: Any, section: np.ndarray = CIRCLE) -> Surface:
    """Closed tube along a path (points, 3), with one radius or one per point; rings contain the path's least axis."""
    path = np.array(path, dtype=float)
    axis = np.ptp(path, axis=0).argmin()
    first, second = (axis + 1) % 3, (axis + 2) % 3
    steps = path[1:] - path[:-1]
    tangents = np.concatenate([steps[:1], steps[:-1] + steps[1:], steps[-1:]])
    tangents /= np.hypot(tangents[:, first], tangents[:, second])[:, None]
    rings = np.empty((len(path), len(section), 3))
    rings[..., first] = tangents[:, second, None] * section[:, 0]
    rings[..., second] = -tangents[:, first, None] * section[:, 0]
    rings[..., axis] = section[:, 1]
    rings = path[:, None] + rings * np.broadcast_to(radius, len(path))[:, None, None]
    ends = path[[0, -1], None] + np.zeros((2, len(section), 3))
    return np.concatenate([ends[:1], rings, ends[1:]])


def plate(outline: Any, thickness: float, axis: int) -> Surface:
    """Flat plate across an axis; its outline is (z, y) across x, (x, z) across y or (x, y) across z."""
    outline = np.array(outline, dtype=float)
    center = outline.mean(axis=0)
    section = np.concatenate([outline, outline[:1]]) - center
    lying = lathe(PRISM * (1, thickness), section) + (center[0], 0, center[1])
    return lying[..., {X: (Y, Z, X), Y: (X, Y, Z), Z: (X, Z, Y)}[axis]]


def arc(width: float, height: float, start: float, stop: float) -> np.ndarray:
    """Nine points (9, 3) of an ellipse in the xy plane about the origin, from one angle in degrees to another."""
    angles = np.radians(np.linspace(start, stop, 9))
    return np.stack([width * np.cos(angles), height * np.sin(angles), 0 * angles], axis=1)


def mirrored(*surfaces: Surface) -> list[Surface]:
    return [surface * (side, 1, 1) for surface in surfaces for side in (1, -1)]


def at_corners(surface: Surface) -> list[Surface]:
    return [surface * (x, 1, z) for x in (1, -1) for z in (1, -1)]


def around(surface: Surface, count: int) -> list[Surface]:
    return [rotate(surface, Y, 2 * np.pi * step / count) for step in range(count)]


def uniform(rng: np.random.Generator, *ranges: tuple[float, float]) -> list[float]:
    """Sample a uniform number from each range."""
    return [low + (high - low) * value for (low, high), value in zip(ranges, rng.random(len(ranges)), strict=True)]


def log_uniform(rng: np.random.Generator, low: float, high: float, count: int | None = None):
    return np.exp(rng.uniform(np.log(low), np.log(high), count))


def pick(rng: np.random.Generator, *options: Any) -> Any:
    return options[rng.integers(len(options))]


def stand(rng: np.random.Generator, width: float, depth: float, height: float) -> list[Surface]:
    """Build legs from the floor to `height`: four, two bent tubes or panels, or a column on a disc or a star."""
    thickness, spread, taper = uniform(rng, (0.015, 0.06), (0.7, 1.15), (0.4, 1.0))
    x, z = width / 2 - thickness, depth / 2 - thickness
    path = [(x, height, z), (spread * x, 0, spread * z)]
    legs = at_corners(tube(path, (thickness, taper * thickness), pick(rng, CIRCLE, SQUARE)))
    bent = tube([(x, height, z), (x, 0, z), (x, 0, -z), (x, height, -z)], thickness)
    panel = BOX * (thickness, height, depth) + (x, height / 2, 0)
    column = CYLINDER * (2 * thickness, height, 2 * thickness) + (0, height / 2, 0)
    disc = CYLINDER * (2 * x, thickness, 2 * z) + (0, thickness / 2, 0)
    star = around(tube([(0, 0.15 * height, 0), (min(x, z), 0, 0)], thickness), rng.integers(3, 7))
    return pick(rng, legs, legs, mirrored(bent), mirrored(panel), [column, disc], [column, *star])


@lru_cache
def triangles_of(rows: int, columns: int) -> np.ndarray:
    """Corner indices (triangles, 3) into the flattened grid of a surface: two triangles a cell."""
    corner = np.arange(rows * columns).reshape(rows, columns)
    diagonal = [corner[1:, :-1], corner[:-1, 1:]]
    halves = [np.stack([third, *diagonal], axis=-1) for third in (corner[:-1, :-1], corner[1:, 1:])]
    return np.concatenate(halves).reshape(-1, 3)


def triangles_of_surfaces(surfaces: list[Surface], corners: np.ndarray | None = None) -> np.ndarray:
    """Corners (triangles, 3, 3) of all surfaces' triangles; `corners` (all corners, 3) stand in for their own."""
    faces = [triangles_of(*surface.shape[:2]) for surface in surfaces]
    starts = np.cumsum([0, *(surface.size // 3 for surface in surfaces)]).tolist()
    corners = np.concatenate([surface.reshape(-1, 3) for surface in surfaces]) if corners is None else corners
    return corners[np.concatenate([face + start for face, start in zip(faces, starts, strict=False)])]


def sample_triangles(
    triangles: np.ndarray, num_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample points (num_points, 3) from triangles (triangles, 3, 3) by area; return the triangle of each too."""
    first, second = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    inner, square = np.einsum("ti,ti->t", first, second), np.einsum("ti,ti->t", first, first)
    area = np.sqrt(np.maximum(square * np.einsum("ti,ti->t", second, second) - inner**2, 0.0))
    cumulative = np.cumsum(area)
    chosen = np.searchsorted(cumulative, rng.random(num_points) * cumulative[-1])
    root, share = np.sqrt(rng.random(num_points)), rng.random(num_points)
    weights = np.stack([1 - root, root * (1 - share), root * share], axis=-1)  # uniform over a triangle
    return np.einsum("nc,nci->ni", weights, triangles[chosen]), chosen
