"""`ACTPointCloudProcessor`: every form in which a user may hand over a cloud, and what becomes of its points."""

import numpy as np
import pytest
import torch
import trimesh
from transformers import AutoFeatureExtractor, AutoProcessor

from modeling_act import ACTPointCloudProcessor, ACTStudent, processing_act
from modeling_act.errors import InputError
from modeling_act.readers.cloud import Cloud, read_cloud
from shape_files import make_shapes
from small_models import small_student_config

POINTS = np.random.default_rng(0).normal(size=(200, 3))


@pytest.fixture
def shapes(tmp_path):
    return make_shapes(tmp_path / "shapes")


def test_one_cloud_in_every_form_gives_the_same_points(tmp_path):
    np.save(tmp_path / "cloud.npy", POINTS)
    forms = [
        POINTS, torch.from_numpy(POINTS), POINTS.tolist(), Cloud(POINTS), trimesh.PointCloud(POINTS),
        tmp_path / "cloud.npy", str(tmp_path / "cloud.npy"), [POINTS], POINTS[None],
    ]  # fmt: skip
    processor = ACTPointCloudProcessor(64)
    expected = processor(POINTS)["points"]
    assert expected.shape == (1, 64, 3)
    for form in forms:
        assert torch.equal(processor(form)["points"], expected), type(form)
    assert isinstance(processor(POINTS, return_tensors="np")["points"], np.ndarray)


def test_meshes_are_sampled_on_their_surface(shapes):
    processor = ACTPointCloudProcessor(64, normalize=False)
    box = trimesh.creation.box((1, 2, 3))
    for form in (box, trimesh.Scene(box), shapes / "box.ply"):
        points = processor(form)["points"][0]
        on_a_face = torch.isclose(points.abs(), torch.tensor([0.5, 1.0, 1.5]), atol=1e-5).any(1)
        assert on_a_face.all()
    assert processor.read(box).shape == (8192, 3)


def test_clouds_of_all_sizes_and_forms_in_one_list(shapes):
    clouds = [*sorted(shapes.rglob("*.*")), POINTS[:5], POINTS.astype(np.float32), np.ones((1, 3)), POINTS[:, [0] * 6]]
    points = ACTPointCloudProcessor(64)(clouds)["points"]
    assert points.shape == (len(clouds), 64, 3) and points.dtype == torch.float32 and points.isfinite().all()
    radius = points.norm(dim=-1).amax(1)
    # All but the single point fill the unit sphere.
    assert torch.allclose(radius, (torch.arange(len(clouds)) != len(clouds) - 2).float(), atol=1e-6)


def test_points_depend_on_cloud_and_seed_alone():
    processor = ACTPointCloudProcessor(64)
    alone, among = processor(POINTS, seed=3)["points"][0], processor([POINTS * 2, POINTS], seed=3)["points"][1]
    assert torch.equal(alone, among)
    assert not torch.equal(alone, processor(POINTS, seed=4)["points"][0])
    farthest = ACTPointCloudProcessor(64, "farthest")
    assert torch.equal(farthest(POINTS, seed=3)["points"], farthest(POINTS, seed=4)["points"])


def test_selections_of_a_cloud_share_no_points_while_there_are_enough():
    cloud = np.random.default_rng(0).normal(size=(100, 3))
    processor = ACTPointCloudProcessor(25, normalize=False)
    selections = processor.take_samples(cloud, 6, seed=3)
    assert torch.equal(selections[0], processor.take(cloud, seed=3).points)
    assert len(selections[:4].flatten(0, 1).unique(dim=0)) == 100
    assert not torch.equal(selections[4].sort(0).values, selections[0].sort(0).values)  # drawn in another order
    few = processor.take_samples(cloud[:10], 3)
    assert few.shape == (3, 25, 3) and all(len(part.unique(dim=0)) == 10 for part in few)
    farthest = ACTPointCloudProcessor(25, "farthest", normalize=False)
    first, second = farthest.take_samples(cloud, 2)
    assert torch.equal(first, farthest.take(cloud).points) and not torch.equal(first, second)
    with pytest.raises(InputError, match="`samples` must be a positive integer, got 0"):
        ACTPointCloudProcessor(samples=0)


def test_few_points_are_completed_by_points_between_near_ones():
    angles = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    processor = ACTPointCloudProcessor(256, few_points="between", normalize=False)
    taken = processor.take(circle).points
    assert torch.cdist(torch.from_numpy(circle).float(), taken).amin(1).max() < 1e-3  # all of its own are there
    radii = taken.norm(dim=1)
    assert len(taken.unique(dim=0)) > 240 and np.cos(np.pi / 10) - 1e-6 < radii.min() < radii.max() < 1 + 1e-6
    first, second = processor.take_samples(circle, 2)
    assert torch.equal(first, processor.take(circle).points) and not torch.equal(first, second)
    assert len(processor.take(circle[:1]).points.unique(dim=0)) == 1
    many, plain = np.tile(circle, (3, 1)), ACTPointCloudProcessor(256, normalize=False)
    assert torch.equal(processor.take(many).points, plain.take(many).points)
    farthest = ACTPointCloudProcessor(256, "farthest", few_points="between").take(circle).points
    assert len(farthest.unique(dim=0)) > 240
    with pytest.raises(InputError, match="`few_points` must be one of repeat, between, got 'none'"):
        ACTPointCloudProcessor(few_points="none")


