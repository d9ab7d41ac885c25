"""Random numbers keyed on (seed, epoch, row): exact against Python integers, uniform, independent of the batch."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from act_training.data.batches import (
    RandomStream,
    Sampling,
    augment,
    augment_groups,
    keyed_bits,
    keyed_mask,
    keyed_uniform,
    sample_points,
    step_seed,
)

from modeling_act.errors import InputError
from modeling_act.point_ops import farthest_point_sample, group_points
from modeling_act.processing_act import to_unit_sphere

ROOT = Path(__file__).resolve().parents[3]
WRAP = 2**64


def mix(value):
    """The finalizer of SplitMix64 in Python's integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % WRAP
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % WRAP
    return value ^ (value >> 31)


def split_mix(state, count):
    return [mix((state + number * 0x9E3779B97F4A7C15) % WRAP) >> 1 for number in range(1, count + 1)]


def keys_of(count, epoch=0):
    return torch.stack([torch.full((count,), epoch), torch.arange(count)], dim=1)


def test_split_mix_has_its_published_values():
    # The first numbers of Vigna's splitmix64.c from the state 1234567, halved.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert split_mix(1234567, 3) == [value >> 1 for value in published]


def test_no_two_uses_share_a_stream():
    assert list(RandomStream.__members__) == [stream.name for stream in RandomStream]  # an alias would be left out
    assert [stream.value for stream in RandomStream] == [*range(8), *range(100, 104), *range(200, 206)]
    calls = [
        node
        for path in (ROOT / "training").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("keyed_bits", "keyed_uniform")
    ]
    streams = [ast.unparse(call.args[3]) for call in calls]
    assert len(streams) > 10 and {name for name in streams if not name.startswith("RandomStream.")} == {"stream"}


@pytest.mark.parametrize(
    "epoch, row, seed", [(0, 0, 0), (-1, 5, 0), (299, 52_469, 2**31), (2**40, 2**62, 2**63 - 1), (3, 1, 7)]
)
def test_bits_are_those_of_python_integers(epoch, row, seed):
    state = mix((mix((row + step_seed(seed, 2, 0)) % WRAP) + epoch) % WRAP)
    assert keyed_bits(torch.tensor([[epoch, row]]), 9, seed, 2)[0].tolist() == split_mix(state, 9)


def test_uniform_numbers_are_uniform():
    numbers = keyed_uniform(keys_of(1000), 256, seed=0, stream=0).double()
    assert abs(numbers.mean() - 0.5) < 4 / math.sqrt(12 * numbers.numel())
    assert abs(numbers.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / numbers.numel())
    counts = torch.histc(numbers, 100, 0, 1)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 99 - 5 * math.sqrt(198) < chi_square < 99 + 5 * math.sqrt(198)
    assert numbers.min() >= 0 and numbers.max() < 1


@pytest.mark.parametrize("between", ["numbers", "rows", "epochs", "streams", "seeds"])
def test_neighbors_are_not_correlated(between):
    def draw(rows=1000, epoch=0, seed=0, stream=0):
        return keyed_uniform(keys_of(rows, epoch), 256, seed, stream).double()

    one, other = {
        "numbers": lambda: (draw()[:, 1:], draw()[:, :-1]),
        "rows": lambda: (draw()[1:], draw()[:-1]),
        "epochs": lambda: (draw(), draw(epoch=1)),
        "streams": lambda: (draw(), draw(stream=1)),
        "seeds": lambda: (draw(), draw(seed=1)),
    }[between]()
    correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(one.numel())


def test_seeds_of_steps_and_ranks_differ():
    seeds = {
        step_seed(seed, step, rank) for seed in (0, 1, 2**64 - 1) for step in (0, 1, 2, 10**6) for rank in range(8)
    }
    assert len(seeds) == 96 and all(0 <= seed < 2**63 for seed in seeds)


def make_batch(lengths, most=None):
    """Clouds whose points tell where they were: x is the place, from 1; padding is -1."""
    most = most or max(lengths)
    points = torch.full((len(lengths), most, 3), -1.0)
    for cloud, length in zip(points, lengths, strict=True):
        cloud[:length] = torch.arange(1.0, length + 1).unsqueeze(1)
    return {"points": points, "lengths": torch.tensor(lengths), "keys": keys_of(len(lengths), epoch=3)}


@pytest.mark.parametrize("num_points", [1, 7, 16, 40])
def test_subsets_hold_no_padding_and_repeat_only_where_points_are_few(num_points):
    lengths = [1, 5, 16, 17, 30]
    sampled = sample_points(make_batch(lengths), Sampling(num_points, normalize=False))["points"]
    assert sampled.shape == (5, num_points, 3)
    for cloud, length in zip(sampled[..., 0], lengths, strict=True):
        found, counts = cloud.unique(return_counts=True)
        assert found.min() >= 1 and found.max() <= length and len(found) == min(length, num_points)
        assert counts.max() - counts.min() <= 1


