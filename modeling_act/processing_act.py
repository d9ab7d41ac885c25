"""`ACTPointCloudProcessor`: samples and scales clouds of any kind as in the training of a model."""

from collections.abc import Iterator, Sequence
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, FeatureExtractionMixin
from transformers.utils import logging

from .errors import InputError
from .point_ops import bounding_sphere, farthest_point_sample

logger = logging.get_logger(__name__)

SAMPLINGS = ("random", "farthest")
UP_AXES = ("y", "z")
UNITS = {"m": 1.0, "dm": 0.1, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048}  # in metres
NEIGHBORS_BETWEEN = 20  # of 128 to 512 points, 16 to 24 found the right neighbors most often
PLASTIC = 0.7548776662466927  # its powers give sequences that fill a square evenly: the root of x**3 + x**2 = 1
MAX_POINTS_TO_SPREAD = 2**16  # farthest point sampling takes time in proportion to points times samples


class TakenPoints(NamedTuple):
    """Model input `points` (num_points, 3): points of the cloud, minus `center` (3,), divided by `scale`."""

    points: Tensor
    center: Tensor
    scale: Tensor

    def place(self, points: Tensor) -> Tensor:
        """Center and scale other points of the cloud, (n, 3), in the same way."""
        return ((points - self.center) / self.scale).float()


