"""report.py: small result files, and the text that they have to become."""

import json

import pytest

import report
from forked import run_command

MACHINE = {
    "machine": "abc", "processor": "A processor", "cores": 2, "instruction_sets": ["avx2"], "memory_gb": 25.3,
    "gpus": [], "system": "Linux", "python": "3.11.7", "versions": {"torch": "2.13.0"}, "commit": "1234", "threads": 1,
}  # fmt: skip


def write(folder, name, *records):
    subject = name.split("_")[0]
    common = {"benchmark": subject, "date": "2026-01-02", "command": f"python benchmarks/{subject}.py", "seed": 0}
    lines = [MACHINE, *(common | {"machine": "abc"} | record for record in records)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def rendered(tmp_path, heading):
    """The part of RESULTS.md below a heading."""
    (tmp_path / "plots").mkdir(exist_ok=True)
    parts = report.render(tmp_path, tmp_path / "plots").split("\n## ")
    return next(part for part in parts if part.startswith(heading)).partition("\n\n")[2].strip()


def step(implementation, seconds, **more):
    return {
        "step": "distill", "implementation": implementation, "dtype": "float32", "threads": 1, "batch": 16,
        "seconds_cpu": seconds, "seconds_wall": [100.0] * len(seconds), "clouds_per_second": 16 / seconds[1],
        "gflop_per_cloud": 25.04, "gflops": 100.2, "peak_gflops": 125.0, "share_of_peak": 0.8016,
        "peak_memory_mb": None, "first_call_seconds": 1.5, **more,
    }  # fmt: skip


def test_steps_are_compared_round_by_round(tmp_path):
    ours = step("ours", [2.0, 4.0, 6.0], output_difference=2e-7, gradient_difference=1e-3)
    write(tmp_path, "steps", ours, step("textbook", [4.0, 10.0, 9.0]))
    assert (
        rendered(tmp_path, "Steps of the models")
        == """\
`python benchmarks/steps.py`, 2026-01-02, commit 1234, seed 0, on A processor (2 cores, avx2), 25.3 GB, Linux, \
Python 3.11.7, torch 2.13.0.

| step | type | threads | batch | form | clouds/s | times the textbook's speed | GFLOP a cloud | GFLOP/s \
| of the peak | memory MB | first call s | difference: output / gradient |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| distill | float32 | 1 | 16 | ours | 4 | 2 (1.5-2.5) | 25 | 100 | 80.2 % | - | 1.5 | 2e-07 / 1e-03 |
| distill | float32 | 1 | 16 | textbook | 1.6 | 1 (1-1) | 25 | 100 | 80.2 % | - | 1.5 | - |

The peak is that of a matrix product: 125 GFLOP/s. Matrix products limit every step; were there nothing else, ours \
would be faster by these factors, the distance to the limit: distill 1.25."""
    )


def operation(implementation, points, **more):
    labels = {"operation": "farthest_point_sample", "batch": 1, "points": points, "count": points // 16, "k": 0}
    return labels | {"threads": 1, "implementation": implementation} | more


def timed(implementation, points, seconds, equal="indices"):
    return operation(implementation, points, seconds_cpu=seconds, seconds_wall=[9.0] * len(seconds), equal=equal)


def test_operations_name_what_is_absent_too_slow_or_not_equal(tmp_path):
    write(
        tmp_path,
        "ops",
        {"peer": "scipy", "version": "1.17.1", "absent": None},
        {"peer": "pytorch3d", "version": None, "absent": "No module named 'pytorch3d'"},
        timed("ours, plain torch", 1024, [0.002, 0.004], "oracle"),
        timed("ours, kernels", 1024, [0.001, 0.001]),
        timed("fpsample", 1024, [0.003, 0.005], "no: starts at another point"),
        timed("ours, plain torch", 65536, [0.5], "oracle"),
        timed("ours, kernels", 65536, [0.25]),
        operation("fpsample", 65536, skipped="too slow: about 30 s a call"),
    )
    assert (
        rendered(tmp_path, "Point operations").partition("torch 2.13.0.\n\n")[2]
        == """\
**farthest_point_sample, one growing cloud**

| times ours, kernels | 1 x 1,024 -> 64 | 1 x 65,536 -> 4,096 | agrees with plain torch in |
| --- | --- | --- | --- |
| milliseconds a call | 1 | 250 |  |
| ours, plain torch | 3 (2-4) | 2 | oracle |
| ours, kernels | 1 (1-1) | 1 | indices |
| fpsample | 4 (3-5) | too slow | no: starts at another point |

![Seconds a call of farthest_point_sample over the number of points](plots/farthest_point_sample.png)

Absent: pytorch3d (No module named 'pytorch3d')."""
    )
    assert 5_000 < (tmp_path / "plots" / "farthest_point_sample.png").stat().st_size < 60_000


def test_two_threads_are_compared_by_the_clock_in_a_table_of_their_own(tmp_path):
    for name, threads in (("ops", 1), ("ops_two_threads", 2)):
        ours, naive = timed("ours, plain torch", 1024, [2.0], "oracle"), timed("naive torch", 1024, [6.0])
        naive["seconds_wall"] = [45.0]
        write(tmp_path, name, ours | {"batch": 32, "threads": threads}, naive | {"batch": 32, "threads": threads})
    one, two = rendered(tmp_path, "Point operations").split("**farthest_point_sample**")[1:]
    assert "| naive torch | 3 | indices |" in one and "32 x 1,024 -> 64 |" in one
    assert "| naive torch | 5 | indices |" in two and "32 x 1,024 -> 64, 2 threads |" in two


def test_rows_of_storage_and_stages(tmp_path):
    def rows(form, order, workers, rates):
        return {
            "form": form, "points": 1024, "rows": 10, "batch": 2, "order": order, "workers": workers,
            "rows_per_second": rates, "megabytes_per_second": rates[0] * 1024 * 12 / 1e6,
            "share_of_gpu_clouds": rates[0] / 12000, "opened_rows_per_second": [50.0],
        }  # fmt: skip

    needed = {"gpu_clouds_per_second": 12000, "gpu_mb_per_second": 620}
    write(
        tmp_path, "data", needed, rows("npz", "random", 0, [3000.0, 1000.0]), rows("npz", "stored", 2, [6000.0]),
        rows("h5", "random", 0, [500.0]),
    )  # fmt: skip
    assert """\
| form | opening | random, 0 | stored, 2 | best MB/s | times a GPU's clouds/s |
| --- | --- | --- | --- | --- | --- |
| npz | 50 | 2,000 (1,000-3,000) | 6,000 | 73.7 | 0.5 |
| h5 | 50 | 500 | - | 6.14 | 0.0417 |
""" in rendered(tmp_path, "Reading rows")
    stages = {"read": 1.0, "sample": 0.5, "normalise": 0.0, "group": 0.5, "encode": 6.0}
    common = {"form": "ply", "threads": 1, "batch": 32, "stage_seconds_cpu": stages, "seconds_wall": [9.0]}
    ours = {"implementation": "ours", "version": None, "seconds_cpu": [8.0], "clouds_per_second": 4.0}
    peer = {"implementation": "peer", "version": "1.0", "seconds_cpu": [16.0], "clouds_per_second": 2.0}
    write(tmp_path, "embed", common | ours, common | peer)
    assert """\
| ply | ours | 4 | 1 | 12.5 % | 6.25 % | 0 % | 6.25 % | 75 % |
| ply | peer 1.0 | 2 | 2 | 12.5 % | 6.25 % | 0 % | 6.25 % | 75 % |
""" in rendered(tmp_path, "From files to vectors")
    assert all((tmp_path / "plots" / name).stat().st_size < 60_000 for name in ("data.png", "embed.png"))


def test_gpu_lists_what_was_not_measured(tmp_path):
    write(
        tmp_path, "gpu",
        {"section": "steps", "step": "embed", "seconds": [0.001, 0.002, 0.004], "share_of_peak": 0.41, "graphs": 1},
        {"section": "steps", "step": "distill", "failed": "RuntimeError: out of memory (gpu.py:1)"},
        {"section": "waits", "step": "embed", "not_run": "needs a CUDA device"},
    )  # fmt: skip
    assert (
        rendered(tmp_path, "On a GPU").partition("torch 2.13.0.\n\n")[2]
        == """\
**steps**

| step | seconds, thousandths | share of peak | graphs |
| --- | --- | --- | --- |
| embed | 2 (1-4) | 41 % | 1 |

Not measured:

- steps, distill: RuntimeError: out of memory (gpu.py:1)
- waits, embed: needs a CUDA device"""
    )


def test_exported_models(tmp_path):
    common = {"groups": 64, "threads": 1}
    file = {"section": "files", "form": "onnxruntime", "export_seconds": 9.5, "load_seconds": [0.2, 0.1, 0.4]}
    latency = {"section": "latency", "batch": 1, "points": 1024, "seconds_wall": [9.0, 9.0, 9.0]}
    write(
        tmp_path,
        "export",
        common | file | {"megabytes": 87.3, "differences": {"777": 2e-6, "8192": 3e-6}},
        common | latency | {"form": "plain torch", "seconds_cpu": [0.06, 0.08, 0.06]},
        common | latency | {"form": "onnxruntime", "seconds_cpu": [0.03, 0.08, 0.06]},
    )
    assert (
        rendered(tmp_path, "Exported models").partition("torch 2.13.0.\n\n")[2]
        == """\
**Files, 64 groups**

| form | MB | export s | load s | difference, 777 points | difference, 8,192 points |
| --- | --- | --- | --- | --- | --- |
| onnxruntime | 87.3 | 9.5 | 0.2 (0.1-0.4) | 2e-06 | 3e-06 |

**Latency, 64 groups**

| clouds | form | milliseconds a call | times plain torch |
| --- | --- | --- | --- |
| 1 x 1,024 | plain torch | 60 (60-80) | 1 (1-1) |
| 1 x 1,024 | onnxruntime | 60 (30-80) | 1 (0.5-1) |"""
    )


def test_a_subject_without_results_says_so(tmp_path):
    (tmp_path / "stepsons.jsonl").write_text("{}")
    assert rendered(tmp_path, "Steps of the models") == "Not measured yet: there is no results/steps.jsonl."


def test_script_renders_a_file_and_its_pictures(tmp_path):
    write(tmp_path, "steps", step("ours", [2.0, 4.0]))
    run_command("benchmarks/report.py", "--results", tmp_path, "--output", tmp_path / "new" / "RESULTS.md")
    text = (tmp_path / "new" / "RESULTS.md").read_text()
    assert text == report.render(tmp_path, tmp_path / "new" / "plots")
    assert text.startswith("# Benchmark results\n") and text.endswith("no results/gpu.jsonl.\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (None, "-"), (0.01234, "0.0123"), (1.0, "1"), (99.96, "100"), (12345.0, "12,300"), (2e-7, "2e-07")],
)
def test_numbers(value, text):
    assert report.number(value) == text
