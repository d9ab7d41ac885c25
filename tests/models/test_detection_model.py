"""Detection: the matching and the losses against ten-line computations, save and load, gradients, post-processing."""

import itertools
import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_act import ACTStudentConfig, ACTStudentForObjectDetection, ACTStudentForPreTraining
from modeling_act.modeling_act_detection import (
    CLASS_COST,
    GIOU_COST,
    LOSS_WEIGHTS,
    NO_OBJECT_WEIGHT,
    ACTDetectionOutput,
    angle_losses,
    box_iou,
    decode_angles,
    detection_losses,
    generalized_box_iou,
    match,
)
from small_models import small_student_config

SIZES = {
    "num_queries": 10, "detection_dim": 16, "detection_num_hidden_layers": 3, "detection_num_attention_heads": 2,
    "drop_path_rate": 0.0,
}  # fmt: skip
LABELS = torch.tensor([[1, 4, 0], [2, -1, -1]])


def make_config(**fields):
    return small_student_config(**(SIZES | fields))


def make_model(**fields):
    return ACTStudentForObjectDetection(make_config(**fields))


def make_inputs():
    boxes = torch.cat([torch.randn(2, 3, 3), torch.rand(2, 3, 3) + 0.2, torch.randn(2, 3, 1)], dim=-1)
    return {"points": torch.randn(2, 64, 3), "boxes": boxes, "box_labels": LABELS}


def random_predictions(layers=2, scenes=2, queries=5, bins=1):
    logits = torch.randn(layers, scenes, queries, 6)
    shape = (layers, scenes, queries)
    boxes = torch.cat([torch.randn(*shape, 3), torch.rand(*shape, 3) + 0.2, torch.zeros(*shape, 1)], dim=-1)
    return logits, boxes, torch.randn(*shape, 2, bins) if bins > 1 else None


def equal(output, expected):
    fields = ("loss", "logits", "boxes", "auxiliary_logits", "auxiliary_boxes")
    return all(torch.equal(getattr(output, name), getattr(expected, name)) for name in fields)


# The model -----------------------------------------------------------------------------------------------------------


def test_outputs():
    model, inputs = make_model().eval(), make_inputs()
    output = model(**inputs)
    assert output.logits.shape == (2, 10, 6) and output.boxes.shape == (2, 10, 7)
    assert output.auxiliary_logits.shape == (2, 2, 10, 6) and output.auxiliary_boxes.shape == (2, 2, 10, 7)
    assert (output.boxes[..., 3:6] > 0).all() and (output.boxes[..., 6] == 0).all()
    extents = inputs["points"].amax(1) - inputs["points"].amin(1)
    assert (output.boxes[..., 3:6] < extents.unsqueeze(1)).all()
    assert set(output.losses) == {"class", "center", "size", "giou"}
    assert model(inputs["points"]).loss is None
    turned = make_model(num_angle_bins=4).eval()(**inputs)
    assert set(turned.losses) == set(LOSS_WEIGHTS) and turned.boxes[..., 6].unique().numel() > 4


@pytest.mark.parametrize("bins", [1, 4])
def test_save_and_load_is_bit_equal(bins, tmp_path):
    model, inputs = make_model(num_angle_bins=bins).eval(), make_inputs()
    model.save_pretrained(tmp_path)
    loaded, info = ACTStudentForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert equal(loaded(**inputs), model(**inputs))
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_act_detection.ACTStudentForObjectDetection"
    assert {path.name for path in tmp_path.glob("*.py")} >= {"modeling_act_detection.py", "modeling_act_student.py"}
    assert AutoConfig.from_pretrained(tmp_path).num_angle_bins == bins


@pytest.mark.slow
def test_the_saved_folder_works_without_the_package(run_python, tmp_path):
    model, inputs = make_model().eval(), make_inputs()
    model.save_pretrained(tmp_path / "detector")
    torch.save(inputs["points"], tmp_path / "points.pt")
    code = """
import sys, torch
from transformers import AutoModel
model = AutoModel.from_pretrained("detector", trust_remote_code=True)
output = model(torch.load("points.pt"))
assert "modeling_act" not in sys.modules and type(model).__module__.startswith("transformers_modules")
assert set(model.post_process(output)[0]) == {"scores", "labels", "boxes"}
torch.save(output.boxes, "boxes.pt")
"""
    run_python("-c", code, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "boxes.pt"), model(inputs["points"]).boxes)


