"""Flags and recipes: a recipe is a YAML file of flags, flags on the command line override it, unknown ones raise."""

import argparse
import difflib
import itertools
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TypeVar

import yaml
from transformers import HfArgumentParser

from modeling_act.errors import InputError
from modeling_act.processing_act import SAMPLINGS, UNITS, UP_AXES


@dataclass
class TrainingArguments:
    """What every training script takes."""

    dataset_name: str = field(metadata={"help": "everyday_shapes, a Hub id, a folder, or a parquet, npz or h5 file"})
    output_dir: str = field(metadata={"help": "where model, checkpoints, curves and report go"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "configuration of a set on the Hub"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    validation_split: str | None = field(
        default=None, metadata={"help": "split to validate on; none: a part of train"}
    )
    validation_share: float = field(default=0.1, metadata={"help": "part of train held out where no split is named"})
    max_train_samples: int | None = field(default=None, metadata={"help": "use only the first rows"})
    streaming: bool = field(
        default=False, metadata={"help": "read parquet shards as training goes, never all of them"}
    )
    skip_bad: bool = field(default=False, metadata={"help": "leave out rows that cannot be trained on, and list them"})
    num_points: int = field(default=1024, metadata={"help": "points taken from each cloud each time"})
    fixed_points: bool = field(default=False, metadata={"help": "take the same points of a cloud in every epoch"})
    point_sampling: str = field(
        default="random", metadata={"help": "random, or farthest: a random subset of points far from one another"}
    )
    normalize: bool = field(default=True, metadata={"help": "center each cloud and scale it into the unit sphere"})
    already_normalized: bool = field(
        default=False,
        metadata={"help": "the set lies in the unit sphere; clouds of others must be put there"},
    )
    up_axis: str | None = field(default=None, metadata={"help": "y or z: what is up in this set, for users"})
    unit: str | None = field(
        default=None, metadata={"help": "m, cm, mm ...: the unit of clouds that are not normalized, likewise"}
    )
    augmentation: list[str] = field(default_factory=list, metadata={"help": "any of scale_shift, rotate_y, rotate_z"})
    model: str | None = field(default=None, metadata={"help": "fields of the model's configuration, as {name: value}"})

    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 300
    max_train_steps: int | None = field(default=None, metadata={"help": "overrides num_train_epochs"})
    learning_rate: float = 5e-4
    min_learning_rate: float = 1e-7
    weight_decay: float = 5e-4
    warmup_epochs: float = field(default=10, metadata={"help": "epochs of linear warm-up from 1e-6"})
    lr_per_epoch: bool = field(
        default=True, metadata={"help": "change the learning rate once an epoch, else each step"}
    )
    max_grad_norm: float | None = field(default=None, metadata={"help": "clip the gradient's norm to this"})
    ema_decay: float | None = field(default=None, metadata={"help": "also keep an exponential average of the weights"})
    final_weights: str = field(default="last", metadata={"help": "what output_dir holds: last, best or ema"})

    mixed_precision: str | None = field(
        default=None, metadata={"help": "no or bf16; none: what the launcher was given"}
    )
    gradient_checkpointing: bool = False
    sync_batch_norm: bool = field(default=False, metadata={"help": "batch statistics over all processes"})
    compile: bool = field(default=False, metadata={"help": "torch.compile the model"})
    cpu: bool = field(default=False, metadata={"help": "ignore accelerators"})
    dataloader_num_workers: int = 0
    seed: int = 0

    checkpointing_steps: str = field(default="epoch", metadata={"help": "a number of steps, or epoch"})
    checkpoints_total_limit: int = field(default=2, metadata={"help": "complete checkpoints to keep"})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "latest, or a checkpoint's folder"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "delete the checkpoints of an earlier run"})
    logging_steps: int = 10
    validation_epochs: float = field(default=1, metadata={"help": "epochs between validations"})
    picture_epochs: float = field(default=10, metadata={"help": "epochs between pictures"})
    report_to: str = field(default="none", metadata={"help": "none, tensorboard, wandb, trackio or all"})
    push_to_hub: bool = field(default=False, metadata={"help": "upload the finished model"})
    license: str | None = field(
        default=None, metadata={"help": "of the weights, for the card: it follows from data, backbone and student"}
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "where to, as organization/name"})
    hub_private: bool = field(default=False, metadata={"help": "make that repository a private one"})
    hub_revision: str | None = field(default=None, metadata={"help": "branch to upload to, made where missing"})

    def check(self) -> None:
        """Rules that bound a value; what depends on data or model is checked where that is known."""
        for name in (
            "num_points", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "num_train_epochs", "max_train_steps", "learning_rate", "logging_steps", "checkpoints_total_limit",
            "validation_epochs", "picture_epochs", "max_train_samples", "max_grad_norm",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"--{name} must be positive, got {value}")
        for name in ("weight_decay", "warmup_epochs", "min_learning_rate", "dataloader_num_workers", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--{name} must not be negative, got {getattr(self, name)}")
        self.mixed_precision = self.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        check_choice("--mixed_precision", self.mixed_precision, ("no", "bf16"))
        check_choice("--point_sampling", self.point_sampling, SAMPLINGS)
        self.up_axis, self.unit = self.up_axis or None, self.unit or None
        check_choice("--up_axis", self.up_axis, (None, *UP_AXES))
        check_choice("--unit", self.unit, (None, *UNITS))
        if self.already_normalized and self.normalize:
            raise InputError("--already_normalized goes with --normalize false, which leaves the clouds as they are")
        check_choice("--final_weights", self.final_weights, ("last", "best", "ema"))
        check_choice("--report_to", self.report_to, ("none", "tensorboard", "wandb", "trackio", "all"))
        if self.checkpointing_steps != "epoch" and not (
            self.checkpointing_steps.isdecimal() and int(self.checkpointing_steps) > 0
        ):
            raise InputError(
                f"--checkpointing_steps must be a number of steps or epoch, got {self.checkpointing_steps!r}"
            )
        if not 0 < self.validation_share < 1 and self.validation_split is None:
            raise InputError(f"--validation_share must lie between 0 and 1, got {self.validation_share}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"--ema_decay must lie between 0 and 1, got {self.ema_decay}")
        if self.final_weights == "ema" and self.ema_decay is None:
            raise InputError("--final_weights ema needs --ema_decay, such as 0.999")
        if self.push_to_hub and not self.hub_model_id:
            raise InputError("--push_to_hub needs --hub_model_id ORGANIZATION/NAME")
        if not self.push_to_hub and (self.hub_private or self.hub_revision):
            raise InputError("--hub_private and --hub_revision say how to --push_to_hub, which is not asked for")
        if self.streaming and self.skip_bad:
            raise InputError(
                "--streaming checks rows while it reads them and cannot skip; prepare the set without them"
            )
        if self.streaming and self.max_train_samples is not None:
            raise InputError("--max_train_samples cannot be combined with --streaming, which reads all shards")
        if self.streaming and self.validation_split is None:
            raise InputError("--streaming needs --validation_split: rows cannot be held out of a stream")


Arguments = TypeVar("Arguments", bound=TrainingArguments)


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise InputError(message)

    def add_argument(self, *names, **options):
        if options.get("nargs") == "+":  # `--augmentation` without a value empties the list of a recipe
            options["nargs"] = "*"
        return super().add_argument(*names, **options)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain words, as users mean them: 1e-3 is a number; yes, no, on and off are words."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), "-+.0123456789"
)


def parse_arguments(kind: type[Arguments], description: str, arguments: list[str]) -> Arguments:
    """The flags in `arguments`, over the recipe that `--config` names, over the defaults."""
    parser = _Parser(kind, description=description, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", metavar="recipe.yaml", help="flags from a file; those given here override it")
    known = {entry.name: entry for entry in fields(kind)}
    first = _Parser([], add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    recipe = first.parse_known_args(arguments)[0].config
    from_recipe = _as_flags(_read_recipe(Path(recipe), known)) if recipe else []
    namespace, rest = parser.parse_known_args([*from_recipe, *arguments])
    for word in rest:
        if word.startswith("--"):
            raise InputError(f"unknown flag {word}{_nearest(word.lstrip('-').partition('=')[0], known, '--')}")
    if rest:
        raise InputError(f"{' '.join(rest)}: which flag is this the value of?")
    del namespace.config
    options = kind(**vars(namespace))
    options.check()
    return options


def _read_recipe(path: Path, known: dict) -> dict:
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(recipe, dict):
        raise InputError(f"--config {path}: expected lines of `flag: value`")
    for name in recipe:
        if name not in known:
            raise InputError(f"{path}: unknown key {name!r}{_nearest(str(name), known)}")
    return recipe


def _as_flags(recipe: dict) -> list[str]:
    """A recipe as the words a user would have typed, so that both are read by the same rules."""
    words = []
    for name, value in recipe.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            words.append(f"--{name}={json.dumps(value)}")
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def parse_mapping(flag: str, text: str | None, allowed: set[str]) -> dict:
    """A flag such as --model "{hidden_size: 192, num_hidden_layers: 6}"; keys outside `allowed` raise."""
    try:
        mapping = yaml.load(text or "{}", _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{flag}: not a mapping ({' '.join(str(error).split())})") from error
    if not isinstance(mapping, dict):
        raise InputError(f'{flag} must be a mapping such as "{{num_groups: 64}}", got {text!r}')
    for name in mapping:
        if name not in allowed:
            raise InputError(f"{flag}: unknown field {name!r}{_nearest(str(name), allowed)}")
    return mapping


def as_recipe(options: TrainingArguments) -> str:
    """All flags as they were resolved."""
    recipe = asdict(options)
    recipe["model"] = yaml.load(options.model or "{}", _Loader)
    return yaml.safe_dump(recipe, sort_keys=False)


def save_recipe(path: Path, options: TrainingArguments) -> None:
    """`--config` with this file repeats the run."""
    path.write_text(as_recipe(options), encoding="utf-8")


def _nearest(name: str, known, prefix: str = "") -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{match[0]}?" if match else f"; known are {', '.join(sorted(known))}"


def check_disjoint(splits: dict[str, str | None]) -> None:
    """Splits by flag, each a name or several joined by +, must share none."""
    parts = {flag: set(split.split("+")) for flag, split in splits.items() if split}
    for flag, other in itertools.combinations(parts, 2):
        if shared := parts[flag] & parts[other]:
            raise InputError(
                f"{flag} and {other} both name {', '.join(sorted(shared))}: what is judged must be neither trained on "
                "nor chosen by"
            )


def check_choice(flag: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise InputError(f"{flag} must be one of {', '.join(filter(None, choices))}, got {value!r}")
