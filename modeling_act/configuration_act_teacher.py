"""Configuration of `ACTTeacher`: a discrete point-cloud autoencoder around a pretrained Transformer."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils.type_validators import activation_fn_key, interval, positive_int_field


@strict
class ACTTeacherConfig(PreTrainedConfig):
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
        Defaults of the Gumbel-softmax temperature and the weight of the KL term in `forward`.

    backbone (`str`, *optional*):
        Name of the pretrained Transformer, for the record.
    freeze_backbone (`bool`):
        Whether its weights stay as pretrained.
    hidden_size ... `qk_norm`:
        The Transformer's blocks: `norm_position` "pre" or "post"; `norm_type` "layer_norm", "rms_norm" or "affine";
        `input_norm` before the first block (CLIP) and `final_norm` after the last; `use_layer_scale`; `gated_mlp`;
        `mlp_norm` and `attention_norm` inside the branches (EVA-02); `qk_norm` per head.
    token_mixer (`"attention"`, `"mlp"` or `"linear"`), num_mixer_tokens, mixer_dim:
        MLP-Mixer and ResMLP mix a fixed number of tokens, which prompts and groups together must make up.
    prompt_type (`"deep"`, `"shallow"` or `"none"`), num_prompts, prompt_dropout:
        Learned prompt tokens: new ones before every layer, some at the first, or none.
    """

    model_type = "act_teacher"

    num_groups: int = positive_int_field(default=64)
    group_size: int = positive_int_field(default=32)
    skip_near_origin: bool = False
    pointnet_dims: list[int] | tuple[int, ...] = (128, 256, 512)
    dgcnn_dims: list[int] | tuple[int, ...] = (128, 256, 512, 512, 1024)
    dgcnn_neighbors: int = positive_int_field(default=4)
    embedding_dim: int = positive_int_field(default=384)
    code_dim: int = positive_int_field(default=384)
    feature_dim: int = positive_int_field(default=384)
    codebook_size: int = positive_int_field(default=8192)
    position_dim: int = positive_int_field(default=128)
    decoder_dim: int = positive_int_field(default=1024)
    folding_dim: int = positive_int_field(default=512)
    temperature: float | int = interval(min=0, exclude_min=True)(default=1.0)
    kl_weight: float | int = interval(min=0)(default=0.1)

    backbone: str | None = None
    freeze_backbone: bool = True
    hidden_size: int = positive_int_field(default=768)
    num_hidden_layers: int = positive_int_field(default=12)
    num_attention_heads: int = positive_int_field(default=12)
    intermediate_size: int = positive_int_field(default=3072)
    hidden_act: str = activation_fn_key(default="gelu")
    layer_norm_eps: float = interval(min=0)(default=1e-6)
    qkv_bias: bool = True
    norm_position: Literal["pre", "post"] = "pre"
    norm_type: Literal["layer_norm", "rms_norm", "affine"] = "layer_norm"
    input_norm: bool = False
    final_norm: bool = True
    use_layer_scale: bool = False
    gated_mlp: bool = False
    mlp_norm: bool = False
    attention_norm: bool = False
    qk_norm: bool = False
    token_mixer: Literal["attention", "mlp", "linear"] = "attention"
    num_mixer_tokens: int | None = positive_int_field(default=None)
    mixer_dim: int | None = positive_int_field(default=None)
    initializer_range: float = interval(min=0)(default=0.02)

    prompt_type: Literal["deep", "shallow", "none"] = "deep"
    num_prompts: int = interval(min=0)(default=64)
    prompt_dropout: float | int = interval(min=0, max=1, exclude_max=True)(default=0.1)

    def __post_init__(self, **kwargs):
        self.pointnet_dims, self.dgcnn_dims = list(self.pointnet_dims), list(self.dgcnn_dims)
        if self.prompt_type == "none":
            self.num_prompts = 0
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the rules that span fields; `@strict` calls it."""
        for name, length in (("pointnet_dims", 3), ("dgcnn_dims", 5)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"`{name}` must hold {length} widths, got {getattr(self, name)}")
        if self.prompt_type != "none" and self.num_prompts < 1:
            raise ValueError(
                f"`num_prompts` must be at least 1 for {self.prompt_type} prompts, got {self.num_prompts}"
            )
        if self.dgcnn_neighbors > self.num_groups:
            raise ValueError(
                f"`dgcnn_neighbors` must not exceed `num_groups`, got {self.dgcnn_neighbors} and {self.num_groups}"
            )
        # Points are folded four from one; the DGCNNs normalize their channels in four groups.
        widths = [("dgcnn_dims", width) for width in self.dgcnn_dims[1:]]
        widths += [(name, getattr(self, name)) for name in ("group_size", "codebook_size", "feature_dim")]
        for name, width in widths:
            if width % 4:
                raise ValueError(f"`{name}` must be divisible by 4, got {width}")
        if self.use_layer_scale and self.norm_position == "post":
            raise ValueError("`use_layer_scale` needs norm_position='pre': blocks that normalize last have none")
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
