"""3D box operations in plain torch: corners, overlap of rotated boxes, points inside, non-maximum suppression.

A box is 7 numbers: center x, y, z, full size along its own three axes, and its rotation in radians about the upright z
axis, from x to y. Used by the detection model and its metric; knows nothing of them.
"""

import torch
from torch import Tensor

# Corners of a unit square in the order of a walk around it, counter-clockwise.
_SQUARE = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))
_TINY = 1e-9  # an edge no longer than this along an axis does not cross a line across that axis


def check_boxes(boxes: Tensor, name: str = "boxes") -> None:
    if not boxes.is_floating_point() or boxes.ndim < 1 or boxes.shape[-1] != 7:
        raise ValueError(
            f"`{name}` must be floating-point of shape (..., 7), center, size and angle, got {boxes.dtype} of shape "
            f"{tuple(boxes.shape)}"
        )


def box_corners(boxes: Tensor) -> Tensor:
    """(..., 7) -> (..., 8, 3): four corners below, counter-clockwise as seen from above, and the four above them."""
    check_boxes(boxes)
    flat = _footprints(boxes)
    heights = boxes[..., 2:3] + boxes[..., 5:6] * boxes.new_tensor([-0.5, 0.5])  # (..., 2)
    heights = heights.repeat_interleave(4, dim=-1).unsqueeze(-1)
    return torch.cat([torch.cat([flat, flat], dim=-2), heights], dim=-1)


