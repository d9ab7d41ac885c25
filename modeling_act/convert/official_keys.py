"""State-dict keys of the released checkpoints, and their names in our models. Used by `official_checkpoint`."""

import re

from torch import Tensor

from ..errors import InputError

State = dict[str, Tensor]
Rules = list[tuple[str, str]]  # pattern that a key starts with, and its replacement


def numbered(official: str, ours: str, names: dict[int, str]) -> Rules:
    """Make rules for the layers of an `nn.Sequential`, which have numbers in official files and names here."""
    return [(rf"{official}\.{number}\.", f"{ours}{name}.") for number, name in names.items()]


def dynamic_graph(official: str, ours: str) -> Rules:
    """Make rules for one of the two DGCNNs of the tokenizer."""
    rules = [(rf"{official}\.input_trans\.", f"{ours}.input.")]
    for index in range(4):
        rules += numbered(rf"{official}\.layer{index + 1}", f"{ours}.layers.{index}.", {0: "linear", 1: "norm"})
    return rules + numbered(rf"{official}\.layer5", f"{ours}.", {0: "output", 1: "norm"})


GROUP_EMBEDDING: Rules = [
    *numbered(r"encoder\.first_conv", "group_embedding.", {0: "linear1", 1: "norm1", 3: "linear2"}),
    *numbered(r"encoder\.second_conv", "group_embedding.", {0: "linear3", 1: "norm2", 3: "linear4"}),
]
ENCODER: Rules = GROUP_EMBEDDING + [
    (r"cls_token$", "cls_token"),
    (r"cls_pos$", "cls_position"),
    (r"reduce_dim\.", "projection."),
    *numbered("pos_embed", "position_embedding.", {0: "linear1", 2: "linear2"}),
    (r"blocks\.blocks\.(\d+)\.attn\.", r"layers.\1.attention."),
    (r"blocks\.blocks\.(\d+)\.", r"layers.\1."),
    (r"norm\.", "norm."),
]
DECODER: Rules = [
    (r"mask_token$", "decoder.mask_token"),
    *numbered("decoder_pos_embed", "decoder.position_embedding.", {0: "linear1", 2: "linear2"}),
    (r"ACT_decoder\.blocks\.(\d+)\.attn\.", r"decoder.layers.\1.attention."),
    (r"ACT_decoder\.blocks\.(\d+)\.", r"decoder.layers.\1."),
    (r"ACT_decoder\.norm\.", "decoder.norm."),
    (r"proj_head\.(0\.)?", "decoder.projection."),
]
CLASSIFIER: Rules = [(r"cls_head_finetune\.", "classifier.layers.")]
SEGMENTER: Rules = [
    *numbered("label_conv(?:_cls)?", "category_", {0: "embedding", 1: "norm"}),
    *numbered(r"propagation_0(?:_cls)?\.mlp_convs", "head.", {0: "propagate1", 1: "propagate2"}),
    *numbered(r"propagation_0(?:_cls)?\.mlp_bns", "head.", {0: "norm1", 1: "norm2"}),
    (r"convs([123])(?:_cls)?\.", r"head.linear\1."),
    (r"bns1(?:_cls)?\.", "head.norm3."),
    (r"bns2(?:_cls)?\.", "head.norm4."),
]
TEACHER: Rules = GROUP_EMBEDDING + [
    *dynamic_graph("dgcnn_1", "code_network"),
    *dynamic_graph("dgcnn_2", "feature_network"),
    (r"codebook$", "codebook"),
    (r"proj_pre\.", "code_projection."),
    (r"proj_post\.", "feature_projection."),
    *numbered("visual_pos_embed", "position_embedding.", {0: "linear1", 2: "linear2"}),
    (r"visual_prompt_token$", "prompts.tokens"),
    (r"visual_prompt_pos$", "prompts.positions"),
    (r"deep_prompt_tokens$", "prompts.deep_tokens"),
    (r"deep_prompt_pos$", "prompts.deep_positions"),
    *numbered(r"decoder\.mlp", "decoder.", {0: "linear1", 2: "linear2", 4: "linear3"}),
    *numbered(r"decoder\.final_conv", "decoder.", {0: "fold1", 1: "norm1", 3: "fold2", 4: "norm2", 6: "fold3"}),
]
# How `visual_embed` holds a backbone: pattern of its blocks, its norms, and (activation, epsilon, norm position).
BACKBONE_STYLES = {
    "timm": (r"visual_embed\.0\.(\d+)\.", [(r"visual_embed\.1\.", "backbone.norm.")], ("gelu", 1e-6, "pre")),
    "clip": (
        r"visual_embed\.1\.(\d+)\.",
        [(r"visual_embed\.0\.", "backbone.input_norm."), (r"visual_embed\.2\.", "backbone.norm.")],
        ("quick_gelu", 1e-5, "pre"),
    ),
    "bert": (r"visual_embed\.0\.layer\.(\d+)\.", [], ("gelu", 1e-12, "post")),
}
UNUSED_HEADS: Rules = [(r"(lm_head|cls_head)\.", "head of Point-BERT, untrained here")]
# Prefix of a released encoder -> rules for the other keys of its file.
UNUSED_IN = {
    "MAE_encoder.": [
        (r"(MAE_decoder|decoder_pos_embed|increase_dim)\.|mask_token$", "decoder of masked autoencoding"),
        (r"((img|text)_(encoder|proj)|cls_proj|contrastive_head)\.", "contrast with images and text"),
        (r"MAE_encoder\.(img|text)_(token|pos)$", "ReCon's image and text queries"),
        (r"MAE_encoder\.blocks\.blocks\.\d+\.\w+_contrast\.", "ReCon's branch of global queries"),
    ],
    "transformer_q.": [
        (r"transformer_k\.", "momentum copy of the encoder"),
        (r"dvae\.", "tokenizer of Point-BERT"),
        (r"queue(_ptr)?$", "queue of the contrastive loss"),
        (r"transformer_q\.mask_token$", "replaces masked groups in pretraining"),
    ],
}


def under(prefix: str, rules: Rules, target: str = "") -> Rules:
    """The same rules for keys below a prefix; what they put in its place begins with `target`."""
    return [(f"{re.escape(prefix)}(?:{pattern})", target + replacement) for pattern, replacement in rules]


def rename(state: State, rules: Rules, unused: Rules = ()) -> State:
    """Rename every key by the first rule it matches, and print what became of it. A key without a rule is an error."""
    placed, unknown = {}, []
    for key, tensor in state.items():
        if reason := next((reason for pattern, reason in unused if re.match(pattern, key)), None):
            print(f"{key} unused: {reason}")
        elif rule := next((rule for rule in rules if re.match(rule[0], key)), None):
            name = re.sub(f"^{rule[0]}", rule[1], key, count=1)
            placed[name] = tensor
            print(f"{key} -> {name}")
        else:
            unknown.append(key)
    if unknown:
        raise InputError(f"no place for {len(unknown)} keys: {', '.join(unknown[:8])}")
    return placed
