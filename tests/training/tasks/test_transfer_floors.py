"""The small recipes on the built-in set, in minutes on one core: each must end above its floor."""

import json

import pytest

from forked import run_command

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("script", "measure", "floor"),
    [("finetune", "accuracy", 0.95), ("segment", "instance_miou", 0.52)],
)
def test_a_small_recipe_ends_above_its_floor(tmp_path, script, measure, floor):
    recipe = f"training/recipes/{script}_small.yaml"
    run_command(f"training/{script}.py", "--config", recipe, "--output_dir", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"][measure] > floor
