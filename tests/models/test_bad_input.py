"""Configurations and the rules they keep; input that no model can use, and the one line it gets."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from modeling_act import ACTStudent, ACTStudentConfig, ACTTeacher, ACTTeacherConfig
from small_models import small_models, small_student_config, small_teacher_config


def test_every_width_is_a_field():
    teacher = ACTTeacher(small_teacher_config())
    assert sum(p.numel() for p in teacher.parameters()) < 30_000
    assert sum(p.numel() for p in ACTStudent(small_student_config()).parameters()) < 20_000
    default = ACTStudent(ACTStudentConfig())
    assert 21e6 < sum(p.numel() for p in default.parameters()) < 23e6  # the paper's 22.1 M


BAD_CONFIGURATIONS = [
    (ACTStudentConfig, {"num_attention_heads": 5}, "`hidden_size` must be divisible by `num_attention_heads`"),
    (ACTStudentConfig, {"mask_ratio": 1.0}, "mask_ratio.*greater or equal to 0 and smaller than 1, got 1.0"),
    (ACTStudentConfig, {"mask_type": "rand"}, "mask_type.*expected one of .'random', 'block', 'blocks'., got rand"),
    (ACTStudentConfig, {"head": "mlp"}, "head.*expected one of .'mlp3', 'linear'., got mlp"),
    (ACTStudentConfig, {"num_groups": 0}, "num_groups.*must be a positive integer, got 0"),
    (ACTStudentConfig, {"segmentation_layers": [3, 13]}, "`segmentation_layers` must name layers from 1 on, the last"),
    (ACTStudentConfig, {"segmentation_layers": [3, 7, 11]}, "`segmentation_layers` must name layers from 1 on"),
    (ACTStudentConfig, {"hidden_size": "384"}, "hidden_size.*expected int, got str"),
    (ACTStudentConfig, {"hidden_act": "org/kernel"}, "hidden_act.*must be one of"),
    (ACTStudentConfig, {"teacher_dims": [100, 200]}, "`teacher_dims` must add up to teacher_dim=384"),
    (ACTStudentConfig, {"cloud_dims": [8, 8]}, "`cloud_dims` must hold a value for each of 1 teachers"),
    (ACTStudentConfig, {"cloud_dims": [8], "use_cls_token": False}, "`cloud_dims` needs use_cls_token=True"),
    (ACTStudentConfig, {"pooling": "cls_min"}, "pooling"),
    (ACTTeacherConfig, {"use_layer_scale": True, "norm_position": "post"}, "`use_layer_scale` needs norm_position"),
    (ACTStudentConfig, {"pointnet_dims": [128, 256]}, "`pointnet_dims` must hold 3 widths, got .128, 256."),
    (ACTTeacherConfig, {"group_size": 30}, "`group_size` must be divisible by 4"),
    (ACTTeacherConfig, {"codebook_size": 1022}, "`codebook_size` must be divisible by 4"),
    (ACTTeacherConfig, {"num_groups": 3}, "`dgcnn_neighbors` must not exceed `num_groups`"),
    (ACTTeacherConfig, {"prompt_type": "wide"}, "prompt_type.*expected one of .'deep', 'shallow', 'none'., got wide"),
    (ACTTeacherConfig, {"temperature": 0.0}, "temperature.*must be greater than 0, got 0.0"),
    (ACTTeacherConfig, {"num_prompts": 0}, "`num_prompts` must be at least 1"),
]


@pytest.mark.parametrize(("config_class", "fields", "message"), BAD_CONFIGURATIONS)
def test_impossible_configurations_raise_the_rule(config_class, fields, message):
    with pytest.raises(StrictDataclassError, match=f"(?s){message}"):
        config_class(**fields)


def bad_inputs():
    points = torch.randn(2, 64, 3)
    nan = points.clone()
    nan[1, 5, 0] = torch.nan
    uneven = torch.zeros(2, 16, dtype=torch.bool)
    uneven[0, 0] = True
    features = torch.randn(2, 16, 20)
    return [
        ("student", {"points": nan}, "finite.*cloud 1, point 5"),
        ("student", {"points": points[..., :2]}, r"shape \(batch, points, 3\)"),
        ("student", {"points": points[:, :10]}, "num_groups=16"),
        ("student", {}, "exactly one of `points` and `groups`"),
        ("student", {"points": points, "bool_masked_pos": uneven}, r"as many groups in each cloud, got \[1, 0\]"),
        ("student", {"points": points, "bool_masked_pos": torch.zeros(2, 16)}, "must be bool"),
        ("pretraining", {"points": points, "teacher_features": features[:, :, :8]}, "teacher_dim.*got"),
        ("pretraining", {"points": points, "bool_masked_pos": uneven & False}, "visible and masked groups"),
        (
            "pretraining",
            {"points": points, "bool_masked_pos": uneven & False, "num_masked": 3},
            "must mask `num_masked` groups, got 0 and num_masked=3",
        ),
        ("teacher", {"points": points, "code_mode": "hard"}, "`code_mode` must be one of gumbel, soft, argmax"),
        ("teacher", {"points": points, "code_mode": "soft", "temperature": 0}, "`temperature` must be positive"),
        ("classification", {"points": points, "labels": torch.tensor([0, 5])}, "below 5, got 5"),
        ("classification", {"points": points, "labels": torch.tensor([0.0, 1.0])}, "`labels` must be integers"),
        ("parts", {"points": points}, "`category` must be integers of shape .2,., got none"),
        ("parts", {"points": points, "category": torch.tensor([0, 4])}, "`category` must be below 4, got 4"),
        ("semantic", {"points": points, "labels": torch.zeros(2, dtype=torch.long)}, r"shape \(2, 64\)"),
    ]


@pytest.mark.parametrize(("name", "inputs", "message"), bad_inputs())
def test_bad_input_gets_one_clear_line(name, inputs, message):
    model_class, config, _ = small_models()[name]
    with pytest.raises(ValueError, match=message) as caught:
        model_class(config).eval()(**inputs)
    assert "\n" not in str(caught.value)


def test_configurations_round_trip_as_json(tmp_path):
    for config in (small_student_config(embedding_dim=12), small_teacher_config(prompt_type="none")):
        config.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == config.model_type
        assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()
