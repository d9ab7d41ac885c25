"""Pretrained image Transformers for `ACTViewTeacher.from_backbone`."""

import os

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, TimmWrapperConfig, TimmWrapperModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from .backbone_families import is_timm_name, load_timm
from .modeling_act_view_teacher import look

logger = logging.get_logger(__name__)

PATCHES_A_SIDE = 8  # of a picture, unless its size is given


def load_image_backbone(
    backbone: str | os.PathLike | nn.Module, image_size: int | None = None, pretrained: bool = True, **hub
) -> tuple[dict, PreTrainedModel, nn.Module | None]:
    """Return fields of `ACTViewTeacherConfig`, the image Transformer, and its map into a space shared with text."""
    fields, projection = {}, None
    processor = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    if isinstance(backbone, nn.Module):
        if not pretrained:
            raise ValueError("`pretrained=False` takes the name of a model; a model itself is read with its weights")
        model, name = backbone, getattr(backbone, "name_or_path", "") or type(backbone).__name__
    elif is_timm_name(name := os.fspath(backbone)):
        model = load_timm(name, pretrained, **hub)
    else:
        model = load_transformers(name, pretrained, **hub)
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
