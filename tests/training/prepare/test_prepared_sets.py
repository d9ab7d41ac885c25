"""Every source of `prepare_data.py`, on small files in its true format."""

import json
import os
import pickle

import h5py
import numpy as np
import pytest
import torch
import trimesh
from act_training.prepare.jobs import prepare_splits, summarize
from act_training.prepare.objects import NUM_PARTS, SCANOBJECTNN_CLASSES, Choices, plan_few_shot
from act_training.prepare.scenes import SCENE_CLASSES
from prepare_data import NUM_CLOUDS, SOURCES

from modeling_act.errors import InputError
from modeling_act.point_ops import farthest_point_sample

RANDOM = np.random.default_rng(0)


def cloud(size=50):
    return RANDOM.normal(size=(size, 3)).astype(np.float32)


def prepare(source, raw, work, **choices):
    """Prepare a set in this process. Returns it, the summary of its splits, and what was rejected."""
    choices = Choices(source, **choices)
    joined, rejected = prepare_splits(SOURCES[source](raw, choices), choices, work)
    return joined, summarize(joined), rejected


def arrays(split):
    return split.with_format("numpy")[:]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    return path


def write_table(path, table, separator=" ", pattern="%.6f"):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, table, fmt=pattern, delimiter=separator)


def write_h5(path, **datasets):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values, compression="gzip")


# Sources -------------------------------------------------------------------------------------------------------------


def test_shapenet55(tmp_path):
    raw, clouds = tmp_path / "ShapeNet55-34", {}
    for name in ("02691156-a1", "02691156-a2", "03001627-c3"):
        clouds[name] = cloud()
        write(raw / "shapenet_pc" / "x", "")
        np.save(raw / "shapenet_pc" / f"{name}.npy", clouds[name])
    write(raw / "ShapeNet-55" / "train.txt", "02691156-a2.npy\n03001627-c3.npy\n")
    write(raw / "ShapeNet-55" / "test.txt", "02691156-a1.npy\n")
    prepared, summary, _ = prepare("shapenet55", raw, tmp_path / "work")
    train = arrays(prepared["train"])
    assert train["name"].tolist() == ["02691156-a2", "03001627-c3"] and train["label"].tolist() == [0, 1]
    np.testing.assert_array_equal(train["points"], [clouds["02691156-a2"], clouds["03001627-c3"]])  # not normalised
    assert prepared["test"].features["label"].names == ["02691156", "03001627"]
    assert summary["train"] == {
        "clouds": 2, "points": [50, 50.0, 50], "classes": {"02691156": 1, "03001627": 1},
    }  # fmt: skip


def test_modelnet40_text_is_sampled_and_put_into_the_unit_sphere(tmp_path):
    raw = tmp_path / "modelnet40_normal_resampled"
    write(raw / "modelnet40_shape_names.txt", "chair\nnight_stand\n")
    write(raw / "modelnet40_train.txt", "chair_0001\nnight_stand_0002\n")
    write(raw / "modelnet40_test.txt", "chair_0003\n")
    tables = {}
    for kind, name in (("chair", "chair_0001"), ("night_stand", "night_stand_0002"), ("chair", "chair_0003")):
        tables[name] = np.hstack([cloud(), cloud()]).round(6)
        write_table(raw / kind / f"{name}.txt", tables[name], ",")
    prepared, _, _ = prepare("modelnet40", tmp_path, tmp_path / "work", num_points=20)
    train = arrays(prepared["train"])
    assert train["label"].tolist() == [0, 1] and train["name"].tolist() == [
        "chair/chair_0001",
        "night_stand/night_stand_0002",
    ]
    table = tables["night_stand_0002"].astype(np.float32)
    chosen = farthest_point_sample(torch.from_numpy(table[None, :, :3]), 20)[0].numpy()
    points = table[chosen, :3] - table[chosen, :3].mean(0)
    np.testing.assert_allclose(train["points"][1], points / np.linalg.norm(points, axis=1).max(), atol=1e-5)
    np.testing.assert_allclose(train["normals"][1], table[chosen, 3:], atol=1e-5)
    with pytest.raises(InputError, match="not one cloud could be read"):
        prepare("modelnet40", tmp_path, tmp_path / "eight_thousand")  # 8192 points, unless told otherwise


