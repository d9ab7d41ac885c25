"""The built-in sets, everyday_shapes and everyday_rooms, for `prepare_data.py`: generated instead of read."""

from pathlib import Path

from act_training.prepare.objects import Choices, Item, Plan, Row, rows_of
from act_training.synthetic import everyday_shapes, rooms

NUM_CLOUDS = {"everyday_shapes": {"train": 6000, "test": 1500}, "everyday_rooms": {"train": 1500, "test": 300}}
CLOUDS_PER_ITEM = 50
ABOUT_SHAPES = "Shapes of 14 classes with 60 named parts, generated from random proportions, in the unit sphere."
ABOUT_ROOMS = "Rooms with furniture and a box around each piece, generated, as a depth camera sees them; metres, z up."


def plan_everyday(raw: Path | None, choices: Choices) -> Plan:
    """Plan items of consecutive numbers; the test split follows the train split."""
    is_shapes = choices.source == "everyday_shapes"
    source = everyday_shapes.__file__ if is_shapes else rooms.__file__
    splits, first = {}, 0
    for split, count in NUM_CLOUDS[choices.source].items():
        ranges = [(start, start + CLOUDS_PER_ITEM) for start in range(first, first + count, CLOUDS_PER_ITEM)]
        splits[split] = [Item(source, f"{choices.source}:{rows[0]}", rows=rows) for rows in ranges]
        first += count
    if is_shapes:
        names = {"class_names": list(everyday_shapes.CLASS_NAMES), "part_names": list(everyday_shapes.PART_NAMES)}
        return Plan(splits, generate, ABOUT_SHAPES, names, choices.num_points, items_per_shard=5)
    names = {"box_names": list(rooms.CLASS_NAMES)}
    return Plan(splits, generate, ABOUT_ROOMS, names, choices.num_points, items_per_shard=1)


def generate(item: Item, choices: Choices) -> list[Row]:
    start, stop = item.rows
    make = everyday_shapes.generate_shapes if choices.source == "everyday_shapes" else rooms.generate_rooms
    return rows_of(make(stop - start, seed=choices.seed, start=start))
