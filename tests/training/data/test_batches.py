"""Row orders as pure functions of the step: every row once an epoch, on any number of processes."""

import random

import numpy as np
import pytest
import torch
from act_training.data.batches import ShuffledRows, StreamedRows, iterate_batches, pad_rows, read_batch
from act_training.data.point_sets import PointSet, StreamedPointSet, open_point_set
from act_training.data.schema import build_dataset

from modeling_act.errors import InputError
from training_runs import digest, make_inputs, start

DRAW = random.Random(0)
ORDERS = [  # rows in blocks, batch size, processes, window
    ([DRAW.randint(1, 9) for _ in range(DRAW.randint(1, 9))], DRAW.randint(1, 12), world, DRAW.randint(1, 20))
    for world in (1, 2, 3, 5)
    for _ in range(12)
]


def make_orders(kind, case, seed=0):
    blocks, batch_size, world, window = case
    common = {"batch_size": batch_size, "world_size": world, "seed": seed}
    if kind == "shuffled":
        return [ShuffledRows(sum(blocks), rank=rank, **common) for rank in range(world)]
    return [StreamedRows(blocks, window, rank=rank, **common) for rank in range(world)]


def keys_of(order, num_batches):
    return [key for number in range(num_batches) for key in order.batch(number)]


@pytest.mark.parametrize("kind", ["shuffled", "streamed"])
def test_every_row_comes_once_an_epoch(kind):
    for case in ORDERS:
        blocks, batch_size, world, _ = case
        num_rows, epochs = sum(blocks), 3
        num_batches = -(-(epochs * num_rows + world) // (world * batch_size)) + 1
        seen = [keys_of(order, num_batches) for order in make_orders(kind, case)]
        for epoch in range(epochs):
            rows = [row for keys in seen for found, row in keys if found == epoch]
            assert sorted(rows) == list(range(num_rows)), case


@pytest.mark.parametrize("kind", ["shuffled", "streamed"])
def test_a_batch_depends_on_its_number_only(kind):
    for case in ORDERS[::5]:
        straight, mixed = make_orders(kind, case)[-1], make_orders(kind, case)[-1]
        batches = [straight.batch(number) for number in range(12)]
        for number in DRAW.sample(range(12), 12):
            assert mixed.batch(number) == batches[number]


@pytest.mark.parametrize("kind, blocks", [("shuffled", [60]), ("streamed", [60]), ("streamed", [1] * 60)])
def test_epochs_and_seeds_have_orders_of_their_own(kind, blocks):
    case = blocks, 60, 1, 1
    first, second = (make_orders(kind, case)[0].batch(number) for number in (0, 1))
    other = make_orders(kind, case, seed=1)[0].batch(0)
    orders = [[row for _, row in keys] for keys in (first, second, other)]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[0] != sorted(orders[0])


def test_processes_share_at_most_one_block_with_the_next():
    for case in ORDERS:
        blocks, _, world, _ = case
        block_of_row = np.repeat(range(len(blocks)), blocks)
        seen = [keys_of(StreamedRows(blocks, 7, 1, rank, world), sum(blocks)) for rank in range(world)]
        pairs = {(rank, block_of_row[row]) for rank, keys in enumerate(seen) for epoch, row in keys if epoch == 0}
        shares = [sum(epoch == 0 for epoch, _ in keys) for keys in seen]
        assert max(shares) - min(shares) <= 1
        assert len(pairs) <= len(blocks) + world - 1


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Parquet of 90 train rows in three shards, with row groups of 1 to 13 rows, and of 20 test rows."""
    folder = tmp_path_factory.mktemp("shards")
    clouds = [np.random.default_rng(row).normal(size=(140 + row % 7, 3)) for row in range(110)]
    rows = build_dataset({"points": clouds, "label": np.arange(110) % 4})
    for shard, group in enumerate((1, 7, 13)):
        part = rows.select(range(30 * shard, 30 * shard + 30))
        part.to_parquet(str(folder / f"train-{shard:05d}-of-00003.parquet"), batch_size=group)
    rows.select(range(90, 110)).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world", [1, 3])
def test_a_stream_gives_every_row_with_its_values(shards, num_workers, world):
    stream, mapped = open_point_set(str(shards), streaming=True), open_point_set(str(shards))
    found = {}
    for rank in range(world):
        rows = StreamedRows(stream.block_sizes, 16, 8, rank, world)
        stop = -(-90 // (8 * world))
        for batch in iterate_batches(stream, rows, 0, stop, num_workers, pin_memory=False):
            for place, (epoch, row) in enumerate(batch["keys"].tolist()):
                if epoch == 0:
                    assert row not in found
                    found[row] = batch["points"][place, : batch["lengths"][place]], batch["label"][place]
    assert sorted(found) == list(range(90))
    for row, (points, label) in found.items():
        expected = read_batch(mapped, [(0, row)])
        assert torch.equal(points, expected["points"][0]) and label == expected["label"][0]


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_from_the_middle_are_the_tail_of_all(shards, streaming):
    point_set = open_point_set(str(shards), streaming=streaming)
    rows = StreamedRows(point_set.block_sizes, 16, 8) if streaming else ShuffledRows(90, 8)
    whole, tail = (list(iterate_batches(point_set, rows, first, 20, 1, False)) for first in (0, 13))
    for one, other in zip(whole[13:], tail, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


class CountingStream(StreamedPointSet):
    def __init__(self, *arguments):
        self.reads, self.held = [], []
        super().__init__(*arguments)

    def _read_block(self, block):
        if block not in self._cache:
            self.reads.append(block)
        batch = super()._read_block(block)
        self.held.append(sum(map(len, self._cache.values())))
        return batch


@pytest.mark.parametrize("window", [1, 10, 40])
def test_a_stream_reads_each_block_once_and_holds_few(shards, window):
    stream = CountingStream([str(path) for path in sorted(shards.glob("train*"))], "shards")
    stream.window = window
    rows = StreamedRows(stream.block_sizes, window, 9)
    for _ in iterate_batches(stream, rows, 0, 10, 0, pin_memory=False):
        pass
    assert sorted(stream.reads) == list(range(len(stream.blocks)))
    assert max(stream.held) < window + 2 * max(stream.block_sizes)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_row_of_a_stream_is_one_line(tmp_path, num_workers):
    clouds = np.random.default_rng(0).normal(size=(9, 20, 3))
    clouds[7, 3, 1] = np.nan
    build_dataset({"points": clouds}).to_parquet(str(tmp_path / "bad.parquet"), batch_size=5)
    stream = open_point_set(str(tmp_path / "bad.parquet"), streaming=True)
    with pytest.raises(InputError, match="^row 2 of row group 1 of .*bad.parquet: 1 NaN coordinates[^\n]*$"):
        list(iterate_batches(stream, StreamedRows(stream.block_sizes, 5, 3), 0, 3, num_workers, False))


def test_ragged_clouds_are_padded_with_zeros():
    values, lengths = np.arange(18, dtype=np.float32).reshape(6, 3), np.array([1, 3, 2])
    points = pad_rows(values, lengths)
    assert points.shape == (3, 3, 3)
    for cloud, length, first in zip(points, lengths, (0, 1, 4), strict=True):
        assert cloud[:length].tolist() == values[first : first + length].tolist() and not cloud[length:].any()


def test_a_batch_holds_what_training_needs():
    clouds = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    point_set = PointSet(build_dataset({"points": clouds, "label": np.arange(5)}), "five")
    batch = read_batch(point_set, [(2, 4), (2, 0), (3, 4)])
    assert batch["points"].numpy().tolist() == clouds[[4, 0, 4]].tolist()
    assert batch["lengths"].tolist() == [4, 4, 4] and batch["label"].tolist() == [4, 0, 4]
    assert batch["keys"].tolist() == [[2, 4], [2, 0], [3, 4]]


def test_a_streamed_run_that_is_killed_resumes_bit_for_bit(shards, tmp_path):
    inputs = make_inputs(tmp_path)
    flags = ("--dataset_name", shards, "--streaming", "--validation_split", "test", "--max_train_steps", 18)
    whole = start(inputs, "autoencode", tmp_path / "whole", *flags)
    killed = start(inputs, "autoencode", tmp_path / "killed", *flags)
    assert killed.wait_for("checkpoints/step-*9"), "the run ended before it was killed"
    killed.kill()
    start(inputs, "autoencode", tmp_path / "killed", *flags, "--resume_from_checkpoint", "latest").finish()
    whole.finish()
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
