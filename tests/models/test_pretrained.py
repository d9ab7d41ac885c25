"""The models of pretrained/: small, complete, and of use at once."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from act_training.synthetic.everyday_shapes import generate_shapes
from transformers import pipeline

from modeling_act import ACTStudent
from modeling_act.__main__ import main
from modeling_act.hub import load_model
from modeling_act.hub.publishing import publish

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "pretrained" / "act-tiny"
NEW_SHAPES = 20_000  # beyond those of the built-in sets

LOAD = """
import sys
if sys.argv[1] == "without":
    sys.modules["modeling_act"] = None
else:
    import modeling_act
import torch
from transformers import AutoModel

student = AutoModel.from_pretrained("org/act-tiny", trust_remote_code=sys.argv[1] == "without", device_map="auto")
points = torch.nn.functional.normalize(torch.randn(600, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
print(student.encode(points.numpy(), show_progress=False)[:4].tolist())
"""


@pytest.fixture(scope="module")
def student():
    return ACTStudent.from_pretrained(FOLDER).eval()


def encode(student, points, **options):
    return student.encode(list(points), show_progress=False, **options)


def test_the_folder_is_small_and_names_its_sources():
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "config.json", "preprocessor_config.json", "model.safetensors", "README.md",
        "recipe.yaml", "metrics.json", "NOTICE",
    }  # fmt: skip
    assert (FOLDER / "model.safetensors").stat().st_size < 3_000_000
    assert "DINOv2" in (FOLDER / "NOTICE").read_text() and "license: apache-2.0" in (FOLDER / "README.md").read_text()
    assert not re.search(r"(^|[ '\"])/\w", (FOLDER / "recipe.yaml").read_text())


def test_it_computes_in_single_precision(student):
    assert student.dtype == torch.float32 and not student.training and student.whitening is not None


def test_samples_of_one_shape_find_each_other(student):
    points = generate_shapes(140, num_points=2048, start=NEW_SHAPES)["points"]
    first, second = (encode(student, points, samples=1, seed=seed) for seed in (0, 1))
    cosines = student.similarity(first, second)
    assert (cosines.argmax(1) == torch.arange(140)).float().mean() > 0.9
    different = cosines[~torch.eye(140, dtype=bool)]
    assert cosines.diag().mean() > 0.5 and different.mean().abs() < 0.1
    first, second = encode(student, points, seed=0), encode(student, points, seed=1)  # four selections each
    assert student.similarity(first, second).diag().mean() > cosines.diag().mean() + 0.1


def test_the_pipeline_gives_the_vectors_of_encode(student):
    clouds = list(generate_shapes(3, num_points=2048, start=NEW_SHAPES)["points"])
    extract = pipeline("point-cloud-feature-extraction", model=str(FOLDER))
    vectors = torch.stack(extract(clouds, return_tensors=True, batch_size=2))
    torch.testing.assert_close(vectors, encode(student, clouds, normalize=False), rtol=1e-4, atol=1e-4)


def test_neighbors_are_of_one_class(student):
    shapes = generate_shapes(280, num_points=1024, start=NEW_SHAPES)
    vectors = encode(student, shapes["points"])
    nearest = student.similarity(vectors, vectors).fill_diagonal_(-1).argmax(1)
    assert (shapes["label"][nearest] == shapes["label"]).mean() > 0.75


def test_the_command_line_takes_it_by_default(tmp_path, capsys):
    index = tmp_path / "index"
    assert main(["encode", str(ROOT / "app" / "samples"), "--index", str(index), "--quiet"]) == 0
    assert main(["similar", str(ROOT / "app" / "samples" / "chair.ply"), "--index", str(index), "--quiet"]) == 0
    (name, cosine), *others = json.loads(capsys.readouterr().out.splitlines()[-1])["nearest"]
    assert name == "chair.ply" and cosine > 0.99 and all(other < 0.7 for _, other in others)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    assert load_model.locate("act-tiny") == str(FOLDER) and load_model.locate("other") == "other"
    assert ACTStudent.from_pretrained("act-tiny").name_or_path == str(FOLDER)
    (tmp_path / "act-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model.locate("act-tiny") == "act-tiny"


def test_it_is_published_with_its_code_and_loads_with_and_without_the_package(own_hub, student, run_python):
    publish(FOLDER, "org/act-tiny")
    points = torch.nn.functional.normalize(torch.randn(600, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = student.encode(points.numpy(), show_progress=False)
    for way in ("with", "without"):
        printed = run_python("-c", LOAD, way, environment=own_hub.environment).stdout
        assert np.allclose(json.loads(printed.splitlines()[-1]), expected[:4], atol=1e-6)
