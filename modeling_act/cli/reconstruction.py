"""What a teacher makes of a cloud, and what it draws of the groups that a student saw nothing of."""

from contextlib import nullcontext

import torch
from torch import Tensor

from ..configuration_act_student import ACTStudentConfig
from ..errors import InputError
from ..inference import in_eval_mode
from ..modeling_act_student import ACTStudentForPreTraining, sample_mask
from ..modeling_act_teacher import ACTTeacher
from ..point_ops import PointGroups


@torch.inference_mode()
def reconstruct(
    teacher: ACTTeacher | None,
    points: Tensor,
    student: ACTStudentForPreTraining | None = None,
    seed: int = 0,
    bool_masked_pos: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """For each of some clouds (batch, points, 3): `input`, `visible` and `reconstruction`, each (n, 3).

    Without a student all is visible, and the reconstruction is the teacher's through its codes. A student sees the
    share of the groups that it was pretrained with, drawn with `seed`, or those that `bool_masked_pos` (batch, groups)
    leaves; the teacher draws what it predicts of the rest.
    """
    if student is None:
        with in_eval_mode(teacher):
            output = teacher(points)
        drawn = output.reconstruction
        clouds = zip(points, points, drawn, strict=True)
        return [dict(zip(("input", "visible", "reconstruction"), cloud, strict=True)) for cloud in clouds]
    check_pair(teacher, student.config)
    groups = student.group(points)
    mask = bool_masked_pos
    if mask is None:
        generator = torch.Generator(points.device).manual_seed(seed)
        num_masked = int(student.config.mask_ratio * groups.centers.shape[1])
        mask = sample_mask(groups.centers, num_masked, student.config.mask_type, generator)
    with in_eval_mode(student), nullcontext() if teacher is None else in_eval_mode(teacher):
        predicted = student(groups=groups, bool_masked_pos=mask).predicted_features.float()
        drawn = draw_prediction(teacher, student.config, groups, mask, predicted)
    whole = groups.neighborhoods + groups.centers.unsqueeze(2)  # (batch, groups, group_size, 3)
    return [
        {"input": cloud, "visible": parts[~hidden].flatten(0, 1), "reconstruction": made}
        for cloud, parts, hidden, made in zip(points, whole, mask, drawn, strict=True)
    ]


def check_pair(teacher: ACTTeacher | None, config: ACTStudentConfig) -> None:
    """Raises unless the student predicts what this teacher says of the same groups."""
    if config.target == "coordinates":
        if teacher is not None:
            raise InputError("this student predicts coordinates and has no teacher: leave the teacher out")
        return
    if teacher is None:
        raise InputError("this student predicts a teacher's features: its teacher is needed to draw them")
    width = teacher.config.code_dim if config.target == "backbone" else teacher.config.feature_dim
    own = (config.num_groups, config.group_size, config.teacher_dim)
    of_teacher = (teacher.config.num_groups, teacher.config.group_size, width)
    if own != of_teacher:
        raise InputError(f"student and teacher must share groups, their size and width, got {own} and {of_teacher}")


def draw_prediction(
    teacher: ACTTeacher | None, config: ACTStudentConfig, groups: PointGroups, mask: Tensor, predicted: Tensor
) -> Tensor:
    """Clouds (batch, points, 3): the visible groups, and for each hidden one what was predicted (batch, hidden groups,
    teacher_dim). A cosine loss leaves the length of a prediction open: it gets that of the features."""
    if config.target == "coordinates":
        points = groups.neighborhoods.masked_scatter(mask[:, :, None, None], predicted.unflatten(2, (-1, 3)))
    else:
        of_backbone, mean, deviation = config.target == "backbone", 0.0, 1.0
        features = teacher.get_teacher_features(groups=groups, of_backbone=of_backbone).float()
        if config.target_mean is not None:
            mean, deviation = (features.new_tensor(part) for part in (config.target_mean, config.target_deviation))
        features = (features - mean) / deviation
        length = features.norm(dim=-1).mean() / predicted.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        features = features.masked_scatter(mask.unsqueeze(2), predicted * length) * deviation + mean
        drawn = teacher.draw(features, groups.centers, of_backbone)
        points = torch.where(mask[:, :, None, None], drawn, groups.neighborhoods)
    return (points + groups.centers.unsqueeze(2)).flatten(1, 2)


__all__ = ["check_pair", "draw_prediction", "reconstruct"]
