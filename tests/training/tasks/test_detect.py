"""`detect.py` as a run, and what it does with scenes: moved with their boxes, checked, and judged."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from act_training.data.point_sets import PointSet
from act_training.data.schema import build_dataset
from act_training.report.pictures import save_scenes
from act_training.synthetic.rooms import CLASS_NAMES, generate_rooms
from act_training.tasks.detection import augment_scenes, boxes_to_learn, check_boxes
from datasets import DatasetDict
from safetensors.torch import load_file

from modeling_act import ACTStudentForObjectDetection
from modeling_act.errors import InputError
from modeling_act.modeling_act_detection import axis_aligned, points_in_boxes
from training_runs import ROOT, copy_run, start

RECIPE = {
    "num_points": 256, "per_device_train_batch_size": 4, "max_train_steps": 12, "warmup_epochs": 0.5,
    "learning_rate": 1e-3, "validation_epochs": 2, "checkpointing_steps": 4, "checkpoints_total_limit": 20,
    "scene_augmentation": ["flip", "turn", "scale"], "dataloader_num_workers": 1,
    "model": {
        "num_groups": 16, "group_size": 8, "pointnet_dims": [8, 16, 16], "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32, "position_dim": 8, "num_queries": 12, "detection_dim": 16,
        "detection_num_hidden_layers": 2, "detection_num_attention_heads": 2,
    },
}  # fmt: skip


def build_rooms(count, num_points, start):
    return build_dataset(generate_rooms(count, num_points, start=start), box_names=CLASS_NAMES)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Twenty-four small rooms, a recipe, and one run of it that keeps all checkpoints."""
    folder = tmp_path_factory.mktemp("rooms")
    splits = DatasetDict({"train": build_rooms(24, 300, 0), "test": build_rooms(6, 300, 100)})
    splits.save_to_disk(str(folder / "set"))
    (folder / "detect.yaml").write_text(yaml.safe_dump(RECIPE | {"dataset_name": str(folder / "set")}))
    start(folder, "detect", folder / "run").finish()
    return folder


# Runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_detector_its_figures_and_a_picture(rooms):
    run = rooms / "run"
    record = json.loads((run / "metrics.json").read_text())
    assert set(record["test"]) == set(record["metrics"]) == {"loss", "map_25", "map_50"}
    assert all(0 <= record["test"][name] <= 1 for name in ("map_25", "map_50"))
    validated = [line for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if line["step"]]
    validated = [line for line in validated if "validation/loss" in line]
    best = max(validated, key=lambda line: (line["validation/map_25"], -line["validation/loss"]))
    assert record["measured_at"] == best["step"]
    assert record["metrics"] == {name: best[f"validation/{name}"] for name in record["metrics"]}
    report = (run / "report.html").read_text()
    assert ">ap_25<" in report and ">umbrella<" in report and "scenes of validation" in report
    assert (run / "pictures" / "boxes.png").read_bytes().startswith(b"\x89PNG")
    model = ACTStudentForObjectDetection.from_pretrained(run).eval()
    assert model.config.id2label == dict(enumerate(CLASS_NAMES)) and model.config.num_queries == 12
    found = model.post_process(model(torch.randn(2, 256, 3)), threshold=0)
    assert len(found) == 2 and found[0]["boxes"].shape[1] == 7
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    parts = {key for record in log for key in record if key.endswith("_loss")}
    assert parts == {f"train/{name}_loss" for name in ("class", "center", "size", "giou")}


@pytest.mark.slow
def test_a_resumed_run_ends_as_the_uninterrupted_one(rooms, tmp_path):
    whole = load_file(rooms / "run" / "model.safetensors")
    copy_run(rooms / "run", tmp_path / "again", 8)
    start(rooms, "detect", tmp_path / "again", "--resume_from_checkpoint", "latest").finish()
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_judge_every_scene_once(rooms, tmp_path):
    """Before the first step both runs hold the same weights, and so find the same."""
    flags = ("--max_train_steps", 2, "--per_device_train_batch_size", 2, "--per_device_eval_batch_size", 1)
    for ranks in (1, 2):
        start(rooms, "detect", tmp_path / str(ranks), *flags, ranks=ranks).finish()
    first = [json.loads((tmp_path / ranks / "log.jsonl").read_text().splitlines()[0]) for ranks in "12"]
    assert first[0] == first[1] and first[0]["step"] == 0
    assert json.loads((tmp_path / "2" / "metrics.json").read_text())["steps"] == 2


def test_turned_boxes_without_a_test_split(rooms, tmp_path):
    fields = yaml.safe_dump(RECIPE["model"] | {"num_angle_bins": 4}, default_flow_style=True)
    flags = ("--max_train_steps", 3, "--test_split", "", "--validation_epochs", 1, "--model", fields.strip())
    start(rooms, "detect", tmp_path / "run", *flags).finish()
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["test"] is None and set(record["metrics"]) == {"loss", "map_25", "map_50"}
    assert "classes of validation" in (tmp_path / "run" / "report.html").read_text()
    assert "train/angle_class_loss" in (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--normalize", "true"), "--normalize must be false"),
        (("--augmentation", "rotate_z"), "--augmentation moves points and leaves boxes where they are"),
        (("--scene_augmentation", "spin"), "--scene_augmentation must be among flip, turn, quarter_turn, scale"),
        (
            ("--model", "{num_groups: 8, num_queries: 9}"),
            "num_queries must not exceed num_groups, got 9",
        ),
    ],
)
def test_wrong_flags_are_one_line(rooms, tmp_path, flags, message):
    assert message in start(rooms, "detect", tmp_path / "run", *flags).fail()


