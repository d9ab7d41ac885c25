"""Objects from random proportions, for the broad set: furniture, devices, buildings, vehicles, tools, plants, animals.

A builder returns surfaces, or bodies and what is cut out of them. y is up, +z the front.
"""

import numpy as np

from act_training.synthetic.broad_parts import pierced, rods
from act_training.synthetic.shape_kit import (
    BALL,
    BOX,
    CIRCLE,
    CONE,
    CYLINDER,
    CYLINDER_ALONG_X,
    CYLINDER_ALONG_Z,
    DOME,
    PRISM,
    SQUARE,
    Surface,
    X,
    Y,
    Z,
    arc,
    at_corners,
    lathe,
    log_uniform,
    mirrored,
    pick,
    plate,
    rotate,
    stand,
    tube,
    uniform,
)
from act_training.synthetic.solids import CAPSULE, ROUND_SQUARE, WEDGE, Generator, Solids, ngon


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


def device(rng: Generator) -> Solids:
    """A household device: a screen, phone, keyboard, washing machine, speaker, camera, radio, fan or tap."""
    width, tall, depth = log_uniform(rng, 0.5, 1.5, 3)
    thin, size = rng.uniform(0.04, 0.12), rng.uniform(0.25, 0.45) * min(width, tall)
    case_ = lathe(PRISM * (0.5, 1), pick(rng, SQUARE, ROUND_SQUARE)) * (width, tall, depth)
    front = depth / 2
    columns, rows = rng.integers(2, 9), rng.integers(1, 6)
    keys = [
        BOX * (0.7 * width / columns, 2 * thin, 0.7 * depth / rows) + (x * width, thin, z * depth)
        for x in (np.arange(columns) + 0.5) / columns - 0.5 for z in (np.arange(rows) + 0.5) / rows - 0.5
    ]  # fmt: skip
    screen = BOX * (width, tall, thin) + (0, 0.2 + tall / 2, 0)
    frame = [BOX * (0.9 * width, 0.85 * tall, thin) + (0, 0.2 + tall / 2, 0.8 * thin)]
    neck = [CYLINDER * (0.12, 0.6, 0.08) + (0, 0.1, -thin / 2), CYLINDER * (0.5 * width, thin, 0.4) - (0, 0.2, 0)]
    slab = rotate(lathe(PRISM * (0.5, 1), ROUND_SQUARE), X, np.pi / 2) * (0.6, 1.2, thin)
    disc = CYLINDER_ALONG_Z * (2 * size, 2 * size, 0.2)
    lens = rotate(lathe([(0, 0), (1, 0), (0.9, depth), (0.8, depth), (0.7, 0.2), (0, 0.2)]), X, np.pi / 2)
    knobs = [CYLINDER_ALONG_Z * (0.1, 0.1, 0.2) + (x * width, 0.4 * tall, front) for x in (-0.35, 0, 0.35)]
    antenna = rods([((0.4 * width, 0.4 * tall, 0), (0.6 * width, 1.2 * tall, 0))], 0.03)
    blade = plate([(0, 0), (0.1, 0.3), (0.25, 0.4), (0.3, 0.1)], thin, Z)
    fan = [rotate(blade, Z, 2 * np.pi * step / columns) for step in range(columns)] + [BALL * 0.15]
    guard = rotate(lathe(0.04 * CIRCLE + (0.45, 0)), X, np.pi / 2)
    stem = [CYLINDER * (0.06, tall, 0.06) - (0, tall / 2, 0.05), CYLINDER * (0.5, thin, 0.5) - (0, tall, 0)]
    spout = tube(arc(0.4, 0.4, 180, 10) + (0.4, 0.5, 0), 0.08)
    tap = [CYLINDER * (0.2, 0.6, 0.2) + (0, 0.2, 0), spout, BOX * (0.5, 0.06, 0.1) + (0, 0.2, 0.1), CYLINDER * 0.4]
    feet = at_corners(CYLINDER * (0.08, 0.2, 0.08) + (0.4 * width, -tall / 2, 0.4 * depth))
    return pick(
        rng, ([screen, *neck], frame), ([slab], [BOX * (0.5, 0.9, thin) + (0, 0, 0.8 * thin)]),
        ([BOX * (width, 2 * thin, depth), *keys], []), ([case_, *feet], [disc + (0, 0, front)]),
        ([case_], [disc * (1, 1, 2) + (0, 0, front), *knobs]), ([case_, disc + (0, 0, front), *knobs], []),
        ([case_, lens * (size, size, 1) + (0, 0, front)], []), ([case_, *antenna, *knobs], [disc + (0, -0.1, front)]),
        ([*fan, *stem], []), ([*fan, guard, *stem], []), (tap, []),
        ([case_, *keys[:3]], [BOX * (0.7 * width, 0.5 * tall, depth) + (0, 0, 0.4 * depth)]),
    )  # fmt: skip


