"""Duties of every model: save and load, repeat itself, pass gradients, run in bf16, and refuse bad input."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_act import ACTStudent, ACTStudentForPreTraining, ACTTeacher
from modeling_act.act_layers import ACTDropPath
from modeling_act.modeling_act_student import distillation_loss, sample_mask
from modeling_act.modeling_act_teacher import add_gumbel_noise, uniform_kl
from small_models import small_models, small_student_config, small_teacher_config

MODELS = [name for name in small_models() if name != "views"]  # which has tests of its own, and trains nothing
HEADS = [name for name in MODELS if name not in ("teacher", "student")]


def build(name, **overrides):
    model_class, config, inputs = small_models()[name]
    for field, value in overrides.items():
        setattr(config, field, value)
    return model_class(config), {"points": torch.randn(2, 64, 3), **inputs}


def tensors(output):
    return {key: value for key, value in output.items() if isinstance(value, torch.Tensor)}


def assert_equal(output, expected, **tolerance):
    output, expected = tensors(output), tensors(expected)
    assert output.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(output[key], expected[key], msg=lambda m, key=key: f"{key}: {m}", **tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_save_and_load_is_bit_equal(name, tmp_path):
    model, inputs = build(name)
    model.eval()
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".py"}
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not loaded.training
    assert_equal(loaded(**inputs), model(**inputs), rtol=0, atol=0)
    assert loaded.config.to_json_string() == model.config.to_json_string()


@pytest.mark.parametrize("name", MODELS)
def test_missing_weights_are_initialised_as_in_a_new_model(name, tmp_path):
    """Loading builds on the meta device: what the file lacks must be drawn, not read from unset memory."""
    model, _ = build(name)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    for key, expected in state.items():
        value = loaded.state_dict()[key]
        assert value.shape == expected.shape and value.isfinite().all(), key
        if not value.is_floating_point():
            assert value == 0, key
            continue
        if expected.numel() > 200:
            torch.testing.assert_close(value.std(), expected.std(), rtol=0.3, atol=1e-6, msg=f"{key} {value.std()}")
        if expected.std(correction=0) == 0:
            torch.testing.assert_close(value, expected, msg=f"{key} {value}")


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_deterministic_and_clouds_do_not_mix(name):
    model, inputs = build(name)
    model.eval()
    both = model(**inputs)
    assert_equal(model(**inputs), both, rtol=0, atol=0)
    single = [model(**{key: value[i : i + 1] for key, value in inputs.items()}) for i in (0, 1)]
    for key, value in tensors(both).items():
        if value.ndim > 0:
            torch.testing.assert_close(torch.cat([one[key] for one in single]), value, rtol=1e-4, atol=1e-5)
        elif key != "kl_loss":
            torch.testing.assert_close(sum(one[key] for one in single) / 2, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "fields"),
    [*((head, {}) for head in HEADS), *(("teacher", {"prompt_type": kind}) for kind in ("deep", "shallow", "none"))],
)
def test_gradients_reach_every_trainable_parameter_and_no_frozen_one(name, fields):
    model, inputs = build(name)
    if name == "teacher":
        model = ACTTeacher(small_teacher_config(**fields))
    inputs["code_mode"] = "soft"
    # In eval mode: in training the biases before a batch norm have a gradient of zero, whatever reaches them.
    model.eval()(**inputs).loss.backward()
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    assert all(key.startswith("backbone.") for key in frozen) and bool(frozen) == (name == "teacher")
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        else:
            assert parameter.grad is None, key


@pytest.mark.parametrize("name", MODELS)
def test_bf16_autocast_stays_close_to_fp32(name):
    """Every output within 2e-2 * (1 + its maximum) of fp32, arg-max codes wherever the margin allows it; the logits
    within 1e-1: of networks as narrow as these they move by 2 to 16 %, of the paper's widths by 1.6 %."""
    model, inputs = build(name)
    model.eval()
    # Groups once: the question is the network, not which of two equally near points comes first.
    if name not in ("parts", "semantic"):
        inputs["groups"] = model.group(inputs.pop("points"))
    if name == "teacher":
        inputs["code_mode"] = "soft"  # one arg-max code that flips changes all that follows
    expected = model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
    for key, value in tensors(expected).items():
        if key == "code_indices":
            top = expected.logits.topk(2, dim=-1).values
            clear = top[..., 0] - top[..., 1] > 0.2
            assert clear.any() and (output[key] == value)[clear].all()
        elif value.is_floating_point():
            error = (output[key].float() - value).abs().max() / (1 + value.abs().max())
            assert error <= (1e-1 if key == "logits" and name == "teacher" else 2e-2), f"{key}: {error}"


