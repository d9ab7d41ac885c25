"""`ACTViewTeacher`: a pretrained image Transformer that looks at pictures of a cloud's own points.

Points -> pictures from a ring of cameras -> frozen Transformer -> features of patches -> features of groups.
"""

import inspect
import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize
from transformers import AutoConfig, AutoModel, PreTrainedModel, TimmWrapperConfig, TimmWrapperModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .act_layers import ACTPreTrainedModel, make_groups
from .backbone_families import find_model
from .configuration_act import ACTViewTeacherConfig
from .point_ops import PointGroups, bounding_sphere
from .rendering import Renders, lift_features, make_cameras, render

logger = logging.get_logger(__name__)

PATCHES_A_SIDE = 8  # of a picture, unless its size is given


@dataclass
class ACTViewTeacherOutput(ModelOutput):
    """
    teacher_features: of groups, (batch, groups, feature_dim).
    cloud_features: of whole clouds, (batch, cloud_dim).
    centers: of the groups, (batch, groups, 3).
    images: the pictures, before the Transformer's own normalization, (batch, views, 3, image_size, image_size).
    """

    teacher_features: Tensor | None = None
    cloud_features: Tensor | None = None
    centers: Tensor | None = None
    images: Tensor | None = None


class ACTViewTeacher(ACTPreTrainedModel):
    """Frozen image Transformer that teaches `ACTStudentForPreTraining` what it sees of clouds, without training."""

    config: ACTViewTeacherConfig
    config_class = ACTViewTeacherConfig
    base_model_prefix = "view_teacher"
    supports_gradient_checkpointing = False
    _input_embed_layer = "backbone"

    def __init__(self, config: ACTViewTeacherConfig):
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config)
        self.projection = None
        if config.projection_dim is not None:
            self.projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()
        self.requires_grad_(False)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike | nn.Module,
        *,
        pretrained: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        **config,
    ) -> "ACTViewTeacher":
        """Create a teacher from a pretrained image Transformer.

        `backbone` is a Hub id or folder of a transformers model, a timm name, or a transformers model itself; of CLIP
        and SigLIP the image half looks. `pretrained=False` initializes its weights at random, as a control. Everything
        else sets fields of `ACTViewTeacherConfig`; those that describe the Transformer come from the backbone.
        """
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        fields, model, projection = load_image_backbone(backbone, config.get("image_size"), pretrained, **hub)
        if unknown := sorted(set(config) - set(ACTViewTeacherConfig.__dataclass_fields__)):
            raise ValueError(f"ACTViewTeacherConfig has no field {', '.join(unknown)}")
        teacher = cls(ACTViewTeacherConfig(**fields | config))
        teacher.backbone.load_state_dict(model.state_dict())
        if projection is not None:
            teacher.projection.load_state_dict(projection.state_dict())
        return teacher.eval()

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "ACTViewTeacher":
        """Load the model and freeze it: loading makes every parameter trainable."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).requires_grad_(False)
        return loaded

    def render(self, points: Tensor) -> Renders:
        """Render clouds (batch, points, 3) as the Transformer sees them."""
        center, radius = bounding_sphere(points)
        return self._render((points - center) / radius)[0]

    def _render(self, points: Tensor) -> tuple[Renders, Tensor]:
        """Render clouds of the unit sphere; return the cameras (views, 3, 3) too."""
        config = self.config
        cameras = make_cameras(config.num_views, config.elevation, config.up_axis).to(points.device)
        with torch.autocast(points.device.type, enabled=False):  # bf16 would move points by pixels
            return render(points, cameras, config.image_size, config.splat, config.shading), cameras

    @can_return_tuple
    @torch.no_grad()
    def forward(
        self, points: Tensor | None = None, groups: PointGroups | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ACTViewTeacherOutput:
        """Look at clouds (batch, points, 3). `groups` are those that features are wanted of, by default cut from the
        points; without `points`, their own points are what is seen."""
        centers, neighborhoods = make_groups(self.config, None if groups else points, groups)
        if points is None:
            points = (neighborhoods + centers.unsqueeze(2)).flatten(1, 2)
        center, radius = bounding_sphere(points.float())
        views, cameras = self._render((points - center) / radius)
        patches, cloud_features = self._look(views.images)
        seen = PointGroups((centers - center) / radius, neighborhoods / radius.unsqueeze(3))
        with torch.autocast(points.device.type, enabled=False):
            features = lift_features(patches, views, seen, cameras, self.config.visibility_tolerance)
        return ACTViewTeacherOutput(features, cloud_features, centers, views.images)

    def get_teacher_features(
        self, points: Tensor | None = None, groups: PointGroups | None = None, return_cloud: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the features that a student learns to predict, (batch, groups, feature_dim), and with `return_cloud`
        those of the whole cloud, (batch, cloud_dim)."""
        output = self(points, groups)
        return (output.teacher_features, output.cloud_features) if return_cloud else output.teacher_features

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, views, 3, size, size) -> features of patches (batch, views, patches, feature_dim), and of
        clouds (batch, cloud_dim)."""
        config, batch_size = self.config, len(images)
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (config.image_mean, config.image_std))
        pixels = (images.flatten(0, 1) - mean) / std
        output = look(self.backbone, pixels, output_hidden_states=config.feature_layers is not None)
        tokens = output.last_hidden_state.float()
        if config.feature_layers is not None:
            states = [output.hidden_states[layer].float() for layer in config.feature_layers]
            tokens = torch.stack([layer_norm(state, state.shape[-1:]) for state in states]).mean(0)
        patches = tokens[:, config.num_prefix_tokens :]
        if config.cloud_features == "embedding":
            pooled = output.pooler_output if self.projection is None else self.projection(output.pooler_output)
            cloud = normalize(pooled.float(), dim=-1)
        elif config.num_prefix_tokens:
            cloud = torch.cat([tokens[:, 0], patches.mean(1)], dim=1)
        else:
            cloud = patches.mean(1)
        return patches.unflatten(0, (batch_size, -1)), cloud.unflatten(0, (batch_size, -1)).mean(1)


def look(backbone: PreTrainedModel, pixels: Tensor, **options) -> ModelOutput:
    """Pass normalized pictures (batch, 3, size, size) through an image Transformer of whatever native size."""
    if "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters:
        options["interpolate_pos_encoding"] = True
    return backbone(pixels.to(backbone.dtype), **options)


def load_image_backbone(
    backbone: str | os.PathLike | nn.Module, image_size: int | None = None, pretrained: bool = True, **hub
) -> tuple[dict, PreTrainedModel, nn.Module | None]:
    """Return fields of `ACTViewTeacherConfig`, the image Transformer, and its map into a space shared with text."""
    fields, projection = {}, None
    processor = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    model, name = find_model(backbone, pretrained, load_transformers, **hub)
    if isinstance(model, PreTrainedModel) and not isinstance(backbone, nn.Module):
        processor |= read_processor(name, **hub)
    if not isinstance(model, PreTrainedModel):
        model, processor = wrap_timm(model, image_size), model.pretrained_cfg
        processor = {"image_mean": processor["mean"], "image_std": processor["std"]}
        patch_size, hidden_size = model.timm_model.patch_embed.patch_size[0], model.timm_model.num_features
    else:
        if hasattr(model, "vision_model") and hasattr(model.config, "text_config"):
            projection, model = getattr(model, "visual_projection", None), model.vision_model
            fields = {"cloud_features": "embedding", "projection_dim": getattr(projection, "out_features", None)}
        patch_size, hidden_size = getattr(model.config, "patch_size", None), getattr(model.config, "hidden_size", 0)
    if not isinstance(patch_size, int):
        raise ValueError(f"{name} is no image Transformer with square patches")
    image_size = image_size or PATCHES_A_SIDE * patch_size
    if image_size % patch_size:
        raise ValueError(f"`image_size` must be a multiple of the patches' {patch_size} pixels, got {image_size}")
    fields |= {name: [float(value) for value in processor[name]] for name in ("image_mean", "image_std")}
    fields |= {"patch_size": patch_size, "image_size": image_size, "hidden_size": hidden_size}
    with torch.no_grad():
        tokens = look(model.eval(), torch.zeros(1, 3, image_size, image_size)).last_hidden_state
    fields |= {"num_prefix_tokens": tokens.shape[1] - (image_size // patch_size) ** 2}
    name = os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name  # no local path gets published
    if "cloud_features" in fields:
        fields["text_model"] = name
    return {"backbone": name, "backbone_config": model.config, **fields}, model, projection


def load_transformers(name: str, pretrained: bool, **hub) -> PreTrainedModel:
    if not pretrained:
        return AutoModel.from_config(AutoConfig.from_pretrained(name, **hub), dtype=torch.float32)
    model, report = AutoModel.from_pretrained(
        name, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **hub
    )
    if report["missing_keys"]:  # transformers initializes these at random, with no more than a warning
        raise ValueError(f"the checkpoint {name} lacks weights, {sorted(report['missing_keys'])[0]} first")
    return model


def read_processor(name: str, **hub) -> dict:
    """Read what a model's image processor does; nothing if the model does not say."""
    try:
        return ImageProcessingMixin.get_image_processor_dict(name, **hub)[0]
    except OSError:
        logger.warning(f"{name} has no preprocessor_config.json: pixels are normalized as those of ImageNet")
        return {}


def wrap_timm(model: nn.Module, image_size: int | None) -> PreTrainedModel:
    """Wrap a Vision Transformer of timm as transformers does, for pictures of `image_size`."""
    if not hasattr(model, "patch_embed") or not hasattr(model, "set_input_size"):
        raise ValueError(f"{type(model).__name__} of timm is no Vision Transformer of any picture's size")
    image_size = image_size or PATCHES_A_SIDE * model.patch_embed.patch_size[0]
    model.set_input_size(img_size=image_size)
    model.reset_classifier(0)
    name = model.pretrained_cfg["architecture"]
    config = TimmWrapperConfig(architecture=name, do_pooling=False, model_args={"img_size": image_size})
    wrapped = TimmWrapperModel(config)
    wrapped.timm_model.load_state_dict(model.state_dict())
    return wrapped


# The class that a saved folder names for `trust_remote_code=True`, if the package is not installed.
ACTViewTeacher.register_for_auto_class("AutoModel")
