"""Shapes of every kind, without labels, to pretrain on: nothing to download, and as many as wanted.

A builder makes one shape of random proportions: solids put together and cut, vessels, bars along curves, plates, and
the parts and objects of `broad_parts`, `broad_objects` and `everyday_shapes`. y is up.
"""

import numpy as np

from act_training.synthetic import broad_objects, broad_parts, everyday_shapes
from act_training.synthetic.broad_parts import pierced
from act_training.synthetic.shape_kit import (
    BALL,
    BOX,
    CIRCLE,
    CYLINDER,
    DOME,
    SQUARE,
    Surface,
    X,
    Y,
    Z,
    around,
    lathe,
    log_uniform,
    mirrored,
    pick,
    plate,
    rotate,
    tube,
)
from act_training.synthetic.solids import Generator, composition, deform, machined, ngon, sample_solids

DEFORMED, TURNED, TIPPED = 0.2, 0.3, 0.1  # shares of shapes


def polygon(rng: Generator, corners: int = 20) -> np.ndarray:
    """Random outline (corners + 1, 2) about the origin, closed: round, angular, of gear teeth or of a few waves."""
    angles = np.linspace(0, 2 * np.pi, corners + 1)
    radius = np.ones(corners + 1)
    kind = rng.integers(4)
    if kind == 0:  # an ellipse or a box with round corners
        power = pick(rng, 2, 4, 10)
        radius = (np.abs(np.cos(angles)) ** power + np.abs(np.sin(angles)) ** power) ** (-1 / power)
    elif kind == 1:
        radius[::2] *= rng.uniform(0.6, 0.95)  # teeth
    elif kind == 2:
        radius += rng.uniform(0.1, 0.4) * np.cos(rng.integers(2, 6) * angles)
    else:
        radius = rng.uniform(0.5, 1.0, corners + 1)
        radius = (radius + np.roll(radius, 1)) / 2
    radius[-1] = radius[0]
    return radius[:, None] * ngon(corners) * log_uniform(rng, 0.4, 1.0, 2)


def profile(rng: Generator) -> np.ndarray:
    """Random outside (rows, 2) of a vessel: (radius, height) from the bottom upward, in slopes, steps or curves."""
    count = rng.integers(2, 9)
    heights = np.cumsum(log_uniform(rng, 0.1, 1.0, count))
    radii = log_uniform(rng, 0.15, 1.0, count)
    kind = pick(rng, "steps", "curves", "curves", "slopes")
    if kind == "steps":
        heights, radii = np.repeat(heights, 2)[:-1], np.repeat(radii, 2)[1:]
    elif kind == "curves":
        fine, ramp = np.linspace(0, count - 1, 14), np.arange(count)
        heights, radii = np.interp(fine, ramp, heights), np.interp(fine, ramp, radii)
        radii = np.convolve(np.pad(radii, 2, mode="edge"), np.ones(5) / 5, "valid")
    heights = (heights - heights[0]) / np.ptp(heights) * log_uniform(rng, 0.3, 3.0)
    return np.stack([radii, heights], axis=1)


def vessel(rng: Generator) -> list[Surface]:
    """A vase, bottle, bowl, cup, wheel or turned post, open or closed, with handles, a spout, a lid or a foot."""
    outside = profile(rng)
    radii, heights = outside.T
    top = heights[-1]
    walls = outside[::-1] * (rng.uniform(0.75, 0.95), 1)
    walls[-1, 1] = min(0.08 * top, walls[-2, 1])
    hollow = np.concatenate([[(0, 0)], outside, walls, [(0, walls[-1, 1])]])
    closed = np.concatenate([[(0, 0)], outside, [(0, top)]])
    section = pick(rng, CIRCLE, CIRCLE, CIRCLE, SQUARE, ngon(rng.integers(5, 9)), polygon(rng))
    body = lathe(pick(rng, hollow, closed), section)
    ends = np.sort(rng.uniform(0.1, 0.95, 2)) * top
    low, high = section[0, 0] * np.interp(ends, heights, radii)
    reach, thin = max(low, high) + rng.uniform(0.15, 0.5), rng.uniform(0.03, 0.08)
    middle = ends @ (0.7, 0.3), ends @ (0.2, 0.8)
    grip = [(low - thin, ends[0], 0), (reach, middle[0], 0), (reach, middle[1], 0), (high - thin, ends[1], 0)]
    handle = tube(grip, thin, pick(rng, CIRCLE, SQUARE))
    spout = tube([(-low + thin, ends[0], 0), (-reach, ends[1], 0), (-reach - 0.1, top, 0)], (2 * thin, thin, thin))
    wide = 2.1 * radii[-1]
    lid = [DOME * (wide, 0.3 * wide, wide) + (0, top, 0), BALL * 0.2 * wide + (0, top + 0.33 * wide, 0)]
    parts = [body, *pick(rng, [], [], [], [handle], mirrored(handle), [handle, spout], lid, [handle, *lid])]
    axis = pick(rng, X, Z)
    return [rotate(part, axis, np.pi / 2) for part in parts] if rng.random() < 0.15 else parts


