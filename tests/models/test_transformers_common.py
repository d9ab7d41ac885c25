"""The contract of transformers' own common model tests, for every class: pickling, Auto classes, dtypes, outputs,
attention implementations, base models under heads, and weights spread by accelerate."""

import copy
import inspect

import pytest
import torch
from transformers import AutoConfig, AutoModel

from modeling_act import ACTStudent, ACTStudentForObjectDetection, ACTTeacher
from small_models import small_models, small_student_config, small_teacher_config

DETECTION = {
    "num_queries": 8,
    "detection_dim": 16,
    "detection_num_hidden_layers": 2,
    "detection_num_attention_heads": 2,
}
CASES = small_models() | {"detection": (ACTStudentForObjectDetection, small_student_config(**DETECTION), {})}
HEADS = [name for name in CASES if name not in ("teacher", "views", "student")]


@pytest.fixture(params=CASES)
def case(request):
    model_class, config, inputs = CASES[request.param]
    model = model_class(copy.deepcopy(config)).eval()
    return model, {"points": torch.randn(2, 64, 3), **inputs}


@pytest.fixture(params=[name for name in CASES if name != "views"])
def own_case(request):
    """Models whose Transformer is the package's own, not one of transformers inside."""
    model_class, config, inputs = CASES[request.param]
    return model_class(copy.deepcopy(config)).eval(), {"points": torch.randn(2, 64, 3), **inputs}


def tensors(output):
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


@torch.no_grad()
def assert_same_outputs(model, other, inputs, **tolerance):
    expected, output = tensors(model(**inputs)), tensors(other(**inputs))
    assert len(expected) == len(output) > 0
    for pair in zip(output, expected, strict=True):
        torch.testing.assert_close(*pair, **tolerance or {"rtol": 0, "atol": 0})


def test_torch_save_load_and_copy(case, tmp_path):
    model, inputs = case
    torch.save(model, tmp_path / "model.pt")
    for other in (torch.load(tmp_path / "model.pt", weights_only=False), copy.deepcopy(model)):
        assert type(other) is type(model) and other.config.to_dict() == model.config.to_dict()
        assert_same_outputs(model, other, inputs)


def test_config_through_the_auto_classes(case, tmp_path):
    model, _ = case
    model.config.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(model.config) and config.to_json_string() == model.config.to_json_string()
    assert type(AutoModel.from_config(config)) is type(model.base_model)


def test_save_load_is_stable(case, tmp_path):
    """Saving what was loaded gives the same weights under the same keys."""
    model, _ = case
    model.save_pretrained(tmp_path / "first", max_shard_size="20KB")
    loaded, report = type(model).from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not any(report.values()) and len(list((tmp_path / "first").glob("*.safetensors"))) > 1
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_load_with_dtype(case, dtype, tmp_path):
    model, inputs = case
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert {value.dtype for value in loaded.parameters()} == {dtype} and loaded.config.dtype == dtype
    if dtype is torch.float64:
        inputs["points"] = inputs["points"].double()
    with torch.no_grad():
        assert all(value.isfinite().all() for value in tensors(loaded(**inputs)))


def test_the_residual_stream_of_the_student_keeps_its_dtype_under_autocast():
    """Without a class token and with a projection, only the cast before the first layer promotes the tokens."""
    model = ACTStudent(small_student_config(use_cls_token=False, embedding_dim=12)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(2, 64, 3), output_hidden_states=True)
    assert {states.dtype for states in output.hidden_states} == {torch.float32}


@pytest.mark.parametrize("prompt_type", ["deep", "none"])
def test_the_residual_stream_of_the_teacher_keeps_its_dtype_under_autocast(prompt_type):
    model = ACTTeacher(small_teacher_config(prompt_type=prompt_type)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(2, 64, 3), output_hidden_states=True)
    assert {states.dtype for states in output.hidden_states} == {torch.float32}


def test_hidden_states_and_attentions(own_case):
    model, inputs = own_case
    model.set_attn_implementation("eager")
    encoder, config = model.base_model, model.config
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == config.num_hidden_layers + 1
    assert len(output.attentions) == config.num_hidden_layers
    shape = output.hidden_states[-1].shape
    assert shape[0] == 2 and shape[2] == config.hidden_size
    for states, weights in zip(output.hidden_states, output.attentions, strict=False):
        assert states.shape == shape and weights.shape[:3] == (2, config.num_attention_heads, shape[1])
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    encoder.config.output_hidden_states = model.config.output_hidden_states = True
    assert len(model(**inputs).hidden_states) == config.num_hidden_layers + 1


def test_outputs_as_a_tuple(case):
    model, inputs = case
    with torch.no_grad():
        output, values = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(values, tuple)
    pairs = [pair for pair in zip(output.to_tuple(), values, strict=True) if isinstance(pair[0], torch.Tensor)]
    assert pairs and all(torch.equal(*pair) for pair in pairs)


def test_eager_attention_matches_sdpa(case):
    model, inputs = case
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    assert (model.config._attn_implementation, other.config._attn_implementation) == ("sdpa", "eager")
    assert_same_outputs(model, other, inputs, rtol=1e-4, atol=1e-5)


def test_forward_signature_and_input_embeddings(own_case):
    model, _ = own_case
    assert list(inspect.signature(model.forward).parameters)[0] == model.main_input_name == "points"
    assert model.get_input_embeddings() is model.base_model.group_embedding


@pytest.mark.parametrize("name", HEADS)
def test_base_model_to_head_and_back(name, tmp_path):
    model_class, config, _ = CASES[name]
    encoder = ACTStudent(copy.deepcopy(config))
    encoder.save_pretrained(tmp_path / "encoder")
    model, report = model_class.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert report["missing_keys"] and not any(key.startswith("student.") for key in report["missing_keys"])
    model.save_pretrained(tmp_path / "head")
    loaded = ACTStudent.from_pretrained(tmp_path / "head").state_dict()
    for key, value in model.student.state_dict().items():
        assert torch.equal(loaded[key], value) and torch.equal(encoder.state_dict()[key], value), key


def test_device_map_auto_with_weights_on_disk(own_case, tmp_path):
    """accelerate moves every module that must not be split as a whole."""
    model, inputs = own_case
    model.save_pretrained(tmp_path / "model")
    size = sum(value.nbytes for value in model.state_dict().values())
    loaded = type(model).from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": int(0.6 * size)}, offload_folder=tmp_path / "disk"
    )
    assert set(map(str, loaded.hf_device_map.values())) == {"cpu", "disk"}
    assert_same_outputs(model, loaded, inputs)
