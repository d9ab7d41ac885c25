"""Results that ops.py calls equal, and the scripts ops.py, data.py and embed.py through the command line."""

import json

import pytest
import torch

import ops
import peers
from forked import run_command

SAMPLING = peers.Case("farthest_point_sample", 1, 5, 3)
SEARCH = peers.Case("k_nearest_neighbors", 1, 5, 1, 3)
# The queries are the first point; 1 and 2 are equally near to it, and equally far from each other's side.
POINTS = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [3, 0, 0], [9, 0, 0]]])


@pytest.mark.parametrize(
    ("case", "found", "expected", "verdict"),
    [
        (SAMPLING, [[0, 4, 3]], [[0, 4, 3]], "indices"),
        (SAMPLING, [[0, 4, 1]], [[0, 4, 3]], "no: 66.7% of the indices agree"),
        (SAMPLING, [[1, 4, 3]], [[0, 4, 3]], "no: starts at another point"),
        (SEARCH, [[[0, 1, 2]]], [[[0, 1, 2]]], "indices"),
        (SEARCH, [[[0, 2, 1]]], [[[0, 1, 2]]], "distances"),
        (SEARCH, [[[0, 1, 3]]], [[[0, 1, 2]]], "no: 66.7% of the indices agree"),
        (SEARCH, [[[0, 1]]], [[[0, 1, 2]]], "no: the shape is (1, 1, 2)"),
    ],
)
def test_indices_are_compared_up_to_ties(case, found, expected, verdict):
    assert ops.compare(case, POINTS, torch.tensor(found), torch.tensor(expected)) == verdict


def test_points_are_compared_as_a_set():
    expected = torch.tensor([[0, 4, 3]])
    assert ops.compare(SAMPLING, POINTS, POINTS[:, [3, 0, 4]], expected) == "points"
    assert ops.compare(SAMPLING, POINTS, POINTS[:, [1, 0, 4]], expected) == "no: other points"


def test_values_are_compared_to_rounding():
    case, values = peers.Case("chamfer_l1", 1, 5, 5), torch.tensor([1.0, -2.0])
    assert ops.compare(case, POINTS, values * (1 + 1e-6), values) == "values"
    assert ops.compare(case, POINTS, values * 1.1, values) == "no: values differ by up to 0.1 of the largest"


def test_neighborhoods_may_hold_equally_near_points_in_another_order():
    case, groups = peers.Case("group_points", 1, 5, 1, 3), POINTS[:, None, :3]
    assert ops.compare(case, POINTS, groups[:, :, [0, 2, 1]], groups) == "distances"
    assert ops.compare(case, POINTS, groups * 2, groups).startswith("no: values")


def run(script, folder):
    run_command(f"benchmarks/{script}.py", "--quick", "--output", folder / "results.jsonl")
    machine, *records = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    assert {record["machine"] for record in records} == {machine["machine"]}
    return records


def test_ops_script(tmp_path):
    records = run("ops", tmp_path)
    assert [record["peer"] for record in records if "peer" in record] == list(peers.PEERS)
    timed = [record for record in records if "implementation" in record]
    assert {record["operation"] for record in timed} == set(peers.OPERATIONS)
    for record in timed:
        if record["implementation"] in (peers.ORACLE, "ours, kernels", "naive torch"):
            assert record["equal"] in ("oracle", "indices", "distances", "values"), record
            assert len(record["seconds_cpu"]) == 2 and min(record["seconds_cpu"]) > 0


def test_data_script(tmp_path):
    records = [record for record in run("data", tmp_path) if "form" in record]
    read = {(record["form"], record["order"], record["workers"]) for record in records}
    assert len(read) == len(records) == 7 * 2 * 3 + 2 * 2  # a stream takes no second worker
    for record in records:
        rate = record["rows_per_second"][0]
        assert rate > 0 and record["opened_rows_per_second"][0] > 0
        assert record["megabytes_per_second"] == pytest.approx(rate * 64 * 12 / 1e6, rel=0.01)


def test_embed_script(tmp_path):
    records = [record for record in run("embed", tmp_path) if "form" in record]
    ours = [record for record in records if record["implementation"] == "ours"]
    assert [record["form"] for record in ours] == ["ply", "off"]
    for record in ours:
        stages = record["stage_seconds_cpu"]
        assert list(stages) == ["read", "sample", "normalise", "group", "encode"] and min(stages.values()) > 0
        assert record["clouds_per_second"] == pytest.approx(2 / record["seconds_cpu"][0], rel=0.01)


@pytest.mark.slow
def test_export_script(tmp_path):
    records = run("export", tmp_path)
    files = [record for record in records if record["section"] == "files"]
    assert [record["form"] for record in files] == ["torch.export", "onnxruntime"]
    for record in files:
        assert list(record["differences"]) == ["10", "64"] and max(record["differences"].values()) < 1e-5
    timed = {(record["form"], record["batch"]) for record in records if record["section"] == "latency"}
    assert timed >= {(form, batch) for form in ("plain torch", "torch.export", "onnxruntime") for batch in (1, 2)}
