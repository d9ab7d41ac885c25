"""Corruptions by what they drop and keep, and by how their random numbers are distributed."""

import math

import pytest
import torch
from act_training.data.batches import RandomStream
from act_training.measure.robustness import (
    CORRUPTIONS,
    _quantile_of_rotation_angle,
    _sample_directions,
    corrupt,
    num_points_left,
    radius_of,
    rotate,
)

from modeling_act.errors import InputError

ROW_IDS = torch.stack([torch.full((5,), -1), torch.arange(5)], dim=1)
MANY_ROW_IDS = torch.stack([torch.full((20_000,), -1), torch.arange(20_000)], dim=1)


@pytest.fixture
def points():
    return torch.randn(5, 300, 3, generator=torch.Generator().manual_seed(0)) * 3 + 7


def distances(points):
    return torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")


DROPS = ("dropout", "local_dropout", "occlusion")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_row_is_corrupted_alike_in_any_batch(points, name):
    for strength in CORRUPTIONS[name]:
        batch = corrupt(points, ROW_IDS, name, strength, 3)
        assert batch.shape == (5, num_points_left(300, strength if name in DROPS else 0), 3)
        alone = [corrupt(points[row : row + 1], ROW_IDS[row : row + 1], name, strength, 3) for row in range(5)]
        torch.testing.assert_close(batch, torch.cat(alone), rtol=0, atol=1e-5)
        assert not torch.equal(batch, corrupt(points, ROW_IDS, name, strength, 4))
        same = corrupt(points[:1].expand(5, -1, -1), ROW_IDS, name, strength, 3)
        assert not torch.equal(same[0], same[1])  # the rows differ, though their points do not


@pytest.mark.parametrize("name", DROPS)
def test_a_share_is_dropped_and_the_rest_is_unchanged(points, name):
    dropped_before = torch.zeros(5, 300, dtype=torch.bool)
    for strength in CORRUPTIONS[name]:
        rest = corrupt(points, ROW_IDS, name, strength, 0)
        assert rest.shape[1] == 300 - round(strength * 300)
        equal = (rest.unsqueeze(2) == points.unsqueeze(1)).all(-1)  # (batch, rest, points)
        assert (equal.sum(2) == 1).all()
        dropped = ~equal.any(1)
        assert (dropped_before <= dropped).all()  # a stronger corruption drops all that a weaker one drops
        dropped_before = dropped


def test_local_dropout_drops_a_ball_around_a_point(points):
    for cloud, rest in zip(points, corrupt(points, ROW_IDS, "local_dropout", 0.5, 0), strict=True):
        dropped = cloud[~(cloud.unsqueeze(1) == rest).all(-1).any(1)]
        radius = distances(dropped).amax(1)  # of the ball around each dropped point
        nearest_rest = torch.cdist(dropped, rest).amin(1)
        assert (radius <= nearest_rest.double() + 1e-5).any()


def test_occlusion_drops_points_behind_others():
    # Two parallel plates, seen at steep angles: the one that is nearer to the eye stays, but for its border.
    grid = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plates = torch.cat([torch.cat([grid, torch.full((400, 1), z)], dim=1) for z in (-0.2, 0.2)])
    row_ids = MANY_ROW_IDS[:100]
    rest = corrupt(plates.expand(100, -1, -1), row_ids, "occlusion", 0.5, 0)
    views = _sample_directions(row_ids, 0, RandomStream.VIEW)
    steep = views[:, 2].abs() > 0.9
    assert steep.sum() >= 3
    nearer = (rest[steep, :, 2] > 0) == (views[steep, 2] > 0).unsqueeze(1)
    assert nearer.float().mean(1).min() > 0.85


def test_jitter_is_normal_and_in_radii(points):
    moved = (corrupt(points, ROW_IDS, "jitter", 0.02, 0) - points).double() / radius_of(points)[:, None, None] / 0.02
    assert moved.mean().abs() < 0.05 and (moved.std() - 1).abs() < 0.05
    assert (moved.abs() < 1).double().mean() == pytest.approx(0.683, abs=0.03)
    assert (moved.abs() < 2).double().mean() == pytest.approx(0.954, abs=0.02)


@pytest.mark.parametrize("name", ["rotation_up", "rotation_any"])
def test_rotations_keep_distances_and_handedness(points, name):
    for strength in CORRUPTIONS[name]:
        rotated = corrupt(points, ROW_IDS, name, strength, 0)
        torch.testing.assert_close(distances(rotated), distances(points), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rotated.norm(dim=2), points.norm(dim=2), rtol=1e-5, atol=1e-5)
        assert (torch.linalg.det(points[:, :3]) * torch.linalg.det(rotated[:, :3]) > 0).all()


@pytest.mark.parametrize(("up_axis", "place"), [("y", 1), ("z", 2)])
def test_rotations_about_the_up_axis_keep_heights(points, up_axis, place):
    rotated = corrupt(points, ROW_IDS, "rotation_up", 180, 0, up_axis)
    torch.testing.assert_close(rotated[..., place], points[..., place])
    assert (rotated[..., 0] - points[..., 0]).abs().max() > 1


def test_rotations_reach_their_angle_and_no_further():
    frame = torch.eye(3).expand(len(MANY_ROW_IDS), 3, 3)
    for strength in (30, 90):
        for name in ("rotation_up", "rotation_any"):
            rotated = corrupt(frame, MANY_ROW_IDS, name, strength, 0)
            trace = rotated.diagonal(dim1=1, dim2=2).sum(1)
            angles = torch.rad2deg(((trace - 1) / 2).clamp(-1, 1).acos())
            assert strength * 0.99 < angles.max() < strength + 0.1


def test_any_rotation_is_as_likely_as_any_other():
    """Haar's measure: columns are uniform on the sphere, and angles have the density (1 - cos) / pi."""
    frame = torch.eye(3).expand(len(MANY_ROW_IDS), 3, 3)
    rotated = corrupt(frame, MANY_ROW_IDS, "rotation_any", 180, 0).double()
    assert rotated.mean(0).abs().max() < 0.02  # and so is each image of an axis centered,
    torch.testing.assert_close(rotated.square().mean(0), torch.full((3, 3), 1 / 3).double(), rtol=0, atol=0.02)
    angles = ((rotated.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
    for angle in (0.5, 1.0, 2.0, 3.0):
        assert (angles < angle).double().mean() == pytest.approx((angle - math.sin(angle)) / math.pi, abs=0.015)


def test_angles_invert_the_share_of_rotations():
    share = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    angle = _quantile_of_rotation_angle(share, 2.0)
    torch.testing.assert_close(angle - angle.sin(), share * (2 - math.sin(2)))


def test_a_quarter_rotation_worked_by_hand():
    points, axis = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[0.0, 1.0, 0.0]])
    rotated = rotate(points, axis, torch.tensor([math.pi / 2]))
    torch.testing.assert_close(rotated, torch.tensor([[[3.0, 2.0, -1.0]]]))  # z goes to x, and x to -z


def test_unknown_corruptions_are_refused(points):
    with pytest.raises(InputError, match="must be one of jitter, dropout.* got 'snow'"):
        corrupt(points, ROW_IDS, "snow", 1, 0)
