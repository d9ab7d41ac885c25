"""`ACTTeacher`, stage 1: a discrete autoencoder of point clouds around a frozen pretrained Transformer.

Groups -> mini-PointNet -> DGCNN -> codes -> Transformer with prompts -> DGCNN (what a student learns) -> points.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .act_layers import (
    ACTGroupEmbedding,
    ACTMaxLinear,
    ACTPartLinear,
    ACTPositionEmbedding,
    ACTPreTrainedModel,
    init_torch_linear,
    make_groups,
)
from .backbone_families import load_backbone
from .configuration_act_teacher import ACTTeacherConfig
from .inference import in_eval_mode
from .modeling_act_backbone import ACTAffine, ACTBackbone, ACTBackboneAttention, ACTBackboneLayer, ACTPrompts
from .point_ops import PointGroups, chamfer_l1, gather_points, k_nearest_neighbors

CODE_MODES = ("gumbel", "soft", "argmax")


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
            init_torch_linear(module.code_projection)
            init_torch_linear(module.feature_projection)
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
            for linear in module.modules():
                if isinstance(linear, (nn.Linear, ACTMaxLinear, ACTPartLinear)):
                    init_torch_linear(linear)

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
    ) -> Tensor:
        """Compute the features that a student learns to predict, (batch, groups, feature_dim), or with `of_backbone`
        those before the second DGCNN, (batch, groups, code_dim). Skips the point decoder.

        Deterministic in eval mode. `code_mode="gumbel"` samples one code for each group, the authors' noisy targets.
        """
        centers, neighborhoods = make_groups(self.config, points, groups)
        neighbors = self._neighbors(centers)
        logits = self.code_network(self.group_embedding(neighborhoods), neighbors)
        if code_mode == "gumbel":
            logits, code_mode = add_gumbel_noise(logits, generator), "argmax"
        codes = self._select_codes(logits, None, code_mode, None)
        return self._transform(codes, centers, neighbors)[0 if of_backbone else 1]

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
            decoded = self(points).reconstruction
        return [
            {"input": cloud, "visible": cloud, "reconstruction": output}
            for cloud, output in zip(points, decoded, strict=True)
        ]

    def _neighbors(self, centers: Tensor) -> Tensor:
        return k_nearest_neighbors(centers, centers, self.config.dgcnn_neighbors)[1]

    def _select_codes(
        self, logits: Tensor, temperature: float | None, code_mode: str | None, generator: torch.Generator | None
    ) -> Tensor:
        """Logits (batch, groups, codebook_size) -> codes (batch, groups, code_dim)."""
        code_mode = code_mode or ("gumbel" if self.training else "argmax")
        if code_mode not in CODE_MODES:
            raise ValueError(f"`code_mode` must be one of {', '.join(CODE_MODES)}, got {code_mode!r}")
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

__all__ = ["ACTTeacher", "ACTTeacherOutput"]
