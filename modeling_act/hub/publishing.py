"""What of a model's folder goes to the Hub, and how: one allowlist, one check for what is private, one commit.

`collect` reads the folder and needs no network, `publish` sends what it found. The training scripts and
`model_cards/publish.py` use both; nothing else here uploads a model.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResultEntry,
    HfApi,
    eval_result_entries_to_yaml,
    get_token,
    parse_eval_result_entries,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from ..errors import InputError

try:
    import yaml
except ImportError as error:  # it comes with huggingface_hub
    raise ImportError("publishing needs PyYAML: pip install pyyaml") from error

INDEX = "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|" + re.escape(INDEX))
TEXTS = ("README.md", "config.json", "preprocessor_config.json", "recipe.yaml", "metrics.json", "report.html")
# What the sets' papers judge by; the first that a run measured is its result.
JUDGED_BY = ("instance_miou", "miou", "map_25", "accuracy")
PICTURES, RESULTS = "pictures/*.png", ".eval_results/*.yaml"
TOKEN = re.compile(r"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{20,}")
# In running text a path of this machine is known by where it begins. Not part of an address or of a longer word.
PLACES = "home|root|Users|tmp|var|private|mnt|media|data|datasets|scratch|work|workspace|opt|srv|content|kaggle"
MACHINE_PATH = re.compile(
    rf"(?<![\w./~$}}<>:+=-])(/(?:{PLACES})/[^\s\"'`<>)\\]+|[A-Za-z]:\\{{1,2}}[A-Za-z_][^\s\"'`<>]*)"
)
USAGE = re.compile(r'(?<=from_pretrained\(")[^"/]+(?="\))')  # a Hub id has a slash: this is a folder here
ADVICE = {
    400: "the Hub refused what was sent",
    401: "the token is not valid: log in with `hf auth login`, or set HF_TOKEN to a token with write access",
    402: "the account's plan does not cover it",
    403: "the token may not write there: take one with write access, or a name under which you may write",
    404: "there is no such repository, or it is private and this token does not open it",
    409: "something else is changing the repository: try again",
    429: "too many requests: try again later",
}  # fmt: skip


@dataclass
class Publication:
    """Files by their names on the Hub; bytes where something local was taken out of them."""

    files: dict[str, Path | bytes]
    notes: list[str]
    left_out: list[str]

    def size(self, name: str) -> int:
        file = self.files[name]
        return len(file) if isinstance(file, bytes) else file.stat().st_size

    def __str__(self) -> str:
        """What would go, with sizes, and what stays."""
        width = max(map(len, self.files))
        lines = [f"{name:<{width}} {self.size(name):>15,}" for name in sorted(self.files)]
        lines.append(f"{f'{len(self.files)} files':<{width}} {sum(map(self.size, self.files)):>15,} bytes")
        if self.left_out:
            lines.append(f"stays here: {', '.join(self.left_out)}")
        return "\n".join(lines + self.notes)


# The folder ----------------------------------------------------------------------------------------------------------


def collect(folder: str | Path, name: str | None = None, card: str | None = None) -> Publication:
    """What of `folder` is published; `card` in place of its README.md, whose usage then loads `name`.

    Refuses a folder without a whole model or a card, and text that holds a token or a path of this machine.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    files: dict[str, Path | bytes] = {path.name: path for path in _weights(folder)}
    files |= {text: folder / text for text in TEXTS if (folder / text).is_file()}
    if "config.json" not in files:
        raise InputError(f"{folder} has no config.json: it is no folder of `save_pretrained`")
    if card is None:
        if "README.md" not in files:
            raise InputError(f"{folder} has no README.md: a model is published with a card; write one there")
        card = _text(folder / "README.md")
    files |= {path.name: path for path in _code(folder)}
    for pattern in (PICTURES, RESULTS):
        files |= {path.relative_to(folder).as_posix(): path for path in folder.glob(pattern)}
    publication = Publication(files, [], [])
    shown = card if name is None else USAGE.sub(name, card)
    if not (folder / "README.md").is_file() or shown != _text(folder / "README.md"):
        files["README.md"] = shown.encode()
    private = _take_out_local_paths(publication) | {str(folder.resolve()), str(Path.home())}
    _check_eval_results(folder, publication)
    for file in sorted(files):
        if not file.endswith((".safetensors", ".png")):
            _check_text(file, _text(files[file]), {path for path in private if path.count(os.sep) > 1})
    published = {file.partition("/")[0] for file in files}
    publication.left_out = sorted(
        path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name not in published
    )
    return publication


