"""Folders of models with pickles, damaged weights or code: no pickle is unpickled, and no code of a folder runs.

Repositories on the Hub are in test_hostile_hub.py, checkpoints to convert in test_hostile_checkpoints.py.
"""

import json
from pickle import UnpicklingError

import pytest
import torch
from transformers import AutoModel, ViTConfig, ViTModel

from hostile_cases import model_files, pickled_weights, safetensors_of, sharded, write_folder
from modeling_act import ACTStudent, ACTTeacher
from modeling_act.errors import InputError
from modeling_act.hub.load_model import load_model
from small_models import small_student_config, small_teacher_config

CLASSES = {"student": (ACTStudent, small_student_config), "teacher": (ACTTeacher, small_teacher_config)}


@pytest.fixture(params=CLASSES)
def model(request):
    model_class, config = CLASSES[request.param]
    return model_class(config())


def pickled_folders(files, pickled):
    config = {"config.json": files["config.json"]}
    yield config | {"pytorch_model.bin": pickled}
    yield config | {"pytorch_model.bin": pickled, "pytorch_model.bin.index.json": b"{}"}
    yield config | {"model.safetensors": pickled}
    yield sharded(files, {"norm.weight": "shard.bin"}) | {"shard.bin": pickled}


def test_no_pickle_is_read_in_place_of_safetensors(model, tmp_path):
    """No way to load a model reads one. Of a shard that an index names, transformers lets no code run."""
    marker = tmp_path / "marker"
    for number, files in enumerate(pickled_folders(model_files(model), pickled_weights(marker))):
        folder = write_folder(tmp_path / str(number), files)
        for load in (type(model).from_pretrained, AutoModel.from_pretrained):
            with pytest.raises((InputError, OSError, UnpicklingError)):
                load(folder)
        with pytest.raises((InputError, UnpicklingError)):
            load_model(folder)
        with pytest.raises(InputError, match="from safetensors only"):
            type(model).from_pretrained(folder, use_safetensors=False)
    assert not marker.exists()


def test_the_payload_is_real(tmp_path):
    """The pickle would run if anything unpickled it."""
    (tmp_path / "pytorch_model.bin").write_bytes(pickled_weights(tmp_path / "marker"))
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "marker").read_text() == "ran"


def test_pickles_beside_safetensors_are_ignored(model, tmp_path):
    files = model_files(model) | {"pytorch_model.bin": pickled_weights(tmp_path / "marker")}
    loaded = type(model).from_pretrained(write_folder(tmp_path / "model", files))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert not (tmp_path / "marker").exists()


def test_a_backbone_is_read_from_safetensors_only(tmp_path):
    """transformers by itself would fall back on the pickle."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickled_weights(tmp_path / "marker"))
    with pytest.raises(OSError, match="no file named model.safetensors"):
        ACTTeacher.from_backbone(str(tmp_path))
    assert not (tmp_path / "marker").exists()


HEADER = {"norm.weight": {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda weights: weights[:-4],
        lambda weights: b"",
        lambda weights: safetensors_of({}, length=2**60),
        lambda weights: safetensors_of(HEADER, b"short"),
        lambda weights: safetensors_of(b"{" * 1000),
    ],
)
def test_damaged_weights_are_one_line(model, tmp_path, damage):
    files = model_files(model)
    folder = write_folder(tmp_path / "model", files | {"model.safetensors": damage(files["model.safetensors"])})
    for load in (type(model).from_pretrained, load_model):
        with pytest.raises(InputError, match="model: cannot be read as safetensors") as caught:
            load(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [{"hidden_size": "wide"}, {"num_groups": 0}, {"hidden_act": "gelu\x1b[2J"}])
def test_a_configuration_that_cannot_be_is_one_line(model, tmp_path, fields):
    files = model_files(model)
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | fields).encode()
    with pytest.raises(InputError, match=next(iter(fields))) as caught:
        load_model(write_folder(tmp_path / "model", files))
    assert str(caught.value).isprintable()
