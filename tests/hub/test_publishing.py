"""What leaves a folder, what is refused, and what a Hub makes of it; faults of a Hub are in test_hub_faults.py."""

import json
import re
import runpy
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from finished_folder import CARD, HOME, LOOKS_LIKE_A_TOKEN, make_folder, published_of
from loopback_hub import STRANGER, TOKEN
from modeling_act.errors import InputError
from modeling_act.hub.publishing import collect, publish, write_eval_results
from small_models import small_models

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "classifier")


def content(publication, name) -> str:
    file = publication.files[name]
    return file.decode() if isinstance(file, bytes) else file.read_text()


# What goes, and what stays -------------------------------------------------------------------------------------------


def test_the_allowlist_and_nothing_else_goes(folder):
    publication = collect(folder, "org/model")
    assert set(publication.files) == published_of(folder)
    stays = [
        ".env", "act/", "best/", "checkpoints/", "ema/", "log.jsonl", "notes.txt", "optimizer.pt", "pytorch_model.bin",
        "stray.py", "token",
    ]  # fmt: skip
    assert publication.left_out == stays
    lines = str(publication).splitlines()
    sizes = {line.split()[0]: line.split()[1].replace(",", "") for line in lines[: len(publication.files)]}
    assert sizes == {name: str(publication.size(name)) for name in publication.files}
    assert sizes["model.safetensors"] == str((folder / "model.safetensors").stat().st_size)
    total = sum(map(int, sizes.values()))
    assert lines[len(sizes)].split() == [str(len(sizes)), "files", f"{total:,}", "bytes"]
    assert lines[len(sizes) + 1] == f"stays here: {', '.join(stays)}"
    assert "no .eval_results: the run read no test split of a set on the Hub" in lines


def test_the_usage_of_the_card_loads_what_is_published(folder):
    card = content(collect(folder, "org/model"), "README.md")
    assert card == CARD.replace('"classifier"', '"org/model"')
    assert content(collect(folder), "README.md") == CARD
    assert 'from_pretrained("org/b")' in content(collect(folder, "org/b", CARD), "README.md")


