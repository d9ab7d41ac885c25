"""Predictions of small real models for the page."""

import re

import numpy as np
import pytest
import torch
import trimesh
from make_samples import APP, SEEDS, indexed_shapes, sample
from predictions import (
    FEATURES,
    INDEX,
    PARTS,
    PLAIN,
    SIMILARITY,
    Models,
    classify,
    color,
    load_models,
    neighbors,
    principal_colors,
    rebuild,
    shape_path,
)
from reading import open_cloud

from modeling_act.errors import InputError
from modeling_act.inference import processor_of
from modeling_act.viewer.page import pack_clouds


@pytest.fixture(scope="module")
def models(model_names):
    return load_models(model_names)


@pytest.fixture(scope="module")
def chair(model_names):
    return open_cloud(f"{model_names['shapes']}/chair.ply")


def test_classes_are_the_models_probabilities(models, chair):
    classes = classify(models, chair)
    with torch.no_grad():
        logits = models.classifier(**processor_of(models.classifier)(chair.points)).logits[0]
    names = models.classifier.config.id2label
    expected = sorted(((score, names[i]) for i, score in enumerate(logits.softmax(0).tolist())), reverse=True)
    assert list(classes) == [name for _, name in expected]
    np.testing.assert_allclose(list(classes.values()), [score for score, _ in expected], atol=1e-6)


def test_similarity_is_the_cosine_with_the_picked_point(models, chair):
    colored = color(models, chair, SIMILARITY, 7, None)
    features = models.student.encode_points(chair.points)
    expected = torch.cosine_similarity(features[7:8], features, dim=1)
    np.testing.assert_allclose(colored.values, expected, atol=1e-5)
    assert colored.values[7] == pytest.approx(1, abs=1e-5) and colored.values.shape == (8192,)


def test_parts_are_those_of_the_category(models, chair):
    assert models.categories == ["chair", "<b>lamp</b>", "mug"]
    for category, own in (("chair", {0, 1}), ("<b>lamp</b>", {2, 3}), ("mug", {4})):
        colored = color(models, chair, PARTS, 0, category)
        assert set(colored.labels.tolist()) <= own and len(colored.labels) == 8192
    with pytest.raises(InputError, match="`category` must be what the object is"):
        color(models, chair, PARTS, 0, "plane")


def test_features_become_colors_by_their_main_directions():
    rng = np.random.default_rng(0)
    places = rng.uniform(-1, 1, (2000, 3)) * (9, 4, 1)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0][:3]
    colors = principal_colors(torch.from_numpy(places @ turn))
    assert colors.min() >= 0 and colors.max() <= 1
    correlation = np.corrcoef(places.T, colors.T)[:3, 3:]
    assert (np.abs(np.diag(correlation)) > 0.97).all() and (
        np.abs(correlation - np.diag(np.diag(correlation))) < 0.2
    ).all()
    np.testing.assert_array_equal(colors, principal_colors(torch.from_numpy(places @ turn)))
    assert principal_colors(torch.ones(5, 2)).shape == (5, 3)


def test_neighbors_come_with_their_clouds_where_the_files_are(models, chair):
    hits = neighbors(models, chair)
    assert hits[0][0] == "chair.ply" and hits[0][1] == pytest.approx(1, abs=1e-4)
    cosines = [cosine for _, cosine, _ in hits]
    assert cosines == sorted(cosines, reverse=True) and len(hits) == 6
    for name, _, shape in hits:
        assert (shape is None) == (name == "gone.ply")


@pytest.mark.parametrize("name", ["../secret.ply", "link.ply", "", ".", "nothing.ply"])
def test_no_shape_lies_outside_its_folder(tmp_path, name):
    (tmp_path / "secret.ply").write_text("x")
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "link.ply").symlink_to(tmp_path / "secret.ply")
    (tmp_path / "shapes" / "good.ply").write_text("x")
    models = Models(shapes=(tmp_path / "shapes").resolve())
    assert shape_path(models, name) is None and shape_path(models, "good.ply").name == "good.ply"


def test_reconstruction_sees_a_fifth_and_another_fifth(models, chair):
    visible, made, original = rebuild(models, chair, 0)
    assert (visible.name, made.name, original.name) == ("25% visible", "rebuilt from it", "original")
    assert visible.points.shape == (4 * 8, 3) and made.points.shape == (16 * 8, 3)  # int(0.8 * 16) = 12 are hidden
    known = {tuple(point) for point in original.points.round(5)}
    assert {tuple(point) for point in visible.points.round(5)} <= known
    assert np.abs(rebuild(models, chair, 1)[0].points - visible.points).max() > 0.01
    np.testing.assert_array_equal(rebuild(models, chair, 0)[1].points, made.points)


