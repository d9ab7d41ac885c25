"""Helpers of all benchmarks: interleaved timing, the machine's peak and description, results as JSON lines."""

import argparse
import ctypes
import datetime
import gc
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
# Packages whose versions are recorded if installed: dependencies and peers.
DISTRIBUTIONS = (
    "torch",
    "transformers",
    "numpy",
    "datasets",
    "pyarrow",
    "h5py",
    "point_kernels",
    "triton",
    "fpsample",
    "scipy",
    "faiss-cpu",
    "open3d",
    "torch_cluster",
    "pytorch3d",
    "torch-pointcloud",
    "onnx",
    "onnxscript",
    "onnxruntime",
)


# Time ----------------------------------------------------------------------------------------------------------------


@dataclass
class Timing:
    """Seconds per call, one value per round: `wall` time, and `cpu` time of all threads of this process.

    On a shared machine, compare one thread by `cpu` and several threads by `wall`.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median_wall(self) -> float:
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu)

    def record(self) -> dict[str, list[float]]:
        return {
            "seconds_cpu": [float(f"{value:.5g}") for value in self.cpu],
            "seconds_wall": [float(f"{value:.5g}") for value in self.wall],
        }


def interleave(
    candidates: dict[str, Callable[[], Any]], rounds: int = 7, warmup: int = 1, shortest: float = 0.02
) -> dict[str, Timing]:
    """Time all candidates in turn, in a different order each round, so that a busy moment affects all of them.

    A measurement repeats a call until it lasts `shortest` seconds. Garbage is collected between rounds only.
    """
    repeats, timings = {}, {name: Timing() for name in candidates}
    for name, call in candidates.items():
        fastest = min(_seconds(call, 1)[0] for _ in range(warmup + 1))
        repeats[name] = max(1, round(shortest / max(fastest, 1e-9)))
    order, shuffle = list(candidates), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        gc.collect()
        gc.disable()
        try:
            for name in order:
                wall, cpu = _seconds(candidates[name], repeats[name])
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
        finally:
            gc.enable()
    return timings


def _seconds(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def gemm_peak(dtype: torch.dtype = torch.float32, threads: int = 1, largest: int = 2048, rounds: int = 5) -> float:
    """Measure the peak: GFLOP/s of the fastest product of two square matrices on the CPU.

    Sizes double from 256 up to `largest`, or until one product takes 0.1 s, as with types without hardware support.
    """
    before, best, size = torch.get_num_threads(), 0.0, 256
    torch.set_num_threads(threads)
    try:
        while size <= largest:
            left, right = torch.randn(2, size, size).to(dtype)
            product = torch.empty_like(left)
            timing = interleave({"": lambda a=left, b=right, c=product: torch.mm(a, b, out=c)}, rounds)[""]
            seconds = min(timing.cpu if threads == 1 else timing.wall)
            best, size = max(best, 2 * size**3 / seconds / 1e9), size * 2
            if seconds > 0.1:
                break
    finally:
        torch.set_num_threads(before)
    return best


# Memory --------------------------------------------------------------------------------------------------------------


def peak_memory(function: Callable[[], Any]) -> float | None:
    """Measure the peak growth of this process while `function` runs, in megabytes (10**6 bytes); None except on Linux.

    Call the function once before, so that one-time allocations do not count.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would hide growth
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the current size
        before = _status("VmRSS")
    except (OSError, AttributeError, TypeError):
        return None
    function()
    return max(0, _status("VmHWM") - before) * 1024 / 1e6


def _status(name: str) -> int:
    """Read a line of this process' status file on Linux, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# The machine ---------------------------------------------------------------------------------------------------------


def machine_facts() -> dict[str, Any]:
    """Describe the machine that a number depends on: processor, memory, accelerator, versions, commit."""
    model, flags = _processor()
    gpus = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpus": gpus,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version for name in DISTRIBUTIONS if (version := installed_version(name))},
        "commit": _commit(),
        "threads": torch.get_num_threads(),
    }


def installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> tuple[str, set[str]]:
    """Return the processor's name, and the instruction sets that Linux lists."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(values.get("flags", values.get("Features", "")).split())
    return values.get("model name", platform.machine()), flags


def _commit() -> str | None:
    """Return the commit of this checkout, with a + if source files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "*.py", "*.cpp", "*.h")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


# Results -------------------------------------------------------------------------------------------------------------


class ResultFile:
    """JSON lines of one run, which replace those of the previous run: the machine, then one record per measurement.

    Each record is written to disk when it is appended, with the benchmark's name, date, command line, seed and the id
    of the machine's line.
    """

    def __init__(self, path: str | Path, benchmark: str, seed: int = 0):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        facts = machine_facts()
        machine = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=6).hexdigest()
        self._common = {
            "benchmark": benchmark,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
            "command": _command(sys.argv),
            "seed": seed,
            "machine": machine,
        }
        self.path.write_text(json.dumps({"machine": machine, **facts}) + "\n")

    def append(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(self._common | record) + "\n")


def _command(arguments: list[str]) -> str:
    """Return the command line without the folders of this machine."""
    script, *rest = arguments
    rest = [Path(word).name if os.path.isabs(word) else word for word in rest]
    return f"python {shlex.join([f'benchmarks/{Path(script).name}', *rest])}"


def argument_parser(benchmark: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of every benchmark. A quick run only tests that a script works; its numbers mean nothing."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds; not for figures")
    parser.add_argument(
        "--output", type=Path, help=f"default: results/{benchmark}.jsonl, for a quick run a scratch file"
    )
    return parser


def output_path(benchmark: str, arguments: argparse.Namespace) -> Path:
    folder = Path(tempfile.gettempdir()) if arguments.quick else RESULTS
    return arguments.output or folder / f"{benchmark}.jsonl"
