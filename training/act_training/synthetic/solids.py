"""Solids put together: points on their common surface, with cuts, and deformations of points."""

import numpy as np

from act_training.synthetic.shape_kit import (
    BOX,
    CIRCLE,
    PRISM,
    SQUARE,
    Surface,
    Y,
    lathe,
    log_uniform,
    pick,
    sample_triangles,
    triangles_of,
    triangles_of_surfaces,
)

Generator = np.random.Generator
Solids = tuple[list[Surface], list[Surface]]  # bodies, and what is cut out of them

WEDGE = BOX * (1, 1, 1)
WEDGE[WEDGE[..., 1] > 0, 2] = -0.5  # the top's front edge moves back
TORUS = lathe(0.15 * CIRCLE + (0.35, 0))
ROUND = CIRCLE[5:16] * (-1, -0.5)  # profiles for `lathe`, from -0.5 to 0.5
CAPSULE = np.concatenate([ROUND[:6] * (1, 0.6) - (0, 0.2), ROUND[5:] * (1, 0.6) + (0, 0.2)])
CHAMFER = np.array([(0, -0.5), (0.85, -0.5), (1, -0.4), (1, 0.4), (0.85, 0.5), (0, 0.5)])
ROUND_SQUARE = CIRCLE * (np.abs(CIRCLE) ** 8).sum(1, keepdims=True) ** (-1 / 8)