def test_modelnet40_h5_and_meshes(tmp_path):
    raw = tmp_path / "modelnet40_ply_hdf5_2048"
    data = np.stack([cloud() for _ in range(300)])
    write_h5(
        raw / "ply_data_train0.h5", data=data, label=np.arange(300).reshape(-1, 1).astype(np.uint8) % 2, normal=-data
    )
    write_h5(raw / "ply_data_test0.h5", data=data[:3], label=np.array([[1], [0], [1]], np.uint8))
    write(raw / "shape_names.txt", "airplane\nbathtub\n")
    write(raw / "train_files.txt", "data/modelnet40_ply_hdf5_2048/ply_data_train0.h5\n")
    write(raw / "test_files.txt", "data/modelnet40_ply_hdf5_2048/ply_data_test0.h5\n")
    prepared, summary, _ = prepare("modelnet40", raw, tmp_path / "work")
    np.testing.assert_array_equal(arrays(prepared["train"])["points"], data)
    assert prepared["train"][299]["name"] == "ply_data_train0:299" and prepared["train"][299]["label"] == 1
    assert summary["test"]["classes"] == {"airplane": 1, "bathtub": 2}
    assert "normals" not in prepared["train"].features  # the test file has none

    raw = tmp_path / "ModelNet40"
    for split in ("train", "test"):
        write(
            raw / "sofa" / split / "sofa_0001.off",
            trimesh.creation.box((1, 2, 3)).export(file_type="off").replace("OFF\n", "OFF"),
        )
    prepared, _, _ = prepare("modelnet40", raw, tmp_path / "work_off", num_points=500)
    points = arrays(prepared["train"])["points"][0]
    assert points.shape == (500, 3) and np.linalg.norm(points, axis=1).max() == pytest.approx(1, abs=1e-6)
    assert abs(points.mean(0)).max() < 1e-6 and prepared["test"][0]["name"] == "sofa/sofa_0001"


def test_scanobjectnn(tmp_path):
    data = {variant: np.stack([cloud() for _ in range(4)]) for variant in ("bg", "only", "hardest")}
    mask = np.where(np.arange(200).reshape(4, 50) % 3, -1, 7).astype(np.int32)
    for prefix in ("training", "test"):
        for place, variant, suffix in (
            ("main_split", "bg", ""),
            ("main_split_nobg", "only", ""),
            ("main_split", "hardest", "_augmentedrot_scale75"),
        ):
            path = tmp_path / "h5_files" / place / f"{prefix}_objectdataset{suffix}.h5"
            write_h5(path, data=data[variant], label=np.array([14, 0, 3, 3], np.int32), mask=mask)
    for variant, key in (("obj_bg", "bg"), ("obj_only", "only"), ("pb_t50_rs", "hardest")):
        prepared, summary, _ = prepare("scanobjectnn", tmp_path, tmp_path / variant, variant=variant)
        np.testing.assert_array_equal(arrays(prepared["train"])["points"], data[key])
        assert prepared["test"].features["label"].names == list(SCANOBJECTNN_CLASSES)
        assert summary["test"]["classes"] == {"bag": 1, "cabinet": 2, "toilet": 1}
    prepared, _, _ = prepare("scanobjectnn", tmp_path, tmp_path / "mask", keep_mask=True, num_points=10)
    indices = farthest_point_sample(torch.from_numpy(data["hardest"]), 10).numpy()
    found = np.stack(arrays(prepared["train"])["point_labels"])
    np.testing.assert_array_equal(found, np.take_along_axis(mask, indices, axis=1) != -1)
    assert prepared["train"].features["point_labels"].feature.names == ["background", "object"]


