import gc
import json
import sys
import time

import pytest
import torch

import measure


def burn(seconds):
    stop = time.process_time() + seconds
    while time.process_time() < stop:
        pass


def test_interleave_calls_all_candidates_alike_and_tells_cpu_from_wall():
    calls = []
    candidates = {
        "short": lambda: (calls.append("short"), burn(0.01)),
        "long": lambda: (calls.append("long"), burn(0.03)),
        "asleep": lambda: (calls.append("asleep"), time.sleep(0.03)),
    }
    timings = measure.interleave(candidates, rounds=5, warmup=2, shortest=0.0)
    assert all(calls.count(name) == 2 + 1 + 5 for name in candidates)
    rounds = [tuple(calls[start : start + 3]) for start in range(9, 24, 3)]
    assert all(set(order) == set(candidates) for order in rounds) and len(set(rounds)) > 1
    assert timings["long"].median_cpu / timings["short"].median_cpu == pytest.approx(3, rel=0.2)
    assert timings["asleep"].median_wall >= 0.03 > 10 * timings["asleep"].median_cpu


def test_interleave_repeats_short_calls_and_leaves_garbage_alone():
    calls, collecting = [], []

    def call():
        calls.append(None)
        collecting.append(gc.isenabled())

    timing = measure.interleave({"": call}, rounds=3, warmup=9, shortest=0.005)[""]
    assert len(calls) > 10 + 3 * 100 and min(timing.wall) < 1e-4
    assert not any(collecting[10:]) and gc.isenabled()


def test_record_keeps_five_digits():
    timing = measure.Timing(wall=[0.123456789], cpu=[12.3456789])
    assert timing.record() == {"seconds_cpu": [12.346], "seconds_wall": [0.12346]}


def test_gemm_peak_is_what_a_matrix_product_reaches():
    left = torch.randn(256, 256)
    seconds = min(measure.interleave({"": lambda: left @ left}, rounds=5)[""].cpu)
    assert measure.gemm_peak(largest=256) == pytest.approx(2 * 256**3 / seconds / 1e9, rel=0.5)
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the largest size of a process since a moment")
def test_peak_memory_counts_what_was_held_at_once():
    def hold(count):  # 40 MB each: the allocator serves larger blocks by pages of their own, not by what was freed
        return sum(len(tensor) for tensor in [torch.ones(10_000_000) for _ in range(count)])

    assert measure.peak_memory(lambda: hold(3)) == pytest.approx(120, abs=8)
    assert measure.peak_memory(lambda: hold(1)) == pytest.approx(40, abs=8)
    assert measure.peak_memory(lambda: None) < 5


def test_machine_facts_name_versions_and_no_folder():
    facts = measure.machine_facts()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["cores"] >= 1 and facts["memory_gb"] > 0
    assert "/" not in json.dumps({name: value for name, value in facts.items() if name != "processor"})


def test_results_of_a_run_replace_those_before_and_name_their_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "ops.py"), "--quick", "--output", str(tmp_path / "ops.jsonl")])
    for value in (1, 2):
        results = measure.ResultFile(tmp_path / "new" / "ops.jsonl", "ops", seed=3)
        results.append({"value": value})
    machine, record = map(json.loads, (tmp_path / "new" / "ops.jsonl").read_text().splitlines())
    assert machine["versions"]["torch"] == torch.__version__
    assert record["machine"] == machine["machine"]
    assert record["command"] == "python benchmarks/ops.py --quick --output ops.jsonl"
    assert (record["benchmark"], record["seed"], record["value"]) == ("ops", 3, 2)


def test_a_quick_run_does_not_replace_results():
    parser = measure.argument_parser("ops", "One line.\nAnother.")
    assert measure.output_path("ops", parser.parse_args([])) == measure.RESULTS / "ops.jsonl"
    assert measure.RESULTS not in measure.output_path("ops", parser.parse_args(["--quick"])).parents
    assert str(measure.output_path("ops", parser.parse_args(["--quick", "--output", "here"]))) == "here"