def path(rng: Generator) -> np.ndarray:
    """Random flat or helical path (rows, 3) from the origin: a helix, hook, wave, bracket or zigzag."""
    kind, t = rng.integers(5), np.linspace(0, 1, 15)
    if kind == 0:  # height grows too slowly to be the least axis of `tube`
        turns = rng.uniform(1.5, 5) * 2 * np.pi * np.linspace(0, 1, 60)
        way = np.stack([np.cos(turns), np.linspace(0, log_uniform(rng, 0.5, 1.7), 60), np.sin(turns)], axis=1)
    elif kind == 1:
        angles = np.radians(rng.uniform(-60, 60) + np.linspace(0, rng.uniform(90, 300), 25))
        way = np.stack([np.cos(angles), log_uniform(rng, 0.5, 1.5) * np.sin(angles), 0 * angles], axis=1)
    elif kind == 2:
        way = np.stack([2 * t, rng.uniform(0.2, 1) * np.sin(rng.uniform(2, 9) * t), 0 * t], axis=1)
    elif kind == 3:
        wide, tall, foot = log_uniform(rng, 0.3, 1.5, 3)
        way = np.array([(0, 0, 0), (0, tall, 0), (wide, tall, 0), (wide, 0, 0), (wide + foot, 0, 0)])
        way = way[: pick(rng, 4, 5)]
    else:
        steps = pick(rng, -1, 1) * log_uniform(rng, 0.2, 1.0, (5, 1)) * np.eye(2)[np.arange(5) % 2]
        way = np.pad(np.cumsum(steps, axis=0), ((0, 0), (0, 1)))
    return way - way[0]


def sweep(rng: Generator) -> list[Surface]:
    """A bar along a curve, or several that meet: a spring, pipe, handle, hook, frame, star, rack or tap."""
    section = pick(rng, CIRCLE, CIRCLE, SQUARE, SQUARE * (0.3, 2), SQUARE * (2, 0.3))
    way, thick = path(rng), log_uniform(rng, 0.03, 0.2)
    part = tube(way, thick * np.linspace(1, pick(rng, 1, 1, 0.4), len(way)), section)
    ends = [BALL * 3 * thick + way[0], CYLINDER * (5 * thick, thick, 5 * thick) + way[-1]]
    count, step = rng.integers(2, 8), rng.uniform(3, 8) * thick
    bar = BOX * (2 * thick, 2 * thick, count * step) + (0, 0, (count - 1) * step / 2)
    rack = [bar + way[0], bar + way[-1], *(part + (0, 0, place * step) for place in range(count))]
    base = BOX * (np.ptp(way[:, 0]) + 6 * thick, 2 * thick, np.ptp(way[:, 2]) + 6 * thick)
    base += (way[:, 0].min() + np.ptp(way[:, 0]) / 2, way[:, 1].min(), way[:, 2].min() + np.ptp(way[:, 2]) / 2)
    star = [BALL * 4 * thick, *around(part, rng.integers(3, 9))]
    frame = pierced(polygon(rng), rng.uniform(0.25, 0.4), thick)
    shapes = pick(rng, [part], [part], [part, *ends], rack, [part, base], star, [frame])
    axis, angle = pick(rng, X, Y, Z), pick(rng, 0, 0, np.pi / 2)
    return [rotate(shape, axis, angle) for shape in shapes]


def plates(rng: Generator) -> list[Surface]:
    """A plate of random outline, often with a hole, with bosses, a sleeve, a rim, a stack of others or an upright."""
    outline, thickness = polygon(rng), log_uniform(rng, 0.03, 0.4)
    size, least = np.abs(outline).max(), np.linalg.norm(outline, axis=1).min()
    hole, tall = rng.uniform(0.2, 0.7) * least, log_uniform(rng, 0.1, 1.0)
    parts = [pierced(outline, hole, thickness)] if rng.random() < 0.7 else [plate(outline[:-1], thickness, Y)]
    sleeve = lathe([(1.3, 0), (1.3, tall), (1, tall), (1, 0), (1.3, 0)], CIRCLE * hole)
    boss = CYLINDER * (0.3 * least, tall, 0.3 * least) + (0.8 * least, tall / 2, 0)
    rim = lathe([(1, 0), (1, tall), (0.9, tall), (0.9, 0), (1, 0)], outline)
    upright = rotate(pierced(polygon(rng), 0.15, thickness), X, np.pi / 2) + (0, 0.4, 0)
    stack = [parts[0] * (share, 1, share) + (0, height * thickness, 0) for height, share in ((0.9, 0.8), (1.8, 0.5))]
    rib = BOX * (1.4 * least, tall, 0.1 * size) + (0, tall / 2, 0)
    bosses = around(boss, rng.integers(3, 7))
    parts += pick(rng, [], [], [sleeve], bosses, [sleeve, *bosses], [upright], [rib], [rim], stack)
    return [rotate(part, X, np.pi / 2) for part in parts] if rng.random() < 0.4 else parts


