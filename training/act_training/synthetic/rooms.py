"""Rooms with furniture for object detection, generated from random numbers: nothing to download.

A room has a floor, two walls and furniture that does not overlap, rotated at random, as a depth camera sees it from a
few positions. Metres; z is up, the floor lies at 0 and the middle of the room at x = y = 0.
"""

import numpy as np

from act_training.synthetic import everyday_shapes
from act_training.synthetic.shape_kit import BOX, X, Z, rotate, uniform


def chest(rng: np.random.Generator) -> everyday_shapes.Parts:
    width, height, depth = uniform(rng, (0.5, 1.5), (0.4, 1.0), (0.4, 1.0))
    return {"body": [BOX * (width, height, depth) + (0, height / 2, 0)]}


# Length of the longest side, in metres.
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
MAX_OBJECTS = 12
NUM_CAMERAS = (2, 4)  # half-open range
EYE_HEIGHT = (1.2, 1.8)
CELL = np.radians(3)  # pixel of a camera, which sees the nearest point in it
CELL_DEPTH = 0.06  # relative distance behind the nearest point that is still visible: surfaces are slanted
NOISE = 0.01  # std of a camera's noise
MAX_TRIES = 20  # positions for one object
OVERSAMPLING = 8  # ratio of points sampled, so that enough of them are visible
MIN_POINTS = 10  # objects with fewer points get no box


def generate_rooms(num_rooms: int, num_points: int = 4096, seed: int = 0, start: int = 0) -> dict:
    """Generate rooms `start` to `start + num_rooms - 1` of the endless set of a seed.

    Returns `points` (num_rooms, num_points, 3), float32, and a list with a row for each room of `boxes` (objects, 7)
    and `box_labels` (objects,), indices of CLASS_NAMES. A room depends on its number, `seed` and `num_points` only.
    """
    rooms = [make_room(num_points, np.random.default_rng([seed, start + place])) for place in range(num_rooms)]
    points, boxes, labels = zip(*rooms, strict=True)
    return {"points": np.stack(points), "boxes": list(boxes), "box_labels": list(labels)}


def make_room(num_points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate the points (num_points, 3), boxes (objects, 7) and labels (objects,) of a room."""
    sides = rng.uniform(*ROOM_SIZE, 2)
    clouds, boxes, labels = [], np.empty((0, 7)), []
    for label in rng.integers(len(FURNITURE), size=rng.integers(MAX_OBJECTS // 2, MAX_OBJECTS + 1)):
        cloud, sizes = make_object(label, num_points, rng)
        box = find_place(sizes, sides, boxes, rng)
        if box is not None:
            clouds.append(rotate(cloud, Z, box[6]) + box[:3])
            boxes, labels = np.concatenate([boxes, [box]]), [*labels, label]
    length, width, height = boxes[:, 3:6].T
    areas = [*(2 * (length * width + length * height + width * height)), sides.prod(), *(WALL_HEIGHT * sides)]
    counts = np.ceil(OVERSAMPLING * num_points * np.array(areas) / sum(areas)).astype(int)
    clouds = [cloud[:count] for cloud, count in zip(clouds, counts, strict=False)]
    clouds += make_floor_and_walls(sides, counts[len(clouds) :], rng)

    points, owners = np.concatenate(clouds), np.repeat(np.arange(len(clouds)), [len(cloud) for cloud in clouds])
    visible = np.flatnonzero(is_visible(points, sides, rng))
    chosen = rng.choice(visible, num_points, replace=len(visible) < num_points)
    large = np.bincount(owners[chosen], minlength=len(clouds))[: len(boxes)] >= MIN_POINTS
    noisy = points[chosen] + rng.normal(0, NOISE, (num_points, 3))
    return noisy.astype(np.float32), boxes[large].astype(np.float32), np.array(labels, dtype=np.int64)[large]


def make_object(label: int, num_points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Generate an object: points (num_points, 3) about the middle of their box, and its sizes (3,)."""
    build, longest = list(FURNITURE.items())[label]
    points = rotate(everyday_shapes.sample_points(build(rng), num_points, rng)[0], X, np.pi / 2)  # z up
    low, high = points.min(axis=0), points.max(axis=0)
    scale = rng.uniform(*longest) / (high - low).max()
    return (points - (low + high) / 2) * scale, (high - low) * scale


def find_place(sizes: np.ndarray, sides: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Try to find a box (7,) on the floor that does not touch the walls or the other boxes (objects, 7)."""
    for _ in range(MAX_TRIES):
        angle = rng.uniform(-np.pi, np.pi)
        reach = reach_of(sizes, angle)
        center = rng.uniform(-1, 1, 2) * (sides / 2 - reach)
        apart = np.abs(boxes[:, :2] - center) > reach + reach_of(boxes[:, 3:6], boxes[:, 6])
        if (reach < sides / 2).all() and apart.any(axis=1).all():
            return np.array([*center, sizes[2] / 2, *sizes, angle])
    return None


def reach_of(sizes: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    """Extent of rotated boxes of sizes (..., 3) from their middle along x and y, (..., 2)."""
    cosine, sine = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    length, width = sizes[..., 0] / 2, sizes[..., 1] / 2
    return np.stack([cosine * length + sine * width, sine * length + cosine * width], axis=-1)


def make_floor_and_walls(sides: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Sample points of the floor, of a wall along x and of one along y."""
    floor, along_x, along_y = (
        rng.uniform(-0.5, 0.5, (count, 3)) * (*sides, WALL_HEIGHT) + (0, 0, WALL_HEIGHT / 2) for count in counts
    )
    floor[:, 2] = 0
    along_x[:, 1], along_y[:, 0] = rng.choice([-0.5, 0.5], 2) * sides[::-1]
    return [floor, along_x, along_y]


def is_visible(points: np.ndarray, sides: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mask of the points (points, 3) that some camera sees in front of all others."""
    visible = np.zeros(len(points), dtype=bool)
    for _ in range(rng.integers(*NUM_CAMERAS)):
        camera = np.array([*(rng.uniform(-0.5, 0.5, 2) * sides), rng.uniform(*EYE_HEIGHT)])
        x, y, z = (points - camera).T
        depth = np.sqrt(x * x + y * y + z * z)
        cells = np.floor(np.stack([np.arctan2(y, x), np.arcsin(z / depth)]) / CELL).astype(int)
        cells = (cells[0] - cells[0].min()) * 1000 + cells[1] - cells[1].min()
        nearest = np.full(cells.max() + 1, np.inf)
        np.minimum.at(nearest, cells, depth)
        visible |= depth <= (1 + CELL_DEPTH) * nearest[cells]
    return visible