def test_paths_of_the_machine_go_by_their_names(folder, monkeypatch):
    (folder.parent / "clouds").mkdir()
    monkeypatch.chdir(folder.parent)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text()) | {"dataset_name": "classifier/../clouds"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"_name_or_path": f"{HOME}/bert", "x": ["C:\\Users\\me\\b"]})
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"options": {"model": "~/a/b.npz"}}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    publication = collect(folder)
    expected = recipe | {"dataset_name": "clouds", "output_dir": "classifier", "student": "small"}
    assert yaml.safe_load(content(publication, "recipe.yaml")) == expected
    assert json.loads(content(publication, "config.json")) == config | {"_name_or_path": "bert", "x": ["b"]}
    assert json.loads(content(publication, "metrics.json")) == metrics | {"options": {"model": "b.npz"}}
    assert {note.split(":")[0] for note in publication.notes[:3]} == {"config.json", "metrics.json", "recipe.yaml"}
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("README.md", f"made in {HOME}/runs", f"README.md, line 15: holds {HOME}/runs, a path of this machine"),
        ("README.md", "`/data/clouds/a.npz`", "README.md, line 15: holds /data/clouds/a.npz`"[:-1]),
        ("README.md", "C:\\Users\\me\\clouds", "README.md, line 15: holds C:\\Users\\me\\clouds, a path of this mach"),
        ("README.md", f"from {HOME}/students/small", f"README.md, line 15: holds {HOME}/students/small"),
        ("report.html", "<p>{folder}</p>", "report.html, line 2: holds {folder}"),
        (
            "README.md",
            LOOKS_LIKE_A_TOKEN,
            "README.md, line 15: holds what looks like a Hub token; take it out, and re",
        ),
        ("processing_act.py", f"TOKEN = '{LOOKS_LIKE_A_TOKEN}'", "holds what looks like a Hub token"),
        (
            "metrics.json",
            f'{{"a": "{LOOKS_LIKE_A_TOKEN}"}}',
            "metrics.json, line 1: holds what looks like a Hub token",
        ),
        ("report.html", f"<p>{TOKEN}</p>", "report.html, line 2: holds what looks like a Hub token"),
    ],
)
def test_what_is_private_is_refused_and_named(folder, monkeypatch, name, text, message):
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # the client's own, whatever it looks like
    text, message = (part.replace("{folder}", str(folder)) for part in (text, message))
    old = "" if name.endswith(".json") else (folder / name).read_text() + "\n"
    (folder / name).write_text(old + text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        collect(folder)
    assert LOOKS_LIKE_A_TOKEN not in str(error.value) and "\n" not in str(error.value)


# Folders that are not whole ------------------------------------------------------------------------------------------


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors: it holds no finished mod"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json: it is no folder of `save_pretrained`"),
        (lambda folder: (folder / "README.md").unlink(), "has no README.md: a model is published with a card"),
        (lambda folder: (folder / "point_ops.py").unlink(), "point_ops.py: its configuration or code needs it"),
        (lambda folder: (folder / "processing_act.py").unlink(), "processing_act.py: its configuration or code needs"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: damaged (Expecting property name"),
        (lambda folder: (folder / "metrics.json").write_text("[]"), "metrics.json: damaged (it holds no dict)"),
        (lambda folder: (folder / "recipe.yaml").write_bytes(b"\xff\xfe"), "recipe.yaml: not UTF-8 text"),
        (cut_short, "model.safetensors: damaged or cut short"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder, change, message):
    change(folder)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        collect(folder)
    assert "\n" not in str(error.value)


def test_code_named_outside_the_folder_is_refused(folder):
    (folder.parent / "secret.py").write_text("x = 1")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "../secret.Model"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="a configuration names code as '', expected FILE.CLASS"):
        collect(folder)


def test_all_shards_of_large_weights_go(folder):
    model_class, config, _ = small_models()["classification"]
    (folder / "model.safetensors").unlink()
    model_class(config).save_pretrained(folder, max_shard_size="10KB")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    (folder / "model-00009-of-00009.safetensors").write_text("of another model")
    publication = collect(folder)
    assert {name for name in publication.files if "model" in name and "_" not in name} == shards | {
        "model.safetensors.index.json"
    }
    (folder / sorted(shards)[0]).unlink()
    with pytest.raises(InputError, match="00001-of-0000.*the index names it, and it is no file of weights here"):
        collect(folder)


# Results of a test split ---------------------------------------------------------------------------------------------


def test_results_are_those_of_metrics_json(folder):
    path = write_eval_results(folder)
    assert path == folder / ".eval_results" / "org--set.yaml"
    (result,) = yaml.safe_load(path.read_text())
    assert (result["dataset"], result["value"]) == ({"id": "org/set", "task_id": "test"}, 0.75)
    assert result["notes"].startswith("accuracy of the split test, read once")
    publication = collect(folder)
    assert ".eval_results/org--set.yaml" in publication.files and ".eval_results" not in publication.left_out
    assert not any("eval_results" in note for note in publication.notes)


@pytest.mark.parametrize(
    ("test", "value"),
    [
        ({"accuracy": 0.9, "class_miou": 0.8, "instance_miou": 0.7}, 0.7),
        ({"loss": 2.0, "mean_class_accuracy": 0.6, "accuracy": 0.9, "miou": 0.5}, 0.5),
        ({"map_50": 0.1, "map_25": 0.4}, 0.4),
        ({"loss": 2.0}, None),
    ],
)
def test_a_result_is_the_figure_that_the_task_is_judged_by(folder, test, value):
    (folder / "metrics.json").write_text(json.dumps({"test": test}))
    path = write_eval_results(folder)
    assert (path and yaml.safe_load(path.read_text())[0]["value"]) == value


@pytest.mark.parametrize("dataset", ["everyday_shapes", f"{HOME}/set", "classifier/pictures", "a/b/c"])
def test_sets_that_are_not_on_the_hub_leave_no_results(tmp_path, monkeypatch, dataset):
    folder = make_folder(tmp_path / "classifier", dataset)
    monkeypatch.chdir(tmp_path)
    assert write_eval_results(folder) is None
    assert not (folder / ".eval_results").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {dataset: {id: org/set, task_id: test}, value: 0.99}", "0.99 is no test figure in metrics.json"),
        ("- {dataset: {id: org/set, task_id: test}, value: 0.5}", "0.5 is no test figure in metrics.json"),
        ("- {value: 0.75}", "not a list of evaluation results"),
        ("accuracy: 0.75", "damaged (it holds no list)"),
    ],
)
def test_results_that_no_run_gave_are_refused(folder, text, message):
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "set.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(f".eval_results/set.yaml: {message}")):
        collect(folder)


