"""Stopping on SIGTERM and SIGINT: at the next step, with a checkpoint, and never leaving a process behind."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl
LAUNCHERS = (b"accelerate", b"torchrun", b"torch.distributed", b"torch/distributed")
LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")  # variables that a launcher sets
STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """`received` is 0 or the number of the signal that asked this process to stop."""

    def __init__(self, give_up_after: float | None = None):
        """`give_up_after` seconds, a process that has not come to `handled` ends itself: among several processes, one
        may wait forever for another that is gone. None waits."""
        self.received = 0
        self._handled = threading.Event()
        for number in STOPPING:
            signal.signal(number, self._receive)
        if give_up_after is not None:
            # The handler runs between two lines of Python, which a process stuck in a collective never reaches. What
            # the interpreter writes to this pipe wakes a thread in any case.
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader, give_up_after), daemon=True).start()

    def _receive(self, number: int, frame) -> None:
        if self.received == number == signal.SIGINT:  # pressed twice: now
            raise KeyboardInterrupt
        self.received = self.received or number

    def _watch(self, reader: int, give_up_after: float) -> None:
        while (number := os.read(reader, 1)[0]) not in STOPPING:
            pass
        if not self._handled.wait(give_up_after):
            os._exit(128 + number)

    def handled(self) -> None:
        """The step is over and all processes agree to stop; saving may take its time."""
        self._handled.set()


@contextmanager
def held_back() -> Iterator[None]:
    """Signals that come meanwhile wait, and processes that start meanwhile never see any: torchrun and job schedulers
    signal whole process groups, and a step that lost its DataLoader workers would not end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_launcher() -> None:
    """Asks Linux for a SIGTERM when the launcher dies: `accelerate launch` does not pass signals on, and would leave
    this process behind. A script started by hand, perhaps with nohup, is left alone."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    command = Path(f"/proc/{parent}/cmdline")
    if command.is_file() and any(launcher in command.read_bytes() for launcher in LAUNCHERS):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
        orphaned = os.getppid() != parent  # it died before the request
    else:
        orphaned = parent == 1 and any(name in os.environ for name in LAUNCHED)  # while this process imported
    if orphaned:
        os.kill(os.getpid(), signal.SIGTERM)
