"""Our models do less work than the textbook form and compute the same: in float64, gradients to 1e-10."""

import pytest
import torch

import textbook
from modeling_act import (
    ACTStudentForPartSegmentation,
    ACTStudentForPreTraining,
    ACTStudentForSemanticSegmentation,
    ACTTeacher,
)
from small_models import small_student_config, small_teacher_config


def double_model(model_class, config, training):
    """Model in float64 with every weight random, so that nothing is hidden by a zero or a one."""
    model = model_class(config).double().train(training)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.2 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


def assert_same_as_textbook(model, loss, textbook_loss):
    """`textbook_loss` maps weights to a loss; compares values and the gradients of every trainable parameter."""
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name in trainable:
        weights[name].requires_grad_()
    expected = textbook_loss(weights)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    loss.backward()
    expected.backward()
    assert trainable
    for name, parameter in model.named_parameters():
        if name in trainable:
            error = (parameter.grad - weights[name].grad).abs().max()
            assert error <= 1e-10, f"{name}: {error}"
            assert parameter.grad.abs().max() > 0, f"{name} has no gradient"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("prompt_type", ["deep", "shallow", "none"])
def test_teacher(prompt_type, training):
    config = small_teacher_config(prompt_type=prompt_type, prompt_dropout=0.0)
    model = double_model(ACTTeacher, config, training)
    points = torch.randn(3, 80, 3, dtype=torch.float64)
    groups = model.group(points)
    output = model(groups=groups, temperature=0.7, code_mode="soft", kl_weight=0.05)

    def textbook_loss(weights):
        reconstruction, kl, _ = textbook.teacher(weights, config, groups, 0.7, training)
        return reconstruction + 0.05 * kl

    assert_same_as_textbook(model, output.loss, textbook_loss)


def test_teacher_features_of_argmax_codes():
    config = small_teacher_config()
    model = double_model(ACTTeacher, config, training=False)
    groups = model.group(torch.randn(2, 80, 3, dtype=torch.float64))
    _, _, expected = textbook.teacher(model.state_dict(), config, groups, 1.0, False, hard=True)
    torch.testing.assert_close(model.get_teacher_features(groups=groups), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_pretraining(training):
    config = small_student_config(drop_path_rate=0.0)
    model = double_model(ACTStudentForPreTraining, config, training)
    groups = model.group(torch.randn(3, 80, 3, dtype=torch.float64))
    features = torch.randn(3, config.num_groups, config.teacher_dim, dtype=torch.float64)
    output = model(groups=groups, teacher_features=features)
    mask = output.mask.bool()
    assert mask.sum(1).tolist() == [int(0.8 * config.num_groups)] * 3
    assert_same_as_textbook(
        model, output.loss, lambda weights: textbook.pretraining(weights, config, groups, mask, features, training)
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model_class", [ACTStudentForPartSegmentation, ACTStudentForSemanticSegmentation])
def test_segmentation(model_class, training):
    config = small_student_config(drop_path_rate=0.0, segmentation_dropout=0.0)
    model = double_model(model_class, config, training)
    points = torch.randn(3, 80, 3, dtype=torch.float64)
    labels = torch.randint(config.num_labels, (3, 80))
    category = torch.tensor([0, 3, 1]) if model_class is ACTStudentForPartSegmentation else None
    given = {} if category is None else {"category": category}
    loss = model(points, labels=labels, **given).loss

    def textbook_loss(weights):
        logits = textbook.segmentation(weights, config, points, model.group(points), training, category)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    assert_same_as_textbook(model, loss, textbook_loss)