# The Hub -------------------------------------------------------------------------------------------------------------


def test_one_commit_holds_what_was_listed(own_hub, folder):
    publication = collect(folder, "org/model")
    address = publish(publication, "org/model")
    first, commit = own_hub.commits["models/org/model"]
    assert address == f"{own_hub.url}/org/model/commit/{own_hub.sha('models/org/model')}"
    assert set(commit) - set(first) == set(publication.files)
    sizes = {name: len(commit[name]) for name in publication.files}
    assert sizes == {name: publication.size(name) for name in publication.files}
    for name, bytes_there in commit.items():
        assert HOME.encode() not in bytes_there and str(folder).encode() not in bytes_there, name
    publish(collect(folder, "org/model"), "org/model")
    assert len(own_hub.commits["models/org/model"]) == 2, "an unchanged folder makes no commit"


def test_weights_of_an_earlier_model_are_taken_away_in_the_same_commit(own_hub, folder):
    own_hub.create("models/org/model")
    shard = "model-00001-of-00002.safetensors"
    own_hub.commits["models/org/model"][0] |= {
        shard: b"old",
        "model.safetensors.index.json": b"{}",
        "notes.md": b"theirs",
    }
    publish(collect(folder, "org/model"), "org/model")
    assert len(own_hub.commits["models/org/model"]) == 2
    files = own_hub.files("models/org/model")
    assert "notes.md" in files and not {shard, "model.safetensors.index.json"} & set(files)


def test_a_private_repository_is_private_from_the_start(own_hub, folder):
    publish(collect(folder, "org/model"), "org/model", private=True)
    assert own_hub.private == {"models/org/model"}
    publish(collect(folder, "org/open"), "org/open")
    assert own_hub.private == {"models/org/model"}
    with pytest.raises(InputError, match="org/open is there already and public: make it private in its settings"):
        publish(collect(folder, "org/open"), "org/open", private=True)
    assert len(own_hub.commits["models/org/open"]) == 2


