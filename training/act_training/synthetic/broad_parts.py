"""Parts from random proportions, for the broad set: bricks, electronics, fasteners, profiles, lattices.

A builder returns surfaces, or bodies and what is cut out of them. y is up, +z the front.
"""

import numpy as np

from act_training.synthetic.shape_kit import (
    BOX,
    CIRCLE,
    CYLINDER,
    CYLINDER_ALONG_Z,
    DOME,
    PRISM,
    SQUARE,
    Surface,
    X,
    Y,
    around,
    at_corners,
    lathe,
    log_uniform,
    mirrored,
    pick,
    rotate,
    tube,
)
from act_training.synthetic.solids import CHAMFER, ROUND_SQUARE, WEDGE, Generator, Solids, ngon


def pierced(outline: np.ndarray, radius: float, thickness: float) -> Surface:
    """Flat plate across y with a round hole: outer wall, top, inner wall and bottom, as one closed grid."""
    hole = radius * outline / np.linalg.norm(outline, axis=1, keepdims=True)
    rings = [(outline, -1), (outline, 1), (hole, 1), (hole, -1), (outline, -1)]
    return np.stack([np.stack([o[:, 0], np.full(len(o), side * thickness / 2), o[:, 1]], axis=1) for o, side in rings])


def rods(ends: list[tuple], thickness: float) -> list[Surface]:
    """Straight bars from one point to another, along any direction."""
    bars = []
    for start, end in np.array(ends, dtype=float):
        step = end - start
        length = np.linalg.norm(step)
        bar = CYLINDER * (thickness, length, thickness)
        tilt, yaw = np.arccos(step[1] / length), np.arctan2(step[0], step[2])
        bars.append(rotate(rotate(bar, X, tilt), Y, yaw) + (start + end) / 2)
    return bars


