"""The Triton kernels against plain torch: on a GPU, or on the CPU in Triton's interpreter, where clouds must be small.

    TRITON_INTERPRET=1 python -m pytest tests/point_kernels/triton_cases.py

`test_triton.py` runs this in a process of its own: the interpreter is chosen when Triton is imported.
"""

import pytest
import torch

from modeling_act import point_ops
from point_kernels import triton_ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def plain_torch():
    """Operations of point_ops in plain torch, with which the kernels are compared."""
    with point_ops.without_kernels():
        yield


def random_cloud(*shape):
    return torch.randn(*shape, 3).to(DEVICE)


def grid_cloud(*shape):
    """Few distances, each many times, and points that coincide."""
    return torch.randint(-2, 3, (*shape, 3)).float().to(DEVICE)


def assert_equal(results, expected):
    for result, other in zip(results, expected, strict=True):
        assert result.dtype == other.dtype
        assert torch.equal(result, other)


# Farthest point sampling ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["on_chip", "blocks"])
def sampling(request, monkeypatch):
    if request.param == "blocks":  # as of clouds that are too large for one program
        monkeypatch.setattr(triton_ops, "_ON_CHIP_BYTES", 0)
        monkeypatch.setattr(triton_ops, "_SAMPLE_BLOCK", 32)


def check_samples(points, num_samples, skip_near_origin=False):
    arguments = (points, num_samples, skip_near_origin)
    assert_equal([triton_ops.farthest_point_sample(*arguments)], [point_ops._farthest_point_sample(*arguments)])


def test_samples_by_hand(sampling):
    line = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [4, 0, 0], [10, 0, 0], [6, 0, 0]]], device=DEVICE)
    assert triton_ops.farthest_point_sample(line, 5, False).tolist() == [[0, 3, 2, 4, 1]]
    duplicates = torch.tensor([[[1.0, 1, 1], [1, 1, 1], [2, 2, 2]]], device=DEVICE)
    assert triton_ops.farthest_point_sample(duplicates, 3, False).tolist() == [[0, 2, 0]]


@pytest.mark.parametrize("num_points", [1, 33, 70])
@pytest.mark.parametrize("cloud", [random_cloud, grid_cloud])
def test_samples(sampling, cloud, num_points):
    check_samples(cloud(2, num_points), min(num_points, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_samples_of_other_types(sampling, dtype):
    check_samples(random_cloud(2, 40).to(dtype), 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_beside_the_origin(sampling, dtype):
    # Squared norms around the bound of 1e-3, which differs between float32 and float64.
    points = torch.zeros(1, 12, 3, dtype=dtype, device=DEVICE)
    points[0, :, 0] = (1e-3 + torch.linspace(-1e-10, 1e-10, 12, dtype=torch.float64)).sqrt()
    check_samples(points, 12, skip_near_origin=True)
    check_samples(points.flip(1), 12, skip_near_origin=True)


def test_samples_of_extreme_clouds(sampling):
    check_samples(random_cloud(1, 33) * 1e30, 5)  # squares overflow
    check_samples(random_cloud(1, 33) + 1e4, 5)
    check_samples(random_cloud(1, 33) * 1e-22, 5)  # squares are denormal or zero
    broken = random_cloud(1, 33)
    broken[0, 20:23] = torch.nan
    indices = triton_ops.farthest_point_sample(broken, 33, False)
    assert indices.ge(0).all() and indices.lt(33).all()


def test_samples_of_strided_clouds():
    points = torch.randn(3, 60, 2).to(DEVICE).transpose(0, 2)  # (2, 60, 3)
    check_samples(points, 11)


# Nearest neighbours --------------------------------------------------------------------------------------------------


def check_neighbors(queries, points, k):
    arguments = (queries, points, k)
    assert_equal(triton_ops.k_nearest_neighbors(*arguments), point_ops._k_nearest_neighbors(*arguments))


def test_neighbors_by_hand():
    line = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [4, 0, 0], [1, 0, 0], [2, 0, 0]]], device=DEVICE)
    distances, indices = triton_ops.k_nearest_neighbors(line[:, 1:2], line, 5)
    assert indices.tolist() == [[[1, 3, 0, 4, 2]]]
    assert distances.tolist() == [[[0.0, 0.0, 1.0, 1.0, 9.0]]]


@pytest.mark.parametrize(("num_queries", "num_points", "k"), [(1, 1, 1), (4, 33, 8), (5, 100, 12)])
@pytest.mark.parametrize("cloud", [random_cloud, grid_cloud])
def test_neighbors(cloud, num_queries, num_points, k):
    check_neighbors(cloud(2, num_queries), cloud(2, num_points), k)


def test_neighbors_of_all_points():
    points = grid_cloud(1, 37)
    check_neighbors(points[:, :4], points, 37)


