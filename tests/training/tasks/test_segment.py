"""segment.py through its command line, on parts, points and rooms; every point of a scene; what is refused."""

import json
import re

import numpy as np
import pytest
import torch
from act_training.data.point_sets import open_point_set
from act_training.data.schema import build_dataset
from act_training.measure.metrics import confusion_matrix, part_iou, segmentation_metrics
from act_training.tasks.segmentation import SegmentationMetrics, class_weights_of, hold_out_scenes, rooms_of
from datasets import DatasetDict

from modeling_act import (
    ACTPointCloudProcessor,
    ACTStudentConfig,
    ACTStudentForPartSegmentation,
    ACTStudentForSemanticSegmentation,
)
from modeling_act.inference import predict_points, predict_scene, slide
from modeling_act.modeling_act_student import prediction_loss
from training_runs import start

FAST = ("--max_train_steps", 6, "--ema_decay", 0.5)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@torch.no_grad()
def test_parts_are_judged_on_every_point_among_those_of_their_category(inputs):
    folder = inputs / "segmenter"
    model = ACTStudentForPartSegmentation.from_pretrained(folder).eval()
    processor = ACTPointCloudProcessor.from_pretrained(folder)
    assert model.config.parts_of_category == [[0, 1], [2, 3], [4, 5]] and model.config.category_names == [
        "0",
        "1",
        "2",
    ]
    archive = np.load(inputs / "parts.npz")
    test = archive["split"] == "test"
    kinds, answers = archive["labels"][test], []
    for points, kind in zip(archive["points"][test], kinds, strict=True):
        logits = predict_points(model, torch.from_numpy(points), processor, category=int(kind), batch_size=64)
        parts = model.config.parts_of_category[kind]
        answers.append(np.array(parts)[logits[:, parts].argmax(1)])
    labels = archive["point_labels"][test]
    parts = [model.config.parts_of_category[kind] for kind in kinds]
    ious = np.array([part_iou(*cloud) for cloud in zip(labels, answers, parts, strict=True)])
    found = metrics_of(folder)["test"]
    assert found["instance_miou"] == pytest.approx(ious.mean())
    assert found["class_miou"] == pytest.approx(np.mean([ious[kinds == kind].mean() for kind in range(3)]))
    assert found["accuracy"] == pytest.approx((np.array(answers) == labels).mean())
    record = metrics_of(folder)
    assert record["metrics"] == {name: value for name, value in record["best"].items() if name != "step"}
    assert record["metrics"]["instance_miou"] > 0 and record["measured_at"] == record["best"]["step"]


def test_points_without_a_category_and_a_class_that_is_not_judged(inputs, tmp_path):
    flags = ("--task", "points", "--ignored", 0, 5, "--votes", 2, *FAST)
    start(inputs, "segment", tmp_path / "run", *flags).finish()
    model = ACTStudentForSemanticSegmentation.from_pretrained(tmp_path / "run")
    assert model.config.num_labels == 6
    report = (tmp_path / "run" / "report.html").read_text()
    table = report.partition("<h2>classes of the test split</h2>")[2].partition("</table>")[0]
    assert re.findall("<tr><td>(.*?)</td>", table) == ["1", "2", "3", "4"]
    assert metrics_of(tmp_path / "run")["test"].keys() == {"loss", "miou", "mean_class_accuracy", "accuracy"}


def room(seed, blocks=2, count=200):
    """Blocks as prepare_data.py cuts them, of a floor, a wall at x = 0 and clutter between: labels 0, 1, 2."""
    random = np.random.default_rng(seed)
    rows = []
    for x in range(blocks):
        points = random.random((200, 3)) - (0.5, 0.5, 0)
        points[:80, 2] = 0
        labels = np.where(points[:, 2] == 0, 0, 2)
        if x == 0:
            points[80:140, 0] = -0.5
            labels[80:140] = 1
        rows.append({"points": points.astype(np.float32), "point_labels": labels, "name": f"Area_1/room_{seed}/{x}_0"})
    return rows


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms") / "set"
    splits = {}
    for split, seeds in (("train", range(10)), ("test", range(10, 12))):
        rows = [row for seed in seeds for row in room(seed)]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        splits[split] = build_dataset(columns, part_names=["floor", "wall", "clutter"])
    DatasetDict(splits).save_to_disk(str(folder))
    return folder


