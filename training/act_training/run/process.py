"""Process of a script: one line for errors that users can fix, exit codes, signals, work of the main process."""

import ctypes
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging

from modeling_act.errors import InputError


class Stopped(Exception):
    """Raised after a signal, when the last checkpoint is written."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number


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
        _exit(stop.exit_code)
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
    """Let glibc keep the memory that tensors free for the next step.

    By default it returns large blocks to the system, and a step on a CPU spends a tenth of its time on page faults.
    """
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
        try:
            versions[name] = version(name)
        except ImportError:  # not installed
            continue
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        versions["commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        versions["commit"] = "unknown"
    return versions