@pytest.mark.parametrize("name", MODELS)
def test_bf16_autocast_trains(name):
    model, inputs = build(name)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
    loss = output.loss if "loss" in output else output.pooler_output.float().square().mean()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_checkpointing_changes_nothing(name):
    rates = ("drop_path_rate", "prompt_dropout", "classifier_dropout", "segmentation_dropout")
    model, inputs = build(name, **dict.fromkeys(rates, 0.0))
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        output = model(**inputs, **({"code_mode": "soft"} if name == "teacher" else {}))
        (output.loss if "loss" in output else output.pooler_output.square().sum()).backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key in gradients[0]:
        torch.testing.assert_close(gradients[1][key], gradients[0][key], rtol=1e-4, atol=1e-6)


def test_student_outputs():
    model, inputs = build("student")
    model.eval()
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    config = model.config
    assert output.last_hidden_state.shape == (2, 1 + config.num_groups, config.hidden_size)
    cls, groups = output.last_hidden_state[:, 0], output.last_hidden_state[:, 1:]
    assert torch.equal(output.pooler_output, torch.cat([cls, groups.max(1).values], dim=-1))
    assert output.centers.shape == (2, config.num_groups, 3)
    assert len(output.hidden_states) == config.num_hidden_layers + 1
    torch.testing.assert_close(model.norm(output.hidden_states[-1]), output.last_hidden_state)
    assert model.config._attn_implementation == "sdpa" and output.attentions == ()
    model.set_attn_implementation("eager")
    eager = model(**inputs, output_attentions=True)
    assert [a.shape for a in eager.attentions] == [(2, 4, 17, 17)] * 3
    torch.testing.assert_close(eager.attentions[0].sum(-1), torch.ones(2, 4, 17))
    torch.testing.assert_close(eager.last_hidden_state, output.last_hidden_state)


@pytest.mark.parametrize("visible_only", [False, True])
def test_masked_groups_reach_only_the_batch_statistics(visible_only):
    model = ACTStudent(small_student_config(embed_visible_only=visible_only, drop_path_rate=0.0)).train()
    groups = model.group(torch.randn(2, 64, 3))
    mask = torch.zeros(groups.centers.shape[:2], dtype=torch.bool)
    mask[:, ::2] = True
    states = []
    for scale in (1, 5):
        neighborhoods = torch.where(mask[:, :, None, None], scale * groups.neighborhoods, groups.neighborhoods)
        states.append(model(groups=(groups.centers, neighborhoods), bool_masked_pos=mask).last_hidden_state)
    assert torch.equal(*states) == visible_only


def test_student_sees_only_visible_groups():
    model, inputs = build("student")
    model.eval()
    groups = model.group(inputs["points"])
    mask = torch.arange(16).ge(4).expand(2, -1)
    changed = groups.neighborhoods.where(~mask[:, :, None, None], 7.0)
    output = model(groups=groups, bool_masked_pos=mask)
    assert output.last_hidden_state.shape == (2, 5, 24)
    assert torch.equal(model(groups=(groups.centers, changed), bool_masked_pos=mask).last_hidden_state, output[0])


def test_without_class_token():
    model = ACTStudent(small_student_config(use_cls_token=False)).eval()
    output = model(torch.randn(2, 64, 3))
    hidden = output.last_hidden_state
    assert hidden.shape == (2, 16, 24)
    torch.testing.assert_close(output.pooler_output, torch.cat([hidden.mean(1), hidden.max(1).values], dim=-1))


def test_drop_path_drops_whole_clouds_and_keeps_the_mean():
    drop = ACTDropPath(0.25).train()
    branch = drop(torch.ones(4000, 2, 3))
    kept = branch[:, 0, 0]
    assert set(kept.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(branch, kept[:, None, None].expand_as(branch))
    assert abs(kept.mean().item() - 1) < 0.05
    assert torch.equal(drop.eval()(branch), branch)
    layers = ACTStudent(small_student_config(num_hidden_layers=5)).layers
    rates = [layer.drop_path.rate for layer in layers]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.1) and rates == sorted(rates)


