"""Point-cloud sets of any format, read by rows.

`open_point_set` takes a built-in set, a Hub id, a `save_to_disk` folder, parquet, npz, h5, or a folder of files.
"""

import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, Features
from tqdm import tqdm

from act_training.data import schema
from modeling_act.errors import InputError
from modeling_act.readers.cloud import list_cloud_files, read_cloud

BUILT_IN = ("everyday_shapes", "broad_shapes", "everyday_rooms")
TRAINING = Path(__file__).parents[2]


class PointSet:
    """Rows of one split in memory or mapped from disk."""

    def __init__(self, dataset: Dataset, source: str, rows: np.ndarray | None = None):
        self.dataset, self.source = dataset, source
        self.columns = schema.find_columns(dataset.column_names, source)
        self.rows = np.arange(len(dataset)) if rows is None else rows  # numbers of the rows in the source
        table = schema.as_lists(dataset.data.table.select(list(self.columns.values())))
        self._names: dict[str, list[str] | None] = {}
        self._labels: np.ndarray | None = None
        for column in {"label", "category"} & self.columns.keys():
            name = self.columns[column]
            codes, self._names[column] = _encode_labels(table.column(name), dataset.features[name])
            if codes is None:
                table = table.drop_columns(self.columns.pop(column))
                continue
            table = table.set_column(table.column_names.index(name), name, codes)
            if column == "label":
                self._labels = codes.to_numpy()
        self._batches = table.to_batches()
        self._starts = np.cumsum([0, *map(len, self._batches)])

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple:  # a worker that is not forked maps the files again instead of copying them
        return PointSet, (self.dataset, self.source, self.rows)

    def select(self, rows: Sequence[int]) -> "PointSet":
        return PointSet(self.dataset, self.source, self.rows[np.asarray(rows, dtype=np.int64)])

    def read(self, rows: Sequence[int]) -> dict:
        """Read columns, as `columns_of` returns them."""
        return columns_of(self.read_table(rows), self.columns)

    def iterate_columns(self, batch_rows: int = 256) -> Iterator[tuple[range, dict]]:
        """Read all rows, `batch_rows` at a time. Yields the rows and their columns."""
        for rows, table in self.iterate_tables(batch_rows):
            yield rows, columns_of(table, self.columns)

    def iterate_tables(self, batch_rows: int) -> Iterator[tuple[range, pa.Table]]:
        for start in range(0, len(self), batch_rows):
            rows = range(start, min(start + batch_rows, len(self)))
            yield rows, self.read_table(rows)

    def read_table(self, rows: Sequence[int]) -> pa.Table:
        return _take(self._batches.__getitem__, self._starts, self.rows[np.asarray(rows, dtype=np.int64)])

    def where(self, row: int) -> str:
        return f"row {self.rows[row]} of {self.source}"

    def row_names(self) -> list[str]:
        """Names of all rows, from the column `name`."""
        columns = self.dataset.column_names
        if "name" not in columns:
            raise InputError(f"{self.source} has no column name; its columns are {', '.join(columns)}")
        names = self.dataset.data.column("name").to_pylist()
        return [names[row] for row in self.rows]

    def names_of(self, column: str) -> list[str] | None:
        """Class names of a column of the schema, or None."""
        if column in self._names:
            return self._names[column]
        feature = self.dataset.features[self.columns[column]]
        feature = getattr(feature, "feature", feature)  # of lists
        return feature.names if isinstance(feature, ClassLabel) else None

    def labels(self) -> np.ndarray:
        """Class of each row, -1 where it has none."""
        if self._labels is None:
            names = ", ".join(self.dataset.column_names)
            raise InputError(f"{self.source} has no labels, neither whole numbers nor words; its columns are {names}")
        return self._labels[self.rows]


def _encode_labels(column: pa.ChunkedArray, feature) -> tuple[pa.ChunkedArray | None, list[str] | None]:
    """Convert labels to whole numbers, -1 where there is none. Returns them and the class names, or None."""
    names = feature.names if isinstance(feature, ClassLabel) else None
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        names = sorted(pa.compute.unique(column).drop_null().to_pylist())
        column = pa.compute.index_in(column, pa.array(names, column.type))
    try:
        return column.cast(pa.int64()).fill_null(-1), names
    except pa.ArrowException:  # lists, fractions
        return None, None


