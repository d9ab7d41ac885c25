"""Stopping on SIGTERM and SIGINT: at the next step, with a checkpoint, and never leaving a process behind."""

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl
LAUNCHERS = (b"accelerate", b"torchrun", b"torch.distributed", b"torch/distributed")


class StopSignals:
    """`received` is 0 or the number of the signal that asked this process to stop."""

    def __init__(self, give_up_after: float | None = None):
        """`give_up_after` seconds, a process that has not come to `handled` ends itself: among several processes, one
        may wait forever for another that is gone. None waits."""
        self.received = 0
        self._handled = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
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
        self.received = number

    def _watch(self, reader: int, give_up_after: float) -> None:
        while (number := os.read(reader, 1)[0]) not in (signal.SIGTERM, signal.SIGINT):
            pass
        if not self._handled.wait(give_up_after):
            os._exit(128 + number)

    def handled(self) -> None:
        """The step is over and all processes agree to stop; saving may take its time."""
        self._handled.set()


def die_with_launcher() -> None:
    """Asks Linux for a SIGTERM when the launcher dies: `accelerate launch` does not pass signals on, and would leave
    this process behind. A script started by hand, perhaps with nohup, is left alone."""
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return
    if sys.platform == "linux" and any(launcher in command for launcher in LAUNCHERS):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the request
            os.kill(os.getpid(), signal.SIGTERM)
