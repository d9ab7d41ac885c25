"""Inference on clouds as users have them: vectors of any number of clouds, and features of every point of one.

`ACTStudent.encode`, `encode_points` and `similarity` call it, as do the pipelines and the command line.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers.utils import FEATURE_EXTRACTOR_NAME, cached_file, logging

from .errors import InputError
from .point_ops import interpolate, interpolation_weights
from .processing_act import ACTPointCloudProcessor, is_one_cloud, naming

logger = logging.get_logger(__name__)

POINTS_AT_A_TIME = 2**15  # of one cloud, when features are interpolated to its points


class Encoded(NamedTuple):
    """Output of a model for a batch of clouds: their places among the inputs, the values of each, and the errors of
    clouds that could not be read."""

    places: list[int]
    values: Tensor
    problems: dict[int, str]


def processor_of(model: nn.Module) -> ACTPointCloudProcessor:
    """Load the processor saved beside a model's weights; without one, create one that fits the model's sizes."""
    if getattr(model, "_processor", None) is None:
        model._processor = _load_processor(model)
    return model._processor


def _load_processor(model: nn.Module) -> ACTPointCloudProcessor:
    name = model.name_or_path
    if name:
        hub_arguments = getattr(model, "_hub_arguments", {})  # of `from_pretrained`: token, cache, revision, ...
        if cached_file(name, FEATURE_EXTRACTOR_NAME, _raise_exceptions_for_missing_entries=False, **hub_arguments):
            return ACTPointCloudProcessor.from_pretrained(name, **hub_arguments)
        logger.warning(
            f"{name} has no {FEATURE_EXTRACTOR_NAME}: 16 random points a group are taken of each cloud, in the unit "
            "sphere"
        )
    return ACTPointCloudProcessor(max(16 * model.config.num_groups, model.config.group_size))


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, and afterwards restore the mode of each of its modules."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's inputs, which weights that accelerate has offloaded are not on."""
    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return next(model.parameters()).device if device is None else torch.device(device)


Row = tuple[int, Tensor | None, str | None]  # place of a cloud, and its points or the error


class _Clouds(Dataset):
    """Data set of clouds that the DataLoader reads, perhaps in a process that shares nothing with this one."""

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
            # Raised in the main process: an error of a worker process comes with its whole trace.
            return place, None, str(error)


class _StreamOfClouds(IterableDataset):
    def __init__(self, clouds: _Clouds):
        self.clouds = clouds

    def __iter__(self) -> Iterator[Row]:
        for place, cloud in enumerate(self.clouds.inputs):
            yield self.clouds.read(place, cloud)


def _collate(rows: list[Row]) -> tuple[list[int], Tensor | None, dict[int, str]]:
    """Join rows: places and points (clouds, num_points, 3) of the clouds that were read, and the errors of others. One
    tensor a batch, as each takes a file descriptor on its way out of a worker."""
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
    """Yield `read(points)` for any number of clouds, in order, a batch at a time; memory does not grow with them.

    `read` gets points (clouds, num_points, 3) on the model's device, in inference mode, the model in eval mode.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(
            f"`batch_size` must be positive and `num_workers` not negative, got {batch_size, num_workers}"
        )
    processor = processor or processor_of(model)
    min_points = max(model.config.num_groups, model.config.group_size)
    if processor.num_points < min_points:
        raise InputError(
            f"the processor takes {processor.num_points} points of a cloud, and the model's groups need {min_points}"
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
    """Move the model to a device, and afterwards back."""
    if device is None:
        yield
        return
    previous = next(model.parameters()).device
    try:
        model.to(device)
        yield
    finally:
        model.to(previous)


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
    """Compute cosines (n, m) of vectors (n, width) and (m, width); a single vector drops its dimension."""
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
    **options,
) -> Tensor:
    """See `ACTStudent.encode_points`."""
    depth = student.config.num_hidden_layers
    layers = [depth] if layers is None else layers
    if not layers or not all(1 <= layer <= depth for layer in layers):
        raise ValueError(f"`layers` must name layers from 1 to {depth}, got {layers}")
    processor = processor or processor_of(student)
    points = processor.read(cloud, seed, **options)
    taken = processor.take(points, seed)
    device = device_of(student)
    with in_eval_mode(student):
        output = student(taken.points.unsqueeze(0).to(device), read_layers=layers)
        states = [student.norm(state)[:, -output.centers.shape[1] :] for state in output.layer_states]
    tokens = torch.cat(states, dim=-1)  # (1, groups, layers * hidden_size)
    parts = taken.place(points).split(POINTS_AT_A_TIME)
    return torch.cat([_interpolate(tokens, output.centers, part.to(device)) for part in parts])


def _interpolate(tokens: Tensor, centers: Tensor, points: Tensor) -> Tensor:
    """Interpolate token features (1, groups, width) at points (n, 3) -> (n, width), on the CPU."""
    weights, indices = interpolation_weights(points.unsqueeze(0), centers)
    return interpolate(tokens.float(), weights, indices)[0].cpu()


__all__ = ["device_of", "encode", "encode_points", "in_eval_mode", "processor_of", "run_on_clouds", "similarity"]
