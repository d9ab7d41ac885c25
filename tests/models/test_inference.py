"""Vectors of clouds and features of points: `ACTStudent.encode`, `encode_points`, `similarity`."""

import pickle
import resource
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from loopback_hub import TOKEN, LoopbackHub
from modeling_act import ACTPointCloudProcessor, ACTStudent, ACTStudentForPreTraining, inference
from modeling_act.errors import InputError
from modeling_act.hub.load_model import load_model
from modeling_act.point_ops import k_nearest_neighbors
from shape_files import make_shapes
from small_models import small_student_config

RANDOM = np.random.default_rng(0)
CLOUDS = [RANDOM.normal(size=(size, 3)) for size in (64, 30, 500, 3000, 70)]


@pytest.fixture
def student():
    return ACTStudent(small_student_config()).train()


@pytest.fixture
def processor():
    return ACTPointCloudProcessor(64)


def encode(student, clouds, processor, **options):
    return student.encode(clouds, processor=processor, show_progress=False, **options)


def test_vectors_are_those_of_the_model(student, processor):
    found = encode(student, CLOUDS, processor, normalize=False, batch_size=2)
    student.eval()
    with torch.no_grad():
        expected = torch.cat([student(**processor(cloud)).pooler_output for cloud in CLOUDS])
    assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=1e-6)
    unit = encode(student, CLOUDS, processor)
    assert torch.allclose(unit, torch.nn.functional.normalize(found, dim=1), atol=1e-6)


def test_samples_are_averaged(student, processor):
    selections = [processor.take_samples(cloud, 2, seed=3) for cloud in CLOUDS]
    student.eval()
    with torch.no_grad():
        parts = [student.embed(torch.stack(points)) for points in zip(*selections, strict=True)]
    found = encode(student, iter(CLOUDS), processor, normalize=False, samples=2, seed=3)
    assert torch.allclose(found, (parts[0] + parts[1]) / 2, atol=1e-6) and not torch.allclose(parts[0], parts[1])
    assert torch.allclose(encode(student, CLOUDS[3], processor, samples=2).norm(), torch.tensor(1.0))
    processor.samples = 2  # the default
    assert torch.equal(encode(student, CLOUDS, processor, normalize=False, seed=3), found)
    with pytest.raises(InputError, match="`samples` must be at least 1, got 0"):
        encode(student, CLOUDS, processor, samples=0)


def test_whitening_spreads_cosines_and_is_saved(student, processor, tmp_path):
    clouds = [cloud * RANDOM.uniform(0.2, 2, 3) for cloud in RANDOM.normal(size=(150, 64, 3))]
    plain = encode(student, clouds, processor, normalize=False)
    student.fit_whitening(clouds, processor=processor, show_progress=False)
    vectors = encode(student, clouds, processor, normalize=False)
    assert torch.allclose(vectors.mean(0), torch.zeros(48), atol=1e-2)
    before, after = (torch.linalg.eigvalsh(torch.cov(values.double().t())) for values in (plain, vectors))
    assert torch.allclose(after, before.clamp_min(1e-5 * before[-1]).pow(-0.8) * before, rtol=0.05, atol=1e-4)
    off = ~torch.eye(150, dtype=bool)
    assert student.similarity(plain, plain)[off].mean() > 0.9 > 0.1 > student.similarity(vectors, vectors)[off].mean()

    processor.save_pretrained(tmp_path)
    student.save_pretrained(tmp_path)
    loaded = ACTStudent.from_pretrained(tmp_path)
    assert torch.allclose(loaded.encode(clouds[:3], show_progress=False, normalize=False), vectors[:3], atol=1e-4)
    student.fit_whitening(clouds, processor=processor, show_progress=False)  # anew, not on top of the first
    assert torch.allclose(encode(student, clouds, processor, normalize=False).abs(), vectors.abs(), atol=1e-2)
    with pytest.raises(InputError, match="whitening needs more clouds than the 48 numbers of a vector, got 5"):
        student.fit_whitening(clouds[:5], processor=processor, show_progress=False)