def test_any_small_cloud_goes_through_all_models(models, tmp_path):
    for number, points in enumerate([np.zeros((1, 3)), np.ones((3, 3)), np.eye(3) * 1e14, np.eye(3) * 1e-20]):
        np.save(tmp_path / f"{number}.npy", points)
        cloud = open_cloud(tmp_path / f"{number}.npy")
        assert sum(classify(models, cloud).values()) == pytest.approx(1, abs=1e-5)
        colored = [color(models, cloud, coloring, 0, "mug") for coloring in (FEATURES, PARTS, SIMILARITY)]
        assert len(neighbors(models, cloud)) == 6
        pack_clouds([*colored, *rebuild(models, cloud, 0)])  # raises on what is not finite


# Models --------------------------------------------------------------------------------------------------------------


def test_an_encoder_is_found_in_the_model_that_has_one(model_names):
    models = load_models({name: model_names[name] for name in ("pretraining", "teacher")} | {"student": None})
    assert type(models.student).__name__ == "ACTStudent" and models.colorings == [PLAIN, FEATURES, SIMILARITY]
    assert models.index is None and models.student.config.hidden_size == 24


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"pretraining": "pretraining"}, "--pretraining needs --teacher"),
        ({"index": "index"}, "--student act-tiny: .*another model"),
        (
            {"pretraining": "pretraining", "teacher": "teacher", "index": "index"},
            "--student .*pretraining: .*another model",
        ),
        ({"classifier": "student"}, "holds ACTStudent, where ACTStudentForPointCloudClassification is needed"),
        ({"shapes": "teacher/config.json"}, "there is no such folder"),
        ({"student": "nowhere"}, "nowhere: there is no such folder"),
    ],
)
def test_wrong_models_are_refused(model_names, names, message):
    folder = re.sub("student$", "", model_names["student"])
    with pytest.raises(InputError, match=message):
        load_models({flag: folder + name for flag, name in names.items()})


# What comes with the page --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return load_models({})


def test_without_flags_the_nearest_shapes_of_samples_are_of_their_class(shipped):
    assert shipped.names["student"] == "act-tiny" and len(shipped.index) == 510
    same = {}
    for path in sorted((APP / "samples").iterdir()):
        hits = neighbors(shipped, open_cloud(path))
        assert hits[0][1] > shipped.min_cosine and all(shape is not None for _, _, shape in hits)
        same[path.stem] = sum(name.startswith(f"{path.stem} ") for name, _, _ in hits[:5])
    assert same.pop("chair") >= 3 and same.pop("lamp") >= 4  # near round tables, and near a bent tube
    assert set(same.values()) == {5}


def test_a_line_is_close_to_nothing(shipped, tmp_path):
    np.save(tmp_path / "line.npy", np.linspace((0, 0, 0), (1, 1, 1), 2000))
    assert neighbors(shipped, open_cloud(tmp_path / "line.npy"))[0][1] < shipped.min_cosine == 0.5
    assert Models(names={"student": "another"}, index=shipped.index).min_cosine is None


def test_the_index_is_what_its_script_writes(shipped):
    meshes = indexed_shapes()
    assert sorted(meshes) == shipped.index.names
    for name in shipped.index.names[::50]:
        mesh = trimesh.load_mesh(shipped.shapes / name, process=False)
        np.testing.assert_allclose(mesh.triangles, meshes[name].triangles, atol=1e-6)
        vector = shipped.student.encode(shipped.shapes / name, samples=4, show_progress=False)
        assert shipped.index.search(vector[None], 1)[0] == [(name, pytest.approx(1, abs=1e-3))]
    assert INDEX.stat().st_size < 600_000


def test_the_page_names_what_is_not_installed(run_python):
    code = "import runpy, sys; sys.modules['gradio'] = None; sys.path.insert(0, 'app')\n"
    process = run_python("-c", f"{code}runpy.run_path('app/app.py', run_name='__main__')", returncode=1)
    assert process.stderr.splitlines()[-1].startswith("app.py: error: the page needs gradio: ")
    assert "Traceback" not in process.stderr


def test_samples_are_what_their_script_writes():
    files = sorted((APP / "samples").iterdir())
    assert [path.stem for path in files] == sorted(SEEDS)
    for path in files:
        mesh, written = trimesh.load_mesh(path, process=False), sample(path.stem)
        np.testing.assert_allclose(mesh.triangles, written.triangles, atol=1e-6)
        assert path.stat().st_size < 13_000