def test_a_pretrained_student_finds_its_place(tmp_path):
    """Nothing of pretraining's decoder enters, whose layers have the same names and, here, shapes."""
    pretrained = ACTStudentForPreTraining(make_config(hidden_size=16, detection_dim=16))
    pretrained.save_pretrained(tmp_path)
    model, info = ACTStudentForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    detector = {f"detector.{key}" for key in model.detector.state_dict()}
    assert info["missing_keys"] == detector and not info["mismatched_keys"]
    for key, value in model.student.state_dict().items():
        assert torch.equal(pretrained.student.state_dict()[key], value), key
    assert model.detector.position_embedding.frequencies.std() > 0.5  # drawn, not unset memory
    assert model.detector.norm.weight.eq(1).all()


@pytest.mark.parametrize("bins", [1, 4])
def test_gradients_reach_every_parameter(bins):
    model = make_model(num_angle_bins=bins).eval()
    model(**make_inputs()).loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


def test_scenes_do_not_mix():
    model, inputs = make_model().eval(), make_inputs()
    both = model(**inputs)
    singles = [model(inputs["points"][place : place + 1]) for place in (0, 1)]
    for name in ("logits", "boxes"):
        joined = torch.cat([single[name] for single in singles])
        torch.testing.assert_close(joined, both[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 2])
def test_scenes_without_boxes_train(count):
    """All queries learn that there is no object; the box heads get a gradient of zero, as several processes need."""
    model = make_model(num_angle_bins=4)
    boxes, labels = torch.zeros(2, count, 7), torch.full((2, count), -1)
    output = model(torch.randn(2, 64, 3), boxes, labels)
    output.loss.backward()
    assert output.losses["center"] == output.losses["giou"] == 0 < output.losses["class"]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradient_checkpointing_changes_nothing():
    model, inputs = make_model(detection_dropout=0.0).train(), make_inputs()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key in gradients[0]:
        torch.testing.assert_close(gradients[1][key], gradients[0][key], rtol=1e-4, atol=1e-6)


def test_bf16_autocast_stays_close_to_fp32():
    model, inputs = make_model(num_angle_bins=4).eval(), make_inputs()
    expected = model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
    assert output.boxes.dtype == output.logits.dtype == torch.float32
    torch.testing.assert_close(output.boxes[..., :6], expected.boxes[..., :6], rtol=0, atol=0.05)
    assert abs(output.loss / expected.loss - 1) < 0.05
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_moved_scene_has_moved_boxes():
    """The decoder knows places as shares of the scene, so only the student can tell."""
    model, points = make_model().eval(), torch.rand(2, 64, 3)
    before = model.student(points)
    low, extents = points.amin(1, keepdim=True), points.amax(1, keepdim=True) - points.amin(1, keepdim=True)
    arguments = before.last_hidden_state, before.centers, low, extents, 10
    shift = torch.tensor([3.0, -2.0, 1.0])
    _, boxes, _ = model.detector(*arguments)
    _, moved, _ = model.detector(arguments[0], before.centers + shift, low + shift, extents, 10)
    torch.testing.assert_close(moved[..., :3], boxes[..., :3] + shift, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved[..., 3:], boxes[..., 3:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_queries": 17}, "`num_queries` must not exceed `num_groups`.*17 and 16"),
        ({"num_angle_bins": 0}, "num_angle_bins.*must be a positive integer, got 0"),
        ({"detection_dim": 18, "detection_num_attention_heads": 4}, "`detection_dim` must be divisible by twice"),
        ({"detection_dropout": 1.0}, "detection_dropout.*smaller than 1, got 1.0"),
    ],
)
def test_bad_configurations_are_refused(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=f"(?s){message}"):
        make_model(**fields)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"boxes": torch.zeros(2, 3, 6)}, r"`boxes` must be floating-point of shape \(2, max boxes, 7\)"),
        ({"boxes": torch.zeros(3, 3, 7)}, r"of shape \(2, max boxes, 7\), got torch.float32 of shape \(3, 3, 7\)"),
        ({"box_labels": None}, r"`box_labels` must be integers of shape \(2, 3\), got none"),
        ({"box_labels": LABELS.float()}, "`box_labels` must be integers of shape"),
        ({"box_labels": LABELS[:, :2]}, r"`box_labels` must be integers of shape \(2, 3\), got torch.int64 of shape"),
        ({"box_labels": LABELS + 1}, "`box_labels` must be below 5, got 5"),
    ],
)
def test_bad_targets_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**(make_inputs() | wrong))


