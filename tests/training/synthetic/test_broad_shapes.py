"""The broad set: shapes that depend on their number alone, all different; solids without what lies in others."""

import numpy as np
import pytest
from act_training.data.point_sets import BUILT_IN
from act_training.prepare import everyday
from act_training.synthetic.broad_shapes import BUILDERS, generate_shapes, sample_shape
from act_training.synthetic.shape_kit import (
    BALL,
    BOX,
    CYLINDER,
    DOME,
    lathe,
    log_uniform,
    rotate,
    sample_triangles,
    triangles_of_surfaces,
)
from act_training.synthetic.solids import TORUS, WEDGE, attach, inside, sample_solids


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
    points = [sample_shape(build, 300, np.random.default_rng(seed)) for seed in range(25)]
    assert np.shape(points) == (25, 300, 3) and np.isfinite(points).all()
    extents = np.ptp(points, axis=1)
    assert (extents > 1e-3).all() and (extents.std(0) > 0.01).all()


CONE, TURN = lathe([(0, -0.5), (0.5, -0.5), (0, 0.5)]), rotate(BOX * (1, 2, 3), 0, 0.4) + (5, 0, 0)


@pytest.mark.parametrize(
    "surface", [BOX, CYLINDER, BALL, CONE, TURN, WEDGE], ids=["box", "cylinder", "ball", "cone", "turn", "wedge"]
)
@pytest.mark.parametrize("mirror", [1, -1])
def test_the_inside_of_a_convex_solid_is_all_within_its_surface(surface, mirror):
    surface = surface * (mirror, 1, 1)
    points, _ = sample_triangles(triangles_of_surfaces([surface]), 500, np.random.default_rng(0))
    center = points.mean(0)
    assert inside(surface, center + 0.99 * (points - center)).all()
    assert not inside(surface, center + 1.01 * (points - center)).any()


def test_open_hollow_and_ring_shaped_surfaces_have_no_inside():
    points = np.random.default_rng(0).uniform(-1, 1, (2000, 3))
    cup = lathe([(0, 0), (1, 0), (1, 1), (0.9, 1), (0.9, 0.1), (0, 0.1)])
    for surface in (DOME, cup, TORUS):
        assert not inside(surface, points).any()


def test_solids_lose_what_lies_inside_others():
    centers = np.array([[0, 0, 0], [0.3, 0, 0]])
    balls = [BALL + center for center in centers]
    points = sample_solids(balls, [], 2000, np.random.default_rng(0))
    distances = np.linalg.norm(points[:, None] - centers, axis=-1)
    assert points.shape == (2000, 3) and distances.min() > 0.48  # corners lie on the sphere, faces within
    assert (distances[:, 0] < 0.501).mean() == pytest.approx(0.5, abs=0.04)
    points = sample_solids(balls[:1], balls[1:], 2000, np.random.default_rng(0))
    of_body, of_cut = (np.abs(np.linalg.norm(points - center, axis=1) - 0.5) < 0.02 for center in centers)
    assert (of_body | of_cut).all() and of_cut.mean() > 0.2
    assert (points[of_cut & ~of_body, 0] < 0.16).all()  # the wall of the cut lies in the body


def test_bodies_that_a_cut_swallows_stay():
    points = sample_solids([BALL], [BOX * 2], 100, np.random.default_rng(0))
    assert points.shape == (100, 3) and np.linalg.norm(points, axis=1).max() <= 0.5


@pytest.mark.parametrize("seed", range(20))
def test_attached_parts_reach_from_within_their_base_beyond_one_side(seed):
    for part in attach(np.random.default_rng(seed), BOX, BOX * (1, 2, 3) + (5, 0, 0), 0.5, 1.5):
        corners = (part - (5, 0, 0)) / (0.5, 1, 1.5)  # the base's sides are at -1 and 1
        reach = np.sort(np.abs([corners.min((0, 1)), corners.max((0, 1))]), axis=0).T
        outwards = [np.allclose(pair, (0.5, 1.5)) for pair in reach]
        assert sum(outwards) == 1 and (np.abs(corners.mean((0, 1)))[np.logical_not(outwards)] < 1).all()


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
