"""Reads pretrained Transformers of transformers and timm into the canonical block of `modeling_act_backbone.py`.

A family needs no code of its own: its parameters are recognised by the names in `ROLES`, and whatever no role and no
entry of `DROPPED` names is an error. Used by `ACTTeacher.from_backbone` and the checkpoint converter.
"""

import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

# Where the library normalises: before each branch, or after adding it.
PRE_NORM = {
    "vit", "deit", "beit", "data2vec-vision", "dinov2", "dinov2_with_registers", "dinov3_vit", "ijepa", "vit_mae",
    "vit_msn", "vivit", "audio-spectrogram-transformer", "clip_vision_model", "siglip_vision_model",
    "siglip2_vision_model",
}  # fmt: skip
POST_NORM = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "distilbert"}
TIMM_BLOCKS = {"Block", "EvaBlock", "MixerBlock", "ResBlock"}

LAYERS = ("layers", "encoder.layers", "encoder.layer", "layer", "model.layer", "transformer.layer", "blocks")
FINAL_NORMS = ("layernorm", "norm", "post_layernorm")
INPUT_NORMS = ("pre_layrnorm", "norm_pre")

# Canonical name -> the names it has inside a block of the libraries.
ROLES = {
    "norm1": ("layernorm_before", "norm1", "layer_norm1", "ln_1", "attention.output.LayerNorm", "sa_layer_norm"),
    "norm2": ("layernorm_after", "norm2", "layer_norm2", "ln_2", "output.LayerNorm", "output_layer_norm"),
    "query": (
        "attention.q_proj", "attention.attention.query", "attention.self.query", "self_attn.q_proj", "attn.q_proj",
        "attention.q_lin",
    ),
    "key": (
        "attention.k_proj", "attention.attention.key", "attention.self.key", "self_attn.k_proj", "attn.k_proj",
        "attention.k_lin",
    ),
    "value": (
        "attention.v_proj", "attention.attention.value", "attention.self.value", "self_attn.v_proj", "attn.v_proj",
        "attention.v_lin",
    ),
    "mixer.qkv": ("attn.qkv",),
    "mixer.query_norm": ("attn.q_norm",),
    "mixer.key_norm": ("attn.k_norm",),
    "mixer.norm": ("attn.norm",),
    "mixer.qkv.weight": ("attn.in_proj_weight",),
    "mixer.qkv.bias": ("attn.in_proj_bias",),
    "mixer.proj": (
        "attention.o_proj", "attention.output.dense", "self_attn.out_proj", "attn.proj", "attn.out_proj",
        "attention.out_lin",
    ),
    "mixer.mix.0": ("mlp_tokens.fc1",),
    "mixer.mix.2": ("mlp_tokens.fc2",),
    "mixer.mix": ("linear_tokens",),
    "mlp.fc1": ("mlp.fc1", "intermediate.dense", "ffn.lin1", "mlp.up_proj", "mlp.fc1_x", "mlp.c_fc", "mlp_channels.fc1"),
    "mlp.gate": ("mlp.gate_proj", "mlp.fc1_g"),
    "mlp.packed": ("mlp.weights_in",),
    "mlp.norm": ("mlp.norm",),
    "mlp.fc2": (
        "mlp.fc2", "output.dense", "ffn.lin2", "mlp.down_proj", "mlp.weights_out", "mlp.c_proj", "mlp_channels.fc2",
    ),
    "layer_scale1": ("layer_scale1.lambda1", "lambda_1", "ls1.gamma", "gamma_1", "ls1"),
    "layer_scale2": ("layer_scale2.lambda1", "lambda_2", "ls2.gamma", "gamma_2", "ls2"),
    "query.bias": ("attn.q_bias",),
    "value.bias": ("attn.v_bias",),
}  # fmt: skip
CANONICAL = {name: role for role, names in ROLES.items() for name in names}
# Tied to an image's grid, which groups of points do not have.
DROPPED = ("relative_position_bias_table", "relative_position_index", "attn.k_bias")

ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh", "SiLU": "silu", "ReLU": "relu"}


def load_backbone(
    backbone: str | nn.Module, pretrained: bool = True, trust_remote_code: bool = False, **hub
) -> tuple[dict, dict[str, Tensor]]:
    """Fields of `ACTTeacherConfig` and weights of `ACTBackbone` for a model or the name of one."""
    if isinstance(backbone, nn.Module):
        model, name = backbone, getattr(backbone, "name_or_path", "") or type(backbone).__name__
    elif is_timm_name(backbone):
        model, name = load_timm(backbone, pretrained, hub.get("cache_dir")), backbone
    else:
        model, name = load_transformers(backbone, pretrained, trust_remote_code, **hub), backbone
    fields, weights = read_transformers(model) if isinstance(model, PreTrainedModel) else read_timm(model)
    return {"backbone": name, **fields}, weights


