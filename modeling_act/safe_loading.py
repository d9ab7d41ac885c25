"""What is checked before weights are loaded that somebody else may have written; both kinds of models inherit it.

Nothing is unpickled, no weights outside the folder or repository are read, and a model has to fit what its files hold
before it gets memory. What transformers does before it asks a class of ours is not covered: docs/security.md.
"""

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import cached_file, is_peft_available
from transformers.utils.hub import has_file

try:
    from transformers.utils.hub import resolve_revision
except ImportError:  # an older transformers asks the Hub anew with each file
    resolve_revision = None

from .errors import InputError

SINGLE_FILE, INDEX, PICKLES = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
PROCESSOR_FILE = "preprocessor_config.json"
LARGEST_INDEX = 2**26  # bytes
# A head may be new, and a small student get a large one: parameters that a model may always have beyond its weights.
MOST_NEW_PARAMETERS = 2**26
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder")

Find = Callable[[str], str | None]


class ACTSafeLoading:
    """`from_pretrained` of safetensors alone, and of no more than they hold. Stands before `PreTrainedModel`."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args, use_safetensors=True, **kwargs
    ):
        """As `PreTrainedModel.from_pretrained`, after `docs/security.md`: `use_safetensors` cannot be turned off."""
        if use_safetensors is False or kwargs.get("gguf_file"):
            raise InputError(
                "ACT models are loaded from safetensors alone; leave out `use_safetensors` and `gguf_file`"
            )
        if pretrained_model_name_or_path is not None:
            if resolve_revision is not None:  # what is checked and what is loaded are then of one commit
                known = {name: kwargs[name] for name in ("token", "local_files_only", "cache_dir") if name in kwargs}
                kwargs["revision"] = resolve_revision(pretrained_model_name_or_path, kwargs.get("revision"), **known)
            check_files(os.fspath(pretrained_model_name_or_path), kwargs)
        try:
            loaded = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, use_safetensors=True, **kwargs
            )
        except SafetensorError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{pretrained_model_name_or_path}: cannot be read as safetensors: {reason}") from error
        if pretrained_model_name_or_path is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            with suppress(InputError):  # whoever needs the processor asks again, and is told
                model._processor_file = find_processor(os.fspath(pretrained_model_name_or_path), kwargs)
        return loaded

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        # Here transformers has built the model without memory for its weights, and found their files.
        if state_dict is None:
            check_weights(model, checkpoint_files or [], load_config.sharded_metadata)
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )


def check_files(path: str, arguments: dict) -> None:
    """Which files a load would read, by name and place, before it reads them."""
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if arguments.get(name) is not None}
    missing = {"_raise_exceptions_for_gated_repo": False, "_raise_exceptions_for_missing_entries": False}

    def find(name: str) -> str | None:
        try:
            return cached_file(path, name, **hub, **missing)
        except HTTPError as error:  # of a connection that broke off
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{path}: {name} could not be downloaded whole ({reason}); nothing of it was kept: try again"
            ) from error

    if os.path.isfile(path):
        raise InputError(f"{path}: is a file; give the folder that holds config.json and {SINGLE_FILE}")
    if os.path.isdir(path):
        _check_folder(Path(path), hub.get("subfolder", ""))
    _check_adapter(path, arguments.get("adapter_kwargs") or {}, find)
    variant = arguments.get("variant")
    if find(_with_variant(SINGLE_FILE, variant)) is None:
        index = find(_with_variant(INDEX, variant))
        if index is not None:
            _check_index(Path(index), find if os.path.isdir(path) else None)
        elif any(_there(path, name, hub) for name in (PICKLES, f"{PICKLES}.index.json")):
            raise InputError(
                f"{path}: holds pickled weights ({PICKLES}) and no {SINGLE_FILE}. Reading a pickle can run code, so "
                "it is not loaded; have its author save it as safetensors"
            )


def find_processor(path: str, arguments: dict) -> str | None:
    """Where the processor beside a model's weights lies, or would lie in a folder; `None` if the repository has none.
    It is of the same commit as the weights, and found with the same token, in the same cache."""
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if arguments.get(name) is not None}
    if os.path.isdir(path):
        return os.path.join(path, hub.get("subfolder", ""), PROCESSOR_FILE)
    hub.pop("proxies", None)
    try:
        return hf_hub_download(path, PROCESSOR_FILE, **hub)
    except LocalEntryNotFoundError as error:
        raise InputError(f"{path}: its {PROCESSOR_FILE} is not in the cache, and the Hub cannot be asked") from error
    except EntryNotFoundError:
        return None
    except (HTTPError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: its {PROCESSOR_FILE} cannot be read: {' '.join(str(error).split())[:200]}"
        ) from error


def _there(path: str, name: str, hub: dict) -> bool:
    known = {key: hub[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in hub}
    return has_file(path, os.path.join(hub.get("subfolder", ""), name), **known)


def _with_variant(name: str, variant: str | None) -> str:
    start, _, suffix = name.rpartition(".")
    return f"{start}.{variant}.{suffix}" if variant else name


def _check_folder(folder: Path, subfolder: str) -> None:
    """Links must end inside the folder, or where the Hub's own cache keeps what its snapshots link to."""
    roots = [folder.resolve()]
    if roots[0].parent.name == "snapshots":  # CACHE/models--org--name/snapshots/COMMIT
        roots += [roots[0].parents[1] / "blobs", roots[0].parents[2] / "blobs"]
    for file in (folder / subfolder).glob("*"):
        if file.name.startswith("shard-") and file.suffix == ".safetensors":
            raise InputError(f"{file}: is a part of a distributed checkpoint; consolidate it into {SINGLE_FILE} first")
        if file.suffix in (".json", ".safetensors") and not any(root in file.resolve().parents for root in roots):
            raise InputError(f"{file}: links to {file.resolve()}, outside of its folder; put the file itself there")


