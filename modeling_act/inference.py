"""From clouds as a user has them to a student's features: of whole clouds, any number of them, and of every point.

What `ACTStudent.encode`, `encode_points` and `similarity` do; used as well by the pipelines and the command line.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers.utils import logging

from .errors import InputError
from .point_ops import interpolate, interpolation_weights
from .processing_act import ACTPointCloudProcessor, is_one_cloud, naming
from .safe_loading import PROCESSOR_FILE, find_processor

logger = logging.get_logger(__name__)

POINTS_AT_A_TIME = 2**15  # of one cloud, while features are carried to its points


class Encoded(NamedTuple):
    """Clouds that went through a model together: their places among the inputs, what the model made of each, and why
    others of them could not be read."""

    places: list[int]
    values: Tensor
    problems: dict[int, str]


def processor_of(model: nn.Module) -> ACTPointCloudProcessor:
    """The processor that lies beside a model's weights; for a model that comes from nowhere, one of its sizes."""
    processor = getattr(model, "_processor", None)
    if processor is None:
        model._processor = processor = _load_processor(model)
    return processor


def _load_processor(model: nn.Module) -> ACTPointCloudProcessor:
    name = model.name_or_path
    if name:
        if not hasattr(model, "_processor_file"):  # `from_pretrained` could not tell
            model._processor_file = find_processor(name, {"revision": getattr(model.config, "_commit_hash", None)})
        folder, file = os.path.split(model._processor_file or "")
        if folder and not os.path.isdir(folder):
            raise InputError(f"{folder}: held the model and its processor and is gone; give `processor`")
        if file and os.path.isfile(model._processor_file):
            return ACTPointCloudProcessor.from_pretrained(folder)
        logger.warning(
            f"{name} has no {PROCESSOR_FILE}: 16 random points a group are taken of each cloud, in the unit sphere"
        )
    return ACTPointCloudProcessor(max(16 * model.config.num_groups, model.config.group_size))


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and afterwards each of its modules in the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its points; weights that accelerate has laid aside are elsewhere."""
    taken = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return next(model.parameters()).device if taken is None else torch.device(taken)


Row = tuple[int, Tensor | None, str | None]  # place of a cloud, and its points or why there are none


class _Clouds(Dataset):
    """Read where the DataLoader wants them read, which may be a process that shares nothing with this one."""

    def __init__(self, inputs: Any, take: Callable[..., Any], skip_bad: bool):
        self.inputs, self.take, self.skip_bad = inputs, take, skip_bad

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, place: int) -> Row:
        return self.read(place, self.inputs[place])

    def read(self, place: int, cloud: Any) -> Row:
        try:
            return place, self.take(cloud, name=naming(cloud, place)).points, None
        except InputError as error:
            # Raised where all is put together again: an error of a worker process comes with its whole trace.
            return place, None, str(error)


class _StreamOfClouds(IterableDataset):
    def __init__(self, clouds: _Clouds):
        self.clouds = clouds

    def __iter__(self) -> Iterator[Row]:
        for place, cloud in enumerate(self.clouds.inputs):
            yield self.clouds.read(place, cloud)


def _collate(rows: list[Row]) -> tuple[list[int], Tensor | None, dict[int, str]]:
    """Places and points (clouds, num_points, 3) of clouds that could be read, and the problems of others. Of one
    tensor: each takes a file descriptor on its way out of a worker."""
    good = [(place, points) for place, points, _ in rows if points is not None]
    problems = {place: problem for place, _, problem in rows if problem is not None}
    return [place for place, _ in good], torch.stack([points for _, points in good]) if good else None, problems


def run_on_clouds(
    model: nn.Module,
    inputs: Iterable,
    read: Callable[[Tensor], Tensor],
    processor: ACTPointCloudProcessor | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    show_progress: bool = False,
    num_workers: int = 0,
    seed: int = 0,
    up_axis: str | None = None,
    unit: str | None = None,
    skip_bad: bool = False,
) -> Iterator[Encoded]:
    """`read(points)` of each of any number of clouds, in order, a batch at a time; memory does not grow with them.

    `read` gets points (clouds, num_points, 3) on the model's device, in inference mode, the model in eval mode.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(
            f"`batch_size` must be positive and `num_workers` not negative, got {batch_size, num_workers}"
        )
    processor = processor or processor_of(model)
    fewest = max(model.config.num_groups, model.config.group_size)
    if processor.num_points < fewest:
        raise InputError(
            f"the processor takes {processor.num_points} points of a cloud, and the model's groups need {fewest}"
        )

    clouds = _Clouds(inputs, partial(processor.take, seed=seed, up_axis=up_axis, unit=unit), skip_bad)
    if not hasattr(inputs, "__getitem__") or not hasattr(inputs, "__len__"):
        if num_workers:
            raise ValueError("`num_workers` needs a list of clouds, not an iterator, which only one process can read")
        clouds = _StreamOfClouds(clouds)
    # With a generator of its own, the loader leaves torch's random numbers alone.
    loader = DataLoader(clouds, batch_size, collate_fn=_collate, num_workers=num_workers, generator=torch.Generator())
    total = len(inputs) if isinstance(clouds, _Clouds) else None
    with (
        _at(model, device),
        in_eval_mode(model),
        logging.tqdm(total=total, unit="cloud", disable=not show_progress) as bar,
    ):
        for places, points, problems in loader:
            if problems and not skip_bad:
                raise InputError(next(iter(problems.values())))
            yield Encoded(places, torch.empty(0) if points is None else _read_batch(model, read, points), problems)
            bar.update(len(places) + len(problems))


