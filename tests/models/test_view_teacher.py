"""ACTViewTeacher: around every kind of image Transformer, and what it says of clouds, groups and batches."""

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel

from backbone_cases import needs_timm
from modeling_act import ACTViewTeacher, ACTViewTeacherConfig
from modeling_act.point_ops import PointGroups

TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
IMAGE = {"image_size": 32, "patch_size": 8}
HALVES = {"text_config": TINY | {"vocab_size": 50}, "vision_config": TINY | IMAGE}
FAMILIES = {  # model type: fields, tokens before the patches, width of the cloud's features
    "vit": (TINY | IMAGE, 1, 48),
    "deit": (TINY | IMAGE, 2, 48),
    "dinov2": (TINY | IMAGE, 1, 48),
    "dinov2_with_registers": (TINY | IMAGE, 5, 48),
    "dinov3_vit": (TINY | IMAGE | {"num_register_tokens": 2}, 3, 48),
    "ijepa": (TINY | IMAGE, 0, 24),
    "siglip_vision_model": (TINY | IMAGE, 0, 24),
    "clip_vision_model": (TINY | IMAGE, 1, 48),
    "clip": (HALVES | {"projection_dim": 16}, 1, 16),
    "siglip": (HALVES, 0, 24),
}


def backbone(kind, seed=0):
    torch.manual_seed(seed)
    return AutoModel.from_config(AutoConfig.for_model(kind, **FAMILIES[kind][0])).eval()


@pytest.fixture(scope="module")
def teacher():
    return ACTViewTeacher.from_backbone(backbone("dinov2"), num_groups=16, group_size=8)


@pytest.fixture
def points():
    return torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_teaches_saves_and_loads(kind, tmp_path, points):
    _, num_prefix_tokens, cloud_dim = FAMILIES[kind]
    teacher = ACTViewTeacher.from_backbone(backbone(kind), num_groups=16, group_size=8, image_size=48, num_views=3)
    config = teacher.config
    assert (config.num_prefix_tokens, config.cloud_dim, config.feature_dim) == (num_prefix_tokens, cloud_dim, 24)
    features, cloud = teacher.get_teacher_features(points, return_cloud=True)
    assert features.shape == (2, 16, 24) and cloud.shape == (2, cloud_dim)
    assert features.std(1).mean() > 1e-3 and not torch.allclose(cloud[0], cloud[1], atol=1e-4)
    assert not teacher.training and not any(weight.requires_grad for weight in teacher.parameters())

    teacher.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is ACTViewTeacher and not any(weight.requires_grad for weight in loaded.parameters())
    again = loaded.get_teacher_features(points, return_cloud=True)
    assert torch.equal(again[0], features) and torch.equal(again[1], cloud)


@needs_timm
@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
def test_timm(name, tmp_path, points):
    teacher = ACTViewTeacher.from_backbone(name, pretrained=False, num_groups=16, group_size=8)
    assert teacher.config.image_size == 128 and teacher.config.patch_size == 16
    features = teacher.get_teacher_features(points)
    assert features.shape == (2, 16, teacher.config.hidden_size)
    teacher.save_pretrained(tmp_path)
    assert torch.equal(ACTViewTeacher.from_pretrained(tmp_path).get_teacher_features(points), features)


def test_folder_names_normalization_and_controls(tmp_path, points):
    model = backbone("dinov2")
    model.save_pretrained(tmp_path / "backbone")
    (tmp_path / "backbone/preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}'
    )
    teacher = ACTViewTeacher.from_backbone(tmp_path / "backbone", num_groups=16, group_size=8)
    assert teacher.config.backbone == "backbone" and teacher.config.image_mean == [0.5, 0.5, 0.5]
    assert torch.equal(teacher.backbone.layernorm.weight, model.layernorm.weight)
    expected = model((teacher.render(points).images[0] - 0.5), output_hidden_states=True)
    cloud = teacher.get_teacher_features(points, return_cloud=True)[1][0]
    torch.testing.assert_close(cloud[:24], expected.last_hidden_state[:, 0].mean(0))
    torch.testing.assert_close(cloud[24:], expected.last_hidden_state[:, 1:].mean((0, 1)))

    control = ACTViewTeacher.from_backbone(tmp_path / "backbone", pretrained=False)
    assert not torch.equal(control.backbone.encoder.layer[0].mlp.fc1.weight, model.encoder.layer[0].mlp.fc1.weight)


