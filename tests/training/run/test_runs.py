"""What a script sets up before its `main`."""

import pytest

FAULTS = """
import resource, torch
from act_training.run.script import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

ordinary = faults()
keep_freed_memory()
faults()
print(ordinary, faults())
"""


def test_freed_memory_is_kept_for_the_next_step(run_python):
    ordinary, kept = map(int, run_python("-c", FAULTS, environment={"PYTHONPATH": "training"}).stdout.split())
    if ordinary < 2**14:
        pytest.skip("this system serves large blocks without page faults anyway")
    assert kept < ordinary / 50


def test_bars_of_weights_are_hidden_and_those_of_downloads_stay(run_python):
    code = """if True:
        from huggingface_hub.utils import are_progress_bars_disabled
        from transformers.utils import logging
        from act_training.run.script import hide_progress_bars_of_weights
        hide_progress_bars_of_weights()
        print(logging.is_progress_bar_enabled(), are_progress_bars_disabled())"""
    for hidden in ("0", "1"):
        environment = {"PYTHONPATH": "training", "HF_HUB_DISABLE_PROGRESS_BARS": hidden}
        assert run_python("-c", code, environment=environment).stdout.split() == ["False", str(hidden == "1")]


@pytest.mark.parametrize("script", ["autoencode", "distill", "finetune", "segment", "prepare_data", "demo"])
def test_a_script_names_what_is_not_installed(run_python, script):
    code = "import runpy, sys; sys.modules |= {'accelerate': None, 'yaml': None}; sys.path.insert(0, 'training')\n"
    process = run_python("-c", f"{code}runpy.run_path('training/{script}.py', run_name='__main__')", returncode=1)
    line = process.stderr.splitlines()[-1]
    assert line.startswith("the training scripts need accelerate, yaml: ") and line.endswith('-e ".[train]"')
    assert "Traceback" not in process.stderr
