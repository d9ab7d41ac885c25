"""Few-shot ModelNet40 for `prepare_data.py`: Point-BERT's pickled folds, or folds drawn from a prepared ModelNet40.

A pickle is a program; what is read here is only the part of it that builds arrays of numbers.
"""

import functools
import io
import pickle
from pathlib import Path

import numpy as np
from datasets import ClassLabel, DatasetDict, load_from_disk

from act_training.data.schema import PER_POINT, read_rows
from act_training.prepare.objects import Choices, Item, Plan, Row
from modeling_act.errors import InputError
from modeling_act.readers.cloud import translate_errors

NUM_FOLDS = 10
NUM_QUERIES = 20  # test clouds a class
NDARRAY = object()  # stands for numpy.ndarray in a pickle, and cannot be called


def plan_few_shot(raw: Path, choices: Choices) -> Plan:
    """Splits fold_0_train, fold_0_test, ... of `--way` classes of `--shot` clouds; labels count within the fold."""
    if (raw / "dataset_dict.json").is_file():
        return _draw_folds(raw, choices)
    names = (f"{choices.way}way{choices.shot}shot", f"{choices.way}way_{choices.shot}shot")
    folder = next((raw / name for name in names if (raw / name).is_dir()), None)
    if folder is None:
        raise InputError(f"{raw}: expected the folder {names[0]} of pickled folds, or a ModelNet40 prepared before")
    files = sorted(folder.glob("*.pkl"), key=lambda file: (len(file.stem), file.stem))
    splits = {f"fold_{file.stem}_{part}": [Item(str(file), part)] for file in files for part in ("train", "test")}
    if not splits:
        raise InputError(f"{folder}: holds no .pkl files")
    about = f"Few-shot ModelNet40, {choices.way} way {choices.shot} shot: Point-BERT's folds, each in the unit sphere."
    return Plan(splits, read_fold, about, num_points=choices.num_points, normalize=True, items_per_part=1)


def read_fold(item: Item, choices: Choices) -> list[Row]:
    fold = translate_errors(item.file, lambda path: PlainUnpickler(io.BytesIO(path.read_bytes())).load())
    entries = fold.get(item.name) if isinstance(fold, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{item.file}: must hold a dict with the lists train and test")
    rows = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, tuple | list) or len(entry) != 3 or np.ndim(entry[0]) != 2:
            raise InputError(f"{item.file}: entry {number} of {item.name} must be (points, label, class)")
        points, label, original = entry
        name = f"{Path(item.file).stem}/{item.name}/{number} (class {original})"
        rows.append({"points": points[:, :3], "label": int(label), "name": name})
    return rows


class PlainUnpickler(pickle.Unpickler):
    """Builds numpy arrays, numbers, strings, lists, tuples and dicts; anything else a pickle asks for is refused."""

    def find_class(self, module: str, name: str):
        allowed = {
            ("multiarray", "_reconstruct"): _make_empty,
            ("multiarray", "scalar"): _make_scalar,
            ("numpy", "ndarray"): NDARRAY,
            ("numpy", "dtype"): _make_dtype,
            ("_codecs", "encode"): _encode,
        }
        place = module.removeprefix("numpy.core.").removeprefix("numpy._core.")
        if (place, name) not in allowed:
            raise InputError(f"is a pickle that asks for {module}.{name}, which is not read")
        return allowed[place, name]


def _make_empty(kind: object, shape: tuple, code: bytes) -> np.ndarray:
    """The empty array that a pickle fills; one that starts with a size of its own could take all memory."""
    if kind is not NDARRAY or shape != (0,):
        raise InputError("is a pickle with an array of an unknown kind")
    return np.empty(0)


def _make_dtype(code: str, *flags) -> np.dtype:
    kind = np.dtype(code, copy=True)  # the pickle sets its byte order
    if kind.kind not in "fiub":
        raise InputError(f"is a pickle with an array of {kind}, not of numbers")
    return kind


def _make_scalar(kind: np.dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype=kind, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise InputError("is a pickle with bytes in an unknown encoding")
    return text.encode("latin1")


# Folds of a prepared set ---------------------------------------------------------------------------------------------


@functools.cache
def _open(folder: str) -> DatasetDict:
    return translate_errors(Path(folder) / "dataset_dict.json", lambda path: load_from_disk(str(path.parent)))


def _draw_folds(raw: Path, choices: Choices) -> Plan:
    prepared = _open(str(raw))
    if not {"train", "test"} <= set(prepared) or not isinstance(prepared["train"].features.get("label"), ClassLabel):
        raise InputError(f"{raw}: must be a prepared set with classes and the splits train and test")
    labels = {split: np.asarray(prepared[split]["label"]) for split in ("train", "test")}
    wanted = {"train": choices.shot, "test": NUM_QUERIES}
    counts = {split: np.bincount(values, minlength=1000) for split, values in labels.items()}
    usable = np.flatnonzero((counts["train"] >= wanted["train"]) & (counts["test"] >= wanted["test"]))
    if len(usable) < choices.way:
        raise InputError(
            f"{raw}: {choices.way} way {choices.shot} shot needs {choices.way} classes of {choices.shot} train and "
            f"{NUM_QUERIES} test clouds, got {len(usable)}"
        )
    splits = {}
    for fold in range(NUM_FOLDS):
        generator = np.random.default_rng((choices.seed, choices.way, choices.shot, fold))
        classes = generator.choice(usable, choices.way, replace=False)
        for split, count in wanted.items():
            splits[f"fold_{fold}_{split}"] = [
                Item(str(raw), split, place, (int(row), int(row) + 1))
                for place, label in enumerate(classes)
                for row in generator.choice(np.flatnonzero(labels[split] == label), count, replace=False)
            ]
    about = (
        f"Few-shot ModelNet40, {choices.way} way {choices.shot} shot, {NUM_QUERIES} test clouds a class: {NUM_FOLDS} "
        f"folds drawn with the seed {choices.seed} from a prepared ModelNet40, whose points are as they were."
    )
    return Plan(splits, read_prepared, about, num_points=choices.num_points)


def read_prepared(item: Item, choices: Choices) -> list[Row]:
    dataset = _open(item.file)[item.name]
    columns = [column for column in PER_POINT if column in dataset.features]
    row = dataset.with_format("arrow")[item.rows[0] : item.rows[1]]
    found = {column: read_rows(row, column)[0].reshape(-1, 3) for column in columns}
    original = dataset.features["label"].int2str(row.column("label")[0].as_py())
    name = f"{item.name}/{item.rows[0]} ({original})"
    return [found | {"label": item.label, "name": name}]
