"""Shared by teacher and student: the base class of all models, mini-PointNet, position MLP, attention, drop path."""

import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .errors import InputError
from .point_ops import PointGroups, group_points, max_of_products

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder")
SHIPPED = [Path(__file__).parents[level] / "pretrained" for level in (0, 1)]  # installed, or in a clone
_POINTS_IN_CACHE = 2048  # rows of a mini-PointNet whose features, a few megabytes, stay in a CPU's cache


def locate(name: str) -> str:
    """Return the folder of a model that comes with the package, such as act-tiny; other names stay as they are."""
    folders = [folder / name / "config.json" for folder in SHIPPED if name and not os.path.exists(name)]
    return next((str(file.parent) for file in folders if file.is_file()), name)


class ACTPreTrainedModel(PreTrainedModel):
    """Base class of teacher and students: cuts clouds into groups, and loads weights from safetensors only."""

    main_input_name = "points"
    accepts_loss_kwargs = False  # losses are means, whatever transformers' Trainer counts in `num_items_in_batch`
    supports_gradient_checkpointing = True
    _input_embed_layer = "group_embedding"
    _supports_sdpa = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args, use_safetensors: bool = True, **kwargs
    ):
        """Same as `PreTrainedModel.from_pretrained`, but takes names of shipped models, such as act-tiny, and never
        reads a pickle in place of safetensors."""
        if not use_safetensors:
            raise InputError("ACT models are loaded from safetensors only; leave out `use_safetensors=False`")
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        try:
            name = locate(pretrained_model_name_or_path)
            loaded = super().from_pretrained(name, *args, use_safetensors=True, **kwargs)
        except SafetensorError as error:
            raise InputError(f"{pretrained_model_name_or_path}: cannot be read as safetensors: {error}") from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._hub_arguments = hub_arguments  # `processor_of` finds the processor with them
        return loaded

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # In custom code, transformers skips modules without own parameters or with all of them loaded. `_init_weights`
        # must see them to initialize what lies below, and spares loaded tensors by itself.
        super()._initialize_weights(module)

    def group(self, points: Tensor) -> PointGroups:
        """Cut clouds (batch, points, 3) into the groups that teachers and students of equal sizes accept."""
        return make_groups(self.config, points, None)


def make_groups(config: PreTrainedConfig, points: Tensor | None, groups: PointGroups | None) -> PointGroups:
    """Return `groups`, or cut `points` (batch, points, 3) as the configuration says."""
    if (points is None) == (groups is None):
        raise ValueError("give exactly one of `points` and `groups`")
    if groups is None:
        return group_points(points, config.num_groups, config.group_size, skip_near_origin=config.skip_near_origin)
    return PointGroups(*groups)


class ACTPartLinear(nn.Module):
    """Linear layer of a concatenation, applied to one part at a time: each part once for each of its values.

    Not an `nn.Linear`, which adapters and quantizers replace.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.in_features = in_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, values: Tensor, start: int = 0) -> Tensor:
        """Map the input channels from `start` on; channel 0 brings the bias."""
        weight = self.weight[:, start : start + values.shape[-1]]
        # Rows in two dimensions: of three, torch makes a product for each cloud when the weight is a part of another.
        rows = nn.functional.linear(values.flatten(0, -2), weight, self.bias if start == 0 else None)
        return rows.unflatten(0, values.shape[:-1])


class ACTMaxLinear(ACTPartLinear):
    """Linear layer, and the maximum of its outputs over a group's points."""

    def forward(self, values: Tensor) -> Tensor:
        """(groups, points, in_features) -> (groups, out_features)."""
        return max_of_products(values, self.weight) + self.bias


