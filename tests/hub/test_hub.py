"""Folders as the Hub carries them: with the Auto classes after import, and as remote code without the package."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from modeling_act import ACTStudent, ACTStudentForPreTraining, ACTTeacher
from small_models import small_models

# Loads each folder it is given and saves what the model makes of given inputs; the package cannot be imported.
CLEAN_PROCESS = """
import json, sys
sys.modules["modeling_act"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining

torch.set_num_threads(1)  # as in the tests: another number may round sums otherwise

for folder, auto_name, names in json.loads(sys.argv[1]):
    auto_class = {"AutoModel": AutoModel, "AutoModelForPreTraining": AutoModelForPreTraining}[auto_name]
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    assert not model.training
    inputs = load_file(folder + "/inputs.safetensors")
    with torch.no_grad():
        output = model(**inputs)
    save_file({name: output[name].contiguous() for name in names}, folder + "/outputs.safetensors")
    print(type(model).__module__)
assert [name for name in sys.modules if name.split(".")[0] == "modeling_act"] == ["modeling_act"]
"""


def test_clean_process_loads_every_class_as_remote_code(tmp_path, run_python):
    """Bit-equal outputs without the package, without a network."""
    jobs, expected = [], {}
    for name, (model_class, config, inputs) in small_models().items():
        model = model_class(config).eval()
        inputs = {"points": torch.randn(2, 64, 3), **inputs}
        folder = tmp_path / name
        model.save_pretrained(folder)
        save_file({key: value.contiguous() for key, value in inputs.items()}, folder / "inputs.safetensors")
        with torch.no_grad():
            output = model(**inputs)
        expected[name] = {key: value for key, value in output.items() if isinstance(value, torch.Tensor)}
        auto_name = "AutoModelForPreTraining" if name == "pretraining" else "AutoModel"
        jobs.append([str(folder), auto_name, list(expected[name])])
    process = run_python("-c", CLEAN_PROCESS, json.dumps(jobs), cwd=tmp_path)
    assert process.stdout.count("transformers_modules") == len(jobs), process.stdout
    for name, outputs in expected.items():
        loaded = load_file(tmp_path / name / "outputs.safetensors")
        for key, value in outputs.items():
            assert torch.equal(loaded[key], value), f"{name}: {key}"


def test_auto_classes_after_import(tmp_path):
    for name, (model_class, config, _) in small_models().items():
        model_class(config).save_pretrained(tmp_path / name)
        assert type(AutoConfig.from_pretrained(tmp_path / name)) is type(config)
    assert type(AutoModel.from_pretrained(tmp_path / "teacher")) is ACTTeacher
    for name in ("student", "pretraining", "classification"):
        assert type(AutoModel.from_pretrained(tmp_path / name)) is ACTStudent
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path / "pretraining")) is ACTStudentForPreTraining


def test_the_encoder_of_a_pretraining_folder_is_its_student(tmp_path):
    model_class, config, _ = small_models()["pretraining"]
    model = model_class(config).eval()
    model.save_pretrained(tmp_path)
    points = torch.randn(2, 64, 3)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(encoder(points).last_hidden_state, model.student(points).last_hidden_state)


def test_a_head_leaves_no_trace_of_the_folder_it_came_from(tmp_path):
    pretraining, config, _ = small_models()["pretraining"]
    pretraining(config).save_pretrained(tmp_path / "pretrained")
    classifier = small_models()["classification"][0].from_pretrained(tmp_path / "pretrained")
    classifier.save_pretrained(tmp_path / "finetuned")
    auto_map = json.loads((tmp_path / "finetuned" / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_act.ACTStudentConfig",
        "AutoModel": "modeling_act_student.ACTStudentForPointCloudClassification",
    }


@pytest.mark.parametrize("name", list(small_models()))
def test_folders_hold_code_config_and_safetensors_only(tmp_path, name):
    model_class, config, _ = small_models()[name]
    model_class(config).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    for target in auto_map.values():
        module, class_name = target.split(".")
        assert f"class {class_name}(" in (tmp_path / f"{module}.py").read_text()
    assert "AutoModel" in auto_map and "AutoConfig" in auto_map
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt*"))
