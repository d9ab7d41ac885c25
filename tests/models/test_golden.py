"""Parity with the authors' implementation: every golden tensor, through the converter and `from_pretrained`."""

import pytest
import torch

from golden_weights import golden_tensors, save_official
from modeling_act import (
    ACTStudent,
    ACTStudentForPartSegmentation,
    ACTStudentForPointCloudClassification,
    ACTStudentForPreTraining,
    ACTStudentForSemanticSegmentation,
    ACTTeacher,
)
from modeling_act.convert.official_checkpoint import main as convert

GOLDEN = golden_tensors()
COMPARED = set()

TEACHER_GRADIENTS = {
    "codebook": "codebook",
    "decoder.final_conv.6.weight": "decoder.fold3.weight",
    "decoder.mlp.0.weight": "decoder.linear1.weight",
    "deep_prompt_pos": "prompts.deep_positions",
    "deep_prompt_tokens": "prompts.deep_tokens",
    "dgcnn_1.layer1.0.weight": "code_network.layers.0.linear.weight",
    "dgcnn_2.layer4.0.weight": "feature_network.layers.3.linear.weight",
    "encoder.first_conv.0.weight": "group_embedding.linear1.weight",
    "proj_post.bias": "feature_projection.bias",
    "proj_pre.weight": "code_projection.weight",
    "visual_pos_embed.0.weight": "position_embedding.linear1.weight",
    "visual_prompt_token": "prompts.tokens",
}
STUDENT_GRADIENTS = {
    "ACT_decoder.blocks.1.mlp.fc2.weight": "decoder.layers.1.mlp.fc2.weight",
    "ACT_encoder.blocks.blocks.0.attn.qkv.weight": "student.layers.0.attention.qkv.weight",
    "ACT_encoder.cls_token": "student.cls_token",
    "ACT_encoder.encoder.first_conv.0.weight": "student.group_embedding.linear1.weight",
    "ACT_encoder.pos_embed.0.weight": "student.position_embedding.linear1.weight",
    "decoder_pos_embed.2.weight": "decoder.position_embedding.linear2.weight",
    "mask_token": "decoder.mask_token",
    "proj_head.weight": "decoder.projection.weight",
}


