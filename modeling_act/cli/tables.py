"""Files in and out of the command line: clouds below folders, tables, and colored clouds as PLY."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import InputError, printable
from ..readers.cloud import CLOUD_SUFFIXES, list_cloud_files

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    pyarrow = None

TABLE_SUFFIXES = (".npz", ".json", ".parquet")
PLY_TYPES = {"<f4": "float", "<f8": "double", "|u1": "uchar", "<i4": "int"}


def list_clouds(inputs: Iterable[str]) -> dict[str, str]:
    """Map names to paths: of files, and of the clouds below folders, whose names are relative paths; with several
    inputs they begin with the folder's own name."""
    inputs, clouds = list(inputs), {}
    for source in inputs:
        names = {os.path.basename(source): source}
        if os.path.isdir(source):
            parent = Path(source).resolve().name if len(inputs) > 1 else ""
            files, ignored = list_cloud_files(source)
            if ignored:
                print(printable(f"ignored in {source}, no clouds: {ignored}"), file=sys.stderr)
            names = {Path(parent, path.relative_to(source)).as_posix(): str(path) for path in files}
            if not names:
                raise InputError(f"{source}: holds no file of points or of a mesh ({', '.join(CLOUD_SUFFIXES)})")
        for name, path in names.items():
            name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if name in clouds:
                raise InputError(f"{source}: two clouds would have the name {name!r}; give the folder above both")
            clouds[name] = path
    return clouds


def path_below(folder: str | Path, name: str, ending: str) -> Path:
    """Make the path of a cloud's result, which must lie below the folder whatever the cloud is called."""
    path = Path(folder, name + ending)
    if ".." in name.split("/") or Path(folder).resolve() not in path.resolve().parents:
        raise InputError(f"{name!r}: its result would lie outside {folder}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def check_table(path: str | Path) -> None:
    """Raise if no table can be written there, before hours of work."""
    path = Path(path)
    if path.suffix not in TABLE_SUFFIXES:
        raise InputError(f"{path}: must end in one of {', '.join(TABLE_SUFFIXES)}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: there is no folder {path.parent} to write to")
    if path.suffix == ".parquet" and pyarrow is None:
        raise InputError("writing parquet needs pyarrow: pip install pyarrow")


def write_table(path: str | Path, columns: dict[str, list | np.ndarray]) -> None:
    """Write columns of equal length, of numbers, words or vectors. The file is complete, or not there."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.writing")
    try:
        if path.suffix == ".npz":
            with draft.open("wb") as file:
                np.savez(file, **columns)
        elif path.suffix == ".json":
            arrays = [np.asarray(values) for values in columns.values()]
            # Numbers of float32 get the fewest digits that identify them.
            arrays = [array.astype(str).astype(float) if array.dtype == np.float32 else array for array in arrays]
            rows = zip(*(array.tolist() for array in arrays), strict=True)
            lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
            draft.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        else:
            parquet.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_ply(
    path: Path, points: np.ndarray, colors: np.ndarray | None = None, labels: np.ndarray | None = None
) -> None:
    """Write points (n, 3), colors (n, 3) in [0, 1] and labels (n,) as PLY; float64 if float32 would round a map."""
    rounding = np.abs(points.astype(np.float32) - points).max(initial=0)
    kind = "<f8" if rounding > 1e-5 * np.ptp(points, axis=0).max(initial=0) else "<f4"
    columns = dict(zip("xyz", points.astype(kind).T, strict=True))
    if colors is not None:
        channels = np.rint(255 * np.clip(colors, 0, 1)).astype(np.uint8).T
        columns |= dict(zip(("red", "green", "blue"), channels, strict=True))
    if labels is not None:
        columns["label"] = labels.astype("<i4")
    rows = np.rec.fromarrays(list(columns.values()), names=list(columns))
    properties = "".join(f"property {PLY_TYPES[values.dtype.str]} {name}\n" for name, values in columns.items())
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    path.write_bytes(header.encode() + rows.tobytes())
