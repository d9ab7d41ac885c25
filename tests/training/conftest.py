"""Runs that several tests of the training scripts start from."""

import fcntl
import os
from pathlib import Path

import pytest

from training_runs import REFERENCES, make_inputs, start


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """Inputs of the runs, and one uninterrupted run of each script, with all checkpoints. All workers share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "inputs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "inputs").is_dir():
            (folder / "inputs").mkdir()
            make_inputs(folder / "inputs")
            for script, name in REFERENCES.items():
                start(folder / "inputs", script, folder / "inputs" / name, "--checkpoints_total_limit", 20).finish()
    return folder / "inputs"
