"""Fourteen classes of everyday objects with named parts, generated from random proportions: nothing to download.

An object is a dict from part names to surfaces, with an empty list for a missing part; points are sampled from all
triangles by area. y is up, +z the front.
"""

import numpy as np

from act_training.synthetic.shape_kit import (
    BALL,
    BOX,
    CIRCLE,
    CONE,
    CYLINDER,
    CYLINDER_ALONG_X,
    CYLINDER_ALONG_Z,
    DOME,
    HALF_CIRCLE,
    SQUARE,
    Surface,
    X,
    Y,
    Z,
    arc,
    around,
    at_corners,
    lathe,
    mirrored,
    pick,
    plate,
    rotate,
    sample_triangles,
    stand,
    triangles_of,
    triangles_of_surfaces,
    tube,
    uniform,
)

Parts = dict[str, list[Surface]]

# All axes are scaled by up to e^0.45, and x and z by up to e^0.6 more from one end of an axis to the other: otherwise
# extents and moments reveal the class. Horizontal surfaces stay horizontal.
STRETCH, WARP = 0.45, 0.6


def chair(rng: np.random.Generator) -> Parts:
    width, depth, height, thickness = uniform(rng, (0.4, 0.9), (0.4, 0.7), (0.25, 0.8), (0.03, 0.15))
    tall, tilt, thin, rest = uniform(rng, (0.25, 0.9), (-0.35, 0.0), (0.02, 0.08), (0.15, 0.3))
    top, side = height + thickness, width / 2
    board, oval = (shape * (width, tall, thin) + (0, tall / 2, 0) for shape in (BOX, CYLINDER_ALONG_Z))
    rails = [BOX * (width, 0.1, thin) + (0, y, 0) for y in np.linspace(tall, 0.3 * tall, rng.integers(1, 4))]
    spindles = [CYLINDER * (thin, tall, thin) + (x, tall / 2, 0) for x in np.linspace(-side, side, rng.integers(3, 8))]
    back = pick(rng, [board], [oval], [*rails, spindles[0], spindles[-1]], [rails[0], *spindles])
    bow = tube([(side, top, depth / 2), (side, top + rest, depth / 2), (side, top + rest, -depth / 2)], thin / 2)
    panel = BOX * (2 * thin, rest, depth) + (side, top + rest / 2, 0)
    return {
        "seat": [pick(rng, BOX, BOX, CYLINDER) * (width, thickness, depth) + (0, height + thickness / 2, 0)],
        "back": [rotate(surface, X, tilt) + (0, top, -depth / 2) for surface in back],
        "legs": stand(rng, width, depth, height),
        "armrests": pick(rng, [], mirrored(pick(rng, bow, panel))),
    }


def table(rng: np.random.Generator) -> Parts:
    width, depth, height, thickness = uniform(rng, (0.5, 1.6), (0.5, 1.0), (0.3, 1.0), (0.02, 0.1))
    level, tall = uniform(rng, (0.2, 0.6), (0.1, 0.9))
    drawers = BOX * (0.25 * width, tall * height, 0.8 * depth) + (0.3 * width, (1 - tall / 2) * height, 0)
    return {
        "top": [pick(rng, BOX, CYLINDER) * (width, thickness, depth) + (0, height + thickness / 2, 0)],
        "legs": stand(rng, 0.9 * width, 0.9 * depth, height),
        "shelf": pick(rng, [], [], [BOX * (0.8 * width, 0.03, 0.8 * depth) + (0, level * height, 0)]),
        "drawers": pick(rng, [], [], pick(rng, [drawers], mirrored(drawers))),
    }


def bed(rng: np.random.Generator) -> Parts:
    width, depth, height, thickness = uniform(rng, (0.6, 1.4), (1.1, 1.6), (0.1, 0.4), (0.08, 0.25))
    head, foot, board, roof = uniform(rng, (0.3, 0.8), (0.2, 0.6), (0.03, 0.08), (0.8, 1.4))
    end, above = depth / 2, pick(rng, [], [], [], [BOX * (width, pick(rng, thickness, 0.02), depth) + (0, roof, 0)])
    tall = roof if above else height  # a bunk bed or a four-poster
    pillow = pick(rng, BOX, BALL) * (0.4 * width, 0.1, 0.25) + (0.23 * width, height + thickness + 0.05, 0.2 - end)
    return {
        "mattress": [BOX * (width, thickness, depth) + (0, height + thickness / 2, 0), *above],
        "headboard": [BOX * (width, head, board) + (0, height + head / 2, -end)],
        "footboard": pick(rng, [], [BOX * (width, foot, board) + (0, height + foot / 2, end)]),
        "legs": at_corners(pick(rng, BOX, CYLINDER) * (board, tall, board) + (0.49 * width, tall / 2, 0.98 * end)),
        "pillows": pick(rng, [], mirrored(pillow)),
    }


