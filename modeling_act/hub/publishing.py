"""Publish the folder of a finished model on the Hub: one list of files, one search for private text, one commit.
The training scripts (`--push_to_hub`) and `model_cards/publish.py` use it; nothing else uploads a model."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PureWindowsPath

import huggingface_hub as hub
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from ..errors import InputError
from .load_model import one_line

try:
    import yaml  # a dependency of huggingface_hub
except ImportError as error:
    raise ImportError("publishing needs PyYAML: pip install pyyaml") from error

# Published beside the weights and the modules that the configurations name. Everything else stays on this machine.
SETTINGS = ("config.json", "preprocessor_config.json", "recipe.yaml", "metrics.json")
ALLOWED = (*SETTINGS, "README.md", "NOTICE", "report.html", "pictures/*.png", ".eval_results/*.yaml")
INDEX = "model.safetensors.index.json"
MAIN_METRICS = ("instance_miou", "miou", "map_25", "accuracy")  # the first that a run measured is its result
PACKAGE = Path(__file__).parents[1]
TOKEN = re.compile(r"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{20,}")
# Absolute paths by their first folder, outside URLs and longer words; and Windows paths.
ROOTS = "home|root|Users|tmp|var|private|mnt|media|data|datasets|scratch|work|workspace|opt|srv|content|kaggle"
LOCAL_PATH = re.compile(
    rf"(?<![\w./~$}}<>:+=-])(?:/(?:{ROOTS})/[^\s\"'`<>)\\]+|[A-Za-z]:\\{{1,2}}[A-Za-z_][^\s\"'`<>]*)"
)


def make_card(
    title: str,
    text: str,
    usage: str,
    metrics: dict,
    measured: str,
    test: dict | None = None,
    license: str | None = None,
) -> str:
    """Render a model card with the numbers of metrics.json; `measured` says which weights `metrics` belong to."""
    data = hub.ModelCardData(library_name="transformers", license=license, tags=["point-cloud", "act"])
    fields = {"title": title, "text": text, "usage": usage, "metrics": metrics, "measured": measured, "test": test}
    return str(hub.ModelCard.from_template(data, str(Path(__file__).with_name("card_template.md")), **fields))


def check_folder(folder: str | Path, repo_id: str | None = None) -> dict[str, Path | bytes]:
    """Collect the files to publish by their names on the Hub, as bytes those that change: local paths in settings
    become file names, and the usage in the card loads `repo_id`. Incomplete folders, tokens and other local paths are
    refused."""
    folder = Path(folder)
    for name in ("config.json", "README.md"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: publish a folder of `save_pretrained` with a model card")
    paths = [*_weights(folder), *_modules(folder), *(path for pattern in ALLOWED for path in folder.glob(pattern))]
    own = {path for path in paths if folder in path.parents}
    files = {path.relative_to(folder).as_posix() if path in own else path.name: path for path in sorted(paths)}
    for name in filter(files.get, SETTINGS):
        values = _read(folder / name)
        if (public := without_local_paths(values)) != values:
            text = json.dumps(public, indent=1) if name.endswith(".json") else yaml.safe_dump(public, sort_keys=False)
            files[name] = text.encode()
    if repo_id:  # a Hub id has a slash, so a name without one is that of a local folder
        card = (folder / "README.md").read_text(encoding="utf-8")
        files["README.md"] = re.sub(r'from_pretrained\("[^"/]+"\)', f'from_pretrained("{repo_id}")', card).encode()
    for name, file in files.items():
        if not name.endswith((".safetensors", ".png")):
            _check_private(name, file if isinstance(file, bytes) else file.read_bytes(), folder)
    return files


def publish(folder: str | Path, repo_id: str, private: bool = False, revision: str | None = None) -> str:
    """Check a folder, upload it in one commit and return the commit's address. Other weights there are deleted."""
    files = check_folder(folder, repo_id)
    create_repository(repo_id, private, revision)
    with _hub_errors(f"the upload to {repo_id} failed"):
        api = hub.HfApi()
        online = api.list_repo_files(repo_id, revision=revision)
        stale = [name for name in online if fnmatch(name, "model*.safetensors*") and name not in files]
        # Not `upload_folder`: with hf_xet it splits a commit that fails, and half a model could stay.
        operations = [hub.CommitOperationAdd(name, file) for name, file in files.items()]
        operations += [hub.CommitOperationDelete(name) for name in stale]
        return api.create_commit(repo_id, operations, commit_message="Upload model", revision=revision).commit_url


