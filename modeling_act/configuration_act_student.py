"""Configuration of `ACTStudent` and its heads: a plain 3D Transformer over groups of points."""

from huggingface_hub.dataclasses import strict

from .configuration_checks import (
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
class ACTStudentConfig(ACTPreTrainedConfig):
    r"""
    The defaults are the paper's.

    num_groups, group_size (`int`):
        A cloud becomes `num_groups` tokens of `group_size` points (64 for 1024 points, 128 for 2048, 512 for 8192).
    skip_near_origin (`bool`):
        Farthest point sampling never picks points with squared norm <= 1e-3, as the released checkpoints had it.
    pointnet_dims (`list[int]`):
        Widths of the mini-PointNet inside a group: first layer, group feature, second layer.
    embedding_dim (`int`, *optional*):
        Width the mini-PointNet puts out; `None` means `hidden_size`. Another width adds a projection.
    position_dim (`int`):
        Width of the hidden layer of the position MLPs.
    use_cls_token (`bool`):
        Whether a class token leads the groups. Without it, `pooler_output` is [mean, max] instead of [cls, max].
    residual_after_norm (`bool`):
        Each branch is added to the normalised tokens instead of the raw ones, as ReCon has it.
    decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size (`int`):
        The pretraining decoder; heads and MLP width default to the encoder's.
    teacher_dim (`int`):
        Width of the teacher's features.
    mask_ratio (`float`), mask_type (`"random"` or `"block"`):
        Share of the groups hidden in pretraining, drawn at random or as the nearest groups of a random one.
    embed_visible_only (`bool`):
        In pretraining the mini-PointNet is spared the hidden groups, whose points the original lets take part in its
        batch statistics. Faster, and another training.
    loss_type (`"cosine"`, `"l2"` or `"smooth_l1"`):
        Distance between predicted and teacher features.
    target (`"teacher"`, `"standardized"`, `"backbone"` or `"coordinates"`):
        What was predicted: a teacher's features, the same standardised, those before its second DGCNN likewise, or
        the groups' own points.
    target_mean, target_deviation (`list[float]`, *optional*):
        Of each of the `teacher_dim` features, where these were standardised.
    head (`"mlp3"` or `"linear"`), classifier_dim, classifier_dropout:
        The classification head.
    segmentation_layers (`list[int]`, *optional*):
        Layers (1-based, the last among them) whose outputs a segmentation head reads; `None`: a third, two thirds and
        all of the depth.
    propagation_dims, segmentation_dims (`list[int]`), segmentation_dropout, num_categories, category_dim:
        Widths of the segmentation heads; the object categories are read by part segmentation only.
    category_names (`list[str]`, *optional*), parts_of_category (`list[list[int]]`, *optional*):
        What the object categories are called, and the labels of the parts that each of them has.
    num_queries (`int`):
        Boxes that detection offers for a scene; at most `num_groups`, at whose centers they begin.
    detection_dim, detection_num_hidden_layers, detection_num_attention_heads (`int`), detection_dropout:
        The decoder of detection; the defaults are 3DETR's.
    num_angle_bins (`int`):
        Parts of a turn that detected boxes are told apart by; 1 leaves them axis-aligned.
    """

    model_type = "act_student"

    num_groups: int = 64
    group_size: int = 32
    skip_near_origin: bool = False
    pointnet_dims: list[int] | tuple[int, ...] = (128, 256, 512)
    embedding_dim: int | None = None
    position_dim: int = 128

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = False
    drop_path_rate: float | int = 0.1
    use_cls_token: bool = True
    residual_after_norm: bool = False
    initializer_range: float = 0.02

    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int | None = None
    decoder_intermediate_size: int | None = None
    teacher_dim: int = 384
    mask_ratio: float | int = 0.8
    mask_type: str = "random"
    embed_visible_only: bool = False
    loss_type: str = "cosine"
    target: str = "teacher"
    target_mean: list[float] | None = None
    target_deviation: list[float] | None = None

    head: str = "mlp3"
    classifier_dim: int = 256
    classifier_dropout: float | int = 0.5

    segmentation_layers: list[int] | tuple[int, ...] | None = None
    propagation_dims: list[int] | tuple[int, ...] = (1536, 1024)
    segmentation_dims: list[int] | tuple[int, ...] = (512, 256)
    segmentation_dropout: float | int = 0.5
    num_categories: int = 16
    category_dim: int = 64
    category_names: list[str] | None = None
    parts_of_category: list[list[int]] | None = None

    num_queries: int = 256
    detection_dim: int = 256
    detection_num_hidden_layers: int = 8
    detection_num_attention_heads: int = 4
    detection_dropout: float | int = 0.1
    num_angle_bins: int = 1

    def __post_init__(self, **kwargs):
        if (
            __package__ == "modeling_act"
        ):  # where the package is installed, its own pipelines serve, not those on the Hub
            kwargs.pop("custom_pipelines", None)
        self.pointnet_dims = list(self.pointnet_dims)
        self.propagation_dims = list(self.propagation_dims)
        self.segmentation_dims = list(self.segmentation_dims)
        if self.segmentation_layers is not None:
            self.segmentation_layers = list(self.segmentation_layers)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Every rule that spans fields or bounds a value."""
        check_positive(
            self, "num_groups", "group_size", "embedding_dim", "position_dim", "hidden_size",
            "num_attention_heads", "intermediate_size", "decoder_num_attention_heads", "decoder_intermediate_size",
            "teacher_dim", "classifier_dim", "num_categories", "category_dim", "num_queries", "detection_dim",
            "detection_num_attention_heads", "num_angle_bins",
        )  # fmt: skip
        depths = ("num_hidden_layers", "decoder_num_hidden_layers", "detection_num_hidden_layers")
        check_positive(self, *depths, most=MOST_LAYERS)
        check_finite(self, "layer_norm_eps", "initializer_range")
        check_activation(self)
        check_widths(self, pointnet_dims=3, propagation_dims=2, segmentation_dims=2)
        check_choice(self, mask_type=("random", "block"), head=("mlp3", "linear"))
        check_choice(self, loss_type=("cosine", "l2", "smooth_l1"))
        check_choice(self, target=("teacher", "standardized", "backbone", "coordinates"))
        for name in ("target_mean", "target_deviation"):
            values = getattr(self, name)
            if values is not None and len(values) != self.teacher_dim:
                raise ValueError(f"`{name}` must be of teacher_dim={self.teacher_dim}, got {len(values)}")
        check_share(
            self, "drop_path_rate", "classifier_dropout", "segmentation_dropout", "detection_dropout", "mask_ratio"
        )
        for name in ("num_attention_heads", "decoder_num_attention_heads"):
            heads = getattr(self, name)
            if heads is not None and self.hidden_size % heads:
                raise ValueError(f"`hidden_size` must be divisible by `{name}`, got {self.hidden_size} and {heads}")
        for name in ("category_names", "parts_of_category"):
            values = getattr(self, name)
            if values is not None and len(values) != self.num_categories:
                raise ValueError(f"`{name}` must be of num_categories={self.num_categories}, got {len(values)}")
        if self.detection_dim % (2 * self.detection_num_attention_heads):
            raise ValueError(
                "`detection_dim` must be divisible by twice `detection_num_attention_heads`, got "
                f"{self.detection_dim} and {self.detection_num_attention_heads}"
            )
        layers, depth = self.segmentation_layers, self.num_hidden_layers
        if layers is not None and not (layers and min(layers) >= 1 and max(layers) == depth):
            raise ValueError(
                f"`segmentation_layers` must name layers from 1 on, the last of num_hidden_layers={depth} among them, "
                f"got {layers}"
            )


__all__ = ["ACTStudentConfig"]
