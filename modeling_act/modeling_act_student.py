"""`ACTStudent`, stage 2 and after: a plain Transformer over groups of points, its pretraining and its heads."""

from collections.abc import Iterable
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .act_layers import (
    ACTMLP,
    ACTAttention,
    ACTDropPath,
    ACTGroupEmbedding,
    ACTPartLinear,
    ACTPositionEmbedding,
    ACTPreTrainedModel,
    ACTTargetNorm,
    ACTWhitening,
    init_torch_linears,
    make_groups,
    select_groups,
)
from .configuration_act import ACTStudentConfig
from .errors import InputError
from .inference import encode, encode_points, in_eval_mode, similarity
from .point_ops import PointGroups, chamfer_l2, gather_points, interpolate, interpolation_weights, sample_mask

if TYPE_CHECKING:  # unused here, but transformers then saves this file beside the model, whose config.json names it
    from .pipelines_act import ACTPointCloudPipeline  # noqa: F401


@dataclass
class ACTStudentOutput(ModelOutput):
    """
    last_hidden_state: normalised tokens, (batch, 1 + visible groups, hidden_size); the class token first.
    pooler_output: tokens pooled as `config.pooling` says, by default [class token, maximum over the groups].
    centers: of all groups, (batch, groups, 3).
    layer_states: outputs of the layers in `read_layers`, before the final norm.
    hidden_states: input of the first layer and outputs of all, before the final norm; on request.
    attentions: (batch, heads, tokens, tokens) for each layer; on request.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    centers: Tensor | None = None
    layer_states: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class ACTStudentForPreTrainingOutput(ModelOutput):
    """
    loss: distance between predicted and teacher features of the masked groups, if teacher features are given.
    group_loss, cloud_loss: if features of clouds are learned too, both parts of `loss`, which is `group_loss +
        cloud_loss_weight * cloud_loss`.
    predicted_features: normalized features (batch, masked groups, teacher_dim), the masked groups in ascending order.
    cloud_features: normalized features of clouds that the class token predicts, (batch, sum of `cloud_dims`).
    mask: (batch, groups), 1 where a group was masked.
    last_hidden_state: of the encoder, as in `ACTStudentOutput`.
    hidden_states, attentions: of the encoder, on request.
    """

    loss: Tensor | None = None
    group_loss: Tensor | None = None
    cloud_loss: Tensor | None = None
    predicted_features: Tensor | None = None
    cloud_features: Tensor | None = None
    mask: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class ACTStudentAttention(ACTAttention):
    def __init__(self, config: ACTStudentConfig):
        super().__init__(config)
        self.head_shape = (3, config.num_attention_heads, config.hidden_size // config.num_attention_heads)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, num_keys: int | None = None, **kwargs) -> tuple[Tensor, Tensor | None]:
        """Attend to the first `num_keys` tokens, by default to all."""
        query, key, value = self.qkv(hidden_states).unflatten(2, self.head_shape).unbind(2)
        context, weights = self.attend(query, key[:, :num_keys], value[:, :num_keys], **kwargs)
        return self.proj(context), weights


class ACTStudentLayer(GradientCheckpointingLayer):
    def __init__(self, config: ACTStudentConfig, drop_path_rate: float):
        super().__init__()
        self.residual_after_norm = config.residual_after_norm
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ACTStudentAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ACTMLP(config)
        self.drop_path = ACTDropPath(drop_path_rate)

    def forward(self, hidden_states: Tensor, positions: Tensor, **kwargs) -> Tensor:
        """Both (batch, tokens, hidden_size); positions are added before every layer."""
        hidden_states = hidden_states + positions
        normed = self.norm1(hidden_states)
        residual = normed if self.residual_after_norm else hidden_states
        hidden_states = residual + self.drop_path(self.attention(normed, **kwargs)[0])
        normed = self.norm2(hidden_states)
        residual = normed if self.residual_after_norm else hidden_states
        return residual + self.drop_path(self.mlp(normed))


def make_layers(config: ACTStudentConfig, num_layers: int) -> nn.ModuleList:
    """Create layers whose drop path grows linearly from 0 to the configured rate."""
    rates = torch.linspace(0, config.drop_path_rate, num_layers, device="cpu").tolist()
    return nn.ModuleList([ACTStudentLayer(config, rate) for rate in rates])


class ACTStudentDecoder(nn.Module):
    """Predicts the teacher's features of masked groups from the encoded visible ones."""

    def __init__(self, config: ACTStudentConfig):
        super().__init__()
        self.attention, self.center_jitter = config.decoder_attention, config.center_jitter
        config = copy(config)
        config.num_attention_heads = config.decoder_num_attention_heads or config.num_attention_heads
        config.intermediate_size = config.decoder_intermediate_size or config.intermediate_size
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embedding = ACTPositionEmbedding(config.position_dim, config.hidden_size)
        self.layers = make_layers(config, config.decoder_num_hidden_layers)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.hidden_size, config.teacher_dim)

    def forward(self, visible_states: Tensor, visible_centers: Tensor, masked_centers: Tensor) -> Tensor:
        """(batch, visible, hidden_size), (batch, visible, 3), (batch, masked, 3) -> (batch, masked, teacher_dim)."""
        batch_size, num_masked, _ = masked_centers.shape
        if self.training and self.center_jitter:
            masked_centers = masked_centers + self.center_jitter * torch.randn_like(masked_centers)
        if self.attention == "none":
            visible_states, visible_centers = visible_states[:, :0], visible_centers[:, :0]
        hidden_states = torch.cat([visible_states, self.mask_token.expand(batch_size, num_masked, -1)], dim=1)
        positions = self.position_embedding(torch.cat([visible_centers, masked_centers], dim=1))
        num_keys = visible_centers.shape[1] if self.attention == "visible" else None
        for layer in self.layers:
            hidden_states = layer(hidden_states, positions, num_keys=num_keys)
        return self.projection(self.norm(hidden_states[:, -num_masked:]))


