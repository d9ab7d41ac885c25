"""The generated set: the same shapes whatever the slice, labels that agree with parts, points on surfaces by area."""

import hashlib

import numpy as np
import pytest
from act_training.synthetic.everyday_shapes import CLASS_NAMES, OBJECTS, PART_NAMES, generate_shapes, sample_points
from act_training.synthetic.shape_kit import BOX, CYLINDER, plate, tube

CLASS_OF_PART = np.array([CLASS_NAMES.index(name.split("/")[0]) for name in PART_NAMES])


@pytest.fixture(scope="module")
def shapes():
    return generate_shapes(30 * len(CLASS_NAMES), num_points=512)


def test_names_are_unique_and_the_parts_of_a_class_stand_together():
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES) >= 12
    assert len(set(PART_NAMES)) == len(PART_NAMES)
    assert np.array_equal(CLASS_OF_PART, np.sort(CLASS_OF_PART))
    assert set(np.bincount(CLASS_OF_PART)) <= {3, 4, 5, 6}


def test_shapes_never_change():
    shapes = generate_shapes(100, start=7400)
    digests = {name: hashlib.sha256(values.tobytes()).hexdigest()[:16] for name, values in shapes.items()}
    assert digests == {"points": "7d208f646ce0c569", "label": "d0f74bb7ed9601c5", "point_labels": "db7aa52d9c3c9b5b"}


def test_shapes_types_and_balance(shapes):
    num_shapes = 30 * len(CLASS_NAMES)
    assert {name: (value.shape, value.dtype.name) for name, value in shapes.items()} == {
        "points": ((num_shapes, 512, 3), "float32"),
        "label": ((num_shapes,), "int64"),
        "point_labels": ((num_shapes, 512), "int64"),
    }
    assert np.array_equal(np.bincount(shapes["label"]), np.full(len(CLASS_NAMES), 30))


def test_points_fill_the_unit_sphere_about_their_mean(shapes):
    radius = np.linalg.norm(shapes["points"], axis=-1)
    assert np.isfinite(shapes["points"]).all()
    assert np.allclose(radius.max(axis=1), 1.0, atol=1e-5)
    assert np.abs(shapes["points"].mean(axis=1)).max() < 1e-5


def test_hardly_any_point_is_drawn_twice(shapes):
    assert min(len(np.unique(cloud, axis=0)) for cloud in shapes["points"]) >= 510


def test_every_part_belongs_to_the_class_and_every_part_occurs(shapes):
    assert np.array_equal(CLASS_OF_PART[shapes["point_labels"]], np.repeat(shapes["label"][:, None], 512, axis=1))
    assert np.array_equal(np.unique(shapes["point_labels"]), np.arange(len(PART_NAMES)))


@pytest.mark.parametrize("build", OBJECTS, ids=lambda build: build.__name__)
def test_objects_always_name_the_same_parts_and_have_two_or_more(build):
    objects = [build(np.random.default_rng(seed)) for seed in range(40)]
    names = [name.split("/")[1] for name in PART_NAMES if name.startswith(f"{build.__name__}/")]
    assert all(list(parts) == names for parts in objects)
    assert all(np.isfinite(surface).all() for parts in objects for part in parts.values() for surface in part)
    assert min(sum(map(bool, parts.values())) for parts in objects) >= 2


def test_a_shape_depends_on_its_number_and_the_seed_only():
    whole = generate_shapes(40, num_points=64, seed=3)
    part = generate_shapes(15, num_points=64, seed=3, start=20)
    other = generate_shapes(40, num_points=64, seed=4)
    for name in whole:
        assert np.array_equal(whole[name][20:35], part[name])
    assert np.array_equal(whole["label"], other["label"])
    assert not np.isclose(whole["points"], other["points"]).all(axis=(1, 2)).any()


def test_shapes_of_one_class_differ(shapes):
    extents = np.ptp(shapes["points"], axis=1).round(3)
    for label in range(len(CLASS_NAMES)):
        assert len(np.unique(extents[shapes["label"] == label], axis=0)) == 30


def test_points_are_drawn_by_area():
    small, large = BOX * (1, 1, 1), BOX * (2, 2, 2) + (5, 0, 0)
    points, part_index = sample_points({"small": [small], "large": [large]}, 20000, np.random.default_rng(0))
    assert part_index.mean() == pytest.approx(0.8, abs=0.05)  # 4 / (1 + 4), within what the warp changes
    assert points[part_index == 0, 0].max() < points[part_index == 1, 0].min()


def area(surface):
    """Area by the cross products of both halves of every cell."""
    first, second = surface[1:, :-1], surface[:-1, 1:]
    thirds = surface[:-1, :-1], surface[1:, 1:]
    return sum(np.linalg.norm(np.cross(first - third, second - third), axis=-1).sum() / 2 for third in thirds)


@pytest.mark.parametrize(
    ("surface", "extents", "expected_area"),
    [
        (BOX * (1, 2, 3), (1, 2, 3), 22.0),
        (CYLINDER * (2, 3, 2), (2, 3, 2), 2 * np.pi * (1 + 3)),
        (tube([(0, 0, 0), (0, 3, 0)], 1.0), (2, 3, 2), 2 * np.pi * (1 + 3)),
        (tube([(0, 0, 0), (4, 0, 0)], (1.0, 0.0)), (4, 2, 2), np.pi * (1 + np.sqrt(17))),
        (plate([(0, 0), (3, 0), (0, 4)], 0.5, 0), (0.5, 4, 3), 12 + 0.5 * 12),
        (plate([(0, 0), (3, 0), (0, 4)], 0.5, 1), (3, 0.5, 4), 12 + 0.5 * 12),
        (plate([(0, 0), (3, 0), (0, 4)], 0.5, 2), (3, 4, 0.5), 12 + 0.5 * 12),
    ],
)
def test_surfaces_have_the_extents_and_area_of_their_solids(surface, extents, expected_area):
    assert np.allclose(np.ptp(surface.reshape(-1, 3), axis=0), extents)
    assert area(surface) == pytest.approx(expected_area, rel=0.02)  # circles have twenty corners