def test_order_and_values_know_neither_batches_nor_workers(student, processor):
    expected = encode(student, CLOUDS, processor)
    for options in ({"batch_size": 1}, {"batch_size": 3}, {"num_workers": 2, "batch_size": 2}):
        assert torch.allclose(encode(student, CLOUDS, processor, **options), expected, atol=1e-6), options
    assert torch.allclose(encode(student, iter(CLOUDS), processor, batch_size=2), expected, atol=1e-6)
    assert torch.allclose(encode(student, CLOUDS[3], processor), expected[3], atol=1e-6)
    assert not torch.allclose(encode(student, CLOUDS[3], processor, seed=1), expected[3], atol=1e-3)
    assert encode(student, [], processor).shape == (0, 48)
    assert student.training


def test_files_and_addresses_of_a_folder(student, processor, tmp_path):
    files = sorted(path for path in make_shapes(tmp_path).rglob("*") if path.is_file())
    found = encode(student, files, processor, num_workers=1)
    assert torch.allclose(found, encode(student, [str(file) for file in files], processor), atol=1e-6)
    assert found.shape == (5, 48)


@pytest.mark.parametrize("target_norm", ["none", "standardize", "phi_s"])
def test_space_of_the_first_teacher(target_norm, processor):
    dims = {"teacher_dim": 20, "teacher_dims": [12, 8], "cloud_dims": [6, 10]}
    model = ACTStudentForPreTraining(small_student_config(target_norm=target_norm, **dims)).eval()
    if target_norm != "none":
        model.cloud_norm.measure(torch.randn(50, 16) @ torch.randn(16, 16) + 3)
    with torch.no_grad():
        tokens = torch.cat([model.student(**processor(cloud)).last_hidden_state[:, 0] for cloud in CLOUDS])
        expected = model.cloud_norm.invert(model.cloud_head(tokens))[:, :6]
    found = encode(model, CLOUDS, processor, space="teacher", normalize=False, batch_size=2)
    torch.testing.assert_close(found, expected)
    unit = encode(model, CLOUDS[0], processor, space="teacher")
    torch.testing.assert_close(unit, expected[0] / expected[0].norm())
    assert encode(model, [], processor, space="teacher").shape == (0, 6)
    torch.testing.assert_close(encode(model, CLOUDS, processor), encode(model.student, CLOUDS, processor))


def test_a_space_that_a_model_lacks(student, processor):
    for model in (student, ACTStudentForPreTraining(small_student_config())):
        with pytest.raises(InputError, match=f"features of clouds .*, got {type(model).__name__} without that head"):
            encode(model, CLOUDS, processor, space="teacher")
        with pytest.raises(ValueError, match="`space` must be student or teacher, got 'text'"):
            encode(model, CLOUDS, processor, space="text")


def test_memory_does_not_grow_with_the_clouds(student, processor):
    """No more of an endless stream is read than one batch ahead."""
    read = []

    def stream():
        while True:
            read.append(1)
            yield CLOUDS[0]

    batches = inference.run_on_clouds(student, stream(), lambda points: student(points).pooler_output, processor, 4)
    assert [next(batches).places for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert len(read) <= 16
    batches.close()


def test_bad_clouds_end_it_or_are_told(student, processor):
    clouds = [CLOUDS[0], CLOUDS[1] * np.nan, CLOUDS[2]]
    for workers in (0, 1):
        with pytest.raises(ValueError, match="^cloud 1 must be finite"):
            encode(student, clouds, processor, num_workers=workers)
    read = student.eval().forward
    batches = list(inference.run_on_clouds(student, clouds, lambda x: read(x).pooler_output, processor, skip_bad=True))
    assert [batch.places for batch in batches] == [[0, 2]]
    assert batches[0].problems == {1: "cloud 1 must be finite, got NaN or infinite coordinates"}
    assert torch.allclose(
        torch.nn.functional.normalize(batches[0].values, dim=1), encode(student, clouds[::2], processor), atol=1e-6
    )
    with pytest.raises(ValueError, match="`num_workers` needs a list"):
        encode(student, iter(CLOUDS), processor, num_workers=1)
    with pytest.raises(ValueError, match="takes 8 points of a cloud, and the model's groups need 16"):
        encode(student, CLOUDS, ACTPointCloudProcessor(8))


def test_similarity(student, processor):
    vectors = encode(student, CLOUDS, processor, normalize=False)
    found = student.similarity(vectors, vectors[:2])
    expected = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None, :2], dim=-1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert student.similarity(vectors[0], vectors[0]).item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="of one width"):
        student.similarity(vectors, vectors[:, :3])