@pytest.mark.slow
@pytest.mark.parametrize("num_points", [1500, 40_000])  # more subsets; as many as there can be
def test_neighbors_in_larger_clouds(num_points):
    points = random_cloud(1, num_points)
    check_neighbors(points[:, :4], points, 20)
    points = grid_cloud(1, num_points)
    check_neighbors(points[:, :4], points, 20)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_neighbors_of_other_types(dtype):
    points = random_cloud(2, 40).to(dtype)
    check_neighbors(points[:, 5:9], points, 10)


def test_neighbors_in_extreme_clouds():
    for points in (random_cloud(1, 33) * 1e30, random_cloud(1, 33) + 1e4, random_cloud(1, 33) * 1e-22):
        check_neighbors(points[:, :3], points, 20)
    points[0, 20:23] = torch.nan
    indices = triton_ops.k_nearest_neighbors(points[:, 18:22], points, 33)[1]
    assert indices.ge(0).all() and indices.lt(33).all()


# Chamfer distance ----------------------------------------------------------------------------------------------------


def check_pairs(*arguments):
    assert_equal(triton_ops.nearest_pairs(*arguments), point_ops._nearest_pairs(*arguments))


@pytest.mark.parametrize(("num_points", "num_target"), [(1, 1), (8, 32), (33, 1), (9, 150)])
@pytest.mark.parametrize("cloud", [random_cloud, grid_cloud])
def test_pairs(cloud, num_points, num_target):
    check_pairs(cloud(2, num_points), cloud(2, num_target))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_pairs_of_other_types(dtype):
    check_pairs(random_cloud(2, 20).to(dtype), random_cloud(2, 9).to(dtype))


def check_chamfer(points, target):
    """Loss and gradients, for either power, against autograd through plain torch."""
    relative = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7}[points.dtype]
    tolerance = {"rtol": relative, "atol": min(relative, 1e-6)}
    for squared, oracle in ((False, point_ops.chamfer_l1), (True, point_ops.chamfer_l2)):
        clouds = points.clone().requires_grad_(), target.clone().requires_grad_()
        expected = oracle(*clouds, "none")
        grad_loss = torch.linspace(-1, 2, len(points), device=DEVICE).to(expected.dtype)
        expected_gradients = torch.autograd.grad(expected, clouds, grad_loss)
        loss, *nearest = triton_ops.chamfer_forward(points, target, squared)
        gradients = triton_ops.chamfer_backward(grad_loss, points, target, *nearest, squared)
        torch.testing.assert_close(loss, expected.detach(), **tolerance)
        for gradient, other in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, other, **tolerance)


@pytest.mark.parametrize(("num_points", "num_target"), [(1, 1), (8, 32), (19, 10)])
def test_chamfer(num_points, num_target):
    check_chamfer(random_cloud(2, num_points), random_cloud(2, num_target))


def test_chamfer_where_many_points_choose_one():
    check_chamfer(random_cloud(1, 30), random_cloud(1, 30) * torch.tensor([1.0, 0.0, 0.0], device=DEVICE))
    check_chamfer(random_cloud(2, 20), random_cloud(2, 1).expand(2, 12, 3))


def test_chamfer_where_pairs_coincide():
    points = grid_cloud(1, 30)
    check_chamfer(points, grid_cloud(1, 15))
    check_chamfer(points, points)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_chamfer_of_other_types(dtype):
    check_chamfer(random_cloud(2, 10).to(dtype), random_cloud(2, 5).to(dtype))


def test_empty_batches():
    points = random_cloud(0, 10)
    assert triton_ops.farthest_point_sample(points, 3, False).shape == (0, 3)
    assert triton_ops.k_nearest_neighbors(points, points, 3)[1].shape == (0, 10, 3)
    assert triton_ops.chamfer_forward(points, points, False)[0].shape == (0,)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda p: triton_ops.farthest_point_sample(p[0], 1, False), r"got torch.float32 \(9, 3\)"),
        (lambda p: triton_ops.farthest_point_sample(p.long(), 1, False), "got torch.int64"),
        (
            lambda p: triton_ops.farthest_point_sample(p, 10, False),
            "`num_samples` must be from 1 to .* 9, got 10",
        ),
        (
            lambda p: triton_ops.k_nearest_neighbors(p, p, 0),
            "`k` must be from 1 to the number of points, 9, got 0",
        ),
        (lambda p: triton_ops.k_nearest_neighbors(p[:1], p, 1), r"\(1, 9, 3\) .* beside a batch of 2"),
        (lambda p: triton_ops.chamfer_forward(p, p[:, :0], False), r"\(2, 0, 3\)"),
    ],
)
def test_what_kernels_cannot_read_is_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call(random_cloud(2, 9))


def test_gradients_of_indices_beyond_the_clouds_stay_inside():
    points = random_cloud(1, 20)
    nearest = torch.arange(20, device=DEVICE).unsqueeze(0) * 10**9 - 5
    gradients = triton_ops.chamfer_backward(torch.ones(1, device=DEVICE), points, points, nearest, nearest, True)
    assert not any(gradient.any() for gradient in gradients)
