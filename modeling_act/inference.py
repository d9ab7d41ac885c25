"""Inference on clouds as users have them: vectors of any number of clouds, features and labels of every point.

`ACTStudent.encode`, `encode_points` and `similarity` call it, as do the pipelines and the command line.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers.utils import FEATURE_EXTRACTOR_NAME, cached_file, logging

from .errors import InputError
from .point_ops import interpolate, interpolation_weights
from .processing_act import ACTPointCloudProcessor, is_one_cloud, naming, to_unit_sphere

logger = logging.get_logger(__name__)

POINTS_AT_A_TIME = 2**15  # of one cloud, when features are interpolated to its points


class Encoded(NamedTuple):
    """Output for a batch of clouds: places among the inputs, values of each, and errors of unreadable clouds."""

    places: list[int]
    values: Tensor
    problems: dict[int, str]


def processor_of(model: nn.Module) -> ACTPointCloudProcessor:
    """Load the processor saved beside a model's weights; without one, create one that fits the model's sizes."""
    if getattr(model, "_processor", None) is not None:
        return model._processor
    name = model.name_or_path
    hub = getattr(model, "_hub_arguments", {})  # of `from_pretrained`: token, cache, revision, ...
    if name and cached_file(name, FEATURE_EXTRACTOR_NAME, _raise_exceptions_for_missing_entries=False, **hub):
        model._processor = ACTPointCloudProcessor.from_pretrained(name, **hub)
    else:
        if name:
            logger.warning(f"{name} has no {FEATURE_EXTRACTOR_NAME}: 16 random points a group are taken of a cloud")
        model._processor = ACTPointCloudProcessor(max(16 * model.config.num_groups, model.config.group_size))
    return model._processor


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
    """Return the device of a model's inputs; weights that accelerate has offloaded lie elsewhere."""
    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return next(model.parameters()).device if device is None else torch.device(device)


Row = tuple[int, Tensor | None, str | None]  # place of a cloud, and its selections of points or the error


class _Clouds(Dataset):
    """Data set of clouds that the DataLoader reads, perhaps in a process that shares nothing with this one."""

    def __init__(self, inputs: Any, take: Callable[..., Any]):
        self.inputs, self.take = inputs, take

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, place: int) -> Row:
        return self.read(place, self.inputs[place])

    def read(self, place: int, cloud: Any) -> Row:
        try:
            return place, self.take(cloud, name=naming(cloud, place)), None
        except InputError as error:  # raised in the main process: one of a worker comes with its whole trace
            return place, None, str(error)


class _StreamOfClouds(IterableDataset):
    def __init__(self, clouds: _Clouds):
        self.clouds = clouds

    def __iter__(self) -> Iterator[Row]:
        for place, cloud in enumerate(self.clouds.inputs):
            yield self.clouds.read(place, cloud)


def _collate(rows: list[Row]) -> tuple[list[int], Tensor | None, dict[int, str]]:
    """Join rows: places, points (clouds, samples, num_points, 3), and errors of unreadable clouds. One tensor a batch,
    as each takes a file descriptor on its way out of a worker."""
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
    skip_bad: bool = False,
    samples: int = 1,
    **options,
) -> Iterator[Encoded]:
    """Yield `read(points)` for any number of clouds, in order, a batch at a time; memory does not grow with them.

    `read` gets points (clouds, num_points, 3) on the model's device, in inference mode, the model in eval mode; its
    values are averaged over the `samples` selections of a cloud. `options` are `ACTPointCloudProcessor.take`'s `seed`,
    `up_axis` and `unit`.
    """
    processor = processor or processor_of(model)
    min_points = max(model.config.num_groups, model.config.group_size)
    if (count := processor.num_points) < min_points:
        raise InputError(f"the processor takes {count} points of a cloud, and the model's groups need {min_points}")
    if samples < 1:
        raise InputError(f"`samples` must be at least 1, got {samples}")

    clouds = _Clouds(inputs, partial(processor.take_samples, samples=samples, **options))
    if not hasattr(inputs, "__getitem__") or not hasattr(inputs, "__len__"):
        if num_workers:
            raise ValueError("`num_workers` needs a list of clouds, not an iterator, which only one process can read")
        clouds = _StreamOfClouds(clouds)
    # With a generator of its own, the loader leaves torch's random numbers alone.
    loader = DataLoader(clouds, batch_size, collate_fn=_collate, num_workers=num_workers, generator=torch.Generator())
    total = len(inputs) if isinstance(clouds, _Clouds) else None
    bar = logging.tqdm(total=total, unit="cloud", disable=not show_progress)
    with _at(model, device), in_eval_mode(model), bar:
        for places, points, problems in loader:
            if problems and not skip_bad:
                raise InputError(next(iter(problems.values())))
            values = torch.empty(0)
            if points is not None:
                with torch.inference_mode():
                    values = read(points.flatten(0, 1).to(device_of(model))).float().cpu()
                values = values.unflatten(0, points.shape[:2]).mean(1)
            yield Encoded(places, values, problems)
            bar.update(len(places) + len(problems))


