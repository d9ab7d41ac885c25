"""Reading of uploads, which may be malicious: in a process of its own, with limits of time and memory."""

import multiprocessing
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from modeling_act.errors import InputError
from modeling_act.readers.cloud import read_cloud

MAX_BYTES = 20 * 2**20  # of a file
MAX_POINTS = 30_000  # used of a cloud
MAX_SECONDS = 30  # for reading an upload
MAX_MEMORY = 2**30  # bytes that reading an upload may allocate

# Forks of a server that has imported the readers start in milliseconds. Windows cannot fork.
HAS_FORKSERVER = "forkserver" in multiprocessing.get_all_start_methods()
PROCESSES = multiprocessing.get_context("forkserver" if HAS_FORKSERVER else "spawn")
if HAS_FORKSERVER:
    PROCESSES.set_forkserver_preload(["modeling_act.readers.cloud"])


@dataclass
class OpenCloud:
    """Cloud of a visitor: y up, at most MAX_POINTS points."""

    name: str
    points: np.ndarray  # (points, 3), float64
    colors: np.ndarray | None
    total: int  # points in the file, or sampled from its surface


def open_cloud(path: str | Path, z_up: bool = False) -> OpenCloud:
    """Read a cloud or mesh. Errors contain its name, not its folder."""
    path = Path(path)
    name = path.name if len(path.name) <= 60 else f"{path.name[:40]}...{path.name[-17:]}"
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: is larger than {MAX_BYTES / 2**20:.0f} MB")
        cloud = read_cloud(path, dtype=np.float64)
    except (InputError, OSError) as error:
        raise InputError(str(error).replace(str(path), name)) from error
    points, colors, total = np.asarray(cloud.points), cloud.colors, len(cloud.points)
    if np.abs(points).max() >= 1e15:
        raise InputError(f"{name}: holds coordinates beyond 1e15")
    if total > MAX_POINTS:
        chosen = np.sort(np.random.default_rng(0).permutation(total)[:MAX_POINTS])
        points, colors = points[chosen], None if colors is None else colors[chosen]
    if z_up:
        points = np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1)
    return OpenCloud(path.name, points, colors, total)


def open_upload(path: str | Path, z_up: bool = False) -> OpenCloud:
    """Run `open_cloud` in a process that is ended when it takes too long, and may crash without harm."""
    path = str(path)  # a plain string: unpickling Gradio's own kind would import Gradio
    name, (receiver, sender) = Path(path).name, PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_read, args=(sender, path, z_up, MAX_MEMORY), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(MAX_SECONDS):
            raise InputError(f"{name}: takes longer than {MAX_SECONDS} seconds to read")
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


def _read(sender: Connection, path: str, z_up: bool, max_memory: int) -> None:
    try:
        if sys.platform == "linux":  # elsewhere memory has no limit
            import resource

            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + max_memory, used + max_memory))
        sender.send(open_cloud(path, z_up))
    except InputError as error:
        sender.send(str(error))
    except MemoryError:
        sender.send(f"{Path(path).name}: needs more than {max_memory / 2**20:.0f} MB of memory to read")
