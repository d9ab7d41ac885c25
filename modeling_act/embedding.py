"""From clouds as a user has them to a student's features: of whole clouds, any number of them, and of every point.

What `ACTStudent.encode`, `encode_points` and `similarity` do; used as well by the pipelines and the command line.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers.utils import logging

from .errors import InputError
from .point_ops import interpolate, interpolation_weights
from .processing_act import ACTPointCloudProcessor, is_one_cloud, naming

logger = logging.get_logger(__name__)

POINTS_AT_A_TIME = 2**15  # of one cloud, while features are carried to its points
PROCESSOR_FILE = "preprocessor_config.json"


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
    name, revision = model.name_or_path, getattr(model.config, "_commit_hash", None)
    if name:
        if os.path.isdir(name):
            found = os.path.isfile(os.path.join(name, PROCESSOR_FILE))
        else:
            found = _is_on_hub(name, revision)
        if found:
            return ACTPointCloudProcessor.from_pretrained(name, revision=revision or "main")
        logger.warning(
            f"{name} has no {PROCESSOR_FILE}: 16 random points a group are taken of each cloud, in the unit sphere"
        )
    return ACTPointCloudProcessor(max(16 * model.config.num_groups, model.config.group_size))


def _is_on_hub(name: str, revision: str | None) -> bool:
    try:
        hf_hub_download(name, PROCESSOR_FILE, revision=revision)
    except LocalEntryNotFoundError as error:
        raise InputError(f"{name}: its {PROCESSOR_FILE} is not in the cache, and the Hub cannot be asked") from error
    except EntryNotFoundError:
        return False
    return True


class _Clouds(Dataset):
    """Rows are (place, points or None, problem or None), read where the DataLoader wants them read."""

    def __init__(self, inputs: Any, take: Callable[[Any, str], Tensor], skip_bad: bool):
        self.inputs, self.take, self.skip_bad = inputs, take, skip_bad

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, place: int) -> tuple[int, Tensor | None, str | None]:
        return self.read(place, self.inputs[place])

    def read(self, place: int, cloud: Any) -> tuple[int, Tensor | None, str | None]:
        try:
            return place, self.take(cloud, naming(cloud, place)), None
        except InputError as error:
            # Raised where all is put together again: an error of a worker process comes with its whole trace.
            return place, None, str(error)


class _StreamOfClouds(IterableDataset):
    def __init__(self, clouds: _Clouds):
        self.clouds = clouds

    def __iter__(self) -> Iterator[tuple[int, Tensor | None, str | None]]:
        for place, cloud in enumerate(self.clouds.inputs):
            yield self.clouds.read(place, cloud)


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

    def take(cloud: Any, name: str) -> Tensor:
        return processor.take(cloud, seed, up_axis, unit, name).points

    clouds = _Clouds(inputs, take, skip_bad)
    if not hasattr(inputs, "__getitem__") or not hasattr(inputs, "__len__"):
        if num_workers:
            raise ValueError("`num_workers` needs a list of clouds, not an iterator, which only one process can read")
        clouds = _StreamOfClouds(clouds)
    loader = DataLoader(clouds, batch_size, collate_fn=list, num_workers=num_workers)
    training, home = model.training, next(model.parameters()).device
    model.eval()
    if device is not None:
        model.to(device)
    bar = logging.tqdm(
        total=len(inputs) if isinstance(clouds, _Clouds) else None, unit="cloud", disable=not show_progress
    )
    try:
        for batch in loader:
            problems = {place: problem for place, _, problem in batch if problem is not None}
            if problems and not skip_bad:
                raise InputError(next(iter(problems.values())))
            kept = [(place, points) for place, points, problem in batch if problem is None]
            if kept or problems:
                yield Encoded([place for place, _ in kept], _read_batch(model, read, kept), problems)
            bar.update(len(batch))
    finally:
        bar.close()
        model.train(training)
        if device is not None:
            model.to(home)


@torch.inference_mode()
def _read_batch(model: nn.Module, read: Callable[[Tensor], Tensor], kept: list[tuple[int, Tensor]]) -> Tensor:
    if not kept:
        return torch.empty(0)
    points = torch.stack([points for _, points in kept]).to(next(model.parameters()).device)
    return read(points).float().cpu()


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


@torch.inference_mode()
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
    training, device = student.training, next(student.parameters()).device
    output = student.eval()(taken.points.unsqueeze(0).to(device), read_layers=layers)
    student.train(training)
    states = [student.norm(state)[:, -output.centers.shape[1] :] for state in output.layer_states]
    tokens = torch.cat(states, dim=-1)  # (1, groups, layers * hidden_size)
    parts = taken.place(points).split(POINTS_AT_A_TIME)
    return torch.cat([_carry(tokens, output.centers, part.to(device)) for part in parts])


def _carry(tokens: Tensor, centers: Tensor, points: Tensor) -> Tensor:
    """Token features (1, groups, width) at points (n, 3) -> (n, width), on the CPU."""
    weights, indices = interpolation_weights(points.unsqueeze(0), centers)
    return interpolate(tokens.float(), weights, indices)[0].cpu()


__all__ = ["encode", "encode_points", "processor_of", "run_on_clouds", "similarity"]
