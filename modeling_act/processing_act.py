"""`ACTPointCloudProcessor`: clouds as a user has them -> the points a model was trained to see."""

import torch
from torch import Tensor
from transformers import BatchFeature, FeatureExtractionMixin

from .point_ops import farthest_point_sample, gather_points

SAMPLINGS = ("random", "farthest")


class ACTPointCloudProcessor(FeatureExtractionMixin):
    """Takes as many points of each cloud as the model saw, and centers and scales them as it was trained.

    num_points (`int`):
        Points taken of each cloud; one with fewer repeats some.
    point_sampling (`"random"` or `"farthest"`):
        Which: a subset drawn with `seed`, or points far from one another.
    normalize (`bool`):
        Whether the points taken are centered and scaled into the unit sphere.
    """

    model_input_names = ["points"]

    def __init__(self, num_points: int = 1024, point_sampling: str = "random", normalize: bool = True, **kwargs):
        if num_points < 1:
            raise ValueError(f"`num_points` must be positive, got {num_points}")
        if point_sampling not in SAMPLINGS:
            raise ValueError(f"`point_sampling` must be one of {', '.join(SAMPLINGS)}, got {point_sampling!r}")
        self.num_points, self.point_sampling, self.normalize = num_points, point_sampling, normalize
        super().__init__(**kwargs)

    def __call__(self, clouds, seed: int = 0, **kwargs) -> BatchFeature:
        """A cloud (points, 3), or a list or array of several, which may differ in size -> points (clouds, num_points,
        3). A cloud's points depend on it and on `seed` alone."""
        if len(clouds) and getattr(clouds[0], "ndim", 2) == 1:
            clouds = [clouds]
        points = [self._take(torch.as_tensor(cloud), position, seed) for position, cloud in enumerate(clouds)]
        if not points:
            raise ValueError("`clouds` must hold at least one cloud, got none")
        return BatchFeature({"points": torch.stack(points)})

    def _take(self, cloud: Tensor, position: int, seed: int) -> Tensor:
        if cloud.ndim != 2 or cloud.shape[1] < 3 or not len(cloud):
            raise ValueError(f"cloud {position} must be of shape (points, 3), got {tuple(cloud.shape)}")
        cloud = cloud[:, :3]
        if self.normalize and cloud.dtype == torch.float64:
            cloud = cloud - cloud.mean(0)  # before float32 rounds coordinates of a map, say
        cloud = cloud.float()
        if not cloud.isfinite().all():
            raise ValueError(f"cloud {position} must be finite, got NaN or infinite coordinates")
        places = torch.arange(max(len(cloud), self.num_points)) % len(cloud)
        if self.point_sampling == "farthest":
            chosen = places[farthest_point_sample(cloud[places].unsqueeze(0), self.num_points)[0]]
        else:
            order = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(seed))
            chosen = order[places[: self.num_points]]
        points = gather_points(cloud.unsqueeze(0), chosen.unsqueeze(0))[0]
        return to_unit_sphere(points.unsqueeze(0))[0] if self.normalize else points


def to_unit_sphere(points: Tensor) -> Tensor:
    """(batch, points, 3), the mean at the origin and the farthest point at distance one."""
    points = points - points.mean(1, keepdim=True)
    radius = torch.linalg.vector_norm(points, dim=-1).amax(1)
    return points / radius.clamp_min(torch.finfo(points.dtype).tiny)[:, None, None]


ACTPointCloudProcessor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["ACTPointCloudProcessor"]