class ACTPointCloudProcessor(FeatureExtractionMixin):
    """Samples, rotates, centers and scales points of each cloud as in the training of a model.

    num_points (`int`):
        Number of points of each cloud.
    few_points (`"repeat"` or `"between"`):
        What completes a cloud of fewer points: its points again, or points between near ones, so that groups do not
        hold fewer distinct points than in training.
    samples (`int`):
        Number of selections of points of one cloud whose vectors `encode` averages; more are slower and steadier.
    point_sampling (`"random"` or `"farthest"`):
        Sampling method: a subset drawn with `seed`, or farthest point sampling.
    normalize (`bool` or `"cloud"`):
        Whether the sampled points are centered and scaled to the unit sphere; `"cloud"` fits the whole cloud into it.
    up_axis (`"y"` or `"z"`, *optional*):
        Up axis in training. `None`: not known, or shapes in any pose.
    unit (`"m"`, `"dm"`, `"cm"`, `"mm"`, `"in"` or `"ft"`, *optional*):
        Unit of length in training, for a model that does not normalize. `None`: not known.
    block_size (`float`, *optional*):
        Side of the square columns that scenes are cut into, for a model that segments scenes.
    """

    model_input_names = ["points"]

    def __init__(
        self,
        num_points: int = 1024,
        point_sampling: str = "random",
        normalize: bool | str = True,
        up_axis: str | None = None,
        unit: str | None = None,
        block_size: float | None = None,
        samples: int = 1,
        few_points: str = "repeat",
        **kwargs,
    ):
        if not isinstance(num_points, int) or num_points < 1:
            raise InputError(f"`num_points` must be a positive integer, got {num_points!r}")
        if not isinstance(samples, int) or samples < 1:
            raise InputError(f"`samples` must be a positive integer, got {samples!r}")
        if block_size is not None and not (isinstance(block_size, Number) and 0 < block_size < float("inf")):
            raise InputError(f"`block_size` must be positive, got {block_size!r}")
        _check_choice("point_sampling", point_sampling, SAMPLINGS)
        _check_choice("normalize", normalize, (True, False, "cloud"))
        _check_choice("up_axis", up_axis, (*UP_AXES, None))
        _check_choice("unit", unit, (*UNITS, None))
        _check_choice("few_points", few_points, ("repeat", "between"))
        self.num_points, self.point_sampling, self.normalize = num_points, point_sampling, normalize
        self.up_axis, self.unit, self.block_size = up_axis, unit, block_size
        self.samples, self.few_points = samples, few_points
        super().__init__(**kwargs)

    def __call__(
        self,
        clouds: Any,
        seed: int = 0,
        up_axis: str | None = None,
        unit: str | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Convert one cloud, or a list of clouds of any sizes, to points (clouds, num_points, 3).

        A cloud is an array or tensor (points, 3 or more), a trimesh object, or the path of a file in any format of
        `readers.cloud.CLOUD_SUFFIXES`; files and meshes need the package installed. The points sampled depend on the
        cloud and on `seed` alone. `up_axis` and `unit` are those of these clouds, if they differ from training.
        """
        _check_choice("return_tensors", return_tensors, ("pt", "np"))
        items = [clouds] if is_one_cloud(clouds) else list(clouds)
        if not items:
            raise ValueError("`clouds` must hold at least one cloud, got none")
        options = {"seed": seed, "up_axis": up_axis, "unit": unit}
        samples = [self.take(cloud, name=naming(cloud, place), **options) for place, cloud in enumerate(items)]
        points = torch.stack([sample.points for sample in samples])
        return BatchFeature({"points": points if return_tensors == "pt" else points.numpy()})

    def take(self, cloud: Any, seed: int = 0, **options) -> TakenPoints:
        """Sample, center and scale the points of one cloud; `options` are those of `read`."""
        return self._select(self.read(cloud, seed, **options), seed)

    def take_samples(self, cloud: Any, samples: int, seed: int = 0, **options) -> Tensor:
        """Take several selections of one cloud, (samples, num_points, 3), the first that of `take`; random ones share
        no points while there are enough."""
        points = self.read(cloud, seed, **options)
        return torch.stack([self._select(points, seed, number).points for number in range(samples)])

    def _select(self, points: Tensor, seed: int, number: int = 0) -> TakenPoints:
        whole, (cycle, first) = points, divmod(number * self.num_points, len(points))
        if self.point_sampling == "farthest":
            if len(points) > MAX_POINTS_TO_SPREAD:
                points = points[_sample_indices(len(points), MAX_POINTS_TO_SPREAD, seed)]
            places = (torch.arange(max(len(points), self.num_points)) + first) % len(points)
            # Relative to the mean, so that float32 does not round large coordinates.
            centered = (points - points.mean(0))[places].float()
            chosen = places[farthest_point_sample(centered.unsqueeze(0), self.num_points)[0]]
        else:
            chosen = _sample_indices(len(points), self.num_points, seed + cycle, first)
        missing = self.num_points - len(points)
        points = points[chosen]
        if missing > 0 and self.few_points == "between":
            own = points[: len(whole)]  # each point once
            points = torch.cat([own, _points_between(own, missing, number * missing)])
        center, scale = torch.zeros(3, dtype=points.dtype), torch.ones((), dtype=points.dtype)
        if self.normalize:
            measured = whole if self.normalize == "cloud" else points
            center = measured.mean(0)
            radius = torch.linalg.vector_norm(measured - center, dim=-1).amax()
            scale = radius.clamp_min(torch.finfo(torch.float32).tiny)
        return TakenPoints(((points - center) / scale).float(), center, scale)

    def read(
        self, cloud: Any, seed: int = 0, up_axis: str | None = None, unit: str | None = None, name: str = "the cloud"
    ) -> Tensor:
        """Read all points (points, 3) of one cloud, in float64, with the up axis and unit of training. Of a mesh, read
        8192 points of its surface, sampled with `seed`. Errors call the cloud `name`."""
        if not 0 <= seed < 2**63:
            raise InputError(f"`seed` must lie between 0 and 2**63, got {seed}")
        points = _read_points(cloud, seed, name)
        if points.ndim != 2 or points.shape[1] < 3 or not len(points):
            raise InputError(f"{name} must be of shape (points, 3), got {tuple(points.shape)}")
        points = points[:, :3].double()
        if not (bound := points.abs().max()) < 1e15:  # NaN too; squares of larger ones leave the range of float32
            kind = "coordinates beyond 1e15" if bound.isfinite() else "NaN or infinite coordinates"
            raise InputError(f"{name} must be finite, got {kind}")
        return self._to_unit(to_up_axis(points, up_axis, self.up_axis), unit)

    def _to_unit(self, points: Tensor, unit: str | None) -> Tensor:
        _check_choice("unit", unit, (*UNITS, None))
        if unit is None:
            return points
        if self.normalize:
            logger.warning_once(f"`unit`={unit!r} has no effect: this model scales every cloud to one size")
            return points
        if self.unit is None:
            raise InputError(f"`unit`={unit!r}: this processor does not know the unit of its training; set its `unit`")
        return points * (UNITS[unit] / UNITS[self.unit])


def is_one_cloud(clouds: Any) -> bool:
    """Return whether `clouds` is one cloud, or the path of one, and not several."""
    if isinstance(clouds, (np.ndarray, Tensor)):
        return clouds.ndim != 3 and clouds.dtype != object
    if isinstance(clouds, Sequence) and not isinstance(clouds, str):
        row = clouds[0] if len(clouds) else None
        if isinstance(row, (np.ndarray, Tensor)):
            return row.ndim == 1
        return isinstance(row, Sequence) and not isinstance(row, str) and len(row) > 0 and isinstance(row[0], Number)
    return not isinstance(clouds, Iterator)


def naming(cloud: Any, place: int) -> str:
    """Name the cloud at this place of a list in errors."""
    return f"cloud {place} ({cloud})" if isinstance(cloud, (str, Path)) else f"cloud {place}"


def to_unit_sphere(points: Tensor) -> Tensor:
    """Move the mean of clouds (batch, points, 3) to the origin, and scale their farthest point to distance one."""
    center, radius = bounding_sphere(points)
    return (points - center) / radius


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise InputError(f"`{name}` must be one of {', '.join(map(str, choices))}, got {value!r}")


def _sample_indices(count: int, num_samples: int, seed: int, first: int = 0) -> Tensor:
    """Sample a random subset of `count` points: indices (num_samples,), which repeat if there are fewer points; from
    place `first` of the random order on."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[(torch.arange(num_samples) + first) % count]


def _points_between(points: Tensor, count: int, first: int) -> Tensor:
    """Points (count, 3) between each of few points and one of its nearest in turn, from place `first` of an endless
    sequence on. Both the neighbor and the share of the way follow sequences that fill the unit square evenly."""
    if len(points) == 1:
        return points.expand(count, 3)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    near = distances.sort(dim=1, stable=True).indices[:, 1 : 1 + NEIGHBORS_BETWEEN]
    numbers = torch.arange(first, first + count)
    starts, steps = numbers % len(points), (numbers + 1).double()
    neighbors = near[starts, (steps * PLASTIC % 1 * near.shape[1]).long()]
    return points[starts] + (steps * PLASTIC**2 % 1).unsqueeze(1) * (points[neighbors] - points[starts])


def to_up_axis(points: Tensor, up_axis: str | None, target: str | None) -> Tensor:
    """Rotate points about x by a quarter turn, if `up_axis` is not the `target` axis already."""
    _check_choice("up_axis", up_axis, (*UP_AXES, None))
    if up_axis is None or up_axis == target:
        return points
    if target is None:
        unknown = "this processor does not know which axis was up in training; set its `up_axis`"
        raise InputError(f"`up_axis`={up_axis!r}: {unknown}")
    x, y, z = points.unbind(1)
    return torch.stack([x, z, -y] if up_axis == "z" else [x, -z, y], dim=1)


def _read_points(cloud: Any, seed: int, name: str) -> Tensor:
    """Read any supported input into a tensor of shape (points, 3 or more)."""
    if isinstance(cloud, (str, Path)) or hasattr(cloud, "vertices") or hasattr(cloud, "geometry"):
        cloud = _read_by_package(cloud, seed)
    elif hasattr(cloud, "points"):  # a `Cloud` of `readers.cloud`
        cloud = cloud.points
    if isinstance(cloud, Tensor):
        if cloud.is_complex() or cloud.dtype == torch.bool:
            raise InputError(f"{name} must hold numbers, got a tensor of {cloud.dtype}")
        return cloud.detach().cpu()
    try:
        array = np.asarray(cloud)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"{name} must be of shape (points, 3), got {error}") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} must hold numbers, got {type(cloud).__name__} of {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _read_by_package(cloud: Any, seed: int) -> np.ndarray:
    """Read a file or sample a trimesh object, which code that a saved folder carries cannot."""
    try:
        from modeling_act.readers.cloud import read_cloud
        from modeling_act.readers.mesh import points_of_trimesh
    except ImportError as error:
        raise InputError("files and meshes need the package modeling_act; or pass arrays or tensors") from error
    if isinstance(cloud, (str, Path)):
        return read_cloud(cloud, seed=seed, dtype=np.float64).points
    return points_of_trimesh(cloud, seed)


ACTPointCloudProcessor.register_for_auto_class("AutoFeatureExtractor")
