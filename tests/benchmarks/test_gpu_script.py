"""benchmarks/gpu.py rehearsed on the CPU: every section, and what becomes of failures."""

import json
import statistics
import time

import pytest
import torch

import gpu
from measure import ResultFile
from measure_device import Bench
from modeling_act import point_ops


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_rehearsal(run_python, tmp_path):
    path = tmp_path / "gpu.jsonl"
    run_python("benchmarks/gpu.py", "--device", "cpu", "--quick", "--output", path)
    machine, *records = read(path)
    assert machine["versions"]["torch"] == torch.__version__
    assert not [record for record in records if "failed" in record]
    assert records[-1]["section"] == "end"
    check_steps(records)
    check_compiled_steps(records)
    check_operations(records)
    check_data(records)
    check_projection(records)


def check_steps(records):
    """All of them in the modes that a CPU has, and the others named."""
    steps = [record for record in records if record["section"] == "steps"]
    measured = {(record["step"], record["mode"]) for record in steps if "not_run" not in record}
    names = ("autoencode", "distill", "finetune", "embed")
    assert measured == {(name, mode) for name in names for mode in ("eager", "eager_without_kernels", "compiled")}
    for record in steps:
        if "not_run" in record:
            assert "graph" in record["mode"] and record["not_run"] == "needs a CUDA device"
            continue
        assert record["clouds_per_second"] == pytest.approx(record["batch"] / statistics.median(record["seconds"]))
        assert record["gflops"] == pytest.approx(record["clouds_per_second"] * record["gflop_per_cloud"])
        assert 0 < record["gflop_per_cloud"] < 1 and torch.tensor(record["mean_output"]).isfinite()


def check_compiled_steps(records):
    compiled = [record for record in records if record.get("mode") == "compiled"]
    assert len(compiled) == 4
    for record in compiled:
        assert (record["graphs"], record["graph_breaks"]) == (1, {})


def check_operations(records):
    operations = [record for record in records if record["section"] == "operations"]
    assert len({record["operation"] for record in operations}) == 3
    for record in operations:
        if not point_ops._kernels_serve("cpu"):
            assert record["not_run"] == "no kernels for cpu are installed"
            continue
        assert record["equal"] or (record["operation"].startswith("chamfer") and record["largest_difference"] < 1e-6)
        assert record["speed_up"] > 0


def check_data(records):
    data = {record["source"]: record for record in records if record["section"] == "data"}
    assert data.keys() == {"resident", "loader"}
    assert all(record["clouds_per_second"] > 0 for record in data.values())


def check_projection(records):
    """Check the projection for the fastest mode at the recipe's batch size."""
    projection = next(record for record in records if record["section"] == "projection")
    rates = {"autoencode": [], "distill": [], "finetune": [], "embed": []}
    for record in records:
        if record["section"] == "steps" and record["batch"] == 2 and "not_run" not in record:
            rates[record["step"]].append(record["clouds_per_second"])
    expected = 300 * 41_952 / max(rates["autoencode"]) / 3600 + 300 * 52_470 / max(rates["distill"]) / 3600
    assert projection["hours"] == pytest.approx(expected)


@pytest.fixture
def bench(tmp_path):
    results = ResultFile(tmp_path / "results.jsonl", "gpu")
    return Bench(results, torch.device("cpu"), quick=True, deadline=time.monotonic() + 60)


def test_a_failure_costs_one_measurement(bench, capsys):
    with bench.measuring("first", size=3) as record:
        record["half"] = 1
        raise RuntimeError("CUDA error: an illegal memory access\nand much more")
    with bench.measuring("second") as record:
        record["value"] = 2
    first, second = read(bench.results.path)[1:]
    assert (first["section"], first["size"], first["half"]) == ("first", 3, 1)
    assert first["failed"].startswith("RuntimeError: CUDA error: an illegal memory access (test_gpu_script.py:")
    assert second["value"] == 2
    assert "failed=RuntimeError" in capsys.readouterr().out


def test_what_cannot_run_is_named(bench):
    with bench.measuring("graphs", needs_cuda=True) as record:
        assert record is None
    bench.deadline = time.monotonic() - 1
    with bench.measuring("late") as record:
        assert record is None
    reasons = [record["not_run"] for record in read(bench.results.path)[1:]]
    assert reasons[0] == "needs a CUDA device" and reasons[1] == "not begun within the budget"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--device", "cpu"], "--device cpu goes with --quick"), ([], "there is no CUDA device")],
)
def test_a_wrong_device_is_refused(monkeypatch, capsys, arguments, reason):
    monkeypatch.setattr("sys.argv", ["gpu.py", *arguments])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert reason in capsys.readouterr().err