def axis_aligned(boxes: Tensor) -> Tensor:
    """Compute the smallest boxes of angle 0 around boxes (..., 7)."""
    check_boxes(boxes)
    cosine, sine = boxes[..., 6].cos().abs(), boxes[..., 6].sin().abs()
    length, width, height = boxes[..., 3:6].unbind(-1)
    sizes = [cosine * length + sine * width, sine * length + cosine * width, height]
    return torch.cat([boxes[..., :3], torch.stack([*sizes, torch.zeros_like(height)], dim=-1)], dim=-1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the intersection over union of all pairs, (..., n, 7), (..., m, 7) -> (..., n, m); differentiable."""
    intersection, union, _ = _overlap(boxes, others)
    return intersection / union


def generalized_box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the generalized IoU of all pairs, between -1 and 1, with a gradient for boxes that do not touch; shapes
    as in `box_iou`.

    The enclosing box has the rotation of the other box. An axis-aligned one around rotated boxes would make equal
    boxes less than perfect, and a loss would pull them apart; without rotation both are the same.
    """
    intersection, union, enclosing = _overlap(boxes, others)
    return intersection / union - (enclosing - union) / enclosing


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Find the points in or on each box: (..., points, 3), (..., n, 7) -> (..., n, points)."""
    check_boxes(boxes)
    offsets = points.unsqueeze(-3) - boxes[..., :3].unsqueeze(-2)  # (..., n, points, 3)
    x, y = _rotate(offsets[..., 0], offsets[..., 1], -boxes[..., 6:7])
    half = boxes[..., 3:6].unsqueeze(-2) / 2
    return (x.abs() <= half[..., 0]) & (y.abs() <= half[..., 1]) & (offsets[..., 2].abs() <= half[..., 2])


def suppress_overlapping(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, valid: Tensor) -> Tensor:
    """Select boxes by non-maximum suppression, (scenes, n): a valid box is dropped if one of higher score, of the same
    label and scene, is selected and overlaps it by more than `iou`. Boxes (scenes, n, 7), all others (scenes, n)."""
    order = scores.where(valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    boxes = boxes.take_along_dim(order.unsqueeze(2), 1)
    labels, keep = labels.gather(1, order), valid.gather(1, order)
    rivals = (box_iou(boxes, boxes) > iou) & (labels.unsqueeze(2) == labels.unsqueeze(1))
    rivals = rivals.triu(1)  # a box drops only those that come after it
    for place in range(boxes.shape[1]):
        keep = keep & ~(rivals[:, place] & keep[:, place : place + 1])
    return torch.zeros_like(keep).scatter_(1, order, keep)


def _overlap(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute pairwise intersection, union and enclosing volume; the enclosing box has the other box's rotation."""
    check_boxes(boxes)
    check_boxes(others, "others")
    kind = torch.promote_types(boxes.dtype, torch.float32)
    boxes, others = boxes.to(kind).unsqueeze(-2), others.to(kind).unsqueeze(-3)  # (..., n, 1, 7), (..., 1, m, 7)
    boxes, half = _relative_to(boxes, others), others[..., 3:6] / 2
    aligned = axis_aligned(boxes)
    low, high = aligned[..., :3] - aligned[..., 3:6] / 2, aligned[..., :3] + aligned[..., 3:6] / 2  # (..., n, m, 3)
    height = torch.minimum(high[..., 2], half[..., 2]) - torch.maximum(low[..., 2], -half[..., 2])
    intersection = _intersection_area(boxes, half) * height.clamp_min(0)
    smallest = torch.finfo(kind).tiny
    union = (boxes[..., 3:6].prod(-1) + others[..., 3:6].prod(-1) - intersection).clamp_min(smallest)
    enclosing = (torch.maximum(high, half) - torch.minimum(low, -half)).prod(-1).clamp_min(smallest)
    return intersection, union, enclosing


def _relative_to(boxes: Tensor, others: Tensor) -> Tensor:
    """Transform boxes to coordinates in which the other box of each pair is at the origin and not rotated."""
    x, y, z = (boxes[..., :3] - others[..., :3]).unbind(-1)
    x, y = _rotate(x, y, -others[..., 6])
    sizes = boxes[..., 3:6].expand(*x.shape, 3)
    return torch.cat([torch.stack([x, y, z], dim=-1), sizes, (boxes[..., 6] - others[..., 6]).unsqueeze(-1)], dim=-1)


def _intersection_area(boxes: Tensor, half: Tensor) -> Tensor:
    """Compute the area common to footprints of boxes (..., 7) and rectangles |x| <= a, |y| <= b.

    `half` (..., 3) holds a and b.

    At x, the height of the intersection is that of the footprint's upper edges, clamped to [-b, b], minus that of its
    lower ones. So the area is a sum over the footprint's four edges: the integral of the clamped height over the part
    of the edge within |x| <= a, a linear function with at most two bends. It needs no polygon, holds for every
    position, and is continuous.
    """
    start = _footprints(boxes)  # (..., 4, 2)
    stop = start.roll(-1, dims=-2)
    limit_x, limit_y = half[..., 0:1], half[..., 1:2]

    (x0, y0), (x1, y1) = start.unbind(-1), stop.unbind(-1)  # (..., 4), an edge each
    left, right = x0.clamp(-limit_x, limit_x), x1.clamp(-limit_x, limit_x)
    run = _nonzero(x1 - x0)
    first = y0 + (y1 - y0) * (left - x0) / run
    last = y0 + (y1 - y0) * (right - x0) / run

    # Along the part, from 0 to 1: outside the band until `enter`, inside until `leave`. The derivative of the integral
    # by these two is zero, as a clamp does not jump, so they carry no gradient.
    with torch.no_grad():
        rise = _nonzero(last - first)
        bends = torch.stack([(-limit_y - first) / rise, (limit_y - first) / rise]).clamp_(0, 1)
        enter, leave = bends.amin(0), bends.amax(0)
    inside = first + (last - first) * (enter + leave) / 2
    height = enter * first.clamp(-limit_y, limit_y) + (1 - leave) * last.clamp(-limit_y, limit_y)
    height = height + (leave - enter) * inside
    return ((left - right) * height).sum(-1).clamp_min(0)


def _footprints(boxes: Tensor) -> Tensor:
    """(..., 7) -> (..., 4, 2), corners as seen from above, counter-clockwise."""
    corners = boxes[..., None, 3:5] * boxes.new_tensor(_SQUARE)
    x, y = _rotate(corners[..., 0], corners[..., 1], boxes[..., 6:7])
    return boxes[..., None, :2] + torch.stack([x, y], dim=-1)


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cosine, sine = angle.cos(), angle.sin()
    return cosine * x - sine * y, sine * x + cosine * y


def _nonzero(values: Tensor) -> Tensor:
    return values.where(values.abs() > _TINY, _TINY)
