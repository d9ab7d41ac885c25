"""Reads the items of a `Plan` in several processes, shard by shard, and joins the shards to a DatasetDict.

The folder of a shard appears complete, under a name made of its files and choices: a later run takes it as it is.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, DatasetDict, disable_progress_bars, load_from_disk
from datasets.table import table_cast
from tqdm import tqdm

from act_training.data.schema import NAMED_COLUMNS, PER_POINT, build_dataset, make_features
from act_training.prepare.objects import Choices, Item, Plan, Row
from modeling_act.errors import InputError
from modeling_act.point_ops import farthest_point_sample

CLOUDS_PER_SAMPLING = 8  # in one call of farthest point sampling; twice as fast as one by one in plain torch


def prepare_splits(
    plan: Plan, choices: Choices, work: Path, num_workers: int = 1, strict: bool = False
) -> tuple[DatasetDict, list[dict]]:
    """Read all items of a plan; `work` holds finished shards. Returns the set, and a dict of split, name and reason
    for each file or cloud that was rejected; with `strict` the first of them is an error."""
    work.mkdir(parents=True, exist_ok=True)
    shards = []
    for split, items in plan.splits.items():
        starts = range(0, len(items), plan.items_per_shard)
        shards += [(split, items[start : start + plan.items_per_shard]) for start in starts]
    read = functools.partial(read_shard, plan=replace(plan, splits={}), choices=choices, work=work)
    pool = ProcessPoolExecutor(num_workers, initializer=end_with_parent)
    try:
        results = (map if num_workers == 1 else pool.map)(read, [items for _, items in shards])
        folders, reasons_of = [], []
        for folder in tqdm(results, total=len(shards), unit="shard", desc=f"reading {choices.source}"):
            reasons = json.loads((folder / "rejected.json").read_text())
            if reasons and strict:
                raise InputError(reasons[0][1])
            folders.append(folder)
            reasons_of.append(reasons)
    except BrokenProcessPool as error:
        reasons = "out of memory (use fewer --num_workers), or killed by a damaged file"
        count = sum(map(len, plan.splits.values()))
        raise InputError(f"a process died while it read some of {count} files: {reasons}") from error
    finally:
        pool.shutdown(cancel_futures=True)
    splits, rejected = {split: [] for split, _ in shards}, []
    for (split, _), folder, reasons in zip(shards, folders, reasons_of, strict=True):
        rejected += [{"split": split, "name": name, "why": reason} for name, reason in reasons]
        if (folder / "state.json").is_file():
            splits[split].append(load_from_disk(str(folder)))
    return join_shards(splits, plan.names), rejected


def end_with_parent() -> None:
    """End this worker when its parent is killed, and leave Ctrl-C to the parent."""
    disable_progress_bars()
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def read_shard(items: Sequence[Item], plan: Plan, choices: Choices, work: Path) -> Path:
    """Read some items into a folder of `work`: a `save_to_disk` set of the good rows, and rejected.json."""
    settings = (choices, plan.read.__name__, plan.names, plan.num_points, plan.normalize)
    key = repr([settings, [(item, _stats(Path(item.file))) for item in items]])
    folder = work / hashlib.sha256(key.encode()).hexdigest()[:32]
    if folder.is_dir():
        return folder
    rows, rejected = [], []
    for item in items:
        try:
            for row in plan.read(item, choices):
                if problem := find_problem(row, plan):
                    rejected.append((row["name"], f"{item.file}: {problem}"))
                else:
                    rows.append(row)
        except InputError as error:
            rejected.append((item.name, str(error)))
    if plan.num_points:
        sample_rows(rows, plan.num_points)
    if plan.normalize:
        for row in rows:
            points = np.asarray(row["points"], dtype=np.float64)
            points = points - points.mean(axis=0)
            row["points"] = points / np.linalg.norm(points, axis=1).max()
    draft = Path(tempfile.mkdtemp(dir=work))
    if rows:
        shared = [name for name in rows[0] if all(name in row for row in rows)]
        columns = {name: [row[name] for row in rows] for name in shared}
        build_dataset(columns, **plan.names).save_to_disk(str(draft))
    (draft / "rejected.json").write_text(json.dumps(rejected))
    draft.rename(folder)
    return folder


def _stats(path: Path) -> list[tuple[int, int]]:
    """Sizes and times of a file, or of the files of a folder."""
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    return [(file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]


def find_problem(row: Row, plan: Plan) -> str | None:
    """The reason to refuse a row, if there is one."""
    points, name = row["points"], row.get("name")
    if points.ndim != 2 or points.shape[1] != 3:
        return f"{name} has points of shape {points.shape}, not (n, 3)"
    if not len(points):
        return "holds no points"
    for column in (*PER_POINT, "boxes"):
        with np.errstate(over="ignore"):
            if not np.isfinite(np.asarray(row.get(column, ()), dtype=np.float32)).all():
                return f"{name} has {column} that are not finite"
    if plan.num_points and len(points) < plan.num_points:
        return f"{name} has {len(points)} points, fewer than the {plan.num_points} asked for"
    if plan.normalize and not np.ptp(points, axis=0).any():
        return f"{name} has all its points in one place"
    for kind, column in NAMED_COLUMNS.items():
        if column in row and kind in plan.names and np.size(row[column]):
            low, high, count = np.min(row[column]), np.max(row[column]), len(plan.names[kind])
            if low < 0 or high >= count:
                return f"{name} has {column} {low} to {high}, and there are {count} names"
    return None


def sample_rows(rows: list[Row], num_points: int) -> None:
    """Reduce all columns with one entry per point to the points of farthest point sampling."""
    torch.set_num_threads(1)
    for size in {len(row["points"]) for row in rows} - {num_points}:
        same_size = [row for row in rows if len(row["points"]) == size]
        for start in range(0, len(same_size), CLOUDS_PER_SAMPLING):
            group = same_size[start : start + CLOUDS_PER_SAMPLING]
            points = np.stack([row["points"] for row in group]).astype(np.float32)
            indices = farthest_point_sample(torch.from_numpy(points), num_points).numpy()
            for row, chosen in zip(group, indices, strict=True):
                row.update({name: row[name][chosen] for name in (*PER_POINT, "point_labels") if name in row})


def join_shards(splits: dict[str, list[Dataset]], names: dict[str, list[str]]) -> DatasetDict:
    """All rows, still on disk, in the columns that all shards share; fixed arrays where clouds are of one size."""
    shards = [shard for group in splits.values() for shard in group]
    if not shards:
        raise InputError("not one cloud could be read")
    sizes = {shard.features["points"].shape[0] for shard in shards}
    shared = [name for name in shards[0].column_names if all(name in shard.column_names for shard in shards)]
    schema = make_features(sizes.pop() if len(sizes) == 1 else None, shared, **names).arrow_schema
    tables = {
        split: [table_cast(shard.data.table.select(shared), schema) for shard in group]
        for split, group in splits.items()
    }
    return DatasetDict({split: Dataset(pa.concat_tables(parts)) for split, parts in tables.items() if parts})


def summarize(joined: DatasetDict) -> dict[str, dict]:
    """Number of clouds, (least, median, most) points, and clouds or boxes of each class, by split."""
    summary = {}
    for split, rows in joined.items():
        sizes = np.concatenate([chunk.storage.value_lengths() for chunk in rows.data.column("points").chunks])
        column = next((name for name in ("label", "category", "box_labels") if name in rows.column_names), None)
        classes = {}
        if column:
            values, feature = rows.data.column(column).combine_chunks(), rows.features[column]
            if column == "box_labels":
                values, feature = values.flatten(), feature.feature
            labels, counts = np.unique(values.to_numpy(zero_copy_only=False), return_counts=True)
            names = feature.int2str(labels) if isinstance(feature, ClassLabel) else map(str, labels)
            classes = dict(zip(names, counts.tolist(), strict=True))
        points = [int(sizes.min()), float(np.median(sizes)), int(sizes.max())]
        summary[split] = {"clouds": len(rows), "points": points, "classes": classes}
    return summary
