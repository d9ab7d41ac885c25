"""Rows/s of every storage format that training opens, read as in the training scripts.

    python benchmarks/data.py

Reads clouds of 1,024 and 8,192 points in batches of 128 through `iterate_batches`, in random and in stored order, with
0, 1 and 2 workers. Opening, which converts files to rows, is timed separately. The script writes the files itself, so
they are in the page cache, and the numbers exclude the disk. Times are wall time, because workers are processes.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch

from measure import ResultFile, argument_parser, output_path

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from act_training.data.batches import ShuffledRows, StreamedRows, iterate_batches  # noqa: E402
from act_training.data.point_sets import PointSet, StreamedPointSet, open_point_set  # noqa: E402

from stored_clouds import FORMS  # noqa: E402

# Estimates of what one H200 would take in training at 40 % of its peak, not measurements.
GPU_CLOUDS_PER_SECOND = 12_000
GPU_MEGABYTES_PER_SECOND = 620


@dataclass
class StoredRows:
    """Rows in stored order, repeated forever."""

    num_rows: int
    batch_size: int

    def batch(self, number: int) -> list[tuple[int, int]]:
        start = number * self.batch_size
        return [divmod(position, self.num_rows) for position in range(start, start + self.batch_size)]


# Measuring -----------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def read_rows(point_set: PointSet | StreamedPointSet, order: str, workers: int, num_batches: int, size: int) -> float:
    """Return seconds per row between the first and the last batch, without the start of workers."""
    if order == "stored":
        rows = StoredRows(len(point_set), size)
    elif isinstance(point_set, StreamedPointSet):
        rows = StreamedRows(point_set.block_sizes, point_set.window, size)
    else:
        rows = ShuffledRows(len(point_set), size)
    ticks = []
    for batch in iterate_batches(point_set, rows, 0, num_batches, workers, pin_memory=False):
        assert len(batch["points"]) == size
        ticks.append(time.perf_counter())
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1) / size


def measure(num_points: int, num_rows: int, folder: Path, options, results: ResultFile) -> None:
    """Measure all formats in turn in each round, since the machine may be busy at times."""
    clouds = np.random.default_rng(0).standard_normal((num_rows, num_points, 3), dtype=np.float32)
    size, rounds = (4, 1) if options.quick else (128, 5)
    num_batches = 4 if options.quick else max(16, 2**18 // num_points // 2)
    opened, opening, reading = {}, {}, {}
    for name, (write, file, most) in FORMS.items():
        path = write(folder / f"{num_points}_{file}", clouds[:most])
        open_form = lambda path=path, name=name: open_point_set(  # noqa: E731
            str(path), streaming="streamed" in name, num_points=num_points
        )
        opening[name] = []
        for _ in range(rounds):
            datasets.config.HF_DATASETS_CACHE = Path(tempfile.mkdtemp(dir=folder))  # parquet is converted once
            opening[name].append(seconds(open_form))
        opened[name] = open_form()
    for _ in range(rounds):
        for name, point_set in opened.items():
            for order in ("random", "stored"):
                for workers in (0, 1) if "streamed" in name else (0, 1, 2):
                    taken = read_rows(point_set, order, workers, num_batches, size)
                    reading.setdefault((name, order, workers), []).append(taken)
    for (name, order, workers), row_seconds in reading.items():
        rates = [1 / value for value in row_seconds]
        median = float(np.median(rates))
        results.append({
            "form": name, "points": num_points, "rows": len(opened[name]), "batch": size, "order": order,
            "workers": workers, "rows_per_second": [round(rate, 1) for rate in rates],
            "megabytes_per_second": median * num_points * 12 / 1e6,
            "share_of_gpu_clouds": median / GPU_CLOUDS_PER_SECOND,
            "opened_rows_per_second": [round(len(opened[name]) / value, 1) for value in opening[name]],
        })  # fmt: skip
        print(f"{num_points:5} points  {name:18} {order:7} {workers} workers {median:10.0f} rows/s", flush=True)


def main() -> None:
    options = argument_parser("data", __doc__).parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    results = ResultFile(output_path("data", options), "data")
    results.append({"gpu_clouds_per_second": GPU_CLOUDS_PER_SECOND, "gpu_mb_per_second": GPU_MEGABYTES_PER_SECOND})
    with tempfile.TemporaryDirectory() as folder:
        for num_points, num_rows in [(64, 16)] if options.quick else [(1024, 4096), (8192, 1024)]:
            measure(num_points, num_rows, Path(folder), options, results)
    print(f"results in {results.path}")


if __name__ == "__main__":
    main()
