"""Pretrained Transformers of transformers and timm, converted to the canonical block of `modeling_act_teacher.py`.

No family needs code of its own: `ROLES` maps its parameter names, `DROPPED` lists what is left out, and any other
parameter is an error, as is a block that differs from the canonical one. Used by `ACTTeacher.from_backbone` and the
checkpoint converter.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from .configuration_act import ACTTeacherConfig
from .modeling_act_teacher import ACTBackbone

# Model types that normalize before each branch, or after adding it.
MODEL_TYPES = {
    "pre": (
        "vit deit beit data2vec-vision dinov2 dinov2_with_registers dinov3_vit ijepa vit_mae vit_msn vivit videomae "
        "yolos audio-spectrogram-transformer clip_vision_model chinese_clip_vision_model siglip_vision_model "
        "siglip2_vision_model"
    ),
    "post": "bert roberta xlm-roberta camembert data2vec-text electra ernie distilbert",
}
PRE_NORM, POST_NORM = (set(names.split()) for names in MODEL_TYPES.values())
# timm has many different classes named Block, which may hold any attention and MLP.
TIMM_BLOCKS = {"vision_transformer.Block", "beit.Block", "eva.EvaBlock", "mlp_mixer.MixerBlock", "mlp_mixer.ResBlock"}
TIMM_PARTS = {"Attention", "AttentionRope", "EvaAttention", "Mlp", "GluMlp", "SwiGLU"}

LAYERS = ("layers", "encoder.layers", "encoder.layer", "layer", "model.layer", "transformer.layer", "blocks")
FINAL_NORMS = ("layernorm", "norm", "post_layernorm")
INPUT_NORMS = ("pre_layrnorm", "norm_pre")
OTHER_NORMS = ("fc_norm",)  # of pooled features

# Canonical name -> its names inside a block of the libraries.
ROLES = {
    "norm1": "layernorm_before norm1 layer_norm1 ln_1 attention.output.LayerNorm sa_layer_norm",
    "norm2": "layernorm_after norm2 layer_norm2 ln_2 output.LayerNorm output_layer_norm",
    "query": (
        "attention.q_proj attention.attention.query attention.self.query self_attn.q_proj attn.q_proj attention.q_lin"
    ),
    "key": "attention.k_proj attention.attention.key attention.self.key self_attn.k_proj attn.k_proj attention.k_lin",
    "value": (
        "attention.v_proj attention.attention.value attention.self.value self_attn.v_proj attn.v_proj attention.v_lin"
    ),
    "mixer.qkv": "attn.qkv",
    "mixer.query_norm": "attn.q_norm",
    "mixer.key_norm": "attn.k_norm",
    "mixer.norm": "attn.norm",
    "mixer.qkv.weight": "attn.in_proj_weight",
    "mixer.qkv.bias": "attn.in_proj_bias",
    "mixer.proj": (
        "attention.o_proj attention.output.dense self_attn.out_proj attn.proj attn.out_proj attention.out_lin"
    ),
    "mixer.mix.0": "mlp_tokens.fc1",
    "mixer.mix.2": "mlp_tokens.fc2",
    "mixer.mix": "linear_tokens",
    "mlp.fc1": "mlp.fc1 intermediate.dense ffn.lin1 mlp.up_proj mlp.fc1_x mlp.c_fc mlp_channels.fc1",
    "mlp.gate": "mlp.gate_proj mlp.fc1_g",
    "mlp.packed": "mlp.weights_in",
    "mlp.norm": "mlp.norm",
    "mlp.fc2": "mlp.fc2 output.dense ffn.lin2 mlp.down_proj mlp.weights_out mlp.c_proj mlp_channels.fc2",
    "layer_scale1": "layer_scale1.lambda1 lambda_1 ls1.gamma gamma_1 ls1",
    "layer_scale2": "layer_scale2.lambda1 lambda_2 ls2.gamma gamma_2 ls2",
    "query.bias": "attn.q_bias",
    "key.bias": "attn.k_bias",
    "value.bias": "attn.v_bias",
}
CANONICAL = {name: role for role, names in ROLES.items() for name in names.split()}
# Bound to an image's grid, which groups of points do not have.
DROPPED = ("relative_position_bias_table", "relative_position_index")

NORM_TYPES = {"LayerNorm": "layer_norm", "RMSNorm": "rms_norm", "RmsNorm": "rms_norm", "Affine": "affine"}
ACTIVATIONS = {
    "GELU": "gelu",
    "QuickGELU": "quick_gelu",
    "GELUTanh": "gelu_pytorch_tanh",
    "SiLU": "silu",
    "ReLU": "relu",
}


def load_backbone(
    backbone: str | os.PathLike | nn.Module, pretrained: bool = True, trust_remote_code: bool = False, **hub
) -> tuple[dict, dict[str, Tensor]]:
    """Read fields of `ACTTeacherConfig` and weights of `ACTBackbone` from a model or the name of one."""
    load = partial(load_transformers, trust_remote_code=trust_remote_code)
    model, name = find_model(backbone, pretrained, load, **hub)
    model = getattr(model, "timm_model", model)  # transformers' wrapper of a timm model
    fields, weights = read_transformers(model) if isinstance(model, PreTrainedModel) else read_timm(model)
    name = os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name  # no local path gets published
    return {"backbone": name, **fields}, weights


def find_model(
    backbone: str | os.PathLike | nn.Module, pretrained: bool, load: Callable[..., PreTrainedModel], **hub
) -> tuple[nn.Module, str]:
    """Return a model and its name, given either; `load` loads those of transformers."""
    if isinstance(backbone, nn.Module):
        if not pretrained:
            raise ValueError("`pretrained=False` takes the name of a model; a model itself is read with its weights")
        return backbone, getattr(backbone, "name_or_path", "") or type(backbone).__name__
    name = os.fspath(backbone)
    return (load_timm if is_timm_name(name) else load)(name, pretrained, **hub), name


def is_timm_name(name: str) -> bool:
    """Return whether a name is timm's: with an underscore and no slash, or below timm/ on the Hub."""
    if os.path.isdir(name):
        config = os.path.join(name, "config.json")
        if not os.path.isfile(config):
            raise ValueError(f"{name} is a folder without config.json, so no model can be read from it")
        with open(config, encoding="utf-8") as file:
            return '"pretrained_cfg"' in file.read()
    return name.startswith(("timm/", "hf-hub:", "hf_hub:")) or ("/" not in name and "_" in name)