def shelf(rng: np.random.Generator) -> Parts:
    width, depth, height, thickness = uniform(rng, (0.4, 1.5), (0.2, 0.6), (0.5, 1.6), (0.02, 0.06))
    long, tall = uniform(rng, (0.2, 0.9), (0.3, 0.9))
    gap = height / rng.integers(2, 7)
    levels = np.arange(0.0, height + gap / 2, gap)
    side = BOX * (thickness, height, depth) + (width / 2, height / 2, 0)
    post = CYLINDER * (thickness, height, thickness) + (width / 2, height / 2, depth / 2)
    books = BOX * (long * width, tall * gap, 0.8 * depth) + ((1 - long) * width / 2, tall * gap / 2, 0)
    return {
        "boards": [BOX * (width, thickness, depth) + (0, y, 0) for y in levels],
        "sides": pick(rng, mirrored(side), at_corners(post)),
        "back": pick(rng, [], [BOX * (width, height, 0.02) + (0, height / 2, -depth / 2)]),
        "books": pick(rng, [], [books * (pick(rng, 1, -1), 1, 1) + (0, y, 0) for y in levels[:-1]]),
    }


def lamp(rng: np.random.Generator) -> Parts:
    height, radius, rim, tall, foot = uniform(rng, (0.4, 1.8), (0.15, 0.5), (0.2, 1.0), (0.15, 0.5), (0.2, 0.7))
    reach, drop, tilt, belly, waist = uniform(rng, (0.2, 0.7), (-0.2, 0.3), (-0.8, 0.0), (0.1, 0.5), (0.05, 0.3))
    vase = [(0, 0), (waist, 0), (belly, 0.3 * height), (waist, 0.7 * height), (0, 0.8 * height)]
    plinth = pick(rng, CYLINDER, BOX, DOME) * (foot, 0.06, foot)
    straight, bent = [(0, 0, 0), (0, height, 0)], [(0, 0, 0), (0, height, -reach / 3), (0, height - drop, reach)]
    base, path = pick(rng, (plinth, straight), (lathe(vase), straight), (plinth, bent), (plinth, straight[::-1]))
    shade = pick(rng, lathe([(radius, -tall / 2), (radius * rim, tall / 2)]), DOME * (2 * radius, tall, 2 * radius))
    return {
        "base": [base + path[0]],
        "pole": [tube(path, 0.015)],
        "shade": [(rotate(shade, X, tilt) if path is bent else shade) + path[-1]],
        "bulb": [BALL * (0.12, 0.16, 0.12) + path[-1]],
    }


def umbrella(rng: np.random.Generator) -> Parts:
    height, radius, tall, thin, hook = uniform(rng, (0.9, 1.7), (0.35, 0.95), (0.1, 0.6), (0.01, 0.03), (0.05, 0.13))
    canopy, wide, tall = pick(rng, (DOME, radius, tall), (CONE, radius, tall), (CONE, radius / 5, 0.65 * height))
    bent = rotate(tube(arc(hook, hook, 0, -200) - (hook, 0, 0), 1.5 * thin), Y, rng.uniform(0, 6))
    return {
        "canopy": [canopy * (2 * wide, tall, 2 * wide) + (0, height - tall, 0)],
        "shaft": [CYLINDER * (2 * thin, height, 2 * thin) + (0, height / 2, 0)],
        "tip": [CONE * (3 * thin, hook, 3 * thin) + (0, height, 0)],
        "handle": [pick(rng, bent, bent, BALL * hook, CYLINDER * (hook, 2 * hook, hook))],
    }


def mug(rng: np.random.Generator) -> Parts:
    radius, height, rim, belly = uniform(rng, (0.3, 0.6), (0.4, 1.3), (0.8, 1.5), (0.8, 1.3))
    reach, loop, thin, wide = uniform(rng, (0.12, 0.4), (0.2, 0.4), (0.03, 0.07), (1.5, 2.4))
    wall = lathe([(radius, 0), (radius * belly, height / 2), (radius * rim, height)])
    square = np.array([(0, 1, 0), (1, 1, 0), (1, -1, 0), (0, -1, 0)]) * (reach, loop * height, 0)
    ear = pick(rng, square, arc(reach, loop * height, 90, -90))
    handle = tube(ear + (0.48 * radius * (belly + min(1, rim)), height / 2, 0), thin)
    return {
        "body": [wall, wall * (0.93, 1, 0.93)],
        "bottom": [lathe([(0, 0), (radius, 0)])],
        "handle": pick(rng, [handle], [handle], mirrored(handle)),
        "saucer": pick(
            rng, [], [], [lathe(radius * wide * np.array([(0, -0.05), (0.6, -0.05), (1, 0.06), (0.6, 0)]))]
        ),
    }


