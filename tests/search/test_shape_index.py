"""`ShapeIndex`: what it finds against brute force, both ways, and which folders it refuses."""

import json

import numpy as np
import pytest
import torch

from modeling_act.search import shape_index
from modeling_act.search.shape_index import ShapeIndex, probe_cloud

VECTORS = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
NAMES = [f"set/shape {number}.ply" for number in range(500)]


@pytest.fixture
def folder(tmp_path):
    ShapeIndex.build(tmp_path, NAMES, VECTORS, {"probe": [1.0, 0.0], "model": "org/model"})
    return tmp_path


def by_hand(queries, count):
    cosines = torch.cosine_similarity(queries[:, None], VECTORS[None], dim=-1)
    best = cosines.topk(count, dim=1)
    return [
        [(NAMES[place], cosine) for place, cosine in zip(places, values, strict=True)]
        for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def test_it_finds_what_brute_force_finds(folder):
    queries = torch.randn(7, 16) * 100
    found = ShapeIndex.load(folder).search(queries, 5)
    for row, expected in zip(found, by_hand(queries, 5), strict=True):
        assert [name for name, _ in row] == [name for name, _ in expected]
        assert [cosine for _, cosine in row] == pytest.approx([cosine for _, cosine in expected], abs=1e-5)
    assert ShapeIndex.load(folder).search(VECTORS[3:4], 1) == [[(NAMES[3], pytest.approx(1, abs=1e-6))]]
    assert len(ShapeIndex.load(folder).search(queries, 1000)[0]) == 500


def test_the_graph_of_a_large_index_misses_few(tmp_path, monkeypatch):
    monkeypatch.setattr(shape_index, "MOST_TO_SCAN", 100)
    index = ShapeIndex.build(tmp_path, NAMES, VECTORS, {"probe": []})
    assert index.graph is not None and (tmp_path / "graph.usearch").is_file()
    queries = torch.randn(50, 16)
    pairs = zip(ShapeIndex.load(tmp_path).search(queries, 10), by_hand(queries, 10), strict=True)
    shared = [len({name for name, _ in row} & {name for name, _ in expected}) for row, expected in pairs]
    assert np.mean(shared) > 9.5
    (tmp_path / "graph.usearch").unlink()
    with pytest.raises(ValueError, match="graph.usearch is missing"):
        ShapeIndex.load(tmp_path)


def test_another_model_is_refused(folder):
    index = ShapeIndex.load(folder)
    index.check_model(torch.tensor([2.0, 0.01]))
    for vector in (torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])):
        with pytest.raises(ValueError, match=r"made by another model or processor \(org/model\)"):
            index.check_model(vector)


def test_the_probe_is_always_the_same():
    cloud = probe_cloud()
    assert cloud.shape == (4096, 3) and len(np.unique(cloud, axis=0)) == 4096
    assert cloud[1].tolist() == pytest.approx([0.0306425, -0.6336777, -0.1809643], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd.ply", "relative paths"),
        ("a/../../x.ply", "relative paths"),
        ("..", "relative paths"),
        ("a\0.ply", "relative paths"),
        (3, "relative paths"),
        (NAMES[1], "two clouds have one name"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(folder, name, message):
    told = json.loads((folder / "index.json").read_text())
    told["names"][0] = name
    (folder / "index.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=message):
        ShapeIndex.load(folder)


def test_damaged_folders_are_refused(folder):
    with pytest.raises(ValueError, match="is no index"):
        ShapeIndex.load(folder / "none")
    whole = (folder / "vectors.npy").read_bytes()
    (folder / "vectors.npy").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="vectors.npy: is damaged"):
        ShapeIndex.load(folder)
    np.save(folder / "vectors.npy", np.array([{"a": 1}] * 500, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="vectors.npy: is damaged"):
        ShapeIndex.load(folder)
    np.save(folder / "vectors.npy", np.zeros((499, 16), np.float32))
    with pytest.raises(ValueError, match="500 names and 499 vectors"):
        ShapeIndex.load(folder)
    (folder / "index.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold names"):
        ShapeIndex.load(folder)


def test_queries_of_another_width_are_refused(folder):
    with pytest.raises(ValueError, match=r"must be of shape \(n, 16\)"):
        ShapeIndex.load(folder).search(torch.ones(2, 3))


def test_vectors_and_queries_as_torch_has_them(tmp_path):
    index = ShapeIndex.build(tmp_path, NAMES, VECTORS.clone().requires_grad_(), {})
    assert index.search(VECTORS[:1].clone().requires_grad_(), 1)[0][0][0] == NAMES[0]
    assert index.search(VECTORS[:0], 3) == []
    broken = VECTORS.clone()
    broken[3, 2] = torch.nan
    for use in (lambda: ShapeIndex.build(tmp_path, NAMES, broken, {}), lambda: index.search(broken)):
        with pytest.raises(ValueError, match="must be finite, got NaN or infinity in row 3"):
            use()


def test_an_index_that_is_open_outlives_the_next_one(folder):
    index = ShapeIndex.load(folder)
    ShapeIndex.build(folder, NAMES[:2], VECTORS[:2], {})
    assert index.search(VECTORS[400:401], 1)[0][0] == (NAMES[400], pytest.approx(1, abs=1e-6))
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "vectors.npy"]


def test_one_name_twice_among_many_is_found_at_once(tmp_path):
    names = [f"{number}.ply" for number in range(50_000)]
    with pytest.raises(ValueError, match="two clouds have one name, '49999.ply'"):
        ShapeIndex.build(tmp_path, [*names, names[-1]], torch.ones(50_001, 2), {})