class ACTStudentPreTrainedModel(ACTPreTrainedModel):
    config: ACTStudentConfig
    config_class = ACTStudentConfig
    base_model_prefix = "student"
    _no_split_modules = ["ACTStudentLayer", "ACTGroupEmbedding", "ACTStudentDecoder", "ACTSegmentationHead"]
    _keys_to_ignore_on_load_unexpected = [r"^(decoder|cloud_head|target_norm|cloud_norm)\."]  # of pretraining only
    _can_record_outputs = {"hidden_states": ACTStudentLayer, "attentions": ACTStudentAttention}
    _pipeline: tuple[str, str] | None = None  # a task of `transformers.pipeline`, and the class that serves it

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the original: truncated normal, Xavier in the decoder, and torch's default elsewhere."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, ACTPartLinear)):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, ACTStudent) and module.cls_token is not None:
            init.trunc_normal_(module.cls_token, std=std)
            init.trunc_normal_(module.cls_position, std=std)
        elif isinstance(module, ACTStudentDecoder):
            init.trunc_normal_(module.mask_token, std=std)
            for linear in module.layers.modules():
                if isinstance(linear, nn.Linear):
                    init.xavier_uniform_(linear.weight)
            init_torch_linears(module.position_embedding, module.projection)
        elif isinstance(module, (ACTTargetNorm, ACTWhitening)):
            module.reset()
        elif isinstance(module, ACTClassificationHead):
            init_torch_linears(module)

    def vector_dim(self, space: str = "student") -> int:
        """Return the width of a space's vectors, or raise if the model cannot embed clouds in it."""
        if space not in ("student", "teacher"):
            raise ValueError(f"`space` must be student or teacher, got {space!r}")
        if space == "teacher" and getattr(self, "cloud_head", None) is None:
            needed = "an ACTStudentForPreTraining that learned its teacher's features of clouds (`cloud_dims`)"
            raise InputError(f"space='teacher' needs {needed}, got {type(self).__name__} without that head")
        return self.config.pooled_dim if space == "student" else self.config.cloud_dims[0]

    def embed(self, points: Tensor, space: str = "student") -> Tensor:
        """Embed clouds (batch, points, 3) as vectors (batch, width): the encoder's `pooler_output`, whitened if it has
        been measured, or in the space "teacher" the first teacher's features of the cloud, which the class token
        predicts."""
        width, encoder = self.vector_dim(space), self.base_model
        output = encoder(points)
        if space == "student":
            return output.pooler_output if encoder.whitening is None else encoder.whitening(output.pooler_output)
        return self.cloud_norm.invert(self.cloud_head(output.last_hidden_state[:, 0]))[:, :width]

    def save_pretrained(self, *args, **kwargs) -> None:
        """Save the model and name its code; as remote code, `AutoModel` is the encoder unless a head claims it."""
        encoder = f"{ACTStudent.__module__.rpartition('.')[2]}.{ACTStudent.__name__}"
        self.config.auto_map = {"AutoModel": encoder}  # replaces the entries of the folder that this model came from
        if self._pipeline is not None:
            task, pipeline_class = self._pipeline
            self.config.custom_pipelines = {task: {"impl": f"pipelines_act.{pipeline_class}", "pt": ["AutoModel"]}}
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self.config.__dict__.pop("custom_pipelines", None)  # for the folder only: see the configuration


