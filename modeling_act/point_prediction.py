"""Predictions for every point of clouds and scenes of any size, with a segmentation model of fixed input size."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .errors import InputError
from .inference import device_of, in_eval_mode
from .processing_act import ACTPointCloudProcessor, to_unit_sphere


@torch.no_grad()
def predict_points(
    model: torch.nn.Module,
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
    points, generator = _checked(points, votes), torch.Generator().manual_seed(seed)
    if processor.normalize == "cloud":
        points = to_unit_sphere(points.unsqueeze(0))[0]
    everything = torch.arange(len(points))
    parts = (part for _ in range(votes) for part in _shuffle_and_split(everything, processor.num_points, generator))
    return _mean_logits(model, points, ((part, points[part]) for part in parts), processor, category, batch_size)


@torch.no_grad()
def predict_scene(
    model: torch.nn.Module,
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
    points, generator = _checked(points, votes), torch.Generator().manual_seed(seed)

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        for members, middle in slide(points, block_size, stride):
            for _ in range(votes):
                for part in _shuffle_and_split(members, processor.num_points, generator):
                    yield part, points[part] - middle

    return _mean_logits(model, points, parts(), processor, None, batch_size)


def label_points(
    model: torch.nn.Module,
    points: Tensor,
    processor: ACTPointCloudProcessor,
    category: int | None = None,
    votes: int = 1,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Predict the likeliest label of every point and its probability, both (points,); of a category, among its own
    parts."""
    if processor.block_size is None:
        logits = predict_points(model, points, processor, category, votes, seed=seed)
    else:
        size = processor.block_size
        logits = predict_scene(model, points, processor, size, size / 2, votes, seed=seed)
    if category is not None and model.config.parts_of_category:
        others = torch.ones(logits.shape[1], dtype=torch.bool)
        others[model.config.parts_of_category[category]] = False
        logits[:, others] = -torch.inf
    scores, labels = logits.softmax(1).max(1)
    return labels, scores


def number_of_category(model: torch.nn.Module, category: str | int | None) -> int | None:
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


def _checked(points: Tensor, votes: int) -> Tensor:
    if votes < 1:
        raise InputError(f"`votes` must be at least 1, got {votes}")
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
    """Find which of `count` columns, each `block_size` wide and `stride` from the last, may hold a point at these
    offsets (points,). A scene with a point far away has too many empty columns to visit."""
    last = torch.unique((offsets / stride).long())
    reach = torch.arange(-math.ceil(block_size / stride) - 1, 2)  # one more on either side, for rounding
    return torch.unique((last.unsqueeze(1) + reach).clamp(0, count - 1)).tolist()


def _shuffle_and_split(members: Tensor, num_points: int, generator: torch.Generator) -> Tensor:
    """Shuffle all members and split them into (parts, num_points); members of the first part fill up the last."""
    order = members[torch.randperm(len(members), generator=generator)]
    missing = -len(order) % num_points
    return torch.cat([order, order[torch.arange(missing) % len(order)]]).view(-1, num_points)


def _mean_logits(
    model: torch.nn.Module,
    points: Tensor,
    parts: Iterator[tuple[Tensor, Tensor]],
    processor: ACTPointCloudProcessor,
    category: int | None,
    batch_size: int,
) -> Tensor:
    """Run the model on parts of the points, (indices, coordinates), a batch at a time, and average the logits."""
    device = device_of(model)
    total = torch.zeros(len(points), model.config.num_labels)
    counts = torch.zeros(len(points), 1)
    with in_eval_mode(model):
        for batch in _batches(parts, batch_size):
            coordinates = torch.stack([values for _, values in batch]).float().to(device)
            if processor.normalize is True:
                coordinates = to_unit_sphere(coordinates)
            extra = {} if category is None else {"category": torch.full((len(batch),), category, device=device)}
            logits = model(coordinates, **extra).logits.float().cpu()
            indices = torch.cat([part for part, _ in batch])
            total.index_add_(0, indices, logits.flatten(0, 1))
            counts.index_add_(0, indices, torch.ones(len(indices), 1))
    return total / counts


def _batches(items: Iterator, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


__all__ = ["label_points", "number_of_category", "predict_points", "predict_scene"]