def building(rng: Generator) -> Solids:
    """A house, hall, tower, temple or wall: a roof or battlements on walls, with windows, towers, columns or steps."""
    width, depth, tall, roof = *uniform(rng, (0.5, 2.0), (0.5, 1.5), (0.3, 2.0)), rng.uniform(0.2, 0.9)
    block = BOX * (width, tall, depth) + (0, tall / 2, 0)
    court = BOX * (0.8 * width, tall, 0.8 * depth) + (0, 0.6 * tall, 0)
    gable = WEDGE * (1.1 * width, roof, 0.55 * depth) + (0, tall + roof / 2, 0.275 * depth)
    gables = [gable, gable * (1, 1, -1)]
    hip = lathe([(0, 0), (1.15, 0), (rng.uniform(0, 0.5), roof), (0, roof)], SQUARE * (width / 2, depth / 2))
    flat = BOX * (1.1 * width, 0.06, 1.1 * depth) + (0, tall, 0)
    battlements = [
        BOX * (0.09 * width, 0.2, 0.09 * width) + (x * width, tall + 0.05, side * 0.45 * depth)
        for x in np.linspace(-0.45, 0.45, 6) for side in (-1, 1)
    ]  # fmt: skip
    tower = CYLINDER * (0.4, 1.6 * tall, 0.4) + (width / 2, 0.8 * tall, depth / 2)
    cap = lathe([(0, 0), (0.25, 0), (0, roof)]) + (width / 2, 1.6 * tall, depth / 2)
    chimney = BOX * (0.12, roof, 0.12) + (0.3 * width, tall + 0.6 * roof, 0.1 * depth)
    wing = pick(rng, BOX, CYLINDER) * (0.8 * width, 0.7 * tall, depth) + (-0.6 * width, 0.35 * tall, 0.4 * depth)
    spots = [x * width for x in np.linspace(-0.42, 0.42, rng.integers(3, 8))]
    columns = [CYLINDER * (0.1, tall, 0.1) + (x, tall / 2, 0.7 * depth) for x in spots]
    porch = [*columns, BOX * (width, 0.08, 0.3 * depth) + (0, tall, 0.6 * depth)]
    steps = [BOX * (0.5 * width, 0.08, 0.15) + (0, 0.08 * (3 - i), depth / 2 + 0.1 * i) for i in range(4)]
    levels = np.linspace(0.3, 0.85, rng.integers(1, 5)) * tall
    pane = BOX * (0.4 * width / len(spots), 0.4 * tall / len(levels), 0.15)
    windows = [pane + (x, y, side * depth / 2) for x in spots for y in levels for side in (1, -1)]
    door = BOX * (0.2 * width, 0.4 * tall, 0.3) + (0, 0.18 * tall, depth / 2)
    above = pick(rng, gables, gables, [*gables, chimney], [hip + (0, tall, 0)], [flat], [flat, *battlements])
    beside = pick(rng, [], [], [tower, cap], [tower], at_corners(tower), porch, steps, [wing])
    cuts = pick(rng, [], windows, windows, [door], [*windows, door])
    if rng.random() < 0.25:
        return [block, *battlements, *pick(rng, [], at_corners(tower))], [court, *cuts]
    thin = [part * (1, 1, 0.3) for part in (block, *battlements)]
    return (thin, [door * (1.5, 1.5, 9)]) if rng.random() < 0.1 else ([block, *above, *beside], cuts)