def _check_adapter(path: str, adapter_arguments: dict, find: Find) -> None:
    """transformers loads an adapter beside the model, and a pickled one where there is no other."""
    if not is_peft_available():
        return
    source = adapter_arguments.get("_adapter_model_path")  # an Auto class has found one, and perhaps changed `path`
    own = source in (None, path) and find("adapter_config.json") is not None
    if not own and source is None:
        return
    if not own or find("config.json") is None:
        raise InputError(
            f"{source or path}: holds an adapter, which names another model to load; load that, and then the adapter "
            "with `model.load_adapter`"
        )
    if find("adapter_model.safetensors") is None:
        raise InputError(f"{path}: holds an adapter without adapter_model.safetensors; a pickled one is not loaded")


def _check_index(index: Path, find: Find | None) -> None:
    """An index names the files of a sharded checkpoint; `find`, of a folder, tells which are there."""
    try:
        if index.stat().st_size > LARGEST_INDEX:
            raise InputError(f"has more than {LARGEST_INDEX} bytes")
        content = json.loads(index.read_text(encoding="utf-8"))
    except InputError as error:
        raise InputError(f"{index}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{index}: is no JSON: {str(error)[:200]}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(content.get("metadata"), dict):
        raise InputError(f"{index}: must hold a `weight_map` from names of weights to files, and `metadata`")
    for name in dict.fromkeys(map(_as_key, weight_map.values())):
        beside = name.endswith(".safetensors") and name.isprintable() and not set(name) & set("/\\:*?[]")
        if not beside:
            raise InputError(f"{index}: names the file {name[:100]!r}; it must be a safetensors file beside it")
        if find is not None and find(name) is None:
            raise InputError(f"{index}: names the file {name[:100]!r}, which is not there")


def _as_key(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def check_weights(model: PreTrainedModel, files: list[str], sharded: dict | None) -> None:
    """Holds a model that has no memory yet against the headers of its weight files."""
    held = {}
    for file in files:
        for key, count in read_sizes(file).items():
            if key in held:
                raise InputError(f"{file}: holds {key[:100]!r}, which another file of the checkpoint holds too")
            held[key] = count
    if absent := [key for key in (sharded or {}).get("all_checkpoint_keys", []) if key not in held]:
        raise InputError(
            f"{Path(files[0]).parent}: the index names {absent[0][:100]!r}, which none of its files holds"
        )
    wanted, there = sum(parameter.numel() for parameter in model.parameters()), sum(held.values())
    if wanted - there > max(MOST_NEW_PARAMETERS, there):
        raise InputError(
            f"{Path(files[0]).parent}: config.json describes a model of {wanted:,} parameters and its weights hold "
            f"{there:,} numbers; they do not belong together"
        )


def read_sizes(file: str) -> dict[str, int]:
    """How many numbers each tensor of a safetensors file holds, which its header says and safetensors verifies."""
    if not str(file).endswith(".safetensors"):
        raise InputError(f"{file}: is no safetensors file, and no other is loaded")
    with safe_open(file, framework="pt") as content:
        return {key: math.prod(content.get_slice(key).get_shape()) for key in content.keys()}  # noqa: SIM118


__all__ = ["HUB_ARGUMENTS", "PROCESSOR_FILE", "ACTSafeLoading", "find_processor"]