class ACTStudent(ACTStudentPreTrainedModel):
    """Encoder of point clouds. `use_cls_token` overrides the configuration for heads that use no class token."""

    _pipeline = ("point-cloud-feature-extraction", "ACTPointCloudFeatureExtractionPipeline")

    def __init__(self, config: ACTStudentConfig, use_cls_token: bool | None = None):
        super().__init__(config)
        embedding_dim = config.embedding_dim or config.hidden_size
        self.group_embedding = ACTGroupEmbedding(config.pointnet_dims, embedding_dim)
        same_width = embedding_dim == config.hidden_size
        self.projection = nn.Identity() if same_width else nn.Linear(embedding_dim, config.hidden_size)
        self.position_embedding = ACTPositionEmbedding(config.position_dim, config.hidden_size)
        self.cls_token = self.cls_position = None
        if config.use_cls_token if use_cls_token is None else use_cls_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
            self.cls_position = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.layers = make_layers(config, config.num_hidden_layers)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.whitening = ACTWhitening(config.pooled_dim) if config.whitening else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        points: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        groups: PointGroups | None = None,
        visible_groups: Tensor | None = None,
        read_layers: list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ACTStudentOutput:
        """Encode clouds (batch, points, 3), or `groups` cut from them.

        `bool_masked_pos` (batch, groups) masks groups where it is True, as many in each cloud; `visible_groups`
        (batch, visible) are the indices of the others, which a GPU need not wait for. `read_layers` (1-based) are the
        layers whose outputs are returned as `layer_states`.
        """
        centers, neighborhoods = make_groups(self.config, points, groups)
        if bool_masked_pos is not None:
            visible_groups, _ = split_mask(bool_masked_pos, count_masked(bool_masked_pos, centers, self.config))
        if visible_groups is not None and self.config.embed_visible_only:
            tokens = self.group_embedding(select_groups(neighborhoods, visible_groups))
        else:
            tokens = self.group_embedding(neighborhoods, visible_groups)
        # Under autocast, the residual stream keeps the weights' dtype.
        tokens = self.projection(tokens).to(self.norm.weight.dtype)
        visible_centers = centers if visible_groups is None else gather_points(centers, visible_groups)
        positions = self.position_embedding(visible_centers)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            positions = torch.cat([self.cls_position.expand(tokens.shape[0], -1, -1), positions], dim=1)
        states = {}
        for number, layer in enumerate(self.layers, start=1):
            tokens = layer(tokens, positions, **kwargs)
            if read_layers is not None and number in read_layers:
                states[number] = tokens
        tokens = self.norm(tokens)
        layer_states = None if read_layers is None else tuple(states[number] for number in read_layers)
        pooled = pool_tokens(tokens, self.cls_token is not None, self.config.pooling)
        return ACTStudentOutput(tokens, pooled, centers, layer_states)

    def fit_whitening(self, inputs: Iterable, **options) -> None:
        """Spread the cosines of vectors of `encode`: center them and even out their principal directions, as measured
        on a thousand clouds or more, with `options` of `encode`."""
        self.whitening, self.config.whitening = None, False
        vectors = self.encode(inputs, normalize=False, **options)
        if len(vectors) <= (width := self.config.pooled_dim):
            raise InputError(f"whitening needs more clouds than the {width} numbers of a vector, got {len(vectors)}")
        self.whitening, self.config.whitening = ACTWhitening(width).to(self.device), True
        self.whitening.measure(vectors.to(self.device))

    encode = encode
    encode_points = encode_points
    similarity = staticmethod(similarity)


