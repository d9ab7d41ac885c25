"""scaling.py: its tables are those of the document, and its arithmetic that done by hand."""

import json
from pathlib import Path

import pytest

import scaling

RATES = {"autoencode": (2000.0, 256), "distill": (5000.0, 512), "embed": (40_000.0, 1024)}
DOCUMENT = Path(scaling.__file__).parents[1] / "docs" / "scaling.md"


def row(rendered, name):
    return next(line.strip("| ").split(" | ") for line in rendered.splitlines() if line.startswith(f"| {name} "))


def test_the_document_holds_its_output():
    assert scaling.render(scaling.measured_rates()) in DOCUMENT.read_text()


def test_speeds_are_the_fastest_measured_eager_ones(tmp_path):
    common = {"section": "steps", "step": "embed", "mode": "eager", "batch": 8}
    records = [
        {"machine": "abc"}, common | {"clouds_per_second": 3.0}, common | {"clouds_per_second": 5.0, "batch": 16},
        common | {"clouds_per_second": 9.0, "mode": "graph"}, common | {"not_run": "no time"}, {"section": "end"},
    ]  # fmt: skip
    path = tmp_path / "gpu.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert scaling.measured_rates(path) == {"embed": (5.0, 16)}


def test_a_billion_by_hand():
    # 1e9 / 2000 + 1e9 / 5000 = 700,000 s = 194.4 h; on 512 GPUs at 80 % 0.4747 h; 62.3 GFLOP x 1e9
    assert row(scaling.pretraining(RATES), "a billion") == [
        "a billion", "1,000,000,000", "1", "62.3", "194", "25.6", "3.38", "0.475",
    ]  # fmt: skip
    assert row(scaling.storage(), "a billion") == ["a billion", "12.3 TB", "6.14 TB", "98.3 TB", "49.2 TB"]
    assert row(scaling.embedding(RATES), "a billion") == ["a billion", "4.01", "6.94", "3.07 TB", "1.54 TB"]


def test_bytes_by_hand():
    # 5000 clouds x 8192 points x 12 bytes; 8 bytes of traffic for each of 25.57 million gradients over 50 GB/s
    assert row(scaling.reading(RATES), "distill")[3:5] == ["61.4 MB/s", "492 MB/s"]
    assert row(scaling.exchange(RATES), "distill") == ["distill", "205 MB", "4.09", "102", "307 MB"]


@pytest.mark.parametrize(
    ("value", "text"), [(3e6, "3 MB"), (1.5e9, "1.5 GB"), (2e12, "2 TB"), (7.25e15, "7.25 PB"), (999e6, "999 MB")]
)
def test_sizes(value, text):
    assert scaling.size(value) == text


@pytest.mark.slow
def test_parameters_are_those_of_the_models():
    from modeling_act import ACTStudentConfig, ACTStudentForPreTraining, ACTTeacher, ACTTeacherConfig

    models = {
        "autoencode": ACTTeacher(ACTTeacherConfig()),
        "distill": ACTStudentForPreTraining(ACTStudentConfig()),
    }
    for step, model in models.items():
        parameters = list(model.parameters())
        assert sum(parameter.numel() for parameter in parameters) == scaling.STORED[step]
        assert sum(parameter.numel() for parameter in parameters if parameter.requires_grad) == scaling.TRAINED[step]
