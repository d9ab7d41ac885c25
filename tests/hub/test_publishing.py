"""Publishing a folder: the files that go, the text that is refused, and commits on a Hub on this machine."""

import json
import re
import runpy
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from safetensors.torch import load_file

from finished_folder import CARD, HOME, LOOKS_LIKE_A_TOKEN, make_folder, published_of
from forked import run_command
from loopback_hub import STRANGER, TOKEN
from modeling_act.errors import InputError
from modeling_act.hub.publishing import INDEX, check_folder, publish, write_eval_results
from small_models import small_models

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "models/org/model"


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "classifier")


# Files that go, and text that is refused -----------------------------------------------------------------------------


def test_only_the_files_of_the_list_are_published(folder):
    files = check_folder(folder)
    assert set(files) == published_of(folder)
    assert files["README.md"].read_text() == CARD
    card = check_folder(folder, "org/model")["README.md"].decode()
    assert card == CARD.replace('"classifier"', '"org/model"')


def test_local_paths_become_file_names(folder, monkeypatch):
    (folder.parent / "clouds").mkdir()
    monkeypatch.chdir(folder.parent)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text()) | {"dataset_name": "classifier/../clouds"}
    config = json.loads((folder / "config.json").read_text())
    added = {"_name_or_path": f"{HOME}/bert", "x": ["C:\\Users\\me\\b"], "y": {"model": "~/a/b.npz"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "config.json").write_text(json.dumps(config | added))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files = check_folder(folder)
    expected = recipe | {"dataset_name": "clouds", "output_dir": "classifier", "student": "small"}
    assert yaml.safe_load(files["recipe.yaml"]) == expected
    assert json.loads(files["config.json"]) == config | {"_name_or_path": "bert", "x": ["b"], "y": {"model": "b.npz"}}
    assert files["metrics.json"] == folder / "metrics.json"
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("README.md", f"made in {HOME}/runs", f"README.md, line 15: holds the local path {HOME}/runs; remove it"),
        ("README.md", "`/data/clouds/a.npz`", "README.md, line 15: holds the local path /data/clouds/a.npz;"),
        ("README.md", "C:\\Users\\me\\clouds", "README.md, line 15: holds the local path C:\\Users\\me\\clouds;"),
        ("report.html", "<p>{folder}</p>", "report.html, line 2: holds the local path {folder}"),
        (
            "README.md",
            LOOKS_LIKE_A_TOKEN,
            "line 15: holds what looks like a Hub token; remove and revoke it",
        ),
        ("processing_act.py", f"TOKEN = '{LOOKS_LIKE_A_TOKEN}'", "holds what looks like a Hub token"),
        ("report.html", f"<p>{TOKEN}</p>", "report.html, line 2: holds what looks like a Hub token"),
    ],
)
def test_private_text_is_refused(folder, monkeypatch, name, text, message):
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # the token in use is refused, whatever it looks like
    text, message = (part.replace("{folder}", str(folder)) for part in (text, message))
    (folder / name).write_text((folder / name).read_text() + "\n" + text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        check_folder(folder)
    assert LOOKS_LIKE_A_TOKEN not in str(error.value) and "\n" not in str(error.value)


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def name_code_elsewhere(folder):
    (folder.parent / "secret.py").write_text("x = 1")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("modeling_act_student.ACT", "../secret.ACT"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: damaged or missing weights ("),
        (cut_short, "model.safetensors: damaged or missing weights ("),
        (
            lambda folder: (folder / "config.json").unlink(),
            "has no config.json: publish a folder of",
        ),
        (lambda folder: (folder / "README.md").unlink(), "has no README.md: publish a folder of"),
        (lambda folder: (folder / "point_ops.py").unlink(), "point_ops.py: the model needs this module"),
        (lambda folder: (folder / "processing_act.py").unlink(), "processing_act.py: the model needs this module"),
        (name_code_elsewhere, "secret.py: the model needs this module"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: damaged (Expecting property name"),
        (lambda folder: (folder / "recipe.yaml").write_bytes(b"\xff\xfe"), "recipe.yaml: damaged ("),
    ],
)
def test_an_incomplete_folder_is_refused(folder, change, message):
    change(folder)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        check_folder(folder)
    assert "\n" not in str(error.value)


def test_all_shards_of_large_weights_go(folder):
    model_class, config, _ = small_models()["classification"]
    (folder / "model.safetensors").unlink()
    model_class(config).save_pretrained(folder, max_shard_size="10KB")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    (folder / "model-00009-of-00009.safetensors").write_text("of another model")
    assert {name for name in check_folder(folder) if "safetensors" in name} == shards | {INDEX}
    (folder / min(shards)).unlink()
    with pytest.raises(InputError, match=f"{min(shards)}: damaged or missing weights"):
        check_folder(folder)


# Results of a test split ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "metric"),
    [
        ({"accuracy": 0.9, "class_miou": 0.8, "instance_miou": 0.7}, "instance_miou"),
        ({"loss": 2.0, "mean_class_accuracy": 0.6, "accuracy": 0.9, "miou": 0.5}, "miou"),
        ({"map_50": 0.1, "map_25": 0.4}, "map_25"),
    ],
)
def test_the_result_is_the_main_metric_of_the_task(folder, test, metric):
    (folder / "metrics.json").write_text(json.dumps({"test": test}))
    path = write_eval_results(folder)
    assert path == folder / ".eval_results" / "org--set.yaml"
    (result,) = yaml.safe_load(path.read_text())
    assert (result["dataset"], result["value"]) == ({"id": "org/set", "task_id": "test"}, test[metric])
    assert result["notes"].startswith(f"{metric} on the split test, read once")
    assert ".eval_results/org--set.yaml" in check_folder(folder)


@pytest.mark.parametrize("dataset", ["everyday_shapes", f"{HOME}/set", "classifier/pictures", "a/b/c", "org/set"])
def test_no_result_without_a_dataset_on_the_hub_and_a_main_metric(tmp_path, monkeypatch, dataset):
    folder = make_folder(tmp_path / "classifier", dataset)
    if dataset == "org/set":
        (folder / "metrics.json").write_text('{"test": {"loss": 2.0}}')
    monkeypatch.chdir(tmp_path)
    assert write_eval_results(folder) is None
    assert not (folder / ".eval_results").exists()


# The Hub -------------------------------------------------------------------------------------------------------------


def test_one_commit_holds_the_model_and_deletes_other_weights(own_hub, folder):
    own_hub.create(REPOSITORY)
    old = {"model-00001-of-00002.safetensors": b"old", INDEX: b"{}", "notes.md": b"theirs"}
    own_hub.commits[REPOSITORY][0] |= old
    address = publish(folder, "org/model")
    first, commit = own_hub.commits[REPOSITORY]
    assert address == f"{own_hub.url}/org/model/commit/{own_hub.sha(REPOSITORY)}"
    assert set(commit) == published_of(folder) | {".gitattributes", "notes.md"}
    for name, content in commit.items():
        assert HOME.encode() not in content and str(folder).encode() not in content, name
    publish(folder, "org/model")
    assert len(own_hub.commits[REPOSITORY]) == 2, "an unchanged folder makes no commit"


def test_a_private_repository_is_private_from_the_start(own_hub, folder):
    publish(folder, "org/model", private=True)
    publish(folder, "org/open")
    assert own_hub.private == {REPOSITORY}
    with pytest.raises(InputError, match="org/open exists and is public: make it private in its settings first"):
        publish(folder, "org/open", private=True)
    assert len(own_hub.commits["models/org/open"]) == 2


def test_a_revision_is_a_branch_that_is_created_where_missing(own_hub, folder):
    for _ in range(2):
        publish(folder, "org/model", revision="v2")
    assert own_hub.branches[REPOSITORY] == {"main": 0, "v2": 1}
    assert "model.safetensors" in own_hub.files(REPOSITORY, "v2")
    assert set(own_hub.files(REPOSITORY)) == {".gitattributes"}


UNREACHABLE = "; the Hub is out of reach or out of order: check the network and HF_ENDPOINT, or try again later"


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        (
            "org/model",
            {"HF_TOKEN": "", "HF_TOKEN_PATH": "nowhere"},
            "logged in to Hugging Face with `hf auth login",
        ),
        ("org/model", {"HF_TOKEN": "hf_wrong"}, "The token from HF_TOKEN environment variable is invalid"),
        ("org/model", {"HF_TOKEN": STRANGER}, "Make sure your token has the correct permissions"),
        ("org/taken", {"HF_TOKEN": STRANGER}, "failed (403 Forbidden"),
        ("org/gated", {"HF_TOKEN": STRANGER}, "failed (403 Forbidden"),
        ("org/hidden", {"HF_TOKEN": STRANGER}, "Make sure your token has the correct permissions"),
        ("org/model", {"ENDPOINT": "http://127.0.0.1:1"}, f"Connection refused){UNREACHABLE}"),
        ("org/model", {"HF_HUB_OFFLINE": True}, "please unset the `HF_HUB_OFFLINE` environment variable"),
        ("org/model", {"fail": ("/api/whoami-v2", "500")}, "the server is out of order)" + UNREACHABLE),
        ("org/model", {"fail": ("/commit/main", "500")}, "the server is out of order)" + UNREACHABLE),
        ("org/model", {"fail": ("/commit/main", "404")}, "failed (Client error '404"),
        ("org/model", {"fail": ("/commit/main", "429")}, "failed (429 Too Many Requests"),
        ("org/mo del", {}, "Repo id must use alphanumeric chars"),
        ("model", {}, "a repository is named ORGANIZATION/NAME, got 'model'"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(own_hub, monkeypatch, folder, name, changed, message):
    for existing in ("taken", "gated", "hidden"):
        own_hub.create(f"models/org/{existing}")
    own_hub.gated.add("models/org/gated")
    own_hub.private.add("models/org/hidden")
    for key, value in changed.items():
        if key == "fail":
            own_hub.fail(*value)
        elif key == "HF_TOKEN":
            monkeypatch.setenv(key, value)
        else:
            monkeypatch.setattr(huggingface_hub.constants, key, value)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        publish(folder, name)
    assert "\n" not in str(error.value) and name in str(error.value)
    assert all(len(commits) == 1 for commits in own_hub.commits.values()), "half a commit"


# The script ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_what_the_script_then_publishes(own_hub, folder, capsys):
    main = runpy.run_path(str(ROOT / "model_cards" / "publish.py"))["main"]
    words = [str(folder), "org/model", "--private", "--revision", "v2"]
    main([*words, "--dry_run"])
    *listing, last = capsys.readouterr().out.splitlines()
    assert own_hub.requests == []
    assert last == f"dry run: {len(listing)} files for org/model, nothing was sent"
    main(words)
    *repeated, last = capsys.readouterr().out.splitlines()
    assert repeated == listing and last.startswith(f"published as {own_hub.url}/org/model/commit/")
    files = own_hub.files(REPOSITORY, "v2")
    listed = {name: int(size.replace(",", "")) for size, name in map(str.split, listing)}
    assert listed == {name: len(files[name]) for name in published_of(folder)}
    assert own_hub.private == {REPOSITORY}
    (folder.parent / "weights.safetensors").write_bytes(files["model.safetensors"])
    assert load_file(folder.parent / "weights.safetensors").keys() == load_file(folder / "model.safetensors").keys()


def test_an_error_of_the_script_is_one_line(folder):
    for words, message in (
        ((folder, "org/x"), "org/x cannot be written to (Token is required"),
        (("no_such_folder", "org/x"), "no_such_folder has no config.json"),
    ):
        (line,) = run_command("model_cards/publish.py", *words, returncode=1).stderr.strip().splitlines()
        assert line.startswith(f"publish.py: error: {message}")
