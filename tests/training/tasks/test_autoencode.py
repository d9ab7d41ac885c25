"""Initial scale of the code logits in autoencode.py."""

import torch
from autoencode import calibrate_logits

from modeling_act import ACTTeacher
from small_models import small_teacher_config


def test_calibrated_logits_have_equal_mean_and_std():
    teacher = ACTTeacher(small_teacher_config()).train()
    clouds = torch.rand(96, 64, 3) * 2 - 1
    calibrate_logits(teacher, clouds, 8.0)
    outputs = []
    teacher.code_network.norm.register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
    with torch.no_grad():
        for points in clouds.split(64):
            teacher(points)
    logits = torch.cat(outputs).flatten(2).transpose(1, 2).flatten(0, 1)  # (all groups, codes), before the activation
    torch.testing.assert_close(logits.mean(0), torch.zeros(logits.shape[1]), rtol=0, atol=0.5)
    torch.testing.assert_close(logits.std(0), torch.full((logits.shape[1],), 8.0), rtol=0.1, atol=0)
