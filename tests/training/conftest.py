"""Runs that several tests of the training scripts start from."""

from pathlib import Path

import pytest

from training_runs import REFERENCES, make_inputs, start


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """Inputs of the runs, and one uninterrupted run of each script, with all checkpoints."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    for script, name in REFERENCES.items():
        start(folder, script, folder / name, "--checkpoints_total_limit", 20).finish()
    return folder
