"""Any point-cloud set a user can name, behind one way of reading rows.

`open_point_set` takes the built-in set, a Hub id, a `save_to_disk` folder, parquet, npz, h5, or a folder of files.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from tqdm import tqdm

from act_training.cloud_files import CLOUD_SUFFIXES, read_cloud
from act_training.errors import InputError
from act_training.everyday_shapes import CLASS_NAMES, PART_NAMES, generate_shapes
from act_training.point_checks import bad_rows
from act_training.point_schema import build_dataset, read_rows

# What the columns of published sets are called, the first that is there is taken.
ALIASES = {
    "points": ("points", "inputs", "point_cloud", "pc", "xyz", "pos", "coord", "coords", "data"),
    "label": ("label", "labels", "category", "cls", "class"),
    "point_labels": ("point_labels", "seg", "segment", "part_label", "pid"),
    "category": ("category", "categories"),
}
BUILT_IN = "everyday_shapes"
BUILT_IN_SPLITS = {"train": (0, 6000), "test": (6000, 1500)}  # first shape, number of shapes
NAMES = ("class_names", "part_names", "category_names")


class PointSet:
    """Rows of one split in memory or mapped from disk."""

    def __init__(self, dataset: Dataset, source: str, rows: np.ndarray | None = None):
        self.source = source
        self.columns = find_columns(dataset.column_names, source)
        label = self.columns.get("label")
        if label and dataset.features[label].dtype == "string":
            dataset = dataset.class_encode_column(label)
        self.dataset = dataset
        self.rows = np.arange(len(dataset)) if rows is None else rows  # what a row is called in the source
        self._table = dataset.with_format("arrow", columns=list(self.columns.values()))

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Sequence[int]) -> "PointSet":
        return PointSet(self.dataset, self.source, self.rows[np.asarray(rows, dtype=np.int64)])

    def read(self, rows: Sequence[int]) -> dict:
        """points: (values (total, 3), lengths (rows,)); other columns: arrays of a value a row, or of one a point."""
        return columns_of(self.read_table(rows), self.columns)

    def read_table(self, rows: Sequence[int]) -> pa.Table:
        return self._table[self.rows[np.asarray(rows, dtype=np.int64)].tolist()]

    def where(self, row: int) -> str:
        return f"row {self.rows[row]} of {self.source}"

    def labels(self) -> np.ndarray:
        if "label" not in self.columns:
            raise InputError(f"{self.source} has no labels; its columns are {', '.join(self.dataset.column_names)}")
        column = self._table.data.column(self.columns["label"]) if self.dataset._indices is None else None
        values = column if column is not None else self._table[:].column(self.columns["label"])
        return values.to_numpy()[self.rows].astype(np.int64)

    @property
    def class_names(self) -> list[str] | None:
        feature = self.dataset.features.get(self.columns.get("label"))
        return feature.names if isinstance(feature, ClassLabel) else None


class StreamedPointSet:
    """Rows of parquet shards, on disk or on the Hub, of which only the blocks (row groups) in use are in memory."""

    blocks_in_memory = 64

    def __init__(self, files: list[str], source: str, min_points: int = 1):
        self.source, self.files, self.min_points = source, files, min_points
        self.blocks: list[tuple[str, int]] = []
        self.block_sizes: list[int] = []
        for file in files:
            metadata = _parquet_file(file).metadata
            self.blocks += [(file, group) for group in range(metadata.num_row_groups)]
            self.block_sizes += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.block_starts = np.concatenate([[0], np.cumsum(self.block_sizes)]).astype(np.int64)
        names = _parquet_file(files[0]).schema_arrow.names
        self.columns = find_columns(names, source)
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return int(self.block_starts[-1])

    def read(self, rows: Sequence[int]) -> dict:
        table = self.read_table(rows)
        for place, reason in bad_rows(table, self.columns["points"], self.min_points):
            raise InputError(f"{self.where(rows[place])}: {reason}; mend or remove it, a stream cannot skip rows")
        return columns_of(table, self.columns)

    def read_table(self, rows: Sequence[int]) -> pa.Table:
        rows = np.asarray(rows, dtype=np.int64)
        blocks = np.searchsorted(self.block_starts, rows, side="right") - 1
        tables = [
            self._block(block).slice(row - self.block_starts[block], 1)
            for row, block in zip(rows, blocks, strict=True)
        ]
        return pa.concat_tables(tables)

    def _block(self, block: int) -> pa.Table:
        if block in self._cache:
            self._cache.move_to_end(block)
            return self._cache[block]
        file, group = self.blocks[block]
        try:
            table = _parquet_file(file).read_row_group(group, columns=list(self.columns.values()))
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file}, row group {group}: cannot be read ({str(error).splitlines()[0]})") from error
        self._cache[block] = table
        if len(self._cache) > self.blocks_in_memory:
            self._cache.popitem(last=False)
        return table

    def where(self, row: int) -> str:
        block = int(np.searchsorted(self.block_starts, row, side="right")) - 1
        file, group = self.blocks[block]
        return f"row {row - self.block_starts[block]} of row group {group} of {file}"


def find_columns(names: Sequence[str], source: str) -> dict[str, str]:
    """Which of a set's columns is which of the schema's."""
    found = {}
    for column, aliases in ALIASES.items():
        match = next((alias for alias in aliases if alias in names and alias not in found.values()), None)
        if match:
            found[column] = match
    if "points" not in found:
        raise InputError(
            f"{source}: no column of points among {', '.join(names) or 'none'}; expected one of "
            f"{', '.join(ALIASES['points'])}"
        )
    return found


def columns_of(table: pa.Table, columns: dict[str, str]) -> dict:
    """The columns of a table as numpy arrays; rows must have been checked before."""
    values, lengths, _ = read_rows(table, columns["points"])
    found = {"points": (values.astype(np.float32, copy=False).reshape(-1, 3), lengths)}
    for name in ("label", "category"):
        if name in columns:
            found[name] = table.column(columns[name]).to_numpy()
    if "point_labels" in columns and len(set(lengths.tolist())) == 1:
        found["point_labels"] = read_rows(table, columns["point_labels"])[0].reshape(len(lengths), -1)
    return found


def open_point_set(
    name: str,
    split: str = "train",
    config_name: str | None = None,
    streaming: bool = False,
    min_points: int = 1,
    num_points: int = 8192,
) -> PointSet | StreamedPointSet:
    """One split of a set. A source without splits is all "train". `num_points` are sampled from each mesh of a folder
    of files; `min_points` is what a streamed row must have, as streams are checked while they are read."""
    if streaming:
        files = _parquet_files(name, config_name)
        return StreamedPointSet(_pick(files, split, name), f"{name} ({split})", min_points)
    splits = _open_splits(name, config_name, num_points)
    return PointSet(_pick(splits, split, name), f"{name} ({split})")


def _pick(splits: dict, split: str, name: str):
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(map(str, splits))}")
    return splits[split]


def _open_splits(name: str, config_name: str | None, num_points: int) -> dict[str, Dataset]:
    path = Path(name)
    if name == BUILT_IN:
        return {split: _generate(*which) for split, which in BUILT_IN_SPLITS.items()}
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        if path.is_absolute() or name.startswith("."):
            raise InputError(f"{name}: there is no such file or folder")
        return _load(name, config_name)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            opened = load_from_disk(str(path))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise InputError(f"{name}: damaged `save_to_disk` folder ({_first_line(error)})") from error
        return dict(opened) if isinstance(opened, DatasetDict) else {"train": opened}
    if any(path.rglob("*.parquet")):
        return _load("parquet", None, data_dir=name)
    arrays = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".h5", ".hdf5"))
    if arrays and all(file.stem in ("train", "test", "validation") for file in arrays):
        return {file.stem: _open_file(file)["train"] for file in arrays}
    return {"train": _read_folder(path, num_points)}


def _generate(start: int, count: int) -> Dataset:
    shapes = generate_shapes(count, start=start)
    return build_dataset(shapes, class_names=CLASS_NAMES, part_names=PART_NAMES)


def _open_file(path: Path) -> dict[str, Dataset]:
    if path.suffix == ".parquet":
        return _load("parquet", None, data_files=str(path))
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise InputError(f"{path}: cannot be read as npz ({_first_line(error)})") from error
        except Exception as error:  # zipfile and zlib have errors of their own for damaged archives
            raise InputError(f"{path}: damaged npz ({_first_line(error)})") from error
    elif path.suffix in (".h5", ".hdf5"):
        arrays = _read_h5(path)
    else:
        raise InputError(f"{path}: a set is a folder, or a .parquet, .npz or .h5 file")
    return _split_arrays(arrays, str(path))


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path}: reading h5 needs h5py; pip install h5py") from error
    arrays = {}
    try:
        with h5py.File(path, "r") as file:
            for name, entry in file.items():
                if isinstance(entry, h5py.Dataset) and entry.dtype.kind in "fiuS":
                    if entry.nbytes > 1000 * max(1, entry.id.get_storage_size()):
                        raise InputError(f"{path}: {name!r} claims {entry.nbytes} bytes, far more than the file holds")
                    arrays[name] = entry[()]
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: damaged h5 ({_first_line(error)})") from error
    return arrays


def _split_arrays(arrays: dict[str, np.ndarray], source: str) -> dict[str, Dataset]:
    """Sets from arrays named like columns, with `split`, `class_names`, `part_names` beside them if they like."""
    names = {name: arrays[name].tolist() for name in NAMES if name in arrays}
    found = find_columns(list(arrays), source)
    points = arrays[found["points"]]
    if points.ndim != 3 or points.shape[2] != 3 or points.dtype.kind not in "fiu":
        raise InputError(
            f"{source}: {found['points']!r} must be numbers of shape (clouds, points, 3), got {points.dtype} of shape "
            f"{points.shape}"
        )
    columns = {column: arrays[name] for column, name in found.items()}
    for column in ("label", "category"):
        if column in columns:
            columns[column] = columns[column].reshape(-1)
    for column, values in columns.items():
        if len(values) != len(points):
            raise InputError(f"{source}: {len(points)} clouds, but {len(values)} entries in {found[column]!r}")
    if "split" not in arrays:
        return {"train": build_dataset(columns, **names)}
    split = arrays["split"].astype(str)
    return {
        str(name): build_dataset({column: values[split == name] for column, values in columns.items()}, **names)
        for name in sorted(set(split.tolist()), key=split.tolist().index)
    }


def _read_folder(path: Path, num_points: int) -> Dataset:
    """A folder of mesh and cloud files; the class of a file is its subfolder."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in CLOUD_SUFFIXES and file.is_file())
    if not files:
        raise InputError(
            f"{path}: no set found; expected parquet, npz, h5, a `save_to_disk` folder, or files such as ply"
        )
    classes = sorted({file.relative_to(path).parts[0] for file in files if file.parent != path})
    clouds, problems = [], []
    for number, file in enumerate(tqdm(files, desc=f"reading {path.name}", unit="file", leave=False)):
        try:
            clouds.append(read_cloud(file, num_points, seed=number).points)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(
            f"{len(problems)} of {len(files)} files cannot be read; mend or remove them, or let prepare_data.py "
            f"--skip_bad leave them out: {'; '.join(itertools.islice(problems, 10))}"
        )
    columns = {"points": clouds, "name": [str(file.relative_to(path)) for file in files]}
    if classes and all(file.parent != path for file in files):
        columns["label"] = [classes.index(file.relative_to(path).parts[0]) for file in files]
    return build_dataset(columns, class_names=classes)