def _text(file: Path | bytes) -> str:
    try:
        return file.decode() if isinstance(file, bytes) else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text") from error


def _parsed(name: str, file: Path | bytes, kind: type = dict):
    try:
        values = json.loads(_text(file)) if name.endswith(".json") else yaml.safe_load(_text(file))
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{name}: damaged ({one_line(error)})") from error
    if not isinstance(values, kind):
        raise InputError(f"{name}: damaged (it holds no {kind.__name__})")
    return values


def _weights(folder: Path) -> list[Path]:
    """All files of the weights, each of which must be whole."""
    if (folder / "model.safetensors").is_file():
        found = [folder / "model.safetensors"]
    elif (folder / INDEX).is_file():
        shards = sorted(set(_parsed(INDEX, folder / INDEX)["weight_map"].values()))
        found = [folder / INDEX, *(folder / shard for shard in shards)]
    else:
        raise InputError(f"{folder} has no model.safetensors: it holds no finished model")
    for path in found:
        if not WEIGHTS.fullmatch(path.name) or not path.is_file():
            raise InputError(f"{path}: the index names it, and it is no file of weights here")
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="np"):
                    pass
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: damaged or cut short ({one_line(error)}); save the model again") from error
    return found


def _code(folder: Path) -> list[Path]:
    """The modules that the configurations name, and what these import from beside them."""
    wanted = []
    for name in ("config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            values = _parsed(name, folder / name)
            wanted += list(values.get("auto_map", {}).values())
            wanted += [pipeline["impl"] for pipeline in values.get("custom_pipelines", {}).values()]
    found = set()
    for module in sorted(
        {target.split(".")[0] for target in wanted if "--" not in target}
    ):  # code of another repository
        if not module.isidentifier():
            raise InputError(f"{folder}: a configuration names code as {module!r}, expected FILE.CLASS")
        path = folder / f"{module}.py"
        try:
            found |= {path, *map(Path, get_relative_import_files(path))}
        except OSError as error:
            raise InputError(f"{error.filename}: its configuration or code needs it; save the model again") from error
    return sorted(found)


# What is private -----------------------------------------------------------------------------------------------------


def without_local_path(value: str) -> str:
    """Of a file or folder here its name alone; any other text as it is."""
    if re.match(r"[A-Za-z]:[\\/]", value):
        return PureWindowsPath(value).name
    if os.path.isabs(value) or os.path.exists(value) or value.startswith("~/"):
        return os.path.basename(os.path.abspath(value))
    return value


def _take_out_local_paths(publication: Publication) -> set[str]:
    """Puts names in place of the paths that are values in the files of settings and figures; returns the paths."""
    found = set()

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [clean(entry) for entry in value]
        if not isinstance(value, str) or (name := without_local_path(value)) == value:
            return value
        found.add(value)
        return name

    for name in ("config.json", "preprocessor_config.json", "recipe.yaml", "metrics.json"):
        if name in publication.files:
            values = _parsed(name, publication.files[name])
            if (cleaned := clean(values)) != values:
                as_json = name.endswith(".json")
                text = json.dumps(cleaned, indent=1) if as_json else yaml.safe_dump(cleaned, sort_keys=False)
                publication.files[name] = text.encode()
                publication.notes.append(f"{name}: files and folders of this machine go by their names alone")
    return {value for value in found if os.path.isabs(value)}


def _check_text(name: str, text: str, private: set[str]) -> None:
    token = get_token()
    for number, line in enumerate(text.splitlines(), start=1):
        if TOKEN.search(line) or (token and token in line):
            raise InputError(f"{name}, line {number}: holds what looks like a Hub token; take it out, and revoke it")
        match = MACHINE_PATH.search(line)
        if path := match[1] if match else next((path for path in private if path in line), None):
            raise InputError(f"{name}, line {number}: holds {path}, a path of this machine; take it out")


# Results of a test split ---------------------------------------------------------------------------------------------


def write_eval_results(folder: Path) -> Path | None:
    """What a finished run reached on its test split, for the Hub's page of the set; None where it is no set there."""
    recipe, metrics = (_parsed(name, folder / name) for name in ("recipe.yaml", "metrics.json"))
    dataset, test = recipe["dataset_name"], metrics["test"]
    figure = next((name for name in JUDGED_BY if name in test), None)
    if figure is None or dataset.count("/") != 1 or os.path.exists(dataset):
        return None
    notes = f"{figure} of the split {recipe['test_split']}, read once; recipe.yaml beside the model repeats the run"
    task = recipe["dataset_config_name"] or recipe["test_split"]
    entry = EvalResultEntry(dataset_id=dataset, task_id=task, value=test[figure], notes=notes)
    path = folder / ".eval_results" / f"{dataset.replace('/', '--')}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
    return path


def _check_eval_results(folder: Path, publication: Publication) -> None:
    """Results must be figures of this folder's test split."""
    names = [name for name in publication.files if name.startswith(".eval_results/")]
    if not names:
        publication.notes.append("no .eval_results: the run read no test split of a set on the Hub")
        return
    metrics = _parsed("metrics.json", folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    measured = list((metrics.get("test") or {}).values())
    for name in names:
        try:
            entries = parse_eval_result_entries(_parsed(name, publication.files[name], list))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{name}: not a list of evaluation results ({one_line(error)})") from error
        if invented := [entry.value for entry in entries if entry.value not in measured]:
            raise InputError(f"{name}: {invented[0]} is no test figure in metrics.json; remove the file")


# The Hub -------------------------------------------------------------------------------------------------------------


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _advice(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError):
        return "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
    if isinstance(error, OfflineModeIsEnabled):
        return "unset HF_HUB_OFFLINE"
    if isinstance(error, HFValidationError):
        return "name it ORGANIZATION/NAME"
    if isinstance(error, GatedRepoError):
        return "the repository is gated: ask for access on its page, and log in"
    if isinstance(error, RepositoryNotFoundError):
        return ADVICE[404]
    if status is not None and status >= 500:
        return "the Hub is out of order: try again later"
    if isinstance(error, HTTPError) and status is None:
        return "the Hub cannot be reached, or broke off: look at the network and HF_ENDPOINT, and try again"
    return ADVICE.get(status, "look at the message, and try again")


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Any failure of the Hub as one line."""
    try:
        yield
    except InputError:
        raise
    except RuntimeError as error:  # how the client reports a large file that did not get through, with its cause
        cause = error.__cause__ or error
        raise InputError(f"{what} ({one_line(error)} {one_line(cause)}); {_advice(cause)}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise InputError(f"{what} ({one_line(error)}); {_advice(error)}") from error


def prepare_repository(name: str, private: bool = False, revision: str | None = None) -> None:
    """Makes the repository, and the branch `revision`, where missing. A Hub that takes nothing says so here."""
    with _explaining(f"{name} cannot be written to"):
        if name.count("/") != 1:
            raise InputError(f"a repository is named ORGANIZATION/NAME, got {name!r}")
        validate_repo_id(name)
        if revision and re.fullmatch(r"[0-9a-f]{40}|refs/.*", revision):
            raise InputError(f"{revision} is a commit or reference: what is published goes to a branch")
        api = HfApi()
        api.whoami()
        api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise InputError(f"{name} is there already and public: make it private in its settings first")
        if revision and revision != "main":
            references = api.list_repo_refs(name)
            if revision in [tag.name for tag in references.tags]:
                raise InputError(f"{revision} is a tag of {name}: what is published goes to a branch")
            if revision not in [branch.name for branch in references.branches]:
                api.create_branch(name, branch=revision, exist_ok=True)


def publish(publication: Publication, name: str, private: bool = False, revision: str | None = None) -> str:
    """Sends it in one commit, which takes away weights of another model; returns the commit's address."""
    prepare_repository(name, private, revision)
    with _explaining(f"{name} did not take it"):
        api = HfApi()
        there = api.list_repo_files(name, revision=revision)
        operations = [CommitOperationAdd(path, file) for path, file in sorted(publication.files.items())]
        operations += [
            CommitOperationDelete(path) for path in there if WEIGHTS.fullmatch(path) and path not in publication.files
        ]
        return api.create_commit(name, operations, commit_message="Upload model", revision=revision).commit_url
