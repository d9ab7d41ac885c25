"""Pictures of clouds whose look is known, and features of pictures that come back to the groups they belong to."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from modeling_act.point_ops import bounding_sphere, group_points
from modeling_act.rendering import BACKGROUND, lift_features, make_cameras, point_spacing, project, render

CAMERAS = make_cameras(6, 30.0)
SIZE, SIDE = 112, 8


def sphere(num_points, seed=0):
    points = torch.randn(1, num_points, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(points, dim=-1)


def cube(num_points=6000, seed=0):
    """Points of a cube's surface, in the unit sphere, and the face of each."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(num_points, 3, generator=generator) * 2 - 1
    faces = torch.arange(num_points) % 6
    points[torch.arange(num_points), faces // 2] = (faces % 2) * 2.0 - 1
    return points.unsqueeze(0) / math.sqrt(3), faces.unsqueeze(0)


@pytest.mark.parametrize("view", range(6))
def test_a_painted_cube_gets_its_colors_back_from_every_view(view):
    """Each face has a color; a patch's feature is the mean color of what it shows, as for a picture of the cube."""
    points, faces = cube()
    camera = CAMERAS[view : view + 1]
    views = render(points, camera, SIZE, 1.0, "light")
    pixels, depth = project(points, camera, SIZE)
    visible = views.depth.flatten(2).gather(2, pixels) - depth < 0.1
    patch = pixels // SIZE * SIDE // SIZE * SIDE + pixels % SIZE * SIDE // SIZE
    colors = torch.zeros(1, 1, SIDE**2, 6)
    for number in range(SIDE**2):
        shown = faces[0][visible[0, 0] & (patch[0, 0] == number)]
        if len(shown):
            colors[0, 0, number] = one_hot(shown, 6).float().mean(0)
    groups = group_points(points, 60, 16)
    features = lift_features(colors, views, groups, camera, 0.1)
    towards = camera[0, 2]
    checked = set()
    for group, (center, members) in enumerate(zip(groups.centers[0], groups.neighborhoods[0], strict=True)):
        axis = center.abs().argmax()
        face = int(axis * 2 + (center[axis] > 0))
        inside = (members[:, axis].abs() < 1e-6).all() and center[[i for i in range(3) if i != axis]].abs().max() < 0.3
        if inside and towards[axis] * center[axis].sign() > 0.3:  # seen at no grazing angle
            assert features[0, group].argmax() == face and features[0, group, face] > 0.8, (group, features[0, group])
            checked.add(face)
    assert len(checked) >= 2


def test_a_group_that_no_view_sees_gets_the_nearest_features():
    points, _ = cube()
    views = render(points, CAMERAS[:1], SIZE, 1.0, "light")
    groups = group_points(points, 60, 16)
    colors = torch.rand(1, 1, SIDE**2, 3) + 1
    features = lift_features(colors, views, groups, CAMERAS[:1], 0.1)
    away = (groups.centers[0] @ CAMERAS[0, 2]) < -0.4  # the far side
    near = (groups.centers[0] @ CAMERAS[0, 2]) > 0
    assert away.any() and (features > 0.99).all()
    for feature in features[0, away]:
        assert (features[0, near] - feature).abs().sum(-1).min() < 2  # mixed of none but colors of patches


def test_turning_a_cloud_by_the_angle_between_two_views_permutes_them():
    points = torch.rand(1, 2048, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    points = points / torch.linalg.vector_norm(points, dim=-1).amax()
    angle = 2 * math.pi / 6
    turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    images = render(points, CAMERAS, SIZE, 1.0, "light").images
    turned = render(points @ turn.t(), CAMERAS, SIZE, 1.0, "light").images
    assert (turned - images.roll(1, dims=1)).abs().mean() < 2e-3  # points on the edge of two pixels may change sides
    assert (turned - images).abs().mean() > 0.02


def test_the_up_axis_is_turned_up():
    points = sphere(500) * torch.tensor([0.3, 1.0, 0.2])
    z_up = torch.stack([points[..., 0], -points[..., 2], points[..., 1]], dim=-1)
    expected = render(points, CAMERAS, SIZE, 1.0, "light").images
    images = render(z_up, make_cameras(6, 30.0, "z"), SIZE, 1.0, "light").images
    assert (images - expected).abs().mean() < 2e-3


@pytest.mark.parametrize("num_points", [512, 1024, 2048, 8192, 16384])
def test_a_sphere_is_a_disc_without_holes_at_any_density(num_points):
    views = render(sphere(num_points), CAMERAS, SIZE, 1.0, "normals")
    side = (torch.arange(SIZE) + 0.5) / (SIZE / 2) - 1
    radius = (side**2 + side.unsqueeze(1) ** 2).sqrt()
    surface = views.depth[0] > BACKGROUND
    assert surface[:, radius < 0.93].float().mean() > 0.99 and not surface[:, radius > 1.25].any()
    middle = views.images[0, :, :, SIZE // 2 - 4 : SIZE // 2 + 4, SIZE // 2 - 4 : SIZE // 2 + 4]
    expected = torch.tensor([0.5, 0.5, 1.0]).view(3, 1, 1)  # faces the viewer
    assert (middle - expected).abs().mean() < 0.12
    assert views.depth[0, :, SIZE // 2, SIZE // 2].min() > 0.8


def test_spacing_is_that_of_a_grid():
    side = torch.linspace(-1, 1, 41)
    grid = torch.stack([*torch.meshgrid(side, side, indexing="ij"), torch.zeros(41, 41)], dim=-1).view(1, -1, 3)
    assert point_spacing(grid).item() == pytest.approx(0.05, rel=0.2)
    assert point_spacing(grid * 3).item() == pytest.approx(0.15, rel=0.2)


@pytest.mark.parametrize("shading", ["light", "depth", "normals"])
def test_clouds_of_a_batch_are_rendered_by_themselves_and_images_are_colors(shading):
    clouds = torch.cat([sphere(700), cube(700)[0]])
    images = render(clouds, CAMERAS, 64, 1.0, shading).images
    assert images.shape == (2, 6, 3, 64, 64) and images.min() >= 0 and images.max() == 1
    for cloud, image in zip(clouds.split(1), images.split(1), strict=True):
        assert torch.equal(render(cloud, CAMERAS, 64, 1.0, shading).images, image)


def test_repeated_points_cover_as_much():
    points = sphere(600)
    expected = render(points, CAMERAS, SIZE, 1.0, "light").images
    for times in (2, 4, 16):
        images = render(points.repeat(1, times, 1), CAMERAS, SIZE, 1.0, "light").images
        assert (images < 1).float().mean().item() == pytest.approx((expected < 1).float().mean().item(), rel=0.06)


def test_the_view_fits_any_cloud():
    points = sphere(300) * 7 + torch.tensor([100.0, -3.0, 5.0])
    center, radius = bounding_sphere(points)
    assert torch.linalg.vector_norm((points - center) / radius, dim=-1).amax().item() == pytest.approx(1)
    center, radius = bounding_sphere(torch.ones(1, 5, 3))
    assert ((torch.ones(1, 5, 3) - center) / radius).isfinite().all()