class ACTGroupEmbedding(nn.Module):
    """Mini-PointNet: one feature for each group, the maximum over its points."""

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

        `visible` (batch, visible groups) holds the indices of the groups to embed. In training the others still take
        part in the batch statistics, as in the original, but skip the last layer.
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
        # In parts, so that a layer's output is still in the CPU's cache when the next one reads it.
        parts = groups.split(max(1, _POINTS_IN_CACHE // group_size))
        pooled = [self.linear4(self._embed_points(part, *both)) for part in parts]
        return torch.cat(pooled).unflatten(0, (batch_size, num_groups))

    def _join_linear2_and_linear3(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Fold linear2 into the point half of linear3, half the work: weight (hidden_dim, point_dim) and offset
        (hidden_dim,). No activation lies between them."""
        group_dim, point_dim = self.linear2.weight.shape
        basis = torch.eye(point_dim + 1, point_dim, dtype=like.dtype, device=like.device)  # unit vectors, and zero
        with torch.autocast(like.device.type, enabled=False):  # rounded once, where it is used
            images = self.linear3(self.linear2(basis.unsqueeze(1)), start=group_dim)
        return (images[:-1] - images[-1]).t(), images[-1]

    def _embed_points(self, groups: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        """(groups, group_size, 3) -> (groups, group_size, hidden_dim). Works in place where no gradient needs it."""
        group_size = groups.shape[1]
        features = self.norm1(self.linear1(groups.flatten(0, 1))).relu_()
        whole = self.linear2(features.unflatten(0, (-1, group_size)))  # (groups, group_dim)
        # linear3 of [whole, linear2(features)], without repeating the first half for each point of a group
        features = nn.functional.linear(features, weight).unflatten(0, (-1, group_size))
        whole = (self.linear3(whole) + offset).to(features.dtype)  # two types in one sum are slow on a GPU
        features = features.add_(whole.unsqueeze(1))
        return self.norm2(features.flatten(0, 1)).relu_().unflatten(0, (-1, group_size))


def select_groups(values: Tensor, groups: Tensor) -> Tensor:
    """(batch, groups, ...), (batch, selected) -> (batch, selected, ...)."""
    rows = torch.arange(values.shape[0], device=values.device).unsqueeze(1)
    return values[rows, groups]


class ACTPositionEmbedding(nn.Module):
    """Position embedding of a group: an MLP of its center, (..., 3) -> (..., hidden_size)."""

    def __init__(self, position_dim: int, hidden_size: int):
        super().__init__()
        self.linear1 = nn.Linear(3, position_dim)
        self.linear2 = nn.Linear(position_dim, hidden_size)

    def forward(self, centers: Tensor) -> Tensor:
        centers = centers.to(self.linear1.weight.dtype)
        return self.linear2(nn.functional.gelu(self.linear1(centers)))


class ACTMLP(nn.Module):
    """MLP of a Transformer block, optionally gated or with a norm inside."""

    def __init__(self, config: PreTrainedConfig, gated: bool = False, norm: nn.Module | None = None):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size) if gated else None
        self.activation = ACT2FN[config.hidden_act]
        self.norm = norm or nn.Identity()
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.gate is None:
            hidden_states = self.activation(self.fc1(hidden_states))
        else:
            hidden_states = self.activation(self.gate(hidden_states)) * self.fc1(hidden_states)
        return self.fc2(self.norm(hidden_states))


class ACTDropPath(nn.Module):
    """Stochastic depth: in training, drops the branch of whole clouds and scales up the rest."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return branch
        mask = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(1 - self.rate)
        return branch * mask.div_(1 - self.rate)


class ACTAttention(nn.Module):
    """Base of attention layers, which compute it by the one of transformers' implementations that was chosen."""

    is_causal = False

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **kwargs) -> tuple[Tensor, Tensor | None]:
        """(batch, tokens, heads, head_dim) each -> (batch, tokens, heads * head_dim), and the weights if computed."""
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        context, weights = attention(self, query, key, value, None, scaling=query.shape[-1] ** -0.5, **kwargs)
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
    """Textbook attention with weights, (batch, heads, tokens, head_dim) -> (batch, tokens, heads, head_dim)."""
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(torch.float32, query.dtype)).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def init_torch_linears(*modules: nn.Module) -> None:
    """Initialize linear layers in the modules as `nn.Linear` does by itself, but spare loaded weights."""
    for linear in (part for module in modules for part in module.modules()):
        if isinstance(linear, (nn.Linear, ACTPartLinear)):
            init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
            if linear.bias is not None:
                bound = 1 / math.sqrt(linear.in_features)
                init.uniform_(linear.bias, -bound, bound)


class ACTWhitening(nn.Module):
    """Vectors (..., dim) less their mean, with their principal directions at nearly equal variance.

    Without it a few directions decide every cosine. `POWER` 0.5 would make variances equal; 0.4 found neighbors of one
    class as well on real shapes, and amplifies rounding less. No direction counts more than one of `FLOOR` times the
    largest variance. Measured once, and no part of training.
    """

    POWER, FLOOR = 0.4, 1e-5

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("weight", torch.eye(dim))

    @torch.no_grad()
    def reset(self) -> None:
        """Initialize buffers that no checkpoint holds."""
        init.copy_(self.mean, torch.zeros_like(self.mean))
        init.copy_(self.weight, torch.eye(len(self.mean)))

    @torch.no_grad()
    def measure(self, vectors: Tensor) -> None:
        """Measure mean and principal directions of vectors (rows, dim)."""
        variances, directions = torch.linalg.eigh(torch.cov(vectors.double().t()))
        scales = variances.clamp_min(self.FLOOR * variances[-1]) ** -self.POWER
        self.mean.copy_(vectors.double().mean(0))
        self.weight.copy_((directions * scales).t())

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors.float() - self.mean.float()) @ self.weight.float().t()


