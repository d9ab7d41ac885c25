"""The broad set: shapes that depend on their number alone, all different; solids without what lies in others."""

import numpy as np
import pytest
from act_training.data.point_sets import BUILT_IN
from act_training.prepare import everyday
from act_training.synthetic import solids
from act_training.synthetic.broad_shapes import BUILDERS, generate_shapes
from act_training.synthetic.shape_kit import BALL, log_uniform, sample_triangles, triangles_of_surfaces


def test_a_shape_depends_on_its_number_alone():
    points = generate_shapes(200, num_points=256)["points"]
    assert points.shape == (200, 256, 3) and points.dtype == np.float32
    assert np.array_equal(generate_shapes(3, num_points=256, start=197)["points"], points[197:])
    assert not np.array_equal(generate_shapes(1, num_points=256, seed=1)["points"], points[:1])


def test_all_lie_in_the_unit_sphere_and_differ():
    points = generate_shapes(200, num_points=512, start=1000)["points"]
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1).max(1), 1, atol=1e-5)
    np.testing.assert_allclose(points.mean(1), 0, atol=1e-5)
    order = np.sort(points, axis=1)  # of each coordinate alone, which tells shapes apart whatever the points' order
    distances = np.abs(order[:, None] - order).mean((2, 3)) + np.eye(200)
    assert distances.min() > 0.005


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_every_builder_makes_finite_shapes_of_three_dimensions(build):
    extents = []
    for seed in range(25):
        surfaces = build(np.random.default_rng(seed))
        points, _ = sample_triangles(triangles_of_surfaces(surfaces), 300, np.random.default_rng(0))
        assert np.isfinite(points).all()
        extents.append(np.ptp(points, axis=0))
    extents = np.array(extents)
    assert (extents > 1e-3).all() and (extents.std(0) > 0.01).all()


@pytest.mark.parametrize("name", solids.INSIDES)
def test_the_inside_of_a_solid_is_within_its_surface(name):
    surface, inside = solids.INSIDES[name]
    points, _ = sample_triangles(triangles_of_surfaces([surface]), 500, np.random.default_rng(0))
    center = np.array([0, 0, -0.1]) if name == "wedge" else np.array([0, -0.1, 0])
    assert inside(center + 0.9 * (points - center)).all()
    assert not inside(center + 1.1 * (points - center)).any()


def test_solids_lose_what_lies_inside_others():
    ball = solids.INSIDES["ball"]
    centers = np.array([[0, 0, 0], [0.3, 0, 0]])
    pair = [(ball, center, np.ones(3), np.arange(3), 1) for center in centers]
    points = solids.sample_solids(pair, 2000, np.random.default_rng(0))
    distances = np.linalg.norm(points[:, None] - centers, axis=-1)
    assert (
        points.shape == (2000, 3) and distances.min() > 0.48
    )  # the ball's corners lie on the sphere, its faces within
    cut = (ball, centers[1], np.ones(3), np.arange(3), -1)
    points = solids.sample_solids([pair[0], cut], 2000, np.random.default_rng(0))
    of_body, of_cut = (np.abs(np.linalg.norm(points - center, axis=1) - 0.5) < 0.02 for center in centers)
    assert (of_body | of_cut).all() and of_cut.mean() > 0.2
    assert (points[of_cut & ~of_body, 0] < 0.16).all()  # the wall of the cut lies in the body


def test_points_are_even_over_the_area():
    points, _ = sample_triangles(triangles_of_surfaces([BALL]), 20_000, np.random.default_rng(0))
    assert np.histogram(points[:, 1], 5, (-0.5, 0.5))[0] / 20_000 == pytest.approx([0.2] * 5, abs=0.015)


def test_log_uniform_numbers_have_even_logarithms():
    numbers = log_uniform(np.random.default_rng(0), 0.1, 10.0, 10_000)
    assert (numbers < 1).mean() == pytest.approx(0.5, abs=0.02) and numbers.min() < 0.11 and numbers.max() > 9


def test_it_is_a_built_in_set():
    choices = everyday.Choices("broad_shapes")
    items = everyday.plan_everyday(None, choices).splits["train"]
    assert "broad_shapes" in BUILT_IN and items[-1].rows == (11_950, 12_000)
    rows = everyday.generate(items[1], choices)
    assert len(rows) == 50 and np.array_equal(rows[0]["points"], generate_shapes(1, start=50)["points"][0])
