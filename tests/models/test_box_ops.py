"""Boxes against hand-worked volumes, polygons clipped in plain Python, and gradients."""

import math

import pytest
import torch

from modeling_act.modeling_act_detection import (
    axis_aligned,
    box_corners,
    box_iou,
    generalized_box_iou,
    points_in_boxes,
    suppress_overlapping,
)

UNIT = [0, 0, 0, 2, 2, 2, 0]


def boxes_of(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def random_boxes(*shape, dtype=torch.float64):
    sizes = torch.rand(*shape, 3, dtype=dtype) * 2 + 0.1
    angles = torch.rand(*shape, 1, dtype=dtype) * 14 - 7
    return torch.cat([torch.randn(*shape, 3, dtype=dtype), sizes, angles], dim=-1)


# Oracle: polygons clipped edge by edge -------------------------------------------------------------------------------


def footprint(box):
    x, y, _, length, width, _, angle = box
    cosine, sine = math.cos(angle), math.sin(angle)
    corners = [(s * length / 2, t * width / 2) for s, t in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    return [(x + cosine * u - sine * v, y + sine * u + cosine * v) for u, v in corners]


def cross(a, b, p):
    return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])


def clip(polygon, start, stop):
    """The part of a polygon to the left of a line."""
    kept = []
    for first, second in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        before, after = cross(start, stop, first), cross(start, stop, second)
        if before >= 0:
            kept.append(first)
        if before * after < 0:
            share = before / (before - after)
            kept.append(tuple(p + share * (q - p) for p, q in zip(first, second, strict=True)))
    return kept


def clipped_iou(box, other):
    polygon, edges = footprint(box), footprint(other)
    for start, stop in zip(edges, edges[1:] + edges[:1], strict=True):
        polygon = clip(polygon, start, stop) if polygon else []
    doubled = sum(p[0] * q[1] - p[1] * q[0] for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True))
    low, high = (pick(b[2] + s * b[5] / 2 for b in (box, other)) for pick, s in ((max, -1), (min, 1)))
    shared = doubled / 2 * max(0.0, high - low)
    return shared / (math.prod(box[3:6]) + math.prod(other[3:6]) - shared)


# Overlap -------------------------------------------------------------------------------------------------------------


def test_overlap_of_hand_made_boxes():
    others = boxes_of(
        UNIT,
        [1, 0, 0, 2, 2, 2, 0],  # shares half
        [1, 1, 1, 2, 2, 2, 0],  # shares an eighth
        [2, 0, 0, 2, 2, 2, 0],  # touches
        [6, 0, 0, 2, 2, 2, 0],  # lies apart
        [0, 0, 0, 1, 1, 1, 0.3],  # lies inside
        [0, 0, 0, 2, 2, 2, math.pi / 4],  # a regular octagon is shared
        [0, 0, 0, 2, 2, 2, math.pi / 2],  # the same box
        [0, 0, 3, 2, 2, 2, 0],  # hovers above
    )
    octagon = 8 * (math.sqrt(2) - 1) * 2  # of inradius 1, times the height
    expected = [1, 1 / 3, 1 / 15, 0, 0, 1 / 8, octagon / (16 - octagon), 1, 0]
    torch.testing.assert_close(box_iou(boxes_of(UNIT), others)[0], boxes_of(*expected))


def test_generalized_overlap_of_hand_made_boxes():
    others = boxes_of(UNIT, [1, 0, 0, 2, 2, 2, 0], [2, 0, 0, 2, 2, 2, 0], [6, 0, 0, 2, 2, 2, 0], [1, 1, 1, 2, 2, 2, 0])
    expected = [1, 1 / 3, 0, -(32 - 16) / 32, 1 / 15 - (27 - 15) / 27]
    torch.testing.assert_close(generalized_box_iou(boxes_of(UNIT), others)[0], boxes_of(*expected))


def test_equal_turned_boxes_are_perfect():
    """Also of the generalized overlap, whose loss would otherwise pull a right prediction away."""
    boxes = random_boxes(50)
    torch.testing.assert_close(generalized_box_iou(boxes, boxes).diagonal(), torch.ones(50, dtype=torch.float64))
    quarter = boxes[:, [0, 1, 2, 4, 3, 5, 6]] + boxes_of([0, 0, 0, 0, 0, 0, math.pi / 2])
    torch.testing.assert_close(generalized_box_iou(quarter, boxes).diagonal(), torch.ones(50, dtype=torch.float64))


def test_overlap_is_that_of_clipped_polygons():
    boxes, others = random_boxes(40), random_boxes(30)
    others[:10, 6] = boxes[:10, 6]  # parallel edges
    others[10:20, :6] = boxes[10:20, :6]
    expected = [[clipped_iou(box, other) for other in others.tolist()] for box in boxes.tolist()]
    expected = torch.tensor(expected, dtype=torch.float64)
    assert (expected > 0.05).sum() > 50
    torch.testing.assert_close(box_iou(boxes, others), expected, rtol=1e-12, atol=1e-12)
    single = box_iou(boxes.float(), others.float())
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)
    turned = torch.tensor([0.0, 0, 0, 0, 0, 0, 1], dtype=torch.float64) * 2 * math.pi
    torch.testing.assert_close(box_iou(boxes + turned, others), expected)


def test_overlap_is_the_share_of_random_points():
    box, other = boxes_of([0.2, 0, 0, 2, 1, 1, 0.5]), boxes_of([0, 0.3, 0.2, 1.5, 1.2, 1, -0.4])
    points = torch.rand(200_000, 3, dtype=torch.float64) * 3 - 1.5
    first, second = points_in_boxes(points, torch.cat([box, other]))
    share = (first & second).double().sum() / (first | second).double().sum()
    assert abs(box_iou(box, other).item() - share.item()) < 0.01


