"""Cards of the planned releases: their facts hold together, and no number is reproduced but by a run."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from modeling_act import ACTPointCloudProcessor
from modeling_act.errors import InputError
from small_models import small_models

ROOT = Path(__file__).resolve().parents[2]
FACTS = sorted((ROOT / "model_cards" / "facts").glob("*.yaml"))
# What the authors' model zoo reports, by the card that quotes it.
PAPER = {
    "act-teacher-bert": [],
    "act-teacher-vitb": [],
    "act-vitb": [
        "93.29",
        "91.91",
        "88.21",
        "93.70",
        "96.8 +- 2.3",
        "98.0 +- 1.4",
        "93.3 +- 4.0",
        "95.6 +- 2.8",
        "61.2",
    ],
    "act-vitb-modelnet40": ["93.70"],
    "act-vitb-s3dis": ["61.2"],
    "act-vitb-scanobjectnn-pb-t50-rs": ["88.21"],
    "act-vitb-shapenetpart": [],
}
SMALL = {
    "act-teacher-bert": "teacher", "act-teacher-vitb": "teacher", "act-vitb": "pretraining",
    "act-vitb-s3dis": "semantic", "act-vitb-modelnet40": "classification",
    "act-vitb-scanobjectnn-pb-t50-rs": "classification", "act-vitb-shapenetpart": "parts",
}  # fmt: skip


@pytest.fixture(scope="module")
def render_card():
    sys.path.insert(0, str(ROOT / "model_cards"))
    from card import render_card

    yield render_card
    sys.path.remove(str(ROOT / "model_cards"))


def rows_of(card: str) -> list[list[str]]:
    """The cells of the table of figures."""
    table = card.split("## Figures")[1].split("## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert rows[0] == ["figure", "reproduced here", "from the paper", "not run"]
    return rows[2:]


def metrics_of(path, leave_out=None) -> dict:
    """A metrics.json with a number of its own, 0.015, 0.025 ..., for every metric of a facts file."""
    metrics, names = {"steps": 7, "versions": {"torch": "2.0", "commit": "abc"}}, []
    for row in yaml.safe_load(path.read_text())["figures"]:
        if (name := row.get("metric")) and name != leave_out:
            part, key = name.split(".")
            metrics.setdefault(part, {})[key] = 0.015 + 0.01 * len(names)
        names.append(name)
    return metrics


# Every facts file ----------------------------------------------------------------------------------------------------


def test_every_planned_release_has_facts():
    assert sorted(path.stem for path in FACTS) == sorted(PAPER)


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_without_a_run_nothing_is_reproduced_and_nothing_published(path, render_card):
    card = render_card(path)
    rows = rows_of(card)
    assert len(rows) == len(yaml.safe_load(path.read_text())["figures"])
    assert {(reproduced, not_run) for _, reproduced, _, not_run in rows} == {("", "not run")}
    quoted = [paper for _, _, paper, _ in rows if paper != "not given"]
    assert quoted == [f"{number} [1]" for number in PAPER[path.stem]]
    assert "**Nothing is published yet.**" in card and "Nothing was reproduced" in card
    assert ("picks the best epoch by the test set" in card) == bool(quoted)


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_a_run_fills_its_own_column_and_no_other(path, render_card, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics_of(path)))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"dataset_name": str(tmp_path / "clouds"), "seed": 3}))
    before, after = rows_of(render_card(path)), rows_of(render_card(path, tmp_path / "metrics.json", "org/model"))
    for number, row in enumerate(yaml.safe_load(path.read_text())["figures"]):
        assert before[number][2] == after[number][2]
        value = f"{(0.015 + 0.01 * number) * row.get('scale', 1):.4g}"
        assert [after[number][1], after[number][3]] == ([value, ""] if "metric" in row else ["", "not run"])
    card = render_card(path, tmp_path / "metrics.json", "org/model")
    assert "7 steps on `clouds`, seed 3; torch 2.0, commit abc" in card
    assert "Nothing is published" not in card and 'from_pretrained("org/model")' in card
    data = ModelCard(card).data
    assert data.license == "other" and data.license_link == "https://shapenet.org/terms"
    assert card.count("Apache-2.0") >= 2 and "non-commercial research" in card


def test_a_figure_that_the_run_lacks_is_not_run(render_card, tmp_path):
    path = ROOT / "model_cards" / "facts" / "act-vitb-modelnet40.yaml"
    (tmp_path / "metrics.json").write_text(json.dumps(metrics_of(path, leave_out="test.accuracy")))
    rows = rows_of(render_card(path, tmp_path / "metrics.json"))
    assert rows[0][1:] == ["", "93.70 [1]", "not run"] and rows[1][1:] == ["2.5", "not given", ""]


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_the_usage_of_a_card_runs(path, render_card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model_class, config, _ = small_models()[SMALL[path.stem]]
    model_class(config).save_pretrained(f"outputs/{path.stem}")
    ACTPointCloudProcessor(num_points=64).save_pretrained(f"outputs/{path.stem}")
    several = "predict_" not in path.read_text() and "processor(" not in path.read_text()
    points = torch.rand(2, 64, 3) if several else torch.rand(80, 3).numpy()
    names = {"points": points, "clouds": [torch.rand(80, 3).numpy(), torch.rand(64, 3).numpy()]}
    usage = re.search(r"```python\n(.*?)```", render_card(path), flags=re.DOTALL)[1]
    exec(compile(usage, path.name, "exec"), names)  # noqa: S102
    (result,) = [names[name] for name in ("features", "embeddings", "logits") if name in names]
    assert torch.as_tensor(result).isfinite().all()


# Facts that are refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda facts: facts["figures"][0].update(reproduced=88.0),
            "figures 1: reproduced: a reproduced number comes",
        ),
        (
            lambda facts: facts["figures"][0].update(value=88.0),
            "figures 1: value: a reproduced number comes from metr",
        ),
        (lambda facts: facts.update(reproduced={"accuracy": 1}), "reproduced: a reproduced number comes from metrics"),
        (lambda facts: facts.update(licence="MIT"), "unknown key 'licence'; did you mean weights_licence?"),
        (lambda facts: facts["backbone"].update(url="x"), "backbone: unknown key 'url'; known are name, id, licence"),
        (lambda facts: facts["data"][0].pop("terms"), "data 1: has no terms"),
        (lambda facts: facts.pop("limits"), "has no limits"),
        (lambda facts: facts.update(limits=[]), r"limits is \[\], expected a list"),
        (lambda facts: facts["figures"][0].pop("source"), "figures 1: a number of the paper goes with one of the so"),
        (lambda facts: facts["figures"][0].update(source="blog"), "figures 1: a number of the paper goes with one of"),
        (lambda facts: facts["figures"][0].update(scale=True), "figures 1: scale is True, expected a whole number"),
        (
            lambda facts: facts["figures"].append({"figure": "x"}),
            "figures 3: needs a metric of metrics.json, or a num",
        ),
        (lambda facts: facts.update(recipe="no_such"), "there is no recipe no_such in training/recipes"),
    ],
)
def test_facts_with_a_fault_are_one_line(render_card, tmp_path, change, message):
    facts = yaml.safe_load((ROOT / "model_cards" / "facts" / "act-vitb-modelnet40.yaml").read_text())
    change(facts)
    (tmp_path / "facts.yaml").write_text(yaml.safe_dump(facts))
    with pytest.raises(InputError, match=message) as error:
        render_card(tmp_path / "facts.yaml")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("value", [True, float("nan"), "0.9", [0.9]])
def test_what_is_no_number_is_not_reproduced(render_card, tmp_path, value):
    (tmp_path / "metrics.json").write_text(json.dumps({"test": {"accuracy": value}}))
    with pytest.raises(InputError, match="test.accuracy is .* expected a finite number"):
        render_card(ROOT / "model_cards" / "facts" / "act-vitb-modelnet40.yaml", tmp_path / "metrics.json")


# The script ----------------------------------------------------------------------------------------------------------


def test_the_script_prints_or_writes_the_card(run_python, render_card, tmp_path):
    facts = ROOT / "model_cards" / "facts" / "act-vitb-s3dis.yaml"
    (tmp_path / "metrics.json").write_text(json.dumps(metrics_of(facts)))
    assert run_python("model_cards/render.py", facts).stdout == render_card(facts) + "\n"
    run_python("model_cards/render.py", facts, "--metrics", tmp_path, "--name", "org/x", "--output", tmp_path / "card")
    assert (tmp_path / "card").read_text() == render_card(facts, tmp_path / "metrics.json", "org/x")
    error = run_python("model_cards/render.py", tmp_path / "none.yaml", returncode=1).stderr
    assert "render.py: error: " in error and "none.yaml" in error and "Traceback" not in error
