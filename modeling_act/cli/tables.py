"""Files in and out of the command line: clouds below folders, and tables and colored clouds that others read."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from ..errors import InputError
from ..readers.cloud import CLOUD_SUFFIXES

TABLE_SUFFIXES = (".npz", ".json", ".parquet")
ROWS_AT_A_TIME = 1024


def list_clouds(inputs: Iterable[str]) -> dict[str, str]:
    """Files, addresses, and what lies below folders: name -> path. Names are relative, and below a folder of several
    begin with its own."""
    inputs, found = list(inputs), {}
    for given in inputs:
        if given.lower().startswith(("http://", "https://")):
            named = [(PurePosixPath(unquote(urlsplit(given).path)).name or "cloud", given)]
        elif os.path.isdir(given):
            before = (os.path.basename(os.path.abspath(given)),) if len(inputs) > 1 else ()
            files = sorted(path for path in _files_below(given) if path.suffix.lower() in CLOUD_SUFFIXES)
            named = [
                (PurePosixPath(*before, path.relative_to(given).as_posix()).as_posix(), str(path)) for path in files
            ]
            if not named:
                raise InputError(f"{given}: holds no file of points or of a mesh ({', '.join(CLOUD_SUFFIXES)})")
        else:
            named = [(os.path.basename(given), given)]
        for name, path in named:
            name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if name in found:
                raise InputError(f"{given}: two clouds would have the name {name!r}; give the folder above both")
            found[name] = path
    return found


def _files_below(folder: str) -> Iterable[Path]:
    for parent, _, names in os.walk(folder, onerror=_raise):
        yield from (Path(parent) / name for name in names)


def _raise(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror})")


def path_below(folder: str | Path, name: str, ending: str) -> Path:
    """Where the result for a name goes: below the folder, whatever the name."""
    folder = Path(folder)
    path = folder / PurePosixPath(name + ending)
    if ".." in path.parts[len(folder.parts) :] or folder.resolve() not in path.resolve().parents:
        raise InputError(f"{name!r}: its result would lie outside {folder}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def open_table(path: str | None) -> Iterator["TableFile"]:
    """`with open_table("vectors.parquet") as table: table.write(name=[...], vector=[...])`: the file is there when the
    block ends, and not if an error ends it. Without a path rows go nowhere."""
    table = TableFile(Path(path)) if path else TableFile(None)
    try:
        yield table
        table.complete()
    finally:
        table.discard()


class TableFile:
    """Rows with columns of equal names: numbers, words, or arrays of one shape. Parquet is written as it comes; the
    others are held until the end."""

    def __init__(self, path: Path | None):
        self.path, self.columns, self.writer = path, {}, None
        if path is None:
            return
        if path.suffix not in TABLE_SUFFIXES:
            raise InputError(f"{path}: must end in one of {', '.join(TABLE_SUFFIXES)}")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")
        self.draft = path.with_name(f".{path.name}.writing")
        self.draft.touch()  # before hours of work

    def write(self, **columns: Any) -> None:
        if self.path is None:
            return
        for name, values in columns.items():
            self.columns.setdefault(name, []).extend(values)
        if self.path.suffix == ".parquet" and len(next(iter(self.columns.values()))) >= ROWS_AT_A_TIME:
            self._write_parquet()

    def _write_parquet(self) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise InputError("writing parquet needs pyarrow: pip install pyarrow") from error
        arrays = {
            name: [value if np.ndim(value) else _plain(value) for value in values]
            for name, values in self.columns.items()
        }
        schema = self.writer.schema if self.writer else None
        table = pyarrow.Table.from_pydict(arrays, schema)
        if self.writer is None:
            self.writer = parquet.ParquetWriter(self.draft, table.schema)
        self.writer.write_table(table)
        self.columns = {name: [] for name in self.columns}

    def complete(self) -> None:
        if self.path is None:
            return
        if self.path.suffix == ".parquet":
            if any(self.columns.values()) or self.writer is None:
                self._write_parquet()
            self.writer.close()
        elif self.path.suffix == ".npz":
            with self.draft.open("wb") as file:
                np.savez(file, **{name: _as_array(values) for name, values in self.columns.items()})
        else:
            rows = zip(*([_plain(value) for value in values] for values in self.columns.values()), strict=True)
            lines = (json.dumps(dict(zip(self.columns, row, strict=True))) for row in rows)
            self.draft.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        os.replace(self.draft, self.path)

    def discard(self) -> None:
        """What an error left half written."""
        if self.path is not None:
            if self.writer is not None:
                self.writer.close()
            self.draft.unlink(missing_ok=True)


def _as_array(values: list) -> np.ndarray:
    if values and isinstance(values[0], (str, int, float)):
        return np.array(values)
    return np.stack([np.asarray(value) for value in values]) if values else np.zeros(0)


def _plain(value: Any) -> Any:
    """For JSON; of float32 as many digits as tell it from others."""
    if isinstance(value, (str, int, float, list, dict)):
        return value
    value = np.asarray(value)
    return value.astype(str).astype(float).tolist() if value.dtype == np.float32 else value.tolist()


def write_ply(
    path: Path, points: np.ndarray, colors: np.ndarray | None = None, labels: np.ndarray | None = None
) -> None:
    """Points (n, 3), and where given colors (n, 3) in [0, 1] and labels (n,), as a binary PLY file. Coordinates of a
    map, which float32 would round, are written as float64."""
    rounding = np.abs(points.astype(np.float32) - points).max(initial=0)
    kinds = ("<f8", "double") if rounding > 1e-5 * np.ptp(points, axis=0).max(initial=0) else ("<f4", "float")
    columns = [(name, *kinds, points[:, axis]) for axis, name in enumerate("xyz")]
    if colors is not None:
        bytes_ = np.rint(255 * np.clip(colors, 0, 1)).astype(np.uint8)
        columns += [(name, "u1", "uchar", bytes_[:, axis]) for axis, name in enumerate(("red", "green", "blue"))]
    if labels is not None:
        columns.append(("label", "<i4", "int", labels))
    rows = np.empty(len(points), [(name, kind) for name, kind, _, _ in columns])
    for name, _, _, values in columns:
        rows[name] = values
    properties = "".join(f"property {kind} {name}\n" for name, _, kind, _ in columns)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    path.write_bytes(header.encode() + rows.tobytes())
