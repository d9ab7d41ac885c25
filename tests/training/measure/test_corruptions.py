"""Corruptions by what they keep, what they drop and how they are drawn."""

import math

import pytest
import torch
from act_training.data.keyed_random import RandomStream
from act_training.measure.corruptions import (
    CORRUPTIONS,
    _angle_of_uniform_rotation,
    _directions,
    corrupt,
    num_left,
    radius_of,
    rotate,
)

from modeling_act.errors import InputError

KEYS = torch.stack([torch.full((5,), -1), torch.arange(5)], dim=1)
MANY = torch.stack([torch.full((20_000,), -1), torch.arange(20_000)], dim=1)


@pytest.fixture
def points():
    return torch.randn(5, 300, 3, generator=torch.Generator().manual_seed(0)) * 3 + 7


def distances(points):
    return torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_row_is_corrupted_alike_in_any_batch(points, name):
    for strength in CORRUPTIONS[name]:
        whole = corrupt(points, KEYS, name, strength, 3)
        assert whole.shape == (5, num_left(300, name, strength), 3) and whole.isfinite().all()
        alone = torch.cat([corrupt(points[row : row + 1], KEYS[row : row + 1], name, strength, 3) for row in range(5)])
        torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)
        assert not torch.equal(whole, corrupt(points, KEYS, name, strength, 4))
        same = corrupt(points[:1].expand(5, -1, -1), KEYS, name, strength, 3)
        assert not torch.equal(same[0], same[1])  # rows differ, though their points do not


@pytest.mark.parametrize("name", ["dropout", "local_dropout", "occlusion"])
def test_this_share_is_dropped_and_nothing_else(points, name):
    before = None
    for strength in sorted(CORRUPTIONS[name], reverse=True):
        left = corrupt(points, KEYS, name, strength, 0)
        assert left.shape[1] == 300 - round(strength * 300)
        kept = (left.unsqueeze(2) == points.unsqueeze(1)).all(-1)  # (batch, left, points)
        assert (kept.sum(2) == 1).all()
        kept = kept.any(1)
        assert before is None or (before <= kept).all()  # what a stronger one keeps, a weaker one keeps
        before = kept


def test_a_hole_is_a_ball_around_a_point(points):
    left = corrupt(points, KEYS, "local_dropout", 0.5, 0)
    for cloud, rest in zip(points, left, strict=True):
        lost = cloud[~(cloud.unsqueeze(1) == rest).all(-1).any(1)]
        reach = distances(lost).amax(1)  # of the ball around each of the lost
        nearest_left = torch.cdist(lost, rest).amin(1)
        assert (reach <= nearest_left.double() + 1e-5).any()


def test_what_stands_in_front_hides_what_is_behind():
    # Two parallel plates far apart. Whichever side is looked from, the plate that is nearer to the eye stays, except
    # where a slanted view passes beside it.
    grid = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plates = torch.cat([torch.cat([grid, torch.full((400, 1), z)], dim=1) for z in (-0.2, 0.2)])
    keys = MANY[:100]
    left = corrupt(plates.expand(100, -1, -1), keys, "occlusion", 0.5, 0)
    views = _directions(keys, 0, RandomStream.VIEW)
    steep = views[:, 2].abs() > 0.9
    assert steep.sum() >= 3
    nearer = (left[steep, :, 2] > 0) == (views[steep, 2] > 0).unsqueeze(1)
    assert nearer.float().mean(1).min() > 0.85


def test_jitter_is_normal_and_in_radii(points):
    moved = (corrupt(points, KEYS, "jitter", 0.02, 0) - points).double() / radius_of(points)[:, None, None] / 0.02
    assert moved.mean().abs() < 0.05 and (moved.std() - 1).abs() < 0.05
    assert (moved.abs() < 1).double().mean() == pytest.approx(0.683, abs=0.03)
    assert (moved.abs() < 2).double().mean() == pytest.approx(0.954, abs=0.02)


@pytest.mark.parametrize("name", ["rotation_up", "rotation_any"])
def test_rotations_keep_distances_and_handedness(points, name):
    for strength in CORRUPTIONS[name]:
        turned = corrupt(points, KEYS, name, strength, 0)
        torch.testing.assert_close(distances(turned), distances(points), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(turned.norm(dim=2), points.norm(dim=2), rtol=1e-5, atol=1e-5)
        assert (torch.linalg.det(points[:, :3]) * torch.linalg.det(turned[:, :3]) > 0).all()


@pytest.mark.parametrize(("up_axis", "place"), [("y", 1), ("z", 2)])
def test_turns_about_the_up_axis_keep_heights(points, up_axis, place):
    turned = corrupt(points, KEYS, "rotation_up", 180, 0, up_axis)
    torch.testing.assert_close(turned[..., place], points[..., place])
    assert (turned[..., 0] - points[..., 0]).abs().max() > 1


def test_rotations_turn_by_at_most_their_angle():
    frame = torch.eye(3).expand(len(MANY), 3, 3)
    for strength in (30, 90):
        for name in ("rotation_up", "rotation_any"):
            turned = corrupt(frame, MANY, name, strength, 0)
            trace = turned.diagonal(dim1=1, dim2=2).sum(1)
            angles = torch.rad2deg(((trace - 1) / 2).clamp(-1, 1).acos())
            assert strength * 0.99 < angles.max() < strength + 0.1


def test_any_rotation_is_as_likely_as_any_other():
    """Haar's measure: columns are uniform on the sphere, and angles have the density (1 - cos) / pi."""
    frame = torch.eye(3).expand(len(MANY), 3, 3)
    turned = corrupt(frame, MANY, "rotation_any", 180, 0).double()
    assert turned.mean(0).abs().max() < 0.02  # and so is each image of an axis centered,
    torch.testing.assert_close(turned.square().mean(0), torch.full((3, 3), 1 / 3).double(), rtol=0, atol=0.02)
    angles = ((turned.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
    for angle in (0.5, 1.0, 2.0, 3.0):
        assert (angles < angle).double().mean() == pytest.approx((angle - math.sin(angle)) / math.pi, abs=0.015)


def test_angles_invert_the_share_of_rotations():
    share = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    angle = _angle_of_uniform_rotation(share, 2.0)
    torch.testing.assert_close(angle - angle.sin(), share * (2 - math.sin(2)))


def test_a_quarter_turn_worked_by_hand():
    points, axis = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[0.0, 1.0, 0.0]])
    turned = rotate(points, axis, torch.tensor([math.pi / 2]))
    torch.testing.assert_close(turned, torch.tensor([[[3.0, 2.0, -1.0]]]))  # z goes to x, and x to -z


def test_unknown_corruptions_are_refused(points):
    with pytest.raises(InputError, match="must be one of jitter, dropout.* got 'snow'"):
        corrupt(points, KEYS, "snow", 1, 0)
