"""Tiny runs of the training scripts, for tests that start, interrupt, resume and compare them.

`start` forks a process that has imported everything; `start_command` runs the real command line, with a launcher for
several processes.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from act_training.run.training_state import find_damage, list_checkpoints
from transformers import BertConfig, BertModel

from forked import fork_command

ROOT = Path(__file__).resolve().parents[1]
RESUME = ("--resume_from_checkpoint", "latest")
MARKER = "ACT_TEST_RUN"  # in the environment of all processes of a command, to find those that survive it

COMMON = {
    "num_points": 128, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_train_steps": 30,
    "warmup_epochs": 0.5, "learning_rate": 1e-3, "weight_decay": 0.05, "validation_epochs": 2, "ema_decay": 0.9,
    "augmentation": ["scale_shift", "rotate_y"], "dataloader_num_workers": 1, "checkpointing_steps": 3,
}  # fmt: skip
STUDENT = {
    "num_groups": 8, "group_size": 8, "pointnet_dims": [8, 16, 16], "hidden_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 2, "intermediate_size": 32, "position_dim": 8, "drop_path_rate": 0.2,
    "propagation_dims": [16, 16], "segmentation_dims": [16, 8], "category_dim": 4, "classifier_dim": 16,
}  # fmt: skip
REFERENCES = {"autoencode": "teacher", "distill": "student", "finetune": "classifier", "segment": "segmenter"}
RECIPES = {
    "autoencode": COMMON | {
        "temperature_steps": 0.5, "kl_start": 0.1, "kl_steps": 0.5,
        "model": {
            "num_groups": 8, "group_size": 8, "pointnet_dims": [8, 16, 16], "embedding_dim": 16,
            "dgcnn_dims": [8, 16, 16, 16, 16], "code_dim": 16, "feature_dim": 16, "codebook_size": 32,
            "decoder_dim": 16, "folding_dim": 16, "num_prompts": 2, "position_dim": 8,
        },
    },
    "distill": COMMON | {
        "model": {
            "pointnet_dims": [8, 16, 16], "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32, "position_dim": 8, "mask_ratio": 0.6, "drop_path_rate": 0.2,
        },
    },
    "finetune": COMMON | {"model": STUDENT, "point_sampling": "farthest"},
    "segment": COMMON | {"model": STUDENT, "class_weights": True, "augmentation": []},
}  # fmt: skip


def make_inputs(folder: Path) -> Path:
    """Write a backbone, sixty clouds (an odd number of them for validation) and a recipe for each script.

    The recipe of `distill` expects the teacher in `folder`/teacher.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**sizes, vocab_size=50)).save_pretrained(folder / "bert")
    clouds = np.random.default_rng(0).normal(size=(60, 160, 3)).astype(np.float32)
    split, part_labels = np.where(np.arange(60) // 3 % 5, "train", "test"), (clouds[..., 1] > 0).astype(int)
    part_labels += 2 * (np.arange(60) % 3)[:, None]
    np.savez(folder / "clouds.npz", points=clouds, labels=np.arange(60) % 3)
    np.savez(folder / "parts.npz", points=clouds, labels=np.arange(60) % 3, point_labels=part_labels, split=split)
    inputs = {"autoencode": {"backbone": str(folder / "bert")}, "distill": {"teacher": str(folder / "teacher")}}
    for script, recipe in RECIPES.items():
        clouds = folder / ("parts.npz" if script in ("finetune", "segment") else "clouds.npz")
        recipe = recipe | inputs.get(script, {}) | {"dataset_name": str(clouds), "validation_share": 0.12}
        (folder / f"{script}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@dataclass
class Run:
    """A running script: its processes, or the launcher of its processes."""

    output: Path
    log: Path
    processes: list = field(default_factory=list)
    marker: str = ""

    def send(self, number: int) -> None:
        os.kill(self.processes[0].pid, number)

    def kill(self) -> None:
        """Kill all processes with SIGKILL."""
        for process in self.processes:
            process.kill()
        for pid in self.left_over():
            os.kill(pid, signal.SIGKILL)
        self.wait()

    @property
    def running(self) -> bool:
        return any(self._code(process) is None for process in self.processes)

    def wait(self, seconds: float = 240) -> list[int]:
        """Wait for the exit codes, which are negative for processes that a signal killed."""
        deadline = time.monotonic() + seconds
        while self.running:
            self._check_time(deadline, "the end")
            time.sleep(0.01)
        return [self._code(process) for process in self.processes]

    def wait_for(self, pattern: str, seconds: float = 240) -> bool:
        """Wait for a path below the output folder; False if the script ends before it exists."""
        deadline = time.monotonic() + seconds
        while not any(self.output.glob(pattern)):
            self._check_time(deadline, pattern)
            if not self.running:
                return False
            time.sleep(0.0005)
        return True

    def _check_time(self, deadline: float, awaited: str) -> None:
        if time.monotonic() > deadline:
            self.kill()
            raise AssertionError(f"timed out waiting for {awaited}:\n{self.text[-4000:]}")

    def finish(self, seconds: float = 240) -> str:
        """Wait for a successful end and return the printed text."""
        codes = self.wait(seconds)
        assert set(codes) == {0}, f"exit codes {codes}:\n{self.text[-4000:]}"
        return self.text

    def fail(self) -> str:
        """Wait for exit code 1 and return the error, which is one line (of each process)."""
        codes = self.wait()
        assert set(codes) == {1}, f"exit codes {codes}:\n{self.text[-4000:]}"
        lines = [line for line in self.text.splitlines() if "error: " in line]
        assert 1 <= len(lines) <= len(self.processes), self.text
        assert "Traceback" not in self.text
        return lines[0]

    @property
    def text(self) -> str:
        return self.log.read_text().replace("\r", "\n")

    @staticmethod
    def _code(process) -> int | None:
        return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode

    def left_over(self) -> list[int]:
        """List the living processes of a command, orphans too."""
        alive = []
        for entry in Path("/proc").iterdir() if self.marker else ():
            try:
                if self.marker.encode() in (entry / "environ").read_bytes():
                    alive.append(int(entry.name))
            except (OSError, ValueError):  # not a process, not ours, or gone; a zombie has no environment
                continue
        return alive


def flags_of(inputs: Path, script: str, output: Path, *flags) -> list[str]:
    return [str(flag) for flag in ("--config", inputs / f"{script}.yaml", "--output_dir", output, *flags)]


def start(inputs: Path, script: str, output: Path, *flags, ranks: int = 1, log: Path | None = None, **limits) -> Run:
    """Start a script in `ranks` processes; `largest_file`, in bytes, simulates a full disk."""
    words = [f"training/{script}.py", *flags_of(inputs, script, output, *flags)]
    run = Run(output, log or output.with_suffix(".log"))
    run.log.write_text("")
    port = free_port()
    for rank in range(ranks):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in environment.items()} if ranks > 1 else {}
        run.processes.append(fork_command(words, run.log, run.log, environment, **limits))
    return run


def start_command(inputs: Path, script: str, output: Path, *flags, launcher: str = "python", **options) -> Run:
    """Start the command line of a script, with two processes under torchrun or accelerate; `options` are Popen's."""
    launchers = {
        "python": [],
        "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())],
        "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        + ["--main_process_port", str(free_port())],
        "accelerate one": ["-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"],
    }
    marker = uuid.uuid4().hex
    environment = os.environ | {"OMP_NUM_THREADS": "1", MARKER: marker}
    words = [ROOT / "training" / f"{script}.py", *flags_of(inputs, script, output, *flags)]
    run = Run(output, output.with_suffix(".log"), marker=marker)
    with run.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *launchers[launcher], *map(str, words)], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, env=environment, start_new_session=True, **options,
        )  # fmt: skip
    run.processes.append(process)
    return run