def is_timm_name(name: str) -> bool:
    """timm's names ("vit_base_patch16_224") have no slash and an underscore; on the Hub they live under timm/."""
    if os.path.isdir(name):
        config = os.path.join(name, "config.json")
        if not os.path.isfile(config):
            raise ValueError(f"{name} is a folder without config.json, so no model can be read from it")
        with open(config, encoding="utf-8") as file:
            return '"pretrained_cfg"' in file.read()
    return name.startswith(("timm/", "hf-hub:timm/", "hf_hub:timm/")) or ("/" not in name and "_" in name)


def load_timm(name: str, pretrained: bool, cache_dir: str | None) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"{name} is a timm model and timm cannot be imported ({error}). Install it with "
            "`pip install modeling_act[timm]`, with a torchvision build that matches your torch."
        ) from error
    if os.path.isdir(name):
        name = f"local-dir:{name}"
    elif name.startswith("timm/"):
        name = f"hf-hub:{name}"
    return timm.create_model(name, pretrained=pretrained, cache_dir=cache_dir)


def load_transformers(name: str, pretrained: bool, trust_remote_code: bool, **hub) -> PreTrainedModel:
    if pretrained:
        return AutoModel.from_pretrained(name, trust_remote_code=trust_remote_code, dtype=torch.float32, **hub)
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
    return AutoModel.from_config(config, trust_remote_code=trust_remote_code)


def read_transformers(model: PreTrainedModel) -> tuple[dict, dict[str, Tensor]]:
    model = model.base_model
    model = getattr(model, "vision_model", model)  # of CLIP and SigLIP, the image half
    config = model.config
    if config.model_type not in PRE_NORM | POST_NORM:
        raise ValueError(
            f"transformers models of type {config.model_type!r} cannot be backbones; "
            f"these can: {', '.join(sorted(PRE_NORM | POST_NORM))}"
        )
    fields = {
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": getattr(config, "hidden_act", None) or config.activation,
        "norm_position": "pre" if config.model_type in PRE_NORM else "post",
    }
    if getattr(config, "use_swiglu_ffn", False):  # DINOv2 giant, whatever `hidden_act` says
        fields["hidden_act"] = "silu"
    return read_model(model, fields, config.model_type)


def read_timm(model: nn.Module) -> tuple[dict, dict[str, Tensor]]:
    kind = type(model).__name__
    blocks = getattr(model, "blocks", None)
    block_kind = type(blocks[0]).__name__ if blocks is not None and len(blocks) else "no blocks"
    if block_kind not in TIMM_BLOCKS or not hasattr(model, "norm"):
        raise ValueError(
            f"timm models of type {kind} with {block_kind} cannot be backbones; ViT, DeiT, BEiT, EVA, their hybrids, "
            "MLP-Mixer and ResMLP can"
        )
    block = blocks[0]
    attention = getattr(block, "attn", None)
    activation = (block.mlp if attention is not None else block.mlp_channels).act
    fields = {
        "num_attention_heads": attention.num_heads if attention is not None else 1,
        "hidden_act": ACTIVATIONS.get(type(activation).__name__, type(activation).__name__),
        "norm_position": "pre",
    }
    if getattr(activation, "approximate", "none") == "tanh":
        fields["hidden_act"] = "gelu_pytorch_tanh"
    return read_model(model, fields, kind)


def read_model(model: nn.Module, fields: dict, kind: str) -> tuple[dict, dict[str, Tensor]]:
    """Blocks and norms of either library, recognised by name."""
    layers = first_module(model, LAYERS)
    input_norm, final_norm = first_module(model, INPUT_NORMS), first_module(model, FINAL_NORMS)
    weights = {}
    for index, layer in enumerate(layers):
        gate_last = getattr(getattr(layer, "mlp", None), "gate_last", False)
        for role, tensor in read_block(layer.state_dict(), f"{kind}, block {index}", gate_last).items():
            weights[f"layers.{index}.{role}"] = tensor
    for role, norm in (("input_norm", input_norm), ("norm", final_norm)):
        if norm is not None:
            weights |= {f"{role}.{name}": tensor for name, tensor in flatten_affine(norm.state_dict())}
    fields |= shape_fields(weights) | norm_fields(layers, input_norm, final_norm)
    return fields, weights


