"""Tiny random models of every family that `backbone_families.py` reads, and the small teacher around them."""

from functools import partial

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from modeling_act.backbone_families import POST_NORM, PRE_NORM
from small_models import SMALL_POINT_NETWORKS

try:
    import timm
    from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
except ImportError:
    timm = None


needs_timm = pytest.mark.skipif(timm is None, reason="timm is not installed")

TOKENS = 16  # groups and prompts of a mixer
NUM_PROMPTS = 5
# The teacher around the backbone.
SMALL = SMALL_POINT_NETWORKS | {"num_groups": 11, "num_prompts": NUM_PROMPTS, "prompt_dropout": 0.0}

# Models of transformers: name of the case -> model type and what differs from TINY -----------------------------------

TINY = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
IMAGE = {"image_size": 32, "patch_size": 16}
OWN_SIZES = {  # of the types that do not take TINY and IMAGE together
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 40},
    "audio-spectrogram-transformer": TINY | {"max_length": 32, "num_mel_bins": 32},
    "yolos": TINY | {"image_size": [32, 32], "patch_size": 16},
    "siglip2_vision_model": TINY | {"num_patches": 4, "patch_size": 16},
}
TRANSFORMERS = {kind: (kind, {}) for kind in sorted(PRE_NORM | POST_NORM)} | {
    "vit-no-qkv-bias": ("vit", {"qkv_bias": False}),
    "vit-relu-wide": ("vit", {"hidden_act": "relu", "intermediate_size": 72, "layer_norm_eps": 1e-3}),
    "beit-relative": ("beit", {"use_relative_position_bias": True, "use_mean_pooling": False}),
    "beit-shared-relative": ("beit", {"use_shared_relative_position_bias": True}),
    "beit-no-layer-scale": ("beit", {"layer_scale_init_value": 0.0}),
    "data2vec-vision-relative": ("data2vec-vision", {"use_relative_position_bias": True, "use_mean_pooling": False}),
    "dinov2-swiglu": ("dinov2", {"use_swiglu_ffn": True}),
    "dinov2-registers-swiglu": ("dinov2_with_registers", {"use_swiglu_ffn": True}),
    "dinov3-gated": ("dinov3_vit", {"use_gated_mlp": True, "hidden_act": "silu"}),
    "dinov3-7b-biases": ("dinov3_vit", {"use_gated_mlp": True, "query_bias": False, "value_bias": False}),
    "dinov3-key-bias": ("dinov3_vit", {"key_bias": True, "query_bias": False}),
    "dinov3-no-biases": (
        "dinov3_vit",
        {"mlp_bias": False, "proj_bias": False, "query_bias": False, "value_bias": False},
    ),
    "clip-gelu": ("clip_vision_model", {"hidden_act": "gelu"}),
    "bert-gelu-new": ("bert", {"hidden_act": "gelu_new"}),
    "electra-small": ("electra", {"embedding_size": 16}),
    "distilbert-relu": ("distilbert", {"activation": "relu"}),
}

# Models of timm: name of the case -> architecture and what differs from TIMM_TINY ------------------------------------

TIMM_TINY = {"depth": 3, "embed_dim": 24, "num_heads": 3, "num_classes": 0}
TIMM = {
    "vit": ("vit_tiny_patch16_224", {}),
    "vit-augreg": ("vit_base_patch16_224.augreg_in21k", {}),
    "vit-no-qkv-bias": ("vit_base_patch16_224_miil", {}),
    "vit-gelu-tanh": ("vit_tiny_patch16_224", {"act_layer": partial(nn.GELU, approximate="tanh")}),
    "vit-qk-norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "vit-fc-norm": ("vit_base_patch16_reg4_gap_256", {}),
    "vit-rms-norm": ("test_vit4", {}),
    "vit-scale-norms": ("vit_tiny_patch16_224", {"scale_attn_norm": True, "scale_mlp_norm": True}),
    "deit": ("deit_tiny_patch16_224", {}),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "beit": ("beit_base_patch16_224", {}),
    "beitv2": ("beitv2_base_patch16_224", {}),
    "beit3": ("beit3_base_patch16_224", {}),
    "eva-giant": ("eva_giant_patch14_224", {"mlp_ratio": 2.5}),
    "eva-giant-clip": ("eva_giant_patch14_clip_224", {}),
    "eva-qk-norm": ("eva_giant_patch14_224", {"qk_norm": True}),
    "eva02-tiny": ("eva02_tiny_patch14_224", {}),
    "eva02-base": ("eva02_base_patch14_224", {}),
    "eva02-large-clip": ("eva02_large_patch14_clip_224", {}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "clip-quickgelu": ("vit_base_patch16_clip_quickgelu_224", {}),
    "perception-encoder": ("vit_pe_core_tiny_patch16_384", {}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "dinov2": ("vit_small_patch14_dinov2", {}),
    "dinov2-giant": ("vit_giant_patch14_dinov2", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "dinov3-plus": ("vit_small_plus_patch16_dinov3_qkvb", {}),
    "rope-mixed": ("vit_base_patch16_rope_mixed_224", {}),
    "aimv2": ("aimv2_large_patch14_224", {}),
    "mixer": ("mixer", {}),
    "mixer-relu": ("mixer", {"act_layer": nn.ReLU}),
    "resmlp": ("resmlp", {}),
}


def make_transformers(case):
    kind, options = TRANSFORMERS[case]
    config = AutoConfig.for_model(kind, **(OWN_SIZES.get(kind, TINY | IMAGE) | options))
    return AutoModel.from_config(config, dtype=torch.float32)


def make_timm(case):
    name, options = TIMM[case]
    if name in ("mixer", "resmlp"):
        blocks = {} if name == "mixer" else {"block_layer": ResBlock, "norm_layer": Affine, "mlp_ratio": 4}
        sizes = {"num_blocks": 3, "embed_dim": 24, "img_size": 32, "patch_size": 8, "num_classes": 0}
        return MlpMixer(**sizes, **blocks, **options)
    return timm.create_model(name, **(TIMM_TINY | options))


def make_backbone(case):
    """Library and name of a case -> a tiny model of the library, in eval mode, no parameter of which is 0 or 1."""
    library, _, name = case.partition("/")
    model = make_transformers(name) if library == "transformers" else make_timm(name)
    return randomize(model).eval()


def randomize(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4).add_(0.1)
    return model


def case_params(*names):
    names = names or [f"transformers/{name}" for name in TRANSFORMERS] + [f"timm/{name}" for name in TIMM]
    return [pytest.param(name, marks=needs_timm if name.startswith("timm/") else ()) for name in names]