def bottle(rng: np.random.Generator) -> Parts:
    radius, height, neck, tall, slope = uniform(rng, (0.2, 0.5), (0.6, 1.3), (0.2, 0.7), (0.1, 0.5), (0.05, 0.4))
    waist, foot, taper, wide, reach = uniform(rng, (0.8, 1.1), (0.85, 1.0), (0.7, 1.0), (2.0, 2.6), (0.15, 0.35))
    body = [(0, 0), (foot, 0), (1, 0.1 * height), (waist, height / 2), (1, height), (neck, height + slope)]
    top, wide = height + slope, wide * neck * radius
    handle = tube(arc(reach, 0.35 * height, -90, 90) + (0.9 * radius, 0.6 * height, 0), 0.04)
    flat = pick(rng, 1, 1, 0.5)
    return {
        "body": [lathe(np.multiply(body, (radius, 1)), pick(rng, CIRCLE, CIRCLE, SQUARE)) * (1, 1, flat)],
        "neck": [lathe([(neck * radius, top), (taper * neck * radius, top + tall)]) * (1, 1, flat)],
        "cap": pick(rng, [], [pick(rng, CYLINDER, BALL) * (wide, 0.12, wide * flat) + (0, top + tall, 0)]),
        "handle": pick(rng, [], [], pick(rng, [handle], mirrored(handle))),
    }


def car(rng: np.random.Generator) -> Parts:
    length, width, height, wheel, tall = uniform(rng, (1.4, 2.4), (0.5, 0.8), (0.2, 0.4), (0.12, 0.25), (0.15, 0.5))
    bonnet, boot, slant, nose, axle = uniform(rng, (0.1, 0.35), (0.02, 0.6), (0.02, 0.2), (0.5, 1.0), (0.28, 0.36))
    front, rear, top = (0.5 - bonnet) * length, min(boot - 0.5, 0.2 - bonnet) * length, wheel + height
    body = [(0.5, wheel), (0.5, wheel + nose * height), (0.5 - bonnet, top), (-0.5, top), (-0.5, wheel)]
    cabin = [(rear, top), (front, top), (front - slant, top + tall), (rear + slant / 2, top + tall)]
    bumper = BOX * (width, 0.1, 0.1) + (0, wheel + 0.05, length / 2 + 0.05)
    spoiler = BOX * (width, pick(rng, 0.03, 0.15), 0.1) + (0, top + 0.08, -0.46 * length)
    return {
        "body": [plate(np.multiply(body, (length, 1)), width, X)],
        "cabin": [plate(cabin, 0.9 * width, X)],
        "wheels": at_corners(CYLINDER_ALONG_X * (0.12, 2 * wheel, 2 * wheel) + (width / 2, wheel, axle * length)),
        "bumpers": pick(rng, [], [bumper, bumper * (1, 1, -1)]),
        "spoiler": pick(rng, [], [], [spoiler]),
    }


def wing(span: float, chord: float, tip: float, sweep: float) -> Surface:
    """Tapering plate that extends from the origin along x; its chord lies along z."""
    outline = [(0, chord / 2), (span, tip * chord / 2 - sweep), (span, -tip * chord / 2 - sweep), (0, -chord / 2)]
    return plate(outline, 0.03, Y)


