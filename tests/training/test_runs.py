"""What a script sets up before its `main`."""

import pytest

FAULTS = """
import resource, torch
from act_training.runs import keep_freed_memory

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
