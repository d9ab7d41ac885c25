"""Configuration of `ACTTeacher`: a discrete point-cloud autoencoder around a pretrained Transformer."""

from huggingface_hub.dataclasses import strict

from .configuration_checks import (
    LARGEST_COUNT,
    MOST_LAYERS,
    ACTPreTrainedConfig,
    check_activation,
    check_choice,
    check_finite,
    check_positive,
    check_share,
    check_widths,
)


@strict
class ACTTeacherConfig(ACTPreTrainedConfig):
    r"""
    The defaults are the paper's, on ViT-B/16. `ACTTeacher.from_backbone` fills in the fields of the Transformer.

    num_groups, group_size (`int`), skip_near_origin (`bool`):
        How a cloud is cut into groups, as in `ACTStudentConfig`. `group_size` must be divisible by 4.
    pointnet_dims, dgcnn_dims (`list[int]`), dgcnn_neighbors (`int`):
        Widths of the mini-PointNet, and of both DGCNNs: input, then four edge layers; neighbours in their graph.
    embedding_dim, code_dim, feature_dim (`int`):
        Widths of a group's embedding, of a code, and of the features the student learns (after the second DGCNN).
    codebook_size (`int`):
        Number of codes.
    decoder_dim, folding_dim (`int`):
        Hidden widths of the coarse and the folding part of the point decoder.
    temperature, kl_weight (`float`):
        Of the Gumbel-softmax and the KL term where `forward` is not told otherwise.

    backbone (`str`, *optional*):
        Name of the pretrained Transformer, for the record.
    freeze_backbone (`bool`):
        Whether its weights stay as pretrained.
    hidden_size ... `rms_norm`:
        The Transformer's blocks: `norm_position` "pre" or "post"; `norm_type` "layer_norm", "rms_norm" or "affine";
        `input_norm` before the first block (CLIP) and `final_norm` after the last; `use_layer_scale`; `gated_mlp`;
        `mlp_norm` and `attention_norm` inside the branches (EVA-02); `qk_norm` per head.
    token_mixer (`"attention"`, `"mlp"` or `"linear"`), num_mixer_tokens, mixer_dim:
        MLP-Mixer and ResMLP mix a fixed number of tokens, which prompts and groups together must make up.
    prompt_type (`"deep"`, `"shallow"` or `"none"`), num_prompts, prompt_dropout:
        Learned prompt tokens: new ones before every layer, some at the first, or none.
    """

    model_type = "act_teacher"

    num_groups: int = 64
    group_size: int = 32
    skip_near_origin: bool = False
    pointnet_dims: list[int] | tuple[int, ...] = (128, 256, 512)
    dgcnn_dims: list[int] | tuple[int, ...] = (128, 256, 512, 512, 1024)
    dgcnn_neighbors: int = 4
    embedding_dim: int = 384
    code_dim: int = 384
    feature_dim: int = 384
    codebook_size: int = 8192
    position_dim: int = 128
    decoder_dim: int = 1024
    folding_dim: int = 512
    temperature: float | int = 1.0
    kl_weight: float | int = 0.1

    backbone: str | None = None
    freeze_backbone: bool = True
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    norm_position: str = "pre"
    norm_type: str = "layer_norm"
    input_norm: bool = False
    final_norm: bool = True
    use_layer_scale: bool = False
    gated_mlp: bool = False
    mlp_norm: bool = False
    attention_norm: bool = False
    qk_norm: bool = False
    token_mixer: str = "attention"
    num_mixer_tokens: int | None = None
    mixer_dim: int | None = None
    initializer_range: float = 0.02

    prompt_type: str = "deep"
    num_prompts: int = 64
    prompt_dropout: float | int = 0.1

    def __post_init__(self, **kwargs):
        self.pointnet_dims = list(self.pointnet_dims)
        self.dgcnn_dims = list(self.dgcnn_dims)
        if self.prompt_type == "none":
            self.num_prompts = 0
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Every rule that spans fields or bounds a value."""
        check_positive(
            self, "num_groups", "group_size", "dgcnn_neighbors", "embedding_dim", "code_dim", "feature_dim",
            "codebook_size", "position_dim", "decoder_dim", "folding_dim", "hidden_size",
            "num_attention_heads", "intermediate_size", "num_mixer_tokens", "mixer_dim",
        )  # fmt: skip
        check_positive(self, "num_hidden_layers", most=MOST_LAYERS)
        check_finite(self, "layer_norm_eps", "initializer_range", "temperature", "kl_weight")
        check_activation(self)
        check_widths(self, pointnet_dims=3, dgcnn_dims=5)
        check_choice(
            self,
            norm_position=("pre", "post"),
            norm_type=("layer_norm", "rms_norm", "affine"),
            token_mixer=("attention", "mlp", "linear"),
            prompt_type=("deep", "shallow", "none"),
        )
        check_share(self, "prompt_dropout")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}")
        if self.prompt_type != "none" and self.num_prompts < 1:
            raise ValueError(
                f"`num_prompts` must be at least 1 for {self.prompt_type} prompts, got {self.num_prompts}"
            )
        if self.num_prompts > LARGEST_COUNT:
            raise ValueError(f"`num_prompts` must be at most {LARGEST_COUNT}, got {self.num_prompts}")
        if self.group_size % 4:
            raise ValueError(f"`group_size` must be divisible by 4, the points folded from one, got {self.group_size}")
        if self.dgcnn_neighbors > self.num_groups:
            raise ValueError(
                f"`dgcnn_neighbors` must not exceed `num_groups`, got {self.dgcnn_neighbors} and {self.num_groups}"
            )
        for name, width in [("dgcnn_dims", n) for n in self.dgcnn_dims[1:]] + [
            ("codebook_size", self.codebook_size),
            ("feature_dim", self.feature_dim),
        ]:
            if width % 4:
                raise ValueError(f"`{name}` must be divisible by 4, the groups of its normalisation, got {width}")
        if self.use_layer_scale and self.norm_position == "post":
            raise ValueError("`use_layer_scale` goes with norm_position 'pre': blocks that normalise last have none")
        self._validate_token_mixer()

    def _validate_token_mixer(self):
        if self.token_mixer == "attention":
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    "`hidden_size` must be divisible by `num_attention_heads`, "
                    f"got {self.hidden_size} and {self.num_attention_heads}"
                )
        elif self.num_groups + self.num_prompts != self.num_mixer_tokens:
            raise ValueError(
                f"a {self.token_mixer} token mixer is tied to num_mixer_tokens={self.num_mixer_tokens}, which "
                f"`num_groups` and `num_prompts` must add up to, got {self.num_groups} + {self.num_prompts}"
            )


__all__ = ["ACTTeacherConfig"]
