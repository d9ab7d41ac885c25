"""Sets that need no download: generated once, from then on mapped from the cache of `datasets`."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import datasets
from datasets import Dataset, concatenate_datasets, load_from_disk

from act_training.data.schema import build_dataset
from act_training.synthetic import everyday_shapes, rooms
from modeling_act.errors import InputError

SPLITS = {  # numbers of the shapes or rooms
    "everyday_shapes": {"train": range(6000), "test": range(6000, 7500)},
    "everyday_rooms": {"train": range(1500), "test": range(1500, 1800)},
}
PART = {"everyday_shapes": 500, "everyday_rooms": 300}  # how many are generated and cached together


def open_built_in(name: str, split: str) -> Dataset:
    if split not in SPLITS[name]:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(SPLITS[name])}")
    return concatenate_datasets([_part(name, start) for start in SPLITS[name][split][:: PART[name]]])


def _part(name: str, start: int) -> Dataset:
    sources = [everyday_shapes] if name == "everyday_shapes" else [everyday_shapes, rooms]
    version = hashlib.blake2b(b"".join(Path(source.__file__).read_bytes() for source in sources), digest_size=8)
    folder = Path(datasets.config.HF_DATASETS_CACHE, name, f"{version.hexdigest()}-{start}")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            _generate(name, start).save_to_disk(f"{draft}/part")
            with suppress(OSError):  # another process was faster
                os.rename(f"{draft}/part", folder)
    try:
        return load_from_disk(str(folder))
    except Exception as error:  # each of the readers of `datasets` has its own
        raise InputError(f"{folder}: damaged, delete it ({str(error).splitlines()[0][:300]})") from error


def _generate(name: str, start: int) -> Dataset:
    if name == "everyday_rooms":
        return build_dataset(rooms.generate_rooms(PART[name], start=start), box_names=rooms.CLASS_NAMES)
    names = {"class_names": everyday_shapes.CLASS_NAMES, "part_names": everyday_shapes.PART_NAMES}
    return build_dataset(everyday_shapes.generate_shapes(PART[name], start=start), **names)