def _load(name: str, config_name: str | None, **options) -> dict[str, Dataset]:
    try:
        return dict(load_dataset(name, config_name, **options))
    except (
        OSError,
        ValueError,
        RuntimeError,
        pa.ArrowException,
    ) as error:  # datasets' and the Hub's own derive from these
        source = options.get("data_dir") or options.get("data_files") or name
        raise InputError(
            f"{source}: neither a file or folder here nor a set that `datasets` can load ({_first_line(error)})"
        ) from error


def _parquet_files(name: str, config_name: str | None) -> dict[str, list[str]]:
    """The parquet shards of a folder or of a set on the Hub, by split."""
    path = Path(name)
    try:
        if path.is_file():
            return {"train": [str(path)]}
        if path.is_dir():
            builder = load_dataset_builder("parquet", data_dir=name)
        else:
            builder = load_dataset_builder(name, config_name)
        files = {str(split): list(map(str, found)) for split, found in builder.config.data_files.items()}
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{name}: no parquet shards to stream ({_first_line(error)})") from error
    if not all(file.endswith(".parquet") for shards in files.values() for file in shards):
        raise InputError(f"{name}: --streaming reads parquet shards; write them with `Dataset.to_parquet`")
    return files


def _parquet_file(file: str) -> pa.parquet.ParquetFile:
    try:
        if "://" not in file:
            return pa.parquet.ParquetFile(file, memory_map=True)
        import fsspec

        return pa.parquet.ParquetFile(fsspec.open(file).open())
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: damaged parquet ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
