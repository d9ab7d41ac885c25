"""State-dict keys of the released checkpoints, and their names in our models. Used by `official_checkpoint`."""

import re

from torch import Tensor

from ..errors import InputError

State = dict[str, Tensor]
Rules = list[tuple[str, str]]  # pattern that a key starts with, and its replacement

GROUP_EMBEDDING: Rules = [
    (r"encoder\.first_conv\.0\.", "group_embedding.linear1."),
    (r"encoder\.first_conv\.1\.", "group_embedding.norm1."),
    (r"encoder\.first_conv\.3\.", "group_embedding.linear2."),
    (r"encoder\.second_conv\.0\.", "group_embedding.linear3."),
    (r"encoder\.second_conv\.1\.", "group_embedding.norm2."),
    (r"encoder\.second_conv\.3\.", "group_embedding.linear4."),
]
ENCODER: Rules = GROUP_EMBEDDING + [
    (r"cls_token$", "cls_token"),
    (r"cls_pos$", "cls_position"),
    (r"reduce_dim\.", "projection."),
    (r"pos_embed\.0\.", "position_embedding.linear1."),
    (r"pos_embed\.2\.", "position_embedding.linear2."),
    (r"blocks\.blocks\.(\d+)\.attn\.", r"layers.\1.attention."),
    (r"blocks\.blocks\.(\d+)\.", r"layers.\1."),
    (r"norm\.", "norm."),
]
DECODER: Rules = [
    (r"mask_token$", "decoder.mask_token"),
    (r"decoder_pos_embed\.0\.", "decoder.position_embedding.linear1."),
    (r"decoder_pos_embed\.2\.", "decoder.position_embedding.linear2."),
    (r"ACT_decoder\.blocks\.(\d+)\.attn\.", r"decoder.layers.\1.attention."),
    (r"ACT_decoder\.blocks\.(\d+)\.", r"decoder.layers.\1."),
    (r"ACT_decoder\.norm\.", "decoder.norm."),
    (r"proj_head\.(0\.)?", "decoder.projection."),
]
CLASSIFIER: Rules = [(r"cls_head_finetune\.", "classifier.layers.")]
SEGMENTER: Rules = [
    (r"label_conv(_cls)?\.0\.", "category_embedding."),
    (r"label_conv(_cls)?\.1\.", "category_norm."),
    (r"propagation_0(_cls)?\.mlp_convs\.0\.", "head.propagate1."),
    (r"propagation_0(_cls)?\.mlp_convs\.1\.", "head.propagate2."),
    (r"propagation_0(_cls)?\.mlp_bns\.0\.", "head.norm1."),
    (r"propagation_0(_cls)?\.mlp_bns\.1\.", "head.norm2."),
    (r"convs1(_cls)?\.", "head.linear1."),
    (r"convs2(_cls)?\.", "head.linear2."),
    (r"convs3(_cls)?\.", "head.linear3."),
    (r"bns1(_cls)?\.", "head.norm3."),
    (r"bns2(_cls)?\.", "head.norm4."),
]
TEACHER: Rules = GROUP_EMBEDDING + [
    *(
        (rf"{official}\.{key}", f"{ours}.{name}")
        for official, ours in (("dgcnn_1", "code_network"), ("dgcnn_2", "feature_network"))
        for key, name in [(rf"layer{n}\.0\.", f"layers.{n - 1}.linear.") for n in range(1, 5)]
        + [(rf"layer{n}\.1\.", f"layers.{n - 1}.norm.") for n in range(1, 5)]
        + [(r"input_trans\.", "input."), (r"layer5\.0\.", "output."), (r"layer5\.1\.", "norm.")]
    ),
    (r"codebook$", "codebook"),
    (r"proj_pre\.", "code_projection."),
    (r"proj_post\.", "feature_projection."),
    (r"visual_pos_embed\.0\.", "position_embedding.linear1."),
    (r"visual_pos_embed\.2\.", "position_embedding.linear2."),
    (r"visual_prompt_token$", "prompts.tokens"),
    (r"visual_prompt_pos$", "prompts.positions"),
    (r"deep_prompt_tokens$", "prompts.deep_tokens"),
    (r"deep_prompt_pos$", "prompts.deep_positions"),
    (r"decoder\.mlp\.0\.", "decoder.linear1."),
    (r"decoder\.mlp\.2\.", "decoder.linear2."),
    (r"decoder\.mlp\.4\.", "decoder.linear3."),
    (r"decoder\.final_conv\.0\.", "decoder.fold1."),
    (r"decoder\.final_conv\.1\.", "decoder.norm1."),
    (r"decoder\.final_conv\.3\.", "decoder.fold2."),
    (r"decoder\.final_conv\.4\.", "decoder.norm2."),
    (r"decoder\.final_conv\.6\.", "decoder.fold3."),
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
UNUSED_POINT_MAE: Rules = [
    (r"(MAE_decoder|decoder_pos_embed|increase_dim)\.|mask_token$", "decoder of masked autoencoding"),
    (r"(img_encoder|text_encoder|img_proj|text_proj|cls_proj|contrastive_head)\.", "contrast with images and text"),
]
UNUSED_RECON: Rules = [
    (r"(img|text)_(token|pos)$", "ReCon's image and text queries"),
    (r"blocks\.blocks\.\d+\.\w+_contrast\.", "ReCon's branch of global queries"),
]
UNUSED_POINT_BERT: Rules = [
    (r"transformer_k\.", "momentum copy of the encoder"),
    (r"dvae\.", "tokenizer of Point-BERT"),
    (r"queue(_ptr)?$", "queue of the contrastive loss"),
]
UNUSED_POINT_BERT_ENCODER: Rules = [(r"mask_token$", "replaces masked groups in pretraining"), *UNUSED_HEADS]


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
        more = ", ..." if len(unknown) > 8 else ""
        raise InputError(f"no place for {len(unknown)} keys: {', '.join(unknown[:8])}{more}")
    return placed