def ngon(corners: int) -> np.ndarray:
    """Regular outline (corners + 1, 2), closed, of radius 1."""
    angles = np.linspace(0, 2 * np.pi, corners + 1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def solid(rng: Generator) -> Surface:
    """Random solid of unit size: a prism, pyramid, cylinder, cone, ball, capsule, wedge, torus or a rounded one."""
    tapering = np.array([(0, -0.5), (1, -0.5), (rng.uniform(0.05, 0.9), 0.5), (0, 0.5)])
    section = pick(rng, CIRCLE, CIRCLE, SQUARE, SQUARE, ROUND_SQUARE, ngon(rng.integers(3, 9)))
    outline = pick(rng, PRISM, PRISM, PRISM, PRISM, tapering, tapering, ROUND, CAPSULE, CHAMFER)
    solids = [lathe(outline * (0.5, 1), section)] * 10
    return pick(rng, *solids, WEDGE, TORUS)


def inside(surface: Surface, points: np.ndarray) -> np.ndarray:
    """Tell which points (points, 3) lie behind all faces of a closed surface; an open one has no inside.

    These are all inner points of a convex surface, and fewer of any other.
    """
    answer = ((points > surface.min((0, 1))) & (points < surface.max((0, 1)))).all(1)
    if np.ptp(surface[[0, -1]], axis=1).max() > 1e-9 or not answer.any():
        return answer & False
    one, other = surface[1:, 1:] - surface[:-1, :-1], surface[1:, :-1] - surface[:-1, 1:]
    normals = np.cross(one.reshape(-1, 3), other.reshape(-1, 3))
    centers = (surface[1:, 1:] + surface[:-1, :-1] + surface[1:, :-1] + surface[:-1, 1:]).reshape(-1, 3) / 4
    origin = centers.mean(0)
    offsets = ((centers - origin) * normals).sum(1)
    outwards = np.sign(offsets.sum())
    lengths = np.sqrt(np.square(normals).sum(1))
    real = lengths > 1e-9
    normals, offsets = (outwards * values[real].T / lengths[real] for values in (normals, offsets))
    answer[answer] = ((points[answer] - origin) @ normals < offsets - 1e-4).all(1)
    return answer


def sample_solids(bodies: list[Surface], cuts: list[Surface], num_points: int, rng: Generator) -> np.ndarray:
    """Sample points (num_points, 3) by area on bodies, without what lies inside another body or in a cut.

    The wall of a cut takes points where it runs through a body.
    """
    surfaces = [*bodies, *cuts]
    triangles = triangles_of_surfaces(surfaces)
    owners = np.repeat(np.arange(len(surfaces)), [len(triangles_of(*surface.shape[:2])) for surface in surfaces])
    batches = [np.empty((0, 3))]
    while sum(map(len, batches)) < num_points and len(batches) < 10:
        points, chosen = sample_triangles(triangles, 3 * num_points // 2, rng)
        own = owners[chosen]
        in_body, in_cut = np.zeros((2, len(points)), dtype=bool)
        for number, surface in enumerate(surfaces):
            hidden = in_body if number < len(bodies) else in_cut
            hidden |= inside(surface, points) & (own != number)
        batches.append(points[~in_cut & (in_body == (own >= len(bodies)))])
    points = np.concatenate(batches)
    if len(points) < num_points:  # nearly all is cut away
        return sample_triangles(triangles_of_surfaces(bodies), num_points, rng)[0]
    return points[:num_points]


def spots(rng: Generator) -> np.ndarray:
    """Random positions (spots, 2) in a square of side 1: one, a pair, a row, a grid or a ring."""
    kind, reach = rng.integers(6), rng.uniform(0.15, 0.42)
    count = rng.integers(3, 9)
    if kind < 2:
        return rng.uniform(-0.3, 0.3, (1, 2)) * (kind == 1)
    if kind == 2:
        return np.array([(reach, 0), (-reach, 0)])
    if kind == 3:
        return np.stack([np.linspace(-reach, reach, count), np.zeros(count)], axis=1)
    if kind == 4:
        axes = (np.linspace(-reach, reach, rng.integers(2, 6)) for _ in range(2))
        return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    return reach * ngon(count)[:-1]


def attach(rng: Generator, part: Surface, base: Surface, start: float, stop: float) -> list[Surface]:
    """Put copies of a part of unit size, with its y axis outwards, onto a random side of a base.

    They reach from `start` to `stop`, where 0 is the middle of the base and 1 its side.
    """
    places = spots(rng)[:, :: pick(rng, 1, -1)]
    low, size = base.min((0, 1)), np.ptp(base, axis=(0, 1))
    axis, side = pick(rng, Y, Y, Y, *range(3)), pick(rng, 1, 1, -1)
    across = [(axis + 1) % 3, (axis + 2) % 3]
    spacing = np.linalg.norm(places[1:] - places[0], axis=1).min(initial=1)
    scale = np.empty(3)
    scale[axis] = side * (stop - start) * size[axis] / 2
    scale[across] = rng.uniform(0.3, 0.8) * spacing * (size[across] if rng.random() < 0.4 else size[across].min())
    part = np.roll(part, axis - Y, axis=-1) * scale
    part[..., axis] += low[axis] + size[axis] / 2 + side * (start + stop) * size[axis] / 4
    shifts = np.zeros((len(places), 3))
    shifts[:, across] = low[across] + size[across] * (places + 0.5)
    return [part + shift for shift in shifts]


def composition(rng: Generator, most_parts: int = 5) -> Solids:
    """Random solids, each put onto one before, with holes and slots."""
    bodies = [np.roll(solid(rng), rng.integers(3), axis=-1) * log_uniform(rng, 0.3, 1.2, 3)]
    groups = [bodies]
    for _ in range(rng.integers(most_parts > 1, most_parts + 1)):
        stop = 1 + log_uniform(rng, 0.1, 2.0)
        groups.append(attach(rng, solid(rng), pick(rng, *pick(rng, *groups[:2])), pick(rng, 0, 0, 0.4), stop))
    cuts = []
    for _ in range(rng.integers(0 if len(groups) > 1 else 1, 4)):
        cutter = lathe(PRISM * (0.35, 1), pick(rng, CIRCLE, CIRCLE, SQUARE, ngon(6)))
        cuts += attach(rng, cutter, bodies[0], pick(rng, -1.1, -1.1, rng.uniform(-0.7, 0.8)), 1.1)
    return [part for group in groups for part in group], cuts


def machined(rng: Generator) -> Solids:
    """A block, disc or bar with bosses, holes and slots."""
    return composition(rng, most_parts=1)


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
