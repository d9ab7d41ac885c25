"""Scenes with boxes for `detect.py`: checks before training, augmentation, and predictions."""

import hashlib
import math

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from act_training.data.batches import RandomStream, keyed_uniform
from act_training.data.point_sets import PointSet
from act_training.measure.detection_metrics import detection_metrics
from act_training.run.training_run import TrainingRun
from modeling_act import ACTStudentForObjectDetection
from modeling_act.errors import InputError
from modeling_act.modeling_act_detection import axis_aligned

AUGMENTATIONS = ("flip", "turn", "quarter_turn", "scale")
MAX_TURN = math.radians(5)  # VoteNet's, and 3DETR's, for ScanNet
SCALES = (0.9, 1.1)


def check_boxes(*point_sets: PointSet) -> str:
    """Check that each box has a label, is finite and has no negative size; return a digest of all boxes."""
    digest = hashlib.blake2b(digest_size=8)
    for point_set in point_sets:
        if "boxes" not in point_set.columns:
            columns = ", ".join(point_set.dataset.column_names)
            raise InputError(f"{point_set.source} has no boxes, which are to be learned; its columns are {columns}")
        for rows, columns in point_set.iterate_columns():
            (boxes, counts), (_, labelled) = columns["boxes"], columns["box_labels"]
            for row, count, labels in zip(rows, counts, labelled, strict=True):
                if count != labels:
                    raise InputError(f"{point_set.where(row)}: {count} boxes and {labels} labels of boxes")
            for row, box in zip(np.repeat(rows, counts), boxes, strict=True):
                if not np.isfinite(box).all() or (box[3:6] < 0).any():
                    row = point_set.where(row)
                    raise InputError(f"{row}: a box must be finite and of no negative size, got {box.tolist()}")
            digest.update(np.ascontiguousarray(boxes))
    return digest.hexdigest()


def augment_scenes(batch: dict[str, Tensor], seed: int, augmentation: list[str]) -> dict[str, Tensor]:
    """Augment scenes together with their boxes. `flip`: x and y, each or not; `turn`: by up to 5 degrees about z;
    `quarter_turn`: by any number of right angles; `scale`: by U[0.9, 1.1]."""
    points, boxes, keys = batch["points"], batch["boxes"], batch["keys"]
    for name in augmentation:
        if name == "flip":
            signs = torch.where(keyed_uniform(keys, 2, seed, RandomStream.FLIP) < 0.5, -1.0, 1.0)  # (batch, 2)
            points, boxes = flip(points, boxes, signs)
        elif name == "turn":
            points, boxes = rotate(points, boxes, keyed_uniform(keys, 1, seed, RandomStream.TURN, -MAX_TURN, MAX_TURN))
        elif name == "quarter_turn":
            quarters = keyed_uniform(keys, 1, seed, RandomStream.QUARTER_TURN, 0, 4).floor()
            points, boxes = rotate(points, boxes, quarters * (math.pi / 2))
        elif name == "scale":
            factor = keyed_uniform(keys, 1, seed, RandomStream.RESIZE, *SCALES).unsqueeze(2)
            points, boxes = points * factor, torch.cat([boxes[..., :6] * factor, boxes[..., 6:]], dim=-1)
        else:
            raise InputError(f"--scene_augmentation must be among {', '.join(AUGMENTATIONS)}, got {name!r}")
    return batch | {"points": points, "boxes": boxes}


def flip(points: Tensor, boxes: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply x and y of points (batch, points, 3) and boxes (batch, boxes, 7) by signs (batch, 2)."""
    factors = torch.cat([signs, torch.ones_like(signs[:, :1])], dim=1).unsqueeze(1)
    angles = boxes[..., 6] * signs.prod(1, keepdim=True) + torch.where(signs[:, :1] < 0, math.pi, 0.0)
    return points * factors, torch.cat([boxes[..., :3] * factors, boxes[..., 3:6], angles.unsqueeze(2)], dim=-1)


def rotate(points: Tensor, boxes: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate points (batch, points, 3) and boxes (batch, boxes, 7) about the z axis by angles (batch, 1)."""
    cosine, sine = angles.cos(), angles.sin()

    def rotated(positions: Tensor) -> Tensor:
        x, y, z = positions.unbind(-1)
        return torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-1)

    turned = (boxes[..., 6] + angles).unsqueeze(2)
    return rotated(points), torch.cat([rotated(boxes[..., :3]), boxes[..., 3:6], turned], dim=-1)


def boxes_to_learn(batch: dict[str, Tensor], model: ACTStudentForObjectDetection) -> Tensor:
    """Boxes of a batch, or the axis-aligned ones around them for a model without angles."""
    return axis_aligned(batch["boxes"]) if model.config.num_angle_bins == 1 else batch["boxes"]


@torch.no_grad()
def detect(
    run: TrainingRun, model: ACTStudentForObjectDetection, batch: dict[str, Tensor], every_class: bool
) -> list[dict[str, np.ndarray]]:
    """Detect the boxes of a batch, as scenes for `detection_metrics`, each with the loss of its batch."""
    training = model.training
    model.eval()
    with run.autocast():
        output = model(batch["points"], boxes_to_learn(batch, model), batch["box_labels"])
    model.train(training)
    scenes = model.post_process(output, batch["points"], every_class=every_class)
    for scene, boxes, labels in zip(scenes, boxes_to_learn(batch, model), batch["box_labels"], strict=True):
        scene |= {"true_boxes": boxes[labels >= 0], "true_labels": labels[labels >= 0], "loss": output.loss}
    return [{name: values.cpu().numpy() for name, values in scene.items()} for scene in scenes]


def measure(
    run: TrainingRun, model: ACTStudentForObjectDetection, point_set: PointSet
) -> tuple[dict[str, float], list[dict]]:
    """Loss and `detection_metrics` of a set, in every process, and the table of its classes."""
    scenes = []
    for batch in run.validation_batches(point_set):
        scenes += zip(batch["keys"][:, 1].tolist(), detect(run, model, batch, every_class=True), strict=True)
    scenes = [scene for _, scene in sorted(gather_object(scenes), key=lambda pair: pair[0])]
    metrics, table = detection_metrics(scenes, run.data.class_names)
    return {"loss": float(np.mean([scene["loss"] for scene in scenes]))} | metrics, table