def read_block(state: dict[str, Tensor], where: str, gate_last: bool = False) -> dict[str, Tensor]:
    """A block's parameters under their canonical names."""
    found = {}
    for name, tensor in flatten_affine(state):
        if name.endswith(DROPPED):
            continue
        stem, dot, end = name.rpartition(".")
        if name in CANONICAL:
            role = CANONICAL[name]
        elif dot and end in ("weight", "bias") and stem in CANONICAL:
            role = f"{CANONICAL[stem]}.{end}"
        else:
            raise ValueError(f"{where}: parameter {name} of shape {tuple(tensor.shape)} has no place in the canonical block")
        found[role] = tensor
    fuse_query_key_value(found)
    split_packed_gate(found, gate_last)
    return found


def flatten_affine(state: dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """ResMLP's affine norms say alpha and beta, (1, 1, width), for weight and bias."""
    for name, tensor in state.items():
        if name.endswith(("alpha", "beta")):
            name, tensor = name.removesuffix("alpha").removesuffix("beta") + (
                "weight" if name.endswith("alpha") else "bias"
            ), tensor.flatten()
        yield name, tensor


def fuse_query_key_value(found: dict[str, Tensor]) -> None:
    """Separate projections become one; a bias that only some of them have is zero for the others."""
    biases = [found.pop(f"{role}.bias", None) for role in ("query", "key", "value")]
    if "query.weight" in found:
        found["mixer.qkv.weight"] = torch.cat([found.pop(f"{role}.weight") for role in ("query", "key", "value")])
    if any(bias is not None for bias in biases):
        weight = found["mixer.qkv.weight"]
        absent = weight.new_zeros(weight.shape[0] // 3)
        found["mixer.qkv.bias"] = torch.cat([absent if bias is None else bias for bias in biases])


def split_packed_gate(found: dict[str, Tensor], gate_last: bool) -> None:
    """One matrix for gate and value becomes two."""
    packed = "mlp.packed" if "mlp.packed.weight" in found else "mlp.fc1"
    width = found["mlp.fc2.weight"].shape[1]
    for end in ("weight", "bias"):
        tensor = found.get(f"{packed}.{end}")
        if tensor is not None and tensor.shape[0] == 2 * width:
            del found[f"{packed}.{end}"]
            first, second = tensor.chunk(2)
            found[f"mlp.gate.{end}"], found[f"mlp.fc1.{end}"] = (second, first) if gate_last else (first, second)


def shape_fields(weights: dict[str, Tensor]) -> dict:
    """What the shapes and names of canonical weights say of the configuration."""
    first = "layers.0."
    intermediate = weights[first + "mlp.fc2.weight"].shape[1]
    fields = {
        "hidden_size": weights[first + "mlp.fc2.weight"].shape[0],
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers.")),
        "intermediate_size": intermediate,
        "qkv_bias": first + "mixer.qkv.bias" in weights,
        "layer_scale": first + "layer_scale1" in weights,
        "gated_mlp": first + "mlp.gate.weight" in weights,
        "mlp_norm": first + "mlp.norm.weight" in weights,
        "attention_norm": first + "mixer.norm.weight" in weights,
        "qk_norm": first + "mixer.query_norm.weight" in weights,
        "input_norm": "input_norm.weight" in weights,
        "final_norm": "norm.weight" in weights,
    }
    if first + "mixer.mix.weight" in weights:
        fields |= {"token_mixer": "linear", "num_mixer_tokens": weights[first + "mixer.mix.weight"].shape[0]}
    elif first + "mixer.mix.0.weight" in weights:
        mixer_dim, num_tokens = weights[first + "mixer.mix.0.weight"].shape
        fields |= {"token_mixer": "mlp", "num_mixer_tokens": num_tokens, "mixer_dim": mixer_dim}
    return fields


def norm_fields(layers: nn.ModuleList, *norms: nn.Module | None) -> dict:
    """Kind and epsilon of the norms, which must be the same throughout."""
    modules = [module for part in (layers, *norms) if part is not None for module in part.modules()]
    modules = [module for module in modules if "Norm" in type(module).__name__ or type(module).__name__ == "Affine"]
    kinds = {type(module).__name__ for module in modules}
    epsilons = {module.eps for module in modules if hasattr(module, "eps")}
    norm_type = "rms_norm" if all("Rms" in k or "RMS" in k for k in kinds) else "layer_norm"
    if kinds == {"Affine"}:
        return {"norm_type": "affine"}
    if len(kinds) != 1 or len(epsilons) != 1:
        raise ValueError(f"a backbone must have one kind of norm, got {sorted(kinds)} with epsilons {sorted(epsilons)}")
    return {"norm_type": norm_type, "layer_norm_eps": float(epsilons.pop())}


def first_module(model: nn.Module, paths: tuple[str, ...]) -> nn.Module | None:
    """The first of `paths` that the model has; an identity counts as absent."""
    for path in paths:
        module = model
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.Module):
            return None if isinstance(module, nn.Identity) else module
    return None


__all__ = ["load_backbone"]
