"""The models on a CUDA device beside the same models on the CPU: the paper's widths, losses and all gradients."""

import pytest
import torch
from act_training.run.training_state import use_deterministic_algorithms

from modeling_act import (
    ACTStudent,
    ACTStudentConfig,
    ACTStudentForObjectDetection,
    ACTStudentForPartSegmentation,
    ACTStudentForPointCloudClassification,
    ACTStudentForPreTraining,
    ACTStudentForSemanticSegmentation,
    ACTTeacher,
    ACTTeacherConfig,
    point_ops,
)

pytestmark = pytest.mark.gpu
MODELS = ("teacher", "pretraining", "classification", "parts", "semantic", "detection")


def build(name):
    """A model without randomness in its forward pass, and what it needs to return a loss."""
    torch.manual_seed(0)
    inputs = {"points": torch.rand(2, 1024, 3) * 2 - 1}
    point_labels = torch.arange(2048).view(2, 1024) % 5
    sizes = {"num_hidden_layers": 4, "num_labels": 5}
    if name == "teacher":
        # Soft codes: one arg-max that flips between two equal logits changes all that follows.
        return ACTTeacher(ACTTeacherConfig()).eval(), inputs | {"code_mode": "soft", "kl_weight": 0.1}
    if name == "pretraining":
        mask = torch.arange(64).ge(13).expand(2, -1)
        model = ACTStudentForPreTraining(ACTStudentConfig()).eval()
        return model, inputs | {"teacher_features": torch.randn(2, 64, 384), "bool_masked_pos": mask}
    if name == "classification":
        model = ACTStudentForPointCloudClassification(ACTStudentConfig(num_labels=5)).eval()
        return model, inputs | {"labels": torch.tensor([1, 4])}
    if name == "parts":
        model = ACTStudentForPartSegmentation(ACTStudentConfig(**sizes)).eval()
        return model, inputs | {"category": torch.tensor([0, 3]), "labels": point_labels}
    if name == "semantic":
        return ACTStudentForSemanticSegmentation(ACTStudentConfig(**sizes)).eval(), inputs | {"labels": point_labels}
    assert name == "detection"
    boxes = torch.tensor([[[0.0, 0, 0, 1, 1, 1, 0]], [[0.5, 0.5, 0, 1, 0.5, 1, 0]]])
    model = ACTStudentForObjectDetection(ACTStudentConfig(**sizes, num_queries=64)).eval()
    return model, inputs | {"boxes": boxes, "box_labels": torch.tensor([[1], [2]])}


def tensors_of(inputs):
    return {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}


def to_device(inputs, device):
    return inputs | {key: value.to(device) for key, value in tensors_of(inputs).items()}


def loss_and_gradients(model, inputs):
    model.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach().double().cpu(), torch.cat(gradients).double().cpu()


def relative(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_equal_those_of_the_cpu(name, record_property):
    model, inputs = build(name)
    loss, gradients = loss_and_gradients(model, inputs)
    model, inputs = model.cuda(), to_device(inputs, "cuda")
    with point_ops.without_kernels():
        plain = loss_and_gradients(model, inputs)
    for form, (found_loss, found) in {"kernels": loss_and_gradients(model, inputs), "plain": plain}.items():
        record_property(f"{form} loss difference", relative(found_loss, loss))
        record_property(f"{form} gradient difference", relative(found, gradients))
        assert relative(found_loss, loss) < 1e-4
        assert relative(found, gradients) < 1e-3


# An untrained detector may match another box, which changes all gradients.
@pytest.mark.parametrize("name", MODELS[:-1])
def test_bf16_autocast_stays_close_to_fp32(name, record_property):
    model, inputs = build(name)
    model, inputs = model.cuda(), to_device(inputs, "cuda")
    loss, gradients = loss_and_gradients(model, inputs)
    with torch.autocast("cuda", torch.bfloat16):
        found_loss, found = loss_and_gradients(model, inputs)
    record_property("loss difference", relative(found_loss, loss))
    record_property("gradient difference", relative(found, gradients))
    assert relative(found_loss, loss) < 2e-2
    assert relative(found, gradients) < 2e-1


def test_groups_are_those_of_the_cpu():
    """Indices, not only points, of clouds with many equal distances too."""
    grid = torch.randint(-3, 4, (8, 2048, 3)).float()
    for points in (torch.randn(32, 1024, 3), torch.randn(8, 8192, 3), grid):
        found = point_ops.farthest_point_sample(points.cuda(), 64)
        assert torch.equal(found.cpu(), point_ops.farthest_point_sample(points, 64))
        queries = points[:, :64].contiguous()
        distances, indices = point_ops.k_nearest_neighbors(queries.cuda(), points.cuda(), 32)
        expected = point_ops.k_nearest_neighbors(queries, points, 32)
        assert torch.equal(indices.cpu(), expected[1]) and torch.equal(distances.cpu(), expected[0])


@pytest.fixture
def repeating():
    use_deterministic_algorithms()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_training_repeats_itself(name, enabled, repeating):
    model, inputs = build(name)
    repeated = {key: value.repeat(16, *[1] * (value.ndim - 1)) for key, value in tensors_of(inputs).items()}
    model, inputs = model.cuda(), to_device(inputs | repeated, "cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
        loss, gradients = loss_and_gradients(model, inputs)
        again = loss_and_gradients(model, inputs)
    assert loss == again[0] and torch.equal(gradients, again[1])


def test_embedding_repeats_itself():
    torch.manual_seed(0)
    student, points = ACTStudent(ACTStudentConfig()).eval().cuda(), torch.randn(16, 1024, 3).cuda()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(student(points).pooler_output, student(points).pooler_output)


@pytest.mark.slow
def test_a_compiled_student_computes_the_same():
    torch.manual_seed(0)
    student = ACTStudent(ACTStudentConfig(num_hidden_layers=2)).eval().cuda()
    points = torch.randn(4, 1024, 3).cuda()
    with torch.no_grad():
        expected = student(points).pooler_output
        compiled = torch.compile(student, fullgraph=True)
        assert relative(compiled(points).pooler_output, expected) < 1e-5