# Imports take longer than a tiny run: one process imports everything and forks for each command.
RUN_COMMANDS = """
import json, os, runpy, sys
sys.path.insert(0, "training")
import act_training.run.training_run, modeling_act

codes = []
for command, log, environment in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        os.environ.update(environment)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


def run_commands(jobs: list[tuple[list[str], str, dict]], environment: dict[str, str]) -> list[int]:
    """Run commands in order, each (words, log file, changes to the environment), and return their exit codes."""
    driver = [sys.executable, "-c", RUN_COMMANDS, json.dumps(jobs)]
    process = subprocess.run(driver, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def checkpoints_of(output: Path) -> list[Path]:
    """List the checkpoints, newest first, and check that each is whole."""
    checkpoints = list_checkpoints(output / "checkpoints")
    assert [find_damage(path) for path in checkpoints] == [None] * len(checkpoints)
    return checkpoints


def newest_step(output: Path) -> int:
    return json.loads((checkpoints_of(output)[0] / "state.json").read_text())["step"]


def digest(output: Path) -> dict[str, str]:
    """SHA-256 of all weights of a finished run."""
    names = ("model.safetensors", "ema/model.safetensors", "best/model.safetensors")
    return {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in names}


def copy_run(source: Path, output: Path, step: int) -> list[Path]:
    """Copy a run that kept all checkpoints to the state of one that was killed after the checkpoint at `step`."""
    shutil.copytree(
        source,
        output,
        ignore=lambda folder, names: {"model.safetensors"} & set(names) if Path(folder) == source else (),
    )
    for path in list_checkpoints(output / "checkpoints"):
        if not step - 3 <= int(path.name[-8:]) <= step:
            shutil.rmtree(path)
    return list_checkpoints(output / "checkpoints")