def test_the_processor_beside_the_weights_is_taken(student, tmp_path):
    student.save_pretrained(tmp_path)
    ACTPointCloudProcessor(77, "farthest").save_pretrained(tmp_path)
    loaded = ACTStudent.from_pretrained(tmp_path)
    assert inference.processor_of(loaded).num_points == 77
    expected = encode(loaded, CLOUDS, ACTPointCloudProcessor(77, "farthest"))
    assert torch.equal(loaded.encode(CLOUDS, show_progress=False), expected)


def test_without_a_processor_the_sizes_of_the_model_decide(student, tmp_path, caplog):
    assert inference.processor_of(student).num_points == 256
    student.save_pretrained(tmp_path)
    inference.logger.addHandler(caplog.handler)
    assert inference.processor_of(ACTStudent.from_pretrained(tmp_path)).num_points == 256
    assert "has no preprocessor_config.json: 16 random points a group" in caplog.text


def test_features_of_every_point(student, processor, monkeypatch):
    monkeypatch.setattr(inference, "POINTS_AT_A_TIME", 100)
    cloud = CLOUDS[2]
    found = student.encode_points(cloud, processor=processor)
    assert found.shape == (500, 24)
    taken, student = processor.take(cloud), student.eval()
    with torch.no_grad():
        output = student(taken.points[None])
    places = taken.place(torch.from_numpy(cloud))
    distances, nearest = k_nearest_neighbors(places[None], output.centers, 3)
    weights = 1 / (distances + 1e-8)
    weights = weights / weights.sum(-1, keepdim=True)
    expected = (output.last_hidden_state[0, 1:][nearest[0]] * weights[0, ..., None]).sum(1)
    assert torch.allclose(found, expected, atol=1e-5)
    # A point that is the center of a group has the group's feature.
    center = (places[:, None] - output.centers[0]).norm(dim=-1).min(0)
    assert center.values.max() < 1e-6
    assert torch.allclose(found[center.indices], output.last_hidden_state[0, 1:], atol=1e-3)


def test_features_of_several_layers(student, processor):
    both = student.encode_points(CLOUDS[2], layers=[1, 3], processor=processor)
    assert both.shape == (500, 48)
    assert torch.allclose(both[:, 24:], student.encode_points(CLOUDS[2], processor=processor), atol=1e-6)
    with pytest.raises(ValueError, match="`layers` must name layers from 1 to 3"):
        student.encode_points(CLOUDS[2], layers=[4], processor=processor)


def test_half_precision_encodes(student, processor):
    whole = encode(student, CLOUDS, processor)
    half = encode(student.to(torch.bfloat16), CLOUDS, processor)
    assert half.dtype == torch.float32 and torch.cosine_similarity(whole, half, dim=1).min() > 0.99


@pytest.mark.gpu
def test_a_gpu_gives_the_same_vectors(student, processor):
    expected = encode(student, CLOUDS, processor), student.encode_points(CLOUDS[3], processor=processor)
    assert torch.allclose(encode(student, CLOUDS, processor, device="cuda"), expected[0], atol=1e-5)
    assert student.device.type == "cpu"
    assert torch.allclose(student.cuda().encode_points(CLOUDS[3], processor=processor), expected[1], atol=1e-4)


