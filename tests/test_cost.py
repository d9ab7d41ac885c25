"""GFLOP a cloud at the paper's sizes, by torch's counter (which leaves out fused attention on CPU)."""

import pytest
import torch
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


def gflop_a_cloud(step) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / BATCH_SIZE / 1e9


@pytest.fixture(scope="module")
def teacher():
    """ViT-B with 64 deep prompts."""
    return ACTTeacher(ACTTeacherConfig())


def test_autoencode(teacher):
    points = torch.randn(BATCH_SIZE, 1024, 3)
    teacher.train()
    assert 40 < gflop_a_cloud(lambda: teacher(points).loss.backward()) <= 47


def test_distill(teacher):
    points = torch.randn(BATCH_SIZE, 1024, 3)
    student = ACTStudentForPreTraining(ACTStudentConfig()).train()
    teacher.eval()

    def step():
        groups = teacher.group(points)
        with torch.no_grad():
            features = teacher.get_teacher_features(groups=groups)
        student(groups=groups, teacher_features=features).loss.backward()

    assert 19 < gflop_a_cloud(step) <= 23.5


def test_finetune():
    model = ACTStudentForPointCloudClassification(ACTStudentConfig(num_groups=128, num_labels=15)).train()
    points, labels = torch.randn(BATCH_SIZE, 2048, 3), torch.zeros(BATCH_SIZE, dtype=torch.long)
    assert 23 < gflop_a_cloud(lambda: model(points, labels).loss.backward()) <= 25.5


def test_embed():
    student = ACTStudent(ACTStudentConfig()).eval()
    points = torch.randn(BATCH_SIZE, 1024, 3)
    with torch.no_grad():
        assert 3.5 < gflop_a_cloud(lambda: student(points)) <= 4.4
