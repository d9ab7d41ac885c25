"""Command line and process of a script: flags, recipes, one line for errors that users can fix, signals.

A recipe is a YAML file of flags, which the command line overrides.
"""

import argparse
import ctypes
import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

import torch.distributed
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg
from transformers.utils import logging

from modeling_act.errors import InputError, check_flags


@dataclass
class ACTTrainingArguments:
    """Flags of every training script."""

    dataset_name: str = HfArg(help="everyday_shapes, a Hub id, a folder, or a parquet, npz or h5 file")
    output_dir: str = HfArg(help="folder for model, checkpoints, curves and report")
    dataset_config_name: str | None = HfArg(default=None, help="configuration of a Hub dataset")
    train_split: str = HfArg(default="train", help="split to train on")
    validation_split: str | None = HfArg(default=None, help="split to validate on; default: a part of train")
    validation_share: float = HfArg(default=0.1, help="part of train held out without validation_split")
    max_train_samples: int | None = HfArg(default=None, help="use only the first rows")
    streaming: bool = HfArg(default=False, help="read parquet shards during training, one part at a time")
    skip_bad: bool = HfArg(default=False, help="leave out rows that cannot be trained on, and list them")
    num_points: int = HfArg(default=1024, help="points sampled from each cloud at every step")
    samplings: int | None = HfArg(default=None, help="different samplings of a cloud, used in turn; default: no end")
    sampling_seed: int | None = HfArg(default=None, help="seed of the points sampled; default: seed")
    point_sampling: Literal["random", "farthest"] = HfArg(default="random", help="farthest: among points far apart")
    normalize: bool = HfArg(default=True, help="center each cloud and scale it into the unit sphere")
    already_normalized: bool = HfArg(default=False, help="clouds lie in the unit sphere, as the processor puts others")
    up_axis: Literal["y", "z"] | None = HfArg(default=None, help="up axis, for the saved processor")
    unit: Literal["m", "dm", "cm", "mm", "in", "ft"] | None = HfArg(default=None, help="unit, for the saved processor")
    augmentation: list[str] = HfArg(
        default_factory=list, help="any of scale, scale_shift, rotate_y, rotate_z, jitter, drop_points"
    )
    model: str | None = HfArg(default=None, help="fields of the model's configuration, {name: value}")

    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 300
    max_train_steps: int | None = HfArg(default=None, help="overrides num_train_epochs")
    learning_rate: float = 5e-4
    min_learning_rate: float = 1e-7
    weight_decay: float = 5e-4
    warmup_epochs: float = HfArg(default=10, help="epochs of linear warm-up from 1e-6")
    lr_per_epoch: bool = HfArg(default=True, help="change the learning rate every epoch, not every step")
    max_grad_norm: float | None = HfArg(default=None, help="clip the gradient's norm to this value")
    ema_decay: float | None = HfArg(default=None, help="also keep an exponential average of the weights")
    final_weights: Literal["last", "best", "ema"] = HfArg(default="last", help="weights of the result")

    mixed_precision: Literal["no", "bf16"] | None = HfArg(default=None, help="default: what the launcher was given")
    gradient_checkpointing: bool = False
    sync_batch_norm: bool = HfArg(default=False, help="batch statistics over all GPUs")
    compile: bool = HfArg(default=False, help="torch.compile the model")
    cpu: bool = HfArg(default=False, help="ignore accelerators")
    dataloader_num_workers: int = 0
    seed: int = 0

    checkpointing_steps: str = HfArg(default="epoch", help="a number of steps, or epoch")
    checkpoints_total_limit: int = HfArg(default=2, help="complete checkpoints to keep")
    resume_from_checkpoint: str | None = HfArg(default=None, help="latest, or a checkpoint's folder")
    overwrite_output_dir: bool = HfArg(default=False, help="delete the checkpoints of an earlier run")
    logging_steps: int = 10
    validation_epochs: float = HfArg(default=1, help="epochs between validations")
    picture_epochs: float = HfArg(default=10, help="epochs between pictures")
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "all"] = "none"
    push_to_hub: bool = HfArg(default=False, help="upload the finished model")
    license: str | None = HfArg(default=None, help="license of the weights; depends on data, backbone and student")
    hub_model_id: str | None = HfArg(default=None, help="repository to upload to, organization/name")
    hub_private: bool = HfArg(default=False, help="create a private repository")
    hub_revision: str | None = HfArg(default=None, help="branch to upload to, created if missing")

    def __post_init__(self):
        """Check rules on values; what depends on data or model is checked where that is known."""
        self.mixed_precision = self.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if self.mixed_precision not in ("no", "bf16"):
            raise InputError(f"--mixed_precision must be no or bf16, got {self.mixed_precision!r}")
        for name in (
            "num_points", "samplings", "per_device_train_batch_size", "per_device_eval_batch_size",
            "gradient_accumulation_steps",
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
            raise InputError("--streaming reads rows as it trains and cannot skip; prepare the set without bad rows")
        if self.streaming and self.max_train_samples is not None:
            raise InputError("--max_train_samples cannot be combined with --streaming, which reads all shards")
        if self.streaming and self.validation_split is None:
            raise InputError("--streaming needs --validation_split: rows cannot be held out of a stream")

    @property
    def validation_name(self) -> str:
        """Name of the validation rows in reports."""
        return self.validation_split or f"{self.validation_share:.0%} of {self.train_split}"


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
    words = [*(read_recipe(path) if path else []), *arguments]
    check_flags(parser, words)
    options = vars(parser.parse_args(words))
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
        listed = ", ".join(sorted(fields))
        raise InputError(f"{flag}: unknown fields {', '.join(unknown)}; the configuration has {listed}")
    return mapping


def as_recipe(options: ACTTrainingArguments) -> dict:
    """Return all flags, resolved; `yaml.safe_dump` makes a file of them that `--config` reads."""
    return asdict(options) | {"model": yaml.safe_load(options.model or "{}")}


def check_disjoint(splits: dict[str, str | None]) -> None:
    """Check that splits, by flag and each a name or several joined by +, share none."""
    names = {flag: set(split.split("+")) for flag, split in splits.items() if split}
    for flag, other in itertools.combinations(names, 2):
        if shared := names[flag] & names[other]:
            rule = "data to test on must not be trained on or used to choose a model"
            raise InputError(f"{flag} and {other} both name {', '.join(sorted(shared))}: {rule}")


class Stopped(Exception):
    """Raised with the number of a signal, when the last checkpoint is written."""


class StopSignal:
    """Flag that SIGTERM and SIGINT set; `number` is 0 or the signal's number. A second SIGINT interrupts at once."""

    def __init__(self):
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number


def run_script(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main`; errors of the user are one line on stderr. ACT_TRACEBACK=1 shows where they arose."""
    script, rank = Path(sys.argv[0]).name, int(os.environ.get("RANK", 0))
    keep_freed_memory()
    hide_progress_bars_of_weights()
    try:
        main(sys.argv[1:])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except Stopped as stop:
        if rank == 0:
            print(f"{script}: stopped by a signal; resume with --resume_from_checkpoint latest", file=sys.stderr)
        _exit(128 + stop.args[0])
    except KeyboardInterrupt:
        _exit(130)
    except (InputError, StrictDataclassError, OSError, FloatingPointError) as error:
        if os.environ.get("ACT_TRACEBACK"):
            traceback.print_exc()
        message = " ".join(str(error).split())  # a configuration's error has two lines
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = f"{error.filename or 'output'}: {error.strerror}; complete checkpoints are untouched"
        if rank == 0 or not isinstance(error, (InputError, StrictDataclassError)):
            print(f"{script}: error: {message}", file=sys.stderr)
        _exit(1)
    except Exception:
        traceback.print_exc()
        _exit(1)


def hide_progress_bars_of_weights() -> None:
    """Hide transformers' bars, which would break the bar of the steps; bars of downloads stay."""
    disabled = are_progress_bars_disabled()
    logging.disable_progress_bar()  # hides the Hub's too
    if not disabled:
        enable_progress_bars()


def keep_freed_memory() -> None:
    """Let glibc keep the memory that tensors free: page faults would take a tenth of a step's time on a CPU."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library
        return
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)


def _exit(code: int) -> None:
    """Exit at once, together with DataLoader workers: a process group whose other members are gone would wait."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def errors_of(flag: str) -> Iterator[None]:
    """Report any error of loading or configuring a model in one line that names `flag`."""
    try:
        yield
    except (ValueError, TypeError, OSError, RuntimeError, ImportError, StrictDataclassError) as error:
        raise InputError(f"{flag}: {' '.join(str(error).split())}") from error


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def on_main_process(accelerator: Accelerator, work: Callable):
    """Run `work` in the main process; every process gets its result, or its error."""
    outcome = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except (InputError, OSError, FloatingPointError) as error:
            if accelerator.num_processes == 1:
                raise
            outcome[1] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise InputError(outcome[1])
    return outcome[0]


def describe_versions() -> dict[str, str]:
    """Return the versions that numbers depend on, and the commit of this clone."""
    versions = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "accelerate", "datasets", "timm", "numpy"):
        with suppress(ImportError):  # not installed
            versions[name] = version(name)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        versions["commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        versions["commit"] = "unknown"
    return versions