def test_a_revision_is_a_branch_that_is_made_where_missing(own_hub, folder):
    for _ in range(2):
        publish(collect(folder, "org/model"), "org/model", revision="v2")
    assert own_hub.branches["models/org/model"] == {"main": 0, "v2": 1}
    assert "model.safetensors" in own_hub.files("models/org/model", "v2")
    assert set(own_hub.files("models/org/model")) == {".gitattributes"}
    own_hub.tags["models/org/model"]["v1.0"] = 1
    for revision, message in (("v1.0", "v1.0 is a tag of org/model"), ("0" * 40, "is a commit or reference")):
        with pytest.raises(InputError, match=message):
            publish(collect(folder, "org/model"), "org/model", revision=revision)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("org/model", {"HF_TOKEN": "", "HF_TOKEN_PATH": "nowhere"}, "; log in with `hf auth login`, or set HF_TOKEN"),
        ("org/model", {"HF_TOKEN": "hf_wrong"}, "; the token is not valid: log in with `hf auth login`"),
        ("org/model", {"HF_TOKEN": STRANGER}, "; the token may not write there: take one with write access"),
        ("org/taken", {"HF_TOKEN": STRANGER}, "did not take it (403 Forbidden"),
        ("org/gated", {"HF_TOKEN": STRANGER}, "did not take it (403 Forbidden"),
        ("org/hidden", {"HF_TOKEN": STRANGER}, "; the token may not write there: take one with write access"),
        ("org/model", {"ENDPOINT": "http://127.0.0.1:1"}, "; the Hub cannot be reached, or broke off: look at the ne"),
        ("org/model", {"HF_HUB_OFFLINE": True}, "; unset HF_HUB_OFFLINE"),
        ("org/model", {"fail": ("/api/whoami-v2", "500")}, "cannot be written to (Server error '500"),
        ("org/model", {"fail": ("/api/repos/create", "503")}, "; the Hub is out of order: try again later"),
        ("org/model", {"fail": ("/commit/main", "500")}, "; the Hub is out of order: try again later"),
        ("org/model", {"fail": ("/commit/main", "404")}, "did not take it (Client error '404"),
        ("org/model", {"fail": ("/commit/main", "429")}, "; too many requests: try again later"),
        ("org/mo del", {}, "; name it ORGANIZATION/NAME"),
        ("model", {}, "a repository is named ORGANIZATION/NAME, got 'model'"),
    ],
)
def test_every_refusal_is_one_line_that_says_what_to_do(own_hub, monkeypatch, folder, name, changed, message):
    for there in ("taken", "gated", "hidden"):
        own_hub.create(f"models/org/{there}")
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
        publish(collect(folder, name), name)
    assert "\n" not in str(error.value) and name in str(error.value)
    assert all(len(commits) == 1 for commits in own_hub.commits.values()), "half a commit"


# The script ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def publish_script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "model_cards")
    return runpy.run_path(str(ROOT / "model_cards" / "publish.py"))["main"]


def test_a_dry_run_lists_what_then_goes(own_hub, folder, publish_script, capsys):
    facts = ROOT / "model_cards" / "facts" / "act-vitb-modelnet40.yaml"
    words = [str(folder), "org/act", "--private", "--revision", "v2", "--facts", str(facts)]
    publish_script([*words, "--dry_run"])
    dry = capsys.readouterr().out.splitlines()
    assert own_hub.requests == []
    listed = {line.split()[0]: line.split()[1].replace(",", "") for line in dry[: len(published_of(folder))]}
    assert dry[-1] == "dry run: nothing was sent; without --dry_run it goes to org/act (private), branch v2"
    publish_script(words)
    real = capsys.readouterr().out.splitlines()
    assert real[-1].startswith(f"published as {own_hub.url}/org/act/commit/")
    assert real[:-1] == dry[:-1]
    files = own_hub.files("models/org/act", "v2")
    assert {name: str(len(files[name])) for name in listed} == listed and set(listed) == published_of(folder)
    assert own_hub.private == {"models/org/act"}
    card = ModelCard(files["README.md"].decode())
    assert 'from_pretrained("org/act")' in card.text and "Nothing is published" not in card.text
    assert "| accuracy on test, % | 75 | 93.70 [1] |  |" in card.text
    (folder.parent / "weights.safetensors").write_bytes(files["model.safetensors"])
    assert load_file(folder.parent / "weights.safetensors").keys() == load_file(folder / "model.safetensors").keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no_such_folder", "org/x"], "no_such_folder: there is no such folder"),
        (["{folder}", "org/x y"], "org/x y: no name for a repository"),
        (["{folder}", "org/x", "--facts", "no.yaml"], "no.yaml: "),
    ],
)
def test_a_wrong_word_to_the_script_is_an_error_of_the_user(folder, publish_script, words, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}") as error:
        publish_script([word.replace("{folder}", str(folder)) for word in words])
    assert "\n" not in str(error.value)


def test_an_error_of_the_script_is_one_line(folder, run_python):
    process = run_python("model_cards/publish.py", folder, "org/x", returncode=1, environment={"HF_TOKEN": ""})
    (line,) = process.stderr.strip().splitlines()
    assert line.startswith("publish.py: error: org/x cannot be written to (Token is required")