def airplane(rng: np.random.Generator) -> Parts:
    length, radius, span, chord, tip = uniform(rng, (1.2, 2.0), (0.06, 0.15), (0.6, 1.1), (0.2, 0.55), (0.2, 1.0))
    sweep, rise, level, place = uniform(rng, (-0.05, 0.6), (-0.05, 0.15), (-0.8, 0.9), (-0.1, 0.25))
    fin, tailplane, apart, blades = uniform(rng, (0.2, 0.45), (0.2, 0.4), (0.25, 0.5), (0.4, 0.7))
    hull = [(0, -0.5), (0.3, -0.48), (1, -0.15), (1, 0.3), (0.8, 0.4), (0.4, 0.48), (0, 0.5)]
    level, place, tail = level * radius, place * length, 0.15 - length / 2
    main = rotate(wing(span, chord, tip, sweep), Z, rise) + (0, level, place)
    tail_wing = wing(tailplane, 0.2, 0.6, 0.1) + (0, pick(rng, 0.0, 0.0, fin), tail)  # low, or a T-tail
    jets = [CYLINDER_ALONG_Z * (0.12, 0.12, 0.3) + (x * span, level - 0.08, place - x * sweep) for x in (apart, 0.7)]
    blade = BOX * (0.05, blades, 0.03) + (0, 0, length / 2)
    return {
        "fuselage": [rotate(lathe(np.multiply(hull, (radius, length))), X, np.pi / 2)],
        "wings": mirrored(main, *pick(rng, [], [], [], [main + (0, 0.3, 0)])),
        "tail": [rotate(wing(fin, 0.25, 0.5, 0.15), Z, np.pi / 2) + (0, 0, tail), *mirrored(tail_wing)],
        "engines": pick(rng, [], mirrored(jets[0]), mirrored(*jets), [blade, rotate(blade, Z, np.pi / 2)]),
    }


def rocket(rng: np.random.Generator) -> Parts:
    radius, height, nose, belly, foot = uniform(rng, (0.12, 0.4), (0.6, 1.6), (0.2, 0.7), (0.9, 1.4), (0.6, 1.1))
    reach, chord, tip, sweep = uniform(rng, (0.15, 0.5), (0.2, 0.6), (0.2, 1.0), (-0.1, 0.4))
    fin = rotate(wing(reach, chord, tip, sweep), X, -np.pi / 2) + (0.85 * foot * radius, 0.3 * chord + 0.1, 0)
    return {
        "body": [lathe(np.multiply([(0, 0), (foot, 0), (belly, 0.5), (1, 1)], (radius, height)))],
        "nose": [pick(rng, CONE, DOME) * (2 * radius, nose, 2 * radius) + (0, height, 0)],
        "fins": around(fin, rng.integers(3, 6)),
        "nozzle": pick(rng, [], [lathe([(0.4 * radius, 0.05), (0.8 * radius, -0.2)])]),
    }


def boat(rng: np.random.Generator) -> Parts:
    length, width, depth, stern, mast = uniform(rng, (1.2, 2.0), (0.4, 0.8), (0.15, 0.4), (0.1, 0.9), (0.6, 1.6))
    boom, jib, place, tall, long = uniform(rng, (0.3, 0.8), (0.2, 0.45), (0.0, 0.2), (0.15, 0.5), (0.2, 0.6))
    ribs = lathe([(0, -0.5), (stern, -0.5), (1, -0.1), (0.9, 0.15), (0.5, 0.38), (0, 0.5)], HALF_CIRCLE)
    main, front = (plate([(place, 0.1), (place, mast), (place + x, 0.1)], 0.02, X) for x in (-boom, jib))
    pole = CYLINDER * (0.04, mast, 0.04) + (0, mast / 2, place)
    cabin = BOX * (0.6 * width, tall, long * length) + (0, tall / 2, -0.1 * length)
    oar = [tube([(0.1, 0.1, 0), (width + jib, 0, 0)], 0.02), BOX * (0.3, 0.02, 0.12) + (width + jib, 0, 0)]
    drive = pick(rng, "sails", "sails", "motor", "oars")
    return {
        "hull": [rotate(ribs, X, np.pi / 2) * (width / 2, depth, length)],
        "mast": [pole] if drive == "sails" else [],
        "sails": pick(rng, [main], [main, front]) if drive == "sails" else [],
        "cabin": [cabin] if drive == "motor" else pick(rng, [], [], [cabin]),
        "oars": mirrored(*oar) if drive == "oars" else [],
    }


def guitar(rng: np.random.Generator) -> Parts:
    width, height, depth, neck, head = uniform(rng, (0.3, 0.5), (0.4, 0.65), (0.05, 0.3), (0.5, 1.1), (0.15, 0.3))
    waist, upper, thin, wide = uniform(rng, (0.2, 0.4), (0.1, 0.3), (0.06, 0.14), (0.8, 1.6))
    rounds = 1 - waist * np.exp(-8 * (CIRCLE[:-1, 1:] - 0.2) ** 2) - upper * (CIRCLE[:-1, 1:] > 0.3)
    long, end = neck + height, height + neck
    peg = CYLINDER * 0.06 + (0.5 * wide * thin + 0.02, end, depth / 2)
    return {
        "body": [plate(CIRCLE[:-1] * rounds * (width, height), depth, Z)],
        "neck": [BOX * (thin, long, 0.06) + (0, end - long / 2, depth / 2)],
        "head": [BOX * (wide * thin, head, 0.05) + (0, end + head / 2, depth / 2)],
        "pegs": mirrored(*(peg + (0, y * head, 0) for y in (0.2, 0.5, 0.8))),
        "bridge": [BOX * (0.5 * width, 0.06, 0.06) + (0, -0.5 * height, depth / 2)],
    }


