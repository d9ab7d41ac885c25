"""Point operations of each library, which ops.py compares.

A candidate is a call without arguments, on clouds already in its library's own container. Search trees are built
inside the call.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from modeling_act import point_ops

try:
    from point_kernels import is_available
except ImportError:
    is_available = None

PEERS = {
    "fpsample": "fpsample",
    "scipy": "scipy.spatial",
    "faiss-cpu": "faiss",
    "open3d": "open3d",
    "torch_cluster": "torch_cluster",
    "pytorch3d": "pytorch3d.ops",
}
ORACLE = "ours, plain torch"
Candidates = dict[str, Callable[[], Tensor]]


@dataclass
class Case:
    """Sizes of a comparison: `count` samples, queries or target points of clouds (batch, points, 3)."""

    operation: str
    batch: int
    points: int
    count: int
    k: int = 0

    @property
    def work(self) -> int:
        return self.batch * self.points * self.count


def load_peers() -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Import the modules that are installed; return them, and why the others cannot be imported."""
    found, absent = {}, {}
    for distribution, module in PEERS.items():
        try:
            found[distribution] = importlib.import_module(module)
        except (ImportError, OSError) as error:
            absent[distribution] = str(error).splitlines()[0][:200]
    return found, absent


peers, absent_peers = load_peers()


def bumpy_spheres(batch: int, num_points: int, generator: torch.Generator) -> Tensor:
    """Sample points on closed surfaces, (batch, points, 3), like scans and samples of meshes."""
    directions = torch.nn.functional.normalize(torch.randn(batch, num_points, 3, generator=generator), dim=-1)
    phase = torch.rand(batch, 1, 3, generator=generator) * 2 * math.pi
    return directions * (1 + 0.3 * torch.sin(5 * directions + phase).prod(-1, keepdim=True))


# Textbook one-liners -------------------------------------------------------------------------------------------------


def naive_farthest_point_sample(points: Tensor, count: int) -> Tensor:
    """Farthest point sampling as in most point-cloud repositories, from the first point."""
    rows = torch.arange(len(points))
    chosen = torch.zeros(len(points), count, dtype=torch.long)
    distances = torch.full(points.shape[:2], 1e10)
    farthest = torch.zeros(len(points), dtype=torch.long)
    for sample in range(count):
        chosen[:, sample] = farthest
        center = points[rows, farthest].unsqueeze(1)
        squared = ((points - center) ** 2).sum(-1)
        closer = squared < distances
        distances[closer] = squared[closer]
        farthest = distances.max(-1).indices
    return chosen


def naive_neighbors(queries: Tensor, points: Tensor, k: int) -> Tensor:
    return torch.cdist(queries, points).topk(k, dim=-1, largest=False).indices


def naive_gather(points: Tensor, indices: Tensor) -> Tensor:
    return points[torch.arange(len(points)).view(-1, *[1] * (indices.ndim - 1)), indices]


def naive_chamfer(points: Tensor, target: Tensor, squared: bool) -> Tensor:
    distances = ((points.unsqueeze(2) - target.unsqueeze(1)) ** 2).sum(-1)
    there, back = distances.min(2).values, distances.min(1).values
    return (there.mean() + back.mean()) if squared else (there.sqrt().mean() + back.sqrt().mean()) / 2


# Candidates ----------------------------------------------------------------------------------------------------------


