"""The converter as a command: what it recognises, prints and refuses. Parity of its results is in test_golden.py."""

import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from golden_weights import golden_tensors, official_state, save_official
from hostile_cases import Payload
from modeling_act import ACTStudent, ACTStudentConfig, ACTStudentForPointCloudClassification, ACTTeacher
from modeling_act.convert.official_checkpoint import main as convert
from modeling_act.convert.read_checkpoint import read_state
from modeling_act.errors import InputError

POINTS = golden_tensors()["points"]
SIZES = ["--num_groups=16", "--num_attention_heads=6"]


def encoder_state() -> dict[str, torch.Tensor]:
    """The plain encoder that the Point-MAE family shares, without prefix."""
    state = official_state("student_state")
    return {key.removeprefix("ACT_encoder."): value for key, value in state.items() if key.startswith("ACT_encoder.")}


def run(tmp_path, state, *options, name="checkpoint.pth"):
    torch.save({"base_model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / name)
    return convert([str(tmp_path / name), str(tmp_path / "out"), *options])


def prefixed(state, prefix):
    return {f"{prefix}.{key}": value for key, value in state.items()}


def hidden_of(folder, **kwargs):
    return ACTStudent.from_pretrained(folder, **kwargs).eval()(POINTS)


def reference_hidden(tmp_path, **overrides):
    """The same encoder through the ACT route."""
    save_official("student_state", tmp_path / "act.pth")
    assert convert([str(tmp_path / "act.pth"), str(tmp_path / "act"), *SIZES]) == 0
    return hidden_of(tmp_path / "act", **overrides)


def without_heads(state):
    return {key: value for key, value in state.items() if not key.startswith(("lm_head", "cls_head"))}


def test_point_mae_encoder_has_no_class_token(tmp_path, capsys):
    encoder = without_heads(encoder_state())
    del encoder["cls_token"], encoder["cls_pos"]
    rest = {"mask_token": torch.zeros(1, 1, 96), "decoder_pos_embed.0.weight": torch.zeros(128, 3)}
    rest |= {"MAE_decoder.norm.weight": torch.ones(96), "increase_dim.0.weight": torch.zeros(96, 96, 1)}
    assert run(tmp_path, prefixed(encoder, "MAE_encoder") | rest, *SIZES) == 0
    printed = capsys.readouterr().out
    assert "MAE_encoder.blocks.blocks.3.attn.qkv.weight -> student.layers.3.attention.qkv.weight" in printed
    assert "increase_dim.0.weight unused: decoder of masked autoencoding" in printed
    assert "no class token in the file: use_cls_token=False" in printed
    output = hidden_of(tmp_path / "out")
    expected = reference_hidden(tmp_path, use_cls_token=False)
    assert output.last_hidden_state.shape == (2, 16, 96)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)


def test_point_bert_encoder(tmp_path, capsys):
    """Its mini-PointNet has a width of its own and a projection after it."""
    encoder = encoder_state() | {"mask_token": torch.zeros(1, 1, 96)}
    encoder["encoder.second_conv.3.weight"] = torch.randn(64, 512, 1) / 20
    encoder["encoder.second_conv.3.bias"] = torch.randn(64)
    encoder["reduce_dim.weight"], encoder["reduce_dim.bias"] = torch.randn(96, 64) / 8, torch.randn(96)
    rest = prefixed(encoder, "transformer_k") | {"queue": torch.zeros(8, 4), "queue_ptr": torch.zeros(1)}
    rest |= {"dvae.codebook": torch.zeros(8, 4), "dvae.encoder.first_conv.0.weight": torch.zeros(128, 3, 1)}
    assert run(tmp_path, prefixed(encoder, "transformer_q") | rest, *SIZES) == 0
    printed = capsys.readouterr().out
    assert "transformer_q.reduce_dim.weight -> student.projection.weight" in printed
    assert "transformer_q.lm_head.weight unused" in printed and "queue_ptr unused" in printed
    model = ACTStudent.from_pretrained(tmp_path / "out")
    assert model.config.embedding_dim == 64
    assert torch.equal(model.projection.weight, encoder["reduce_dim.weight"])
    assert torch.equal(model.group_embedding.linear4.weight, encoder["encoder.second_conv.3.weight"].squeeze(-1))


def test_recon_style_encoder_with_the_plain_blocks(tmp_path, capsys):
    queries = {f"{kind}_{part}": torch.zeros(1, 1, 96) for kind in ("img", "text") for part in ("token", "pos")}
    state = prefixed(without_heads(encoder_state()) | queries, "MAE_encoder") | {"img_proj.weight": torch.zeros(4, 96)}
    assert run(tmp_path, state, *SIZES) == 0
    assert "MAE_encoder.img_token unused: ReCon's image and text queries" in capsys.readouterr().out
    output = hidden_of(tmp_path / "out").last_hidden_state
    assert torch.equal(output, reference_hidden(tmp_path).last_hidden_state)


def test_recon_encoder_adds_branches_to_normalised_tokens(tmp_path, capsys):
    """Its groups never see the global queries, and each branch is added to what the norm put out."""
    encoder = without_heads(encoder_state())
    for layer in range(4):
        encoder[f"blocks.blocks.{layer}.norm1_contrast.weight"] = torch.ones(96)
        encoder[f"blocks.blocks.{layer}.attn_contrast.q.weight"] = torch.zeros(96, 96)
    assert run(tmp_path, prefixed(encoder, "MAE_encoder"), *SIZES) == 0
    assert "norm1_contrast.weight unused: ReCon's branch of global queries" in capsys.readouterr().out
    model = ACTStudent.from_pretrained(tmp_path / "out").eval()
    groups = model.group(POINTS)
    x, positions = model.group_embedding(groups.neighborhoods), model.position_embedding(groups.centers)
    for layer in model.layers:
        x = layer.norm1(x + positions)
        x = x + layer.attention(x)[0]
        x = layer.norm2(x)
        x = x + layer.mlp(x)
    torch.testing.assert_close(model(POINTS).last_hidden_state, model.norm(x))


@pytest.mark.parametrize("style", ["clip", "bert"])
def test_stage_1_files_of_other_backbones(tmp_path, style):
    """Blocks of OpenAI's CLIP and of transformers' BERT under `visual_embed`, equal to those libraries' own layers."""
    torch.manual_seed(1)
    state = {key: value for key, value in official_state("teacher_state").items() if "visual_embed" not in key}
    if style == "bert":
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 256}
        library = BertModel(BertConfig(**sizes, vocab_size=8), add_pooling_layer=False).eval()
        state |= prefixed(library.encoder.state_dict(), "visual_embed.0")
    else:
        blocks = [torch.nn.TransformerEncoderLayer(192, 3, 256, batch_first=True, norm_first=True) for _ in range(3)]
        for index, block in enumerate(blocks):
            block.activation = lambda x: x * torch.sigmoid(1.702 * x)
            names = {"norm1": "ln_1", "norm2": "ln_2", "self_attn": "attn"}
            names |= {"linear1": "mlp.c_fc", "linear2": "mlp.c_proj"}
            for key, value in block.state_dict().items():
                head, _, tail = key.partition(".")
                state[f"visual_embed.1.{index}.{names[head]}.{tail}"] = value
        for norm in (0, 2):
            state |= {f"visual_embed.{norm}.weight": torch.rand(192), f"visual_embed.{norm}.bias": torch.rand(192)}
    state |= {"visual_prompt_token": state["visual_prompt_token"], "visual_prompt_pos": state["visual_prompt_pos"]}
    assert run(tmp_path, state, "--num_groups=16") == 0
    teacher = ACTTeacher.from_pretrained(tmp_path / "out").eval()
    x, positions = torch.randn(2, 16, 192), torch.randn(2, 16, 192)
    teacher.backbone.prompt_type = "none"
    output = teacher.backbone(x, positions, ([], []))
    expected = x
    if style == "bert":
        for layer in library.encoder.layer:
            expected = layer(expected + positions)
            expected = expected[0] if isinstance(expected, tuple) else expected
    else:

        def norm(index, value):
            return torch.nn.functional.layer_norm(
                value, (192,), state[f"visual_embed.{index}.weight"], state[f"visual_embed.{index}.bias"]
            )

        expected = norm(0, expected)
        for block in blocks:
            expected = block.eval()(expected + positions)
        expected = norm(2, expected)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_sizes_come_from_the_shapes(tmp_path):
    save_official("classifier_full_state", tmp_path / "c.pth")
    assert convert([str(tmp_path / "c.pth"), str(tmp_path / "out"), *SIZES]) == 0
    config = ACTStudentConfig.from_pretrained(tmp_path / "out")
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (96, 4, 384)
    assert (config.head, config.num_labels, config.classifier_dim, config.skip_near_origin) == ("mlp3", 15, 256, True)
    assert list(config.pointnet_dims) == [128, 256, 512] and config.num_groups == 16