def sheet(rng: Generator) -> list[Surface]:
    """A thin curved sheet: a wave, shell, tile, half pipe or sail, alone or on a stand."""
    u, v = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16), indexing="ij")
    waves, depth = rng.uniform(0.3, 2.0, 2) * pick(rng, (1, 0), (0, 1), (1, 1)), rng.uniform(0.1, 0.6)
    height = depth * np.cos(np.pi * waves[0] * u + rng.uniform(0, 3)) * np.cos(np.pi * waves[1] * v)
    round_ = np.sqrt(1 - v**2 / 2) if rng.random() < 0.5 else 1 - rng.uniform(0, 0.6) * (v + 1) / 2
    upper = np.stack([u * round_, height, v * log_uniform(rng, 0.4, 1.0)], axis=-1)
    slab = np.concatenate([upper, upper[::-1] - (0, rng.uniform(0.03, 0.08), 0), upper[:1]])
    post = CYLINDER * (0.08, 0.8, 0.08) + (0, height[7, 7] - 0.43, 0)
    foot = CYLINDER * (0.5, 0.05, 0.5) + (0, height[7, 7] - 0.83, 0)
    return pick(rng, [slab], [rotate(slab, X, np.pi / 2)], [slab, post, foot])


def everyday(rng: Generator) -> list[Surface]:
    return [surface for part in pick(rng, *everyday_shapes.OBJECTS)(rng).values() for surface in part]


WEIGHTS = {
    composition: 12, machined: 6, vessel: 9, sweep: 5, plates: 5, sheet: 2, everyday: 8,
    broad_parts.brick: 8, broad_parts.component: 6, broad_parts.connector: 5, broad_parts.fastener: 5,
    broad_parts.girder: 3, broad_parts.lattice: 3,
    broad_objects.case: 6, broad_objects.device: 6, broad_objects.building: 6, broad_objects.vehicle: 7,
    broad_objects.tool: 6, broad_objects.plant: 4, broad_objects.animal: 4, broad_objects.figure: 3,
}  # fmt: skip
BUILDERS, SHARES = tuple(WEIGHTS), np.array(list(WEIGHTS.values())) / sum(WEIGHTS.values())


def make_shape(rng: Generator, num_points: int) -> np.ndarray:
    """Points (num_points, 3) of one random shape in the unit sphere."""
    points = sample_shape(BUILDERS[rng.choice(len(BUILDERS), p=SHARES)], num_points, rng)
    points = fit(points * log_uniform(rng, 0.7, 1.4, 3))
    if rng.random() < DEFORMED:
        points = fit(deform(rng, points))
    if rng.random() < TIPPED:
        points = rotate(points, pick(rng, X, Z), pick(rng, np.pi / 2, -np.pi / 2))
    quarter = rng.integers(4) * np.pi / 2
    return rotate(points, Y, rng.uniform(0, 2 * np.pi) if rng.random() < TURNED else quarter)


def sample_shape(build, num_points: int, rng: Generator) -> np.ndarray:
    """Sample points (num_points, 3) on the outside of what a builder makes."""
    shape = build(rng)
    bodies, cuts = shape if isinstance(shape, tuple) else (shape, [])
    return sample_solids(bodies, cuts, num_points, rng)


def fit(points: np.ndarray) -> np.ndarray:
    points = points - points.mean(0)
    return points / np.sqrt(np.square(points).sum(1).max())


def generate_shapes(num_shapes: int, num_points: int = 2048, seed: int = 0, start: int = 0) -> dict[str, np.ndarray]:
    """Generate shapes `start` to `start + num_shapes - 1` of the endless set of a seed.

    Returns `points` (num_shapes, num_points, 3) in the unit sphere, float32. A shape depends on its number, `seed` and
    `num_points` only.
    """
    numbers = range(start, start + num_shapes)
    shapes = [make_shape(np.random.default_rng([seed, number]), num_points) for number in numbers]
    return {"points": np.stack(shapes).astype(np.float32)}