def test_coordinates_of_a_map_keep_their_shape():
    """Float32 rounds at 5e6 metres to half a metre; only the differences go through it."""
    far = POINTS + np.array([5e6, 6e5, 100.0])
    near = ACTPointCloudProcessor(64)
    for method in ("random", "farthest"):
        near = ACTPointCloudProcessor(64, method)
        assert torch.allclose(near(far)["points"], near(POINTS)["points"], atol=1e-5)


def test_files_keep_coordinates_of_a_map_too(tmp_path):
    far = POINTS + np.array([5e6, 6e5, 100.0])
    np.savetxt(tmp_path / "map.xyz", far, fmt="%.6f")
    assert read_cloud(tmp_path / "map.xyz").points.dtype == np.float32
    processor = ACTPointCloudProcessor(64)
    found = processor(tmp_path / "map.xyz")["points"]
    assert torch.allclose(found, processor(POINTS)["points"], atol=1e-5)


@pytest.mark.parametrize(("trained", "given", "expected"), [("y", "z", [1, 3, -2]), ("z", "y", [1, -3, 2])])
def test_up_axis_turns_and_does_not_mirror(trained, given, expected):
    processor = ACTPointCloudProcessor(1, normalize=False, up_axis=trained)
    point = torch.tensor([[1.0, 2.0, 3.0]])
    assert processor(point, up_axis=given)["points"].tolist() == [[expected]]
    assert processor(point, up_axis=trained)["points"].tolist() == [[[1, 2, 3]]]
    axes = processor.read(torch.eye(3), up_axis=given)
    assert torch.linalg.det(axes).item() == 1


def test_units():
    processor = ACTPointCloudProcessor(1, normalize=False, unit="m")
    assert processor(torch.tensor([[1000.0, 0, 0]]), unit="mm")["points"][0, 0, 0] == 1
    feet = ACTPointCloudProcessor(1, normalize=False, unit="ft")
    assert feet(torch.tensor([[0.3048, 0, 0]]), unit="m")["points"][0, 0, 0] == 1


def test_a_cloud_as_a_whole_may_fit_the_sphere():
    processor = ACTPointCloudProcessor(64, normalize="cloud")
    whole = torch.from_numpy(POINTS - POINTS.mean(0))
    whole = whole / whole.norm(dim=1).max()
    taken = processor.take(POINTS)
    assert torch.cdist(taken.points.double(), whole).amin(1).max() < 1e-6  # a subset of the whole, where it lies
    assert torch.allclose(taken.place(torch.from_numpy(POINTS)), whole.float(), atol=1e-6)


def test_it_travels_with_a_checkpoint(tmp_path, capfd):
    processor = ACTPointCloudProcessor(96, "farthest", normalize=False, up_axis="z", unit="m", block_size=1.5)
    processor.save_pretrained(tmp_path)
    ACTStudent(small_student_config()).save_pretrained(tmp_path)
    for auto in (AutoFeatureExtractor, AutoProcessor):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is ACTPointCloudProcessor and loaded.to_dict() == processor.to_dict()
    assert "custom code" not in "".join(capfd.readouterr())  # nobody is asked whether to run it


@pytest.mark.parametrize(
    ("clouds", "message"),
    [
        ([], "at least one cloud, got none"),
        ([POINTS, POINTS[:0]], r"cloud 1 must be of shape \(points, 3\), got \(0, 3\)"),
        ([POINTS, POINTS[:, :2]], r"cloud 1 must be of shape \(points, 3\), got \(200, 2\)"),
        (POINTS[0], r"cloud 0 must be of shape \(points, 3\), got \(3,\)"),
        ([POINTS * np.nan], "cloud 0 must be finite, got NaN or infinite"),
        ([POINTS, POINTS * 1e20], "cloud 1 must be finite, got coordinates beyond 1e15"),
        ([POINTS, None], "cloud 1 must hold numbers, got NoneType"),
        ([POINTS, "none.ply"], "none.ply: there is no such file"),
        ([np.array([["a", "b", "c"]])], "cloud 0 must hold numbers"),
        ([torch.ones(4, 3, dtype=torch.bool)], "cloud 0 must hold numbers, got a tensor of torch.bool"),
        ([[[1, 2, 3], [4, 5]]], "cloud 0 must be of shape"),
    ],
)
def test_errors_name_the_cloud(clouds, message):
    with pytest.raises(ValueError, match=message) as caught:
        ACTPointCloudProcessor(64)(clouds)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"num_points": 0}, {}, "`num_points` must be a positive integer"),
        ({"num_points": "many"}, {}, "`num_points` must be a positive integer"),
        ({"point_sampling": "grid"}, {}, "`point_sampling` must be one of random, farthest"),
        ({"up_axis": "x"}, {}, "`up_axis` must be one of y, z"),
        ({"unit": "yard"}, {}, "`unit` must be one of m, dm"),
        ({"normalize": "no"}, {}, "`normalize` must be one of True, False, cloud"),
        ({"block_size": -1}, {}, "`block_size` must be positive"),
        ({}, {"up_axis": "z"}, "does not know which axis was up"),
        ({"normalize": False}, {"unit": "mm"}, "does not know the unit"),
        ({}, {"seed": -1}, "`seed` must lie between 0 and"),
        ({}, {"return_tensors": "tf"}, "`return_tensors` must be one of pt, np"),
    ],
)
def test_settings_that_cannot_be(settings, given, message):
    with pytest.raises(ValueError, match=message):
        ACTPointCloudProcessor(**settings)(POINTS, **given)


def test_a_unit_without_effect_is_told(caplog):
    processing_act.logger.addHandler(caplog.handler)
    ACTPointCloudProcessor(64)(POINTS, unit="in")
    assert "`unit`='in' has no effect" in caplog.text