def create_repository(repo_id: str, private: bool = False, revision: str | None = None) -> None:
    """Create the repository and the branch `revision` where missing; raises InputError if this user may not."""
    if repo_id.count("/") != 1:
        raise InputError(f"a repository is named ORGANIZATION/NAME, got {repo_id!r}")
    with _hub_errors(f"{repo_id} cannot be written to"):
        api = hub.HfApi()
        api.whoami()
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise InputError(f"{repo_id} exists and is public: make it private in its settings first")
        if revision and revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True)


def write_eval_results(folder: Path) -> Path | None:
    """Write the main test metric of a run as an evaluation result for the Hub, if the dataset is one on the Hub."""
    recipe, test = _read(folder / "recipe.yaml"), _read(folder / "metrics.json")["test"]
    dataset = recipe["dataset_name"]
    metric = next((name for name in MAIN_METRICS if name in test), None)
    if metric is None or dataset.count("/") != 1 or os.path.exists(dataset):
        return None
    task = recipe["dataset_config_name"] or recipe["test_split"]
    notes = f"{metric} on the split {recipe['test_split']}, read once; recipe.yaml repeats the run"
    entry = hub.EvalResultEntry(dataset_id=dataset, task_id=task, value=test[metric], notes=notes)
    path = folder / ".eval_results" / f"{dataset.replace('/', '--')}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(hub.eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
    return path


def without_local_paths(value):
    """Reduce every local path in settings, or in one string, to its file name; other values stay as they are."""
    if isinstance(value, dict):
        return {key: without_local_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_local_paths(entry) for entry in value]
    if isinstance(value, str) and re.match(r"[A-Za-z]:[\\/]", value):
        return PureWindowsPath(value).name
    if isinstance(value, str) and (value.startswith("~/") or os.path.isabs(value) or os.path.exists(value)):
        return os.path.basename(os.path.abspath(value))
    return value


def _weights(folder: Path) -> list[Path]:
    """List the weight files of a folder: one file, or an index and its shards, all of them whole."""
    index, weights = folder / INDEX, [folder / "model.safetensors"]
    has_shards = index.is_file() and not weights[0].is_file()
    if has_shards:
        weights = [folder / Path(name).name for name in set(_read(index)["weight_map"].values())]
    for path in weights:
        try:
            safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged or missing weights ({one_line(error)})") from error
    return [*weights, index] if has_shards else weights


def _modules(folder: Path) -> set[Path]:
    """List the modules that the configurations name for `trust_remote_code`, and those that they import."""
    targets = []
    for path in filter(Path.is_file, (folder / "config.json", folder / "preprocessor_config.json")):
        values = _read(path)
        targets += values.get("auto_map", {}).values()
        targets += [pipeline["impl"] for pipeline in values.get("custom_pipelines", {}).values()]
    # `module.Class` lies in this folder, `ORGANIZATION/NAME--module.Class` in another repository.
    names = {f"{Path(target).stem}.py" for target in targets if "--" not in target}
    # A model of pretrained/ has no copy of the package's own.
    modules = {folder / name if (folder / name).is_file() else PACKAGE / name for name in names}
    try:
        return modules.union(*(map(Path, get_relative_import_files(path)) for path in modules))
    except OSError as error:
        raise InputError(f"{error.filename}: the model needs this module; save the model again") from error


def _read(path: Path):
    """Parse a JSON or YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)})") from error


def _check_private(name: str, content: bytes, folder: Path) -> None:
    """Raise InputError with the file and line of a token or a local path."""
    token = hub.get_token()
    own_paths = [path for path in (str(folder.resolve()), str(Path.home())) if path.count(os.sep) > 1]
    for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        if TOKEN.search(line) or (token and token in line):
            raise InputError(f"{name}, line {number}: holds what looks like a Hub token; remove and revoke it")
        if paths := LOCAL_PATH.findall(line) + [path for path in own_paths if path in line]:
            raise InputError(f"{name}, line {number}: holds the local path {paths[0]}; remove it")


@contextmanager
def _hub_errors(problem: str) -> Iterator[None]:
    """Turn any error of the client into one line. The client says what to do, except where the Hub does not answer."""
    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of a large file
        response = getattr(cause, "response", None)
        failed = isinstance(cause, HTTPError) and (response is None or response.status_code >= 500)
        advice = "; the Hub is out of reach or out of order: check the network and HF_ENDPOINT, or try again later"
        raise InputError(f"{problem} ({one_line(cause)}){advice * failed}") from error
