"""Point-BERT's pickled few-shot folds of ModelNet40 for `prepare_data.py`.

A pickle is a program; the unpickler here runs only the parts that build numpy arrays.
"""

import io
import pickle
from pathlib import Path

import numpy as np

from act_training.prepare.objects import Choices, Item, Plan, Row
from modeling_act.errors import InputError
from modeling_act.readers.cloud import translate_errors

ALLOWED = {
    ("multiarray", "_reconstruct"),
    ("multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def plan_few_shot(raw: Path, choices: Choices) -> Plan:
    """Plan splits fold_0_train, fold_0_test, ... of `--way` classes of `--shot` clouds; each fold labels from 0."""
    names = (f"{choices.way}way{choices.shot}shot", f"{choices.way}way_{choices.shot}shot")
    folder = next((raw / name for name in names if (raw / name).is_dir()), None)
    if folder is None:
        raise InputError(
            f"{raw}: expected the folder {names[0]} of pickled folds; few_shot.py samples folds of other sets itself"
        )
    files = sorted(folder.glob("*.pkl"), key=lambda file: (len(file.stem), file.stem))
    splits = {f"fold_{file.stem}_{part}": [Item(str(file), part)] for file in files for part in ("train", "test")}
    if not splits:
        raise InputError(f"{folder}: holds no .pkl files")
    about = f"Few-shot ModelNet40, {choices.way} way {choices.shot} shot: Point-BERT's folds, each in the unit sphere."
    return Plan(splits, read_fold, about, num_points=choices.num_points, normalize=True, items_per_shard=1)


def read_fold(item: Item, choices: Choices) -> list[Row]:
    """Read the train or the test clouds of a fold."""
    fold = translate_errors(item.file, lambda path: ArrayUnpickler(io.BytesIO(path.read_bytes())).load())
    entries = fold.get(item.name) if isinstance(fold, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{item.file}: must hold a dict with the lists train and test")
    rows = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, tuple | list) or len(entry) != 3 or np.ndim(entry[0]) != 2:
            raise InputError(f"{item.file}: entry {number} of {item.name} must be (points, label, class)")
        points, label, original = entry
        if points.dtype.kind not in "fiu":
            raise InputError(f"{item.file}: entry {number} of {item.name} holds {points.dtype}, not numbers")
        name = f"{Path(item.file).stem}/{item.name}/{number} (class {original})"
        rows.append({"points": points[:, :3], "label": int(label), "name": name})
    return rows


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler of numpy arrays, numbers, strings, lists, tuples and dicts that refuses everything else."""

    def find_class(self, module: str, name: str):
        if (module.removeprefix("numpy.core.").removeprefix("numpy._core."), name) not in ALLOWED:
            raise InputError(f"is a pickle that asks for {module}.{name}, which is not read")
        return super().find_class(module, name)
