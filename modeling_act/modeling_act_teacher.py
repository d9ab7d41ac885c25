"""`ACTTeacher`, stage 1: a discrete autoencoder of point clouds around a frozen pretrained Transformer.

Groups -> mini-PointNet -> DGCNN -> codes -> Transformer with prompts -> DGCNN (what a student learns) -> points.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .act_layers import (
    ACTMLP,
    ACTAttention,
    ACTGroupEmbedding,
    ACTPartLinear,
    ACTPositionEmbedding,
    ACTPreTrainedModel,
    init_torch_linears,
    make_groups,
)
from .configuration_act import ACTTeacherConfig
from .inference import in_eval_mode
from .point_ops import PointGroups, chamfer_l1, gather_points, k_nearest_neighbors


@dataclass
class ACTTeacherOutput(ModelOutput):
    """
    loss: `reconstruction_loss + kl_weight * kl_loss`.
    reconstruction_loss: Chamfer-L1 of the coarse plus that of the fine points, over all groups.
    kl_loss: KL(uniform || codes used by a cloud), batch mean.
    logits: (batch, groups, codebook_size).
    code_indices: arg-max of the logits, (batch, groups).
    coarse_points: (batch, groups, group_size / 4, 3), relative to the centers.
    fine_points: (batch, groups, group_size, 3), relative to the centers.
    centers: (batch, groups, 3).
    neighborhoods: (batch, groups, group_size, 3), relative to the centers.
    backbone_features: after the projection back from the Transformer, (batch, groups, code_dim).
    teacher_features: after the second DGCNN, (batch, groups, feature_dim).
    hidden_states, attentions: of the Transformer's blocks, on request.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    kl_loss: Tensor | None = None
    logits: Tensor | None = None
    code_indices: Tensor | None = None
    coarse_points: Tensor | None = None
    fine_points: Tensor | None = None
    centers: Tensor | None = None
    neighborhoods: Tensor | None = None
    backbone_features: Tensor | None = None
    teacher_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def reconstruction(self) -> Tensor:
        """Fine points of all groups at their places in the cloud, (batch, groups * group_size, 3)."""
        return (self.fine_points + self.centers.unsqueeze(2)).flatten(1, 2)


class ACTAffine(nn.Module):
    """Scale and shift of each channel, which ResMLP has in place of a norm."""

    def __init__(self, hidden_size: int, eps: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.addcmul(self.bias, hidden_states, self.weight)


NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm, "affine": ACTAffine}


def make_norm(config: ACTTeacherConfig, enabled: bool = True, size: int | None = None) -> nn.Module:
    if not enabled:
        return nn.Identity()
    return NORMS[config.norm_type](size or config.hidden_size, eps=config.layer_norm_eps)


class ACTBackboneAttention(ACTAttention):
    """Self-attention of the groups, with prompts as further keys and values."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__(config)
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=config.qkv_bias)
        self.query_norm = make_norm(config, config.qk_norm, self.head_dim)
        self.key_norm = make_norm(config, config.qk_norm, self.head_dim)
        self.norm = make_norm(config, config.attention_norm)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, prompts: Tensor | None = None, **kwargs) -> tuple[Tensor, Tensor | None]:
        query = self.query_norm(self.query(hidden_states).unflatten(2, (self.num_heads, self.head_dim)))
        keys_values = self.key_value(hidden_states)
        if prompts is not None:
            # The attention output of a prompt is dropped after every block, so a prompt needs no query.
            keys_values = _prepend(self.key_value(prompts), keys_values)
        key, value = keys_values.unflatten(2, (2, self.num_heads, self.head_dim)).unbind(2)
        context, weights = self.attend(query, self.key_norm(key), value, **kwargs)
        return self.proj(self.norm(context)), weights


class ACTTokenMixer(nn.Module):
    """Mixing across a fixed number of tokens, prompts then groups, of MLP-Mixer and ResMLP."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__()
        num_tokens, dim = config.num_mixer_tokens, config.mixer_dim
        if config.token_mixer == "mlp":
            activation = ACT2FN[config.hidden_act]
            self.mix = nn.Sequential(nn.Linear(num_tokens, dim), activation, nn.Linear(dim, num_tokens))
        else:
            self.mix = nn.Linear(num_tokens, num_tokens)

    def forward(self, hidden_states: Tensor, prompts: Tensor | None = None, **kwargs) -> tuple[Tensor, None]:
        tokens = hidden_states if prompts is None else _prepend(prompts, hidden_states)
        return self.mix(tokens.transpose(1, 2)).transpose(1, 2)[:, -hidden_states.shape[1] :], None


