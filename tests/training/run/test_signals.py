"""Runs that are stopped: by signals, processes that die, full disks, numbers that overflow."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from training_runs import RESUME, ROOT, checkpoints_of, copy_run, digest, newest_step, start, start_command

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def assert_stopped_between(output: Path, first: int, last: int) -> None:
    assert first <= newest_step(output) <= last
    assert not (output / "model.safetensors").exists()


def assert_nothing_is_left(run, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := run.left_over():
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        time.sleep(0.1)


def ranks_of(run) -> dict[int, int]:
    """Process ids of a launcher's scripts by rank, without their DataLoader workers."""
    found = {}
    for pid in run.left_over():
        environment = dict(entry.partition("=")[::2] for entry in _read(pid, "environ"))
        parent = next(int(line.split()[1]) for line in _read(pid, "status", "\n") if line.startswith("PPid"))
        if parent == run.processes[0].pid and pid != parent:
            found[int(environment.get("RANK", 0))] = pid
    return found


def _read(pid: int, name: str, separator: str = "\0") -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text().split(separator)


# In every run of the tests -------------------------------------------------------------------------------------------


def test_sigterm_stops_at_the_next_step_with_a_checkpoint(inputs, tmp_path):
    """Sent, as schedulers and torchrun do, to the whole process group, DataLoader workers included."""
    run = start(inputs, "distill", tmp_path / "run", "--checkpointing_steps", 1000)
    run.wait_for("log.jsonl")
    while "train/loss" not in (tmp_path / "run" / "log.jsonl").read_text():
        time.sleep(0.001)
    os.killpg(run.processes[0].pid, signal.SIGTERM)
    assert run.wait() == [143]
    assert "stopped by a signal; resume with --resume_from_checkpoint latest" in run.text
    assert_stopped_between(tmp_path / "run", 1, 8)


def test_a_full_disk_is_one_line_and_loses_nothing(inputs, tmp_path):
    older, _ = copy_run(inputs / "student", tmp_path / "run", 21)
    line = start(inputs, "distill", tmp_path / "run", *RESUME, largest_file=20_000).fail()
    assert f"{older.parent / 'step-00000024'}: cannot be written (" in line
    assert checkpoints_of(tmp_path / "run")[0] == older
    assert not list((tmp_path / "run").rglob(".writing*"))


BUG = """
import multiprocessing, signal, time
from act_training.run.script import run_script

def main(arguments):
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True).start()
    raise RuntimeError("a bug")

run_script(main)
"""


def test_a_bug_ends_a_run_with_workers(run_python):
    """The interpreter would ask workers to end, which ignore it, and wait for them."""
    paths = os.pathsep.join([str(ROOT / "training"), os.environ["PYTHONPATH"]])
    process = run_python("-c", BUG, returncode=1, environment={"PYTHONPATH": paths}, timeout=60)
    assert "RuntimeError: a bug" in process.stderr


