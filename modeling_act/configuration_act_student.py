"""Configuration of `ACTStudent` and its heads: a plain 3D Transformer over groups of points."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils.type_validators import activation_fn_key, interval, positive_int_field


@strict
class ACTStudentConfig(PreTrainedConfig):
    r"""
    The defaults are the paper's.

    num_groups, group_size (`int`):
        A cloud becomes `num_groups` tokens of `group_size` points (64 for 1024 points, 128 for 2048, 512 for 8192).
    skip_near_origin (`bool`):
        Farthest point sampling never picks points with squared norm <= 1e-3, as for the released checkpoints.
    pointnet_dims (`list[int]`):
        Widths of the mini-PointNet inside a group: first layer, group feature, second layer.
    embedding_dim (`int`, *optional*):
        Output width of the mini-PointNet, by default `hidden_size`. Another width adds a projection.
    position_dim (`int`):
        Width of the hidden layer of the position MLPs.
    use_cls_token (`bool`):
        Whether a class token leads the groups. Without it, `pooler_output` is [mean, max] instead of [cls, max].
    residual_after_norm (`bool`):
        Whether each branch is added to the normalized tokens instead of the raw ones, as in ReCon.
    decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size (`int`):
        The pretraining decoder. Its heads and MLP width default to the encoder's.
    teacher_dim (`int`):
        Width of the teacher's features.
    mask_ratio (`float`), mask_type (`"random"` or `"block"`):
        Share of the groups that pretraining masks: random groups, or the nearest ones of a random center.
    embed_visible_only (`bool`):
        Whether pretraining embeds the visible groups only. In the original, the points of masked groups take part in
        the batch statistics of the mini-PointNet. Faster, but not the same training.
    loss_type (`"cosine"`, `"l2"` or `"smooth_l1"`):
        Distance between predicted and teacher features.
    target (`"teacher"`, `"standardized"`, `"backbone"` or `"coordinates"`):
        What the student predicts: the teacher's features, the same standardized, the standardized features before the
        teacher's second DGCNN, or the points of the masked groups.
    target_mean, target_std (`list[float]`, *optional*):
        Mean and standard deviation of each of the `teacher_dim` features, if they were standardized.
    head (`"mlp3"` or `"linear"`), classifier_dim, classifier_dropout:
        The classification head.
    segmentation_layers (`list[int]`, *optional*):
        Layers (1-based, the last among them) whose outputs a segmentation head reads, by default those at a third, two
        thirds and all of the depth.
    propagation_dims, segmentation_dims (`list[int]`), segmentation_dropout, num_categories, category_dim:
        Widths of the segmentation heads. Only part segmentation reads the object categories.
    category_names (`list[str]`, *optional*), parts_of_category (`list[list[int]]`, *optional*):
        Names of the object categories, and the part labels of each.
    num_queries (`int`):
        Number of boxes that detection predicts for a scene, at most `num_groups`, at whose centers they start.
    detection_dim, detection_num_hidden_layers, detection_num_attention_heads (`int`), detection_dropout:
        The detection decoder; the defaults are 3DETR's.
    num_angle_bins (`int`):
        Number of bins of a box's angle; 1 leaves boxes axis-aligned.
    """

    model_type = "act_student"

    num_groups: int = positive_int_field(default=64)
    group_size: int = positive_int_field(default=32)
    skip_near_origin: bool = False
    pointnet_dims: list[int] | tuple[int, ...] = (128, 256, 512)
    embedding_dim: int | None = positive_int_field(default=None)
    position_dim: int = positive_int_field(default=128)

    hidden_size: int = positive_int_field(default=384)
    num_hidden_layers: int = positive_int_field(default=12)
    num_attention_heads: int = positive_int_field(default=6)
    intermediate_size: int = positive_int_field(default=1536)
    hidden_act: str = activation_fn_key(default="gelu")
    layer_norm_eps: float = interval(min=0)(default=1e-5)
    qkv_bias: bool = False
    drop_path_rate: float | int = interval(min=0, max=1, exclude_max=True)(default=0.1)
    use_cls_token: bool = True
    residual_after_norm: bool = False
    initializer_range: float = interval(min=0)(default=0.02)

    decoder_num_hidden_layers: int = positive_int_field(default=2)
    decoder_num_attention_heads: int | None = positive_int_field(default=None)
    decoder_intermediate_size: int | None = positive_int_field(default=None)
    teacher_dim: int = positive_int_field(default=384)
    mask_ratio: float | int = interval(min=0, max=1, exclude_max=True)(default=0.8)
    mask_type: Literal["random", "block"] = "random"
    embed_visible_only: bool = False
    loss_type: Literal["cosine", "l2", "smooth_l1"] = "cosine"
    target: Literal["teacher", "standardized", "backbone", "coordinates"] = "teacher"
    target_mean: list[float] | None = None
    target_std: list[float] | None = None

    head: Literal["mlp3", "linear"] = "mlp3"
    classifier_dim: int = positive_int_field(default=256)
    classifier_dropout: float | int = interval(min=0, max=1, exclude_max=True)(default=0.5)

    segmentation_layers: list[int] | tuple[int, ...] | None = None
    propagation_dims: list[int] | tuple[int, ...] = (1536, 1024)
    segmentation_dims: list[int] | tuple[int, ...] = (512, 256)
    segmentation_dropout: float | int = interval(min=0, max=1, exclude_max=True)(default=0.5)
    num_categories: int = positive_int_field(default=16)
    category_dim: int = positive_int_field(default=64)
    category_names: list[str] | None = None
    parts_of_category: list[list[int]] | None = None

    num_queries: int = positive_int_field(default=256)
    detection_dim: int = positive_int_field(default=256)
    detection_num_hidden_layers: int = positive_int_field(default=8)
    detection_num_attention_heads: int = positive_int_field(default=4)
    detection_dropout: float | int = interval(min=0, max=1, exclude_max=True)(default=0.1)
    num_angle_bins: int = positive_int_field(default=1)

    def __post_init__(self, **kwargs):
        for name in ("pointnet_dims", "propagation_dims", "segmentation_dims"):
            setattr(self, name, list(getattr(self, name)))
        if self.segmentation_layers is not None:
            self.segmentation_layers = list(self.segmentation_layers)
        # The package registers its pipelines when it is imported; only without it the folder's own ones serve.
        if set(kwargs.get("custom_pipelines", ())) <= set(PIPELINE_REGISTRY.get_supported_tasks()):
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the rules that span fields; `@strict` calls it."""
        for name in ("num_attention_heads", "decoder_num_attention_heads"):
            heads = getattr(self, name)
            if heads is not None and self.hidden_size % heads:
                raise ValueError(f"`hidden_size` must be divisible by `{name}`, got {self.hidden_size} and {heads}")
        for name, length in (("pointnet_dims", 3), ("propagation_dims", 2), ("segmentation_dims", 2)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"`{name}` must hold {length} widths, got {getattr(self, name)}")
        for name, size in (
            ("target_mean", "teacher_dim"),
            ("target_std", "teacher_dim"),
            ("category_names", "num_categories"),
            ("parts_of_category", "num_categories"),
        ):
            values, expected = getattr(self, name), getattr(self, size)
            if values is not None and len(values) != expected:
                raise ValueError(f"`{name}` must be of length {size}={expected}, got {len(values)}")
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