def test_shapenetpart(tmp_path):
    folders = {category: f"{place:08d}" for place, category in enumerate(NUM_PARTS, start=2691156)}
    write(tmp_path / "synsetoffset2category.txt", "".join(f"{name}\t{folder}\n" for name, folder in folders.items()))
    tables = {}
    for split, size in (("train", 30), ("val", 40), ("test", 50)):
        table = np.hstack([cloud(size), cloud(size), RANDOM.integers(47, 50, (size, 1))])
        write_table(tmp_path / folders["Table"] / f"{split}.txt", table)
        tables[split] = table
        listing = tmp_path / "train_test_split" / f"shuffled_{split}_file_list.json"
        write(listing, json.dumps([f"shape_data/{folders['Table']}/{split}"]))
    prepared, summary, _ = prepare("shapenetpart", tmp_path, tmp_path / "work")
    assert list(prepared) == ["train", "validation", "test"] and summary["test"]["classes"] == {"Table": 1}
    row = prepared["validation"].with_format("numpy")[0]
    np.testing.assert_allclose(np.hstack([row["points"], row["normals"]]), tables["val"][:, :6], atol=1e-5)
    np.testing.assert_array_equal(row["point_labels"], tables["val"][:, 6])
    features = prepared["train"].features
    assert features["category"].int2str(int(row["category"])) == "Table"
    assert features["point_labels"].feature.names[47:] == ["Table 0", "Table 1", "Table 2"]
    write_table(tmp_path / folders["Table"] / "val.txt", tables["val"] + [0, 0, 0, 0, 0, 0, 9])
    _, _, rejected = prepare("shapenetpart", tmp_path, tmp_path / "again")
    assert "point_labels 56 to 58, and there are 50 names" in rejected[0]["why"]


def write_rooms(raw, as_arrays):
    """Two rooms of 2.2 m by 0.8 m; their points by class."""
    for area in (1, 5):
        xyz = RANDOM.uniform((3, 3, 1), (5.2, 3.8, 3), (900, 3)).round(3)
        xyz[:2] = (3, 3, 1), (5.2, 3.8, 3)
        room = np.hstack([xyz, RANDOM.integers(0, 256, (900, 3)), np.repeat([2, 8, 12], 300)[:, None]])
        if as_arrays:
            raw.mkdir(exist_ok=True)
            np.save(raw / f"Area_{area}_office_1.npy", room - [3, 3, 1, 0, 0, 0, 0])
        else:
            for name, label in (("wall_1", 2), ("chair_1", 8), ("stairs_1", 12)):
                folder = raw / f"Area_{area}" / "office_1" / "Annotations"
                write_table(folder / f"{name}.txt", room[room[:, 6] == label, :6], pattern="%.3f")
    return room


@pytest.mark.parametrize("as_arrays", [False, True])
def test_s3dis_rooms_become_blocks(as_arrays, tmp_path):
    room = write_rooms(tmp_path / "raw", as_arrays)
    prepared, summary, _ = prepare("s3dis", tmp_path / "raw", tmp_path / "work")
    assert [row["name"] for row in prepared["test"].select_columns("name")] == [
        "Area_5/office_1/0_0",
        "Area_5/office_1/1_0",
    ]
    assert prepared["train"][0]["name"] == "Area_1/office_1/0_0"
    first, second = (prepared["test"].with_format("numpy")[place] for place in (0, 1))
    inside = room[:, 0] < 4
    assert len(first["points"]) == inside.sum() and summary["test"]["points"][0] < 900
    order = np.lexsort(first["points"].T), np.lexsort((room[inside, :3] - [3.5, 3.5, 1]).T)
    np.testing.assert_allclose(first["points"][order[0]], (room[inside, :3] - [3.5, 3.5, 1])[order[1]], atol=1e-5)
    np.testing.assert_allclose(first["colors"][order[0]], room[inside, 3:6][order[1]] / 255, atol=1e-5)
    np.testing.assert_array_equal(first["point_labels"][order[0]], room[inside, 6][order[1]])
    assert (
        abs(second["points"][:, :2]).max() <= 0.5 + 1e-5
    )  # the last 0.2 m hold fewer than 100 points, or are a block
    names = prepared["train"].features["point_labels"].feature.names
    assert names == list(SCENE_CLASSES) and names[8] == "chair"
    with pytest.raises(InputError, match="--test_area 2 is not there; there are 1, 5"):
        prepare("s3dis", tmp_path / "raw", tmp_path / "none", test_area=2)


