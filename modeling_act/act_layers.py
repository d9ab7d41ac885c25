"""Layers that teacher and student share: mini-PointNet, position MLP, attention call, MLP, drop path."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN

from .point_ops import PointGroups, group_points, max_of_products

_POINTS_IN_CACHE = 2048  # rows of a mini-PointNet whose features, a few megabytes, a CPU keeps at hand


def make_groups(config: PreTrainedConfig, points: Tensor | None, groups: PointGroups | None) -> PointGroups:
    """The groups a model works on: those given, or `points` (batch, points, 3) cut as its configuration says."""
    if (points is None) == (groups is None):
        raise ValueError("give exactly one of `points` and `groups`")
    if groups is None:
        return group_points(points, config.num_groups, config.group_size, skip_near_origin=config.skip_near_origin)
    return PointGroups(*groups)


class ACTPartLinear(nn.Module):
    """A linear layer of a concatenation that is applied to one part at a time, each as often as it differs.

    Its weights are used in its own call, as offloading needs. No `nn.Linear`, which adapters and quantisers replace.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.in_features = in_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, values: Tensor, start: int = 0) -> Tensor:
        """Maps the input channels from `start` on; channel 0 brings the bias."""
        weight = self.weight[:, start : start + values.shape[-1]]
        # Rows in two dimensions: of three, torch makes a product for each cloud when the weight is a part of another.
        rows = nn.functional.linear(values.flatten(0, -2), weight, self.bias if start == 0 else None)
        return rows.unflatten(0, values.shape[:-1])


