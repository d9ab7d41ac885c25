"""Point operations compared with other libraries: equality with the plain torch path first, then interleaved times.

    python benchmarks/ops.py                  # one thread: batches at the models' sizes, then clouds up to 1M points
    python benchmarks/ops.py --threads 2      # batches only; compared by wall time

Our operations run twice: with the compiled kernels, if installed, and in plain torch, which is the oracle. Clouds are
float32 points on a bumpy sphere.
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from measure import ResultFile, argument_parser, installed_version, interleave, output_path
from peers import OPERATIONS, ORACLE, PEERS, Case, absent_peers, bumpy_spheres, naive_gather, peers, queries_of

TOO_SLOW = 20.0  # seconds per call; a slower candidate is left out from then on
LARGEST_MATRIX = 4e9  # bytes of all pairwise distances, which the naive forms hold at once
BUDGET = 12.0  # seconds for the rounds of one case, at least three rounds


# Equality ------------------------------------------------------------------------------------------------------------


def compare(case: Case, points: Tensor, found: Tensor, expected: Tensor) -> str:
    """Describe what agrees with the oracle, or "no: " and how much agrees.

    "indices"; "distances", to 1e-6 of the largest, for other points at equal distances; "points", the same set;
    "values", to 1e-5 of the largest.
    """
    if found.shape != expected.shape and case.operation != "farthest_point_sample":
        return f"no: the shape is {tuple(found.shape)}"
    if found.is_floating_point() and not expected.is_floating_point():
        found, expected = sorted_rows(found), sorted_rows(naive_gather(points, expected))
        return "points" if torch.equal(found, expected) else "no: other points"
    if found.is_floating_point():
        largest = float((found - expected).abs().max() / expected.abs().max())
        if largest > 1e-5 and case.operation == "group_points" and agree(lengths(found), lengths(expected)):
            return "distances"
        return "values" if largest <= 1e-5 else f"no: values differ by up to {largest:.1g} of the largest"
    if torch.equal(found, expected):
        return "indices"
    distances = selection_distances if case.operation == "farthest_point_sample" else neighbor_distances
    if agree(distances(case, points, found), distances(case, points, expected)):
        return "distances"
    if case.operation == "farthest_point_sample" and not torch.equal(found[:, 0], expected[:, 0]):
        return "no: starts at another point"
    return f"no: {float((found == expected).double().mean()):.1%} of the indices agree"


def agree(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-6 * expected.max())


def lengths(neighborhoods: Tensor) -> Tensor:
    return neighborhoods.square().sum(-1).sort(dim=-1).values


def sorted_rows(points: Tensor) -> Tensor:
    """Sort the points of each cloud in lexicographic order."""
    return torch.from_numpy(np.stack([cloud[np.lexsort(cloud.T)] for cloud in points.numpy()]))


def neighbor_distances(case: Case, points: Tensor, indices: Tensor) -> Tensor:
    queries = queries_of(case, points).unsqueeze(2)
    return (naive_gather(points, indices) - queries).square().sum(-1).sort(dim=-1).values


def selection_distances(case: Case, points: Tensor, indices: Tensor) -> Tensor:
    """Compute the distance of each chosen point to those chosen before it."""
    chosen = naive_gather(points, indices)
    nearest = [(chosen[:, :row] - chosen[:, row : row + 1]).square().sum(-1).amin(1) for row in range(1, case.count)]
    return torch.stack(nearest, 1)


# The run -------------------------------------------------------------------------------------------------------------


def cases(quick: bool, threads: int) -> Iterator[Case]:
    """Yield batches at the models' sizes, then growing single clouds of which a 16th, at most 4,096, is sampled."""
    for num_points, count, batch in [(128, 8, 2)] if quick else [(1024, 64, 32), (2048, 128, 32), (8192, 512, 32)]:
        yield Case("farthest_point_sample", batch, num_points, count)
        yield Case("k_nearest_neighbors", batch, num_points, count, 8 if quick else 32)
        yield Case("group_points", batch, num_points, count, 8 if quick else 32)
    for batch, num_points in [(2, 32)] if quick else [(2048, 32), (16, 2048)]:
        yield Case("chamfer_l1", batch, num_points, num_points)
        yield Case("chamfer_l2", batch, num_points, num_points)
    yield Case("interpolate", 2, 64, 8) if quick else Case("interpolate", 32, 2048, 128)
    if threads == 1:
        for num_points in [256] if quick else [2**power for power in range(10, 21, 2)]:
            count = min(num_points // 16, 4096)
            yield Case("farthest_point_sample", 1, num_points, count)
            yield Case("k_nearest_neighbors", 1, num_points, count, 8 if quick else 32)


def measure(case: Case, options: Namespace, results: ResultFile, rates: dict[tuple[str, str], float]) -> None:
    """Measure a case. `rates` are each candidate's seconds per pair of points in the last case, to skip slow ones."""
    points = bumpy_spheres(case.batch, case.points, torch.Generator().manual_seed(0))
    labels = asdict(case) | {"threads": options.threads}
    candidates = OPERATIONS[case.operation](case, points, options.threads)
    candidates = {ORACLE: candidates[ORACLE]} | candidates  # the oracle first
    runs, equal, first_seconds = {}, {}, {}
    for name, call in candidates.items():
        if any(part.split(",")[0] in absent_peers for part in name.split(" + ")):
            continue
        foreseen = rates.get((case.operation, name), 0.0) * case.work
        if foreseen > TOO_SLOW and name != ORACLE:
            results.append({**labels, "implementation": name, "skipped": f"too slow: about {foreseen:.0f} s a call"})
            continue
        matrix = 4 * case.work if name == "naive torch" and case.operation != "farthest_point_sample" else 0
        if matrix > LARGEST_MATRIX:
            results.append({**labels, "implementation": name, "skipped": f"too large: {matrix / 1e9:.0f} GB at once"})
            continue
        start = time.perf_counter()
        found = call()
        first_seconds[name] = time.perf_counter() - start
        rates[case.operation, name] = first_seconds[name] / case.work
        if name == ORACLE:
            expected = found
        equal[name] = "oracle" if name == ORACLE else compare(case, points, found, expected)
        runs[name] = call
    if first_seconds[ORACLE] > TOO_SLOW and "ours, kernels" in runs:
        del runs[ORACLE]
        taken = f"too slow: {first_seconds.pop(ORACLE):.0f} s a call"
        results.append({**labels, "implementation": ORACLE, "skipped": taken})
    rounds = 2 if options.quick else rounds_for(sum(first_seconds.values()))
    timings = interleave(runs, rounds, warmup=int(rounds > 1), shortest=0.0 if options.quick else 0.02)
    base = timings[next(name for name in ("ours, kernels", ORACLE) if name in timings)]
    for name, timing in timings.items():
        results.append({**labels, "implementation": name, "equal": equal[name], **timing.record()})
        kind = "median_cpu" if options.threads == 1 else "median_wall"
        size = f"{case.batch} x {case.points} -> {case.count}"
        times = getattr(timing, kind) / getattr(base, kind)
        print(f"{case.operation:22} {size:22} {name:18} {times:8.2f}  {equal[name]}", flush=True)


def rounds_for(seconds: float) -> int:
    """Return the number of rounds: seven if a round is short, one if it is very long."""
    return 1 if seconds > BUDGET else max(3, min(7, int(BUDGET / seconds)))


def main() -> None:
    parser = argument_parser("ops", __doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if "faiss-cpu" in peers:
        peers["faiss-cpu"].omp_set_num_threads(options.threads)
    results = ResultFile(output_path("ops", options), "ops")
    for distribution in PEERS:
        version = installed_version(distribution) if distribution in peers else None
        results.append({"peer": distribution, "version": version, "absent": absent_peers.get(distribution)})
    rates = {}
    for case in cases(options.quick, options.threads):
        measure(case, options, results, rates)
    print(f"results in {results.path}")


if __name__ == "__main__":
    main()
