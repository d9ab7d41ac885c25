"""Point-BERT's pickled few-shot folds of ModelNet40 for `prepare_data.py`.

A pickle is a program; the unpickler here runs only the parts that build numpy arrays.
"""

import io
import pickle
from pathlib import Path

from act_training.prepare.objects import Choices, Item, Plan, Row
from modeling_act.errors import InputError
from modeling_act.readers.cloud import check_numbers, translate_errors

ALLOWED = {"multiarray._reconstruct", "multiarray.scalar", "numpy.ndarray", "numpy.dtype", "_codecs.encode"}


def plan_few_shot(raw: Path, choices: Choices) -> Plan:
    """Plan splits fold_0_train, fold_0_test, ... of `--way` classes of `--shot` clouds; each fold labels from 0."""
    names = (f"{choices.way}way{choices.shot}shot", f"{choices.way}way_{choices.shot}shot")
    files = [file for name in names for file in (raw / name).glob("*.pkl")]
    if not files:
        advice = "few_shot.py samples folds of other sets itself"
        raise InputError(f"{raw}: expected the folder {names[0]} of pickled folds; {advice}")
    files = sorted(files, key=lambda file: (len(file.stem), file.stem))
    splits = {f"fold_{file.stem}_{part}": [Item(str(file), part)] for file in files for part in ("train", "test")}
    about = f"Few-shot ModelNet40, {choices.way} way {choices.shot} shot: Point-BERT's folds, each in the unit sphere."
    return Plan(splits, read_fold, about, num_points=choices.num_points, normalize=True, items_per_shard=1)


def read_fold(item: Item, choices: Choices) -> list[Row]:
    """Read the train or the test clouds of a fold: a dict of lists of (points, label in the fold, class)."""

    def read(path: Path) -> list[Row]:
        entries = enumerate(ArrayUnpickler(io.BytesIO(path.read_bytes())).load()[item.name])
        return [
            {
                "points": check_numbers(points)[:, :3],
                "label": int(label),
                "name": f"{path.stem}/{item.name}/{number} (class {original})",
            }
            for number, (points, label, original) in entries
        ]

    return translate_errors(item.file, read)


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler of numpy arrays, numbers, strings, lists, tuples and dicts that refuses everything else."""

    def find_class(self, module: str, name: str):
        if f"{module}.{name}".removeprefix("numpy.core.").removeprefix("numpy._core.") not in ALLOWED:
            raise InputError(f"is a pickle that asks for {module}.{name}, which is not read")
        return super().find_class(module, name)
