"""Point operations: cases written out by hand, float64 oracles in plain Python, ragged batches, gradients, errors."""

import math
import re

import pytest
import torch

from modeling_act import point_ops
from modeling_act.point_ops import (
    chamfer_l1,
    chamfer_l2,
    farthest_point_sample,
    gather_points,
    group_points,
    interpolate,
    interpolation_weights,
    k_nearest_neighbors,
)

pytestmark = pytest.mark.usefixtures("implementation")
CLOUDS = pytest.mark.parametrize("kind", ["random", "grid", "duplicates"])
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
CHAMFER = pytest.mark.parametrize("chamfer", [chamfer_l1, chamfer_l2])


def on_axis(*positions):
    """One cloud (1, points, 3) on the x axis."""
    return torch.tensor([[(position, 0, 0) for position in positions]], dtype=torch.float64)


def make_clouds(kind, num_clouds, num_points, dtype=torch.float64):
    if kind == "random":
        return torch.randn(num_clouds, num_points, 3).to(dtype)
    if kind == "grid":  # 27 places: full of duplicates and of ties, and exact in every dtype
        return torch.randint(-1, 2, (num_clouds, num_points, 3)).to(dtype)
    return torch.full((num_clouds, num_points, 3), 0.25, dtype=dtype)  # "duplicates"


# The oracles: one cloud as lists of points, float64, no tensors -----------------------------------------------------


def squared_distance(a, b):
    x, y, z = (i - j for i, j in zip(a, b, strict=True))
    return x * x + y * y + z * z


def oracle_sample(points, num_samples, skip_near_origin=False):
    far = [i for i, p in enumerate(points) if not skip_near_origin or squared_distance(p, (0, 0, 0)) > 1e-3]
    chosen = [0]
    while len(chosen) < num_samples:
        distances = {i: min(squared_distance(points[i], points[j]) for j in chosen) for i in far or [0]}
        chosen.append(max(distances, key=distances.get))  # the first of equals
    return chosen


def oracle_neighbors(queries, points, k):
    rows = [sorted((squared_distance(query, point), i) for i, point in enumerate(points))[:k] for query in queries]
    return [[distance for distance, _ in row] for row in rows], [[i for _, i in row] for row in rows]


def oracle_chamfer(points, target):
    there, back = ([d for (d,) in oracle_neighbors(*pair, 1)[0]] for pair in ((points, target), (target, points)))
    l1 = (sum(map(math.sqrt, there)) / len(there) + sum(map(math.sqrt, back)) / len(back)) / 2
    return l1, sum(there) / len(there) + sum(back) / len(back)


# Cases written out --------------------------------------------------------------------------------------------------


def test_farthest_point_sample_by_hand():
    # 10 is farthest from 0 and stands there twice: the first wins. Then 5, then 4, then only copies: the first again.
    assert farthest_point_sample(on_axis(0, 4, 10, 5, 10), 5).tolist() == [[0, 2, 3, 1, 0]]
    assert farthest_point_sample(on_axis(0, -3, 3, 1), 3).tolist() == [[0, 1, 2]]  # -3 and 3 tie
    assert farthest_point_sample(on_axis(7, 7, 7), 3).tolist() == [[0, 0, 0]]


def test_skip_near_origin_by_hand():
    cloud = on_axis(0, 0.01, 0.03, 1, 0.5)
    assert farthest_point_sample(cloud, 5).tolist() == [[0, 3, 4, 2, 1]]
    # Indices 1 and 2 are too near: even copies of points 3 and 4 win over them. Index 0 is the start all the same.
    assert farthest_point_sample(cloud, 5, skip_near_origin=True).tolist() == [[0, 3, 4, 3, 3]]
    assert group_points(cloud, 5, 1, skip_near_origin=True).centers[0, :, 0].tolist() == [0, 1, 0.5, 1, 1]
    assert farthest_point_sample(on_axis(0.02, 0.01, 0.03), 3, skip_near_origin=True).tolist() == [[0, 0, 0]]
    # 0.03^2 + 0.01^2 is 1e-3 to the last bit in float64: still skipped. A little more is not.
    boundary = torch.tensor([[[0.03, 0.01, 0.0], [0.03, 0.0, 0.01], [0.03, 0.01, 1e-9]]], dtype=torch.float64)
    assert farthest_point_sample(boundary, 2, skip_near_origin=True).tolist() == [[0, 2]]