def test_every_point_is_as_likely_as_another():
    batch = make_batch([10] * 4000)
    sampled = sample_points(batch, Sampling(3, normalize=False))["points"]
    counts = torch.bincount(sampled[..., 0].flatten().long(), minlength=11)[1:]
    assert (counts - 1200).abs().max() < 5 * math.sqrt(4000 * 0.3 * 0.7)


@pytest.mark.parametrize("augmentation", [(), ("scale_shift", "rotate_y")])
def test_a_row_does_not_depend_on_the_others_of_its_batch(augmentation):
    def draw(batch):
        return augment(sample_points(batch, Sampling(8, 5))["points"], batch["keys"], 5, augmentation)

    batch = make_batch([20, 9, 30, 12])
    together = draw(batch)
    order = torch.tensor([3, 1, 0, 2])
    turned = draw({name: values[order] for name, values in batch.items()})
    assert torch.equal(turned, together[order])
    for row, length in enumerate([20, 9, 30, 12]):
        alone = {"points": batch["points"][row : row + 1, :length], "lengths": batch["lengths"][row : row + 1]}
        alone = draw(alone | {"keys": batch["keys"][row : row + 1]})
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)


def test_epochs_draw_other_subsets():
    batch = make_batch([50])
    other = batch | {"keys": batch["keys"] + torch.tensor([1, 0])}
    assert not torch.equal(*(sample_points(each, Sampling(20))["points"] for each in (batch, other)))