def vehicle(rng: Generator) -> list[Surface]:
    """A cart, truck, tank, ship, aircraft, helicopter or bicycle along z."""
    width, tall, long, wheel = uniform(rng, (0.4, 0.8), (0.2, 0.5), (0.8, 2.0), (0.1, 0.4))
    hull_profile = [(0, -0.5), (0.5, -0.45), (1, -0.2), (1, 0.2), (rng.uniform(0.2, 0.8), 0.45), (0, 0.5)]
    hull = rotate(lathe(hull_profile, pick(rng, CIRCLE, CIRCLE, SQUARE) * 0.5), X, np.pi / 2) * (width, tall, long)
    ship = hull * (1, 1, 1)
    ship[ship[..., 1] > 0, 1] = 0
    wheels = [
        CYLINDER_ALONG_X * (0.12, wheel, wheel) + (side * width / 2, -tall / 2, z)
        for side in (1, -1)
        for z in np.linspace(-0.35, 0.35, rng.integers(2, 5)) * long
    ]
    box = BOX * (width, tall, long)
    cabin = BOX * (0.9 * width, tall, 0.3 * long) + (0, 0.8 * tall, rng.uniform(-0.3, 0.3) * long)
    deck_house = cabin * (0.7, 1, 1) - (0, 0.4 * tall, 0)
    mast = CYLINDER * (0.05, 4 * tall, 0.05) + (0, 2 * tall, 0)
    sail = plate([(-0.45 * long, 0.3 * tall), (0.4 * long, 0.3 * tall), (0, 3.9 * tall)], 0.02, X)
    span, tip, chord, back = *uniform(rng, (0.6, 1.4), (0.05, 0.4)), *uniform(rng, (0.2, 0.5), (-0.1, 0.5))
    wing = plate([(0, chord / 2), (span, tip / 2 - back), (span, -tip / 2 - back), (0, -chord / 2)], 0.05, Y)
    fin = plate([(-0.5 * long, 0), (-0.3 * long, 0), (-0.5 * long, tall), (-0.55 * long, tall)], 0.04, X)
    small_wings = [part * (0.4, 1, 0.5) - (0, 0, 0.42 * long) for part in mirrored(wing)]
    turret = [
        pick(rng, CYLINDER, BOX, DOME) * (0.4, 0.25, 0.4) + (0, 0.6 * tall, 0),
        CYLINDER_ALONG_Z * (0.07, 0.07, 0.8) + (0, 0.65 * tall, 0.5),
    ]
    tracks = mirrored(lathe(CAPSULE * (0.5, 1)) * (0.2, long, 0.8 * tall))
    tracks = mirrored(rotate(tracks[0], X, np.pi / 2) + (width / 2, -0.4 * tall, 0))
    blades = [BOX * (0.06, 0.02, 1.3 * long), BOX * (1.3 * long, 0.02, 0.06), CYLINDER * (0.05, 0.3, 0.05)]
    boom = CYLINDER_ALONG_Z * (0.08, 0.08, long) - (0, 0, 0.7 * long)
    rotor = [*(blade + (0, 0.5 * tall + 0.12, 0) for blade in blades), boom, fin - (0, 0, 0.65 * long)]
    ring = rotate(lathe(0.04 * CIRCLE + (0.4, 0)), Z, np.pi / 2)
    axle, seat, bar = (0, 0.1, 0.1), (0, 0.65, -0.15), (0, 0.7, 0.4)
    bars = [(seat, axle), (axle, (0, 0, -0.55)), (seat, (0, 0, -0.55)), (bar, (0, 0, 0.55)), (axle, bar), (seat, bar)]
    bicycle = [ring + (0, 0, 0.55), ring - (0, 0, 0.55), *rods([*bars, ((-0.25, 0.7, 0.4), (0.25, 0.7, 0.4))], 0.05)]
    coupling = CYLINDER_ALONG_Z * (0.08, 0.08, 2 * long) + (0, -0.3 * tall, 1.1 * long)
    train = [coupling, *(part + (0, 0, place * long) for part in (box, *wheels) for place in (0, 1.1, 2.2))]
    return pick(
        rng, [box, *wheels], [box, cabin, *wheels], [hull, cabin, *wheels], [box, *turret, *tracks], train,
        [box, *turret, *wheels], [ship, mast, sail], [ship, deck_house], [ship, mast, deck_house], bicycle,
        [hull, *mirrored(wing), fin, *small_wings], [hull, *mirrored(wing), fin, *wheels[:2]], [hull, *rotor],
    )  # fmt: skip


