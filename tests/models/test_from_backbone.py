"""`ACTTeacher.from_backbone`: names, folders and models, what stays frozen, what is saved, what is refused."""

import json
import sys

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

from backbone_cases import (
    IMAGE,
    SMALL,
    TINY,
    case_params,
    make_backbone,
    needs_timm,
    randomize,
)
from modeling_act import ACTTeacher
from modeling_act.backbone_families import is_timm_name

try:
    import timm
except ImportError:
    timm = None

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
    with pytest.raises(
        ImportError, match=r"vit_tiny_patch16_224 is a timm model .*in the clone, pip install \"\.\[timm\]\""
    ):
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