class StreamedPointSet:
    """Rows of parquet shards, on disk or on the Hub; only the blocks (row groups) in use are in memory.

    `IterableDataset` of `datasets` does not serve here: a resume loses its shuffle buffer, and each process reads all
    shards unless their number is a multiple of the processes.
    """

    window = 4096  # rows that are shuffled together, so that the blocks that hold them must be in memory

    def __init__(self, files: list[str], source: str, min_points: int = 1):
        self.source, self.min_points = source, min_points
        self._footers = {file: _read_footer(file) for file in files}
        self.blocks = [(file, group) for file in files for group in range(self._footers[file].num_row_groups)]
        self.block_sizes = [self._footers[file].row_group(group).num_rows for file, group in self.blocks]
        self.block_starts = np.cumsum([0, *self.block_sizes])
        if not len(self):
            raise InputError(f"{source}: holds no rows")
        shards = [footer.schema.to_arrow_schema() for footer in self._footers.values()]
        types = [dict(zip(shard.names, shard.types, strict=True)) for shard in shards]
        self.columns = schema.find_columns(shards[0].names, source)
        for file, own_types in zip(files, types, strict=True):
            if any(own_types.get(name) != types[0][name] for name in self.columns.values()):
                names = ", ".join(self.columns.values())
                raise InputError(f"{file}: its columns {names} are not those of {files[0]}")
        self._cache: dict[int, pa.RecordBatch] = {}

    def __len__(self) -> int:
        return int(self.block_starts[-1])

    def read(self, rows: Sequence[int]) -> dict:
        return columns_of(_take(self._read_block, self.block_starts, np.asarray(rows)), self.columns)

    def _read_block(self, block: int) -> pa.RecordBatch:
        if block not in self._cache:
            file, group = self.blocks[block]
            with one_line_errors(f"{file}, row group {group}: cannot be read"):
                parquet = _open_parquet(file, self._footers[file])
                stored = parquet.read_row_group(group, columns=list(self.columns.values()))
                table = schema.as_lists(stored).combine_chunks()
            for row, reason in schema.find_bad_rows(table, self.columns["points"], self.min_points).items():
                where = self.where(self.block_starts[block] + row)
                raise InputError(f"{where}: {reason}; mend or remove it, a stream cannot skip rows")
            self._cache[block] = table.to_batches()[0]
            capacity, held = self.window + max(self.block_sizes), sum(map(len, self._cache.values()))
            while held - len(self._cache[oldest := next(iter(self._cache))]) >= capacity:
                held -= len(self._cache.pop(oldest))
        return self._cache[block]

    def where(self, row: int) -> str:
        block = int(np.searchsorted(self.block_starts, row, side="right")) - 1
        file, group = self.blocks[block]
        return f"row {row - self.block_starts[block]} of row group {group} of {file}"

    def fingerprint(self) -> str:
        """Digest of the footers (sizes and bounds) and of the names of files on the Hub, which hold their commit."""
        footers = [("://" in file and file, footer.to_dict()) for file, footer in self._footers.items()]
        return hashlib.blake2b(repr(footers).encode(), digest_size=16).hexdigest()


def _take(batch_of: Callable[[int], pa.RecordBatch], starts: np.ndarray, rows: np.ndarray) -> pa.Table:
    """Take rows of record batches; batch i begins with row `starts[i]`. Neighbors are taken in one slice."""
    places = np.searchsorted(starts, rows, side="right") - 1
    cuts = ((np.diff(rows) != 1) | (np.diff(places) != 0)).nonzero()[0] + 1
    runs = itertools.pairwise([0, *cuts.tolist(), len(rows)])
    pieces = [batch_of(places[first]).slice(rows[first] - starts[places[first]], stop - first) for first, stop in runs]
    return pa.Table.from_batches(pieces)


def columns_of(table: pa.Table, columns: dict[str, str]) -> dict:
    """Convert the columns of checked rows: an array with a value per row (label, category), or for points,
    point_labels, boxes and box_labels the concatenated values of all rows and the number of values of each."""
    arrays = {}
    for name, column in columns.items():
        if name in ("label", "category"):
            arrays[name] = table.column(column).to_numpy()
            continue
        values, lengths = schema.read_rows(table, column)
        if name in ("points", "boxes"):
            width = 3 if name == "points" else 7
            if name == "boxes" and (schema.read_widths(table, column) != width).any():
                raise InputError("boxes must be of seven numbers: center, size and angle")
            values = values.astype(np.float32, copy=False).reshape(-1, width)
        elif values.dtype.kind in "iu":
            values = values.astype(np.int64, copy=False)
        else:
            raise InputError(f"{name} must be whole numbers, got {values.dtype}")
        arrays[name] = values, lengths
    return arrays


def open_point_set(
    name: str,
    split: str = "train",
    config_name: str | None = None,
    streaming: bool = False,
    min_points: int = 1,
    num_points: int = 8192,
) -> PointSet | StreamedPointSet:
    """Open one split of a set, or several as "train+test". A source without splits is all "train".

    `num_points` are sampled from each mesh of a folder of files. `min_points` is the smallest cloud of a stream, whose
    rows are checked when they are read.
    """
    if streaming:
        with one_line_errors(f"{name}: no parquet shards to stream"):
            files = _files_by_split(name, config_name)[0]
        if not _all_parquet(files):
            raise InputError(f"{name}: --streaming reads parquet shards; write them with `Dataset.to_parquet`")
        shards = [file for part in split.split("+") for file in _pick(files, part, name)]
        return StreamedPointSet(shards, f"{name} ({split})", min_points)
    exists = name in BUILT_IN or Path(name).exists()
    problem = "damaged" if exists else "neither a file or folder here nor a set that `datasets` can load"
    with one_line_errors(f"{name}: {problem}"):
        parts = [_open_split(name, part, config_name, num_points) for part in split.split("+")]
        return PointSet(datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0], f"{name} ({split})")


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turn any error of a parser, of `datasets` or of the Hub's client into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = str(error.__cause__ or error).strip() or type(error).__name__
        raise InputError(f"{what} ({reason.splitlines()[0][:300]})") from error