def test_overlap_is_symmetric_and_batched():
    boxes, others = random_boxes(2, 3, 5), random_boxes(2, 3, 4)
    overlap = box_iou(boxes, others)
    assert overlap.shape == (2, 3, 5, 4)
    torch.testing.assert_close(overlap, box_iou(others, boxes).transpose(-1, -2))
    torch.testing.assert_close(overlap[1, 2], box_iou(boxes[1, 2], others[1, 2]))
    assert box_iou(boxes, others[..., :0, :]).shape == (2, 3, 5, 0)


def test_flat_boxes_and_half_precision_stay_finite():
    flat = torch.zeros(3, 7, requires_grad=True)
    overlap = generalized_box_iou(flat, flat)
    overlap.sum().backward()
    assert overlap.isfinite().all() and flat.grad.isfinite().all()
    boxes = random_boxes(6).float()
    half = box_iou(boxes.bfloat16(), boxes.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, box_iou(boxes.bfloat16().float(), boxes.bfloat16().float()))


@pytest.mark.parametrize("operation", [box_iou, generalized_box_iou])
def test_gradients(operation):
    boxes, others = random_boxes(5).requires_grad_(), random_boxes(4).requires_grad_()
    assert torch.autograd.gradcheck(operation, (boxes, others))


def test_gradients_of_parallel_edges_are_finite_and_bounded():
    """An axis-aligned pair has edges that run along the other's, with nothing to divide by."""
    boxes = random_boxes(50).float()
    boxes[:, 6] = 0
    others = boxes + torch.tensor([0.15, 0.07, -0.1, 0.2, 0.1, -0.05, 0])
    boxes.requires_grad_()
    gradient = torch.autograd.grad(generalized_box_iou(boxes[:, None], others[:, None]).sum(), boxes)[0]
    pairs = boxes.detach()[:, None].double(), others[:, None].double()
    for axis in range(6):  # the angle has a kink here
        step = 1e-6 * torch.eye(7, dtype=torch.float64)[axis]
        ahead, behind = (generalized_box_iou(pairs[0] + sign * step, pairs[1]).flatten() for sign in (1, -1))
        torch.testing.assert_close(gradient[:, axis], ((ahead - behind) / 2e-6).float(), rtol=1e-3, atol=1e-3)


def test_apart_boxes_are_pulled_together():
    box, other = boxes_of([0, 0, 0, 1, 1, 1, 0.2]).requires_grad_(), boxes_of([4, 0, 0, 1, 1, 1, 0])
    generalized_box_iou(box, other).sum().backward()
    assert box.grad[0, 0] > 0.01


# The rest ------------------------------------------------------------------------------------------------------------


def test_corners():
    corners = box_corners(boxes_of([1, 2, 3, 4, 2, 6, math.pi / 2]))[0]
    below = [[0, 4, 0], [0, 0, 0], [2, 0, 0], [2, 4, 0]]
    torch.testing.assert_close(corners, boxes_of(*below, *([x, y, 6] for x, y, _ in below)))


def test_axis_aligned():
    half = math.sqrt(0.5)
    boxes = boxes_of([1, 2, 3, 4, 2, 6, math.pi / 2], [0, 0, 0, 2, 2, 1, math.pi / 4], [0, 0, 0, 3, 1, 1, math.pi])
    expected = [[1, 2, 3, 2, 4, 6, 0], [0, 0, 0, 4 * half, 4 * half, 1, 0], [0, 0, 0, 3, 1, 1, 0]]
    torch.testing.assert_close(axis_aligned(boxes), boxes_of(*expected))
    boxes = random_boxes(20)
    corners, around = box_corners(boxes), axis_aligned(boxes)
    torch.testing.assert_close(corners.amax(1) - corners.amin(1), around[:, 3:6])


def test_points_in_boxes():
    boxes = boxes_of([0, 0, 0, 4, 1, 1, math.pi / 2], [0, 0, 0, 4, 1, 1, 0])
    points = boxes_of([0, 1.9, 0, 0, 0, 0, 0], [1.9, 0, 0.5, 0, 0, 0, 0], [0, 0, 0.6, 0, 0, 0, 0])[:, :3]
    assert points_in_boxes(points, boxes).tolist() == [[True, False, False], [False, True, False]]


def test_repeated_boxes_are_suppressed():
    boxes = boxes_of(UNIT, [0.1, 0, 0, 2, 2, 2, 0], [0.2, 0, 0, 2, 2, 2, 0], [1.2, 0, 0, 2, 2, 2, 0], UNIT, UNIT)
    scores = torch.tensor([[0.8, 0.9, 0.7, 0.6, 0.5, 0.99]])
    labels = torch.tensor([[0, 0, 0, 0, 1, 0]])
    valid = torch.tensor([[True, True, True, True, True, False]])
    keep = suppress_overlapping(boxes[None], scores, labels, 0.5, valid)
    assert keep.tolist() == [[False, True, False, True, True, False]]
    # A box that was dropped drops none itself: the third overlaps the first by 1 / 3, and only the second more.
    chain = boxes_of(UNIT, [0.8, 0, 0, 2, 2, 2, 0], [1.6, 0, 0, 2, 2, 2, 0])[None]
    keep = suppress_overlapping(chain, torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3), 0.3, torch.ones(1, 3) > 0)
    assert keep.tolist() == [[True, False, True]]
