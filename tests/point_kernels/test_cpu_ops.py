"""The operators on the CPU: gradients, tracing, threads, layouts, and what bad input is told."""

import re

import pytest
import torch

point_kernels = pytest.importorskip("point_kernels", reason="point_kernels is not installed")

from cases import make_clouds, oracle_chamfer, oracle_k_nearest_neighbors  # noqa: E402

from point_kernels import cpu_ops  # noqa: E402

if not point_kernels.is_available("cpu"):
    pytest.skip("point_kernels was installed without a C++ compiler", allow_module_level=True)

SQUARED = pytest.mark.parametrize("squared", [False, True])
ops = torch.ops.point_kernels


def make_pair(dtype=torch.float64):
    return [make_clouds("random", 3, size, dtype).requires_grad_() for size in (70, 13)]


@SQUARED
def test_gradient_of_chamfer(squared):
    points, target = make_pair()
    small = points[:, :9].detach().requires_grad_(), target
    assert torch.autograd.gradcheck(lambda a, b: point_kernels.chamfer(a, b, squared)[0], small)
    weights = torch.rand(3, dtype=torch.float64)
    gradients, expected = (
        torch.autograd.grad(loss @ weights, (points, target))
        for loss in (point_kernels.chamfer(points, target, squared)[0], oracle_chamfer(points, target, squared))
    )
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradient_has_the_dtype_of_its_cloud(dtype):
    points, target = make_pair(dtype)
    loss = point_kernels.chamfer(points, target.float())[0]
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss.sum(), (points, target))
    expected = torch.autograd.grad(oracle_chamfer(points, target.float()).sum(), (points, target))
    tolerance = torch.finfo(dtype).eps * 4
    torch.testing.assert_close(gradients, expected, rtol=tolerance, atol=tolerance)


def test_gradient_by_hand():
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]], requires_grad=True)
    target = torch.tensor([[[0.0, 0, 0], [4, 0, 0]]], requires_grad=True)
    loss, nearest_target, nearest_point = point_kernels.chamfer(points, target)
    assert loss.tolist() == [(1 / 2 + 3 / 2) / 2]
    assert (nearest_target.tolist(), nearest_point.tolist()) == ([[0, 0]], [[0, 1]])
    loss.backward()  # the pair that coincides pulls nothing
    assert points.grad[0, :, 0].tolist() == [0, 1 / 4 - 1 / 4] and target.grad[0, :, 0].tolist() == [-1 / 4, 1 / 4]


