"""Segmentation for `segment.py`: categories and their parts, rooms made of blocks, predictions for every point."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from act_training.data.point_sets import PointSet
from act_training.data.schema import IGNORED, place_of_block
from act_training.measure.metrics import confusion_matrix, iou_table, part_iou, part_metrics, segmentation_metrics
from act_training.run.run_data import class_names, hold_out_any, hold_out_by_class
from act_training.run.training_run import TrainingRun
from modeling_act.errors import InputError
from modeling_act.inference import predict_points, predict_scene
from modeling_act.processing_act import ACTPointCloudProcessor


def category_column(point_set: PointSet) -> str:
    """Return the column with the object category of a cloud: `category`, or else the label of the cloud."""
    for column in ("category", "label"):
        if column in point_set.columns:
            return column
    names = f"its columns are {', '.join(point_set.dataset.column_names)}"
    raise InputError(f"{point_set.source} has no category; {names}. For objects of one kind use --task points")


def parts_of_categories(point_sets: list[PointSet]) -> tuple[list[str], list[list[int]]]:
    """Return the names of the categories, and the part labels that occur in each of them in any split."""
    column = category_column(point_sets[0])
    names = class_names(column, *point_sets)
    parts = [set() for _ in names]
    for point_set in point_sets:
        for rows, columns in point_set.iterate_columns():
            values, counts = columns["point_labels"]
            for row, kind, labels in zip(rows, columns[column], np.split(values, counts.cumsum()[:-1]), strict=True):
                if not 0 <= kind < len(names):
                    raise InputError(f"{point_set.where(row)}: category {kind}, expected 0 to {len(names) - 1}")
                parts[kind].update(np.unique(labels[labels != IGNORED]).tolist())
    return names, list(map(sorted, parts))


def hold_out_scenes(point_set: PointSet, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out whole rooms: blocks of one room are too similar to be on both sides."""
    scenes = np.array([scene for scene, _ in places_of(point_set)])
    rooms = np.unique(scenes)
    if len(rooms) < 2:
        raise InputError(f"{point_set.source} holds one room, which cannot be cut into train and validation")
    count = min(len(rooms) - 1, max(1, round(share * len(rooms))))
    held_out = np.isin(scenes, np.random.default_rng([seed, 8]).permutation(rooms)[:count])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def hold_out_by_category(point_set: PointSet, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return (hold_out_by_class if "label" in point_set.columns else hold_out_any)(point_set, share, seed)


def places_of(point_set: PointSet) -> list[tuple[str, np.ndarray]]:
    """Return the room of each row, and the position of the row's block in it."""
    places = [place_of_block(name) for name in point_set.row_names()]
    if None in places:
        row = point_set.where(places.index(None))
        raise InputError(f"{row} is no block of a room, named ROOM/X_Y. For single clouds use --task points")
    return places


def class_weights_of(point_set: PointSet, num_classes: int) -> Tensor:
    """Weights (num_classes,): the cube root of how much rarer each class is than the most frequent one."""
    counts = np.zeros(num_classes)
    for _, columns in point_set.iterate_columns():
        labels, _ = columns["point_labels"]
        counts += np.bincount(labels[labels != IGNORED], minlength=num_classes)
    return torch.from_numpy(np.cbrt(counts.max() / counts.clip(1))).float()


class SegmentationMetrics:
    """Loss, confusion matrix and part IoUs, added up over clouds and processes."""

    def __init__(self, names: list[str], ignored: list[int], parts: list[list[int]] | None):
        self.names, self.ignored, self.parts = names, ignored, parts
        self.confusion = np.zeros((len(names), len(names)), dtype=np.int64)
        self.objects: list[tuple[float, int]] = []  # IoU and category of each
        self.losses: list[float] = []  # mean cross-entropy of each cloud

    def add(self, labels: np.ndarray, logits: Tensor, category: int | None) -> None:
        """Add a cloud with labels (points,) and logits (points, classes). Of an object, only the parts of its category
        are predicted. Clouds without any label do not count."""
        if (labels == IGNORED).all():
            return
        target = torch.from_numpy(labels.astype(np.int64))
        self.losses.append(torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORED).item())
        if self.parts is None:
            predicted = logits.argmax(-1).numpy()
        else:
            parts = self.parts[category]
            predicted = np.array(parts)[logits[:, parts].argmax(-1).numpy()]
            self.objects.append((part_iou(labels, predicted, parts), category))
        self.confusion += confusion_matrix(labels, predicted, len(self.names))

    def compute(self) -> tuple[dict[str, float], list[dict]]:
        """Return metrics over all processes, and a table of the classes."""
        confusion, objects = sum(gather_object([self.confusion])), gather_object(self.objects)
        losses = gather_object(self.losses)
        metrics, loss = segmentation_metrics(confusion, self.ignored), math.fsum(losses) / max(len(losses), 1)
        if self.parts is not None:
            ious, categories = zip(*objects, strict=True)
            metrics = part_metrics(np.array(ious), categories) | {"accuracy": metrics["accuracy"]}
        return {"loss": loss} | metrics, iou_table(confusion, self.names, self.ignored)


