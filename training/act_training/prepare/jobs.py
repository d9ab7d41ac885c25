"""Reads the items of a `Plan` in several processes, part by part, and joins the parts to a DatasetDict.

A part is finished when its folder is there, under a name made of its files and choices: a later run takes it as it is.
A file that kills the process reading it is found, left out and counted.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, load_from_disk

from act_training.data.schema import PER_POINT, build_dataset, make_features
from act_training.prepare.objects import Choices, Item, Plan, Row
from modeling_act.errors import InputError

AFTER_READING = "all were read"
LABELS = {
    "label": "class_names", "category": "category_names", "point_labels": "part_names", "box_labels": "box_names",
}  # fmt: skip
SAMPLED_TOGETHER = 8  # clouds in one call of farthest point sampling: their distances fit a CPU's cache


@dataclass(frozen=True, eq=False)
class Part:
    """Some items of a split, and all it takes to turn them into rows."""

    split: str
    number: int
    items: tuple[Item, ...]
    read: Callable[[Item, Choices], list[Row]]
    choices: Choices
    names: dict[str, list[str]]
    num_points: int | None
    normalize: bool
    folder: Path
    """where it goes once it is finished"""

    @property
    def is_finished(self) -> bool:
        return self.folder.is_dir()

    @property
    def marker(self) -> Path:
        """Holds the place of the item that is being read."""
        return self.folder.with_suffix(".reading")

    def result(self) -> dict:
        return json.loads((self.folder / "result.json").read_text())


def split_parts(plan: Plan, choices: Choices, folder: Path, items_per_part: int | None = None) -> list[Part]:
    parts, size = [], items_per_part or plan.items_per_part
    settings = (asdict(choices), plan.names, plan.num_points, plan.normalize, plan.read.__name__)
    for split, items in plan.splits.items():
        for number, start in enumerate(range(0, len(items), size)):
            chosen = tuple(items[start : start + size])
            key = hashlib.sha256(json.dumps([settings, list(map(_fingerprint, chosen))]).encode()).hexdigest()[:16]
            place = folder / f"{split}-{number:05d}-{key}"
            shared = (plan.read, choices, plan.names, plan.num_points, plan.normalize)
            parts.append(Part(split, number, chosen, *shared, place))
    return parts


def _fingerprint(item: Item) -> list:
    path = Path(item.file)
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    stats = [file.stat() if file.exists() else None for file in files]
    return [asdict(item), [[stat.st_size, stat.st_mtime_ns] for stat in stats if stat]]


# In a worker ---------------------------------------------------------------------------------------------------------


def start_worker() -> None:
    datasets.disable_progress_bars()
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def make_part(part: Part, left_out: frozenset[int] = frozenset()) -> None:
    """Writes a part's folder: a `save_to_disk` set, where any row was good, and result.json."""
    rows, rejected = [], []
    for place, item in enumerate(part.items):
        if place in left_out:
            rejected.append([item.name, f"{item.file}: the process that reads it dies"])
            continue
        part.marker.write_text(str(place))
        try:
            found = part.read(item, part.choices)
        except InputError as error:
            rejected.append([item.name, str(error)])
            continue
        for row in found:
            problem = find_problem(row, part)
            if problem:
                rejected.append([row["name"], f"{item.file}: {problem}"])
            else:
                rows.append(row)
    part.marker.write_text(AFTER_READING)
    if part.num_points:
        rows = sample_rows(rows, part.num_points)
    if part.normalize:
        rows = [row | {"points": unit_sphere(row["points"])} for row in rows]
    _write_part(part, rows, rejected)
    part.marker.unlink()


def find_problem(row: Row, part: Part) -> str | None:
    points = row["points"]
    if not len(points):
        return "holds no points"
    for column in (*PER_POINT, "boxes"):
        with np.errstate(over="ignore"):
            values = np.asarray(row.get(column, ()), dtype=np.float32)
        if not np.isfinite(values).all():
            return f"{row['name']} has {column} that are not finite"
    if part.num_points and len(points) < part.num_points:
        return f"{row['name']} has {len(points)} points, fewer than the {part.num_points} asked for"
    if part.normalize and not np.ptp(points, axis=0).any():
        return f"{row['name']} has all its points in one place"
    for column, kind in LABELS.items():
        if column in row and kind in part.names and np.size(row[column]):
            least, most = np.min(row[column]), np.max(row[column])
            if least < 0 or most >= len(part.names[kind]):
                return f"{row['name']} has {column} {least} to {most}, and there are {len(part.names[kind])} names"
    return None


def sample_rows(rows: list[Row], num_points: int) -> list[Row]:
    """Farthest point sampling of everything a row has a point, several clouds of one size at a time."""
    import torch

    from modeling_act.point_ops import farthest_point_sample

    torch.set_num_threads(1)
    sampled = list(rows)
    for size in {len(row["points"]) for row in rows} - {num_points}:
        places = [place for place, row in enumerate(rows) if len(row["points"]) == size]
        for start in range(0, len(places), SAMPLED_TOGETHER):
            group = places[start : start + SAMPLED_TOGETHER]
            points = np.stack([np.asarray(rows[place]["points"], dtype=np.float32) for place in group])
            indices = farthest_point_sample(torch.from_numpy(points), num_points).numpy()
            for place, chosen in zip(group, indices, strict=True):
                sampled[place] = {
                    name: value[chosen] if name in (*PER_POINT, "point_labels") else value
                    for name, value in rows[place].items()
                }
    return sampled