def test_k_nearest_neighbors_by_hand():
    distances, indices = k_nearest_neighbors(on_axis(2, 0.5), on_axis(0, 1, 2, 3, 4), 5)
    assert indices.tolist() == [[[2, 1, 3, 0, 4], [0, 1, 2, 3, 4]]]
    assert distances.tolist() == [[[0, 1, 1, 4, 4], [0.25, 0.25, 2.25, 6.25, 12.25]]]
    assert k_nearest_neighbors(on_axis(1), on_axis(1, 1, 0, 1), 3)[1].tolist() == [[[0, 1, 3]]]
    far = on_axis(*[1e30] * 5, 0, *[1e30] * 5).float()  # squared distances overflow to equal infinities
    assert k_nearest_neighbors(far[:, 5:6], far, 4)[1].tolist() == [[[5, 0, 1, 2]]]


def test_grouping_by_hand():
    values = torch.arange(8).view(2, 4, 1)
    assert gather_points(values, torch.tensor([[3, 0], [1, 1]])).tolist() == [[[3], [0]], [[5], [5]]]
    assert gather_points(values, torch.tensor([[[3], [0]], [[1], [2]]])).tolist() == [[[[3]], [[0]]], [[[5]], [[6]]]]
    cloud = torch.tensor([[[0, 0, 0], [1, 0, 0], [5, 0, 0], [5, 1, 0]]], dtype=torch.float32)
    groups = group_points(cloud, num_groups=2, group_size=2)
    assert groups.centers.tolist() == [[[0, 0, 0], [5, 1, 0]]]
    assert groups.neighborhoods.tolist() == [[[[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, -1, 0]]]]


def test_interpolation_by_hand():
    weights, indices = interpolation_weights(on_axis(1), on_axis(0, 1, 3))
    assert indices.tolist() == [[[1, 0, 2]]]
    assert weights[0, 0].tolist() == pytest.approx([1, 1e-8, 0.25e-8], rel=1e-7)
    features = torch.tensor([[[10.0, 0.0], [20.0, 1.0], [30.0, 2.0]]])
    weights, indices = torch.tensor([[[0.5, 0.25, 0.25]]]), torch.tensor([[[2, 0, 1]]])
    assert interpolate(features, weights, indices).tolist() == [[[22.5, 1.25]]]


CHAMFER_BY_HAND = [  # points, target, loss, gradient of the points, gradient of the target
    # There: 0 -> 0 and 1 -> 0, distances 0 and 1. Back: 0 -> 0, 3 -> 1 and 4 -> 1, distances 0, 2 and 3.
    (chamfer_l1, (0, 1), (0, 3, 4), 1 / 4 + 5 / 6, (0, 1 / 4 - 1 / 3), (-1 / 4, 1 / 6, 1 / 6)),
    (chamfer_l2, (0, 1), (0, 3, 4), 1 / 2 + 13 / 3, (0, 1 - 10 / 3), (-1, 4 / 3, 2)),
    # All tie: each of the points pairs with the first target, both targets with the first point.
    (chamfer_l2, (1, -1, -1), (0, 0), 2, (2 / 3 + 2, -2 / 3, -2 / 3), (2 / 3 - 1, -1)),
]