def queries_of(case: Case, points: Tensor) -> Tensor:
    """Return evenly spaced rows of the clouds, (batch, count, 3)."""
    return points[:, :: case.points // case.count][:, : case.count].contiguous()


def ours(call: Callable[[], Tensor]) -> Candidates:
    """Return the same call with the kernels, if installed, and without."""
    if is_available is None or not is_available("cpu"):
        return {ORACLE: call}

    def plain() -> Tensor:
        with point_ops.without_kernels():
            return call()

    return {"ours, kernels": call, ORACLE: plain}


def sampling(case: Case, points: Tensor, threads: int) -> Candidates:
    """Farthest point sampling: indices, or the chosen points if a peer returns no indices."""
    clouds, count = points.numpy(), case.count
    height = 3 if case.points < 10_000 else 7 if case.points < 100_000 else 9  # as fpsample advises
    in_open3d = [open3d_points(cloud) for cloud in points]

    def each(sample: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([sample(cloud) for cloud in clouds]).astype(np.int64))

    return ours(lambda: point_ops.farthest_point_sample(points, count)) | {
        "naive torch": lambda: naive_farthest_point_sample(points, count),
        "fpsample": lambda: each(lambda cloud: peers["fpsample"].fps_sampling(cloud, count, start_idx=0)),
        "fpsample, buckets": lambda: each(
            lambda cloud: peers["fpsample"].bucket_fps_kdline_sampling(cloud, count, h=height, start_idx=0)
        ),
        "open3d": lambda: torch.from_numpy(
            np.stack([cloud.farthest_point_down_sample(count).points for cloud in in_open3d]).astype(np.float32)
        ),
        "torch_cluster": lambda: cluster_sample(points, count),
        "pytorch3d": lambda: peers["pytorch3d"].sample_farthest_points(points, K=count)[1],
    }


def cluster_sample(points: Tensor, count: int) -> Tensor:
    flat, cloud_of = flatten(points)
    rows = peers["torch_cluster"].fps(flat, cloud_of, ratio=count / points.shape[1], random_start=False)
    return rows.view(len(points), count) - torch.arange(len(points)).unsqueeze(1) * points.shape[1]


def cluster_neighbors(queries: Tensor, points: Tensor, k: int) -> Tensor:
    (flat, cloud_of), (flat_queries, cloud_of_query) = flatten(points), flatten(queries)
    pairs = peers["torch_cluster"].knn(flat, flat_queries, k, cloud_of, cloud_of_query)
    return pairs[1].view(*queries.shape[:2], k) - torch.arange(len(points)).view(-1, 1, 1) * points.shape[1]


def cut(points: Tensor, chosen: Tensor, neighbors_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Gather centers at the indices `chosen`, and the neighborhoods relative to them."""
    centers = naive_gather(points, chosen)
    return centers, naive_gather(points, neighbors_of(centers)) - centers.unsqueeze(2)


def cluster_group(points: Tensor, num_groups: int, group_size: int) -> tuple[Tensor, Tensor]:
    chosen = cluster_sample(points, num_groups)
    return cut(points, chosen, lambda centers: cluster_neighbors(centers, points, group_size))


def neighbors(case: Case, points: Tensor, threads: int) -> Candidates:
    queries, k = queries_of(case, points), case.k
    clouds, centers = points.numpy(), queries.numpy()

    def each(search: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Tensor:
        found = [search(cloud, center) for cloud, center in zip(clouds, centers, strict=True)]
        return torch.from_numpy(np.stack(found).astype(np.int64))

    def by_faiss(cloud: np.ndarray, center: np.ndarray) -> np.ndarray:
        index = peers["faiss-cpu"].IndexFlatL2(3)
        index.add(cloud)
        return index.search(center, k)[1]

    def by_open3d(cloud: np.ndarray, center: np.ndarray) -> np.ndarray:
        core = peers["open3d"].core
        index = core.nns.NearestNeighborSearch(core.Tensor.from_numpy(cloud))
        index.knn_index()
        return index.knn_search(core.Tensor.from_numpy(center), k)[0].numpy()

    return ours(lambda: point_ops.k_nearest_neighbors(queries, points, k)[1]) | {
        "naive torch": lambda: naive_neighbors(queries, points, k),
        "scipy": lambda: each(
            lambda cloud, center: peers["scipy"].cKDTree(cloud).query(center, k, workers=threads)[1]
        ),
        "faiss-cpu": lambda: each(by_faiss),
        "open3d": lambda: each(by_open3d),
        "torch_cluster": lambda: cluster_neighbors(queries, points, k),
        "pytorch3d": lambda: peers["pytorch3d"].knn_points(queries, points, K=k).idx,
    }


def grouping(case: Case, points: Tensor, threads: int) -> Candidates:
    """Farthest point sampling, neighbors of the chosen points, and gathering both."""

    def naive() -> Tensor:
        chosen = naive_farthest_point_sample(points, case.count)
        return cut(points, chosen, lambda centers: naive_neighbors(centers, points, case.k))[1]

    def by_numpy() -> Tensor:
        found = []
        for cloud in points.numpy():
            centers = cloud[peers["fpsample"].fps_sampling(cloud, case.count, start_idx=0)]
            nearest = peers["scipy"].cKDTree(cloud).query(centers, case.k, workers=threads)[1]
            found.append(cloud[nearest] - centers[:, None])
        return torch.from_numpy(np.stack(found))

    def by_pytorch3d() -> Tensor:
        centers, _ = peers["pytorch3d"].sample_farthest_points(points, K=case.count)
        return peers["pytorch3d"].knn_points(centers, points, K=case.k, return_nn=True).knn - centers.unsqueeze(2)

    return ours(lambda: point_ops.group_points(points, case.count, case.k).neighborhoods) | {
        "naive torch": naive,
        "fpsample + scipy": by_numpy,
        "torch_cluster": lambda: cluster_group(points, case.count, case.k)[1],
        "pytorch3d": by_pytorch3d,
    }


def chamfer(case: Case, points: Tensor, threads: int) -> Candidates:
    """Chamfer loss and both gradients, concatenated in one tensor."""
    squared = case.operation == "chamfer_l2"
    points = points.clone().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    target = bumpy_spheres(case.batch, case.count, generator).requires_grad_()

    def with_gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        value = loss(points, target)
        gradients = torch.autograd.grad(value, (points, target))
        return torch.cat([value.detach().view(1), *(gradient.flatten() for gradient in gradients)])

    candidates = ours(lambda: with_gradients(point_ops.chamfer_l2 if squared else point_ops.chamfer_l1)) | {
        "naive torch": lambda: with_gradients(lambda *clouds: naive_chamfer(*clouds, squared))
    }
    if squared and "pytorch3d" in peers:
        distance = importlib.import_module("pytorch3d.loss").chamfer_distance
        candidates["pytorch3d"] = lambda: with_gradients(lambda *clouds: distance(*clouds)[0])
    return candidates


def interpolation(case: Case, points: Tensor, threads: int) -> Candidates:
    """Interpolation of the features of `count` centers to all points, from their three nearest centers."""
    centers, channels = points[:, : case.count].contiguous(), 384
    features = torch.randn(case.batch, case.count, channels, generator=torch.Generator().manual_seed(1))

    def mix(squared: Tensor, indices: Tensor) -> Tensor:
        weights = 1 / (squared + 1e-8)
        weights = weights / weights.sum(-1, keepdim=True)
        return (naive_gather(features, indices) * weights.unsqueeze(-1)).sum(2)

    def naive() -> Tensor:
        squared, indices = ((points.unsqueeze(2) - centers.unsqueeze(1)) ** 2).sum(-1).sort(dim=-1)
        return mix(squared[..., :3], indices[..., :3])

    def by_pytorch3d() -> Tensor:
        found = peers["pytorch3d"].knn_points(points, centers, K=3)
        return mix(found.dists, found.idx)

    return ours(lambda: point_ops.interpolate(features, *point_ops.interpolation_weights(points, centers))) | {
        "naive torch": naive,
        "pytorch3d": by_pytorch3d,
    }


def flatten(points: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the points of all clouds; return them with the cloud index of each."""
    return points.flatten(0, 1), torch.arange(len(points)).repeat_interleave(points.shape[1])


def open3d_points(cloud: Tensor):
    """Convert to Open3D's older cloud class; sampling its tensor class takes a hundred times as long."""
    if "open3d" not in peers:
        return None
    return peers["open3d"].geometry.PointCloud(peers["open3d"].utility.Vector3dVector(cloud.double().numpy()))


OPERATIONS = {
    "farthest_point_sample": sampling,
    "k_nearest_neighbors": neighbors,
    "group_points": grouping,
    "chamfer_l1": chamfer,
    "chamfer_l2": chamfer,
    "interpolate": interpolation,
}
