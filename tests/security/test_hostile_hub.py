"""Repositories that mean harm, through the real client on the loopback Hub; code that only the user may let run."""

from pathlib import Path

import pytest

from hostile_cases import attempts, changed, pickled_weights, sharded, student_files, write_folder
from loopback_hub import LoopbackHub
from modeling_act import ACTStudent

SHARD = "model-00001-of-00001.safetensors"


def evil_code(marker) -> bytes:
    return f"open({str(marker)!r}, 'w').write('ran')\nclass Evil:\n    pass\n".encode()


def repositories(folder: Path) -> dict[str, dict[str, bytes]]:
    student, evil = student_files(), {"evil.py": evil_code(folder / "marker")}
    pickled = pickled_weights(folder / "marker")
    own_map = dict.fromkeys(("AutoConfig", "AutoModel", "AutoFeatureExtractor"), "evil.Evil")
    other_map = dict.fromkeys(own_map, "other/repo--evil.Evil")
    pipeline = {"point-cloud": {"impl": "evil.Evil", "pt": ["AutoModel"]}}
    return {
        "org/single": student,
        "org/sharded": sharded(student, {"norm.weight": SHARD}),
        "org/gone": sharded(student, {"norm.weight": "gone.safetensors"}),
        "org/pickle": {"config.json": student["config.json"], "pytorch_model.bin": pickled},
        "org/both": student | {"pytorch_model.bin": pickled},
        "org/indexed": sharded(student, {"norm.weight": "x.bin"}) | {"x.bin": pickled},
        "org/parent": sharded(student, {"norm.weight": "../../../secret.safetensors"}),
        "org/absolute": sharded(student, {"norm.weight": str(folder / "harmless/model.safetensors")}),
        "org/pattern": sharded(student, {"norm.weight": "*.safetensors"}),
        "org/other": sharded(student, {"norm.weight": "other/repo/model.safetensors"}),
        "org/kernel": changed(student, attn_implementation="other/kernel"),
        "org/private_kernel": changed(student, _attn_implementation="other/kernel@main:attention"),
        "org/elsewhere": changed(student, auto_map=other_map) | evil,
        "org/own": changed(student, auto_map=own_map, custom_pipelines=pipeline) | evil,
        "other/repo": evil,
    }


@pytest.fixture(scope="module")
def attack(tmp_path_factory, run_python):
    """Every repository loaded by its class and by its Auto class: what came of each, what the Hub was asked, where."""
    folder = tmp_path_factory.mktemp("attack")
    (folder / "home" / "hub").mkdir(parents=True)  # `../../../` of a snapshot; what lies there would be found
    (folder / "home" / "hub" / "secret.safetensors").write_bytes(student_files()["model.safetensors"])
    harmless = write_folder(folder / "harmless", student_files())
    with LoopbackHub() as hub:
        hub.commits = {f"models/{name}": [files] for name, files in repositories(folder).items()}
        jobs = [(loader, name, {}) for name in repositories(folder) for loader in ("student", "auto")]
        environment = hub.environment | {"HF_HOME": str(folder / "home")}
        results = attempts(run_python, jobs, harmless, environment=environment)
    by_name = {}
    for (_, name, _), result in zip(jobs, results, strict=True):
        by_name.setdefault(name, []).append(result)
    return by_name, hub.requests, folder


REFUSED = {
    "org/pickle": "org/pickle: holds pickled weights",
    "org/indexed": "names the file 'x.bin'; it must be a safetensors file beside it",
    "org/parent": "'../../../secret.safetensors'; it must be a safetensors file beside it",
    "org/absolute": "harmless/model.safetensors'; it must be a safetensors file beside it",
    "org/pattern": "'*.safetensors'; it must be a safetensors file beside it",
    "org/other": "'other/repo/model.safetensors'; it must be a safetensors file beside it",
    "org/kernel": "config.json must not set 'attn_implementation'",
    "org/private_kernel": "config.json must not set '_attn_implementation'",
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_repositories_are_refused_in_one_line(attack, name):
    for kind, message, *_ in attack[0][name]:
        assert kind == "InputError" and REFUSED[name] in message and "\n" not in message


@pytest.mark.parametrize("name", ["org/single", "org/sharded", "org/both", "org/elsewhere", "org/own"])
def test_good_weights_load_whatever_lies_beside_them(attack, name):
    assert [result[:2] for result in attack[0][name]] == [["loaded", "ACTStudent"]] * 2


def test_nothing_was_asked_for_or_run_that_was_refused(attack):
    _, requests, folder = attack
    suspect = (".bin", "x.bin", "evil.py", "other/kernel", "secret", "harmless", "other/repo/")
    fetched = [line for line in requests if line.startswith("GET") and any(part in line for part in suspect)]
    assert not fetched and not (folder / "marker").exists()


def test_a_missing_shard_is_named(attack):
    assert all("gone.safetensors" in message for _, message, *_ in attack[0]["org/gone"])


def test_checking_asks_the_hub_nothing_more(attack):
    """Two requests for each of the two files, and for their commit what transformers asks anyway; each load asks for
    the processor, which is not there."""
    asked = [line for line in attack[1] if "org/single/resolve" in line]
    assert sum(line.startswith("HEAD") and "preprocessor_config.json" in line for line in asked) == 2
    asked = [line for line in asked if "preprocessor_config.json" not in line]
    assert len(asked) == 4 and len(set(asked)) == 4, asked


def test_snapshots_of_the_cache_load_as_folders(attack):
    """Their files are links to `blobs`, outside of the folder."""
    (snapshot,) = (attack[2] / "home" / "hub" / "models--org--sharded" / "snapshots").iterdir()
    assert (snapshot / SHARD).is_symlink() and (snapshot / SHARD).resolve().parent.name == "blobs"
    assert isinstance(ACTStudent.from_pretrained(snapshot), ACTStudent)


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


def test_remote_code_carries_the_checks(tmp_path, run_python):
    """The same folder, loaded by the code beside its weights."""
    marker = tmp_path / "marker"
    ACTStudent.from_pretrained(write_folder(tmp_path / "source", student_files())).save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "safe_loading.py").is_file()
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickled_weights(marker))
    code = """
import sys
sys.modules["modeling_act"] = None
from transformers import AutoModel
try:
    AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
except ValueError as error:
    print(type(error).__module__, error)
"""
    process = run_python("-c", code, tmp_path / "model", cwd=tmp_path)
    assert process.stdout.startswith("transformers_modules.") and "holds pickled weights" in process.stdout
    assert not marker.exists()


def test_adapters_are_read_from_safetensors_alone(tmp_path):
    """transformers takes adapter_model.bin where there is nothing else, and the model that the adapter names."""
    pytest.importorskip("peft", reason="only where peft is installed does transformers read adapters")
    student = student_files()
    adapter = b'{"base_model_name_or_path": "other/base", "peft_type": "LORA", "r": 2, "target_modules": ["fc1"]}'
    files = {"adapter_config.json": adapter, "adapter_model.bin": pickled_weights(tmp_path / "marker")}
    beside, alone = write_folder(tmp_path / "beside", student | files), write_folder(tmp_path / "alone", files)
    with pytest.raises(ValueError, match="adapter without adapter_model.safetensors"):
        ACTStudent.from_pretrained(beside)
    with pytest.raises(ValueError, match="which names another model to load"):
        ACTStudent.from_pretrained(alone)
    assert not (tmp_path / "marker").exists()
