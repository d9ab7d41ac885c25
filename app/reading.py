"""Files that anybody may have sent -> clouds, within bounds of size, points, memory and time."""

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import numpy as np

from modeling_act.errors import InputError
from modeling_act.readers.cloud import read_cloud

MOST_BYTES = 20 * 2**20  # of an upload,
MOST_BYTES_UNPACKED = 10 * MOST_BYTES  # of what an archive holds,
MOST_POINTS = 30_000  # and of these of any cloud
MOST_SECONDS = 30  # to read one

# Children of a server that has imported what reads start in milliseconds; Windows knows none.
HAS_SERVER = "forkserver" in multiprocessing.get_all_start_methods()
PROCESSES = multiprocessing.get_context("forkserver" if HAS_SERVER else "spawn")
if HAS_SERVER:
    PROCESSES.set_forkserver_preload(["modeling_act.readers.cloud"])


@dataclass
class OpenCloud:
    """A cloud as the page holds it: y up, at most MOST_POINTS points."""

    name: str
    points: np.ndarray  # (points, 3), float64
    colors: np.ndarray | None = None
    total: int = 0  # points of the file, or of the surface drawn


def open_cloud(path: str | Path, z_up: bool = False) -> OpenCloud:
    """Reads a file that anybody may have sent. Errors call it by its name and not by where it was put."""
    path = Path(path)
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is larger than {MOST_BYTES / 2**20:.0f} MB")
        if path.suffix.lower() == ".npz" and is_zipfile(path):
            with ZipFile(path) as archive:
                if sum(info.file_size for info in archive.infolist()) > MOST_BYTES_UNPACKED:
                    raise InputError(f"{path}: holds more than {MOST_BYTES_UNPACKED / 2**20:.0f} MB")
        cloud = read_cloud(path, dtype=np.float64)
    except (InputError, OSError) as error:
        raise InputError(str(error).replace(str(path), path.name)) from error
    points, colors, total = np.array(cloud.points, np.float64), cloud.colors, len(cloud.points)
    if np.abs(points).max() >= 1e15:
        raise InputError(f"{path.name}: holds coordinates beyond 1e15")
    if total > MOST_POINTS:
        kept = np.sort(np.random.default_rng(0).permutation(total)[:MOST_POINTS])
        points, colors = points[kept], None if colors is None else colors[kept]
    if z_up:
        points = np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1)
    return OpenCloud(path.name, points, colors, total)


def open_upload(path: str | Path, z_up: bool = False) -> OpenCloud:
    """`open_cloud` in a process of its own, which is ended when it takes too long and may die without harm."""
    path = str(path)  # a plain one: Gradio's kind would have the process import Gradio
    name, (receiver, sender) = Path(path).name, PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_answer, args=(sender, path, z_up), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(MOST_SECONDS):
            raise InputError(f"{name}: takes longer than {MOST_SECONDS} seconds to read")
        answer = receiver.recv()
    except EOFError as error:
        raise InputError(f"{name}: cannot be read") from error
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(answer, str):
        raise InputError(answer)
    return answer


def _answer(sender: Connection, path: str, z_up: bool) -> None:
    try:
        sender.send(open_cloud(path, z_up))
    except InputError as error:
        sender.send(str(error))
