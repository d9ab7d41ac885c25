"""The transfer scripts publish what they leave: sets and models go to a Hub on this machine, and come back from it.

What the pretraining scripts publish is in test_finished_runs.py.
"""

import json
import os

import pytest
import torch
import yaml
from act_training.data.schema import build_dataset
from act_training.synthetic.rooms import CLASS_NAMES, generate_rooms
from datasets import DatasetDict
from huggingface_hub import parse_eval_result_entries
from safetensors.torch import load_file

from loopback_hub import TOKEN, LoopbackHub
from training_runs import ROOT, STUDENT, make_inputs, run_commands

pytestmark = pytest.mark.slow

SCRIPTS = {
    "finetune": ("classifier", "ACTStudentForPointCloudClassification"),
    "segment": ("segmenter", "ACTStudentForPartSegmentation"),
    "detect": ("detector", "ACTStudentForObjectDetection"),
}
PUSH_SET = """
import sys
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

random, splits = np.random.default_rng(0), {}
for split, count in (("train", 24), ("test", 9)):
    clouds = random.normal(size=(count, 160, 3)).astype("f4")
    splits[split] = Dataset.from_dict({"points": clouds.tolist(), "label": [row % 3 for row in range(count)]})
    splits[split] = splits[split].cast_column("label", ClassLabel(names=["a", "b", "c"]))
DatasetDict(splits).push_to_hub("org/clouds", private=True)
"""
# In a process without the package, first with the Hub and then without.
LOAD = """
import json, sys
sys.modules["modeling_act"] = None
from safetensors.torch import save_file
from transformers import AutoModel

for name, revision in json.loads(sys.argv[2]):
    model = AutoModel.from_pretrained(f"org/{name}", revision=revision, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.org."), type(model)
    save_file({key: value.clone() for key, value in model.state_dict().items()}, f"{sys.argv[1]}/{name}.safetensors")
    print(type(model).__name__)
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A hub that holds a set and the models of three scripts; the folder of the runs."""
    folder = make_inputs(tmp_path_factory.mktemp("published"))
    rooms = {split: build_dataset(generate_rooms(count, 300, start=count), box_names=CLASS_NAMES)
             for split, count in (("train", 12), ("test", 4))}  # fmt: skip
    DatasetDict(rooms).save_to_disk(str(folder / "rooms"))
    sizes = {"num_groups": 16, "num_queries": 12, "detection_dim": 16, "detection_num_hidden_layers": 1}
    detection = STUDENT | sizes | {"detection_num_attention_heads": 2, "num_hidden_layers": 2}
    recipe = {"dataset_name": str(folder / "rooms"), "num_points": 128, "model": detection, "warmup_epochs": 0}
    (folder / "detect.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "push_set.py").write_text(PUSH_SET)
    short = ["--max_train_steps", "4", "--gradient_accumulation_steps", "1", "--dataloader_num_workers", "0"]
    of_script = {
        "finetune": ["--dataset_name", "org/clouds", "--hub_private", "true"],
        "segment": [],
        "detect": ["--hub_revision", "v2"],
    }
    commands = {"set": [str(folder / "push_set.py")]}
    for script, flags in of_script.items():
        name, _ = SCRIPTS[script]
        where = ["--output_dir", str(folder / name), "--push_to_hub", "true", "--hub_model_id", f"org/{name}"]
        config = ["--config", str(folder / f"{script}.yaml")]
        commands[script] = [f"training/{script}.py", *config, *where, *short, *flags]
    with LoopbackHub() as hub:
        jobs = [(command, str(folder / f"{name}.log"), {}) for name, command in commands.items()]
        cache = {"HF_HOME": f"{folder}/hub", "OMP_NUM_THREADS": "1"}
        codes = run_commands(jobs, os.environ | hub.environment | cache)
        for name, code in zip(commands, codes, strict=True):
            assert code == 0, (folder / f"{name}.log").read_text()
        yield hub, folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_commit_holds_the_model_and_nothing_of_this_machine(published, script):
    hub, folder = published
    name, _ = SCRIPTS[script]
    commits = hub.commits[f"models/org/{name}"]
    assert len(commits) == 2
    wanted = {
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
    }
    assert wanted | {"report.html", "modeling_act_student.py", "processing_act.py"} <= set(commits[1])
    assert {path.partition("/")[0] for path in commits[1]} & {"checkpoints", "best", "ema", "log.jsonl"} == set()
    for path, content in commits[1].items():
        for secret in (str(folder), str(ROOT), TOKEN):
            assert secret.encode() not in content, f"{path} holds {secret}"
    assert commits[1]["model.safetensors"] == (folder / name / "model.safetensors").read_bytes()
    assert f'from_pretrained("org/{name}")' in commits[1]["README.md"].decode()


def test_flags_say_who_sees_it_and_on_which_branch(published):
    hub, _ = published
    assert hub.private == {"datasets/org/clouds", "models/org/classifier"}
    assert hub.branches["models/org/detector"] == {"main": 0, "v2": 1}
    assert hub.branches["models/org/segmenter"] == {"main": 1}


def test_results_are_of_test_splits_on_the_hub_alone(published):
    hub, folder = published
    test = json.loads((folder / "classifier" / "metrics.json").read_text())["test"]
    content = hub.files("models/org/classifier")[".eval_results/org--clouds.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(content))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("org/clouds", "test", test["accuracy"])
    for name, revision in (("segmenter", "main"), ("detector", "v2")):
        assert not any("eval_results" in path for path in hub.files(f"models/org/{name}", revision))


def test_every_model_comes_back_without_the_package_and_without_the_hub(published, run_python):
    hub, folder = published
    models = json.dumps([["classifier", "main"], ["segmenter", "main"], ["detector", "v2"]])
    for offline in ("0", "1"):
        environment = hub.environment | {"HF_HOME": f"{folder}/hub", "HF_HUB_OFFLINE": offline}
        if offline == "1":
            environment["HF_ENDPOINT"] = "http://127.0.0.1:1"
        process = run_python("-c", LOAD, folder, models, environment=environment, cwd=folder)
        assert process.stdout.split() == [kind for _, kind in SCRIPTS.values()]
        for name, _ in SCRIPTS.values():
            loaded, expected = (
                load_file(folder / f"{name}.safetensors"),
                load_file(folder / name / "model.safetensors"),
            )
            assert loaded and all(torch.equal(loaded[key], expected[key]) for key in expected)
            (folder / f"{name}.safetensors").unlink()


# A set as prepare_data.py uploads it, opened whole and as a stream.
SETS = """
import sys
sys.path.insert(0, "training")
import numpy as np
from act_training.data.point_sets import open_point_set
from datasets import Dataset, DatasetDict

points = np.random.default_rng(0).normal(size=(8, 64, 3)).astype("f4")
rows = {"points": points.tolist(), "label": [0] * 8}
DatasetDict({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(rows)}).push_to_hub("org/set", private=True)
whole = open_point_set("org/set", "test", None)
stream = open_point_set("org/set", "train", None, True, 8)
print(len(whole), len(stream))
"""


@pytest.mark.slow
def test_a_set_on_the_hub_opens_whole_and_streamed(run_python, tmp_path):
    with LoopbackHub() as hub:
        process = run_python("-c", SETS, environment=hub.environment | {"HF_HOME": str(tmp_path)})
        assert process.stdout.split()[-2:] == ["8", "8"]
        assert set(hub.files("datasets/org/set")) > {"README.md", "data/test-00000-of-00001.parquet"}