class ACTBackboneLayer(GradientCheckpointingLayer):
    """Transformer block without dropout: a frozen one is deterministic."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__()
        self.post_norm = config.norm_position == "post"
        self.norm1 = make_norm(config)
        self.mixer = ACTBackboneAttention(config) if config.token_mixer == "attention" else ACTTokenMixer(config)
        self.norm2 = make_norm(config)
        self.mlp = ACTMLP(config, config.gated_mlp, make_norm(config, config.mlp_norm, config.intermediate_size))
        self.layer_scale1 = nn.Parameter(torch.ones(config.hidden_size)) if config.use_layer_scale else None
        self.layer_scale2 = nn.Parameter(torch.ones(config.hidden_size)) if config.use_layer_scale else None

    def forward(self, hidden_states: Tensor, positions: Tensor, prompts: Tensor | None = None, **kwargs) -> Tensor:
        """(batch, tokens, hidden_size) twice, (batch or 1, prompts, hidden_size) -> (batch, tokens, hidden_size)."""
        hidden_states = hidden_states + positions
        if self.post_norm:
            hidden_states = self.norm1(hidden_states + self.mixer(hidden_states, prompts, **kwargs)[0])
            return self.norm2(hidden_states + self.mlp(hidden_states))
        prompts = None if prompts is None else self.norm1(prompts)
        mixed = self.mixer(self.norm1(hidden_states), prompts, **kwargs)[0]
        hidden_states = hidden_states + _scale(mixed, self.layer_scale1)
        return hidden_states + _scale(self.mlp(self.norm2(hidden_states)), self.layer_scale2)


def _scale(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale


class ACTBackbone(nn.Module):
    """Blocks and norms of a pretrained Transformer, and nothing else of it."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__()
        self.input_norm = make_norm(config, config.input_norm)
        self.layers = nn.ModuleList([ACTBackboneLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = make_norm(config, config.final_norm)
        self.prompt_type = config.prompt_type

    def forward(
        self, hidden_states: Tensor, positions: Tensor, prompts: tuple[list[Tensor], list[Tensor]], **kwargs
    ) -> Tensor:
        """Pass groups (batch, groups, hidden_size) and their positions through every block, and drop the prompts."""
        num_groups = hidden_states.shape[1]
        layer_prompts = [None] * len(self.layers)
        # Under autocast the residual stream keeps the weights' dtype: groups differ little from each other.
        hidden_states = self.input_norm(hidden_states.to(self.layers[0].mlp.fc1.weight.dtype))
        if self.prompt_type != "none":
            tokens, prompt_positions = prompts
            tokens = [self.input_norm(tokens[0]), *tokens[1:]]
            if self.prompt_type == "deep":
                layer_prompts = [token + position for token, position in zip(tokens, prompt_positions, strict=True)]
            else:  # shallow prompts are ordinary tokens in all blocks
                hidden_states, positions = _prepend(tokens[0], hidden_states), _prepend(prompt_positions[0], positions)
        for layer, layer_prompt in zip(self.layers, layer_prompts, strict=True):
            hidden_states = layer(hidden_states, positions, layer_prompt, **kwargs)
        return self.norm(hidden_states[:, -num_groups:])


def _prepend(prompts: Tensor, tokens: Tensor) -> Tensor:
    """Prepend prompts (batch or 1, prompts, ...) to the tokens (batch, tokens, ...) of every cloud."""
    return torch.cat([prompts.expand(tokens.shape[0], -1, -1), tokens], dim=1)


class ACTPrompts(nn.Module):
    """Learned prompt tokens with positions of their own; "deep" has new ones for every block."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__()
        self.prompt_type = config.prompt_type
        self.dropout = nn.Dropout(config.prompt_dropout)
        if self.prompt_type != "none":
            self.tokens = nn.Parameter(torch.empty(1, config.num_prompts, config.hidden_size))
            self.positions = nn.Parameter(torch.empty(1, config.num_prompts, config.hidden_size))
        if self.prompt_type == "deep":
            shape = (config.num_hidden_layers - 1, config.num_prompts, config.hidden_size)
            self.deep_tokens = nn.Parameter(torch.empty(shape))
            self.deep_positions = nn.Parameter(torch.empty(shape))

    def forward(self, batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return tokens and positions for each block with new prompts, each (batch or 1, prompts, hidden_size).

        Dropout is applied to each cloud's tokens separately; without it the whole batch shares one copy.
        """
        if self.prompt_type == "none":
            return [], []
        tokens, positions = self.tokens, self.positions
        if self.prompt_type == "deep":
            tokens, positions = torch.cat([tokens, self.deep_tokens]), torch.cat([positions, self.deep_positions])
        tokens, positions = list(tokens.split(1)), list(positions.split(1))
        if self.training and self.dropout.p > 0:
            tokens = [self.dropout(token.expand(batch_size, -1, -1)) for token in tokens]
        return tokens, positions


class ACTGraphLayer(nn.Module):
    """DGCNN layer: a linear map of each edge [neighbour - group, group], a norm, and the maximum over the edges."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.linear = ACTPartLinear(2 * in_dim, out_dim, bias=False)
        self.norm = nn.GroupNorm(4, out_dim)

    def forward(self, features: Tensor, neighbors: Tensor) -> Tensor:
        """(batch, groups, in_dim), (batch, groups, k) -> (batch, groups, out_dim)."""
        # linear([n - x, x]) = W1 n + (W2 x - W1 x), once per group and not once per edge
        of_neighbor = self.linear(features)
        of_group = self.linear(features, start=features.shape[-1]) - of_neighbor
        edges = gather_points(of_neighbor, neighbors) + of_group.unsqueeze(2)  # (batch, groups, k, out_dim)
        edges = norm_and_activate(self.norm, edges)
        return edges.max(2).values if edges.requires_grad else edges.amax(2)


class ACTGraphNetwork(nn.Module):
    """DGCNN over the groups, on the graph of their nearest centers."""

    def __init__(self, in_dim: int, dims: list[int], out_dim: int):
        super().__init__()
        self.input = nn.Linear(in_dim, dims[0])
        self.layers = nn.ModuleList([ACTGraphLayer(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True)])
        self.output = nn.Linear(sum(dims[1:]), out_dim, bias=False)
        self.norm = nn.GroupNorm(4, out_dim)

    def forward(self, features: Tensor, neighbors: Tensor) -> Tensor:
        """(batch, groups, in_dim), (batch, groups, k) -> (batch, groups, out_dim)."""
        features, collected = self.input(features), []
        for layer in self.layers:
            features = layer(features, neighbors)
            collected.append(features)
        features = self.output(torch.cat(collected, dim=-1))
        return norm_and_activate(self.norm, features.unsqueeze(1)).squeeze(1)


def norm_and_activate(norm: nn.GroupNorm, values: Tensor) -> Tensor:
    """Normalize and activate (batch, rows, columns, channels), without a copy, as a channels-last image."""
    normed = norm(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return nn.functional.leaky_relu(normed, 0.2, inplace=True)


class ACTPointDecoder(nn.Module):
    """FoldingNet: predicts coarse points of a group from its feature, and folds a 2x2 grid onto each of them."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__()
        feature_dim, decoder_dim, folding_dim = config.feature_dim, config.decoder_dim, config.folding_dim
        self.linear1 = nn.Linear(feature_dim, decoder_dim)
        self.linear2 = nn.Linear(decoder_dim, decoder_dim)
        self.linear3 = nn.Linear(decoder_dim, 3 * (config.group_size // 4))
        self.fold1 = ACTPartLinear(feature_dim + 2 + 3, folding_dim)  # reads [feature, grid, coarse point]
        self.norm1 = nn.BatchNorm1d(folding_dim)
        self.fold2 = nn.Linear(folding_dim, folding_dim)
        self.norm2 = nn.BatchNorm1d(folding_dim)
        self.fold3 = nn.Linear(folding_dim, 3)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, groups, feature_dim) -> (batch, groups, group_size / 4, 3) and (batch, groups, group_size, 3)."""
        coarse = self.linear3(self.linear2(self.linear1(features).relu()).relu()).unflatten(2, (-1, 3))
        side = torch.linspace(-0.05, 0.05, 2, device=features.device, dtype=features.dtype)
        grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).view(4, 2)
        # fold1 of the concatenation, each part computed as often as it differs
        width = features.shape[-1]
        folded = self.fold1(features).unsqueeze(2) + self.fold1(coarse, start=width + 2)
        folded = folded.unsqueeze(3) + self.fold1(grid, start=width)  # (batch, groups, coarse, 4, folding_dim)
        shape = folded.shape[:-1]
        folded = self.norm1(folded.flatten(0, 3)).relu_()
        folded = self.norm2(self.fold2(folded)).relu_()
        fine = self.fold3(folded).view(*shape, 3) + coarse.unsqueeze(3)
        return coarse, fine.flatten(2, 3)


class ACTTeacher(ACTPreTrainedModel):
    """Discrete point-cloud autoencoder around a pretrained Transformer; teaches `ACTStudentForPreTraining`."""

    config: ACTTeacherConfig
    config_class = ACTTeacherConfig
    base_model_prefix = "teacher"
    _no_split_modules = ["ACTBackboneLayer", "ACTPrompts", "ACTGroupEmbedding", "ACTGraphNetwork", "ACTPointDecoder"]
    _can_record_outputs = {"hidden_states": ACTBackboneLayer, "attentions": ACTBackboneAttention}

    def __init__(self, config: ACTTeacherConfig):
        super().__init__(config)
        self.group_embedding = ACTGroupEmbedding(config.pointnet_dims, config.embedding_dim)
        self.code_network = ACTGraphNetwork(config.embedding_dim, config.dgcnn_dims, config.codebook_size)
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.code_dim))
        self.code_projection = nn.Linear(config.code_dim, config.hidden_size)
        self.position_embedding = ACTPositionEmbedding(config.position_dim, config.hidden_size)
        self.prompts = ACTPrompts(config)
        self.backbone = ACTBackbone(config)
        self.feature_projection = nn.Linear(config.hidden_size, config.code_dim)
        self.feature_network = ACTGraphNetwork(config.code_dim, config.dgcnn_dims, config.feature_dim)
        self.decoder = ACTPointDecoder(config)
        self.post_init()
        self.freeze_backbone()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | nn.Module,
        *,
        pretrained: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        **config,
    ) -> "ACTTeacher":
        """Create a teacher around a pretrained Transformer.

        `backbone` is a Hub id or folder of a transformers or timm model, a timm name, or such a model itself.
        `pretrained=False` keeps its architecture but initializes its weights at random, as a control. Everything else
        sets fields of `ACTTeacherConfig`; those that describe the Transformer come from the backbone.
        """
        from .backbone_families import load_backbone  # which reads into `ACTBackbone` above

        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        fields, weights = load_backbone(backbone, pretrained, trust_remote_code, **hub)
        if unknown := sorted(set(config) - set(ACTTeacherConfig.__dataclass_fields__)):
            raise ValueError(f"ACTTeacherConfig has no field {', '.join(unknown)}")
        if clash := sorted(set(config) & set(fields)):
            raise ValueError(f"{', '.join(clash)} describe the backbone and are read from it; leave them out")
        model = cls(ACTTeacherConfig(**fields, **config))
        model.backbone.load_state_dict(weights, strict=True)
        return model

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "ACTTeacher":
        """Load the model and freeze its backbone again: loading makes every parameter trainable."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze_backbone()
        return loaded

    def freeze_backbone(self) -> None:
        """Freeze the Transformer's weights, and no others, if the configuration says so."""
        self.backbone.requires_grad_(not self.config.freeze_backbone)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize point networks with torch's defaults, as in the original."""
        super()._init_weights(module)
        if isinstance(module, ACTTeacher):
            init.normal_(module.codebook)
            init_torch_linears(module.code_projection, module.feature_projection)
        elif isinstance(module, ACTPrompts):
            for parameter in module.parameters():
                init.trunc_normal_(parameter, std=self.config.initializer_range)
        elif isinstance(module, (ACTAffine, nn.RMSNorm)):
            init.ones_(module.weight)
            if isinstance(module, ACTAffine):
                init.zeros_(module.bias)
        elif isinstance(module, ACTBackboneLayer) and module.layer_scale1 is not None:
            init.ones_(module.layer_scale1)
            init.ones_(module.layer_scale2)
        elif isinstance(module, (ACTGroupEmbedding, ACTGraphNetwork, ACTPositionEmbedding, ACTPointDecoder)):
            init_torch_linears(module)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        points: Tensor | None = None,
        temperature: float | None = None,
        code_mode: str | None = None,
        groups: PointGroups | None = None,
        kl_weight: float | None = None,
        kl_over: str = "cloud",
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ACTTeacherOutput:
        """Autoencode clouds (batch, points, 3), or `groups` cut from them.

        `code_mode`: "gumbel", a softmax of noisy logits over `temperature` (the default in training); "soft", the
        same without noise; "argmax", the most likely code (the default in evaluation). The noise comes from
        `generator`. `kl_over`: the KL term spreads the codes evenly over each "cloud", as in the paper, or over the
        whole "batch".
        """
        centers, neighborhoods = make_groups(self.config, points, groups)
        neighbors = self._neighbors(centers)
        logits = self.code_network(self.group_embedding(neighborhoods), neighbors)
        codes = self._select_codes(logits, temperature, code_mode, generator)
        backbone_features, teacher_features = self._transform(codes, centers, neighbors, **kwargs)
        coarse, fine = self.decoder(teacher_features)

        target = neighborhoods.flatten(0, 1)
        reconstruction_loss = chamfer_l1(coarse.flatten(0, 1), target) + chamfer_l1(fine.flatten(0, 1), target)
        if kl_over not in ("cloud", "batch"):
            raise ValueError(f"`kl_over` must be 'cloud' or 'batch', got {kl_over!r}")
        kl_loss = uniform_kl(logits if kl_over == "cloud" else logits.flatten(0, 1).unsqueeze(0))
        weight = self.config.kl_weight if kl_weight is None else kl_weight
        return ACTTeacherOutput(
            loss=reconstruction_loss + weight * kl_loss,
            reconstruction_loss=reconstruction_loss,
            kl_loss=kl_loss,
            logits=logits,
            code_indices=logits.argmax(-1),
            coarse_points=coarse,
            fine_points=fine,
            centers=centers,
            neighborhoods=neighborhoods,
            backbone_features=backbone_features,
            teacher_features=teacher_features,
        )

    def get_teacher_features(
        self,
        points: Tensor | None = None,
        groups: PointGroups | None = None,
        code_mode: str = "argmax",
        generator: torch.Generator | None = None,
        of_backbone: bool = False,
        return_cloud: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the features that a student learns to predict, (batch, groups, feature_dim), or with `of_backbone`
        those before the second DGCNN, (batch, groups, code_dim); with `return_cloud` their mean over the groups too,
        as features of the whole cloud. Skips the point decoder.

        Deterministic in eval mode. `code_mode="gumbel"` samples one code for each group, the authors' noisy targets.
        """
        centers, neighborhoods = make_groups(self.config, points, groups)
        neighbors = self._neighbors(centers)
        logits = self.code_network(self.group_embedding(neighborhoods), neighbors)
        if code_mode == "gumbel":
            logits, code_mode = add_gumbel_noise(logits, generator), "argmax"
        codes = self._select_codes(logits, None, code_mode, None)
        features = self._transform(codes, centers, neighbors)[0 if of_backbone else 1]
        return (features, features.mean(1)) if return_cloud else features

    def decode_features(self, features: Tensor, centers: Tensor, of_backbone: bool = False) -> Tensor:
        """Decode the output of `get_teacher_features` to points (batch, groups, group_size, 3) relative to centers."""
        if of_backbone:
            features = self.feature_network(features, self._neighbors(centers))
        return self.decoder(features)[1]

    @torch.inference_mode()
    def reconstruct(self, points: Tensor) -> list[dict[str, Tensor]]:
        """Autoencode clouds (batch, points, 3): for each `input`, `visible`, both the cloud, and `reconstruction`, all
        (n, 3), as from `ACTStudentForPreTraining.reconstruct`."""
        with in_eval_mode(self):
            decoded = zip(points, self(points).reconstruction, strict=True)
        return [{"input": cloud, "visible": cloud, "reconstruction": output} for cloud, output in decoded]

    def _neighbors(self, centers: Tensor) -> Tensor:
        return k_nearest_neighbors(centers, centers, self.config.dgcnn_neighbors)[1]

    def _select_codes(
        self, logits: Tensor, temperature: float | None, code_mode: str | None, generator: torch.Generator | None
    ) -> Tensor:
        """Logits (batch, groups, codebook_size) -> codes (batch, groups, code_dim)."""
        code_mode = code_mode or ("gumbel" if self.training else "argmax")
        if code_mode not in ("gumbel", "soft", "argmax"):
            raise ValueError(f"`code_mode` must be one of gumbel, soft, argmax, got {code_mode!r}")
        if code_mode == "argmax":
            return nn.functional.embedding(logits.argmax(-1), self.codebook)
        temperature = self.config.temperature if temperature is None else temperature
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}")
        if code_mode == "gumbel":
            logits = add_gumbel_noise(logits, generator)
        return (logits / temperature).softmax(-1).to(self.codebook.dtype) @ self.codebook

    def _transform(self, codes: Tensor, centers: Tensor, neighbors: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        """Pass codes through the Transformer and back, (batch, groups, code_dim), and through the second DGCNN."""
        hidden_states = self.code_projection(codes)
        prompts = self.prompts(codes.shape[0])
        hidden_states = self.backbone(hidden_states, self.position_embedding(centers), prompts, **kwargs)
        # Groups differ little from each other here, and the DGCNN's norm amplifies the differences, rounding errors
        # too. This is 3 % of the teacher's work, so under autocast it keeps the precision of its weights.
        with torch.autocast(hidden_states.device.type, enabled=False):
            backbone_features = self.feature_projection(hidden_states)
            return backbone_features, self.feature_network(backbone_features, neighbors)


def add_gumbel_noise(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))
    return logits - noise.uniform_(generator=generator).log_().neg_().log_()  # vectorises; `exponential_` does not


def uniform_kl(logits: Tensor) -> Tensor:
    """KL(uniform || mean softmax over a cloud's groups), mean over clouds; computed in the log domain."""
    logits = logits.float() if logits.dtype != torch.float64 else logits
    num_groups, num_codes = logits.shape[1:]
    log_usage = logits.log_softmax(-1).logsumexp(1) - math.log(num_groups)  # (batch, codes)
    return -math.log(num_codes) - log_usage.mean()


# The class that a saved folder names for `trust_remote_code=True`, if the package is not installed.
ACTTeacher.register_for_auto_class("AutoModel")