def tool(rng: Generator) -> list[Surface]:
    """A tool or weapon: a handle along y with a head, blade, fork or brush, a screw, bow, shield, saw, key or gun."""
    long, thick, head = log_uniform(rng, 0.5, 3.0), rng.uniform(0.03, 0.1), rng.uniform(0.2, 0.6)
    handle = tube([(0, 0, 0), (0.001, long, 0)], thick, pick(rng, CIRCLE, SQUARE))
    blade = plate([(-head / 3, 0), (head / 3, 0), (head / 4, 2 * head), (0, 3 * head), (-head / 4, 2 * head)], 0.03, Z)
    axe = plate([(0, 0), (head, -head / 2), (1.1 * head, 0), (head, head / 2)], 0.05, Z) + (0, 0.9 * long, 0)
    guard = BOX * (head, 0.06, 0.1) + (0, long, 0)
    fork = [CYLINDER * (0.05, head, 0.05) + (x, long + head / 2, 0) for x in np.linspace(-0.15, 0.15, 4)]
    fork += [BOX * (0.35, 0.05, 0.05) + (0, long, 0)]
    spoon = BALL * (head, 0.15, head) + (0, long, 0)
    eye = rotate(pierced(pick(rng, CIRCLE, ngon(6)) * 0.5 * head, 0.3 * head, 0.08), X, np.pi / 2)
    spanner = eye + (0, long + 0.4 * head, 0)
    arm = tube([(0, -long / 2, 0), (0.001, long / 2, 0)], (thick, thick / 3)) + (0, long / 3, 0)
    pliers = [rotate(part, Z, side) for part in (arm, eye - (0, 0.2 * long, 0)) for side in (0.15, -0.15)]
    teeth = [BOX * (0.02, head / 3, 0.03) + (x, -head / 6, 0) for x in np.linspace(-0.48, 0.48, 20) * long]
    saw = [*teeth, BOX * (long, head / 3, 0.04) + (0, head / 6, 0)]
    brush = CYLINDER * (0.1, 0.5 * head, 0.1) + (0, -0.5 * head, 0)
    broom = [brush + (x, 0, 0) for x in np.linspace(-0.4, 0.4, 9) * head] + [BOX * (head, 0.6 * head, 0.15)]
    bits = [BOX * (0.3, 0.05, 0.04) + (0.15, y * long, 0) for y in (0.97, 0.85, 0.75)]
    key = [handle, eye - (0, 0.4 * head, 0), *bits]
    grip = plate([(-0.2, 0), (0, 0), (0.1, -head), (-0.15, -head)], 0.08, Z)
    barrel = CYLINDER_ALONG_X * (0.6 * long, 0.06, 0.06) + (0.9 * long, 0.08, 0)
    gun = [grip, BOX * (long, 0.15, 0.1) + (long / 2 - 0.2, 0.05, 0), eye * 0.5 + (0.15, -0.1, 0), barrel]
    shaft = CYLINDER * (0.3, long, 0.3) + (0, long / 2, 0)
    bow = tube(arc(0.4, 1.0, -85, 85), 0.04)
    shield = rotate(DOME * (1, 0.3, pick(rng, 1, 1.6)), X, np.pi / 2)
    screw = [CYLINDER * (0.3, 1, 0.3), lathe([(0, 0.5), (0.3, 0.5), (0.3, 0.7), (0, 0.7)], ngon(pick(rng, 6, 20)))]
    return pick(
        rng, [handle, blade + (0, long, 0), guard], [handle, axe], [handle, axe, axe * (-1, 1, 1)], [handle, *fork],
        [handle, spoon], [handle, spanner], [handle, spanner, spanner * (1, -1, 1) + (0, long, 0)], [shaft, guard],
        [bow, CYLINDER * (0.02, 2, 0.02)], [shield], [shield, BALL * 0.2 + (0, 0, 0.3)], screw,
        [handle, BALL * head + (0, long, 0)], pliers, saw, [handle, *broom], key, gun,
    )  # fmt: skip