def test_masks():
    centers = torch.randn(500, 16, 3)
    generator = torch.Generator().manual_seed(3)
    mask = sample_mask(centers, 12, "random", generator)
    assert mask.sum(1).eq(12).all()
    assert (mask.float().mean(0) - 0.75).abs().max() < 0.1  # every place is masked as often
    assert torch.equal(mask, sample_mask(centers, 12, "random", torch.Generator().manual_seed(3)))
    assert not torch.equal(mask, sample_mask(centers, 12, "random", generator))
    block = sample_mask(centers, 5, "block", torch.Generator().manual_seed(3))
    distances = torch.cdist(centers, centers)
    nearest = distances.topk(5, largest=False).indices  # of each possible seed
    possible = torch.zeros(500, 16, 16, dtype=torch.bool).scatter_(2, nearest, True)
    assert (possible == block[:, None]).all(-1).any(-1).all()
    blocks = sample_mask(centers, 5, "blocks")
    assert (blocks.sum(1) == 5).all() and not (possible == blocks[:, None]).all(-1).any(-1).all()
    with pytest.raises(ValueError, match="'random', 'block' or 'blocks'"):
        sample_mask(centers, 5, "rows")


def test_distillation_losses():
    """Against independent formulas, and constants worked by hand."""
    predicted, target = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.tensor([[[4.0, 3.0], [0.0, 2.0]]])
    assert distillation_loss(predicted, target, "cosine").item() == pytest.approx(1 - (24 / 25 + 0) / 2)
    assert distillation_loss(predicted, target, "l2").item() == pytest.approx((1 + 1 + 1 + 4) / 4)
    assert distillation_loss(predicted, target, "smooth_l1").item() == pytest.approx((0.5 + 0.5 + 0.5 + 1.5) / 4)


