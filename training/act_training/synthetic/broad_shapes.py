"""Shapes of every kind, without labels, to pretrain on: nothing to download, and as many as wanted.

A builder returns the surfaces of one shape from random proportions: turned and bent parts, plates, bricks, components,
furniture, buildings, vehicles, tools, plants, animals, and the fourteen everyday objects. Beside them stand solids put
together and cut. y is up.
"""

import numpy as np

from act_training.synthetic.everyday_shapes import OBJECTS
from act_training.synthetic.shape_kit import (
    BALL,
    BOX,
    CIRCLE,
    CONE,
    CYLINDER,
    CYLINDER_ALONG_X,
    CYLINDER_ALONG_Z,
    DOME,
    SQUARE,
    Surface,
    X,
    Y,
    Z,
    arc,
    around,
    at_corners,
    lathe,
    log_uniform,
    mirrored,
    pick,
    plate,
    rotate,
    sample_triangles,
    stand,
    triangles_of_surfaces,
    tube,
    uniform,
)
from act_training.synthetic.solids import WEDGE, composition, deform

Generator = np.random.Generator
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
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1) * log_uniform(rng, 0.4, 1.0, 2)


def pierced(outline: np.ndarray, hole: np.ndarray, thickness: float) -> Surface:
    """Flat plate across y with a hole: outer wall, top, inner wall and bottom, as one closed grid."""
    rings = [(outline, -1), (outline, 1), (hole, 1), (hole, -1), (outline, -1)]
    return np.stack([np.stack([o[:, 0], np.full(len(o), side * thickness / 2), o[:, 1]], axis=1) for o, side in rings])


def profile(rng: Generator) -> np.ndarray:
    """Random outline (rows, 2) of a turned part: (radius, height) from the bottom's middle upward."""
    count = rng.integers(2, 9)
    heights = np.cumsum(log_uniform(rng, 0.1, 1.0, count))
    radii = log_uniform(rng, 0.15, 1.0, count)
    if rng.random() < 0.5:  # steps instead of slopes
        heights, radii = np.repeat(heights, 2)[:-1], np.repeat(radii, 2)[1:]
    elif rng.random() < 0.6:  # round
        fine = np.linspace(0, count - 1, 14)
        ramp = np.arange(count)
        heights, radii = np.interp(fine, ramp, heights), np.interp(fine, ramp, radii)
        radii = np.convolve(np.pad(radii, 2, mode="edge"), np.ones(5) / 5, "valid")
    heights = (heights - heights[0]) / max(np.ptp(heights), 1e-3) * log_uniform(rng, 0.2, 3.0)
    outer = np.stack([radii, heights], axis=1)
    if rng.random() < 0.4:  # hollow, open above
        inner = outer[::-1] * (rng.uniform(0.6, 0.95), 1)
        inner[-1, 1] = min(inner[-1, 1] + 0.05 * heights[-1], inner[-2, 1])
        return np.concatenate([[(0, outer[0, 1])], outer, inner, [(0, inner[-1, 1])]])
    return np.concatenate([[(0, outer[0, 1])], outer, [(0, outer[-1, 1])]])


def path(rng: Generator) -> np.ndarray:
    """Random flat or helical path (rows, 3)."""
    kind, t = rng.integers(4), np.linspace(0, 1, 15)
    if kind == 0:  # a helix, in which height grows too slowly to be the least axis
        turns = rng.uniform(1.5, 4) * 2 * np.pi * np.linspace(0, 1, 40)
        return np.stack([np.cos(turns), np.linspace(0, log_uniform(rng, 0.4, 1.5), 40), np.sin(turns)], axis=1)
    if kind == 1:
        return arc(*log_uniform(rng, 0.4, 1.0, 2), rng.uniform(-60, 60), rng.uniform(120, 330))
    if kind == 2:  # a smooth wave
        return np.stack([2 * t - 1, rng.uniform(0.2, 1) * np.sin(rng.uniform(2, 9) * t + rng.uniform(0, 6)), 0 * t], 1)
    corners = np.cumsum(pick(rng, -1, 1) * log_uniform(rng, 0.2, 1.0, (5, 1)) * np.eye(2)[np.arange(5) % 2], axis=0)
    return np.concatenate([corners, np.zeros((5, 1))], axis=1)


