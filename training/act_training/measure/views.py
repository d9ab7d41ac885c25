"""What a finished classifier makes of different views of the same clouds: as they are, at random, corrupted; how fast.

A view turns a batch as it was read into points (batch, points, 3). Used by evaluate.py.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from act_training.data.batches import VALIDATION_EPOCH, read_batch
from act_training.data.keyed_random import Sampling, augment, sample_points
from act_training.measure.corruptions import CORRUPTIONS, corrupt
from modeling_act.processing_act import to_unit_sphere

View = Callable[[dict[str, Tensor]], Tensor]


@torch.no_grad()
def predict_logits(model: PreTrainedModel, point_set, batch_size: int, views: Sequence[View]) -> Tensor:
    """Logits (rows, num_labels), the mean over views of the same cloud."""
    found = []
    for start in range(0, len(point_set), batch_size):
        batch = read_rows(point_set, range(start, min(start + batch_size, len(point_set))), model.device)
        found.append(torch.stack([model(view(batch)).logits.float() for view in views]).mean(0).cpu())
    return torch.cat(found)


def read_rows(point_set, rows: range, device: torch.device) -> dict[str, Tensor]:
    batch = read_batch(point_set, [(VALIDATION_EPOCH, row) for row in rows])
    return {name: value.to(device) for name, value in batch.items()}


def plain_view(sampling: Sampling) -> View:
    """As in validation."""
    return lambda batch: sample_points(batch, sampling)["points"]


def voting_views(sampling: Sampling, count: int) -> list[View]:
    """Random subsets of the clouds, scaled and shifted, as in training."""

    def view(batch: dict[str, Tensor], number: int) -> Tensor:
        keys = torch.stack([torch.full_like(batch["keys"][:, 0], number), batch["keys"][:, 1]], dim=1)
        points = sample_points(batch | {"keys": keys}, sampling, training=True)["points"]
        return augment(points, keys, sampling.seed, ("scale_shift",))

    return [partial(view, number=number) for number in range(count)]


def corrupted_view(sampling: Sampling, name: str, strength: float, up_axis: str) -> View:
    """What a sensor would have delivered: corrupted first, then put into the unit sphere."""

    def view(batch: dict[str, Tensor]) -> Tensor:
        points = plain_view(sampling)(batch)
        points = corrupt(points, batch["keys"], name, strength, sampling.seed, up_axis)
        return to_unit_sphere(points) if sampling.normalize is True else points

    return view


def measure_robustness(measure: Callable[[View], dict], sampling: Sampling, up_axis: str) -> list[dict]:
    """What `measure` gives for each corruption at each of its strengths, and for none first."""
    found = [{"corruption": "none", "strength": 0.0, **measure(plain_view(sampling))}]
    settings = [(name, strength) for name, strengths in CORRUPTIONS.items() for strength in strengths]
    for name, strength in tqdm(settings, desc="robustness", leave=False):
        view = corrupted_view(sampling, name, strength, up_axis)
        found.append({"corruption": name, "strength": strength, **measure(view)})
    return found


@torch.no_grad()
def measure_latency(model: PreTrainedModel, points: Tensor, batch_sizes: list[int], repeats: int = 30) -> list[dict]:
    """Milliseconds from points (clouds, points, 3) on the device to logits there: median, and a tenth and nine tenths
    of the times."""
    found = []
    for batch_size in batch_sizes:
        batch, seconds = points[torch.arange(batch_size) % len(points)], []
        for _ in range(3 + repeats):
            began = time.perf_counter()
            model(batch).logits.sum().item()  # waits for the device
            seconds.append(time.perf_counter() - began)
        low, median, high = 1000 * np.percentile(seconds[3:], (10, 50, 90))  # after a warm-up
        found.append(
            {
                "batch_size": batch_size, "milliseconds": median, "tenth": low, "nine_tenths": high,
                "clouds_per_second": 1000 * batch_size / median, "device": _describe(points.device),
            }
        )  # fmt: skip
    return found


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