# In `make test-slow` -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("launcher", ["python", "torchrun"])
def test_signal_to_the_launcher_alone(inputs, tmp_path, launcher, number):
    """torchrun turns any end of its processes into exit code 1, or reports the signal that it got itself."""
    run = start_command(inputs, "distill", tmp_path / "run", "--max_train_steps", 100_000, launcher=launcher)
    run.wait_for("checkpoints/step-00000003")
    step = newest_step(tmp_path / "run")
    run.send(number)
    code = run.wait(60)[0]
    assert code == CODES[number] if launcher == "python" else code != 0
    assert_nothing_is_left(run, 60)
    assert_stopped_between(tmp_path / "run", step + 1, 90_000)
    assert "error" not in run.text.partition("Traceback")[0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_process_ends_the_others_and_the_launcher(inputs, tmp_path, rank):
    flags = ("--max_train_steps", 100_000)
    run = start_command(inputs, "distill", tmp_path / "run", *flags, launcher="torchrun")
    run.wait_for("checkpoints/step-00000003")
    os.kill(ranks_of(run)[rank], signal.SIGKILL)
    assert run.wait(30)[0] != 0
    assert_nothing_is_left(run, 5)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert checkpoints_of(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("moment", ["start-up", "validation", "save"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_signal_at_awkward_moments(inputs, tmp_path, moment, number, ranks):
    output = tmp_path / "run"
    flags = {"start-up": ("--checkpointing_steps", 1000), "save": (), "validation": ("--validation_epochs", 0.01)}
    run = start(inputs, "autoencode", output, *flags[moment], ranks=ranks)
    if moment == "start-up":
        run.wait_for("checkpoints")
    elif moment == "save":
        run.wait_for("checkpoints/.writing-step-00000006")
    else:
        while '"step": 5' not in run.wait_for("log.jsonl") * (output / "log.jsonl").read_text():
            time.sleep(0.001)
    run.send(number)  # to one process: the other must learn of it
    assert run.wait() == [CODES[number]] * ranks
    assert_stopped_between(output, 1, 9)
    if ranks == 1:
        start(inputs, "autoencode", output, *flags[moment], *RESUME).finish()
        if moment != "validation":
            assert digest(output) == digest(inputs / "teacher")


@pytest.mark.slow
def test_a_second_interrupt_does_not_wait(inputs, tmp_path):
    run = start(inputs, "autoencode", tmp_path / "run")
    run.wait_for("checkpoints/step-00000003")
    run.send(signal.SIGINT)
    time.sleep(0.001)
    run.send(signal.SIGINT)
    assert run.wait() == [130]
    assert "Traceback" not in run.text
    checkpoints_of(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "kilobytes"),
    [("autoencode", size) for size in (250, 500, 750, 1000, 1250, 1300, 1350, 1400, 1450, 1500, 1550)]
    + [("distill", size) for size in (150, 300, 450, 600, 700, 800, 900)],
)
def test_a_small_disk_at_any_place(inputs, tmp_path, script, kilobytes):
    """The disk fills up in a checkpoint, in the best or the final weights, in a picture, the log or the report."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        output = tmp_path / "disk" / "run"
        line = start(inputs, script, output, log=tmp_path / "log").fail()
        print(line)
        assert str(output) in line
        checkpoints_of(output)
        subprocess.run(["mount", "-o", "remount,size=50m", str(tmp_path / "disk")], check=True)
        start(inputs, script, output, *RESUME, log=tmp_path / "log").finish()
        assert digest(output) == digest(inputs / ("teacher" if script == "autoencode" else "student"))
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_two_processes(inputs, tmp_path):
    run = start(inputs, "distill", tmp_path / "run", largest_file=20_000, ranks=2)
    assert "cannot be written" in run.fail()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_one_line(inputs, tmp_path):
    (tmp_path / "file").touch()
    line = start(inputs, "distill", tmp_path / "file" / "run", log=tmp_path / "log").fail()
    assert str(tmp_path / "file") in line


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("script", ["autoencode", "distill"])
def test_overflow_stops_before_the_update(inputs, tmp_path, script, ranks):
    flags = ("--learning_rate", 1e30, "--checkpointing_steps", 1, "--ema_decay", 0.5)
    line = start(inputs, script, tmp_path / "run", *flags, ranks=ranks).fail()
    assert "The step held " in line and " rows: row " in line
    step = int(line.partition("step ")[2].partition(":")[0])
    assert newest_step(tmp_path / "run") == step
    for name in ("model", "ema"):
        tensors = load_file(checkpoints_of(tmp_path / "run")[0] / f"{name}.safetensors")
        assert all(value.isfinite().all() for value in tensors.values())


@pytest.mark.slow
def test_clouds_that_overflow_stop_before_the_first_update(inputs, tmp_path):
    clouds = np.load(inputs / "clouds.npz")["points"]
    np.savez(tmp_path / "large.npz", points=clouds * np.float32(1e8))
    flags = ("--dataset_name", tmp_path / "large.npz", "--normalize", False, "--mixed_precision", "no")
    run = start(inputs, "autoencode", tmp_path / "run", *flags, "--checkpointing_steps", 1, "--max_train_steps", 30)
    if run.wait() == [1]:
        assert "nothing was updated" in run.fail() or "no longer finite" in run.fail()
    for path in checkpoints_of(tmp_path / "run"):
        assert all(value.isfinite().all() for value in load_file(path / "model.safetensors").values())
