"""Configurations of `ACTTeacher`, of `ACTViewTeacher`, and of `ACTStudent` and its heads."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY
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
        check_lengths(self, pointnet_dims=3, dgcnn_dims=5)
        if self.prompt_type != "none" and self.num_prompts < 1:
            raise ValueError(f"`num_prompts` must be at least 1 for {self.prompt_type} prompts, got 0")
        if (neighbors := self.dgcnn_neighbors) > self.num_groups:
            raise ValueError(f"`dgcnn_neighbors` must not exceed `num_groups`, got {neighbors} and {self.num_groups}")
        # Points are folded four from one; the DGCNNs normalize their channels in four groups.
        widths = [("dgcnn_dims", width) for width in self.dgcnn_dims[1:]]
        widths += [(name, getattr(self, name)) for name in ("group_size", "codebook_size", "feature_dim")]
        for name, width in widths:
            check_divisible(name, width, "4", 4)
        if self.use_layer_scale and self.norm_position == "post":
            raise ValueError("`use_layer_scale` needs norm_position='pre': blocks that normalize last have none")
        if self.token_mixer == "attention":
            check_divisible("hidden_size", self.hidden_size, "`num_attention_heads`", self.num_attention_heads)
        elif self.num_groups + self.num_prompts != self.num_mixer_tokens:
            raise ValueError(
                f"a {self.token_mixer} token mixer is tied to num_mixer_tokens={self.num_mixer_tokens}, which "
                f"`num_groups` and `num_prompts` must add up to, got {self.num_groups} + {self.num_prompts}"
            )

    @property
    def cloud_dim(self) -> int:
        """Width of the features of clouds, the mean of their groups'."""
        return self.feature_dim