@pytest.mark.parametrize(("chamfer", "points", "target", "value", "gradient", "target_gradient"), CHAMFER_BY_HAND)
def test_chamfer_by_hand(chamfer, points, target, value, gradient, target_gradient):
    clouds = on_axis(*points).requires_grad_(), on_axis(*target).requires_grad_()
    loss = chamfer(*clouds)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-14)
    torch.testing.assert_close(clouds[0].grad, on_axis(*gradient), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(clouds[1].grad, on_axis(*target_gradient), rtol=1e-14, atol=1e-15)


def test_one_point():
    point, other = on_axis(2), on_axis(5)
    assert farthest_point_sample(point, 1).tolist() == [[0]]
    assert [x.tolist() for x in k_nearest_neighbors(other, point, 1)] == [[[[9]]], [[[0]]]]
    assert [x.tolist() for x in group_points(point, 1, 1)] == [[[[2, 0, 0]]], [[[[0, 0, 0]]]]]
    assert [x.tolist() for x in interpolation_weights(other, point)] == [[[[1]]], [[[0]]]]
    assert (chamfer_l1(point, other).item(), chamfer_l2(point, other).item()) == (3, 18)
    assert interpolation_weights(on_axis(0), on_axis(2, 1))[1].tolist() == [[[1, 0]]]  # two points: both


@CLOUDS
@FLOATS
@pytest.mark.parametrize("skip_near_origin", [False, True])
def test_farthest_point_sample_is_the_oracles(kind, dtype, skip_near_origin):
    clouds = make_clouds(kind, 2, 30, dtype)
    for num_samples in (1, 9, 30):
        indices = farthest_point_sample(clouds, num_samples, skip_near_origin=skip_near_origin)
        assert indices.tolist() == [oracle_sample(c, num_samples, skip_near_origin) for c in clouds.tolist()]


@CLOUDS
@FLOATS
def test_k_nearest_neighbors_is_the_oracles(kind, dtype):
    queries, clouds = make_clouds(kind, 2, 7, dtype), make_clouds(kind, 2, 150, dtype)
    for k in (1, 2, 40, 150):  # topk on a CPU changes its algorithm at a 64th of the points
        distances, indices = k_nearest_neighbors(queries, clouds, k)
        expected = [oracle_neighbors(*pair, k) for pair in zip(queries.tolist(), clouds.tolist(), strict=True)]
        assert distances.dtype == dtype and indices.tolist() == [indices for _, indices in expected]
        torch.testing.assert_close(distances, torch.tensor([d for d, _ in expected], dtype=dtype))


@CLOUDS
def test_interpolation_is_the_oracles(kind):
    queries, points, features = make_clouds(kind, 2, 20), make_clouds(kind, 2, 9), torch.randn(2, 9, 4).double()
    queries[:, 0], queries[:, 1] = points[:, 4], points[:, 4] + 1e-4  # 1e-8 away squared: as much as the constant adds
    weights, indices = interpolation_weights(queries, points)
    interpolated = interpolate(features, weights, indices)
    for i in range(2):
        distances, nearest = oracle_neighbors(queries[i].tolist(), points[i].tolist(), 3)
        assert indices[i].tolist() == nearest
        inverse = 1 / (torch.tensor(distances, dtype=torch.float64) + 1e-8)
        torch.testing.assert_close(weights[i], inverse / inverse.sum(1, keepdim=True), rtol=1e-12, atol=0)
        torch.testing.assert_close(interpolated[i], (features[i][indices[i]] * weights[i].unsqueeze(2)).sum(1))


@CLOUDS
def test_chamfer_is_the_oracles(kind):
    points, target = make_clouds(kind, 3, 20), make_clouds(kind, 3, 33)
    pairs = zip(points.tolist(), target.tolist(), strict=True)
    expected = torch.tensor([oracle_chamfer(*pair) for pair in pairs], dtype=torch.float64).unbind(1)
    for chamfer, values in zip((chamfer_l1, chamfer_l2), expected, strict=True):
        torch.testing.assert_close(chamfer(points, target, reduction="none"), values, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(chamfer(points, target), values.mean(), rtol=1e-13, atol=1e-15)


def every_operation(points, queries, features):
    """All that the operations return for a batch: {name: tensor whose first dimension is the batch}."""
    distances, neighbors = k_nearest_neighbors(queries, points, 4)
    weights, nearest = interpolation_weights(queries, points)
    results = {"distances": distances, "neighbors": neighbors, "weights": weights, "nearest": nearest}
    results["interpolated"] = interpolate(features, weights, nearest)
    results |= group_points(points, 4, 3)._asdict()
    for skip in (False, True):
        results[f"sample, skip_near_origin={skip}"] = farthest_point_sample(points, 4, skip)
    for chamfer in (chamfer_l1, chamfer_l2):
        results[chamfer.__name__] = chamfer(points, queries, reduction="none")
    return results


@CLOUDS
@FLOATS
def test_a_batch_of_two_is_two_of_one(kind, dtype):
    batch = make_clouds(kind, 2, 12, dtype), make_clouds(kind, 2, 5, dtype), torch.randn(2, 12, 6, dtype=dtype)
    alone = [every_operation(*(part[i : i + 1] for part in batch)) for i in range(2)]
    for name, together in every_operation(*batch).items():
        torch.testing.assert_close(together, torch.cat([one[name] for one in alone]), rtol=0, atol=0, msg=name)


@CLOUDS
@pytest.mark.parametrize("chunk", [1, 4 * 24])  # 6 queries to 2 x 12 points: one or four at a time
def test_chunks_change_nothing(monkeypatch, kind, chunk):
    points, queries, features = make_clouds(kind, 2, 12), make_clouds(kind, 2, 6), torch.randn(2, 12, 6).double()

    def results():
        clouds = queries.requires_grad_(), points.requires_grad_()
        gradients = torch.autograd.grad(chamfer_l1(*clouds) + chamfer_l2(*clouds), clouds)
        return [*every_operation(points, queries, features).values(), *gradients]

    expected = results()
    monkeypatch.setitem(point_ops._CHUNK_ELEMENTS, "cpu", chunk)
    assert len(point_ops._split_queries(queries, points)) == math.ceil(6 / max(1, chunk // 24))
    for value, whole in zip(results(), expected, strict=True):
        torch.testing.assert_close(value, whole, rtol=0, atol=0)


@CHAMFER
def test_chamfer_gradient(chamfer):
    clouds = [torch.randn(1, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5)]
    assert torch.autograd.gradcheck(chamfer, clouds)


def test_gradients_of_grouping_and_interpolation():
    points = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda points: group_points(points, 3, 4), points)
    weights, indices = interpolation_weights(points, points)
    assert not weights.requires_grad and not k_nearest_neighbors(points, points, 4)[0].requires_grad
    inputs = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True), weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: interpolate(*inputs, indices), inputs)


@CHAMFER
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_chamfer_gradient_at_coincident_points(chamfer, dtype):
    points = torch.randn(2, 6, 3).to(dtype).requires_grad_()
    target = points.detach().flip(1).requires_grad_()
    gradients = torch.autograd.grad(chamfer(points, target), (points, target))
    assert not gradients[0].any() and not gradients[1].any()  # nor a NaN


def test_far_from_the_origin():
    # Multiples of 2^-10 in a unit cube: their squared distances, below 2^24 units, are exact in float32.
    clouds = torch.rand(2, 200, 3) + 1e4
    exact = clouds.double()
    assert torch.equal(farthest_point_sample(clouds, 50), farthest_point_sample(exact, 50))
    distances, indices = k_nearest_neighbors(clouds, clouds, 32)
    assert torch.equal(indices, k_nearest_neighbors(exact, exact, 32)[1])
    assert torch.equal(distances.double(), k_nearest_neighbors(exact, exact, 32)[0])
    for chamfer in (chamfer_l1, chamfer_l2):
        assert chamfer(*clouds.split(1)).item() == pytest.approx(chamfer(*exact.split(1)).item(), rel=1e-6)


@HALVES
def test_half_precision_is_measured_in_float32(dtype):
    clouds, queries = torch.randn(2, 100, 3).to(dtype).requires_grad_(), torch.randn(2, 9, 3).to(dtype)
    wide_clouds, wide_queries = clouds.float(), queries.float()
    assert torch.equal(farthest_point_sample(clouds, 100), farthest_point_sample(wide_clouds, 100))
    neighbors = k_nearest_neighbors(queries, clouds, 50)
    assert neighbors[0].dtype == torch.float32 and neighbors[1].dtype == torch.int64
    assert all(map(torch.equal, neighbors, k_nearest_neighbors(wide_queries, wide_clouds, 50)))
    for groups, wide in zip(group_points(clouds, 10, 5), group_points(wide_clouds, 10, 5), strict=True):
        assert torch.equal(groups, wide.to(dtype))
    for chamfer in (chamfer_l1, chamfer_l2):
        loss = chamfer(clouds, queries)
        assert loss.dtype == torch.float32 and torch.equal(loss, chamfer(wide_clouds, wide_queries))
        (gradient,) = torch.autograd.grad(loss, clouds)
        assert gradient.dtype == dtype and gradient.isfinite().all() and gradient.any()
    features = torch.randn(2, 100, 8).to(dtype)
    weights, indices = interpolation_weights(queries, clouds)
    interpolated = interpolate(features, weights, indices)
    assert weights.dtype == torch.float32 and interpolated.dtype == dtype
    difference = interpolated.float() - interpolate(features.float(), weights, indices)
    assert difference.abs().max() < 8 * torch.finfo(dtype).eps  # of features around 1


# Errors -------------------------------------------------------------------------------------------------------------

CLOUD = torch.zeros(2, 4, 3)
HOLE = torch.arange(8).view(2, 4, 1) == 6  # cloud 1, point 2

WRONG_COUNTS = [
    (farthest_point_sample, (CLOUD, 5), "`num_samples` must not exceed the number of points, got num_samples=5 and"),
    (farthest_point_sample, (CLOUD, 0), "`num_samples` must be at least 1, got 0"),
    (k_nearest_neighbors, (CLOUD, CLOUD, 5), "number of points, got k=5 and points of shape (2, 4, 3)"),
    (k_nearest_neighbors, (CLOUD, CLOUD, -1), "`k` must be at least 1, got -1"),
    (group_points, (CLOUD, 5, 1), "`num_groups` must not exceed the number of points, got num_groups=5 and points of"),
    (group_points, (CLOUD, 0, 1), "`num_groups` must be at least 1, got 0"),
    (group_points, (CLOUD, 1, 5), "`group_size` must not exceed the number of points, got group_size=5 and points of"),
    (group_points, (CLOUD, 1, 0), "`group_size` must be at least 1, got 0"),
    (k_nearest_neighbors, (CLOUD[:1], CLOUD, 1), "`queries` and `points` must share a batch, got 1 and 2 clouds"),
    (chamfer_l1, (CLOUD[:1], CLOUD), "same number of clouds with a point each, got shapes (1, 4, 3) and (2, 4, 3)"),
    (chamfer_l2, (CLOUD, CLOUD[:, :0]), "same number of clouds with a point each, got shapes (2, 4, 3) and (2, 0, 3)"),
    (chamfer_l1, (CLOUD, CLOUD, "sum"), "`reduction` must be 'mean' or 'none', got 'sum'"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), WRONG_COUNTS)
def test_wrong_counts_are_one_clear_error(function, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        function(*arguments)


WRONG_POINTS = [
    (CLOUD.long(), "must be a floating-point tensor, got torch.int64"),
    (CLOUD.tolist(), "must be a floating-point tensor, got list"),
    (CLOUD[0], "must have shape (batch, points, 3), got (4, 3)"),
    (CLOUD.mT, "must have shape (batch, points, 3), got (2, 3, 4)"),
    (CLOUD.masked_fill(HOLE, math.nan), "must be finite, got [nan, nan, nan] at cloud 1, point 2"),
    (CLOUD.masked_fill(HOLE, -math.inf), "must be finite, got [-inf, -inf, -inf] at cloud 1, point 2"),
]


@pytest.mark.parametrize(("points", "message"), WRONG_POINTS)
def test_wrong_points_are_one_clear_error(points, message):
    for name, function, arguments in (
        ("points", farthest_point_sample, (points, 1)),
        ("points", k_nearest_neighbors, (CLOUD, points, 1)),
        ("queries", k_nearest_neighbors, (points, CLOUD, 1)),
        ("points", group_points, (points, 1, 1)),
        ("points", chamfer_l2, (points, CLOUD)),
        ("target", chamfer_l1, (CLOUD, points)),
    ):
        with pytest.raises(ValueError, match=f"`{name}` {re.escape(message)}"):
            function(*arguments)


def test_grouping_can_be_exported():
    class Grouping(torch.nn.Module):
        def forward(self, points):
            return group_points(points, 5, 4)

    points = make_clouds("grid", 2, 12, torch.float32)
    exported = torch.export.export(Grouping(), (torch.randn(2, 12, 3),), strict=False).module()
    assert all(map(torch.equal, exported(points), group_points(points, 5, 4)))