@contextmanager
def _at(model: nn.Module, device: str | torch.device | None) -> Iterator[None]:
    """The model on a device, and afterwards where it was."""
    if device is None:
        yield
        return
    home = next(model.parameters()).device
    try:
        model.to(device)
        yield
    finally:
        model.to(home)


@torch.inference_mode()
def _read_batch(model: nn.Module, read: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    return read(points.to(device_of(model))).float().cpu()


def encode(student: nn.Module, inputs: Any, normalize: bool = True, show_progress: bool = True, **options) -> Tensor:
    """See `ACTStudent.encode`."""
    alone = is_one_cloud(inputs)

    def read(points: Tensor) -> Tensor:
        vectors = student(points).pooler_output
        return nn.functional.normalize(vectors.float(), dim=-1) if normalize else vectors

    batches = run_on_clouds(student, [inputs] if alone else inputs, read, show_progress=show_progress, **options)
    vectors = [torch.zeros(0, 2 * student.config.hidden_size), *(batch.values for batch in batches)]
    vectors = torch.cat([part for part in vectors if part.ndim == 2])
    return vectors[0] if alone else vectors


def similarity(vectors: Tensor, others: Tensor) -> Tensor:
    """Cosines (n, m) of vectors (n, width) and (m, width); of one vector or two a row, a column or a number less."""
    vectors, others = torch.as_tensor(vectors).float(), torch.as_tensor(others).float()
    if vectors.shape[-1:] != others.shape[-1:]:
        raise ValueError(f"vectors must be of one width, got {tuple(vectors.shape)} and {tuple(others.shape)}")
    others = nn.functional.normalize(others, dim=-1)
    return nn.functional.normalize(vectors, dim=-1) @ (others.mT if others.ndim > 1 else others)


@torch.no_grad()  # not inference mode: a head may be trained on these features
def encode_points(
    student: nn.Module,
    cloud: Any,
    layers: list[int] | None = None,
    processor: ACTPointCloudProcessor | None = None,
    seed: int = 0,
    **given,
) -> Tensor:
    """See `ACTStudent.encode_points`."""
    depth = student.config.num_hidden_layers
    layers = [depth] if layers is None else layers
    if not layers or not all(1 <= layer <= depth for layer in layers):
        raise ValueError(f"`layers` must name layers from 1 to {depth}, got {layers}")
    processor = processor or processor_of(student)
    points = processor.read(cloud, seed, **given)
    taken = processor.take(points, seed)
    device = device_of(student)
    with in_eval_mode(student):
        output = student(taken.points.unsqueeze(0).to(device), read_layers=layers)
        states = [student.norm(state)[:, -output.centers.shape[1] :] for state in output.layer_states]
    tokens = torch.cat(states, dim=-1)  # (1, groups, layers * hidden_size)
    parts = taken.place(points).split(POINTS_AT_A_TIME)
    return torch.cat([_carry(tokens, output.centers, part.to(device)) for part in parts])


def _carry(tokens: Tensor, centers: Tensor, points: Tensor) -> Tensor:
    """Token features (1, groups, width) at points (n, 3) -> (n, width), on the CPU."""
    weights, indices = interpolation_weights(points.unsqueeze(0), centers)
    return interpolate(tokens.float(), weights, indices)[0].cpu()


__all__ = ["device_of", "encode", "encode_points", "in_eval_mode", "processor_of", "run_on_clouds", "similarity"]
