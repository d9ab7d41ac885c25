"""The maximum over points of a linear map, and its sparse gradient, against the dense form."""

import pytest
import torch

pytest.importorskip("point_kernels.cpu_ops", reason="point_kernels is not installed")
from point_kernels import is_available, linear_max  # noqa: E402

if not is_available("cpu"):
    pytest.skip("point_kernels was installed without its compiled library", allow_module_level=True)

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def dense(values, weight):
    return torch.nn.functional.linear(values, weight).max(1)


def inputs(groups, points, features, channels, dtype):
    values = torch.randn(groups, points, features, dtype=dtype, requires_grad=True)
    return values, torch.randn(channels, features, dtype=dtype, requires_grad=True)


@FLOATS
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 5, 7, 9), (4, 32, 33, 70), (2, 8, 600, 129), (0, 4, 3, 2)])
def test_equals_the_dense_form(sizes, dtype):
    values, weight = inputs(*sizes, dtype)
    maximum, indices = linear_max(values, weight)
    expected = dense(values, weight)
    assert torch.equal(maximum, expected.values) and torch.equal(indices.long(), expected.indices)
    gradient = torch.randn_like(maximum)
    found = torch.autograd.grad(maximum, (values, weight), gradient)
    for ours, plain in zip(found, torch.autograd.grad(expected.values, (values, weight), gradient), strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_first_of_equal_points_gets_the_gradient():
    values = torch.tensor([[[1.0], [3.0], [3.0], [2.0]]], requires_grad=True)
    weight = torch.tensor([[2.0], [0.0], [-1.0]], requires_grad=True)
    maximum, indices = linear_max(values, weight)
    assert maximum.tolist() == [[6.0, 0.0, -1.0]] and indices.tolist() == [[1, 0, 0]]
    maximum.backward(torch.tensor([[1.0, 10.0, 100.0]]))
    assert values.grad.flatten().tolist() == [-100.0, 2.0, 0.0, 0.0]
    assert weight.grad.flatten().tolist() == [3.0, 10.0, 100.0]


def test_nan_is_not_lost():
    values = torch.tensor([[[1.0], [float("nan")], [2.0]]]).expand(1, 3, 1)
    for channels in (1, 40):
        assert linear_max(values, torch.ones(channels, 1))[0].isnan().all()


def test_threads_change_nothing():
    values, weight = inputs(64, 32, 128, 256, torch.float32)
    gradient, found = torch.randn(64, 256), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(torch.autograd.grad(linear_max(values, weight)[0], (values, weight), gradient))
        finally:
            torch.set_num_threads(1)
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, same)  # the product before rounds by threads; what follows does not


def test_operator():
    torch.library.opcheck(torch.ops.point_kernels.linear_max.default, inputs(3, 4, 5, 6, torch.float64))
    values, weight = inputs(2, 3, 4, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda *given: linear_max(*given)[0], (values, weight))


@pytest.mark.parametrize(
    ("values", "weight", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), "`values` must be float32 or float64 of shape"),
        (torch.zeros(2, 0, 3), torch.zeros(4, 3), "`values` must be float32 or float64 of shape"),
        (torch.zeros(2, 5, 3).half(), torch.zeros(4, 3).half(), "`values` must be float32 or float64"),
        (torch.zeros(2, 5, 3), torch.zeros(4, 2), "`weight` must be torch.float32 of shape (channels, 3)"),
        (torch.zeros(2, 5, 3), torch.zeros(4, 3).double(), "`weight` must be torch.float32 of shape (channels, 3)"),
    ],
)
def test_bad_input_gets_one_clear_line(values, weight, message):
    with pytest.raises(ValueError) as error:
        linear_max(values, weight)
    assert message in str(error.value)


def test_indices_that_lead_outside_are_refused():
    values, weight = torch.zeros(1, 3, 2), torch.zeros(4, 2)
    for index in (-1, 3):
        indices = torch.full((1, 4), index, dtype=torch.int32)
        with pytest.raises(ValueError, match="indices must lie within"):
            torch.ops.point_kernels.linear_max_backward(torch.zeros(1, 4), indices, values, weight)