class ACTMaxLinear(nn.Module):
    """A linear layer, and the maximum of its outputs over a group's points; as `ACTPartLinear`, no `nn.Linear`."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features = in_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, values: Tensor) -> Tensor:
        """(groups, points, in_features) -> (groups, out_features)."""
        return max_of_products(values, self.weight) + self.bias


class ACTGroupEmbedding(nn.Module):
    """Mini-PointNet: one feature for each group, by max over its points."""

    def __init__(self, dims: list[int], embedding_dim: int):
        super().__init__()
        point_dim, group_dim, hidden_dim = dims
        self.linear1 = nn.Linear(3, point_dim)
        self.norm1 = nn.BatchNorm1d(point_dim)
        self.linear2 = ACTMaxLinear(point_dim, group_dim)
        self.linear3 = ACTPartLinear(2 * group_dim, hidden_dim)  # reads [group feature, point feature]
        self.norm2 = nn.BatchNorm1d(hidden_dim)
        self.linear4 = ACTMaxLinear(hidden_dim, embedding_dim)

    def forward(self, neighborhoods: Tensor, visible: Tensor | None = None) -> Tensor:
        """(batch, groups, group_size, 3) -> (batch, groups or visible groups, embedding_dim).

        `visible` (batch, visible groups) names the groups to embed. In training the others still take part in the
        batch statistics, as in the original, but the last layer is spared them.
        """
        if visible is not None and not self.training:
            neighborhoods, visible = select_groups(neighborhoods, visible), None
        batch_size, num_groups, group_size, _ = neighborhoods.shape
        groups = neighborhoods.flatten(0, 1).to(self.linear1.weight.dtype)
        both = self._join_linear2_and_linear3(groups)
        if self.training or torch.is_grad_enabled() or groups.device.type != "cpu" or torch.compiler.is_compiling():
            features = self._embed_points(groups, *both)
            if visible is not None:
                features = select_groups(features.unflatten(0, (batch_size, num_groups)), visible).flatten(0, 1)
            return self.linear4(features).unflatten(0, (batch_size, -1))
        # Part by part, so that what a layer leaves behind is still in the CPU's cache when the next one reads it.
        parts = groups.split(max(1, _POINTS_IN_CACHE // group_size))
        pooled = [self.linear4(self._embed_points(part, *both)) for part in parts]
        return torch.cat(pooled).unflatten(0, (batch_size, num_groups))

    def _join_linear2_and_linear3(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing bends between linear2 and the point's half of linear3, so both are one map of half the work: its
        weight (hidden_dim, point_dim) and offset (hidden_dim,)."""
        group_dim, point_dim = self.linear2.weight.shape
        basis = torch.eye(point_dim + 1, point_dim, dtype=like.dtype, device=like.device)  # unit vectors, and zero
        with torch.autocast(like.device.type, enabled=False):  # rounded once, where it is used
            images = self.linear3(self.linear2(basis.unsqueeze(1)), start=group_dim)
        return (images[:-1] - images[-1]).t(), images[-1]

    def _embed_points(self, groups: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        """(groups, group_size, 3) -> (groups, group_size, hidden_dim). What no gradient needs is overwritten."""
        group_size = groups.shape[1]
        features = self.norm1(self.linear1(groups.flatten(0, 1))).relu_()
        whole = self.linear2(features.unflatten(0, (-1, group_size)))  # (groups, group_dim)
        # linear3 of [whole, linear2(features)], without repeating the first half for each point of a group
        features = nn.functional.linear(features, weight).unflatten(0, (-1, group_size))
        whole = (self.linear3(whole) + offset).to(features.dtype)  # two types in one sum are slow on a GPU
        features = features.add_(whole.unsqueeze(1))
        return self.norm2(features.flatten(0, 1)).relu_().unflatten(0, (-1, group_size))


def select_groups(values: Tensor, groups: Tensor) -> Tensor:
    """(batch, groups, ...), (batch, kept) -> (batch, kept, ...)."""
    rows = torch.arange(values.shape[0], device=values.device).unsqueeze(1)
    return values[rows, groups]


class ACTPositionEmbedding(nn.Module):
    """Where a group lies: an MLP of its center, (..., 3) -> (..., hidden_size)."""

    def __init__(self, position_dim: int, hidden_size: int):
        super().__init__()
        self.linear1 = nn.Linear(3, position_dim)
        self.linear2 = nn.Linear(position_dim, hidden_size)

    def forward(self, centers: Tensor) -> Tensor:
        centers = centers.to(self.linear1.weight.dtype)
        return self.linear2(nn.functional.gelu(self.linear1(centers)))


class ACTMLP(nn.Module):
    """The MLP of a Transformer block; gated, and normalised inside, where the backbone has it so."""

    def __init__(self, config: PreTrainedConfig, gated: bool = False, norm: nn.Module | None = None):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size) if gated else None
        self.activation = ACT2FN[config.hidden_act]
        self.norm = norm if norm is not None else nn.Identity()
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.gate is None:
            hidden_states = self.activation(self.fc1(hidden_states))
        else:
            hidden_states = self.activation(self.gate(hidden_states)) * self.fc1(hidden_states)
        return self.fc2(self.norm(hidden_states))


class ACTDropPath(nn.Module):
    """Stochastic depth: in training, drops a branch for whole clouds and scales up the rest."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return branch
        keep = 1 - self.rate
        kept = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep)
        return branch * kept.div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def attend(
    module: nn.Module, attention: Callable, query: Tensor, key: Tensor, value: Tensor, **kwargs
) -> tuple[Tensor, Tensor | None]:
    """Attention of (batch, tokens, heads, head_dim) through one of transformers' implementations.

    Returns (batch, tokens, heads * head_dim), and the weights where the implementation has them.
    """
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    context, weights = attention(module, query, key, value, None, scaling=query.shape[-1] ** -0.5, **kwargs)
    return context.flatten(2), weights


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Textbook attention, (batch, heads, tokens, head_dim) -> (batch, tokens, heads, head_dim); keeps the weights."""
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(torch.float32, query.dtype)).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def init_torch_linear(linear: nn.Linear) -> None:
    """What `nn.Linear` does by itself; sparing loaded weights."""
    init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
    if linear.bias is not None:
        bound = 1 / math.sqrt(linear.in_features)
        init.uniform_(linear.bias, -bound, bound)
