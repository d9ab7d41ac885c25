"""Runs that several tests of the training scripts start from."""

from pathlib import Path

import pytest

from training_runs import make_inputs, start


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """What the runs need, and one uninterrupted run of each script, `teacher` and `student`, with all checkpoints."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    for script, name in (("autoencode", "teacher"), ("distill", "student")):
        start(folder, script, folder / name, "--checkpoints_total_limit", 20).finish()
    return folder