def test_groups_are_shared_and_the_teacher_stays_outside():
    teacher = ACTTeacher(small_teacher_config()).eval()
    student = ACTStudentForPreTraining(small_student_config()).eval()
    points = torch.randn(2, 64, 3)
    groups = teacher.group(points)
    with torch.no_grad():
        features = teacher.get_teacher_features(groups=groups)
    mask = torch.arange(16).ge(4).expand(2, -1)
    shared = student(groups=groups, teacher_features=features, bool_masked_pos=mask)
    apart = student(points, teacher.get_teacher_features(points), mask)
    assert_equal(shared, apart, rtol=0, atol=0)
    drawn = [student(points, features, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(drawn[0].mask, drawn[1].mask) and drawn[0].loss == drawn[1].loss
    assert not any("teacher" in key for key in student.state_dict())


def test_code_modes():
    teacher = ACTTeacher(small_teacher_config())
    points = torch.randn(2, 64, 3)
    teacher.eval()
    default = teacher(points)
    assert_equal(default, teacher(points, code_mode="argmax"), rtol=0, atol=0)
    assert torch.equal(teacher.get_teacher_features(points), default.teacher_features)
    soft = teacher(points, temperature=0.5, code_mode="soft")
    codes = (soft.logits / 0.5).softmax(-1) @ teacher.codebook
    expected = teacher.feature_projection(
        teacher.backbone(teacher.code_projection(codes), teacher.position_embedding(soft.centers), teacher.prompts(2))
    )
    torch.testing.assert_close(soft.backbone_features, expected)
    cold = teacher(points, temperature=1e-4, code_mode="soft")  # no noise and no warmth: the arg-max
    torch.testing.assert_close(cold.teacher_features, default.teacher_features, rtol=1e-3, atol=1e-4)
    # One noise, drawn by the generator: the sampled code of `get_teacher_features` is the cold limit of the soft one.
    noisy = teacher(points, temperature=1e-4, code_mode="gumbel", generator=torch.Generator().manual_seed(5))
    sampled = teacher.get_teacher_features(points, code_mode="gumbel", generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(sampled, noisy.teacher_features, rtol=1e-3, atol=1e-4)
    assert not torch.equal(sampled, default.teacher_features)
    teacher.train()
    torch.manual_seed(0)
    first = teacher(points)
    assert not torch.equal(teacher(points).backbone_features, first.backbone_features)


def test_gumbel_noise_samples_codes_by_their_probability():
    logits = torch.tensor([0.0, 1.0, 2.0])
    drawn = add_gumbel_noise(logits.expand(60000, 3), torch.Generator().manual_seed(0)).argmax(-1)
    torch.testing.assert_close(drawn.bincount() / 60000, logits.softmax(-1), rtol=0.03, atol=0)


def test_uniform_kl():
    logits = torch.randn(3, 7, 32, dtype=torch.float64)
    usage = logits.softmax(-1).mean(1)
    expected = torch.nn.functional.kl_div(
        usage.log(), torch.full_like(usage, 1 / 32).log(), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(uniform_kl(logits), expected)
    assert uniform_kl(torch.zeros(2, 4, 8)).item() == pytest.approx(0, abs=1e-6)
    assert uniform_kl(logits * 1e4).isfinite()  # probabilities underflow, their logarithms do not


class Positional(torch.nn.Module):
    """Export and compile want positional inputs and tensors out."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        output = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(value for value in output.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("name", MODELS)
def test_exports_with_the_grouping_inside(name):
    """One graph without breaks, checked on other data than it was traced with."""
    model, inputs = build(name)
    model.eval()
    if name == "pretraining":
        inputs["bool_masked_pos"] = torch.arange(16).ge(4).expand(2, -1).contiguous()
    module = Positional(model, list(inputs))
    with torch.no_grad():
        program = torch.export.export(module, tuple(inputs.values()), strict=False)
        inputs["points"] = torch.randn(2, 64, 3)
        exported, eager = program.module()(*inputs.values()), module(*inputs.values())
    assert len(exported) == len(eager) > 0
    for value, expected in zip(exported, eager, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_new_models_are_initialised_as_the_original():
    """torch's defaults in point networks and the classification head, 0.02 in the student, Xavier in its decoder."""
    teacher = ACTTeacher(small_teacher_config(codebook_size=512, code_dim=64))
    heads = ACTStudentForPreTraining(small_student_config(hidden_size=64, intermediate_size=128))
    classifier = small_models()["classification"][0](small_student_config())
    defaults = [
        *(module for part in (teacher.group_embedding, teacher.code_network) for module in part.modules()),
        *(teacher.decoder.linear1, teacher.decoder.fold1, teacher.code_projection, teacher.feature_projection),
        *(classifier.classifier.layers[0], heads.decoder.projection, heads.decoder.position_embedding.linear2),
    ]
    for linear in (module for module in defaults if hasattr(module, "in_features")):
        bound = linear.in_features**-0.5
        assert 0.8 * bound < linear.weight.abs().max() <= bound, linear
        assert linear.bias is None or 0 < linear.bias.abs().max() <= bound, linear
    assert teacher.codebook.std().item() == pytest.approx(1, abs=0.05)
    for parameter in (teacher.prompts.tokens, teacher.prompts.deep_positions, heads.student.cls_token):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.3)
    layer, decoder_layer = heads.student.layers[0], heads.decoder.layers[0]
    for linear in (layer.mlp.fc1, layer.attention.qkv, heads.student.group_embedding.linear4):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    xavier = (6 / (64 + 128)) ** 0.5
    assert 0.95 * xavier < decoder_layer.mlp.fc1.weight.abs().max() <= xavier
    assert not layer.mlp.fc1.bias.any() and not decoder_layer.mlp.fc1.bias.any()


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_read_inside_their_modules_only(name):
    """Offloading puts them there for the call alone, and adapters wrap the call: elsewhere they are NaN here."""
    model, inputs = build(name)
    model.eval()
    with torch.no_grad():
        expected = model(**inputs)
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            kept = [parameter.clone() for parameter in own]

            def restore(module, args, own=own, kept=kept):
                for parameter, value in zip(own, kept, strict=True):
                    parameter.copy_(value)

            def spoil(module, args, output, own=own):
                for parameter in own:
                    parameter.fill_(torch.nan)

            spoil(module, None, None)
            module.register_forward_pre_hook(restore)
            module.register_forward_hook(spoil)
        assert_equal(model(**inputs), expected, rtol=0, atol=0)
