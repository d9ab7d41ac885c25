"""`ShapeIndex`: its scan and its graph against brute force, and the damaged folders that it refuses."""

import json

import numpy as np
import pytest
import torch

from modeling_act.errors import InputError
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
    monkeypatch.setattr(shape_index, "MAX_TO_SCAN", 100)
    index = ShapeIndex.build(tmp_path, NAMES, VECTORS, {"probe": []})
    assert index.graph is not None and (tmp_path / "graph.usearch").is_file()
    queries = torch.randn(50, 16)
    pairs = zip(ShapeIndex.load(tmp_path).search(queries, 10), by_hand(queries, 10), strict=True)
    shared = [len({name for name, _ in row} & {name for name, _ in expected}) for row, expected in pairs]
    assert np.mean(shared) > 9.5
    (tmp_path / "graph.usearch").unlink()
    with pytest.raises(InputError, match="graph.usearch is missing"):
        ShapeIndex.load(tmp_path)


def test_another_model_is_refused(folder):
    index = ShapeIndex.load(folder)
    index.check_model(torch.tensor([2.0, 0.01]))
    for vector in (torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])):
        with pytest.raises(InputError, match=r"made by another model or processor \(org/model\)"):
            index.check_model(vector)


def test_the_probe_is_always_the_same():
    cloud = probe_cloud()
    assert cloud.shape == (4096, 3) and len(np.unique(cloud, axis=0)) == 4096
    assert cloud[1].tolist() == pytest.approx([0.0306425, -0.6336777, -0.1809643], abs=1e-5)


ABOUT = {"names": NAMES, "about": {"probe": [1.0, 0.0]}}
DAMAGED = [
    ([1], "index.json: is damaged, or no .json file"),
    ({"names": NAMES}, "index.json: is damaged, or no .json file"),
    ({"about": {}}, "index.json: is damaged, or no .json file"),
    (ABOUT | {"names": 5}, "index.json: is damaged, or no .json file"),
    (ABOUT | {"names": [["a"], *NAMES[1:]]}, r"must be relative paths without '..', got \['a'\]"),
    (ABOUT | {"names": ["/etc/passwd.ply", *NAMES[1:]]}, "must be relative paths"),
    (ABOUT | {"names": ["a/../../x.ply", *NAMES[1:]]}, "must be relative paths"),
    (ABOUT | {"names": ["..", *NAMES[1:]]}, "must be relative paths"),
    (ABOUT | {"names": ["a\0.ply", *NAMES[1:]]}, "must be relative paths"),
    (ABOUT | {"names": [NAMES[1], *NAMES[1:]]}, "two clouds have one name, 'set/shape 1.ply'"),
    (ABOUT | {"names": NAMES[:3]}, r"vector for each of 3 names, got float32 of shape \(500, 16\)"),
    (ABOUT | {"about": ["model"]}, "index.json: is damaged, or no .json file"),
    (ABOUT | {"about": {"probe": ["x"]}}, "index.json: is damaged"),
    (ABOUT | {"about": {"probe": {"a": 1}}}, "index.json: is damaged"),
    (ABOUT | {"about": {"probe": [[1.0], [2.0, 3.0]]}}, "index.json: is damaged"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_an_index_that_says_other_things_is_refused(folder, content, message):
    (folder / "index.json").write_text(json.dumps(ABOUT))
    assert len(ShapeIndex.load(folder)) == 500
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        ShapeIndex.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_vectors_are_refused(folder):
    with pytest.raises(InputError, match="is no index; python -m modeling_act encode SHAPES --index"):
        ShapeIndex.load(folder / "none")
    data = (folder / "vectors.npy").read_bytes()
    for vectors, message in (
        (data[:-100], "vectors.npy: is damaged"),
        (data.replace(b"(500, 16), }" + b" " * 10, b"(5000000000, 16), }   "), "vectors.npy: is damaged"),
        (np.array([{"a": 1}] * 500, dtype=object), "vectors.npy: is damaged"),
        (np.zeros((499, 16), np.float32), r"vector for each of 500 names, got float32 of shape \(499, 16\)"),
        (np.zeros((500, 16)), "float32 vector for each of 500 names, got float64"),
        (np.zeros(500, np.float32), r"got float32 of shape \(500,\)"),
    ):
        if isinstance(vectors, bytes):
            (folder / "vectors.npy").write_bytes(vectors)
        else:
            np.save(folder / "vectors.npy", vectors, allow_pickle=True)
        with pytest.raises(InputError, match=message):
            ShapeIndex.load(folder)


def test_queries_of_another_width_are_refused(folder):
    with pytest.raises(InputError, match=r"must be of shape \(n, 16\)"):
        ShapeIndex.load(folder).search(torch.ones(2, 3))


def test_vectors_and_queries_as_torch_has_them(tmp_path):
    index = ShapeIndex.build(tmp_path, NAMES, VECTORS.clone().requires_grad_(), {})
    assert index.search(VECTORS[:1].clone().requires_grad_(), 1)[0][0][0] == NAMES[0]
    assert index.search(VECTORS[:0], 3) == []
    broken = VECTORS.clone()
    broken[3, 2] = torch.nan
    for use in (lambda: ShapeIndex.build(tmp_path, NAMES, broken, {}), lambda: index.search(broken)):
        with pytest.raises(InputError, match="must be finite, got 1 numbers that are not"):
            use()


def test_an_index_that_is_open_outlives_the_next_one(folder):
    index = ShapeIndex.load(folder)
    ShapeIndex.build(folder, NAMES[:2], VECTORS[:2], {})
    assert index.search(VECTORS[400:401], 1)[0][0] == (NAMES[400], pytest.approx(1, abs=1e-6))
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "vectors.npy"]


def test_one_name_twice_among_many_is_found_at_once(tmp_path):
    names = [f"{number}.ply" for number in range(50_000)]
    with pytest.raises(InputError, match="two clouds have one name, '49999.ply'"):
        ShapeIndex.build(tmp_path, [*names, names[-1]], torch.ones(50_001, 2), {})


def test_a_missing_extra_says_how_to_install_it_from_a_clone(monkeypatch):
    monkeypatch.setattr(shape_index, "Index", None)
    with pytest.raises(InputError, match=r'searching needs usearch: in the clone, pip install "\.\[search\]"$'):
        shape_index.check_usearch()
