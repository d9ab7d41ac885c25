"""`ACTStudentForObjectDetection`: boxes around the objects of a scene, by a decoder after 3DETR on top of a student.

Each query starts from one of the student's groups, attends to the other queries and to all groups, and predicts a
class or "no object", and a box. Training matches queries and boxes one to one.
"""

import math
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .act_layers import ACTMLP, ACTAttention
from .configuration_act import ACTStudentConfig
from .modeling_act_student import ACTStudent, ACTStudentPreTrainedModel, check_labels

# 3DETR's for ScanNet; distances of center and size are in units of the scene's extents.
LOSS_WEIGHTS = {"class": 1.0, "center": 5.0, "size": 1.0, "giou": 1.0, "angle_class": 0.1, "angle": 0.5}
NO_OBJECT_WEIGHT = 0.25  # in the class loss, for the many queries without a box
CLASS_COST, GIOU_COST = 1.0, 2.0  # for matching
MIN_POINTS = 5  # in a box


@dataclass
class ACTDetectionOutput(ModelOutput):
    """
    loss: of the matched boxes and of all classes, summed over the decoder's layers, if boxes are given.
    losses: weighted parts of the last layer's loss, without gradient.
    logits: (batch, queries, num_labels + 1), "no object" last.
    boxes: center, size and angle, (batch, queries, 7).
    auxiliary_logits, auxiliary_boxes: the same for the layers before the last, (layers - 1, batch, queries, ...).
    hidden_states, attentions: of the encoder, on request.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    boxes: Tensor | None = None
    auxiliary_logits: Tensor | None = None
    auxiliary_boxes: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class ACTFourierPosition(nn.Module):
    """Random Fourier features of positions in a scene scaled to the unit cube, (..., 3) -> (..., dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("frequencies", torch.empty(3, dim // 2))

    def forward(self, places: Tensor) -> Tensor:
        # Products and sums, no matrix product: autocast would round the phases.
        phases = 2 * math.pi * (places.unsqueeze(-1) * self.frequencies).sum(-2)
        return torch.cat([phases.sin(), phases.cos()], dim=-1).to(self.frequencies.dtype)


class ACTDetectionAttention(ACTAttention):
    def __init__(self, config: ACTStudentConfig):
        super().__init__(config)
        self.head_shape = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(batch, queries, dim), (batch, tokens, dim) twice -> (batch, queries, dim)."""
        states = self.query(query), self.key(key), self.value(value)
        query, key, value = (part.unflatten(2, self.head_shape) for part in states)
        return self.proj(self.attend(query, key, value)[0])


class ACTDetectionLayer(GradientCheckpointingLayer):
    """Decoder layer: queries attend to each other and to the scene. Positions are added to queries and keys only."""

    def __init__(self, config: ACTStudentConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = ACTDetectionAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = ACTDetectionAttention(config)
        self.norm3 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ACTMLP(config)
        self.dropout = nn.Dropout(config.detection_dropout)

    def forward(self, queries: Tensor, query_positions: Tensor, tokens: Tensor, token_positions: Tensor) -> Tensor:
        """(batch, queries, dim) twice, (batch, tokens, dim) twice -> (batch, queries, dim)."""
        normed = self.norm1(queries)
        placed = normed + query_positions
        queries = queries + self.dropout(self.self_attention(placed, placed, normed))
        placed = self.norm2(queries) + query_positions
        queries = queries + self.dropout(self.cross_attention(placed, tokens + token_positions, tokens))
        return queries + self.dropout(self.mlp(self.norm3(queries)))


class ACTDetectionDecoder(nn.Module):
    def __init__(self, config: ACTStudentConfig):
        super().__init__()
        width, config = config.hidden_size, copy(config)
        config.hidden_size = config.intermediate_size = dim = config.detection_dim
        config.num_attention_heads = config.detection_num_attention_heads
        self.num_angle_bins = config.num_angle_bins
        self.projection = nn.Linear(width, dim)
        self.position_embedding = ACTFourierPosition(dim)
        self.query_position = make_mlp(dim, dim)
        self.layers = nn.ModuleList([ACTDetectionLayer(config) for _ in range(config.detection_num_hidden_layers)])
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.class_head = make_mlp(dim, config.num_labels + 1, config.detection_dropout)
        self.center_head = make_mlp(dim, 3, config.detection_dropout)
        self.size_head = make_mlp(dim, 3, config.detection_dropout)
        bins = config.num_angle_bins
        self.angle_head = make_mlp(dim, 2 * bins, config.detection_dropout) if bins > 1 else None

    def forward(
        self, tokens: Tensor, centers: Tensor, low: Tensor, extents: Tensor, num_queries: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decode tokens (batch, groups, width) at centers (batch, groups, 3) of scenes with lowest corners and extents
        (batch, 1, 3): logits, boxes and angles of every layer, (layers, batch, queries, ...). Angles (..., 2, bins)
        are as in `decode_angles`."""
        tokens = self.projection(tokens)
        token_positions = self.position_embedding((centers - low) / extents)
        # The first centers of farthest point sampling are a coarser sampling; 3DETR's queries start as zeros.
        queries, places = tokens[:, :num_queries], centers[:, :num_queries]
        query_positions = self.query_position(token_positions[:, :num_queries])
        states = []
        for layer in self.layers:
            queries = layer(queries, query_positions, tokens, token_positions)
            states.append(queries)
        states = self.norm(torch.stack(states))

        kind = torch.promote_types(states.dtype, torch.float32)
        logits = self.class_head(states).to(kind)
        middles = places + self.center_head(states).to(kind)
        sizes = self.size_head(states).to(kind).sigmoid() * extents
        angles, angle = None, torch.zeros_like(sizes[..., :1])
        if self.angle_head is not None:
            angles = self.angle_head(states).to(kind).unflatten(-1, (2, self.num_angle_bins))
            angle = decode_angles(angles)
        return logits, torch.cat([middles, sizes, angle], dim=-1), angles


def make_mlp(in_dim: int, out_dim: int, dropout: float = 0.0) -> nn.Sequential:
    hidden = [part for _ in range(2) for part in (nn.Linear(in_dim, in_dim), nn.ReLU(), nn.Dropout(dropout))]
    return nn.Sequential(*hidden, nn.Linear(in_dim, out_dim))


class ACTStudentForObjectDetection(ACTStudentPreTrainedModel):
    """Student with a detection decoder: a class and a box for each object of a scene, in metres, z up."""

    _no_split_modules = [*ACTStudentPreTrainedModel._no_split_modules, "ACTDetectionDecoder"]

    def __init__(self, config: ACTStudentConfig):
        super().__init__(config)
        if config.num_queries > config.num_groups:
            sizes = f"{config.num_queries} and {config.num_groups}"
            raise ValueError(f"`num_queries` must not exceed `num_groups`, at whose centers they start, got {sizes}")
        self.student = ACTStudent(config, use_cls_token=False)
        self.detector = ACTDetectionDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ACTFourierPosition):
            init.normal_(module.frequencies)
        elif isinstance(module, ACTDetectionDecoder):
            for linear in module.modules():
                if isinstance(linear, nn.Linear):
                    init.xavier_uniform_(linear.weight)

    @can_return_tuple
    def forward(
        self,
        points: Tensor,
        boxes: Tensor | None = None,
        box_labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ACTDetectionOutput:
        """Detect objects in points (batch, points, 3); with boxes (batch, max boxes, 7) and labels (batch, max boxes),
        -1 where a scene has fewer."""
        encoded = self.student(points, **kwargs)
        low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)  # (batch, 1, 3)
        extents = (high - low).clamp_min(1e-3)
        tokens, num_queries = encoded.last_hidden_state, self.config.num_queries
        logits, predicted, angles = self.detector(tokens, encoded.centers, low, extents, num_queries)
        loss = losses = None
        if boxes is not None:
            if not boxes.is_floating_point() or boxes.ndim != 3 or boxes.shape[::2] != (len(points), 7):
                kind = f"floating-point of shape ({len(points)}, max boxes, 7)"
                raise ValueError(f"`boxes` must be {kind}, got {boxes.dtype} of shape {tuple(boxes.shape)}")
            check_labels(box_labels, boxes.shape[:2], self.config.num_labels, "box_labels")
            losses = detection_losses(logits, predicted, angles, boxes, box_labels, extents)
            loss = sum(part.sum() for part in losses.values())
            losses = {name: part[-1].detach() for name, part in losses.items()}
        return ACTDetectionOutput(
            loss=loss,
            losses=losses,
            logits=logits[-1],
            boxes=predicted[-1],
            auxiliary_logits=logits[:-1],
            auxiliary_boxes=predicted[:-1],
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    @torch.no_grad()
    def post_process(
        self,
        output: ACTDetectionOutput,
        points: Tensor | None = None,
        threshold: float = 0.05,
        nms_iou: float | None = 0.25,
        every_class: bool = False,
    ) -> list[dict[str, Tensor]]:
        """Select boxes: for each scene `scores` (n,), `labels` (n,) and `boxes` (n, 7), the highest score first.

        Selected are boxes with an object probability above `threshold`, that hold five of the `points` (batch, points,
        3) if these are given, and the likeliest of overlapping ones of a class. A score is the probability of an
        object times that of its class. `every_class` returns each box once a class, as benchmarks evaluate them.
        """
        shares = output.logits.softmax(-1)
        objects, shares = 1 - shares[..., -1], shares[..., :-1]  # (batch, queries), (batch, queries, num_labels)
        keep = objects > threshold
        if points is not None:
            counts = [points_in_boxes(*scene).sum(-1) for scene in zip(points, output.boxes, strict=True)]
            keep &= torch.stack(counts) >= MIN_POINTS
        best, labels = shares.max(-1)
        if nms_iou is not None:
            keep = suppress_overlapping(output.boxes, objects, labels, nms_iou, keep)
        scenes = []
        for scene, mask in enumerate(keep):
            boxes, scores, classes = output.boxes[scene, mask], (best * objects)[scene, mask], labels[scene, mask]
            if every_class:
                num_labels = shares.shape[-1]
                scores = (shares * objects.unsqueeze(-1))[scene, mask].flatten()
                classes = torch.arange(num_labels, device=scores.device).repeat(len(boxes))
                boxes = boxes.repeat_interleave(num_labels, dim=0)
            order = scores.argsort(descending=True, stable=True)
            scenes.append({"scores": scores[order], "labels": classes[order], "boxes": boxes[order]})
        return scenes


# Losses --------------------------------------------------------------------------------------------------------------


def detection_losses(
    logits: Tensor, boxes: Tensor, angles: Tensor | None, true_boxes: Tensor, labels: Tensor, extents: Tensor
) -> dict[str, Tensor]:
    """Compute the weighted parts of each layer's loss, (layers,): of classes over all queries, of boxes the sum over
    the matched ones, divided by the number of boxes in the batch. Shapes as in `ACTDetectionDecoder` and its model."""
    true_boxes = true_boxes.to(boxes.dtype)
    num_layers, num_boxes = len(logits), (labels >= 0).sum().clamp_min(1)
    layer, scene, query, target = match(logits.detach(), boxes.detach(), true_boxes, labels)

    target_classes = torch.full(logits.shape[:3], logits.shape[-1] - 1, device=logits.device)
    target_classes[layer, scene, query] = labels[scene, target].long()
    weights = torch.where(target_classes == logits.shape[-1] - 1, NO_OBJECT_WEIGHT, 1.0)
    entropy = nn.functional.cross_entropy(logits.flatten(0, 2), target_classes.flatten(), reduction="none")
    losses = {"class": (entropy.view_as(weights) * weights).sum((1, 2)) / weights.sum((1, 2))}

    matched, true, scale = boxes[layer, scene, query], true_boxes[scene, target], extents[scene, 0]
    parts = {
        "center": ((matched - true)[:, :3].abs() / scale).sum(1),
        "size": ((matched - true)[:, 3:6].abs() / scale).sum(1),
        "giou": 1 - generalized_box_iou(matched.unsqueeze(1), true.unsqueeze(1)).flatten(),
    }
    if angles is not None:
        parts |= angle_losses(angles[layer, scene, query], true[:, 6])
    # Each layer matches as many boxes, and the pairs are ordered by layer.
    losses |= {name: part.view(num_layers, -1).sum(1) / num_boxes for name, part in parts.items()}
    return {name: LOSS_WEIGHTS[name] * part for name, part in losses.items()}


def angle_losses(angles: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Compute the losses of predicted angles (pairs, 2, bins), as in `decode_angles`, and true ones (pairs,)."""
    (scores, offsets), width = angles.unbind(1), 2 * math.pi / angles.shape[2]
    target_bin = (true / width).round().long()
    offset = 2 * (true / width - target_bin)  # in -1..1
    target_bin = target_bin.remainder(angles.shape[2])
    return {
        "angle_class": nn.functional.cross_entropy(scores, target_bin, reduction="none"),
        "angle": nn.functional.huber_loss(offsets.gather(1, target_bin[:, None])[:, 0], offset, reduction="none"),
    }


def decode_angles(angles: Tensor) -> Tensor:
    """Decode scores of angle bins and offsets from their centers in half bins, (..., 2, bins), to the angle (..., 1)
    of the likeliest bin."""
    scores, offsets = angles.unbind(-2)
    best = scores.argmax(-1, keepdim=True)
    return (2 * best + offsets.gather(-1, best)) * (math.pi / angles.shape[-1])


def match(logits: Tensor, boxes: Tensor, true_boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Match queries and boxes one to one at least cost: indices of layer, scene, query and box, (pairs,) each, ordered
    by layer."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("matching boxes in training needs scipy: pip install scipy") from error
    chosen = labels.clamp_min(0).long()[None, :, None].expand(*logits.shape[:3], -1)
    cost = -GIOU_COST * generalized_box_iou(boxes, true_boxes) - CLASS_COST * logits.softmax(-1).gather(-1, chosen)
    # The loss, not the matching, must report that a network diverged.
    cost, present = cost.nan_to_num().cpu().numpy(), (labels >= 0).cpu().numpy()
    pairs = []
    for layer, scenes in enumerate(cost):
        for scene, (rows, exists) in enumerate(zip(scenes, present, strict=True)):
            columns = exists.nonzero()[0]
            for query, target in zip(*linear_sum_assignment(rows[:, columns]), strict=True):
                pairs.append((layer, scene, query, columns[target]))
    return torch.tensor(pairs, dtype=torch.int64, device=logits.device).view(-1, 4).unbind(1)


# Boxes: center x, y, z, size along their own three axes, and rotation in radians about z, from x to y ----------------

# Corners of a unit square in the order of a walk around it, counter-clockwise.
_SQUARE = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))
_TINY = 1e-9  # an edge no longer than this along an axis does not cross a line across that axis


def box_corners(boxes: Tensor) -> Tensor:
    """(..., 7) -> (..., 8, 3): four corners below, counter-clockwise as seen from above, and the four above them."""
    flat = _footprints(boxes)
    heights = boxes[..., 2:3] + boxes[..., 5:6] * boxes.new_tensor([-0.5, 0.5])  # (..., 2)
    heights = heights.repeat_interleave(4, dim=-1).unsqueeze(-1)
    return torch.cat([torch.cat([flat, flat], dim=-2), heights], dim=-1)


def axis_aligned(boxes: Tensor) -> Tensor:
    """Compute the smallest boxes of angle 0 around boxes (..., 7)."""
    cosine, sine = boxes[..., 6].cos().abs(), boxes[..., 6].sin().abs()
    length, width, height = boxes[..., 3:6].unbind(-1)
    sizes = [cosine * length + sine * width, sine * length + cosine * width, height]
    return torch.cat([boxes[..., :3], torch.stack([*sizes, torch.zeros_like(height)], dim=-1)], dim=-1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the intersection over union of all pairs, (..., n, 7), (..., m, 7) -> (..., n, m); differentiable."""
    intersection, union, _ = _overlap(boxes, others)
    return intersection / union


def generalized_box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the generalized IoU of all pairs, with a gradient for boxes that do not touch; shapes as in `box_iou`.
    The enclosing box has the other box's rotation; by an axis-aligned one, a loss would pull equal boxes apart."""
    intersection, union, enclosing = _overlap(boxes, others)
    return intersection / union - (enclosing - union) / enclosing


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Find the points in or on each box: (..., points, 3), (..., n, 7) -> (..., n, points)."""
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
    kind = torch.promote_types(boxes.dtype, torch.float32)
    boxes, others = boxes.to(kind).unsqueeze(-2), others.to(kind).unsqueeze(-3)  # (..., n, 1, 7), (..., 1, m, 7)
    # In coordinates in which the other box of each pair is at the origin and not rotated, (..., n, m, 7).
    x, y, z = (boxes[..., :3] - others[..., :3]).unbind(-1)
    x, y = _rotate(x, y, -others[..., 6])
    turned, sizes = (boxes[..., 6] - others[..., 6]).unsqueeze(-1), boxes[..., 3:6].expand(*x.shape, 3)
    boxes, half = torch.cat([torch.stack([x, y, z], dim=-1), sizes, turned], dim=-1), others[..., 3:6] / 2
    aligned = axis_aligned(boxes)
    low, high = aligned[..., :3] - aligned[..., 3:6] / 2, aligned[..., :3] + aligned[..., 3:6] / 2  # (..., n, m, 3)
    height = torch.minimum(high[..., 2], half[..., 2]) - torch.maximum(low[..., 2], -half[..., 2])
    intersection = _intersection_area(boxes, half) * height.clamp_min(0)
    smallest = torch.finfo(kind).tiny
    union = (boxes[..., 3:6].prod(-1) + others[..., 3:6].prod(-1) - intersection).clamp_min(smallest)
    enclosing = (torch.maximum(high, half) - torch.minimum(low, -half)).prod(-1).clamp_min(smallest)
    return intersection, union, enclosing


def _intersection_area(boxes: Tensor, half: Tensor) -> Tensor:
    """Compute the area common to footprints of boxes (..., 7) and rectangles |x| <= a, |y| <= b, in `half` (..., 3).

    At x, the height of the intersection is that of the footprint's upper edges, clamped to [-b, b], minus that of its
    lower ones. So the area is a sum over the four edges: the integral of the clamped height over the part of the edge
    within |x| <= a, a linear function with at most two bends. It holds for every position, and is continuous.
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


ACTStudentForObjectDetection.register_for_auto_class("AutoModel")