def plant(rng: Generator) -> list[Surface]:
    """A trunk with crown, branches or fronds, with or without a pot."""
    tall, thick = rng.uniform(0.6, 2.0), rng.uniform(0.03, 0.1)
    trunk = [(0, -0.15, 0), (0.01, tall / 2, 0), (rng.uniform(-0.1, 0.1), tall, 0)]
    parts = [tube(trunk, (2 * thick, thick, thick / 2))]
    kind = rng.integers(5)
    for _ in range(rng.integers(3, 10)):
        yaw, reach, rise, share = uniform(rng, (0, 2 * np.pi), (0.3, 0.9), (-0.2, 0.5), (0.4, 1))
        height = share * tall
        branch = tube([(0, height, 0), (reach, height + rise, 0)], thick / 2)
        leaf = BALL * log_uniform(rng, 0.2, 0.8, 3) + (reach, height + rise, 0)
        frond = tube(arc(reach, 0.5, 0, 170) + (reach, tall - 0.1, 0), 0.12, SQUARE * (0.1, 1))
        added = {0: [branch, leaf], 1: [branch], 2: [frond], 3: [leaf - (0.9 * reach, rise, 0)], 4: []}[kind]
        parts += [rotate(part, Y, yaw) for part in added]
    levels = np.linspace(0.2, 0.8, rng.integers(1, 5)) * tall
    parts += [CONE * (1.2 - y / tall, 0.5 * tall, 1.2 - y / tall) + (0, y, 0) for y in levels] if kind == 4 else []
    pot = lathe([(0, -0.4), (0.2, -0.4), (0.3, 0), (0.25, 0), (0.2, -0.1), (0, -0.1)])
    return [*parts, *pick(rng, [], [pot])]


def animal(rng: Generator) -> list[Surface]:
    """A body with head, legs, neck, tail and perhaps ears or wings."""
    long, round_, leg, thick = uniform(rng, (0.6, 1.4), (0.3, 0.6), (0.2, 0.9), (0.05, 0.12))
    body = pick(rng, BALL, BALL, BOX, CYLINDER_ALONG_Z) * (round_, round_, long)
    legs = at_corners(tube([(0.3 * round_, 0, 0.35 * long), (0.3 * round_ + 0.01, -leg, 0.35 * long)], thick))
    neck, head = rng.uniform(0.0, 0.6), rng.uniform(0.2, 0.4)
    parts = [body, *legs, tube([(0, 0, 0.4 * long), (0, neck, 0.6 * long)], thick)]
    parts += [BALL * (head, head, 1.4 * head) + (0, neck, 0.6 * long + 0.1)]
    parts += mirrored(CONE * (0.08, 0.2, 0.08) + (0.3 * head, neck + 0.3 * head, 0.6 * long))
    parts += pick(rng, [], [tube([(0, 0, -0.45 * long), (0, rng.uniform(-0.3, 0.4), -0.8 * long)], 0.04)])
    return parts


def figure(rng: Generator) -> list[Surface]:
    """A person: standing or a bust, with arms in some pose, perhaps a hat, a robe or a base."""
    wide, deep, torso, leg = uniform(rng, (0.3, 0.6), (0.2, 0.35), (0.45, 0.7), (0.4, 0.9))
    thick, head, step, lift = uniform(rng, (0.06, 0.12), (0.25, 0.4), (-0.3, 0.3), (-1.0, 1.0))
    body = lathe([(0, 0), (0.8, 0), (0.7, 0.4), (1, 0.85), (0.3, 1), (0, 1)], pick(rng, CIRCLE, ROUND_SQUARE))
    parts = [body * (wide / 2, torso, deep / 2), BALL * (head, 1.2 * head, head) + (0, torso + 0.55 * head, 0)]
    hat = CYLINDER * (pick(rng, 1, 1.6) * head, 0.1, pick(rng, 1, 1.6) * head) + (0, torso + 1.05 * head, 0)
    arms, legs = [], []
    for side in (1, -1):
        hip, shoulder = side * 0.25 * wide, side * 0.48 * wide
        hand = (1.6 * shoulder, (0.85 + 0.5 * side * lift) * torso - 0.2, 0.2)
        arms += rods([((shoulder, 0.85 * torso, 0), hand)], thick)
        legs += rods([((hip, 0.1, 0), (1.2 * hip, -leg, side * step))], 1.3 * thick)
        legs += [BOX * (thick, thick, 2.2 * thick) + (1.2 * hip, -leg, side * step + 0.6 * thick)]
    robe = lathe([(0, -leg), (rng.uniform(0.9, 1.6), -leg), (0.8, 0.1), (0, 0.1)]) * (wide / 2, 1, 0.7 * wide)
    base = pick(rng, BOX, CYLINDER) * (1.5 * wide, 0.15, 1.2 * wide)
    below = pick(rng, legs, legs, [robe], [base], [robe, base - (0, leg, 0)])
    return [*parts, *below, *pick(rng, arms, arms, []), *pick(rng, [], [], [hat])]