def test_layers_are_normalized_and_averaged(points):
    teacher = ACTViewTeacher.from_backbone(
        backbone("dinov2"), num_groups=16, group_size=8, feature_layers=[1, 2], num_views=2
    )
    images = teacher.render(points).images[0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.config.image_mean, teacher.config.image_std))
    states = teacher.backbone((images - mean) / std, output_hidden_states=True).hidden_states
    layers = [torch.nn.functional.layer_norm(states[number], (24,)) for number in (1, 2)]
    expected = ((layers[0] + layers[1]) / 2)[:, 1:].mean((0, 1))
    torch.testing.assert_close(teacher.get_teacher_features(points, return_cloud=True)[1][0, 24:], expected)


def test_clip_and_siglip_teach_what_their_text_half_is_compared_with(points):
    for kind in ("clip", "siglip"):
        model = backbone(kind)
        teacher = ACTViewTeacher.from_backbone(model, num_groups=16, group_size=8, image_size=32, num_views=2)
        assert teacher.config.cloud_features == "embedding"
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.config.image_mean, teacher.config.image_std))
        images = (teacher.render(points).images[0] - mean) / std
        embeddings = model.get_image_features(pixel_values=images).pooler_output
        expected = normalize(embeddings, dim=-1).mean(0)
        cloud = teacher.get_teacher_features(points, return_cloud=True)[1][0]
        torch.testing.assert_close(cloud, expected, atol=1e-5, rtol=1e-4)


def test_a_batch_is_its_clouds_and_place_and_size_do_not_matter(teacher, points):
    both = teacher.get_teacher_features(points, return_cloud=True)
    for row in range(2):
        one = teacher.get_teacher_features(points[row : row + 1], return_cloud=True)
        for value, whole in zip(one, both, strict=True):
            torch.testing.assert_close(value[0], whole[row], atol=1e-5, rtol=1e-4)
    moved = teacher(points * 4 + 8).images
    assert (moved - teacher(points).images).abs().mean() < 2e-3


def test_groups_are_looked_up_in_pictures_of_all_points(teacher, points):
    """A student groups few points of a cloud; the teacher may look at more of them."""
    groups = teacher.group(points[:, :100])
    output = teacher(points, groups)
    assert torch.equal(output.images, teacher.render(points).images) and torch.equal(output.centers, groups.centers)
    pairs = PointGroups(*(torch.cat([part, part.flip(1)], dim=1) for part in groups))
    twice = teacher.get_teacher_features(points, pairs)
    torch.testing.assert_close(twice[:, 16:].flip(1), output.teacher_features)
    alone = teacher(groups=groups).images
    assert alone.shape == output.images.shape and not torch.equal(alone, output.images)


def test_bf16(teacher, points):
    expected = teacher.get_teacher_features(points)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, images = teacher.get_teacher_features(points), teacher(points).images
    assert torch.equal(images, teacher(points).images)  # of the pictures nothing is rounded
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(rounded, expected, dim=-1).min() > 0.99


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ACTViewTeacher.from_backbone(backbone("dinov2"), image_size=50), "multiple of the patches' 8 pixels"),
        (lambda: ACTViewTeacher.from_backbone(backbone("dinov2"), views=3), "ACTViewTeacherConfig has no field views"),
        (lambda: ACTViewTeacher.from_backbone(backbone("dinov2"), pretrained=False), "takes the name of a model"),
        (lambda: ACTViewTeacher.from_backbone(torch.nn.Linear(2, 2)), "no Vision Transformer"),
        (lambda: ACTViewTeacherConfig(image_size=100), "`image_size` must be divisible by `patch_size`"),
        (lambda: ACTViewTeacherConfig(shading="cel"), "shading"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(make, message):
    with pytest.raises(Exception, match=message):
        make()