def repeated(rng: Generator, surfaces: list[Surface]) -> list[Surface]:
    """Surfaces once, mirrored, about the axis, or in a row."""
    kind = rng.integers(6)
    if kind == 0:
        return mirrored(*(surface + (rng.uniform(0.3, 1), 0, 0) for surface in surfaces))
    if kind == 1:
        count, reach = rng.integers(3, 9), rng.uniform(0.3, 1.2)
        return [copy for surface in surfaces for copy in around(surface + (reach, 0, 0), count)]
    if kind == 2:
        step = pick(rng, (1, 0, 0), (0, 1, 0), (0, 0, 1)) * np.array(rng.uniform(0.3, 1.5))
        return [surface + place * step for surface in surfaces for place in range(rng.integers(2, 7))]
    return surfaces


def turned(rng: Generator) -> list[Surface]:
    section = pick(rng, CIRCLE, CIRCLE, SQUARE, polygon(rng, pick(rng, 6, 8, 20)))
    body = lathe(profile(rng), section)
    handle = tube(arc(0.5, 0.5, -80, 80), rng.uniform(0.04, 0.12)) * (1, np.ptp(body[..., 1]), 1)
    handle += (0.7 * np.abs(body[..., 0]).max(), np.median(body[..., 1]), 0)
    handles = pick(rng, [], [], [], [handle], mirrored(handle))
    parts = [body, *handles]
    axis = pick(rng, X, Z)
    return [rotate(part, axis, np.pi / 2) for part in parts] if rng.random() < 0.15 else parts


def bent(rng: Generator) -> list[Surface]:
    section = pick(rng, CIRCLE, CIRCLE, SQUARE, SQUARE * (0.3, 2))
    way = path(rng)
    thickness = log_uniform(rng, 0.03, 0.3) * (np.linspace(1, rng.uniform(0.3, 1), len(way)))
    part = rotate(tube(way, thickness, section), pick(rng, X, Y, Z), pick(rng, 0, np.pi / 2))
    return repeated(rng, [part])


def plates(rng: Generator) -> list[Surface]:
    outline, thickness = polygon(rng), log_uniform(rng, 0.03, 0.4)
    size = np.abs(outline).max()
    hole = CIRCLE * rng.uniform(0.1, 0.5) * np.linalg.norm(outline, axis=1).min()
    parts = [pierced(outline, hole, thickness)] if rng.random() < 0.7 else [plate(outline[:-1], thickness, Y)]
    tall = log_uniform(rng, 0.1, 1.0)
    boss = CYLINDER * (0.25, tall, 0.25) + (0, tall / 2, 0)
    sleeve = lathe([(1.4, 0), (1.4, tall), (1, tall), (1, 0)], hole)
    bolts = around(boss * (0.4, 0.4, 0.4) + (0.75 * size, 0, 0), rng.integers(3, 7))
    upright = rotate(pierced(polygon(rng), CIRCLE * 0.15, thickness), X, np.pi / 2) + (0, 0.5, -0.3 * size)
    parts += pick(rng, [], [sleeve], bolts, [sleeve, *bolts], [upright], [BOX * (size, tall, 0.1) + (0, tall / 2, 0)])
    if rng.random() < 0.4:
        parts = [rotate(part, X, np.pi / 2) for part in parts]
    return repeated(rng, parts) if rng.random() < 0.2 else parts


