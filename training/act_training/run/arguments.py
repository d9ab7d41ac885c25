"""Flags and recipes of the training scripts. A recipe is a YAML file of flags, which the command line overrides."""

import argparse
import itertools
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from transformers import HfArgumentParser

from modeling_act.errors import InputError


@dataclass
class ACTTrainingArguments:
    """Flags of every training script."""

    dataset_name: str = field(metadata={"help": "everyday_shapes, a Hub id, a folder, or a parquet, npz or h5 file"})
    output_dir: str = field(metadata={"help": "folder for model, checkpoints, curves and report"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "configuration of a Hub dataset"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    validation_split: str | None = field(
        default=None, metadata={"help": "split to validate on; default: a part of train"}
    )
    validation_share: float = field(default=0.1, metadata={"help": "part of train held out without validation_split"})
    max_train_samples: int | None = field(default=None, metadata={"help": "use only the first rows"})
    streaming: bool = field(
        default=False, metadata={"help": "read parquet shards during training, one part at a time"}
    )
    skip_bad: bool = field(default=False, metadata={"help": "leave out rows that cannot be trained on, and list them"})
    num_points: int = field(default=1024, metadata={"help": "points sampled from each cloud at every step"})
    fixed_points: bool = field(default=False, metadata={"help": "sample the same points of a cloud in every epoch"})
    point_sampling: Literal["random", "farthest"] = field(
        default="random", metadata={"help": "farthest: a random subset of points far from one another"}
    )
    normalize: bool = field(default=True, metadata={"help": "center each cloud and scale it into the unit sphere"})
    already_normalized: bool = field(
        default=False,
        metadata={"help": "the clouds lie in the unit sphere already; the saved processor puts others there"},
    )
    up_axis: Literal["y", "z"] | None = field(default=None, metadata={"help": "up axis, for the saved processor"})
    unit: Literal["m", "dm", "cm", "mm", "in", "ft"] | None = field(
        default=None, metadata={"help": "unit of clouds that are not normalized, for the saved processor"}
    )
    augmentation: list[str] = field(default_factory=list, metadata={"help": "any of scale_shift, rotate_y, rotate_z"})
    model: str | None = field(default=None, metadata={"help": "fields of the model's configuration, {name: value}"})

    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 300
    max_train_steps: int | None = field(default=None, metadata={"help": "overrides num_train_epochs"})
    learning_rate: float = 5e-4
    min_learning_rate: float = 1e-7
    weight_decay: float = 5e-4
    warmup_epochs: float = field(default=10, metadata={"help": "epochs of linear warm-up from 1e-6"})
    lr_per_epoch: bool = field(default=True, metadata={"help": "change the learning rate every epoch, not every step"})
    max_grad_norm: float | None = field(default=None, metadata={"help": "clip the gradient's norm to this value"})
    ema_decay: float | None = field(default=None, metadata={"help": "also keep an exponential average of the weights"})
    final_weights: Literal["last", "best", "ema"] = field(default="last", metadata={"help": "weights of the result"})

    mixed_precision: Literal["no", "bf16"] | None = field(
        default=None, metadata={"help": "default: what the launcher was given"}
    )
    gradient_checkpointing: bool = False
    sync_batch_norm: bool = field(default=False, metadata={"help": "batch statistics over all GPUs"})
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
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "all"] = "none"
    push_to_hub: bool = field(default=False, metadata={"help": "upload the finished model"})
    license: str | None = field(
        default=None, metadata={"help": "license of the weights, for the card; depends on data, backbone and student"}
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "repository to upload to, organization/name"})
    hub_private: bool = field(default=False, metadata={"help": "create a private repository"})
    hub_revision: str | None = field(default=None, metadata={"help": "branch to upload to, created if missing"})

    def __post_init__(self):
        """Check rules on values; what depends on data or model is checked where that is known."""
        self.mixed_precision = self.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if self.mixed_precision not in ("no", "bf16"):
            raise InputError(f"--mixed_precision must be no or bf16, got {self.mixed_precision!r}")
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
        steps = self.checkpointing_steps
        if steps != "epoch" and not (steps.isdecimal() and int(steps) > 0):
            raise InputError(f"--checkpointing_steps must be a number of steps or epoch, got {steps!r}")
        if self.already_normalized and self.normalize:
            raise InputError("--already_normalized needs --normalize false, which leaves the clouds as they are")
        if not 0 < self.validation_share < 1 and self.validation_split is None:
            raise InputError(f"--validation_share must lie between 0 and 1, got {self.validation_share}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"--ema_decay must lie between 0 and 1, got {self.ema_decay}")
        if self.final_weights == "ema" and self.ema_decay is None:
            raise InputError("--final_weights ema needs --ema_decay, such as 0.999")
        if self.push_to_hub and (self.hub_model_id or "").count("/") != 1:
            raise InputError(f"--push_to_hub needs --hub_model_id ORGANIZATION/NAME, got {self.hub_model_id}")
        if not self.push_to_hub and (self.hub_private or self.hub_revision):
            raise InputError("--hub_private and --hub_revision need --push_to_hub")
        if self.streaming and self.skip_bad:
            raise InputError(
                "--streaming reads rows during training and cannot skip; prepare the set without bad rows"
            )
        if self.streaming and self.max_train_samples is not None:
            raise InputError("--max_train_samples cannot be combined with --streaming, which reads all shards")
        if self.streaming and self.validation_split is None:
            raise InputError("--streaming needs --validation_split: rows cannot be held out of a stream")


Arguments = TypeVar("Arguments", bound=ACTTrainingArguments)


class _Parser(HfArgumentParser):
    """Parser that raises instead of exiting, and where `--augmentation` without a value empties a recipe's list."""

    def error(self, message: str):
        raise InputError(message)

    def add_argument(self, *names, **options):
        if options.get("nargs") == "+":
            options["nargs"] = "*"
        return super().add_argument(*names, **options)


def parse_arguments(kind: type[Arguments], description: str, arguments: list[str]) -> Arguments:
    """Read flags from `arguments`, from the recipe that `--config` names where they are missing, else the defaults."""
    parser = _Parser(kind, description=description, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", metavar="recipe.yaml", help="flags from a file; the command line overrides them")
    config = _Parser([], add_help=False, allow_abbrev=False)
    config.add_argument("--config", type=Path)
    path = config.parse_known_args(arguments)[0].config
    options = vars(parser.parse_args([*(read_recipe(path) if path else []), *arguments]))
    del options["config"]
    return kind(**options)


def read_recipe(path: Path) -> list[str]:
    """Read a recipe as the flags that a user would type."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(recipe, dict):
        raise InputError(f"--config {path}: expected lines of `flag: value`")
    flags = []
    for name, value in recipe.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            flags.append(f"--{name}={yaml.safe_dump(value, default_flow_style=True)}")
        elif value is not None:
            flags.append(f"--{name}={value}")
    return flags


def parse_mapping(flag: str, text: str | None, fields: set[str]) -> dict:
    """Read a flag such as --model "{hidden_size: 192, num_hidden_layers: 6}", whose names must be among `fields`."""
    try:
        mapping = yaml.safe_load(text or "{}")
    except yaml.YAMLError as error:
        raise InputError(f"{flag}: not a mapping ({' '.join(str(error).split())})") from error
    if not isinstance(mapping, dict):
        raise InputError(f'{flag} must be a mapping such as "{{num_groups: 64}}", got {text!r}')
    if unknown := sorted(mapping.keys() - fields):
        raise InputError(
            f"{flag}: unknown fields {', '.join(unknown)}; the configuration has {', '.join(sorted(fields))}"
        )
    return mapping


def as_recipe(options: ACTTrainingArguments) -> dict:
    """Return all flags, resolved; `yaml.safe_dump` makes a file of them that `--config` reads."""
    return asdict(options) | {"model": yaml.safe_load(options.model or "{}")}


def check_disjoint(splits: dict[str, str | None]) -> None:
    """Check that splits, by flag and each a name or several joined by +, share none."""
    names = {flag: set(split.split("+")) for flag, split in splits.items() if split}
    for flag, other in itertools.combinations(names, 2):
        if shared := names[flag] & names[other]:
            raise InputError(
                f"{flag} and {other} both name {', '.join(sorted(shared))}: data to test on must not be trained on or "
                "used to choose a model"
            )
