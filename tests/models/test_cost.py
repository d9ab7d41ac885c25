"""Cost of a cloud at the paper's sizes, in counts that no busy machine changes: GFLOP by torch's counter (which
leaves out fused attention on the CPU) and calls of torch's operators. `make bench` measures the seconds.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from modeling_act import (
    ACTStudent,
    ACTStudentConfig,
    ACTStudentForPointCloudClassification,
    ACTStudentForPreTraining,
    ACTTeacher,
    ACTTeacherConfig,
)

BATCH_SIZE = 2


class CallCounter(TorchDispatchMode):
    """Counts operators other than views: on a GPU, about the kernels to launch."""

    def __enter__(self):
        self.calls = Counter()
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.calls[str(function)] += 1
        return function(*args, **(kwargs or {}))


def cost(step) -> tuple[float, int]:
    """GFLOP a cloud, and operators called."""
    with FlopCounterMode(display=False) as flops:
        step()
    with CallCounter() as counter:
        step()
    return flops.get_total_flops() / BATCH_SIZE / 1e9, counter.calls.total()


@pytest.fixture(scope="module")
def teacher():
    """ViT-B with 64 deep prompts."""
    return ACTTeacher(ACTTeacherConfig())


def assert_cost(step, gflop: float, calls: int):
    """Both close below the bounds, so that a bound that lost its meaning fails too."""
    found = cost(step)
    assert 0.97 * gflop < found[0] <= gflop and 0.9 * calls < found[1] <= calls, found


def test_autoencode(teacher, implementation):
    points = torch.randn(BATCH_SIZE, 1024, 3)
    teacher.train()
    bounds = (41.8, 1200) if implementation == "kernels" else (43.6, 1770)
    assert_cost(lambda: teacher(points).loss.backward(), *bounds)


def test_distill(teacher, implementation):
    points = torch.randn(BATCH_SIZE, 1024, 3)
    student = ACTStudentForPreTraining(ACTStudentConfig()).train()
    teacher.eval()

    def step():
        groups = teacher.group(points)
        with torch.no_grad():
            features = teacher.get_teacher_features(groups=groups)
        student(groups=groups, teacher_features=features).loss.backward()

    bounds = (20.6, 1340) if implementation == "kernels" else (21.2, 1840)
    assert_cost(step, *bounds)


def test_finetune(implementation):
    model = ACTStudentForPointCloudClassification(ACTStudentConfig(num_groups=128, num_labels=15)).train()
    points, labels = torch.randn(BATCH_SIZE, 2048, 3), torch.zeros(BATCH_SIZE, dtype=torch.long)
    bounds = (20.3, 800) if implementation == "kernels" else (23.9, 1730)
    assert_cost(lambda: model(points, labels).loss.backward(), *bounds)


def test_embed(implementation):
    student = ACTStudent(ACTStudentConfig()).eval()
    points = torch.randn(BATCH_SIZE, 1024, 3)
    bounds = (4.02, 220) if implementation == "kernels" else (4.02, 690)
    with torch.no_grad():
        assert_cost(lambda: student(points), *bounds)