@pytest.mark.slow
def test_rooms_are_learned_in_minutes(tmp_path):
    """The recipe on fewer rooms, on one core. The floors are well below what it reached when it was written."""
    splits = DatasetDict({"train": build_rooms(900, 2048, 0), "test": build_rooms(100, 2048, 5000)})
    splits.save_to_disk(str(tmp_path / "set"))
    recipe = yaml.safe_load((ROOT / "training" / "recipes" / "detect_rooms.yaml").read_text())
    recipe |= {"dataset_name": str(tmp_path / "set"), "max_train_steps": 500, "validation_epochs": 5}
    (tmp_path / "detect.yaml").write_text(yaml.safe_dump(recipe))
    start(tmp_path, "detect", tmp_path / "run").finish(seconds=1800)
    test = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert test["map_25"] > 0.35 and test["map_50"] > 0.06


# Scenes --------------------------------------------------------------------------------------------------------------


def make_batch():
    points = torch.randn(3, 4000, 3)
    boxes = torch.cat([torch.randn(3, 4, 3), torch.rand(3, 4, 3) + 0.5, torch.randn(3, 4, 1)], dim=-1)
    keys = torch.tensor([[0, 3], [0, 5], [1, 3]])
    return {"points": points, "boxes": boxes, "box_labels": torch.zeros(3, 4).long(), "keys": keys}


@pytest.mark.parametrize("name", ["flip", "turn", "quarter_turn", "scale"])
def test_boxes_move_with_their_points(name):
    """The same points lie in the same boxes, but for those on a face."""
    batch = make_batch()
    before = points_in_boxes(batch["points"], batch["boxes"])
    changed = augment_scenes(batch, 3, [name])
    after = points_in_boxes(changed["points"], changed["boxes"])
    assert before.sum() > 200 and (before != after).sum() < 5
    assert not torch.allclose(changed["points"], batch["points"], atol=1e-2)


def test_scenes_change_by_seed_epoch_and_row_alone():
    batch, names = make_batch(), ["flip", "turn", "quarter_turn", "scale"]
    whole = augment_scenes(batch, 3, names)
    last = augment_scenes({key: value[2:] for key, value in batch.items()}, 3, names)
    assert torch.equal(last["points"], whole["points"][2:]) and torch.equal(last["boxes"], whole["boxes"][2:])
    assert not torch.allclose(augment_scenes(batch, 4, names)["points"], whole["points"])
    again = augment_scenes(batch | {"keys": batch["keys"] + torch.tensor([1, 0])}, 3, names)
    assert not torch.allclose(again["points"], whole["points"])


def test_turns_are_small_and_flips_are_mirrors():
    batch = make_batch()
    turned = augment_scenes(batch, 0, ["turn"])
    angles = (turned["boxes"] - batch["boxes"])[..., 6]
    assert (angles.abs() <= math.radians(5) + 1e-6).all() and angles.unique().numel() >= 3
    rows = torch.stack([torch.zeros(64), torch.arange(64)], dim=1).long()
    flipped = augment_scenes(
        {"points": torch.ones(64, 1, 3), "boxes": torch.zeros(64, 0, 7), "keys": rows}, 0, ["flip"]
    )
    places, counts = flipped["points"][:, 0].unique(dim=0, return_counts=True)
    assert places.abs().eq(1).all() and places[:, 2].eq(1).all() and len(places) == 4 and counts.min() > 5


def test_boxes_that_cannot_be_turned_are_learned_as_axis_aligned():
    batch = make_batch()
    model = type("Model", (), {"config": type("Config", (), {"num_angle_bins": 1})})
    assert torch.equal(boxes_to_learn(batch, model), axis_aligned(batch["boxes"]))
    model.config.num_angle_bins = 6
    assert torch.equal(boxes_to_learn(batch, model), batch["boxes"])


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[0, 0, 0, 1, 1, 1, 0]], [0, 1], "row 1 of scenes: 1 boxes and 2 labels of boxes"),
        ([[0, 0, 0, 1, -1, 1, 0]], [0], "row 1 of scenes: a box must be finite and of no negative size"),
        ([[0, 0, float("nan"), 1, 1, 1, 0]], [0], "row 1 of scenes: a box must be finite"),
    ],
)
def test_bad_boxes_are_named(boxes, labels, message):
    good = np.array([[0, 0, 0, 1, 1, 1, 0]] * 3)
    columns = {"points": np.zeros((2, 4, 3)), "boxes": [good, np.array(boxes)], "box_labels": [[0, 1, 1], labels]}
    with pytest.raises(InputError, match=message):
        check_boxes(PointSet(build_dataset(columns), "scenes"))


def test_a_set_without_boxes_is_refused():
    with pytest.raises(InputError, match="scenes has no boxes, which are to be learned; its columns are points"):
        check_boxes(PointSet(build_dataset({"points": np.zeros((2, 4, 3))}), "scenes"))


def test_pictures_show_what_is_there_and_what_was_found(tmp_path):
    rooms = generate_rooms(2, 200)
    scenes = [
        {"true_boxes": boxes, "true_labels": labels, "boxes": boxes[:1], "labels": labels[:1], "scores": np.ones(1)}
        for boxes, labels in zip(rooms["boxes"], rooms["box_labels"], strict=True)
    ]
    save_scenes(tmp_path / "full.png", rooms["points"], scenes, CLASS_NAMES)
    for scene in scenes:
        scene["scores"] = np.zeros(1)  # too unsure to be drawn
    save_scenes(tmp_path / "bare.png", rooms["points"], scenes, CLASS_NAMES)
    assert (tmp_path / "full.png").read_bytes() != (tmp_path / "bare.png").read_bytes()