@contextmanager
def _at(model: nn.Module, device: str | torch.device | None) -> Iterator[None]:
    """Move the model to a device, if one is given, and afterwards back."""
    previous = next(model.parameters()).device
    try:
        if device is not None:
            model.to(device)
        yield
    finally:
        if device is not None:
            model.to(previous)


def encode(
    student: nn.Module,
    inputs: Any,
    batch_size: int = 32,
    normalize: bool = True,
    device: str | torch.device | None = None,
    show_progress: bool = True,
    num_workers: int = 0,
    space: str = "student",
    seed: int = 0,
    samples: int | None = None,
    processor: ACTPointCloudProcessor | None = None,
    **options,
) -> Tensor:
    """Encode clouds into vectors, (clouds, width) on the CPU, or one cloud into (width,).

    `inputs` are whatever `ACTPointCloudProcessor` takes, in a list or iterator of any length. With `normalize` the
    vectors have length one. `num_workers` processes read and sample clouds. `space` is that of the student, or of its
    "teacher", which CLIP and SigLIP share with text. Vectors of `samples` selections of a cloud's points are averaged,
    by default as many as the processor says; `seed` decides which. `processor` replaces the one saved beside the
    weights; `options` are the `up_axis` and `unit` of the clouds.
    """
    alone, width, processor = is_one_cloud(inputs), student.vector_dim(space), processor or processor_of(student)
    options |= {"batch_size": batch_size, "device": device, "show_progress": show_progress, "num_workers": num_workers}
    options |= {"processor": processor, "seed": seed, "samples": processor.samples if samples is None else samples}
    batches = run_on_clouds(student, [inputs] if alone else inputs, partial(student.embed, space=space), **options)
    vectors = torch.cat([torch.zeros(0, width), *(batch.values for batch in batches)])
    vectors = nn.functional.normalize(vectors, dim=-1) if normalize else vectors
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
    """Compute features of every point of one cloud, (points, layers * hidden_size) on the CPU, interpolated from the
    groups; for a mesh, of the 8192 points that `ACTPointCloudProcessor.read` samples. `layers` (1-based) are
    concatenated, by default only the last; `options` are the `up_axis` and `unit` of the cloud."""
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
    features = []
    for part in parts:
        weights, indices = interpolation_weights(part.unsqueeze(0).to(device), output.centers)
        features.append(interpolate(tokens.float(), weights, indices)[0].cpu())
    return torch.cat(features)


@torch.no_grad()
def predict_points(
    model: nn.Module,
    points: Tensor,
    processor: ACTPointCloudProcessor,
    category: int | None = None,
    votes: int = 1,
    batch_size: int = 16,
    seed: int = 0,
) -> Tensor:
    """Predict mean logits (points, num_labels), on the CPU, of each point of a cloud (points, 3).

    A vote splits the points, shuffled, into parts of `processor.num_points`; points of the first part fill the last.
    Memory on the model's device does not grow with the cloud.
    """
    points = _checked(points)
    if processor.normalize == "cloud":
        points = to_unit_sphere(points.unsqueeze(0))[0]
    whole = [(torch.arange(len(points)), points.new_zeros(3))]
    return _mean_logits(model, points, whole, processor, category, votes, batch_size, seed)


@torch.no_grad()
def predict_scene(
    model: nn.Module,
    points: Tensor,
    processor: ACTPointCloudProcessor,
    block_size: float = 1.0,
    stride: float = 0.5,
    votes: int = 1,
    batch_size: int = 16,
    seed: int = 0,
) -> Tensor:
    """Predict mean logits (points, num_labels), on the CPU, of each point of a scene (points, 3), third axis up.

    Square columns of `block_size` slide over the scene, and each point lies in several. As in training, x and y of a
    column count from its middle and z from the scene's lowest point. A column is split as in `predict_points`.
    """
    if not 0 < stride <= block_size:
        raise ValueError(f"`stride` must lie between 0 and `block_size`={block_size}, got {stride}")
    points = _checked(points)
    return _mean_logits(model, points, slide(points, block_size, stride), processor, None, votes, batch_size, seed)