def test_the_default_decoder_is_that_of_3detr():
    config = ACTStudentConfig()
    assert (config.num_queries, config.detection_dim, config.detection_num_hidden_layers) == (256, 256, 8)


# Matching and losses -------------------------------------------------------------------------------------------------


def test_the_match_costs_least():
    """Against all assignments of five queries to the boxes of two scenes, in two layers."""
    logits, boxes, _ = random_predictions()
    true_boxes, labels = make_inputs()["boxes"], LABELS
    found = {}
    for layer, scene, query, target in zip(*(part.tolist() for part in match(logits, boxes, true_boxes, labels))):  # noqa: B905
        found.setdefault((layer, scene), []).append((query, target))
    for layer, scene in itertools.product(range(2), range(2)):
        targets = [0, 1, 2] if scene == 0 else [0]
        giou = generalized_box_iou(boxes[layer, scene], true_boxes[scene])
        shares = logits[layer, scene].softmax(-1)

        def cost(pairs, giou=giou, shares=shares, scene=scene):
            return sum(-GIOU_COST * giou[q, t] - CLASS_COST * shares[q, labels[scene, t]] for q, t in pairs).item()

        all_pairs = [list(zip(queries, targets)) for queries in itertools.permutations(range(5), len(targets))]  # noqa: B905
        assert cost(found[layer, scene]) == pytest.approx(min(map(cost, all_pairs)))
        assert sorted(target for _, target in found[layer, scene]) == targets


def test_more_boxes_than_queries():
    logits, boxes, _ = random_predictions(queries=2)
    layer, scene, query, target = match(logits, boxes, make_inputs()["boxes"], LABELS)
    assert layer.tolist() == [0, 0, 0, 1, 1, 1] and scene.tolist() == [0, 0, 1, 0, 0, 1]
    losses = detection_losses(logits, boxes, None, make_inputs()["boxes"], LABELS, torch.ones(2, 1, 3))
    assert all(part.shape == (2,) for part in losses.values())


