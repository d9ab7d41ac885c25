"""Every source of points that a user can name gives the same rows; what is none is refused in one line."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import trimesh
from act_training.data import point_sets
from act_training.data.batches import read_batch
from act_training.data.point_sets import PointSet, open_point_set
from act_training.data.schema import ALIASES, build_dataset, find_columns
from act_training.synthetic.everyday_shapes import generate_shapes
from act_training.synthetic.rooms import generate_rooms
from datasets import Array2D, DatasetDict, disable_progress_bars

from forked import run_command
from modeling_act.errors import InputError

disable_progress_bars()
ROOT = Path(__file__).resolve().parents[3]
RANDOM = np.random.default_rng(0)
POINTS = RANDOM.normal(size=(10, 12, 3)).astype(np.float32)
LABELS = np.arange(10) % 3
NAMES = ["ant", "bee", "cow"]
WORDS = np.array(NAMES)[LABELS]
ROWS = build_dataset({"points": POINTS, "label": LABELS}, class_names=NAMES)


def save_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def save_table(path, **columns):
    pa.parquet.write_table(pa.table(columns), path)


def save_files(path, suffix):
    """A file a cloud, in the folder of its class."""
    for row, cloud in enumerate(POINTS):
        folder = path / WORDS[row]
        folder.mkdir(parents=True, exist_ok=True)
        if suffix == "npy":
            np.save(folder / f"{row}.npy", cloud)
        else:
            trimesh.PointCloud(cloud).export(folder / f"{row}.{suffix}")


def save_shards(path):
    path.mkdir()
    ROWS.select(range(4)).to_parquet(str(path / "train-00000-of-00002.parquet"))
    ROWS.select(range(4, 10)).to_parquet(str(path / "train-00001-of-00002.parquet"))
    ROWS.select(range(2)).to_parquet(str(path / "test-00000-of-00001.parquet"))


SOURCES = {
    "disk": lambda path: ROWS.save_to_disk(str(path)),
    "disk of two": lambda path: DatasetDict(train=ROWS, test=ROWS.select(range(2))).save_to_disk(str(path)),
    "rows.parquet": lambda path: ROWS.to_parquet(str(path), batch_size=3),
    "nested.parquet": lambda path: save_table(path, xyz=POINTS.astype(float).tolist(), cls=WORDS),
    "large.parquet": lambda path: save_table(
        path,
        pos=pa.array(POINTS.tolist(), pa.large_list(pa.list_(pa.float32(), 3))),
        labels=pa.array(WORDS, pa.large_string()),
    ),
    "shards": save_shards,
    "a.npz": lambda path: np.savez(path, pc=POINTS, labels=LABELS.astype(np.uint8), class_names=NAMES),
    "words.npz": lambda path: np.savez_compressed(
        path, point_cloud=POINTS.astype(float), category=WORDS, notes=np.array([{}])
    ),
    "a.h5": lambda path: save_h5(path, data=POINTS, label=LABELS[:, None], class_names=NAMES),
    "bytes.h5": lambda path: save_h5(path, data=POINTS, label=WORDS.astype(bytes)),
    "folder of ply": lambda path: save_files(path, "ply"),
    "folder of npy": lambda path: save_files(path, "npy"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_rows_of_a_source(name, tmp_path):
    path = tmp_path / name
    SOURCES[name](path)
    point_set = open_point_set(str(path))
    order = np.argsort(LABELS, kind="stable") if name.startswith("folder") else np.arange(10)
    assert len(point_set) == 10 and point_set.names_of("label") == NAMES
    assert point_set.labels().tolist() == LABELS[order].tolist()
    rows = [7, 0, 1, 2, 7]
    found = read_batch(point_set, [(0, row) for row in rows])
    np.testing.assert_allclose(found["points"], POINTS[order[rows]], rtol=1e-6)
    assert found["points"].numpy().dtype == np.float32 and found["label"].tolist() == LABELS[order[rows]].tolist()
    chosen = point_set.select([9, 4, 5]).select([2, 0])
    np.testing.assert_allclose(chosen.read([0, 1])["points"][0].reshape(2, 12, 3), POINTS[order[[5, 9]]], rtol=1e-6)
    assert chosen.labels().tolist() == LABELS[order[[5, 9]]].tolist()
    batches = [(list(rows), columns["points"][0].reshape(-1, 12, 3)) for rows, columns in point_set.iterate_columns(4)]
    assert [rows for rows, _ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    np.testing.assert_allclose(np.concatenate([points for _, points in batches]), POINTS[order], rtol=1e-6)
    assert chosen.where(0) == f"row 5 of {path} (train)"
    again = pickle.loads(pickle.dumps(chosen))
    assert again.where(1) == chosen.where(1) and np.array_equal(
        *(each.read([1])["points"][0] for each in (again, chosen))
    )


def save_splits(path):
    split = np.repeat(["train", "val"], 5)
    np.savez(path, points=POINTS, label=WORDS, split=split)


@pytest.mark.parametrize(
    "name, save, splits",
    [
        ("a.npz", save_splits, {"train": (5, WORDS[:5]), "val": (5, WORDS[5:])}),
        ("a.h5", lambda path: save_h5(path, points=POINTS, split=["test"] * 4 + ["train"] * 6, label=WORDS.tolist()),
         {"test": (4, WORDS[:4]), "train": (6, WORDS[4:])}),
        ("disk", SOURCES["disk of two"], {"train": (10, WORDS), "test": (2, WORDS[:2])}),
        ("shards", save_shards, {"train": (10, WORDS), "test": (2, WORDS[:2])}),
    ],
)  # fmt: skip
def test_splits_share_their_classes(tmp_path, name, save, splits):
    save(tmp_path / name)
    for split, (count, words) in splits.items():
        point_set = open_point_set(str(tmp_path / name), split)
        assert len(point_set) == count and [NAMES[label] for label in point_set.labels()] == words.tolist()
    with pytest.raises(InputError, match=f"has no split 'other'; it has {', '.join(splits)}"):
        open_point_set(str(tmp_path / name), "other")


@pytest.mark.parametrize("name", ["disk of two", "shards"])
def test_several_splits_as_one(tmp_path, name):
    path = str(tmp_path / "set")
    SOURCES[name](tmp_path / "set")
    whole = open_point_set(path, "train+test")
    values, lengths = whole.read(range(len(whole)))["points"]
    assert np.array_equal(values.reshape(-1, 12, 3), np.concatenate([POINTS, POINTS[:2]]))
    with pytest.raises(InputError, match="no split 'more'"):
        open_point_set(path, "train+more")


def test_a_folder_of_arrays_named_like_splits(tmp_path):
    np.savez(tmp_path / "train.npz", points=POINTS)
    save_h5(tmp_path / "test.h5", data=POINTS[:3])
    assert [len(open_point_set(str(tmp_path), split)) for split in ("train", "test")] == [10, 3]


def test_meshes_of_a_folder_are_sampled(tmp_path):
    for name in ("a.off", "b.ply"):
        trimesh.creation.box((1, 2, 3)).export(tmp_path / name)
    point_set = open_point_set(str(tmp_path), num_points=50)
    values, lengths = point_set.read([0, 1])["points"]
    assert lengths.tolist() == [50, 50] and np.allclose(np.abs(values).max(0), [0.5, 1, 1.5], atol=0.1)
    assert np.isclose(np.abs(values) / [0.5, 1, 1.5], 1).sum() >= 100  # each point lies on a face
    with pytest.raises(InputError, match="has no labels"):
        point_set.labels()


@pytest.mark.parametrize(
    "column, alias", [(column, alias) for column, aliases in ALIASES.items() for alias in aliases]
)
def test_columns_go_by_the_names_of_published_sets(column, alias):
    found = find_columns(["id", alias, *(["points"] if column != "points" else [])], "a set")
    assert found["label" if alias == "category" else column] == alias
    assert find_columns(["points", "label", "category"], "a set") == {
        "points": "points", "label": "label", "category": "category"
    }  # fmt: skip


def test_ragged_clouds_keep_their_lengths(tmp_path):
    clouds = [cloud[: 3 + row] for row, cloud in enumerate(POINTS)]
    build_dataset({"points": clouds, "point_labels": [np.arange(len(cloud)) for cloud in clouds]}).save_to_disk(
        str(tmp_path / "ragged")
    )
    ragged = open_point_set(str(tmp_path / "ragged"))
    labels = read_batch(ragged, [(0, 4), (0, 0)])["point_labels"]
    assert labels.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, *[-100] * 4]]
    values, lengths = ragged.read([4, 0, 9])["points"]
    assert lengths.tolist() == [7, 3, 12] and np.array_equal(
        values, np.concatenate([clouds[row] for row in (4, 0, 9)])
    )


def test_labels_of_points_come_along():
    rows = build_dataset({"points": POINTS, "point_labels": np.arange(120).reshape(10, 12), "category": LABELS})
    found = read_batch(PointSet(rows.rename_column("point_labels", "seg"), "parts"), [(0, 3), (0, 9)])
    assert found["point_labels"].tolist() == [list(range(36, 48)), list(range(108, 120))]
    assert rows.features["points"] == Array2D((12, 3), "float32")


@pytest.mark.parametrize(
    "labels, expected",
    [
        (pa.array([2, None, 0]), [2, -1, 0]),
        (pa.array(["b", None, "a"]), [1, -1, 0]),
        (pa.array([1.0, 0.0, 2.0]), [1, 0, 2]),
        (pa.array([0.5, 1, 2]), None),
        (pa.array([[1], [2], [3]]), None),
    ],
)
def test_labels_are_whole_numbers_or_words(tmp_path, labels, expected):
    save_table(tmp_path / "a.parquet", points=POINTS[:3].tolist(), label=labels)
    point_set = open_point_set(str(tmp_path / "a.parquet"))
    assert read_batch(point_set, [(0, 1)])["points"].shape == (1, 12, 3)
    if expected is None:
        with pytest.raises(InputError, match="neither whole numbers nor words; its columns are points, label"):
            point_set.labels()
    else:
        assert point_set.labels().tolist() == expected


def small_script(folder):
    """A copy of prepare_data.py that generates a hundredth of the built-in sets, and notes each of its runs."""
    code = f"""import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "training")]!r}
