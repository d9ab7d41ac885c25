"""Malicious repositories, through the real client on the loopback Hub: code runs only if the user trusts it."""

import json
from pathlib import Path

from hostile_cases import changed, model_files, pickled_weights, sharded
from loopback_hub import LoopbackHub
from modeling_act import ACTStudent
from small_models import small_student_config

SHARD = "model-00001-of-00001.safetensors"

LOAD = """
import json, sys
from transformers import AutoModel
from modeling_act import ACTStudent
for name in sys.argv[1:]:
    for model_class in (ACTStudent, AutoModel):
        try:
            outcome = type(model_class.from_pretrained(name)).__name__
        except Exception as error:
            outcome = type(error).__name__
        print(json.dumps([name, outcome]))
"""


def repositories(folder: Path) -> dict[str, dict[str, bytes]]:
    student = model_files(ACTStudent(small_student_config()))
    marker, pickled = str(folder / "marker"), pickled_weights(folder / "marker")
    evil = {"evil.py": f"open({marker!r}, 'w').write('ran')\nclass Evil:\n    pass\n".encode()}
    own_map = dict.fromkeys(("AutoConfig", "AutoModel", "AutoFeatureExtractor"), "evil.Evil")
    other_map = dict.fromkeys(own_map, "other/repo--evil.Evil")
    pipeline = {"point-cloud": {"impl": "evil.Evil", "pt": ["AutoModel"]}}
    return {
        "org/single": student,
        "org/sharded": sharded(student, {"norm.weight": SHARD}),
        "org/pickle": {"config.json": student["config.json"], "pytorch_model.bin": pickled},
        "org/both": student | {"pytorch_model.bin": pickled},
        "org/elsewhere": changed(student, auto_map=other_map) | evil,
        "org/own": changed(student, auto_map=own_map, custom_pipelines=pipeline) | evil,
        "other/repo": evil,
    }


def test_no_pickle_is_fetched_and_no_code_runs(tmp_path, run_python):
    names = ["org/single", "org/sharded", "org/both", "org/elsewhere", "org/own", "org/pickle"]
    with LoopbackHub() as hub:
        hub.commits = {f"models/{name}": [files] for name, files in repositories(tmp_path).items()}
        environment = hub.environment | {"HF_HOME": str(tmp_path / "home")}
        process = run_python("-c", LOAD, *names, environment=environment)
    outcomes = [json.loads(line) for line in process.stdout.splitlines()]
    assert outcomes == [
        [name, "OSError" if name == "org/pickle" else "ACTStudent"] for name in names for _ in range(2)
    ]
    fetched = [line for line in hub.requests if line.startswith("GET") and (".bin" in line or "evil.py" in line)]
    assert not fetched and not (tmp_path / "marker").exists()


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["modeling_act"] = None
from transformers import AutoModel, pipeline
for name in sys.argv[1:]:
    for load in (AutoModel.from_pretrained, lambda name: pipeline("point-cloud", model=name)):
        try:
            load(name)
        except Exception as error:
            print("refused:", type(error).__name__, "trust_remote_code" in str(error))
"""


def test_without_the_package_code_waits_for_trust(tmp_path, run_python):
    """The process has no terminal that could ask."""
    names = ["org/elsewhere", "org/own"]
    with LoopbackHub() as hub:
        hub.commits = {f"models/{name}": [files] for name, files in repositories(tmp_path).items()}
        environment = hub.environment | {"HF_HOME": str(tmp_path / "home")}
        process = run_python("-c", WITHOUT_THE_PACKAGE, *names, environment=environment)
    refused = [line for line in process.stdout.splitlines() if "refused:" in line]
    assert len(refused) == 4 and "refused: ValueError True" in refused[0] and "ValueError True" in refused[2], refused
    assert not [line for line in hub.requests if "evil.py" in line]
    assert not (tmp_path / "marker").exists()


def test_remote_code_refuses_pickles_too(tmp_path, run_python):
    """The same folder, loaded by the code beside its weights."""
    ACTStudent(small_student_config()).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickled_weights(tmp_path / "marker"))
    code = """
import sys
sys.modules["modeling_act"] = None
from transformers import AutoModel
for options in ({}, {"use_safetensors": False}):
    try:
        AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, **options)
    except (OSError, ValueError) as error:
        print(type(error).__name__, error)
"""
    lines = run_python("-c", code, tmp_path / "model", cwd=tmp_path).stdout.splitlines()
    assert "no file named model.safetensors" in lines[0] and lines[1].startswith("InputError ACT models are loaded")
    assert not (tmp_path / "marker").exists()