def load_timm(
    name: str, pretrained: bool, revision: str | None = None, cache_dir: str | None = None, **options
) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f'{name} is a timm model and timm cannot be imported ({error}): in the clone, pip install ".[timm]", with '
            "a torchvision build that matches your torch"
        ) from error
    if unknown := [option for option, value in options.items() if value]:
        raise ValueError(f"timm takes no {', '.join(unknown)}; set HF_TOKEN or HF_HUB_OFFLINE instead")
    if os.path.isdir(name):
        name = f"local-dir:{name}"
    elif name.startswith("timm/"):
        name = f"hf-hub:{name}"
    if revision is not None:
        if not name.startswith(("hf-hub:", "hf_hub:")):
            raise ValueError(f"`revision` needs the Hub id of a timm model, as in timm/{name}, got {name}")
        name = f"{name}@{revision}"
    return timm.create_model(name, pretrained=pretrained, cache_dir=cache_dir)


def load_transformers(name: str, pretrained: bool, trust_remote_code: bool, **hub) -> PreTrainedModel:
    hub |= {"trust_remote_code": trust_remote_code}
    if not pretrained:
        config = AutoConfig.from_pretrained(name, **hub)
        return AutoModel.from_config(config, trust_remote_code=trust_remote_code, dtype=torch.float32)
    model, report = AutoModel.from_pretrained(
        name, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **hub
    )
    # transformers initializes missing weights at random, with no more than a warning
    parts = find_parts(getattr(model, "timm_model", None) or encoder_of(model))
    used = {id(weight) for part in parts if part is not None for weight in part.parameters()}
    absent = [key for key, weight in model.named_parameters() if key in report["missing_keys"] and id(weight) in used]
    if absent:
        raise ValueError(f"the checkpoint {name} lacks {len(absent)} weights of its Transformer, {absent[0]} first")
    return model


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Find the Transformer in a model with heads; in CLIP and SigLIP the image half."""
    if first_module(model, LAYERS) is None:
        model = model.base_model  # only if it has no blocks itself: DINOv3's base model lacks the final norm
    model = getattr(model, "vision_model", model)
    if (kind := model.config.model_type) not in PRE_NORM | POST_NORM:
        known = ", ".join(sorted(PRE_NORM | POST_NORM))
        raise ValueError(f"transformers models of type {kind!r} cannot be backbones; these can: {known}")
    return model


def read_transformers(model: PreTrainedModel) -> tuple[dict, dict[str, Tensor]]:
    model = encoder_of(model)
    config = model.config
    activation = getattr(config, "hidden_act", None) or config.activation
    if getattr(config, "use_swiglu_ffn", False):  # DINOv2 giant, whatever `hidden_act` says
        activation = "silu"
    position = "pre" if config.model_type in PRE_NORM else "post"
    return read_model(model, config.num_attention_heads, activation, position, config.model_type)


def read_timm(model: nn.Module) -> tuple[dict, dict[str, Tensor]]:
    kind = type(model).__name__
    blocks = getattr(model, "blocks", None)
    blocks = list(blocks) if isinstance(blocks, (nn.Sequential, nn.ModuleList)) else []
    block_kinds = {f"{type(block).__module__.removeprefix('timm.models.')}.{type(block).__name__}" for block in blocks}
    if not blocks or not block_kinds <= TIMM_BLOCKS or not hasattr(model, "norm"):
        raise ValueError(
            f"models of type {kind} with {', '.join(sorted(block_kinds)) or 'no blocks'} cannot be backbones; "
            "of timm, ViT, DeiT, BEiT, EVA, their hybrids, MLP-Mixer and ResMLP can"
        )
    names = ("attn", "mlp", "mlp_tokens", "mlp_channels")
    parts = [getattr(block, name) for block in blocks for name in names if hasattr(block, name)]
    if strange := {type(part).__name__ for part in parts} - TIMM_PARTS:
        raise ValueError(f"{kind}: {', '.join(sorted(strange))} has no place in the canonical block")
    heads = {part.num_heads for part in parts if hasattr(part, "num_heads")} or {1}
    activations = {activation_name(part.act) for part in parts if hasattr(part, "act")}
    num_heads, activation = only(heads, f"{kind}: number of heads"), only(activations, f"{kind}: activation")
    return read_model(model, num_heads, activation, "pre", kind)


def activation_name(activation: nn.Module) -> str:
    """Return transformers' name for one of timm's activations."""
    name = type(activation).__name__
    if name not in ACTIVATIONS:
        raise ValueError(f"a backbone's activation must be one of {', '.join(ACTIVATIONS)}, got {name}")
    return "gelu_pytorch_tanh" if getattr(activation, "approximate", "none") == "tanh" else ACTIVATIONS[name]


def only(values: set, what: str) -> int | str:
    if len(values) != 1:
        raise ValueError(f"{what} must be the same in all blocks, got {', '.join(map(str, sorted(values)))}")
    return values.pop()


def find_parts(model: nn.Module) -> tuple[nn.Module, nn.Module | None, nn.Module | None]:
    """Find the blocks, the norm before the first and the norm after the last."""
    layers = first_module(model, LAYERS)
    if layers is None:
        raise ValueError(f"{type(model).__name__} has no blocks under any of {', '.join(LAYERS)}")
    for name, module in model.named_children():
        if type(module).__name__ in NORM_TYPES and name not in FINAL_NORMS + INPUT_NORMS + OTHER_NORMS:
            raise ValueError(f"{type(model).__name__}: the norm {name} is unknown")
    return layers, first_module(model, INPUT_NORMS), first_module(model, FINAL_NORMS)


def read_model(
    model: nn.Module, num_heads: int, activation: str, norm_position: str, kind: str
) -> tuple[dict, dict[str, Tensor]]:
    """Read blocks and norms of either library by their names."""
    layers, input_norm, final_norm = find_parts(model)
    weights = {}
    for index, layer in enumerate(layers):
        gate_last = getattr(getattr(layer, "mlp", None), "gate_last", False)
        for role, tensor in read_block(layer.state_dict(), f"{kind}, block {index}", gate_last).items():
            weights[f"layers.{index}.{role}"] = tensor
    for role, norm in (("input_norm", input_norm), ("norm", final_norm)):
        if norm is not None:
            weights |= {f"{role}.{name}": tensor for name, tensor in flatten_affine(norm.state_dict())}
    fields = {"num_attention_heads": num_heads, "hidden_act": activation, "norm_position": norm_position}
    fields |= shape_fields(weights) | norm_fields(layers, input_norm, final_norm)
    fit_weights(weights, fields, kind)
    return fields, weights


def read_block(state: dict[str, Tensor], where: str, gate_last: bool = False) -> dict[str, Tensor]:
    """Read a block's parameters under their canonical names."""
    parameters = {}
    for name, tensor in flatten_affine(state):
        if name.endswith(DROPPED):
            continue
        stem, dot, end = name.rpartition(".")
        if name in CANONICAL:
            role = CANONICAL[name]
        elif dot and end in ("weight", "bias") and stem in CANONICAL:
            role = f"{CANONICAL[stem]}.{end}"
        else:
            shape = tuple(tensor.shape)
            raise ValueError(f"{where}: parameter {name} of shape {shape} has no place in the canonical block")
        if role in parameters:
            raise ValueError(f"{where}: parameter {name} takes the place {role} a second time")
        parameters[role] = tensor
    join_key_value(parameters)
    split_packed_gate(parameters, gate_last)
    return parameters