def test_losses_against_a_loop():
    logits, boxes, _ = random_predictions()
    true_boxes, extents = make_inputs()["boxes"], torch.rand(2, 1, 3) + 1
    losses = detection_losses(logits, boxes, None, true_boxes, LABELS, extents)
    pairs = [part.tolist() for part in match(logits, boxes, true_boxes, LABELS)]
    for layer in range(2):
        expected, wanted = dict.fromkeys(("center", "size", "giou"), 0.0), torch.full((2, 5), 5)
        for at, scene, query, target in zip(*pairs, strict=True):
            if at != layer:
                continue
            found, true = boxes[layer, scene, query], true_boxes[scene, target]
            wanted[scene, query] = LABELS[scene, target]
            expected["center"] += 5 * ((found[:3] - true[:3]).abs() / extents[scene, 0]).sum().item() / 4
            expected["size"] += ((found[3:6] - true[3:6]).abs() / extents[scene, 0]).sum().item() / 4
            expected["giou"] += (1 - generalized_box_iou(found[None], true[None])).item() / 4
        weights = torch.tensor([1.0] * 5 + [NO_OBJECT_WEIGHT])
        expected["class"] = torch.nn.functional.cross_entropy(
            logits[layer].flatten(0, 1), wanted.flatten(), weights
        ).item()
        assert {name: part[layer].item() for name, part in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_a_perfect_prediction_loses_nothing_on_boxes():
    true_boxes = make_inputs()["boxes"]
    logits = torch.full((1, 2, 3, 6), -20.0)
    logits[0, torch.arange(2).repeat_interleave(3), torch.arange(3).repeat(2), torch.tensor([1, 4, 0, 2, 5, 5])] = 20.0
    losses = detection_losses(logits, true_boxes[None], None, true_boxes, LABELS, torch.ones(2, 1, 3))
    assert all(part.item() == pytest.approx(0, abs=1e-5) for part in losses.values())


@pytest.mark.parametrize("bins", [2, 5, 12])
def test_angles_are_read_as_they_are_learned(bins):
    true = torch.tensor([0.0, 0.3, math.pi / bins - 1e-3, math.pi / bins + 1e-3, math.pi, -0.4, 7.0])
    part = (true * bins / (2 * math.pi)).round()
    offset = true * bins / math.pi - 2 * part
    scores = 10 * torch.nn.functional.one_hot(part.long() % bins, bins).float()
    angles = torch.stack([scores, offset[:, None].expand(-1, bins)], dim=1)
    read = decode_angles(angles)[:, 0]
    torch.testing.assert_close(read.cos(), true.cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(read.sin(), true.sin(), rtol=0, atol=1e-5)
    losses = angle_losses(angles, true)
    assert losses["angle"].max() < 1e-9 and losses["angle_class"].max() < 1e-2


def test_one_scene_is_learned_by_heart():
    """Boxes, classes and angles at once: what is trained is what is read out."""
    shallow = {"num_hidden_layers": 1, "detection_num_hidden_layers": 1, "segmentation_layers": [1]}
    model = make_model(num_angle_bins=4, detection_dropout=0.0, **shallow).train()
    boxes = torch.tensor([[[0.5, 0, 0, 1, 2, 1, 0.4], [-1, -1, 0, 1, 1, 0.5, 1.5], [0, 1, 1, 0.5, 0.6, 1, -1]]])
    points = torch.randn(1, 64, 3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(points, boxes, LABELS[:1]).loss.backward()
        optimizer.step()
    found = model.post_process(model(points))[0]
    overlap = box_iou(found["boxes"][:3], boxes[0])
    assert overlap.max(1).values.min() > 0.5 and sorted(overlap.argmax(1).tolist()) == [0, 1, 2]
    assert found["labels"][:3].tolist() == LABELS[0, overlap.argmax(1)].tolist()


# What is read out ----------------------------------------------------------------------------------------------------


def output_of(shares, boxes):
    return ACTDetectionOutput(logits=torch.tensor([shares]).log(), boxes=torch.tensor([boxes]))


def cube(x):
    return [x, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]


def test_post_processing():
    """Three queries at one place, of two classes, one apart that holds nothing, and one that is hardly an object."""
    shares = [[0.6, 0.1, 0.3], [0.5, 0.1, 0.4], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.02, 0.01, 0.97]]
    output = output_of(shares, [cube(0), cube(0.1), cube(0), cube(9), cube(5)])
    model = ACTStudentForObjectDetection(make_config(num_labels=2))
    points = torch.zeros(1, 6, 3)

    found = model.post_process(output)[0]
    assert found["labels"].tolist() == [0, 1, 0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.8 * 0.9, 0.7 * 0.9, 0.6 * 0.7]))
    assert found["boxes"][:, 0].tolist() == [9, 0, 0]
    assert model.post_process(output, points)[0]["boxes"][:, 0].tolist() == [0, 0]  # nothing lies in the one at 9
    assert len(model.post_process(output, nms_iou=None)[0]["scores"]) == 4
    assert len(model.post_process(output, nms_iou=None, threshold=0.02)[0]["scores"]) == 5

    found = model.post_process(output, points, every_class=True)[0]
    assert found["labels"].tolist() == [1, 0, 0, 1]
    torch.testing.assert_close(found["scores"], torch.tensor([0.7 * 0.9, 0.6 * 0.7, 0.2 * 0.9, 0.1 * 0.7]))