open({str(folder / "runs")!r}, "a").write("x")
from act_training.prepare import everyday
everyday.CLOUDS_PER_ITEM = 5
everyday.NUM_CLOUDS = dict(everyday_shapes=dict(train=60, test=15), everyday_rooms=dict(train=5, test=5))
import prepare_data
prepare_data.main(sys.argv[1:])
"""
    (folder / "prepare_data.py").write_text(code)
    (folder / "act_training").symlink_to(ROOT / "training" / "act_training")


def test_built_in_sets_are_prepared_once(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(point_sets, "TRAINING", tmp_path)
    small_script(tmp_path)
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:  # at once, as the processes of a run
        patch.setattr(point_sets.subprocess, "run", lambda command, **options: run_command(*command[1:]))
        opened = list(pool.map(lambda split: open_point_set("everyday_shapes", split), ["test", "test"]))
    num_runs = len((tmp_path / "runs").read_text())
    opened.append(open_point_set("everyday_shapes", "test"))
    assert num_runs == len((tmp_path / "runs").read_text()) <= 2
    assert len(list((tmp_path / "cache" / "everyday_shapes").iterdir())) == 1
    expected = generate_shapes(15, start=60)
    for point_set in opened:
        batch = read_batch(point_set, [(0, row) for row in range(15)])
        assert np.array_equal(batch["points"], expected["points"])
        assert np.array_equal(batch["point_labels"], expected["point_labels"])
        assert point_set.labels().tolist() == expected["label"].tolist() and point_set.names_of("label")[0] == "chair"

    rooms, expected = open_point_set("everyday_rooms", "test"), generate_rooms(2, start=5)
    assert rooms.names_of("box_labels")[0] == "bed" and "everyday_rooms (test)" in rooms.where(0)
    batch = read_batch(rooms, [(0, 0), (0, 1)])
    for row, (boxes, labels) in enumerate(zip(expected["boxes"], expected["box_labels"], strict=True)):
        assert np.array_equal(batch["boxes"][row, : len(boxes)], boxes)
        assert batch["box_labels"][row, : len(labels)].tolist() == labels.tolist()
    with pytest.raises(InputError, match="everyday_rooms has no split 'other'; it has train, test"):
        open_point_set("everyday_rooms", "other")


def test_a_built_in_set_that_cannot_be_prepared_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(point_sets, "TRAINING", tmp_path)
    (tmp_path / "prepare_data.py").write_text("raise SystemExit('prepare_data.py: error: the disk is full')")
    with pytest.raises(InputError, match=r"^everyday_shapes: cannot be prepared \(.*the disk is full\)$"):
        open_point_set("everyday_shapes")
    assert not list((tmp_path / "everyday_shapes").iterdir())


def test_scripts_do_not_import_the_generators(run_python):
    code = "import sys; from act_training.data import point_sets; print([n for n in sys.modules if 'synthetic' in n])"
    assert run_python("-c", f"import sys; sys.path.insert(0, 'training'); {code}").stdout == "[]\n"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["nobody/such-a-set", "no-such-set"])
def test_a_set_that_cannot_be_reached_is_one_line(name, streaming):
    with pytest.raises(InputError, match=f"^{name}: [^\n]*{name}[^\n]*$"):
        open_point_set(name, streaming=streaming)


@pytest.mark.parametrize(
    "name, save, message",
    [
        ("none.npz", lambda path: None, "there is no such file or folder"),
        ("empty", lambda path: path.mkdir(), "no set; expected parquet, npz, h5, a `save_to_disk` folder"),
        ("a.json", lambda path: path.write_text("{}"), "a set is a folder, or a .parquet, .npz or .h5 file"),
        ("a.npz", lambda path: np.savez(path, vertices=POINTS), "no column of points among"),
        ("a.npz", lambda path: np.savez(path, points=POINTS[0]), "'points' must be numbers of shape"),
        ("a.npz", lambda path: np.savez(path, points=WORDS), "got <U3 of shape"),
        ("a.npz", lambda path: np.savez(path, points=np.array([{}])), "holds Python objects, which are not loaded"),
        ("a.npz", lambda path: np.savez(path, points=POINTS, label=LABELS[:4]), "'label' must have the shape"),
        ("a.npz", lambda path: np.savez(path, points=POINTS, label=LABELS / 2), "must be whole numbers, got float64"),
        ("a.npz", lambda path: np.savez(path, points=POINTS, seg=LABELS), r"'seg' must have the shape \(10, 12\)"),
        ("a.npz", lambda path: np.savez(path, points=POINTS, split=["train"]), "'split' must name the split of each"),
        ("a.parquet", lambda path: save_table(path, a=[1]), "no column of points among a; expected one of points, "),
        ("folder", lambda path: (save_files(path, "npy"), (path / "ant" / "0.npy").write_bytes(b"x")),
         "1 of 10 files cannot be read; .*0.npy"),
    ],
)  # fmt: skip
def test_what_is_no_set_is_refused_in_one_line(tmp_path, name, save, message):
    save(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        open_point_set(str(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}") and "\n" not in str(caught.value)


def test_only_parquet_streams(tmp_path):
    np.savez(tmp_path / "a.npz", points=POINTS)
    with pytest.raises(InputError, match="a.npz: --streaming reads parquet shards"):
        open_point_set(str(tmp_path / "a.npz"), streaming=True)
    save_shards(tmp_path / "shards")
    save_table(tmp_path / "shards" / "train-9.parquet", points=POINTS.tolist(), label=WORDS)
    with pytest.raises(InputError, match="train-9.parquet: its columns points, label are not those of .*train-00000"):
        open_point_set(str(tmp_path / "shards"), streaming=True)


def test_a_change_of_the_bounds_of_a_stream_is_noticed(tmp_path):
    prints = []
    for change in (0, 0, 1):
        moved = POINTS + 100 * np.eye(3)[0] * change * (np.arange(10) == 4)[:, None, None]
        build_dataset({"points": moved}).to_parquet(str(tmp_path / "a.parquet"))
        prints.append(open_point_set(str(tmp_path / "a.parquet"), streaming=True).fingerprint())
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("num_points, most", [(1024, 250), (8192, 1000)])
def test_random_rows_are_read_quickly(tmp_path, ragged, num_points, most):
    clouds = [RANDOM.random((num_points + ragged * (row % 2), 3), dtype=np.float32) for row in range(128)]
    build_dataset({"points": clouds, "label": np.arange(128)}).save_to_disk(str(tmp_path), num_shards=2)
    point_set, times = open_point_set(str(tmp_path)), []
    for _ in range(7):
        keys = [(0, int(row)) for row in RANDOM.permutation(128)[:64]]
        start = time.perf_counter()
        read_batch(point_set, keys)
        times.append((time.perf_counter() - start) / 64 * 1e6)
    print(f"{num_points} points, {'ragged' if ragged else 'equal'}: {np.median(times):.0f} us a row")
    assert min(times) < most
