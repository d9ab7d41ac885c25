"""Folders that whole runs leave and publish. Scripts run with the real client and a Hub on this machine."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from loopback_hub import TOKEN, LoopbackHub
from modeling_act import ACTStudent, ACTStudentForPreTraining, ACTTeacher
from training_runs import make_inputs, run_commands

ROOT = Path(__file__).resolve().parents[3]
EVERY_RUN = {
    ".gitattributes", "README.md", "config.json", "metrics.json", "model.safetensors", "recipe.yaml", "report.html",
    "pictures/step-00000006.png", "preprocessor_config.json", "processing_act.py",
}  # fmt: skip

LOAD = """
import sys
from safetensors.torch import save_file
from transformers import AutoModel

for name in ("teacher", "student"):
    model = AutoModel.from_pretrained(f"org/{name}", trust_remote_code=len(sys.argv) > 2)
    save_file({key: value.clone() for key, value in model.state_dict().items()}, f"{sys.argv[1]}/{name}.safetensors")
    print(type(model).__module__)
"""
# First with the Hub, then without a network, each in a process that cannot import the package.
LOAD_AS_REMOTE_CODE = """
import json, os, sys
import torch

sys.modules["modeling_act"] = None
code = sys.argv.pop()
for environment in json.loads(sys.argv.pop()):
    child = os.fork()
    if not child:
        os.environ.update(environment)
        exec(code)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, environment