@pytest.mark.parametrize("protocol", [2, 4])
def test_few_shot_folds_are_read_without_running_them(protocol, tmp_path):
    entries = {
        part: [(np.hstack([cloud(), cloud()]), place, np.int32(30 + place)) for place in range(5)]
        for part in ("train", "test")
    }
    folder = tmp_path / "raw" / "5way10shot"
    for fold in (0, 10):
        write(folder / f"{fold}.pkl", pickle.dumps(entries, protocol=protocol))
    prepared, _, _ = prepare("fewshot_modelnet40", tmp_path / "raw", tmp_path / "work")
    assert list(prepared) == ["fold_0_train", "fold_0_test", "fold_10_train", "fold_10_test"]
    rows = arrays(prepared["fold_10_test"])
    assert rows["label"].tolist() == [0, 1, 2, 3, 4] and rows["name"][2] == "10/test/2 (class 32)"
    points = entries["test"][2][0][:, :3]
    points = points - points.mean(0)
    np.testing.assert_allclose(rows["points"][2], points / np.linalg.norm(points, axis=1).max(), atol=1e-5)


class Hostile:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("fold", "reason"),
    [
        (Hostile((os.system, ("touch hostile",))), "asks for posix.system"),
        (Hostile((eval, ("1",))), "asks for builtins.eval"),
        ({"train": [(Hostile((np.ndarray, ((10**12,),))), 0, 0)]}, "needs more memory than there is"),
        ({"train": [(np.array([[None]]), 0, 0)]}, "must hold numbers, got an array of object"),
        ({"train": [1], "test": []}, "damaged, or no .pkl file$"),
        ([1, 2], "damaged, or no .pkl file$"),
    ],
)
def test_hostile_pickles_are_refused(fold, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "5way10shot" / "0.pkl", pickle.dumps(fold))
    choices = Choices("fewshot_modelnet40")
    plan = plan_few_shot(tmp_path, choices)
    with pytest.raises(InputError, match=reason):
        plan.read(plan.splits["fold_0_train"][0], choices)
    assert not (tmp_path / "hostile").exists()


def test_a_folder_of_any_files(tmp_path):
    raw, box = tmp_path / "raw", trimesh.creation.box()
    for name, data in (("box.off", box.export(file_type="off")), ("box.stl", box.export(file_type="stl"))):
        write(raw / "train" / "box" / name, data)
    write_table(raw / "val" / "round" / "deeper" / "ball.xyz", cloud(33))
    for name in ("train/box/notes.md", "train/box/README.txt", "licence-cc.txt", "picture.JPG", "._box.off"):
        write(raw / name, "no cloud")
    prepared, summary, _ = prepare("folder", raw, tmp_path / "work", num_points=33)
    assert {split: rows["name"][:] for split, rows in prepared.items()} == {
        "train": ["train/box/box.off", "train/box/box.stl"], "validation": ["val/round/deeper/ball.xyz"],
    }  # fmt: skip
    assert (
        prepared["validation"].features["label"].names == ["box", "round"] and prepared["validation"][0]["label"] == 1
    )
    assert SOURCES["folder"](raw, Choices("folder")).ignored == "1 licence-cc.txt, 1 .JPG, 1 README.txt, 1 .md"
    assert prepared["train"].features["points"].shape == (33, 3)

    write_table(raw / "val" / "loose.xyz", cloud(12))
    with pytest.raises(InputError, match="loose.xyz: lies beside folders of classes"):
        prepare("folder", raw, tmp_path / "mixed")
    flat, _, _ = prepare("folder", raw / "val" / "round" / "deeper", tmp_path / "flat")
    assert flat["train"].column_names == ["points", "name"]
    write_table(raw / "val" / "round" / "deeper" / "second.xyz", cloud(12))
    ragged, summary, _ = prepare("folder", raw / "val" / "round" / "deeper", tmp_path / "ragged")
    assert ragged["train"].features["points"].shape == (None, 3)
    assert summary["train"]["points"] == [12, 22.5, 33]


@pytest.mark.parametrize("source", [source for source in SOURCES if source not in NUM_CLOUDS])
def test_the_wrong_folder_is_named(source, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: .*(expected|holds no file)"):
        prepare(source, tmp_path, tmp_path / "work")