@torch.no_grad()
def test_rooms_are_put_together_and_judged_whole(inputs, rooms, tmp_path):
    flags = ("--dataset_name", rooms, "--task", "scenes", "--normalize", "false", "--stride", 0.5, *FAST)
    start(inputs, "segment", tmp_path / "run", *flags).finish()
    model = ACTStudentForSemanticSegmentation.from_pretrained(tmp_path / "run").eval()
    processor = ACTPointCloudProcessor.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "floor", 1: "wall", 2: "clutter"} and not processor.normalize
    assert (processor.block_size, processor.up_axis) == (1.0, "z")
    confusion, losses = 0, []
    for seed in (10, 11):
        blocks = room(seed)
        points = np.concatenate([blocks[x]["points"] + (x + 0.5, 0.5, 0) for x in (0, 1)])
        labels = np.concatenate([block["point_labels"] for block in blocks])
        logits = predict_scene(model, torch.from_numpy(points), processor, batch_size=64)
        confusion = confusion + confusion_matrix(labels, logits.argmax(1).numpy(), 3)
        losses.append(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long()).item())
    assert confusion.sum() == 800  # every point, once
    assert metrics_of(tmp_path / "run")["test"] == pytest.approx(
        segmentation_metrics(confusion) | {"loss": np.mean(losses)}
    )


def test_validation_holds_out_whole_rooms(rooms):
    train = open_point_set(str(rooms), "train")
    kept, held_out = hold_out_scenes(train, 0.2, 0)
    names = np.array([name.rpartition("/")[0] for name in train.row_names()])
    assert len(set(names[held_out])) == 2 and not set(names[kept]) & set(names[held_out])
    assert sorted([*kept, *held_out]) == list(range(20))
    points, labels, _ = next(rooms_of(train))
    assert points.shape == (400, 3) and labels.shape == (400,)
    assert points[:, 0].max() > 1.9 and points[:, 0].min() < 0.1
    counts = np.bincount(np.concatenate([row["point_labels"] for seed in range(10) for row in room(seed)]))
    expected = (counts.max() / counts) ** (1 / 3)
    np.testing.assert_allclose(class_weights_of(train, 3), expected, rtol=1e-6)


def test_what_has_no_label_counts_nowhere():
    metrics = SegmentationMetrics(["a", "b"], [], [[0, 1], []])
    metrics.add(np.array([0, 1, 1]), torch.tensor([[1.0, 0], [1, 0], [0, 1]]), 0)
    metrics.add(np.full(3, -100), torch.zeros(3, 2), 1)  # of a category without parts
    found, _ = metrics.compute()
    assert found["instance_miou"] == found["class_miou"] == 0.5
    nothing = prediction_loss(torch.randn(2, 3, 4, requires_grad=True), torch.full((2, 3), -100))
    assert nothing.item() == 0
    logits, labels = torch.randn(2, 3, 4), torch.tensor([[0, -100, 3], [1, 1, -100]])
    for weights in (None, torch.tensor([1.0, 2, 3, 4])):
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights)
        torch.testing.assert_close(prediction_loss(logits, labels, weights), expected)


# Every point ---------------------------------------------------------------------------------------------------------