def brick(rng: Generator) -> list[Surface]:
    """A toy brick: studs on a box, a slope, a disc or an arch, hollow below."""
    columns, rows = rng.integers(1, 9), rng.integers(1, 5)
    tall = pick(rng, 0.4, 1.2, 1.2, 2.4)
    size = np.array([columns, tall, rows], dtype=float)
    studs = [
        CYLINDER * (0.6, 0.2, 0.6) + (x - (columns - 1) / 2, tall + 0.1, z - (rows - 1) / 2)
        for x in range(columns)
        for z in range(rows)
    ]
    shell = lathe([(1, 0), (1, tall), (0, tall), (0.8, tall - 0.2), (0.8, 0)], SQUARE * (columns / 2, rows / 2))
    slope = WEDGE * size + (0, tall / 2, 0)
    round_ = lathe([(0.8, 0), (1, 0), (1, tall), (0, tall)], CIRCLE * size[[0, 2]] / 2)
    feet = [BOX * (1, tall, rows) + (side * (columns / 2 - 0.5), tall / 2, 0) for side in (1, -1)]
    arch = [*feet, BOX * (columns, 0.3 * tall, rows) + (0, 0.85 * tall, 0)]
    body = pick(rng, [shell], [shell], [shell], [slope], [round_], arch)
    kept = [stud for stud in studs if body[0] is not slope or stud[..., 2].min() < -rows / 2 + 0.5]
    return [*body, *pick(rng, kept, kept, kept[: len(kept) // 2], [])]


def component(rng: Generator) -> list[Surface]:
    """An electronic component: a package or a shell with pins at its sides or below, or a row of contacts."""
    width, depth, tall, pin = *log_uniform(rng, 0.3, 1.5, 3), rng.uniform(0.02, 0.06)
    package = pick(rng, BOX, BOX, CYLINDER, WEDGE) * (width, tall, depth) + (0, tall / 2 + 0.1, 0)
    count = rng.integers(1, 12)
    places = np.linspace(-0.45, 0.45, count) * width if count > 1 else [0]
    reach, foot = depth / 2 + rng.uniform(0.05, 0.3), tall * rng.uniform(0.2, 0.7)
    leg = [(0, foot, depth / 2), (0, foot, reach), (0, 0, reach), (0, 0, reach + 0.1)]
    wings = [tube(np.array(leg) * (1, 1, side) + (x, 0, 0), pin, SQUARE) for x in places for side in (1, -1)]
    turned_wings = [rotate(wing, Y, np.pi / 2) * (width / depth, 1, depth / width) for wing in wings]
    straight = [BOX * (pin, 0.8, pin) + (x, -0.3, z) for x in places for z in pick(rng, (0,), (-0.2, 0.2))]
    tall_pins = [
        BOX * (2 * pin, 2 * tall, 2 * pin) + (x, tall, z) for x in places for z in pick(rng, (0,), (-0.1, 0.1))
    ]
    wires = mirrored(tube([(width / 2, tall, 0), (width, tall, 0), (width, -0.5, 0)], pin))
    tab = pierced(SQUARE * (width / 2, depth / 3), SQUARE * 0.1 * min(width, depth), 0.05)
    extra = pick(rng, [], [], [], [tab + (0, 0.1, -0.7 * depth)], [DOME * (0.5, 0.4, 0.5) + (0, tall + 0.1, 0)])
    pins = pick(rng, wings, wings, [*wings, *turned_wings], straight, straight, tall_pins, wires, [])
    return [package, *pins, *extra]


def case(rng: Generator) -> list[Surface]:
    """Furniture of boards: a cupboard, a chest, a sofa, a bench, a desk, a rack or a radiator."""
    width, depth, tall, board = *uniform(rng, (0.4, 2.0), (0.3, 0.8), (0.3, 2.0)), rng.uniform(0.02, 0.06)
    sides = mirrored(BOX * (board, tall, depth) + (width / 2, tall / 2, 0))
    levels = [BOX * (width, board, depth) + (0, y, 0) for y in np.linspace(0, tall, rng.integers(2, 7))]
    back = BOX * (width, tall, board) + (0, tall / 2, -depth / 2)
    columns, rows = rng.integers(1, 4), rng.integers(1, 6)
    fronts = []
    for x in (np.arange(columns) + 0.5) / columns - 0.5:
        for y in (np.arange(rows) + 0.5) / rows:
            place = (x * width, y * tall, depth / 2)
            fronts += [BOX * (0.9 * width / columns, 0.9 * tall / rows, board) + place]
            fronts += [BALL * 2 * board + place + (0, 0, board)]
    cushions = [BOX * (width, 0.35, depth) + (0, 0.3, 0), BOX * (width, 0.7, 0.25) + (0, 0.5, -depth / 2)]
    arms = mirrored(pick(rng, BOX, CYLINDER_ALONG_Z) * (0.25, 0.35, depth) + (width / 2, 0.45, 0))
    ribs = [BOX * (0.4 / columns, tall, 0.3 * depth) + (x, tall / 2, 0) for x in np.linspace(-0.5, 0.5, 9) * width]
    top = BOX * (1.1 * width, board, 1.1 * depth) + (0, tall, 0)
    legs = stand(rng, width, depth, 0.3)
    return pick(
        rng, [*sides, *levels, back], [*sides, *levels, back, *fronts], [*sides, *fronts, back, top],
        [*cushions, *arms], [*cushions, *legs], [*ribs, levels[0], levels[-1]],
        [*legs, BOX * (width, 0.1, depth) + (0, 0.35, 0)],
        [*sides, top, back], [*at_corners(BOX * (board, tall, board) + (width / 2, tall / 2, depth / 2)), *levels],
    )  # fmt: skip


def building(rng: Generator) -> list[Surface]:
    width, depth, tall, roof = *uniform(rng, (0.5, 2.0), (0.5, 1.5), (0.3, 2.0)), rng.uniform(0.2, 0.9)
    walls = lathe([(1, 0), (1, tall), (0.95, tall), (0.95, 0)], SQUARE * (width / 2, depth / 2))
    gable = WEDGE * (width, roof, depth / 2) + (0, 0, depth / 4)
    gables = [gable + (0, tall + roof / 2, 0), gable * (1, 1, -1) + (0, tall + roof / 2, 0)]
    hip = lathe([(1.15, 0), (rng.uniform(0, 0.5), roof)], SQUARE * (width / 2, depth / 2)) + (0, tall, 0)
    flat = BOX * (1.1 * width, 0.06, 1.1 * depth) + (0, tall, 0)
    battlements = [
        BOX * (0.12, 0.15, 0.12) + (x, tall + 0.07, z)
        for x in np.linspace(-0.5, 0.5, 6) * width
        for z in (-depth / 2, depth / 2)
    ]
    tower = CYLINDER * (0.4, 1.6 * tall, 0.4) + (width / 2, 0.8 * tall, depth / 2)
    cap = CONE * (0.5, roof, 0.5) + (width / 2, 1.6 * tall, depth / 2)
    columns = [CYLINDER * (0.1, tall, 0.1) + (x, tall / 2, 0.65 * depth) for x in np.linspace(-0.5, 0.5, 6) * width]
    steps = [BOX * (0.5 * width, 0.08, 0.1) + (0, 0.08 * (3 - i), depth / 2 + 0.1 * i) for i in range(4)]
    windows = [
        BOX * (0.15, 0.25, 0.05) + (x, y * tall, depth / 2)
        for x in np.linspace(-0.35, 0.35, rng.integers(2, 5)) * width
        for y in np.linspace(0.3, 0.8, rng.integers(1, 4))
    ]
    above = pick(rng, gables, gables, [hip], [hip], [flat], [flat, *battlements], battlements)
    beside = pick(rng, [], [], [tower, cap], [tower], at_corners(tower), columns, steps)
    stone = [BOX * (width, tall, 0.15) + (0, tall / 2, 0), *[part * (1, 1, 0.3) for part in battlements]]
    return stone if rng.random() < 0.1 else [walls, *above, *beside, *pick(rng, [], windows, windows)]


def vehicle(rng: Generator) -> list[Surface]:
    """A cart, truck, tank, ship or aircraft along z."""
    width, tall, long, wheel = uniform(rng, (0.4, 0.8), (0.2, 0.5), (0.8, 2.0), (0.1, 0.4))
    hull_profile = [(0, -0.5), (0.5, -0.45), (1, -0.2), (1, 0.2), (rng.uniform(0.2, 0.8), 0.45), (0, 0.5)]
    hull = rotate(lathe(hull_profile, pick(rng, CIRCLE, SQUARE) * 0.5), X, np.pi / 2) * (width, tall, long)
    open_hull = hull * (1, 1, 1)
    open_hull[open_hull[..., 1] > 0, 1] = 0
    wheels = [
        CYLINDER_ALONG_X * (0.12, wheel, wheel) + (side * width / 2, -tall / 2, z)
        for side in (1, -1)
        for z in np.linspace(-0.35, 0.35, rng.integers(2, 5)) * long
    ]
    box = BOX * (width, tall, long)
    cabin = BOX * (0.9 * width, tall, 0.3 * long) + (0, 0.8 * tall, rng.uniform(-0.3, 0.3) * long)
    mast = CYLINDER * (0.05, 4 * tall, 0.05) + (0, 2 * tall, 0)
    sail = plate([(-0.5 * long, 0.5 * tall), (0.4 * long, tall), (0, 3.5 * tall)], 0.02, X)
    wing = plate([(0, -0.2), (rng.uniform(0.6, 1.4), -0.1 - rng.random() * 0.3), (1.0, -0.3), (0, -0.4)], 0.05, Y)
    tail = plate([(-0.5 * long, 0), (-0.35 * long, 0), (-0.5 * long, tall)], 0.04, X)
    turret = [
        CYLINDER * (0.4, 0.25, 0.4) + (0, 0.6 * tall, 0),
        CYLINDER_ALONG_Z * (0.07, 0.07, 0.8) + (0, 0.6 * tall, 0.5),
    ]
    tracks = mirrored(BOX * (0.2, 0.7 * tall, long) + (width / 2, -0.4 * tall, 0))
    return pick(
        rng, [box, *wheels], [box, cabin, *wheels], [hull, cabin, *wheels], [box, *turret, *tracks],
        [box, *turret, *wheels], [open_hull, mast, sail], [open_hull, cabin], [open_hull, mast],
        [hull, *mirrored(wing), tail], [hull, *mirrored(wing), tail, *wheels[:2]],
    )  # fmt: skip


def tool(rng: Generator) -> list[Surface]:
    """A handle along y with a head, a blade, a shaft or a bow, or a shield."""
    long, thick, head = log_uniform(rng, 0.5, 3.0), rng.uniform(0.03, 0.1), rng.uniform(0.2, 0.6)
    handle = tube([(0, 0, 0), (0.001, long, 0)], thick, pick(rng, CIRCLE, SQUARE))
    blade = plate([(-head / 3, 0), (head / 3, 0), (head / 4, 2 * head), (0, 3 * head), (-head / 4, 2 * head)], 0.03, Z)
    axe = plate([(0, 0), (head, -head / 2), (1.1 * head, 0), (head, head / 2)], 0.05, Z) + (0, 0.9 * long, 0)
    guard = BOX * (head, 0.06, 0.1) + (0, long, 0)
    fork = [CYLINDER * (0.05, head, 0.05) + (x, long + head / 2, 0) for x in np.linspace(-0.15, 0.15, 4)]
    fork += [BOX * (0.35, 0.05, 0.05) + (0, long, 0)]
    spoon = BALL * (head, 0.15, head) + (0, long, 0)
    ring = pierced(CIRCLE * head, CIRCLE * 0.7 * head, 0.08)
    spanner = rotate(ring, X, np.pi / 2) + (0, long + head, 0)
    shaft = CYLINDER * (0.3, long, 0.3) + (0, long / 2, 0)
    bow = tube(arc(0.4, 1.0, -85, 85), 0.04)
    shield = rotate(DOME * (1, 0.3, pick(rng, 1, 1.6)), X, np.pi / 2)
    screw = [CYLINDER * (0.3, 1, 0.3), lathe([(0.3, 0.5), (0.3, 0.7), (0, 0.7)], CIRCLE[:: pick(rng, 1, 4)])]
    return pick(
        rng, [handle, blade + (0, long, 0), guard], [handle, axe], [handle, axe, axe * (-1, 1, 1)], [handle, *fork],
        [handle, spoon], [handle, spanner], [handle, spanner, spanner * (1, -1, 1) + (0, long, 0)], [shaft, guard],
        [bow, CYLINDER * (0.02, 2, 0.02)], [shield], [shield, BALL * 0.2 + (0, 0, 0.3)], screw,
        [handle, BALL * head + (0, long, 0)],
    )  # fmt: skip


def plant(rng: Generator) -> list[Surface]:
    """A trunk with crown, branches or fronds, with or without a pot."""
    tall, thick = rng.uniform(0.6, 2.0), rng.uniform(0.03, 0.1)
    parts = [tube([(0, 0, 0), (0.01, tall / 2, 0), (rng.uniform(-0.1, 0.1), tall, 0)], (2 * thick, thick, thick / 2))]
    kind = rng.integers(5)
    for _ in range(rng.integers(3, 10)):
        yaw, height, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1) * tall, rng.uniform(0.3, 0.9)
        branch = tube([(0, height, 0), (reach, height + rng.uniform(-0.3, 0.5), 0)], thick / 2)
        leaf = BALL * log_uniform(rng, 0.2, 0.8, 3) + (reach, height + 0.2, 0)
        frond = tube(arc(reach, 0.5, 0, 170) + (reach, tall - 0.1, 0), 0.12, SQUARE * (0.1, 1))
        added = {0: [branch, leaf], 1: [branch], 2: [frond], 3: [leaf * (0.6, 1, 0.6)], 4: []}[kind]
        parts += [rotate(part, Y, yaw) for part in added]
    levels = np.linspace(0.2, 0.8, rng.integers(1, 5)) * tall
    parts += [CONE * (1.2 - y / tall, 0.5 * tall, 1.2 - y / tall) + (0, y, 0) for y in levels] if kind == 4 else []
    pot = lathe([(0, -0.4), (0.2, -0.4), (0.3, 0), (0.25, 0), (0.2, -0.1), (0, -0.1)])
    return [*parts, *pick(rng, [], [pot])]


def animal(rng: Generator) -> list[Surface]:
    """A body with head, legs, neck, tail and perhaps ears or wings; or upright, with arms."""
    long, round_, leg, thick = uniform(rng, (0.6, 1.4), (0.3, 0.6), (0.2, 0.9), (0.05, 0.12))
    body = pick(rng, BALL, BALL, BOX, CYLINDER_ALONG_Z) * (round_, round_, long)
    legs = at_corners(tube([(0.3 * round_, 0, 0.35 * long), (0.3 * round_ + 0.01, -leg, 0.35 * long)], thick))
    neck, head = rng.uniform(0.0, 0.6), rng.uniform(0.2, 0.4)
    parts = [body, *legs, tube([(0, 0, 0.4 * long), (0, neck, 0.6 * long)], thick)]
    parts += [BALL * (head, head, 1.4 * head) + (0, neck, 0.6 * long + 0.1)]
    parts += mirrored(CONE * (0.08, 0.2, 0.08) + (0.3 * head, neck + 0.3 * head, 0.6 * long))
    parts += pick(rng, [], [tube([(0, 0, -0.45 * long), (0, rng.uniform(-0.3, 0.4), -0.8 * long)], 0.04)])
    if rng.random() < 0.3:  # upright
        parts = [rotate(part, X, -np.pi / 2) for part in parts]
    return parts


def everyday(rng: Generator) -> list[Surface]:
    return [surface for part in pick(rng, *OBJECTS)(rng).values() for surface in part]


BUILDERS = (turned, bent, plates, brick, component, case, building, vehicle, tool, plant, animal, everyday)
WEIGHTS = np.array([8, 5, 8, 8, 9, 8, 7, 6, 6, 4, 4, 12])
COMPOSED = 0.15  # the share of `composition`


def make_shape(rng: Generator, num_points: int) -> np.ndarray:
    if rng.random() < COMPOSED:
        points = composition(rng, num_points)
    else:
        surfaces = BUILDERS[rng.choice(len(BUILDERS), p=WEIGHTS / WEIGHTS.sum())](rng)
        points, _ = sample_triangles(triangles_of_surfaces(surfaces), num_points, rng)
    points = points * log_uniform(rng, 0.7, 1.4, 3)
    points = fit(points)
    if rng.random() < DEFORMED:
        points = fit(deform(rng, points))
    if rng.random() < TIPPED:
        points = rotate(points, pick(rng, X, Z), pick(rng, np.pi / 2, -np.pi / 2))
    quarter = rng.integers(4) * np.pi / 2
    return rotate(points, Y, rng.uniform(0, 2 * np.pi) if rng.random() < TURNED else quarter)


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