@strict
class ACTViewTeacherConfig(PreTrainedConfig):
    r"""
    `ACTViewTeacher.from_backbone` fills in the fields of the Transformer, `backbone` to `num_prefix_tokens`.

    num_groups, group_size (`int`), skip_near_origin (`bool`):
        How a cloud is cut into groups, as in `ACTStudentConfig`.
    num_views (`int`), elevation (`float`), up_axis (`"y"` or `"z"`):
        Cameras on a ring around the up axis, which look down by `elevation` degrees.
    image_size (`int`), shading (`"light"`, `"depth"` or `"normals"`):
        Side of the square pictures in pixels, and how surfaces are coloured.
    splat (`float`):
        Half the side of the square that a point covers, as a multiple of the distance between points.
    visibility_tolerance (`float`):
        How far behind the nearest surface a point still counts as visible; a cloud's radius is 1.
    feature_layers (`list[int]`, *optional*):
        Hidden states whose mean, each normalized, is taught, as indices into transformers' `hidden_states`; by default
        the Transformer's output.
    cloud_features (`"tokens"` or `"embedding"`):
        Features of a whole cloud, mean over the views: the class token and the mean of the patches, or the pooled
        output, which CLIP and SigLIP compare with text.

    backbone (`str`, *optional*), backbone_config (`PreTrainedConfig`):
        Name of the image Transformer, for the record, and its configuration.
    patch_size, hidden_size, num_prefix_tokens (`int`):
        Side of its patches in pixels, width of its tokens, and the number of tokens before those of the patches.
    projection_dim (`int`, *optional*), text_model (`str`, *optional*):
        Width of CLIP's joint space; name of the model whose text half embeds texts in the space of the clouds.
    image_mean, image_std (`list[float]`):
        Mean and deviation of the colours that it expects.
    """

    model_type = "act_view_teacher"
    sub_configs = {"backbone_config": AutoConfig}

    num_groups: int = positive_int_field(default=64)
    group_size: int = positive_int_field(default=32)
    skip_near_origin: bool = False
    num_views: int = positive_int_field(default=6)
    elevation: float | int = interval(min=-90, max=90)(default=30.0)
    up_axis: Literal["y", "z"] = "y"
    image_size: int = positive_int_field(default=112)
    shading: Literal["light", "depth", "normals"] = "light"
    splat: float | int = interval(min=0, exclude_min=True)(default=1.0)
    visibility_tolerance: float | int = interval(min=0, exclude_min=True)(default=0.15)
    feature_layers: list[int] | None = None
    cloud_features: Literal["tokens", "embedding"] = "tokens"

    backbone: str | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    patch_size: int = positive_int_field(default=14)
    hidden_size: int = positive_int_field(default=384)
    num_prefix_tokens: int = interval(min=0)(default=1)
    projection_dim: int | None = positive_int_field(default=None)
    text_model: str | None = None
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self, **kwargs):
        if not isinstance(self.backbone_config, PreTrainedConfig):  # by default the Transformer of DINOv2-small
            fields = {"model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6, "image_size": 518}
            fields = self.backbone_config or fields
            self.backbone_config = AutoConfig.for_model(**fields)
        self.image_mean, self.image_std = list(self.image_mean), list(self.image_std)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the rules that span fields; `@strict` calls it."""
        check_lengths(self, image_mean=3, image_std=3)
        check_divisible("image_size", self.image_size, "`patch_size`", self.patch_size)

    @property
    def feature_dim(self) -> int:
        """Width of the features of groups."""
        return self.hidden_size

    @property
    def cloud_dim(self) -> int:
        """Width of the features of clouds."""
        if self.cloud_features == "embedding":
            return self.projection_dim or self.hidden_size
        return self.hidden_size * (2 if self.num_prefix_tokens else 1)


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
        Whether a class token leads the groups. Without it, its place in `pooling` is taken by the mean.
    pooling (`str`):
        How `pooler_output` pools the tokens, any of cls (the class token), max and mean (over the groups), joined by
        "_". The paper's is "cls_max".
    whitening (`bool`):
        Whether vectors of `encode` are pooled features after `ACTStudent.fit_whitening`, which sets this.
    residual_after_norm (`bool`):
        Whether each branch is added to the normalized tokens instead of the raw ones, as in ReCon.
    decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size (`int`):
        The pretraining decoder. Its heads and MLP width default to the encoder's.
    decoder_attention (`"all"`, `"visible"` or `"none"`), center_jitter (`float`):
        Which tokens the decoder attends to. The centers of masked groups draw the shape, so that among themselves they
        predict much without the encoder ("none": nothing else, a control); with "visible" they do not see each other.
        Their centers can be jittered by Gaussian noise of this deviation.
    teacher_dim (`int`), teacher_dims (`list[int]`, *optional*), teacher_weights (`list[float]`, *optional*):
        Width of the teacher's features; of several teachers the sum, and each one's width and weight in the loss.
    cloud_dims (`list[int]`, *optional*), cloud_loss_weight (`float`):
        Widths of each teacher's features of a whole cloud, which a head learns to predict from the class token.
    text_model (`str`, *optional*):
        Name of the model whose text half embeds texts in the space of the first teacher's features of clouds.
    mask_ratio (`float`), mask_type (`"random"`, `"block"` or `"blocks"`):
        Share of the groups that pretraining masks: random groups, or the nearest ones of one or four random centers.
    embed_visible_only (`bool`):
        Whether pretraining embeds the visible groups only. In the original, the points of masked groups take part in
        the batch statistics of the mini-PointNet. Faster, but not the same training.
    loss_type (`"cosine"`, `"l2"` or `"smooth_l1"`):
        Distance between predicted and teacher features.
    target (`"teacher"`, `"backbone"` or `"coordinates"`):
        What the student predicts: the teacher's features, those before the second DGCNN of an `ACTTeacher`, or the
        points of the masked groups.
    target_norm (`"none"`, `"standardize"`, `"layer_norm"` or `"phi_s"`):
        How features are normalized, as `ACTTargetNorm` describes.
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
    pooling: Literal["cls", "max", "mean", "cls_max", "cls_mean", "mean_max", "cls_mean_max"] = "cls_max"
    whitening: bool = False
    residual_after_norm: bool = False
    initializer_range: float = interval(min=0)(default=0.02)

    decoder_num_hidden_layers: int = positive_int_field(default=2)
    decoder_num_attention_heads: int | None = positive_int_field(default=None)
    decoder_intermediate_size: int | None = positive_int_field(default=None)
    decoder_attention: Literal["all", "visible", "none"] = "all"
    center_jitter: float | int = interval(min=0)(default=0.0)
    teacher_dim: int = positive_int_field(default=384)
    teacher_dims: list[int] | None = None
    teacher_weights: list[float] | None = None
    cloud_dims: list[int] | None = None
    cloud_loss_weight: float | int = interval(min=0)(default=1.0)
    text_model: str | None = None
    mask_ratio: float | int = interval(min=0, max=1, exclude_max=True)(default=0.8)
    mask_type: Literal["random", "block", "blocks"] = "random"
    embed_visible_only: bool = False
    loss_type: Literal["cosine", "l2", "smooth_l1"] = "cosine"
    target: Literal["teacher", "backbone", "coordinates"] = "teacher"
    target_norm: Literal["none", "standardize", "layer_norm", "phi_s"] = "none"

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
        check_lengths(self, pointnet_dims=3, propagation_dims=2, segmentation_dims=2)
        for name in ("num_attention_heads", "decoder_num_attention_heads"):
            check_divisible("hidden_size", self.hidden_size, f"`{name}`", getattr(self, name) or 1)
        if self.teacher_dims is not None and sum(self.teacher_dims) != self.teacher_dim:
            raise ValueError(f"`teacher_dims` must add up to teacher_dim={self.teacher_dim}, got {self.teacher_dims}")
        for name in ("teacher_weights", "cloud_dims"):
            values, expected = getattr(self, name), len(self.teacher_dims or [self.teacher_dim])
            if values is not None and len(values) != expected:
                raise ValueError(f"`{name}` must hold a value for each of {expected} teachers, got {values}")
        if self.cloud_dims and not self.use_cls_token:
            raise ValueError("`cloud_dims` needs use_cls_token=True: the class token predicts the features of clouds")
        lengths = {"category_names": "num_categories", "parts_of_category": "num_categories"}
        for name, size in lengths.items():
            values, expected = getattr(self, name), getattr(self, size)
            if values is not None and len(values) != expected:
                raise ValueError(f"`{name}` must be of length {size}={expected}, got {len(values)}")
        heads = 2 * self.detection_num_attention_heads
        check_divisible("detection_dim", self.detection_dim, "twice `detection_num_attention_heads`", heads)
        layers, depth = self.segmentation_layers, self.num_hidden_layers
        if layers is not None and not (layers and min(layers) >= 1 and max(layers) == depth):
            raise ValueError(f"`segmentation_layers` must name layers from 1 on, the last one {depth}, got {layers}")

    @property
    def pooled_dim(self) -> int:
        """Width of `pooler_output`."""
        return self.hidden_size * len(self.pooling.split("_"))


def check_lengths(config: PreTrainedConfig, **lengths: int) -> None:
    for name, length in lengths.items():
        if len(getattr(config, name)) != length:
            raise ValueError(f"`{name}` must hold {length} widths, got {getattr(config, name)}")


def check_divisible(name: str, value: int, factor_name: str, factor: int) -> None:
    if value % factor:
        raise ValueError(f"`{name}` must be divisible by {factor_name}, got {value} and {factor}")