def extra_inputs(batch: dict[str, Tensor], column: str | None) -> dict[str, Tensor]:
    """Inputs of a model besides the points; `column` is that of the category."""
    return {} if column is None else {"category": batch[column]}


@torch.no_grad()
def evaluate_samples(
    run: TrainingRun, model: torch.nn.Module, metrics: SegmentationMetrics, column: str | None, point_set=None
) -> None:
    """Evaluate one sample of each cloud, as in training."""
    model.eval()
    for batch in run.validation_batches(point_set):
        with run.autocast():
            logits = model(batch["points"], **extra_inputs(batch, column)).logits.float().cpu()
        kinds = batch[column].tolist() if column else [None] * len(logits)
        for labels, row, kind in zip(batch["point_labels"].cpu().numpy(), logits, kinds, strict=True):
            metrics.add(labels, row, kind)
    model.train()


def evaluate_all_points(
    run: TrainingRun, model: torch.nn.Module, metrics: SegmentationMetrics, column: str | None, rooms: bool
) -> None:
    """Evaluate every point of the test split, `--votes` times; of `rooms` put together from blocks, or of clouds."""
    options, accelerator, sampling = run.options, run.accelerator, run.data.sampling
    common = {"votes": options.votes, "batch_size": options.per_device_eval_batch_size, "seed": options.seed}
    common["processor"] = ACTPointCloudProcessor(sampling.num_points, sampling.method, sampling.normalize)
    whole = rooms_of(run.data.test) if rooms else clouds_of(run.data.test, column)
    share = itertools.islice(whole, accelerator.process_index, None, accelerator.num_processes)
    for points, labels, kind in share:
        with run.autocast():
            if rooms:
                logits = predict_scene(model, points, stride=options.stride, **common)
            else:
                logits = predict_points(model, points, category=kind, **common)
        metrics.add(labels, logits, kind)


def clouds_of(point_set: PointSet, column: str | None) -> Iterator[tuple[Tensor, np.ndarray, int | None]]:
    """Yield points (points, 3), labels (points,) and category of each row."""
    for row in range(len(point_set)):
        columns = point_set.read([row])
        kind = None if column is None else int(columns[column][0])
        yield torch.from_numpy(columns["points"][0].copy()), columns["point_labels"][0], kind


def rooms_of(point_set: PointSet) -> Iterator[tuple[Tensor, np.ndarray, None]]:
    """Yield the same for each room, with its blocks where they were."""
    scenes, origins = map(np.array, zip(*places_of(point_set), strict=True))
    for scene in dict.fromkeys(scenes.tolist()):
        rows = np.flatnonzero(scenes == scene)
        columns = point_set.read(rows)
        values, counts = columns["points"]
        offsets = np.repeat(origins[rows], counts, axis=0)
        yield torch.from_numpy(values + offsets), columns["point_labels"][0], None