def hammer(rng: np.random.Generator) -> Parts:
    height, thin, reach, head, grip = uniform(rng, (0.7, 1.6), (0.025, 0.06), (0.12, 0.45), (0.05, 0.2), (0.2, 0.5))
    path = [(-reach, height, head / 2), (-1.4 * reach, height, head), (-1.9 * reach, height - head, 1.2 * head)]
    claw = tube(path, (head, 0.4 * head, 0.02))
    wedge = tube([(-reach, height, 0), (-1.8 * reach, height, 0)], (0.9 * head, 0.02), SQUARE)
    ball = BALL * 2.2 * head + (-reach - head / 2, height, 0)
    return {
        "handle": [CYLINDER * (2 * thin, height, 1.4 * thin) + (0, height / 2, 0)],
        "grip": [CYLINDER * (3 * thin, grip * height, 2 * thin) + (0, grip * height / 2, 0)],
        "head": [pick(rng, BOX, CYLINDER_ALONG_X) * (2 * reach, 2 * head, pick(rng, 1.4, 2) * head) + (0, height, 0)],
        "peen": pick(rng, [], [wedge], [ball], [claw, claw * (1, 1, -1)]),
    }


OBJECTS = (chair, table, bed, shelf, lamp, umbrella, mug, bottle, car, airplane, rocket, boat, guitar, hammer)
PARTS = [[f"{build.__name__}/{part}" for part in build(np.random.default_rng(0))] for build in OBJECTS]
CLASS_NAMES = tuple(build.__name__ for build in OBJECTS)
FIRST_PARTS = np.cumsum([0, *map(len, PARTS)])
PART_NAMES = tuple(name for names in PARTS for name in names)


def sample_points(parts: Parts, num_points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sample points (num_points, 3) from all surfaces by area, and the index (num_points,) of the part of each."""
    surfaces = [surface for part in parts.values() for surface in part]
    corners = np.concatenate([surface.reshape(-1, 3) for surface in surfaces])
    place = (corners - corners.mean(axis=0)) / np.ptp(corners, axis=0)
    corners *= np.exp(rng.uniform(-STRETCH, STRETCH, 3) + place @ rng.uniform(-WARP, WARP, (3, 3)) * (1, 0, 1))
    points, chosen = sample_triangles(triangles_of_surfaces(surfaces, corners), num_points, rng)
    part_of_surface = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    part_of_triangle = np.repeat(part_of_surface, [len(triangles_of(*surface.shape[:2])) for surface in surfaces])
    return points, part_of_triangle[chosen]


def generate_shapes(num_shapes: int, num_points: int = 2048, seed: int = 0, start: int = 0) -> dict[str, np.ndarray]:
    """Generate shapes `start` to `start + num_shapes - 1` of the endless set of a seed, cycling through the classes.

    Returns `points` (num_shapes, num_points, 3) in the unit sphere, float32, rotated about y at random; `label`
    (num_shapes,), indices of CLASS_NAMES; `point_labels` (num_shapes, num_points), indices of PART_NAMES. A shape
    depends on its number, `seed` and `num_points` only.
    """
    points = np.empty((num_shapes, num_points, 3), dtype=np.float32)
    point_labels = np.empty((num_shapes, num_points), dtype=np.int64)
    labels = np.arange(start, start + num_shapes, dtype=np.int64) % len(OBJECTS)
    for position, label in enumerate(labels):
        rng = np.random.default_rng([seed, start + position])
        yaw = rng.uniform(0.0, 2 * np.pi)
        cloud, part_index = sample_points(OBJECTS[label](rng), num_points, rng)
        cloud -= cloud.mean(axis=0)
        cloud /= np.sqrt(np.square(cloud).sum(axis=1).max())
        points[position] = rotate(cloud, Y, yaw)
        point_labels[position] = FIRST_PARTS[label] + part_index
    return {"points": points, "label": labels, "point_labels": point_labels}