def pool_tokens(tokens: Tensor, has_cls_token: bool, pooling: str) -> Tensor:
    """Pool tokens (batch, tokens, hidden_size), the class token first if there is one, to (batch, width).

    `pooling` joins cls (the class token, or the mean where there is none), max and mean (over the groups) with "_".
    """
    groups = tokens[:, 1:] if has_cls_token else tokens
    pools = {
        "cls": lambda: tokens[:, 0] if has_cls_token else tokens.mean(1),
        "max": lambda: groups.max(1).values,
        "mean": lambda: groups.mean(1),
    }
    return torch.cat([pools[part]() for part in pooling.split("_")], dim=-1)


class ACTStudentForPreTraining(ACTStudentPreTrainedModel):
    """Masked distillation: predicts teachers' features of the masked groups, and of the cloud, from the visible ones.

    Features are given and learned as `target_norm` normalizes them; its statistics are measured before training.
    """

    def __init__(self, config: ACTStudentConfig):
        super().__init__(config)
        self.student = ACTStudent(config)
        self.decoder = ACTStudentDecoder(config)
        self.target_norm = ACTTargetNorm(config.target_norm, config.teacher_dims or [config.teacher_dim])
        self.cloud_head = None
        if config.cloud_dims:
            self.cloud_head = nn.Linear(config.hidden_size, sum(config.cloud_dims))
            self.cloud_norm = ACTTargetNorm(config.target_norm, config.cloud_dims)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        points: Tensor | None = None,
        teacher_features: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        groups: PointGroups | None = None,
        generator: torch.Generator | None = None,
        num_masked: int | None = None,
        cloud_features: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ACTStudentForPreTrainingOutput:
        """Predict the masked groups of clouds (batch, points, 3), or of `groups` cut from them.

        `teacher_features` (batch, groups, teacher_dim) come from a teacher's `get_teacher_features` for the same
        `points` or `groups`, and `cloud_features` (batch, sum of `cloud_dims`) too, if the student learns them; those
        of several teachers lie beside each other. Without `bool_masked_pos` (batch, groups), `generator` draws the
        mask. `num_masked` is the number of groups that it masks in each cloud; a GPU then need not wait until the mask
        is read."""
        centers, neighborhoods = groups = make_groups(self.config, points, groups)
        if bool_masked_pos is None:
            num_masked = int(self.config.mask_ratio * centers.shape[1])
            bool_masked_pos = sample_mask(centers, num_masked, self.config.mask_type, generator)
        else:
            num_masked = count_masked(bool_masked_pos, centers, self.config, num_masked)
        visible, masked = split_mask(bool_masked_pos, num_masked)
        if num_masked in (0, (num_groups := centers.shape[1])):
            raise ValueError(f"pretraining needs visible and masked groups, got {num_masked} of {num_groups} masked")

        encoded = self.student(groups=groups, visible_groups=visible, **kwargs)
        visible_states = encoded.last_hidden_state[:, -visible.shape[1] :]  # without the class token
        predicted = self.decoder(visible_states, gather_points(centers, visible), gather_points(centers, masked))
        predicted_cloud = None if self.cloud_head is None else self.cloud_head(encoded.last_hidden_state[:, 0])
        loss = group_loss = cloud_loss = None
        if self.config.target == "coordinates":
            loss = coordinate_loss(predicted, neighborhoods[bool_masked_pos])
        elif teacher_features is not None:
            if teacher_features.shape != (expected := (*centers.shape[:2], self.config.teacher_dim)):
                shape = f"(batch, num_groups, teacher_dim) = {expected}, got {tuple(teacher_features.shape)}"
                raise ValueError(f"`teacher_features` must have shape {shape}")
            target = self.target_norm(gather_points(teacher_features, masked))
            loss = self._loss(predicted, target, self.target_norm.dims)
        if (cloud_features is None) != (predicted_cloud is None) and loss is not None:
            raise ValueError("`cloud_features` and the configuration's `cloud_dims` go together")
        if cloud_features is not None:
            if cloud_features.shape != predicted_cloud.shape:
                shape = f"(batch, sum of `cloud_dims`) = {tuple(predicted_cloud.shape)}"
                raise ValueError(f"`cloud_features` must have shape {shape}, got {tuple(cloud_features.shape)}")
            cloud_loss = self._loss(predicted_cloud, self.cloud_norm(cloud_features), self.config.cloud_dims)
            group_loss = loss
            loss = self.config.cloud_loss_weight * cloud_loss + (0 if group_loss is None else group_loss)
        return ACTStudentForPreTrainingOutput(
            loss=loss,
            group_loss=group_loss,
            cloud_loss=cloud_loss,
            predicted_features=predicted,
            cloud_features=predicted_cloud,
            mask=bool_masked_pos.float(),
            last_hidden_state=encoded.last_hidden_state,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _loss(self, predicted: Tensor, target: Tensor, dims: list[int]) -> Tensor:
        return teachers_loss(predicted, target, dims, self.config.teacher_weights, self.config.loss_type)

    encode = encode
    similarity = staticmethod(similarity)

    @torch.inference_mode()
    def reconstruct(
        self,
        points: Tensor,
        teacher: ACTPreTrainedModel | None = None,
        bool_masked_pos: Tensor | None = None,
        seed: int = 0,
    ) -> list[dict[str, Tensor]]:
        """Predict the masked groups of clouds (batch, points, 3) as points: for each cloud `input`, `visible` and
        `reconstruction`, each (n, 3).

        `teacher` decodes predicted features; a student that predicts coordinates takes none. Without `bool_masked_pos`
        (batch, groups), `seed` draws a mask as in pretraining.
        """
        self._check_teacher(teacher)
        generator = torch.Generator(points.device).manual_seed(seed)
        groups = self.group(points)
        with in_eval_mode(self), nullcontext() if teacher is None else in_eval_mode(teacher):
            output = self(groups=groups, bool_masked_pos=bool_masked_pos, generator=generator)
            mask = output.mask.bool()
            decoded = self._decode_prediction(teacher, groups, mask, output.predicted_features.float())
        whole = groups.neighborhoods + groups.centers.unsqueeze(2)  # (batch, groups, group_size, 3)
        return [
            {"input": cloud, "visible": parts[~masked].flatten(0, 1), "reconstruction": reconstruction}
            for cloud, parts, masked, reconstruction in zip(points, whole, mask, decoded, strict=True)
        ]

    def _check_teacher(self, teacher: ACTPreTrainedModel | None) -> None:
        """Raise unless the student predicts the features that this teacher computes of the same groups."""
        config, own = self.config, getattr(teacher, "config", None)
        if (own is None) != (config.target == "coordinates"):
            needs = "its teacher, which decodes them" if own is None else "no teacher; leave it out"
            raise InputError(f"a student that predicts target={config.target!r} needs {needs}")
        if own is not None:
            sizes = (config.num_groups, config.group_size, config.teacher_dim)
            width = own.code_dim if config.target == "backbone" else own.feature_dim
            if sizes != (expected := (own.num_groups, own.group_size, width)):
                sizes = f"{sizes} and {expected}"
                raise InputError(f"student and teacher must share groups, their size and width, got {sizes}")

    def _decode_prediction(
        self, teacher: ACTPreTrainedModel | None, groups: PointGroups, mask: Tensor, predicted: Tensor
    ) -> Tensor:
        """Decode predictions (batch, masked groups, teacher_dim) and add visible groups: clouds (batch, points, 3)."""
        centers, neighborhoods = groups
        mask = mask[:, :, None, None]
        if self.config.target == "coordinates":
            decoded = neighborhoods.masked_scatter(mask, predicted.unflatten(2, (-1, 3)))
        else:
            of_backbone = self.config.target == "backbone"
            features = self.target_norm(teacher.get_teacher_features(groups=groups, of_backbone=of_backbone).float())
            # A cosine loss leaves the length of a prediction open; the features' mean length replaces it.
            length = features.norm(dim=-1).mean() / predicted.norm(dim=-1, keepdim=True).clamp_min(1e-6)
            features = self.target_norm.invert(features.masked_scatter(mask[..., 0], predicted * length))
            decoded = torch.where(mask, teacher.decode_features(features, centers, of_backbone), neighborhoods)
        return (decoded + centers.unsqueeze(2)).flatten(1, 2)


def count_masked(
    bool_masked_pos: Tensor, centers: Tensor, config: ACTStudentConfig, num_masked: int | None = None
) -> int:
    """Count masked groups of a cloud; a traced graph, which cannot read the mask, takes `num_masked` or the configured
    share of the groups."""
    if bool_masked_pos.dtype != torch.bool or bool_masked_pos.shape != centers.shape[:2]:
        kind = f"{bool_masked_pos.dtype} of shape {tuple(bool_masked_pos.shape)}"
        raise ValueError(f"`bool_masked_pos` must be bool of shape {tuple(centers.shape[:2])}, got {kind}")
    if torch.compiler.is_compiling() or (num_masked is not None and bool_masked_pos.device.type != "cpu"):
        num_masked = int(config.mask_ratio * centers.shape[1]) if num_masked is None else num_masked
        torch._assert_async((bool_masked_pos.sum(1) == num_masked).all(), f"the mask must mask {num_masked} groups")
        return num_masked
    counts = bool_masked_pos.sum(1).tolist()
    if len(set(counts)) > 1:
        raise ValueError(f"`bool_masked_pos` must mask as many groups in each cloud, got {counts}")
    if num_masked not in (None, counts[0]):
        raise ValueError(f"`bool_masked_pos` must mask `num_masked` groups, got {counts[0]} and {num_masked=}")
    return counts[0]


def split_mask(bool_masked_pos: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the visible and of the masked groups, each ascending."""
    order = bool_masked_pos.byte().argsort(dim=1, stable=True)
    num_visible = bool_masked_pos.shape[1] - num_masked
    return order[:, :num_visible], order[:, num_visible:]


def distillation_loss(predicted: Tensor, target: Tensor, loss_type: str = "cosine") -> Tensor:
    """Compute the mean distance of features (..., teacher_dim)."""
    predicted, target = at_least_float32(predicted), at_least_float32(target.detach())
    if loss_type == "cosine":
        return 1 - nn.functional.cosine_similarity(predicted, target, dim=-1).mean()
    loss = nn.functional.mse_loss if loss_type == "l2" else nn.functional.smooth_l1_loss
    return loss(predicted, target)


def teachers_loss(
    predicted: Tensor, target: Tensor, dims: list[int], weights: list[float] | None, loss_type: str
) -> Tensor:
    """Sum the weighted losses of several teachers, whose features of widths `dims` lie beside each other."""
    pairs = zip(predicted.split(dims, dim=-1), target.split(dims, dim=-1), weights or [1.0] * len(dims), strict=True)
    return sum(weight * distillation_loss(ours, theirs, loss_type) for ours, theirs, weight in pairs)


def coordinate_loss(predicted: Tensor, neighborhoods: Tensor) -> Tensor:
    """Compute Point-MAE's loss, the Chamfer-L2 distance of predictions (batch, masked groups, 3 * group_size) and the
    points of the masked groups (all masked groups, group_size, 3)."""
    return chamfer_l2(at_least_float32(predicted).flatten(0, 1).unflatten(1, (-1, 3)), neighborhoods)


def at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class ACTClassificationHead(nn.Module):
    """Classifier of pooled features, of one layer ("linear") or three ("mlp3")."""

    def __init__(self, config: ACTStudentConfig):
        super().__init__()
        in_dim, dim = config.pooled_dim, config.classifier_dim
        layers = []
        for width in (in_dim, dim) if config.head == "mlp3" else ():
            dropout = nn.Dropout(config.classifier_dropout)
            layers += [nn.Linear(width, dim), nn.BatchNorm1d(dim), nn.ReLU(), dropout]
        self.layers = nn.Sequential(*layers, nn.Linear(dim if layers else in_dim, config.num_labels))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layers(pooled)


class ACTStudentForPointCloudClassification(ACTStudentPreTrainedModel):
    """Student with a classification head: one label for each cloud."""

    _pipeline = ("point-cloud-classification", "ACTPointCloudClassificationPipeline")

    def __init__(self, config: ACTStudentConfig):
        super().__init__(config)
        self.student = ACTStudent(config)
        self.classifier = ACTClassificationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        groups: PointGroups | None = None,
        features: Tensor | None = None,
        smoothing: float = 0.0,  # Trainer takes any argument called label... for a label
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Classify clouds (batch, points, 3), with labels (batch,): logits (batch, num_labels).

        `features`, the student's `pooler_output`, may replace clouds that were encoded before. `smoothing` is the
        share of each label that the loss spreads over all classes."""
        encoded = ACTStudentOutput(pooler_output=features)
        if features is None:
            encoded = self.student(points, groups=groups, **kwargs)
        logits = self.classifier(encoded.pooler_output)
        loss = None if labels is None else prediction_loss(logits, labels, label_smoothing=smoothing)
        return SequenceClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)


class ACTSegmentationHead(nn.Module):
    """Segmentation head: interpolates token features of several layers to every point, beside global features."""

    def __init__(self, config: ACTStudentConfig, num_layers: int, category_dim: int = 0):
        super().__init__()
        in_dim = num_layers * config.hidden_size
        hidden_dim, point_dim = config.propagation_dims
        dim1, dim2 = config.segmentation_dims
        self.propagate1 = ACTPartLinear(3 + in_dim, hidden_dim)  # reads [point, interpolated token features]
        self.norm1 = nn.BatchNorm1d(hidden_dim)
        self.propagate2 = nn.Linear(hidden_dim, point_dim)
        self.norm2 = nn.BatchNorm1d(point_dim)
        # reads [propagated, max of tokens, mean of tokens, category]
        self.linear1 = ACTPartLinear(point_dim + 2 * in_dim + category_dim, dim1)
        self.norm3 = nn.BatchNorm1d(dim1)
        self.dropout = nn.Dropout(config.segmentation_dropout)
        self.linear2 = nn.Linear(dim1, dim2)
        self.norm4 = nn.BatchNorm1d(dim2)
        self.linear3 = nn.Linear(dim2, config.num_labels)

    def forward(self, points: Tensor, centers: Tensor, tokens: Tensor, category: Tensor | None = None) -> Tensor:
        """(batch, points, 3), (batch, groups, 3), (batch, groups, in_dim) -> (batch, points, num_labels)."""
        # Both first layers are linear in values that repeat for many points, so they map them before the repetition.
        weights, indices = interpolation_weights(points, centers)
        features = interpolate(self.propagate1(tokens, start=3), weights, indices)
        features = features + self.propagate1(points.to(tokens.dtype))
        features = _norm_relu(self.norm1, features)
        features = _norm_relu(self.norm2, self.propagate2(features))  # (batch, points, point_dim)

        whole = torch.cat([tokens.max(1).values, tokens.mean(1), *([] if category is None else [category])], dim=-1)
        features = self.linear1(features) + self.linear1(whole, start=features.shape[-1]).unsqueeze(1)
        features = self.dropout(_norm_relu(self.norm3, features))
        return self.linear3(_norm_relu(self.norm4, self.linear2(features)))


def _norm_relu(norm: nn.BatchNorm1d, features: Tensor) -> Tensor:
    return norm(features.flatten(0, 1)).relu().view_as(features)


class ACTStudentSegmenter(ACTStudentPreTrainedModel):
    """Base of both segmentation models: a student without class token, read at several depths."""

    _pipeline = ("point-cloud-segmentation", "ACTPointCloudSegmentationPipeline")

    def __init__(self, config: ACTStudentConfig, category_dim: int = 0):
        super().__init__(config)
        depth = config.num_hidden_layers
        self.layers_read = list(config.segmentation_layers or [-(-depth * third // 3) for third in (1, 2, 3)])
        self.student = ACTStudent(config, use_cls_token=False)
        self.head = ACTSegmentationHead(config, len(self.layers_read), category_dim)

    def _segment(
        self, points: Tensor, category: Tensor | None, labels: Tensor | None, class_weights: Tensor | None, **kwargs
    ) -> TokenClassifierOutput:
        encoded = self.student(points, read_layers=self.layers_read, **kwargs)
        tokens = torch.cat([self.student.norm(states) for states in encoded.layer_states], dim=-1)
        logits = self.head(points, encoded.centers, tokens, category)
        loss = None if labels is None else prediction_loss(logits, labels, class_weights)
        return TokenClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)


class ACTStudentForSemanticSegmentation(ACTStudentSegmenter):
    """Student with a segmentation head: one label for each point of a scene."""

    def __init__(self, config: ACTStudentConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        points: Tensor,
        labels: Tensor | None = None,
        class_weights: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Segment points (batch, points, 3), with labels (batch, points), -100 to ignore: logits (batch, points,
        num_labels). `class_weights` (num_labels,) weight the classes in the loss."""
        return self._segment(points, None, labels, class_weights, **kwargs)


class ACTStudentForPartSegmentation(ACTStudentSegmenter):
    """Student with a part segmentation head: one label for each point of an object of known category."""

    def __init__(self, config: ACTStudentConfig):
        super().__init__(config, config.category_dim)
        self.category_embedding = nn.Linear(config.num_categories, config.category_dim, bias=False)
        self.category_norm = nn.BatchNorm1d(config.category_dim)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        points: Tensor,
        category: Tensor | None = None,
        labels: Tensor | None = None,
        class_weights: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Segment points (batch, points, 3) of objects of these categories (batch,); otherwise as above."""
        check_labels(category, points.shape[:1], self.config.num_categories, "category")
        one_hot = nn.functional.one_hot(category.long(), self.config.num_categories)
        embedded = self.category_norm(self.category_embedding(one_hot.to(self.category_embedding.weight.dtype)))
        return self._segment(points, nn.functional.leaky_relu(embedded, 0.2), labels, class_weights, **kwargs)


def check_labels(labels: Tensor | None, shape: tuple[int, ...], num_labels: int, name: str = "labels") -> None:
    """Raise unless the labels are integers of this shape below `num_labels`; values are checked on the CPU only."""
    if labels is None or labels.shape != shape or labels.is_floating_point():
        kind = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"`{name}` must be integers of shape {tuple(shape)}, got {kind}")
    readable = labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel() > 0
    if readable and int(labels.max()) >= num_labels:
        raise ValueError(f"`{name}` must be below {num_labels}, got {int(labels.max())}")


def prediction_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the cross-entropy of logits (..., num_labels) and labels (...); -100 is ignored."""
    check_labels(labels, logits.shape[:-1], logits.shape[-1])
    logits, labels = at_least_float32(logits).flatten(0, -2), labels.flatten().long()
    counted = labels != -100
    weights = counted if class_weights is None else class_weights[labels.clamp_min(0)] * counted
    total = nn.functional.cross_entropy(
        logits, labels, class_weights, reduction="sum", label_smoothing=label_smoothing
    )
    return total / weights.sum().clamp_min(torch.finfo(logits.dtype).tiny)  # 0 where nothing counts


# The classes that a saved folder names for `trust_remote_code=True`, if the package is not installed.
ACTStudentForPreTraining.register_for_auto_class("AutoModelForPreTraining")
for _model in (
    ACTStudent,
    ACTStudentForPartSegmentation,
    ACTStudentForPointCloudClassification,
    ACTStudentForSemanticSegmentation,
):
    _model.register_for_auto_class("AutoModel")
