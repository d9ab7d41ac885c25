"""The built-in sets for `prepare_data.py`: generated instead of read."""

from pathlib import Path

from act_training.prepare.objects import Choices, Item, Plan, Row, rows_of
from act_training.synthetic import broad_shapes, everyday_shapes, rooms

NUM_CLOUDS = {
    "everyday_shapes": {"train": 6000, "test": 1500},
    "broad_shapes": {"train": 12_000},
    "everyday_rooms": {"train": 1500, "test": 300},
}
MODULES = {"everyday_shapes": everyday_shapes, "broad_shapes": broad_shapes, "everyday_rooms": rooms}
CLOUDS_PER_ITEM = 50
ABOUT_SHAPES = "Shapes of 14 classes with 60 named parts, generated from random proportions, in the unit sphere."
ABOUT_BROAD = "Unlabelled shapes of every kind, generated from random proportions, in the unit sphere, y up."
ABOUT_ROOMS = "Rooms with furniture and a box around each piece, generated, as a depth camera sees them; metres, z up."


def plan_everyday(raw: Path | None, choices: Choices) -> Plan:
    """Plan items of consecutive numbers; the test split follows the train split."""
    source = MODULES[choices.source].__file__
    splits, first = {}, 0
    for split, count in NUM_CLOUDS[choices.source].items():
        ranges = [(start, start + CLOUDS_PER_ITEM) for start in range(first, first + count, CLOUDS_PER_ITEM)]
        splits[split] = [Item(source, f"{choices.source}:{rows[0]}", rows=rows) for rows in ranges]
        first += count
    if choices.source == "broad_shapes":
        return Plan(splits, generate, ABOUT_BROAD, {}, choices.num_points, items_per_shard=5)
    if choices.source == "everyday_shapes":
        names = {"class_names": list(everyday_shapes.CLASS_NAMES), "part_names": list(everyday_shapes.PART_NAMES)}
        return Plan(splits, generate, ABOUT_SHAPES, names, choices.num_points, items_per_shard=5)
    names = {"box_names": list(rooms.CLASS_NAMES)}
    return Plan(splits, generate, ABOUT_ROOMS, names, choices.num_points, items_per_shard=1)


def generate(item: Item, choices: Choices) -> list[Row]:
    start, stop = item.rows
    module = MODULES[choices.source]
    make = rooms.generate_rooms if module is rooms else module.generate_shapes
    return rows_of(make(stop - start, seed=choices.seed, start=start))