class Height(torch.nn.Module):
    """Stands for a model whose answer for a point is known: its own coordinates, and how large the hand was."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.config = ACTStudentConfig(num_labels=4)
        self.sizes = []

    def forward(self, points):
        self.sizes.append(tuple(points.shape))
        logits = torch.cat([points, points[..., :1] * 0 + 1], dim=-1)
        return type("Output", (), {"logits": logits})


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_every_point_gets_its_own_answer(count):
    points, model = torch.randn(count, 3), Height()
    processor = ACTPointCloudProcessor(64, normalize=False)
    for votes in (1, 3):
        logits = predict_points(model, points, processor, votes=votes, batch_size=4)
        torch.testing.assert_close(logits, torch.cat([points, torch.ones(count, 1)], 1))
    assert all(size[0] <= 4 and size[1:] == (64, 3) for size in model.sizes)  # however many points there are
    colored = torch.cat([points, torch.rand(count, 3)], 1).numpy()
    assert torch.equal(predict_points(model, colored, processor, votes=3, batch_size=4), logits)


@pytest.mark.parametrize(("block_size", "stride"), [(1.0, 0.5), (1.0, 1.0), (0.7, 0.3)])
def test_blocks_cover_a_scene_and_know_where_they_are(block_size, stride):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(3000, 3, generator=generator, dtype=torch.float64) * torch.tensor([3.3, 0.4, 2.0]) + 1000
    points[:500] = points[:500].mul(1 / stride).round().mul(stride)  # on the borders
    seen = torch.zeros(3000)
    for members, origin in slide(points, block_size, stride):
        seen[members] += 1
        assert (points[members] - origin)[:, :2].abs().max() <= block_size / 2 + 1e-9
        assert (points[members] - origin)[:, 2].min() >= 0
    assert seen.min() >= 1
    logits = predict_scene(Height(), points, ACTPointCloudProcessor(64, normalize=False), block_size, stride)
    torch.testing.assert_close(logits[:, 2].double(), points[:, 2] - points[:, 2].min(), rtol=0, atol=1e-5)
    assert logits[:, 0].abs().max() <= block_size / 2 + 1e-6


@pytest.mark.parametrize("points", [torch.zeros(4, 2), torch.zeros(0, 3), torch.full((4, 3), torch.nan)])
@pytest.mark.parametrize("predict", [predict_points, predict_scene])
def test_no_points_are_one_line(predict, points):
    with pytest.raises(ValueError, match="`points` must be"):
        predict(Height(), points, ACTPointCloudProcessor(64))


def test_memory_does_not_grow_with_a_scene():
    for extent in (1, 20):
        points, model = torch.rand(400 * extent, 3) * torch.tensor([extent, 1, 1]), Height()
        predict_scene(model, points, ACTPointCloudProcessor(64, normalize=False), batch_size=4)
        assert max(size[0] for size in model.sizes) <= 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset_name", "{inputs}/clouds.npz", "--test_split="), "has no column point_labels to learn"),
        (("--dataset_name", "{inputs}/no_category.npz"), "has no category; its columns are .*--task points"),
        (("--dataset_name", "{inputs}/wrong.npz"), "row 4 of .*point_labels -3 where 0 to 5 were expected"),
        (("--task", "scenes"), "--task scenes needs --normalize false"),
        (("--task", "scenes", "--normalize", "false"), "has no column name"),
        (("--ignored", "0"), "--ignored goes with --task points and scenes"),
        (("--task", "points", "--ignored", "stock"), "--ignored stock: the classes are 0, 1, 2, 3, 4, 5"),
        (("--task", "rooms"), "argument --task: invalid choice: 'rooms'"),
        (("--student", "{inputs}/student", "--model", "{{num_hidden_layers: 5}}"), "num_hidden_layers .* 2, got 5"),
        (("--num_points", "7"), "--num_points 7 is fewer than the 8 that the groups need"),
        (("--student", "{inputs}/student", "--model", "{{segmentation_layers: [1, 9]}}"), "segmentation_layers"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(inputs, tmp_path, flags, message):
    archive = dict(np.load(inputs / "parts.npz"))
    wrong = archive["point_labels"].copy()
    wrong[7, 3] = -3
    without = {name: archive[name] for name in ("points", "point_labels", "split")}
    np.savez(inputs / "no_category.npz", **without)
    np.savez(inputs / "wrong.npz", **archive | {"point_labels": wrong})
    flags = [flag.format(inputs=inputs) for flag in flags]
    line = start(inputs, "segment", tmp_path / "run", *flags).fail()
    assert re.search(message, line), line


def test_blocks_between_far_points_are_passed_over():
    """A step of 0.5 over 4e8 is not to be taken."""
    points = torch.rand(200, 3, dtype=torch.float64)
    points[0, :2] = torch.tensor([4e8, 0.0])
    found = [members for members, _ in slide(points, 1.0, 0.5)]
    assert len(found) < 10 and torch.cat(found).unique().tolist() == list(range(200))
