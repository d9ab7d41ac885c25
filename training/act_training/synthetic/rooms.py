"""Rooms to find objects in, generated from random numbers: nothing to download.

A room has a floor, two walls and furniture that does not overlap, turned at random and seen from a few places, as a
depth camera sees it. Metres; z is up, the floor lies at 0 and the room's middle at x = y = 0.
"""

import numpy as np

from act_training.synthetic import everyday_shapes
from act_training.synthetic.everyday_shapes import BOX, X, Z, draw, turn
from modeling_act.errors import InputError


def chest(rng: np.random.Generator) -> everyday_shapes.Parts:
    width, height, depth = draw(rng, (0.5, 1.5), (0.4, 1.0), (0.4, 1.0))
    return {"body": [BOX * (width, height, depth) + (0, height / 2, 0)]}


# How long its longest side is, in metres.
FURNITURE = {
    everyday_shapes.bed: (1.8, 2.4),
    everyday_shapes.chair: (0.8, 1.2),
    chest: (0.6, 1.2),
    everyday_shapes.lamp: (1.2, 1.8),
    everyday_shapes.shelf: (1.2, 2.2),
    everyday_shapes.table: (1.0, 1.8),
    everyday_shapes.umbrella: (0.9, 1.3),
}
CLASS_NAMES = tuple(build.__name__ for build in FURNITURE)
ROOM_SIZE, WALL_HEIGHT = (3.5, 6.5), 2.4
MOST_OBJECTS = 12
CAMERAS = (2, 4)  # at least, and fewer than
EYE_HEIGHT = (1.2, 1.8)
CELL = np.radians(3)  # of a camera's picture; in each is seen what is nearest
DEPTH_OF_CELL = 0.06  # how much farther, as a share, is still seen: surfaces lean
NOISE = 0.01  # of a camera
TRIES = 20  # to find a place for an object
DRAWN = 8  # times as many points are drawn as are kept, so that enough of them are seen
FEWEST_POINTS = 10  # an object of which fewer are kept is not to be found


def generate_rooms(num_rooms: int, num_points: int = 4096, seed: int = 0, start: int = 0) -> dict:
    """Rooms number `start` to `start + num_rooms - 1` of the endless set that `seed` names.

    Returns `points` (num_rooms, num_points, 3), float32, and a list with a row for each room of `boxes` (objects, 7)
    and `box_labels` (objects,), indices of CLASS_NAMES. A room depends on its number, `seed` and `num_points` only.
    """
    smallest = {"num_rooms": (num_rooms, 1), "num_points": (num_points, 1), "seed": (seed, 0), "start": (start, 0)}
    for name, (value, least) in smallest.items():
        if not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"generate_rooms: `{name}` must be a whole number from {least} up, got {value!r}")
    rooms = [make_room(num_points, np.random.default_rng([seed, start + place])) for place in range(num_rooms)]
    points, boxes, labels = zip(*rooms, strict=True)
    return {"points": np.stack(points), "boxes": list(boxes), "box_labels": list(labels)}


def make_room(num_points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (num_points, 3), boxes (objects, 7) and labels (objects,)."""
    sides = rng.uniform(*ROOM_SIZE, 2)
    clouds, boxes, labels = [], np.empty((0, 7)), []
    for label in rng.integers(len(FURNITURE), size=rng.integers(MOST_OBJECTS // 2, MOST_OBJECTS + 1)):
        cloud, sizes = make_object(label, num_points, rng)
        box = find_place(sizes, sides, boxes, rng)
        if box is not None:
            clouds.append(turn(cloud, Z, box[6]) + box[:3])
            boxes, labels = np.concatenate([boxes, [box]]), [*labels, label]
    length, width, height = boxes[:, 3:6].T
    areas = [*(2 * (length * width + length * height + width * height)), sides.prod(), *(WALL_HEIGHT * sides)]
    counts = np.ceil(DRAWN * num_points * np.array(areas) / sum(areas)).astype(int)
    clouds = [cloud[:count] for cloud, count in zip(clouds, counts, strict=False)]
    clouds += make_floor_and_walls(sides, counts[len(clouds) :], rng)

    points, owners = np.concatenate(clouds), np.repeat(np.arange(len(clouds)), [len(cloud) for cloud in clouds])
    seen = np.flatnonzero(is_seen(points, sides, rng))
    kept = rng.choice(seen, num_points, replace=len(seen) < num_points)
    found = np.bincount(owners[kept], minlength=len(clouds))[: len(boxes)] >= FEWEST_POINTS
    noisy = points[kept] + rng.normal(0, NOISE, (num_points, 3))
    return noisy.astype(np.float32), boxes[found].astype(np.float32), np.array(labels, dtype=np.int64)[found]


def make_object(label: int, num_points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points (num_points, 3) about the middle of their box, and its sizes (3,)."""
    build, longest = list(FURNITURE.items())[label]
    points = turn(everyday_shapes.sample_points(build(rng), num_points, rng)[0], X, np.pi / 2)  # z up
    low, high = points.min(axis=0), points.max(axis=0)
    scale = rng.uniform(*longest) / (high - low).max()
    return (points - (low + high) / 2) * scale, (high - low) * scale


def find_place(sizes: np.ndarray, sides: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A box (7,) on the floor that stays clear of the walls and of the other boxes (objects, 7), if a few tries find
    one."""
    for _ in range(TRIES):
        angle = rng.uniform(-np.pi, np.pi)
        reach = reach_of(sizes, angle)
        center = rng.uniform(-1, 1, 2) * (sides / 2 - reach)
        apart = np.abs(boxes[:, :2] - center) > reach + reach_of(boxes[:, 3:6], boxes[:, 6])
        if (reach < sides / 2).all() and apart.any(axis=1).all():
            return np.array([*center, sizes[2] / 2, *sizes, angle])
    return None


def reach_of(sizes: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    """How far boxes of sizes (..., 3) reach from their middle along x and y, (..., 2)."""
    cosine, sine = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    length, width = sizes[..., 0] / 2, sizes[..., 1] / 2
    return np.stack([cosine * length + sine * width, sine * length + cosine * width], axis=-1)


def make_floor_and_walls(sides: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Points of the floor and of one wall along x and one along y."""
    floor, along_x, along_y = (
        rng.uniform(-0.5, 0.5, (count, 3)) * (*sides, WALL_HEIGHT) + (0, 0, WALL_HEIGHT / 2) for count in counts
    )
    floor[:, 2] = 0
    along_x[:, 1], along_y[:, 0] = rng.choice([-0.5, 0.5], 2) * sides[::-1]
    return [floor, along_x, along_y]


def is_seen(points: np.ndarray, sides: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which points (points, 3) some camera sees past all the others."""
    seen = np.zeros(len(points), dtype=bool)
    for _ in range(rng.integers(*CAMERAS)):
        camera = np.array([*(rng.uniform(-0.5, 0.5, 2) * sides), rng.uniform(*EYE_HEIGHT)])
        x, y, z = (points - camera).T
        depth = np.sqrt(x * x + y * y + z * z)
        cells = np.floor(np.stack([np.arctan2(y, x), np.arcsin(z / depth)]) / CELL).astype(int)
        cells = (cells[0] - cells[0].min()) * 1000 + cells[1] - cells[1].min()
        nearest = np.full(cells.max() + 1, np.inf)
        np.minimum.at(nearest, cells, depth)
        seen |= depth <= (1 + DEPTH_OF_CELL) * nearest[cells]
    return seen
