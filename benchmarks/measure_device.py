"""Helpers of gpu.py: device timing, CUDA graphs, and records that survive a failed measurement."""

import gc
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from measure import ResultFile


@dataclass
class Bench:
    """Device, results and deadline of a run."""

    results: ResultFile
    device: torch.device
    quick: bool
    deadline: float
    peak_gflops: float | None = None

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @contextmanager
    def measuring(self, section: str, needs_cuda: bool = False, **labels) -> Iterator[dict | None]:
        """Yield a record to fill in; write it at the end, with an error if there was one. Yield None, and record that,
        if there is no time left or no such device."""
        record = {"section": section, **labels}
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()
        if needs_cuda and not self.on_cuda:
            record["not_run"] = "needs a CUDA device"
        elif time.monotonic() > self.deadline:
            record["not_run"] = "not begun within the budget"
        try:
            yield None if "not_run" in record else record
        except Exception as error:
            first_line = next(iter(str(error).strip().splitlines()), "")
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            record["failed"] = f"{type(error).__name__}: {first_line[:300]} ({place})"
        self.results.append(record)
        shown = {name: value for name, value in record.items() if not isinstance(value, list | dict)}
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in shown.items()}
        print(" ".join(f"{name}={value}" for name, value in shown.items()), flush=True)

    def seconds(self, run: Callable[[], object], rounds: int = 20) -> list[float]:
        """Time calls after a warm-up: by device events, or by wall time on the CPU."""
        if not self.on_cuda:
            ticks = [time.perf_counter()]
            for _ in range(3):
                run()
                ticks.append(time.perf_counter())
            return differences(ticks)[1:]
        for _ in range(3):
            run()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        torch.cuda.synchronize()
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in zip(events, events[1:], strict=False)]


def differences(values: list[float]) -> list[float]:
    return [after - before for before, after in zip(values, values[1:], strict=False)]


def waits(run: Callable[[], object]) -> dict:
    """Count how often a call makes the host wait for the device, by line."""
    run()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    lines = {f"{Path(warning.filename).name}:{warning.lineno}" for warning in found}
    return {"waits": len(found), "lines": sorted(lines)}


def device_time(run: Callable[[], object], count: int = 12) -> dict:
    """Return milliseconds that a call keeps the device busy, and the shares of its slowest operators."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    # An operator's own device time is that of the kernels it launched, which are also listed.
    operators = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    total = sum(event.self_device_time_total for event in operators)
    operators = sorted(operators, key=lambda event: -event.self_device_time_total)[:count]
    shares = [
        f"{event.key.removeprefix('aten::')} {100 * event.self_device_time_total / total:.1f} %" for event in operators
    ]
    return {"busy_milliseconds": total / 1e3, "operators": shares}


def capture(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture the same work as one CUDA graph, after warm-up calls that allocate and compile."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