"""


@dataclass
class Published:
    """Results of a few commands, one after the other."""

    folder: Path
    hub: LoopbackHub
    codes: dict[str, int]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text().replace("\r", "\n")

    def error(self, name: str) -> str:
        """The one line of a command that failed."""
        assert self.codes[name] == 1, self.log(name)
        assert "Traceback" not in self.log(name)
        (line,) = [line for line in self.log(name).splitlines() if "error: " in line]
        return line

    def records(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name / "log.jsonl").read_text().splitlines()]

    def environment(self, **changed: str) -> dict[str, str]:
        return os.environ | self.hub.environment | {"HF_HOME": f"{self.folder}/hub", "OMP_NUM_THREADS": "1"} | changed


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = make_inputs(tmp_path_factory.mktemp("outputs"))
    (folder / "load.py").write_text(LOAD)
    short = ("--max_train_steps", "6", "--gradient_accumulation_steps", "1", "--dataloader_num_workers", "0")
    short += ("--validation_epochs", "0.2", "--warmup_epochs", "0")

    def train(script: str, config: str, output: str, model: str | None, *flags: str) -> list[str]:
        where = ("--push_to_hub", "true", "--hub_model_id", f"org/{model}") if model else ()
        words = ("--config", folder / config, "--output_dir", folder / output, *where, *flags)
        return [f"training/{script}.py", *map(str, words)]

    student = "distill", "distill.yaml", "student"
    tracked = *short, "--final_weights", "ema", "--report_to", "tensorboard"
    commands = {
        "teacher": train("autoencode", "autoencode.yaml", "teacher", "teacher", *tracked),
        "refused": train(*student, "refused", *short),
        "student": train(*student, "student", *short, "--resume_from_checkpoint", "latest"),
        "again": train("autoencode", "teacher/recipe.yaml", "again", None),
        "denied": train("autoencode", "autoencode.yaml", "denied", "teacher", *short),
        "load": [str(folder / "load.py"), str(folder)],
    }
    with LoopbackHub() as hub:
        hub.fail("/api/models/org/refused/commit")
        run = Published(folder, hub, {})
        jobs = [
            (command, str(folder / f"{name}.log"), {"HF_TOKEN": "hf_wrong"} if name == "denied" else {})
            for name, command in commands.items()
        ]
        run.codes = dict(zip(commands, run_commands(jobs, run.environment()), strict=True))
        yield run


# The Hub -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_one_commit_publishes_the_model_and_nothing_of_the_run(published, name):
    assert published.codes[name] == 0, published.log(name)
    _, *commits = published.hub.commits[f"models/org/{name}"]
    assert len(commits) == 1
    code = {path.name for path in (published.folder / name).glob("*.py")}
    assert {f"modeling_act_{name}.py", "configuration_act.py", "point_ops.py"} <= code
    assert set(commits[0]) == EVERY_RUN | code
    assert f"published as {published.hub.url}/org/{name}/commit/" in published.log(name)
    for path, content in commits[0].items():
        for secret in (str(published.folder), str(ROOT), TOKEN):
            assert secret.encode() not in content, f"{path} holds {secret}"
    folder = published.folder / name
    for path in set(commits[0]) - {".gitattributes", "recipe.yaml"}:
        assert commits[0][path] == (folder / path).read_bytes(), path


def test_a_published_recipe_names_what_was_local_and_publishes_nothing(published):
    files = published.hub.files("models/org/student")
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert (recipe["dataset_name"], recipe["teacher"], recipe["output_dir"]) == ("clouds.npz", ["teacher"], "student")
    assert recipe["push_to_hub"] is False and recipe["resume_from_checkpoint"] is None
    local = yaml.safe_load((published.folder / "student" / "recipe.yaml").read_text())
    assert local["dataset_name"] == str(published.folder / "clouds.npz")
    changed = {"dataset_name", "teacher", "output_dir"}
    assert {name for name in recipe if recipe[name] != local[name]} == changed
    assert "from `teacher`." in files["README.md"].decode()


def test_a_published_model_loads_after_import(published):
    assert published.codes["load"] == 0, published.log("load")
    modules = ["modeling_act.modeling_act_teacher", "modeling_act.modeling_act_student"]
    assert [line for line in published.log("load").splitlines() if line.startswith("modeling_act.")] == modules
    check_loaded(published)


def test_a_published_model_loads_as_remote_code_and_then_offline(published):
    for name in ("teacher", "student"):
        (published.folder / f"{name}.safetensors").unlink(missing_ok=True)
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:1"}
    arguments = [str(published.folder), "remote", json.dumps([{}, offline]), LOAD]
    process = subprocess.run(
        [sys.executable, "-c", LOAD_AS_REMOTE_CODE, *arguments],
        cwd=published.folder, env=published.environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    modules = process.stdout.split()
    assert len(modules) == 4 and modules[:2] == modules[2:]
    assert modules[0].startswith("transformers_modules.org.teacher.")
    check_loaded(published)


def check_loaded(published: Published) -> None:
    """Check that the tensors that a process saved are those of the output folders."""
    for name, prefix in (("teacher", ""), ("student", "student.")):
        expected = load_file(published.folder / name / "model.safetensors")
        loaded = load_file(published.folder / f"{name}.safetensors")
        assert loaded and all(torch.equal(value, expected[prefix + key]) for key, value in loaded.items())


def test_an_upload_that_fails_leaves_the_model_and_says_how_to_upload_it(published):
    error = published.error("refused")
    assert f"{published.folder / 'student'} holds the finished model, but the upload to org/refused failed" in error
    assert "500" in error and "--resume_from_checkpoint latest uploads it without training" in error
    assert len(published.hub.commits["models/org/refused"]) == 1
    steps = [record["step"] for record in published.records("student") if "train/loss" in record]
    assert steps == [1, 6], "the run that uploaded trained again"


def test_a_token_is_tried_before_training(published):
    error = published.error("denied")
    assert "--push_to_hub: org/teacher cannot be written to (Invalid user token" in error
    assert not list((published.folder / "denied").rglob("*.safetensors"))


# The output folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "subfolder"),
    [(name, kind, sub) for name, kind in (("teacher", ACTTeacher), ("student", ACTStudentForPreTraining))
     for sub in ("", "best", "ema")],
)  # fmt: skip
def test_every_folder_of_weights_loads_whole(published, name, kind, subfolder):
    _, problems = kind.from_pretrained(published.folder / name / subfolder, output_loading_info=True)
    assert not any(problems.values()), problems


def test_a_student_holds_no_teacher(published):
    folder = published.folder / "student"
    model = ACTStudentForPreTraining.from_pretrained(folder)
    assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())
    numbers = sum(value.nbytes for value in model.state_dict().values())
    assert (folder / "model.safetensors").stat().st_size < numbers + 20_000
    assert isinstance(ACTStudent.from_pretrained(folder), ACTStudent)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_card_has_front_matter_and_the_numbers_of_the_metrics(published, name):
    folder = published.folder / name
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == {"library_name": "transformers", "tags": ["point-cloud", "act"]}
    record = json.loads((folder / "metrics.json").read_text())
    rows = dict(re.findall(r"^\| (\w+) \| (\S+) \|$", card.text, re.MULTILINE))
    assert rows.pop("measure") == "value"
    assert rows == {measure: f"{value:.6g}" for measure, value in record["metrics"].items()}
    logged, is_average = published.records(name)[-1], name == "teacher"  # --final_weights ema
    same = [logged[f"validation/{key}"] == record["metrics"][key] for key in rows.keys() - {"codebook_collapsed"}]
    assert not all(same) if is_average else all(same)
    assert ("of the averaged weights after step 6." in card.text) == is_average
    assert record["steps"] == 6 and record["versions"]["torch"] == torch.__version__
    assert f'from_pretrained("org/{name}")' in card.text


def test_the_recipe_repeats_the_run_byte_for_byte(published):
    assert published.codes["again"] == 0, published.log("again")
    for path in ("model.safetensors", "best/model.safetensors", "ema/model.safetensors", "config.json"):
        assert (published.folder / "again" / path).read_bytes() == (published.folder / "teacher" / path).read_bytes()
    assert published.hub.requests.count("POST /api/models/org/teacher/commit/main") == 1


def test_the_log_has_what_people_watch_from_the_first_step(published):
    validated, first, *others = published.records("teacher")
    watched = {"codes_used", "perplexity", "logit_scale", "reconstruction_loss"}
    assert validated["step"] == 0 and watched <= {name.removeprefix("validation/") for name in validated}
    figures = {"loss", "gradient_norm", "learning_rate", "clouds_per_second", "temperature", "kl_weight", "kl_loss"}
    assert first["step"] == 1 and watched | figures <= {name.removeprefix("train/") for name in first}
    assert [record["step"] for record in others] == sorted(record["step"] for record in others)
    assert others[-1]["step"] == 6 and all("epoch" in record for record in others)


def test_tensorboard_holds_the_figures_of_the_log(published):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    events = accumulator.EventAccumulator(str(published.folder / "teacher" / "act"))
    events.Reload()
    expected = {
        (name, record["step"]): torch.tensor(value, dtype=torch.float32).item()
        for record in published.records("teacher")
        for name, value in record.items()
        if name not in ("step", "epoch")
    }
    found = {(name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    assert found == expected