def flatten_affine(state: dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """Rename alpha and beta, (1, 1, width), of ResMLP's affine norms to weight and bias."""
    names = {"alpha": "weight", "beta": "bias"}
    for name, tensor in state.items():
        stem, dot, end = name.rpartition(".")
        yield (f"{stem}{dot}{names[end]}", tensor.flatten()) if end in names else (name, tensor)


def join_key_value(parameters: dict[str, Tensor]) -> None:
    """Split or join parameters into query, and key with value; a bias that only some of them have is zero."""
    for end in ("weight", "bias"):
        fused = parameters.pop(f"mixer.qkv.{end}", None)
        parts = [parameters.pop(f"{role}.{end}", None) for role in ("query", "key", "value")]
        if fused is not None:
            parts = fused.chunk(3)
        present = next((part for part in parts if part is not None), None)
        if present is not None:
            query, key, value = (torch.zeros_like(present) if part is None else part for part in parts)
            parameters[f"mixer.query.{end}"], parameters[f"mixer.key_value.{end}"] = query, torch.cat([key, value])


def split_packed_gate(parameters: dict[str, Tensor], gate_last: bool) -> None:
    """Split one matrix for gate and value into two."""
    packed = "mlp.packed" if "mlp.packed.weight" in parameters else "mlp.fc1"
    width = parameters["mlp.fc2.weight"].shape[1]
    for end in ("weight", "bias"):
        tensor = parameters.get(f"{packed}.{end}")
        if tensor is not None and tensor.shape[0] == 2 * width:
            del parameters[f"{packed}.{end}"]
            gate, value = reversed(tensor.chunk(2)) if gate_last else tensor.chunk(2)
            parameters |= {f"mlp.gate.{end}": gate, f"mlp.fc1.{end}": value}


def shape_fields(weights: dict[str, Tensor]) -> dict:
    """Derive configuration fields from the shapes and names of canonical weights."""
    first = "layers.0."
    hidden_size, intermediate = weights[first + "mlp.fc2.weight"].shape
    fields = {
        "hidden_size": hidden_size,
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers.")),
        "intermediate_size": intermediate,
        "qkv_bias": first + "mixer.query.bias" in weights,
        "use_layer_scale": first + "layer_scale1" in weights,
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


def norm_fields(layers: nn.Module, *norms: nn.Module | None) -> dict:
    """Read kind and epsilon of the norms, which must be the same throughout."""
    modules = list(norms)
    for layer in layers:
        modules += [module for name, module in layer.named_modules() if "norm" in CANONICAL.get(name, "")]
    modules = [module for module in modules if not isinstance(module, (nn.Identity, type(None)))]
    kinds = {type(module).__name__ for module in modules}
    epsilons = {getattr(module, "eps", 0.0) for module in modules}  # ResMLP's affine maps have none
    if len(kinds) != 1 or not kinds <= NORM_TYPES.keys() or len(epsilons) != 1 or None in epsilons:
        raise ValueError(
            f"a backbone's norms must be of one kind among {', '.join(NORM_TYPES)} and of one epsilon, "
            f"got {', '.join(sorted(kinds))} with {', '.join(map(str, epsilons))}"
        )
    return {"norm_type": NORM_TYPES[kinds.pop()], "layer_norm_eps": float(epsilons.pop())}


def fit_weights(weights: dict[str, Tensor], fields: dict, kind: str) -> None:
    """Complete `weights` with zero for missing biases, and raise unless they then fit the canonical model."""
    num_groups = fields.get("num_mixer_tokens", 1)
    config = ACTTeacherConfig(**fields, num_groups=num_groups, dgcnn_neighbors=1, prompt_type="none")
    with torch.device("meta"):
        canonical = {name: tuple(tensor.shape) for name, tensor in ACTBackbone(config).state_dict().items()}
    for name, shape in canonical.items():
        if name.endswith(".bias"):
            weights.setdefault(name, torch.zeros(shape))
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in canonical | shapes:
        if shapes.get(name) != canonical.get(name):
            shape = f"has shape {shapes.get(name)}, which should be {canonical.get(name)}"
            raise ValueError(f"{kind} differs from the canonical block: {name} {shape}")


def first_module(model: nn.Module, paths: tuple[str, ...]) -> nn.Module | None:
    """Find the first of `paths` that the model has; an identity counts as absent."""
    for path in paths:
        module = model
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.Module):
            return None if isinstance(module, nn.Identity) else module
    return None