def _pick(splits: dict, split: str, name: str):
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(map(str, splits))}")
    return splits[split]


def _open_split(name: str, split: str, config_name: str | None, num_points: int) -> Dataset:
    path = _prepare_built_in(name) if name in BUILT_IN else Path(name)
    if path.is_file() and path.suffix != ".parquet":
        return _pick(schema.read_array_set(path), split, name)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        opened = datasets.load_from_disk(str(path))
        return _pick(opened if isinstance(opened, DatasetDict) else {"train": opened}, split, name)
    if path.is_dir() and not any(path.rglob("*.parquet")):
        arrays = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in schema.ARRAY_SUFFIXES}
        if arrays and arrays.keys() <= {"train", "test", "validation"}:
            return _pick(schema.read_array_set(_pick(arrays, split, name)), "train", name)
        return _read_folder(_pick({"train": path}, split, name), num_points)
    if not path.exists() and (path.is_absolute() or name.startswith(".")):
        raise InputError(f"{name}: there is no such file or folder")
    files, features = _files_by_split(name, config_name)
    if not _all_parquet(files):
        return _pick(datasets.load_dataset(name, config_name), split, name)
    shards = _pick(files, split, name)
    for file in shards:
        if "://" not in file:
            _read_footer(file)  # the errors of `datasets` do not name the damaged file
    return datasets.load_dataset("parquet", data_files={split: shards}, features=features, split=split)


def built_in_folder(name: str) -> Path:
    """Folder of a built-in set in the cache of `datasets`."""
    sources = [file.read_bytes() for file in sorted((TRAINING / "act_training" / "synthetic").glob("*.py"))]
    version = hashlib.blake2b(b"".join(sources), digest_size=8).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE, name, version)


def _prepare_built_in(name: str) -> Path:
    """Generate a built-in set by prepare_data.py on first use, and return its folder."""
    folder = built_in_folder(name)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            command = [sys.executable, str(TRAINING / "prepare_data.py"), name, "--out", f"{draft}/set"]
            process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if process.returncode:
                raise InputError(f"{name}: cannot be prepared ({process.stderr.strip().splitlines()[-1]})")
            with suppress(OSError):  # another process was faster
                os.rename(f"{draft}/set", folder)
    return folder


def _read_folder(path: Path, num_points: int) -> Dataset:
    """Read a folder of mesh and cloud files; the class of a file is its subfolder."""
    files, _ = list_cloud_files(path)
    if not files:
        raise InputError(f"{path}: no set; expected parquet, npz, h5, a `save_to_disk` folder, or files such as ply")
    classes = sorted({file.relative_to(path).parts[0] for file in files if file.parent != path})
    clouds, problems = [], []
    for number, file in enumerate(tqdm(files, desc=f"reading {path.name}", unit="file", leave=False)):
        try:
            clouds.append(read_cloud(file, num_points, seed=number).points)
        except InputError as error:
            problems.append(str(error))
    if problems:
        advice = "mend or remove them, or let prepare_data.py --skip_bad leave them out"
        counts = f"{len(problems)} of {len(files)} files cannot be read"
        raise InputError(f"{path}: {counts}; {advice}: {'; '.join(problems[:10])}")
    columns = {"points": clouds, "name": [str(file.relative_to(path)) for file in files]}
    if classes and all(file.parent != path for file in files):
        columns["label"] = [classes.index(file.relative_to(path).parts[0]) for file in files]
    return schema.build_dataset(columns, class_names=classes)


def _files_by_split(name: str, config_name: str | None) -> tuple[dict[str, list[str]], Features | None]:
    """Files by split of a parquet file, a folder or a set on the Hub, and the features that the Hub states."""
    if Path(name).is_file():
        return {"train": [name]}, None
    source = ("parquet", None, name) if Path(name).is_dir() else (name, config_name)
    builder = datasets.load_dataset_builder(*source)
    files = {str(split): list(map(str, shards)) for split, shards in (builder.config.data_files or {}).items()}
    return files, builder.info.features


def _all_parquet(files: dict[str, list[str]]) -> bool:
    return bool(files) and all(file.endswith(".parquet") for shards in files.values() for file in shards)


def _open_parquet(file: str, footer: pa.parquet.FileMetaData | None = None) -> pa.parquet.ParquetFile:
    source = fsspec.open(file).open() if "://" in file else file
    return pa.parquet.ParquetFile(source, memory_map=True, metadata=footer)


def _read_footer(file: str) -> pa.parquet.FileMetaData:
    with one_line_errors(f"{file}: damaged parquet"):
        return _open_parquet(file).metadata