def brick(rng: Generator) -> Solids:
    """A toy brick: studs on a box, a slope, a disc or an arch, hollow below or with holes through its side."""
    columns, rows = rng.integers(1, 9), rng.integers(1, 5)
    tall = pick(rng, 0.4, 1.2, 1.2, 2.4)
    size = np.array([columns, tall, rows], dtype=float)
    grid = [(x - (columns - 1) / 2, z - (rows - 1) / 2) for x in range(columns) for z in range(rows)]
    stud = CYLINDER * (0.6, 0.25, 0.6) + (0, tall + 0.1, 0)
    studs, round_studs = [], []
    for x, z in grid:
        studs.append(stud + (x, 0, z))
        round_studs += [studs[-1]] if np.hypot(2 * x / columns, 2 * z / rows) < 0.8 else []
    shell = lathe([(1, 0), (1, tall), (0, tall), (0.8, tall - 0.2), (0.8, 0)], SQUARE * (columns / 2, rows / 2))
    disc = lathe([(0.8, 0), (1, 0), (1, tall), (0, tall)], CIRCLE * size[[0, 2]] / 2)
    feet = [BOX * (1, tall, rows) + (side * (columns / 2 - 0.5), tall / 2, 0) for side in (1, -1)]
    arch = [*feet, BOX * (columns, 0.3 * tall, rows) + (0, 0.85 * tall, 0)]
    block, slope = (shape * size + (0, tall / 2, 0) for shape in (BOX, WEDGE))
    holes = [CYLINDER_ALONG_Z * (0.6, 0.6, rows + 1) + (x, tall / 2, 0) for x in np.arange(1, columns) - columns / 2]
    if rng.random() < 0.2:
        return [slope], []
    if rng.random() < 0.2:
        return [disc, *pick(rng, round_studs, round_studs, [])], []
    body, cuts = pick(rng, ([shell], []), ([shell], []), (arch, []), ([block], holes))
    return [*body, *pick(rng, studs, studs, studs, studs[: len(studs) // 2], [])], cuts


def component(rng: Generator) -> list[Surface]:
    """An electronic component: a package with pins at its sides or below, or wires, and perhaps a tab or a dome."""
    width, depth, tall, pin = *log_uniform(rng, 0.3, 1.5, 3), rng.uniform(0.02, 0.06)
    box = lathe(CHAMFER * (0.5, 1), pick(rng, SQUARE, ROUND_SQUARE))
    shape, spread = pick(rng, (BOX, 0.45), (box, 0.45), (box, 0.45), (CYLINDER, 0.3))
    package = shape * (width, tall, depth) + (0, tall / 2 + 0.1, 0)
    count = rng.integers(1, 12)
    places = np.linspace(-spread, spread, count) * width if count > 1 else [0]
    reach, foot = depth / 2 + rng.uniform(0.05, 0.3), tall * rng.uniform(0.2, 0.7)
    leg = [(0, foot, 0.45 * depth), (0, foot, reach), (0, 0, reach), (0, 0, reach + 0.1)]
    wings = [tube(np.array(leg) * (1, 1, side) + (x, 0, 0), pin, SQUARE) for x in places for side in (1, -1)]
    other_leg = np.array(leg)[:, [2, 1, 0]] + ((width - depth) / 2, 0, 0)
    other_wings = [
        tube(other_leg * (side, 1, 1) + (0, 0, x * depth / width), pin, SQUARE) for x in places for side in (1, -1)
    ]
    lines = np.multiply(pick(rng, (0,), (-0.3, 0.3), (-0.3, 0, 0.3)), depth)
    straight = [BOX * (pin, 0.8, pin) + (x, -0.2, z) for x in places for z in lines]
    tall_pins = [BOX * (2 * pin, 2 * tall, 2 * pin) + (x, tall, z) for x in places for z in lines]
    wires = mirrored(tube([(0.45 * width, tall / 2, 0), (width, tall / 2, 0), (width, -0.5, 0)], pin))
    tab = pierced(ROUND_SQUARE * (width / 2, depth / 3), 0.15 * min(width, depth), 0.05)
    dome = DOME * (0.6 * width, 0.4, 0.6 * depth) + (0, tall + 0.1, 0)
    pins = pick(rng, wings, wings, [*wings, *other_wings], straight, straight, tall_pins, wires, [])
    return [package, *pins, *pick(rng, [], [], [], [tab + (0, 0.12, -0.7 * depth)], [dome])]


def connector(rng: Generator) -> Solids:
    """A housing with rows of holes or one opening, contacts in it, and pins below or behind."""
    columns, rows, pin = rng.integers(1, 11), rng.integers(1, 4), rng.uniform(0.15, 0.3)
    tall, margin = log_uniform(rng, 0.5, 3.0), rng.uniform(0.1, 0.6)
    width, depth = columns + margin, rows + margin
    grid = [(x - (columns - 1) / 2, z - (rows - 1) / 2) for x in range(columns) for z in range(rows)]
    housing = pick(rng, BOX, BOX, lathe(PRISM * (0.5, 1), ROUND_SQUARE)) * (width, tall, depth)
    holes = [pick(rng, BOX, CYLINDER) * (0.6, tall, 0.6) + (x, 0.4 * tall, z) for x, z in grid]
    opening = [BOX * (width - 0.3, tall, depth - 0.3) + (0, 0.3 * tall, 0)]
    below = -tall / 2 - pick(rng, 0.0, 0.8, 1.5)
    contacts = [BOX * (pin, 0.3 * tall - below, pin) + (x, 0.15 * tall + below / 2, z) for x, z in grid]
    bend = tube([(0, 0, 0), (0, -0.45 * tall, 0), (0, -0.45 * tall, depth)], pin / 2, SQUARE)
    angled = [bend + (x, 0, 0) for x, _ in grid[::rows]]
    ears = mirrored(pierced(CIRCLE * 0.7, 0.35, 0.2) + (width / 2 + 0.4, pick(rng, -0.4, 0.4) * tall, 0))
    cuts = pick(rng, holes, holes, opening, [])
    parts = [housing, *pick(rng, contacts, contacts, angled), *pick(rng, [], [], ears)]
    if rng.random() < 0.5:
        parts, cuts = ([rotate(part, X, np.pi / 2) for part in some] for some in (parts, cuts))
    return parts, cuts


def fastener(rng: Generator) -> Solids:
    """A bolt, nut, washer, gear, pulley, flange, shaft or hinge."""
    long, head, thin = log_uniform(rng, 0.3, 4.0), rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.6)
    ring = np.linspace(0, 2 * np.pi, 4 * rng.integers(6, 20) + 1)
    teeth = 1 - rng.uniform(0.1, 0.3) * (np.arange(len(ring)) % 4 > 1)
    gear_outline = teeth[:, None] * np.stack([np.cos(ring), np.sin(ring)], axis=1)
    turns = np.linspace(0, 1, 2 * rng.integers(4, 14))
    thread = [(0, -long), *zip(0.5 - 0.08 * (np.arange(len(turns)) % 2), -long * (1 - turns), strict=True), (0, 0)]
    shank = pick(rng, lathe(thread), CYLINDER * (1, long, 1) - (0, long / 2, 0))
    round_head, flat_head = DOME * (1.8, head, 1.8), CYLINDER * (1.8, head, 1.8) + (0, head / 2, 0)
    six_head = lathe(PRISM * (1, head), ngon(pick(rng, 6, 6, 4))) + (0, head / 2, 0)
    sunk_head = lathe([(0, 0), (0.5, 0), (1, head), (0, head)])
    slot = pick(rng, BOX * (2, 0.4, 0.2), lathe(PRISM * (0.4, 0.8 * head), ngon(6))) + (0, head, 0)
    bolt = [pick(rng, six_head, six_head, round_head, flat_head, sunk_head), shank]
    bolt += pick(rng, [], [pierced(CIRCLE * 1.1, 0.45, 0.1) - (0, rng.uniform(0.05, 1) * long, 0)])
    hub = lathe([(0.35, -thin), (0.35, 2 * thin), (0.2, 2 * thin), (0.2, -thin), (0.35, -thin)])
    disc = CYLINDER * (2, thin, 2)
    across, through = rng.uniform(0.2, 0.8), 2.2 * (long + thin)
    bore = CYLINDER * (across, through, across)
    bolt_holes = around(CYLINDER * (0.2, 2 * thin, 0.2) + (0.75, 0, 0), rng.integers(3, 9))
    pipe = pick(rng, [], [CYLINDER * (1, long, 1) + (0, long / 2, 0)])
    wheel = lathe(rng.uniform(0.05, 0.2) * CIRCLE + (0.9, 0))
    steps = np.repeat(log_uniform(rng, 0.2, 1.0, 4), 2)
    shaft = lathe([(0, -0.5), *zip(steps, np.repeat(np.linspace(-0.5, 0.5, 5), 2)[1:-1], strict=True), (0, 0.5)])
    pulley = lathe([(0.2, -thin), (1, -thin), (0.7, 0), (1, thin), (0.2, thin), (0.2, -thin)])
    return pick(
        rng, (bolt, [slot]), (bolt, []), ([pierced(gear_outline, rng.uniform(0.2, 0.7), thin)], []),
        ([pierced(gear_outline, 0.3, thin), hub], []), ([pierced(ngon(pick(rng, 4, 6, 6, 20)), 0.5, thin)], []),
        ([disc, *pipe], [bore, *bolt_holes]), ([disc, *pipe], bolt_holes), ([shaft * (1, 2 * long, 1)], []),
        ([pulley], []), ([wheel, hub, *around(BOX * (0.7, 0.1, 0.1) + (0.5, 0, 0), rng.integers(3, 7))], []),
    )  # fmt: skip


def girder(rng: Generator) -> Solids:
    """A profile or bracket: an L, T, U, H, Z or cross of plates, with holes, or a letter."""
    width, tall, long = *log_uniform(rng, 0.4, 1.5, 2), log_uniform(rng, 0.1, 4.0)
    thin = rng.uniform(0.05, 0.3) * min(width, tall)
    low, high, middle = (BOX * (width, thin, long) + (0, y * (tall - thin), 0) for y in (-0.5, 0.5, 0))
    left, right, web = (BOX * (thin, tall, long) + (x * (width - thin), 0, 0) for x in (-0.5, 0.5, 0))
    parts = pick(
        rng, [low, left], [low, left, right], [low, web], [low, high, web], [low, high, left], [middle, web],
        [middle, left, right], [low, middle, high, left], [low, high, left, right],
    )  # fmt: skip
    places = np.linspace(-0.4, 0.4, rng.integers(1, 6)) * long
    hole = CYLINDER * (0.3 * width, 1.1 * tall, min(0.3 * width, 0.6 * long / len(places)))
    holes = [hole + (0, 0, z) for z in places]
    rib = rotate(WEDGE * (tall, tall, thin), Y, np.pi / 2) * (width / tall / 1.5, 1, 1)
    return [*parts, *pick(rng, [], [], [rib])], pick(rng, [], holes)


def lattice(rng: Generator) -> list[Surface]:
    """Thin bars: a grille, ladder, fence, rack, basket, cage or truss."""
    width, tall, depth = log_uniform(rng, 0.4, 2.0, 3)
    thick = rng.uniform(0.015, 0.05)
    columns, rows = (np.linspace(-0.5, 0.5, rng.integers(2, 9)) for _ in range(2))
    upright = [((x * width, 0, 0), (x * width, tall, 0)) for x in columns]
    level = [((-width / 2, (y + 0.5) * tall, 0), (width / 2, (y + 0.5) * tall, 0)) for y in rows]
    slanted = [((x * width, 0, 0), ((x + 1 / len(columns)) * width, tall, 0)) for x in columns[:-1]]
    side = pick(rng, [*upright, *level], [*upright, *level], [*upright, level[0], level[-1]], [*slanted, *upright])
    side += [level[0], level[-1], upright[0], upright[-1]]
    kind = rng.integers(5)
    if kind == 0:  # flat, standing or lying
        turn = pick(rng, 0, np.pi / 2)
        posts = mirrored(CYLINDER * (3 * thick, 1.1 * tall, 3 * thick) + (width / 2, 0.55 * tall, 0))
        return [rotate(bar, X, turn) for bar in [*rods(side, thick), *pick(rng, [], posts)]]
    walls = [[(np.add(p, (0, 0, z * depth / 2)), np.add(q, (0, 0, z * depth / 2))) for p, q in side] for z in (1, -1)]
    ties = [
        [(x * width / 2, y, -depth / 2), (x * width / 2, y, depth / 2)]
        for x in (1, -1) for y in np.linspace(0, tall, rng.integers(2, 6))
    ]  # fmt: skip
    if kind == 1:
        return rods([*walls[0], *walls[1], *ties], thick)
    shelves = [BOX * (width, thick, depth) + (0, y * tall, 0) for y in np.linspace(0, 1, rng.integers(2, 6))]
    posts = at_corners(CYLINDER * (2 * thick, tall, 2 * thick) + (width / 2, tall / 2, depth / 2))
    if kind == 2:
        return [*posts, *shelves, *pick(rng, [], rods(walls[1], thick))]
    hoop = lathe([(1.03, -thick), (1.03, thick), (0.97, thick), (0.97, -thick), (1.03, -thick)], CIRCLE * width / 2)
    stems = around(CYLINDER * (2 * thick, tall, 2 * thick) + (width / 2, tall / 2, 0), rng.integers(4, 16))
    floor = CYLINDER * (width, thick, width)
    return [hoop, hoop + (0, tall, 0), *stems, *pick(rng, [], [floor])]
