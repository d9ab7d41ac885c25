"""Scripts and modules as commands, in processes forked from one that has imported everything.

Importing takes longer than most tests. Tests of what Python does on its way to the script use `run_python`.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
environment_lock = threading.Lock()
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    ["autoencode", "detect", "distill", "evaluate", "finetune", "prepare_data", "segment", "modeling_act.cli.main"]
)


def fork_command(words: list, out: Path, err: Path, environment: dict | None = None, **options):
    """Start `python *words` (a script, `-m module` or `-c code`) in the root of the project. Returns the process."""
    arguments = ([str(word) for word in words], out, err, environment or {})
    process = server.Process(target=_run, args=arguments, kwargs=options)
    with environment_lock:
        before = os.environ.get("PYTHONPATH", "")
        # The server reads its import path from the environment when it starts.
        os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        process.start()
        os.environ["PYTHONPATH"] = before
    return process


def run_command(*words, returncode=0, environment=None, timeout=300, **options) -> subprocess.CompletedProcess:
    """Run `python *words` to its end. It fails if the exit code is not `returncode`; `options` as of `_run`."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = fork_command(words, out, err, environment, **options)
        process.join(timeout)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        texts = [path.read_text() if path.exists() else "" for path in (out, err)]
    command = " ".join(map(str, words))
    assert process.exitcode == returncode, f"{command}: exit code {process.exitcode}, not {returncode}: {texts}"
    return subprocess.CompletedProcess(words, returncode, *texts)


def _run(words: list, out: Path, err: Path, environment: dict, folder: Path = ROOT, largest_file: int = 0) -> None:
    """Become the command; `largest_file`, in bytes, simulates a full disk."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # as for a script that was not started by a server
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), number)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})  # noqa: S102
    elif words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, "")
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")