def far_apart(lengths, num_points, training=False):
    """Places (from 1) of the points taken in clouds of random points, told by labels."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(len(lengths), max(lengths), 3, generator=generator)
    batch = make_batch(lengths) | {"points": points}
    batch["point_labels"] = torch.arange(max(lengths)).repeat(len(lengths), 1)
    sampled = sample_points(batch, Sampling(num_points, normalize=False, method="farthest"), training)
    places = sampled["point_labels"]
    assert torch.equal(sampled["points"], points.gather(1, places.unsqueeze(2).expand(-1, -1, 3)))
    return points, places


def test_points_far_apart_are_those_of_the_paper_and_labels_follow():
    lengths = [400, 250, 120]
    points, places = far_apart(lengths, 100)
    for cloud, length, chosen in zip(points, lengths, places, strict=True):
        assert torch.equal(farthest_point_sample(cloud[None, :length], 100)[0], chosen)
    _, drawn = far_apart(lengths, 100, training=True)  # a random subset of the 118 farthest
    for cloud, length, chosen in zip(points, lengths, drawn, strict=True):
        allowed = farthest_point_sample(cloud[None, :length], min(118, length))[0]
        assert len(chosen.unique()) == 100 and set(chosen.tolist()) <= set(allowed.tolist())
        assert not torch.equal(chosen.sort().values, allowed[:100].sort().values)


@pytest.mark.parametrize("training", [False, True])
def test_few_points_all_come_before_any_comes_twice(training):
    _, places = far_apart([30, 9, 4], 24, training)
    for length, chosen in zip([30, 9, 4], places, strict=True):
        assert chosen.max() < length and len(chosen.unique()) == min(24, length)


def test_clouds_are_centered_in_the_unit_sphere():
    points = to_unit_sphere(torch.randn(3, 100, 3) * torch.tensor([1, 50, 0.02])[:, None, None] + 7)
    assert points.mean(1).abs().max() < 5e-5  # 7, rounded, in units of a radius of 0.05
    torch.testing.assert_close(points.norm(dim=-1).amax(1), torch.ones(3))
    assert torch.equal(to_unit_sphere(torch.ones(1, 4, 3)), torch.zeros(1, 4, 3))


def test_scale_and_shift_stay_in_their_ranges():
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1]]).expand(5000, 2, 3)
    shift, moved = augment(corners, keys_of(5000), 0, ("scale_shift",)).unbind(1)
    scale = moved - shift
    for values, low, high in ((scale, 2 / 3, 3 / 2), (shift, -0.2, 0.2)):
        edge = 0.01 * (high - low)
        assert low - 1e-6 <= values.min() < low + edge and high - edge < values.max() <= high + 1e-6
    correlation = torch.corrcoef(torch.cat([scale, shift], dim=1).T)
    assert (correlation - torch.eye(6)).abs().max() < 0.06


def test_a_turn_about_y_keeps_heights_and_angles():
    points = torch.randn(2000, 5, 3)
    turned = augment(points, keys_of(2000), 0, ("rotate_y",))
    assert torch.equal(turned[..., 1], points[..., 1])
    torch.testing.assert_close(turned @ turned.mT, points @ points.mT, rtol=0, atol=1e-5)
    angles = np.arctan2(*augment(torch.tensor([[[0.0, 0, 1]]]).expand(2000, 1, 3), keys_of(2000), 0, ("rotate_y",))
                        [:, 0, [0, 2]].T.numpy())  # fmt: skip
    counts = np.histogram(angles, 8, (-np.pi, np.pi))[0]
    assert counts.min() > 190 and counts.max() < 310


def test_a_turn_about_z_keeps_heights_and_distances():
    points = torch.randn(1, 50, 3).expand(500, 50, 3)
    turned = augment(points, keys_of(500), 0, ("rotate_z",))
    assert torch.equal(turned[..., 2], points[..., 2])
    torch.testing.assert_close(turned @ turned.mT, points @ points.mT, rtol=0, atol=1e-5)
    ahead = augment(torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).expand(500, 2, 3), keys_of(500), 0, ("rotate_z",))
    assert (ahead[:, 0, 0] * ahead[:, 1, 1] - ahead[:, 0, 1] * ahead[:, 1, 0] - 1).abs().max() < 1e-5  # no mirror
    counts = np.histogram(np.arctan2(ahead[:, 0, 1], ahead[:, 0, 0]), 4, (-np.pi, np.pi))[0]
    assert counts.min() > 85


def test_noise_is_normal_and_of_another_strength_for_each_cloud():
    points = torch.zeros(400, 300, 3)
    noise = augment(points, keys_of(400), 0, ("jitter",))
    assert torch.equal(noise, augment(points, keys_of(400), 0, ("jitter",))) and noise.mean().abs() < 1e-3
    deviations = noise.flatten(1).std(1)
    assert deviations.max() < 0.033 and deviations.std() == pytest.approx(0.03 / 12**0.5, rel=0.1)
    shares = [(noise.flatten(1).abs() < width * deviations[:, None]).float().mean() for width in (1, 2)]
    assert shares == pytest.approx([0.683, 0.954], abs=0.01)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(
        InputError,
        match="must be among scale, scale_shift, rotate_y, rotate_z, jitter, drop_points, got 'flip'",
    ):
        augment(torch.zeros(1, 2, 3), keys_of(1), 0, ("flip",))


@pytest.mark.parametrize("mask_type", ["random", "block"])
@pytest.mark.parametrize("num_masked", [0, 1, 51, 64])
def test_masks_hide_as_many_groups_as_asked(mask_type, num_masked):
    mask = keyed_mask(keys_of(40), torch.randn(40, 64, 3), num_masked, mask_type, 0)
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == [num_masked] * 40
    if 0 < num_masked < 64:
        assert len({tuple(row) for row in mask.tolist()}) > 20


def test_random_masks_hide_every_group_alike():
    hidden = keyed_mask(keys_of(4000), torch.zeros(4000, 20, 3), 16, "random", 0).sum(0)
    assert (hidden - 3200).abs().max() < 5 * math.sqrt(4000 * 0.8 * 0.2)


def test_block_masks_hide_the_groups_nearest_to_one_of_them():
    centers = torch.randn(50, 30, 3)
    mask = keyed_mask(keys_of(50), centers, 12, "block", 0)
    for hidden, cloud in zip(mask, centers, strict=True):
        distances = torch.cdist(cloud, cloud)
        nearest = distances.argsort(1)[:, :12]
        blocks = torch.zeros(30, 30, dtype=torch.bool).scatter_(1, nearest, True)
        assert (blocks == hidden).all(1).any()


def test_groups_are_augmented_as_their_points_are():
    groups = group_points(torch.randn(3, 64, 3), 8, 6)
    row_ids = torch.tensor([[0, 1], [0, 2], [5, 1]])
    names = ["scale", "scale_shift", "rotate_y"]
    centers, neighborhoods = augment_groups(groups, row_ids, 7, names)
    whole = (groups.centers.unsqueeze(2) + groups.neighborhoods).flatten(1, 2)
    torch.testing.assert_close(centers, augment(groups.centers, row_ids, 7, names))
    torch.testing.assert_close((centers.unsqueeze(2) + neighborhoods).flatten(1, 2), augment(whole, row_ids, 7, names))
    dropped = augment_groups(groups, row_ids, 7, ["drop_points"])
    assert torch.equal(dropped.centers, groups.centers)
    changed = (dropped.neighborhoods != groups.neighborhoods).any(-1)
    assert changed.any() and (dropped.neighborhoods[changed] == 0).all() and changed.float().mean() < 0.75
    clouds = augment(groups.centers, row_ids, 7, ["drop_points"])
    assert ((clouds == groups.centers) | (clouds == groups.centers[:, :1])).all()


def test_a_teacher_sees_more_points_of_the_same_cloud():
    cloud, keys = torch.randn(2, 100, 3) * 3 + 1, torch.tensor([[0, 1], [0, 2]])
    batch = {"points": cloud, "lengths": torch.tensor([100, 80]), "keys": keys}
    few, many = (sample_points(batch, Sampling(40, teacher_points=count)) for count in (None, 90))
    assert torch.equal(many["points"], few["points"]) and "teacher_points" not in few
    assert many["teacher_points"].shape == (2, 90, 3) and torch.equal(many["teacher_points"][:, :40], few["points"])
    back = many["teacher_points"] * many["radius"] + many["center"]
    assert (torch.cdist(back, cloud).amin(2) < 1e-2).all()  # its products round