def label_points(
    model: nn.Module,
    points: Tensor,
    processor: ACTPointCloudProcessor,
    category: int | None = None,
    votes: int = 1,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Predict the likeliest label of every point and its probability, both (points,); of a category, among its own
    parts."""
    if (size := processor.block_size) is None:
        logits = predict_points(model, points, processor, category, votes, seed=seed)
    else:
        logits = predict_scene(model, points, processor, size, size / 2, votes, seed=seed)
    if category is not None and model.config.parts_of_category:
        others = torch.ones(logits.shape[1], dtype=torch.bool)
        others[model.config.parts_of_category[category]] = False
        logits[:, others] = -torch.inf
    scores, labels = logits.softmax(1).max(1)
    return labels, scores


def number_of_category(model: nn.Module, category: str | int | None) -> int | None:
    """Find the number of an object category, by name or number; only part segmentation models have categories."""
    config = model.config
    if not hasattr(model, "category_embedding"):
        if category is not None:
            raise InputError(f"`category` {category!r}: this model knows no categories of objects, leave it out")
        return None
    names = config.category_names or [str(number) for number in range(config.num_categories)]
    if category in names:
        return names.index(category)
    if isinstance(category, int) and 0 <= category < len(names):
        return category
    raise InputError(f"`category` must be what the object is, one of {', '.join(names)}, got {category!r}")


def _checked(points: Tensor) -> Tensor:
    points = torch.as_tensor(points)
    if points.ndim != 2 or points.shape[1] < 3 or not len(points):
        raise ValueError(f"`points` must be of shape (points, 3), got {tuple(points.shape)}")
    points = points[:, :3]
    if not points.isfinite().all():
        raise ValueError("`points` must be finite, got NaN or infinite coordinates")
    return points


def slide(points: Tensor, block_size: float, stride: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the point indices and the origin (3,) of each column that holds any; every point is in one at least."""
    low, high = points.amin(0), points.amax(0)
    counts = [max(1, math.ceil((extent - block_size) / stride) + 1) for extent in (high - low)[:2].tolist()]
    by_x = points[:, 0].argsort()
    sorted_x = points[by_x, 0].contiguous()
    for column in _occupied(points[:, 0] - low[0], stride, block_size, counts[0]):
        x = low[0] + column * stride
        first = torch.searchsorted(sorted_x, x)
        # Rounding may put the end of a column before the start of the next one.
        end = torch.maximum(x + block_size, low[0] + (column + 1) * stride)
        last = len(points) if column == counts[0] - 1 else torch.searchsorted(sorted_x, end, right=True)
        strip = by_x[first:last]
        for row in _occupied(points[strip, 1] - low[1], stride, block_size, counts[1]):
            y = low[1] + row * stride
            inside = points[strip, 1] >= y
            if row < counts[1] - 1:
                inside &= points[strip, 1] <= torch.maximum(y + block_size, low[1] + (row + 1) * stride)
            members = strip[inside]
            if len(members):
                yield members, torch.stack([x + block_size / 2, y + block_size / 2, low[2]])


def _occupied(offsets: Tensor, stride: float, block_size: float, count: int) -> list[int]:
    """Find which of `count` columns, `block_size` wide and `stride` from the last, may hold a point at these offsets
    (points,). A scene with a point far away has too many empty columns to visit."""
    last = torch.unique((offsets / stride).long())
    reach = torch.arange(-math.ceil(block_size / stride) - 1, 2)  # one more on either side, for rounding
    return torch.unique((last.unsqueeze(1) + reach).clamp(0, count - 1)).tolist()


def _shuffle_and_split(members: Tensor, num_points: int, generator: torch.Generator) -> Tensor:
    """Shuffle all members and split them into (parts, num_points); members of the first part fill up the last."""
    order = members[torch.randperm(len(members), generator=generator)]
    missing = -len(order) % num_points
    return torch.cat([order, order[torch.arange(missing) % len(order)]]).view(-1, num_points)


def _mean_logits(
    model: nn.Module,
    points: Tensor,
    columns: Iterable[tuple[Tensor, Tensor]],
    processor: ACTPointCloudProcessor,
    category: int | None,
    votes: int,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Run the model on columns of the points, (indices, origin), in parts, a batch at a time, and average logits."""
    if votes < 1:
        raise InputError(f"`votes` must be at least 1, got {votes}")
    device, generator = device_of(model), torch.Generator().manual_seed(seed)
    total, counts = torch.zeros(len(points), model.config.num_labels), torch.zeros(len(points), 1)
    parts = (
        (part, points[part] - origin)
        for members, origin in columns
        for _ in range(votes)
        for part in _shuffle_and_split(members, processor.num_points, generator)
    )
    with in_eval_mode(model):
        while batch := list(islice(parts, batch_size)):
            coordinates = torch.stack([values for _, values in batch]).float().to(device)
            if processor.normalize is True:
                coordinates = to_unit_sphere(coordinates)
            extra = {} if category is None else {"category": torch.full((len(batch),), category, device=device)}
            logits = model(coordinates, **extra).logits.float().cpu()
            indices = torch.cat([part for part, _ in batch])
            total.index_add_(0, indices, logits.flatten(0, 1))
            counts.index_add_(0, indices, torch.ones(len(indices), 1))
    return total / counts