def assert_golden(name: str, tensor: torch.Tensor) -> None:
    COMPARED.add(name)
    expected, tensor = GOLDEN[name], tensor.detach()
    if expected.numel() < tensor.numel():  # long gradients are stored as a sample
        tensor = tensor.flatten()[:: tensor.numel() // 4096][:4096]
    assert tensor.numel() == expected.numel(), name
    error = (tensor.reshape(expected.shape) - expected).abs().max()
    assert error <= 1e-4 * (1 + expected.abs().max()), f"{name}: {error}"


def converted(tmp_path, name, *options, model_class, teacher=False):
    checkpoint = save_official(name, tmp_path / f"{name}.pth", teacher)
    assert convert([str(checkpoint), str(tmp_path / name), *options]) == 0
    return model_class.from_pretrained(tmp_path / name).eval()


@pytest.mark.parametrize("stage", [1, 2])
def test_teacher(tmp_path, stage):
    """Teachers of a stage-1 file, and from inside a stage-2 file."""
    if stage == 1:
        teacher = converted(tmp_path, "teacher_state", "--num_groups=16", model_class=ACTTeacher)
    else:
        options = ["--num_groups=16", "--num_attention_heads=6", f"--teacher_output={tmp_path / 'teacher'}"]
        converted(tmp_path, "student_state", *options, model_class=ACTStudentForPreTraining, teacher=True)
        teacher = ACTTeacher.from_pretrained(tmp_path / "teacher").eval()

    soft = teacher(GOLDEN["points"], temperature=0.7, code_mode="soft", kl_weight=0.05)
    assert_golden("center", soft.centers)
    assert_golden("neighborhood", soft.neighborhoods)
    assert_golden("teacher.patch_features", teacher.group_embedding(soft.neighborhoods))
    assert_golden("teacher.logits", soft.logits)
    assert_golden("teacher.coarse", soft.coarse_points)
    assert_golden("teacher.fine", soft.fine_points)
    assert_golden("teacher.recon_loss", soft.reconstruction_loss)
    assert_golden("teacher.kl_loss", soft.kl_loss)
    soft.loss.backward()
    parameters = dict(teacher.named_parameters())
    for official, ours in TEACHER_GRADIENTS.items():
        assert_golden(f"teacher.grad.{official}", parameters[ours].grad)

    hard = teacher(GOLDEN["points"])
    assert_golden("teacher.hard.fine", hard.fine_points)
    assert_golden("teacher.targets_before_dgcnn_2", hard.backbone_features)
    assert_golden("teacher.targets", hard.teacher_features)
    assert_golden("teacher.code_index", hard.code_indices)
    assert_golden("teacher.targets", teacher.get_teacher_features(GOLDEN["points"]))


def test_teacher_in_bf16(tmp_path):
    """Under autocast, within 2e-2 of the authors' fp32; the same codes wherever their margin is above the rounding."""
    teacher = converted(tmp_path, "teacher_state", "--num_groups=16", model_class=ACTTeacher)
    best, second = GOLDEN["teacher.logits"].topk(2, dim=-1).values.unbind(-1)
    clear = best - second > 0.05  # all but one, whose margin is 0.0007
    assert clear.sum() == clear.numel() - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = teacher(GOLDEN["points"])
        # what follows the codes, from the same ones
        codes, centers = teacher.codebook[GOLDEN["teacher.code_index"]], output.centers
        backbone_features, teacher_features = teacher._transform(codes, centers, teacher._neighbors(centers))
        fine_points = teacher.decoder(teacher_features)[1]
    assert torch.equal(output.code_indices[clear], GOLDEN["teacher.code_index"][clear])
    for name, value in {
        "teacher.hard.fine": fine_points,
        "teacher.targets": teacher_features,
        "teacher.targets_before_dgcnn_2": backbone_features,
        "teacher.logits": output.logits,
    }.items():
        error = (value.float() - GOLDEN[name]).abs().max()
        assert error <= 2e-2 * (1 + GOLDEN[name].abs().max()), f"{name}: {error}"


def test_student(tmp_path):
    options = ["--num_groups=16", "--num_attention_heads=6"]
    student = converted(tmp_path, "student_state", *options, model_class=ACTStudentForPreTraining)
    output = student(GOLDEN["points"], GOLDEN["teacher.targets"], GOLDEN["student.mask"])
    assert_golden("student.visible_hidden", output.last_hidden_state[:, 1:])
    assert_golden("student.loss", output.loss)
    output.loss.backward()
    parameters = dict(student.named_parameters())
    for official, ours in STUDENT_GRADIENTS.items():
        assert_golden(f"student.grad.{official}", parameters[ours].grad)
    encoder = ACTStudent.from_pretrained(tmp_path / "student_state").eval()
    assert_golden("student.visible_hidden", encoder(GOLDEN["points"], GOLDEN["student.mask"]).last_hidden_state[:, 1:])


@pytest.mark.parametrize("head", ["full", "linear"])
def test_classifier(tmp_path, head):
    options = ["--num_groups=16", "--num_attention_heads=6", "--num_labels=15"]
    name = f"classifier_{head}"
    model = converted(tmp_path, f"{name}_state", *options, model_class=ACTStudentForPointCloudClassification)
    assert_golden(f"{name}.logits", model(GOLDEN["points"]).logits)
    if head == "linear":
        assert_golden(f"{name}.last_hidden_state", model.student(GOLDEN["points"]).last_hidden_state)


def test_part_segmentation(tmp_path):
    model = converted(tmp_path, "part_segmentation_state", model_class=ACTStudentForPartSegmentation)
    logits = model(GOLDEN["part_segmentation.points"], GOLDEN["part_segmentation.category"]).logits
    assert_golden("part_segmentation.log_probs", logits.log_softmax(-1))
    COMPARED.update({"part_segmentation.points", "part_segmentation.category"})


def test_semantic_segmentation(tmp_path):
    model = converted(tmp_path, "semantic_segmentation_state", model_class=ACTStudentForSemanticSegmentation)
    logits = model(GOLDEN["semantic_segmentation.points"]).logits
    assert_golden("semantic_segmentation.log_probs", logits.log_softmax(-1))
    COMPARED.add("semantic_segmentation.points")


def test_no_golden_tensor_was_left_out():
    if len(COMPARED) < 10:
        pytest.skip("the other tests of this file did not run")
    assert set(GOLDEN) - COMPARED == {"points", "student.mask"}  # inputs