def unit_sphere(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    points = points - points.mean(axis=0)
    return points / np.linalg.norm(points, axis=1).max()


def _write_part(part: Part, rows: list[Row], rejected: list[list[str]]) -> None:
    shared = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    draft = part.folder.with_suffix(f".draft{os.getpid()}")
    draft.mkdir()
    if rows:
        build_dataset({name: [row[name] for row in rows] for name in shared}, **part.names).save_to_disk(str(draft))
    kind = next((name for name in ("label", "category", "box_labels") if name in shared), None)
    result = {
        "columns": shared,
        "sizes": [len(row["points"]) for row in rows],
        "classes": Counter(int(label) for row in rows for label in np.ravel(row[kind])) if kind else {},
        "rejected": rejected,
    }
    (draft / "result.json").write_text(json.dumps(result))
    draft.rename(part.folder)


# In the main process -------------------------------------------------------------------------------------------------


def make_parts(parts: list[Part], folder: Path, num_workers: int, progress: Callable[[int], None]) -> None:
    """Makes what is not finished; `progress` hears of each finished part how many items it has."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("*.draft*"), *folder.glob("*.reading")):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    for part in parts:
        if part.is_finished:
            progress(len(part.items))
    while waiting := [part for part in parts if not part.is_finished]:
        if _run_pool(waiting, {}, num_workers, progress):
            continue
        # A worker died, and with it the pool. Whatever was being read is read again, one part at a time.
        suspects = [part for part in waiting if part.marker.exists() and not part.is_finished]
        if not suspects:
            raise RuntimeError("the worker processes die before they read anything; try --num_workers 1")
        for part in suspects:
            left_out: set[int] = set()
            while not _run_pool([part], {part: frozenset(left_out)}, 1, progress):
                place = part.marker.read_text()
                if place == AFTER_READING:
                    raise RuntimeError(f"a worker died while it wrote {part.folder}; is memory or disk short?")
                left_out.add(int(place))


def _run_pool(parts: list[Part], left_out: dict, num_workers: int, progress: Callable[[int], None]) -> bool:
    """False if a worker died."""
    # Forked from a process that has only imported: threads of this one, of pyarrow and torch, do not survive a fork.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(["datasets"])
    with ProcessPoolExecutor(min(num_workers, len(parts)), mp_context=context, initializer=start_worker) as pool:
        futures = {pool.submit(make_part, part, left_out.get(part, frozenset())): part for part in parts}
        try:
            for future in as_completed(futures):
                future.result()
                progress(len(futures[future].items))
        except BrokenProcessPool:
            return False
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return True


def join_parts(parts: list[Part], names: dict[str, list[str]]) -> DatasetDict:
    """All good rows, still on disk, in the columns that all parts share; fixed arrays where clouds are of one size."""
    results = {part.folder: part.result() for part in parts}
    filled = [part for part in parts if results[part.folder]["sizes"]]
    if not filled:
        raise InputError("not one cloud could be read")
    sizes = {size for part in filled for size in results[part.folder]["sizes"]}
    columns = [results[part.folder]["columns"] for part in filled]
    shared = [name for name in columns[0] if all(name in others for others in columns)]
    features = make_features(sizes.pop() if len(sizes) == 1 else None, shared, **names)
    joined = {}
    for split in dict.fromkeys(part.split for part in filled):
        tables = [
            _retype(load_from_disk(str(part.folder)).data.table, features) for part in filled if part.split == split
        ]
        joined[split] = Dataset(pa.concat_tables(tables))
    return DatasetDict(joined)


def _retype(table: pa.Table, features: datasets.Features) -> pa.Table:
    """The same values as the columns of `features`: arrays of a fixed and of any size are stored alike."""
    schema, columns = features.arrow_schema, []
    for column in schema:
        values = table.column(column.name)
        if isinstance(column.type, pa.ExtensionType):
            chunks = [pa.ExtensionArray.from_storage(column.type, chunk.storage) for chunk in values.chunks]
            values = pa.chunked_array(chunks, type=column.type)
        columns.append(values)
    return pa.table(columns, schema=schema)


def summarize(parts: list[Part], plan: Plan, choices: Choices) -> dict:
    kinds = ("class_names", "category_names", "box_names")
    names = next((plan.names[kind] for kind in kinds if kind in plan.names), None)
    splits, rejected = {}, []
    for split in plan.splits:
        results = [part.result() for part in parts if part.split == split]
        sizes = [size for result in results for size in result["sizes"]]
        classes = sum((Counter(result["classes"]) for result in results), Counter())
        rejected += [
            {"split": split, "name": name, "why": why} for result in results for name, why in result["rejected"]
        ]
        splits[split] = {
            "clouds": len(sizes),
            "points": [min(sizes), float(np.median(sizes)), max(sizes)] if sizes else None,
            "classes": {names[int(label)] if names else label: classes[label] for label in sorted(classes, key=int)},
        }
    return {"choices": asdict(choices), "splits": splits, "rejected": rejected, "ignored_files": plan.ignored}
