"""Rooms: the same from the same numbers, objects inside, on the floor and apart, boxes around what is seen."""

import numpy as np
import torch
from act_training.synthetic.rooms import CLASS_NAMES, MIN_POINTS, NOISE, generate_rooms, is_visible

from modeling_act.modeling_act_detection import box_iou, points_in_boxes

ROOMS = generate_rooms(12, 1024, seed=3)


def test_rooms_depend_on_their_number_and_seed_alone():
    again = generate_rooms(2, 1024, seed=3, start=5)
    for name, values in again.items():
        for place in (0, 1):
            np.testing.assert_array_equal(values[place], ROOMS[name][5 + place])
    assert not np.array_equal(generate_rooms(1, 1024, seed=4)["points"], ROOMS["points"][:1])


def test_shapes_and_types():
    assert ROOMS["points"].shape == (12, 1024, 3) and ROOMS["points"].dtype == np.float32
    for boxes, labels in zip(ROOMS["boxes"], ROOMS["box_labels"], strict=True):
        assert boxes.shape == (len(labels), 7) and boxes.dtype == np.float32 and labels.dtype == np.int64
    assert set(np.concatenate(ROOMS["box_labels"]).tolist()) == set(range(len(CLASS_NAMES)))
    assert len(CLASS_NAMES) == 7 and min(map(len, ROOMS["boxes"])) >= 2


def test_objects_stand_apart_on_the_floor():
    for boxes, points in zip(ROOMS["boxes"], ROOMS["points"], strict=True):
        np.testing.assert_allclose(boxes[:, 2], boxes[:, 5] / 2, rtol=1e-6)
        overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).fill_diagonal_(0)
        assert overlap.max() < 1e-6
        assert (np.abs(boxes[:, :2]) + boxes[:, 3:5].min(1, keepdims=True) / 2 < 3.3).all()
        assert points[:, 2].min() > -6 * NOISE


def test_boxes_hold_the_points_of_their_objects_tightly():
    """Above the floor, and at a distance from the walls, whatever has points has a box."""
    strays = total = 0
    for boxes, points in zip(ROOMS["boxes"], ROOMS["points"], strict=True):
        boxes, points = torch.from_numpy(boxes), torch.from_numpy(points)
        loose = boxes + torch.tensor([0.0, 0, 0, 1, 1, 1, 0]) * 6 * NOISE
        inside = points_in_boxes(points, loose)
        assert (inside.sum(1) >= MIN_POINTS).all()
        walls = ((points[:, :2] - points[:, :2].amin(0)) < 0.1) | ((points[:, :2].amax(0) - points[:, :2]) < 0.1)
        furniture = (points[:, 2] > 0.1) & ~walls.any(1)
        strays += (furniture & ~inside.any(0)).sum().item()
        total += furniture.sum().item()
    assert total > 1000 and strays < 0.02 * total  # of objects of which hardly anything is seen


def test_what_stands_in_front_hides_what_is_behind():
    plane = np.stack(np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 60)), axis=-1).reshape(-1, 2)
    front, behind = (np.insert(plane * (1, 0.6), 0, distance, axis=1) + (0, 0, 1.5) for distance in (2.0, 6.0))

    class AtOrigin:
        """Draws one camera in the middle of the room."""

        def integers(self, low, high):
            return 1

        def uniform(self, low, high, size=None):
            return np.zeros(2) if size else 1.5

    visible = is_visible(np.concatenate([front, behind]), np.array([12.0, 12.0]), AtOrigin())
    # The wall behind is three times as far, so the plane in front hides all of it that is of the same size.
    assert visible[:3600].mean() > 0.95 and not visible[3600:].any()