def test_training_goes_on_as_if_nothing_had_been_encoded(student, processor):
    """Each module keeps its mode, and torch its random numbers, whatever happens on the way."""
    student.norm.eval()
    modes, state = [module.training for module in student.modules()], torch.get_rng_state()
    encode(student, CLOUDS, processor)
    student.encode_points(CLOUDS[2], processor=processor)
    batches = inference.run_on_clouds(student, CLOUDS, lambda points: student(points).pooler_output, processor, 1)
    next(batches)
    assert not student.training
    batches.close()
    broken = CLOUDS[0] * np.nan
    for read in (lambda: encode(student, [broken], processor), lambda: student.encode_points(broken)):
        with pytest.raises(ValueError, match="must be finite"):
            read()
    student.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    for read in (lambda: encode(student, CLOUDS, processor), lambda: student.encode_points(CLOUDS[2])):
        with pytest.raises(ZeroDivisionError):
            read()
    assert [module.training for module in student.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_can_be_trained_on_what_comes_out(student, processor):
    for features in (student.encode_points(CLOUDS[2], processor=processor), encode(student, CLOUDS, processor)):
        head = torch.nn.Linear(features.shape[1], 2)
        head(features).sum().backward()
        assert torch.allclose(head.weight.grad[0], features.sum(0), atol=1e-4)


def test_batches_of_a_worker_may_be_larger_than_the_files_it_may_open(student, processor):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = encode(student, [CLOUDS[0]] * 800, processor, num_workers=1, batch_size=400)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert torch.allclose(found, encode(student, CLOUDS[0], processor).expand(800, -1), atol=1e-6)


def test_bad_settings_are_one_line_from_a_worker_too(student, processor):
    for options, message in (({"up_axis": "x"}, "^`up_axis` must be one of"), ({"seed": -1}, "^`seed` must lie")):
        with pytest.raises(ValueError, match=message):
            encode(student, CLOUDS, processor, num_workers=1, **options)


@pytest.mark.slow
def test_workers_may_share_nothing_with_their_parent(student, processor, monkeypatch):
    """Processes start as on macOS and Windows."""
    expected = encode(student, CLOUDS, processor)
    monkeypatch.setattr(inference, "DataLoader", partial(inference.DataLoader, multiprocessing_context="spawn"))
    assert torch.allclose(encode(student, CLOUDS, processor, num_workers=1), expected, atol=1e-6)


def test_what_workers_are_given_can_be_sent_to_them(student, processor, monkeypatch):
    sent = []

    def load(clouds, *_, **__):
        sent.append(pickle.loads(pickle.dumps(clouds)))
        return iter(())

    monkeypatch.setattr(inference, "DataLoader", load)
    encode(student, CLOUDS, processor, seed=3)
    assert torch.equal(sent[0][1][1][0], processor.take(CLOUDS[1], seed=3).points)


def test_weights_that_lie_on_disk(student, processor, tmp_path):
    student.save_pretrained(tmp_path / "model")
    laid_aside = ACTStudent.from_pretrained(tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path)
    assert next(laid_aside.parameters()).device.type == "meta"
    expected = encode(student, CLOUDS, processor), student.encode_points(CLOUDS[2], processor=processor)
    assert torch.allclose(encode(laid_aside, CLOUDS, processor), expected[0], atol=1e-6)
    assert torch.allclose(laid_aside.encode_points(CLOUDS[2], processor=processor), expected[1], atol=1e-5)


def test_a_folder_that_is_gone_and_one_below_another(student, tmp_path):
    student.save_pretrained(tmp_path / "top" / "below")
    ACTPointCloudProcessor(77).save_pretrained(tmp_path / "top" / "below")
    loaded = load_model(str(tmp_path / "top"), "ACTStudent", subfolder="below")
    assert inference.processor_of(loaded).num_points == 77
    loaded = ACTStudent.from_pretrained(tmp_path / "top" / "below")
    shutil.rmtree(tmp_path / "top")
    with pytest.raises(OSError, match="top/below"):
        loaded.encode(CLOUDS)


FROM_THE_HUB = """
import json, os, sys
from modeling_act import ACTStudent
from modeling_act.inference import processor_of
token = os.environ.pop("TOKEN")
print([processor_of(ACTStudent.from_pretrained(name, token=token, cache_dir=sys.argv[1])).num_points
       for name in ("org/with", "org/without")])
"""


def test_the_processor_comes_from_where_the_weights_came_from(student, tmp_path, run_python):
    """The token and cache of `from_pretrained` are used, which encoding does not get."""
    student.save_pretrained(tmp_path / "without")
    student.save_pretrained(tmp_path / "with")
    ACTPointCloudProcessor(77).save_pretrained(tmp_path / "with")
    with LoopbackHub() as hub:
        for name in ("with", "without"):
            files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            hub.commits[f"models/org/{name}"] = [files]
        environment = hub.environment | {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "", "TOKEN": TOKEN}
        found = run_python("-c", FROM_THE_HUB, tmp_path / "cache", environment=environment).stdout
    assert found.splitlines()[-1] == "[77, 256]"
    assert not list((tmp_path / "home").rglob("preprocessor_config.json"))