def test_there_is_no_second_gradient():
    points, target = make_pair()
    loss = point_kernels.chamfer(points, target, squared=True)[0].sum()
    (gradient,) = torch.autograd.grad(loss, points, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        gradient.sum().backward()


def test_distances_carry_no_gradient():
    points = make_clouds("random", 2, 20).requires_grad_()
    assert not point_kernels.k_nearest_neighbors(points, points, 3)[0].requires_grad


def test_operators_keep_the_rules_of_torch():
    points, target = make_pair()
    queries = target.detach()
    torch.library.opcheck(ops.farthest_point_sample, (points.detach(), 3, True))
    torch.library.opcheck(ops.k_nearest_neighbors, (queries, points.detach(), 3))
    torch.library.opcheck(ops.nearest_pairs, (points.detach(), queries))
    for squared in (False, True):
        torch.library.opcheck(ops.chamfer, (points, target, squared))
    _, *pairs = point_kernels.chamfer(points, target)
    arguments = (torch.rand(3, dtype=torch.float64), points.detach(), queries, *pairs, False)
    torch.library.opcheck(ops.chamfer_backward, arguments)


class Everything(torch.nn.Module):
    def forward(self, points, target):
        chosen = point_kernels.farthest_point_sample(points, 5)
        distances, indices = point_kernels.k_nearest_neighbors(target, points, 4)
        return chosen, distances, indices, point_kernels.chamfer(points, target)[0]


def test_compiled_without_a_graph_break():
    compiled = torch.compile(Everything(), fullgraph=True, backend="aot_eager", dynamic=True)
    for batch_size, num_points in ((2, 30), (3, 41)):
        points = make_clouds("random", batch_size, num_points).requires_grad_()
        target = make_clouds("random", batch_size, 12)
        results, expected = compiled(points, target), Everything()(points, target)
        assert all(map(torch.equal, results, expected))
        gradients = (torch.autograd.grad(values[3].sum(), points)[0] for values in (results, expected))
        assert torch.equal(*gradients)


def test_exported_with_dynamic_sizes():
    clouds = make_clouds("random", 2, 30), make_clouds("random", 2, 12)
    batch, size, target_size = (torch.export.Dim(name) for name in ("batch", "size", "target_size"))
    shapes = {"points": {0: batch, 1: size}, "target": {0: batch, 1: target_size}}
    exported = torch.export.export(Everything(), clouds, dynamic_shapes=shapes).module()
    clouds = make_clouds("random", 5, 61), make_clouds("random", 5, 9)
    assert all(map(torch.equal, exported(*clouds), Everything()(*clouds)))


@pytest.mark.parametrize(("batch_size", "num_points"), [(7, 3000), (1, 30_000)])
def test_threads_change_nothing(batch_size, num_points):
    points, target = make_clouds("surface", batch_size, num_points), make_clouds("surface", batch_size, 2000)
    points.requires_grad_()
    results, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            loss, *pairs = point_kernels.chamfer(points, target)
            (gradient,) = torch.autograd.grad(loss.sum(), points)
            chosen = point_kernels.farthest_point_sample(points, 70)
            neighbors = point_kernels.k_nearest_neighbors(target, points, 9)
            results.append((loss, *pairs, gradient, chosen, *neighbors))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_strided_and_mixed_input():
    points = make_clouds("random", 4, 50)
    strided = points.movedim(2, 0).contiguous().movedim(0, 2)[::2, 1::2]
    assert not strided.is_contiguous()
    for a, b in ((strided, points[:2]), (points[:2].double(), strided), (strided.half(), points[:2])):
        expected = oracle_k_nearest_neighbors(a, b, 6)
        assert all(map(torch.equal, point_kernels.k_nearest_neighbors(a, b, 6), expected))
    dense = strided.contiguous()
    for operation in (
        lambda cloud: point_kernels.farthest_point_sample(cloud, 5),
        lambda cloud: point_kernels.chamfer(cloud, points[:2])[0],
    ):
        assert torch.equal(operation(strided), operation(dense))


def test_empty_batches_and_no_queries():
    empty, points = torch.empty(0, 10, 3), torch.rand(2, 10, 3)
    assert point_kernels.farthest_point_sample(empty, 4).shape == (0, 4)
    assert point_kernels.k_nearest_neighbors(points[:, :0], points, 4)[1].shape == (2, 0, 4)
    loss, nearest_target, nearest_point = point_kernels.chamfer(empty.requires_grad_(), torch.empty(0, 5, 3))
    assert (loss.shape, nearest_target.shape, nearest_point.shape) == ((0,), (0, 10), (0, 5))
    assert torch.autograd.grad(loss.sum(), empty)[0].shape == (0, 10, 3)


CLOUDS = torch.zeros(2, 8, 3)
BAD_INPUT = [
    (ops.farthest_point_sample, (CLOUDS[0], 2, False), "`points` must be floating-point of shape"),
    (ops.farthest_point_sample, (CLOUDS[..., :2], 2, False), "(2, 8, 2)"),
    (ops.farthest_point_sample, (CLOUDS.int(), 2, False), "got torch.int32 of shape (2, 8, 3) on cpu"),
    (ops.farthest_point_sample, (CLOUDS, 9, False), "must be from 1 to the number of points, 8, got 9"),
    (ops.farthest_point_sample, (CLOUDS, 0, False), "got 0"),
    (ops.farthest_point_sample, (CLOUDS[:, :1].expand(2, 2**31, 3), 2, False), "at most 2147483647"),
    (ops.k_nearest_neighbors, (CLOUDS[:1], CLOUDS, 2), "must share a batch, got 1 and 2 clouds"),
    (ops.k_nearest_neighbors, (CLOUDS, CLOUDS, 9), "`k` must be from 1 to the number of points, 8, got 9"),
    (ops.nearest_pairs, (CLOUDS, CLOUDS[:, :0]), "must hold a point a cloud"),
    (ops.chamfer, (CLOUDS, CLOUDS[:1], True), "`points` and `target` must share a batch"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "arguments", "message"), BAD_INPUT)
def test_bad_input_is_named(operation, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        operation(*arguments)


def test_bad_indices_are_refused_before_they_are_followed():
    indices = torch.zeros(2, 8, dtype=torch.int64)
    for bad, message in (
        (indices + 8, "indices must lie within the points that they choose from"),
        (indices - 1, "indices must lie within the points that they choose from"),
        (indices[:, :7], "`nearest_point` must be int64 of shape (2, 8)"),
        (indices.int(), "`nearest_point` must be int64 of shape (2, 8)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            ops.chamfer_backward(torch.ones(2), CLOUDS, CLOUDS, indices, bad, True)
    with pytest.raises(ValueError, match=re.escape("`grad_loss` must have shape (2,)")):
        ops.chamfer_backward(torch.ones(3), CLOUDS, CLOUDS, indices, indices, True)


def test_instruction_set_can_be_chosen(run_python):
    code = "import point_kernels; print(point_kernels.instruction_set())"
    assert run_python("-c", code, environment={"POINT_KERNELS_ISA": "plain"}).stdout.strip() == "plain"
    process = run_python("-c", code, environment={"POINT_KERNELS_ISA": "sse9"})
    assert process.stdout.strip() == cpu_ops.instruction_set()
    assert len(process.stderr.splitlines()) == 1 and "POINT_KERNELS_ISA is ignored" in process.stderr
    with pytest.raises(ValueError, match="the instruction set must be one that is compiled"):
        cpu_ops.select_instruction_set("sse9")