def test_backbone_is_recorded_and_unreadable_names_are_said(tmp_path, capsys):
    save_official("teacher_state", tmp_path / "t.pth")
    options = [str(tmp_path / "t.pth"), str(tmp_path / "out"), "--num_groups=16"]
    assert convert([*options, "--backbone=org/no-such-model"]) == 0
    assert "org/no-such-model could not be read" in capsys.readouterr().out
    assert ACTTeacher.from_pretrained(tmp_path / "out").config.backbone == "org/no-such-model"


def test_safetensors_are_read_too(tmp_path):
    save_file(official_state("classifier_linear_state"), tmp_path / "c.safetensors")
    assert convert([str(tmp_path / "c.safetensors"), str(tmp_path / "out"), *SIZES]) == 0
    model = ACTStudentForPointCloudClassification.from_pretrained(tmp_path / "out")
    assert model.config.head == "linear" and model.config.num_labels == 15


def save_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [lambda path, content: torch.save(content, path), save_pickle])
def test_pickles_that_would_run_code_are_refused(tmp_path, capsys, save):
    checkpoint, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    save(checkpoint, {"base_model": {"codebook": torch.zeros(1)}, "optimizer": Payload(marker)})
    assert convert([str(checkpoint), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "hostile.pth cannot be read as a checkpoint of plain tensors: " in error and error.count("\n") == 1
    assert not marker.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "holds a as no plain tensor with all of its numbers"),
        ({"a": torch.eye(3).to_sparse()}, "holds a as no plain tensor|cannot be read"),
        ({"a": 3}, "holds a as no plain tensor"),
        ({3: torch.zeros(1)}, "holds no state dict under base_model, "),
        ({}, "holds no state dict under base_model, "),
    ],
)
def test_only_plain_tensors_are_read(tmp_path, state, message):
    torch.save({"base_model": state}, tmp_path / "state.pth")
    with pytest.raises(InputError, match=message):
        read_state(tmp_path / "state.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_the_authors_saved_is_read(tmp_path, zipped):
    """Parameters, tied tensors and views, all types, and NumPy scalars among the metrics, in new and old files."""
    tied = torch.randn(8, 8)
    state = {f"module.{kind}": torch.zeros(3).to(kind) for kind in (torch.float16, torch.int64, torch.bool)}
    state |= {"parameter": torch.nn.Parameter(torch.ones(2)), "a": tied, "b": tied, "row": torch.arange(9.0)[3:6]}
    metrics = {"acc": np.float64(93.2), "epoch": np.int64(3), "acc32": np.float32(1)}
    content = {"base_model": state, "metrics": metrics, "epoch": 3}
    torch.save(content, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=zipped)
    read = read_state(tmp_path / "checkpoint.pth")
    assert set(read) == {key.removeprefix("module.") for key in state}
    assert read["row"].tolist() == [3, 4, 5] and torch.equal(read["b"], tied)


def test_group_size_is_given_or_read_from_a_teacher(tmp_path, capsys):
    """The weights of an encoder fit groups of any size; those of a teacher decode groups of one."""
    encoder = without_heads(encoder_state())
    assert run(tmp_path, prefixed(encoder, "MAE_encoder"), *SIZES, "--group_size=24") == 0
    model = ACTStudent.from_pretrained(tmp_path / "out")
    assert model.config.group_size == 24 and model.group(POINTS).neighborhoods.shape == (2, 16, 24, 3)
    assert run(tmp_path, prefixed(encoder, "MAE_encoder"), *SIZES) == 0
    assert ACTStudent.from_pretrained(tmp_path / "out").config.group_size == 32
    save_official("student_state", tmp_path / "stage2.pth", teacher=True)
    arguments = [str(tmp_path / "stage2.pth"), str(tmp_path / "student"), *SIZES]
    assert convert(arguments) == 0
    assert ACTStudentConfig.from_pretrained(tmp_path / "student").group_size == 32
    capsys.readouterr()
    assert convert([*arguments, "--group_size=16"]) == 1
    assert capsys.readouterr().err == "error: --group_size 16 contradicts the file, which has 32\n"


def refusals():
    classifier = official_state("classifier_linear_state")
    yield "a leftover", classifier | {"side_alpha": torch.zeros(1)}, [], "no place for 1 keys: side_alpha"
    yield "a gap", {k: v for k, v in classifier.items() if "norm1.weight" not in k}, [], "lacks .*norm1.weight"
    wrong = classifier | {"pos_embed.2.weight": torch.zeros(96, 64)}
    yield "no norm", {k: v for k, v in classifier.items() if k != "norm.weight"}, [], "lacks .*student.norm.weight"
    yield "a shape", wrong, [], r"position_embedding.linear2.weight: expected shape \(96, 128\)"
    yield "another head", classifier, ["--num_labels=40"], "--num_labels 40 contradicts the file, which has 15"
    yield "unknown", {"conv1.weight": torch.zeros(2, 2)}, [], "no known checkpoint: its keys begin with conv1"
    missing_layer = {k: v for k, v in classifier.items() if ".2." not in k or "blocks" not in k}
    yield "a missing layer", missing_layer, [], "has gaps"
    yield "no teacher", classifier, ["--teacher_output=teacher"], "carries no teacher"


@pytest.mark.parametrize("refusal", list(refusals()), ids=lambda refusal: refusal[0])
def test_refuses_with_one_line(tmp_path, capsys, refusal):
    _, state, options, message = refusal
    assert run(tmp_path, state, *SIZES, *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_heads_must_be_given_where_64_does_not_divide(tmp_path, capsys):
    assert run(tmp_path, official_state("classifier_linear_state")) == 1
    assert "give --num_attention_heads" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_files(tmp_path, capsys, content):
    (tmp_path / "damaged.pth").write_bytes(content)
    assert convert([str(tmp_path / "damaged.pth"), str(tmp_path / "out")]) == 1
    assert "damaged.pth" in capsys.readouterr().err
    assert convert([str(tmp_path / "absent.pth"), str(tmp_path / "out")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_as_a_command(tmp_path, run_python):
    save_official("student_state", tmp_path / "s.pth", teacher=True)
    arguments = [tmp_path / "s.pth", tmp_path / "out", *SIZES]
    process = run_python("-m", "modeling_act.convert.official_checkpoint", *arguments)
    lines = process.stdout.splitlines()
    placed = [line for line in lines if " -> " in line]
    unused = [line for line in lines if " unused: " in line]
    assert len(placed) + len(unused) == len(read_state(tmp_path / "s.pth"))
    assert "the teacher, dvae_tokenizer.*, is not written; give --teacher_output to keep it" in lines
    run_python("-m", "modeling_act.convert.official_checkpoint", tmp_path / "absent", tmp_path / "o", returncode=1)
