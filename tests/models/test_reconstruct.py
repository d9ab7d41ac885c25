"""`reconstruct` of teacher and student: predictions of masked groups, decoded to points."""

import pytest
import torch

from modeling_act import ACTStudentForPreTraining, ACTTeacher
from small_models import small_student_config, small_teacher_config


@pytest.mark.parametrize(
    ("target", "target_norm"),
    [("teacher", "none"), ("teacher", "standardize"), ("backbone", "phi_s"), ("coordinates", "none")],
)
def test_reconstruct_replaces_the_masked_groups(target, target_norm):
    """Against the same steps written out, of one cloud; visible groups stay as they are."""
    teacher = ACTTeacher(small_teacher_config()).eval()
    sizes = {"teacher": 20, "backbone": 12, "coordinates": 24}
    config = small_student_config(target=target, teacher_dim=sizes[target], target_norm=target_norm)
    student = ACTStudentForPreTraining(config).train()
    norm = student.target_norm
    if target_norm != "none":
        norm.measure(torch.randn(99, sizes[target]) @ torch.randn(sizes[target], sizes[target]) + 0.5)
    points, mask = torch.randn(2, 64, 3), torch.arange(16).ge(4).expand(2, -1)
    clouds = student.reconstruct(points, None if target == "coordinates" else teacher, mask)
    assert student.training and student.student.training
    student.eval()
    groups = student.group(points)
    with torch.no_grad():
        predicted = student(groups=groups, bool_masked_pos=mask).predicted_features
        if target == "coordinates":
            decoded = predicted.unflatten(2, (8, 3))
        else:
            of_backbone = target == "backbone"
            features = teacher.get_teacher_features(groups=groups, of_backbone=of_backbone)
            length = norm(features).norm(dim=-1).mean()
            features[:, 4:] = norm.invert(torch.nn.functional.normalize(predicted, dim=-1) * length)
            decoded = teacher.decode_features(features, groups.centers, of_backbone)[:, 4:]
    whole = groups.neighborhoods + groups.centers.unsqueeze(2)
    for place, cloud in enumerate(clouds):
        assert torch.equal(cloud["input"], points[place])
        assert torch.equal(cloud["visible"], whole[place, :4].flatten(0, 1))
        assert torch.equal(cloud["reconstruction"][:32], cloud["visible"])
        expected = (decoded[place] + groups.centers[place, 4:, None]).flatten(0, 1)
        torch.testing.assert_close(cloud["reconstruction"][32:], expected, rtol=1e-4, atol=1e-4)
    drawn = [
        student.reconstruct(points, None if target == "coordinates" else teacher, seed=seed) for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0][0]["visible"], drawn[1][0]["visible"])
    assert not torch.equal(drawn[0][0]["visible"], drawn[2][0]["visible"])


def test_reconstruct_checks_its_teacher():
    student, points = ACTStudentForPreTraining(small_student_config()), torch.randn(1, 64, 3)
    with pytest.raises(ValueError, match="target='teacher' needs its teacher"):
        student.reconstruct(points)
    with pytest.raises(ValueError, match=r"must share groups, .* got \(16, 8, 20\) and \(16, 8, 24\)"):
        student.reconstruct(points, ACTTeacher(small_teacher_config(feature_dim=24)))
    student.config.target = "coordinates"
    with pytest.raises(ValueError, match="target='coordinates' needs no teacher"):
        student.reconstruct(points, ACTTeacher(small_teacher_config()))
    (cloud,) = ACTTeacher(small_teacher_config()).reconstruct(points)
    assert {name: part.shape for name, part in cloud.items()} == {
        "input": (64, 3),
        "visible": (64, 3),
        "reconstruction": (128, 3),
    }
