"""The built-in sets, everyday_shapes and everyday_rooms, for `prepare_data.py`: generated instead of read."""

from pathlib import Path

from act_training.prepare.objects import Choices, Item, Plan, Row
from act_training.synthetic import everyday_shapes, rooms

NUM_CLOUDS = {"everyday_shapes": {"train": 6000, "test": 1500}, "everyday_rooms": {"train": 1500, "test": 300}}
CLOUDS_PER_ITEM = 50


def plan_everyday_shapes(raw: Path | None, choices: Choices) -> Plan:
    about = "Shapes of 14 classes with 60 named parts, generated from random proportions, in the unit sphere."
    names = {"class_names": list(everyday_shapes.CLASS_NAMES), "part_names": list(everyday_shapes.PART_NAMES)}
    items = _items("everyday_shapes", everyday_shapes.__file__)
    return Plan(items, make_shapes, about, names, choices.num_points, items_per_shard=5)


def plan_everyday_rooms(raw: Path | None, choices: Choices) -> Plan:
    about = "Rooms with furniture and a box around each piece, generated, as a depth camera sees them; metres, z up."
    items = _items("everyday_rooms", rooms.__file__)
    return Plan(
        items, make_rooms, about, {"box_names": list(rooms.CLASS_NAMES)}, choices.num_points, items_per_shard=1
    )


def _items(name: str, source: str) -> dict[str, list[Item]]:
    """Items of consecutive numbers; the test split follows the train split."""
    splits, first = {}, 0
    for split, count in NUM_CLOUDS[name].items():
        starts = range(first, first + count, CLOUDS_PER_ITEM)
        splits[split] = [Item(source, f"{name}:{start}", rows=(start, start + CLOUDS_PER_ITEM)) for start in starts]
        first += count
    return splits


def make_shapes(item: Item, choices: Choices) -> list[Row]:
    start, stop = item.rows
    return _rows(everyday_shapes.generate_shapes(stop - start, seed=choices.seed, start=start))


def make_rooms(item: Item, choices: Choices) -> list[Row]:
    start, stop = item.rows
    return _rows(rooms.generate_rooms(stop - start, seed=choices.seed, start=start))


def _rows(columns: dict) -> list[Row]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