class ACTTargetNorm(nn.Module):
    """Normalization of the features (..., sum of `dims`) of teachers whose widths are `dims`, each by itself.

    "standardize" shifts and scales each dimension to mean 0 and deviation 1. "phi_s" (RADIO's PHI-S) rotates a
    teacher's features so that all dimensions have the same variance, and scales them by one number: directions keep
    their share. Both are measured once. "layer_norm" normalizes each feature vector, without weights.
    """

    def __init__(self, kind: str, dims: list[int]):
        super().__init__()
        self.kind, self.dims = kind, dims
        if kind in ("standardize", "phi_s"):
            self.register_buffer("mean", torch.zeros(sum(dims)))
            self.register_buffer("std", torch.ones(sum(dims)))
        if kind == "phi_s":
            self.register_buffer("rotation", torch.eye(sum(dims)))

    @torch.no_grad()
    def reset(self) -> None:
        """Initialize buffers that no checkpoint holds."""
        for name, buffer in self.named_buffers():
            init.copy_(buffer, {"mean": torch.zeros, "std": torch.ones, "rotation": torch.eye}[name](len(buffer)))

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Measure the statistics of features (rows, width) of all teachers, or of the first ones."""
        start = 0
        for dim in self.dims:
            part, place = features[:, start : start + dim].float(), slice(start, start + dim)
            if not part.shape[1]:
                break
            std = part.std(0).clamp_min(1e-6)
            self.mean[place] = part.mean(0)
            if self.kind == "phi_s":
                self.rotation[place, place] = equalizing_rotation(torch.cov(part.double().t())).float()
                std = std.square().mean().sqrt()
            self.std[place] = std
            start += dim

    def forward(self, features: Tensor) -> Tensor:
        if self.kind == "layer_norm":
            parts = [nn.functional.layer_norm(part, part.shape[-1:]) for part in features.split(self.dims, dim=-1)]
            return torch.cat(parts, dim=-1)
        if self.kind == "none":
            return features
        features = (features - self.mean) / self.std
        return features @ self.rotation.t() if self.kind == "phi_s" else features

    def invert(self, features: Tensor) -> Tensor:
        """Return normalized features to the teacher's scale; a layer norm has no way back and stays."""
        if self.kind in ("none", "layer_norm"):
            return features
        return (features @ self.rotation if self.kind == "phi_s" else features) * self.std + self.mean


def equalizing_rotation(covariance: Tensor) -> Tensor:
    """Rotation (dim, dim) after which all dimensions have the same variance.

    Each step rotates two dimensions, one above and one below the mean variance, so that the first gets the mean.
    """
    dim = len(covariance)
    rotation, matrix = torch.eye(dim).to(covariance), covariance / covariance.trace().clamp_min(1e-12) * dim
    for _ in range(dim - 1):
        variances = matrix.diagonal()
        high, low = variances.argmax(), variances.argmin()
        above, below, shared = variances[high] - 1, variances[low] - 1, matrix[high, low]
        if above < 1e-9:
            break
        # The tangent t of the angle that makes (high + 2 t shared + t^2 low) / (1 + t^2) one.
        tangent = (-shared + (shared.square() - above * below).sqrt()) / below
        cosine = 1 / (1 + tangent.square()).sqrt()
        sine = tangent * cosine
        turn = torch.stack([torch.stack([cosine, sine]), torch.stack([-sine, cosine])])
        pair = torch.stack([high, low])
        rotation[pair] = turn @ rotation[pair]
        matrix[pair] = turn @ matrix[pair]
        matrix[:, pair] = matrix[:, pair] @ turn.t()
    return rotation
