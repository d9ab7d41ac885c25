"""The Triton kernels that `triton_ops.py` launches.

BITS is 64 where distances are measured in float64, and 32 where in float32. Squared distances are compared by their
bits as integers, which order as floats >= 0 do and leave numbers beside them for what is no point. Offsets count in 64
bits over a batch and in 32 within a cloud.

INFINITY has the bits of an infinite distance. FARTHEST, the largest integer, stands where there is no point; where the
farthest point is looked for, its negative does. A NaN that a GPU computes has the bits of FARTHEST too, so it replaces
no distance.
"""

import triton
import triton.language as tl


@triton.jit
def _load_points(points, index, inside, BITS: tl.constexpr):
    """x, y and z of rows `index` of one cloud (points, 3), zero where not `inside`."""
    FLOAT: tl.constexpr = tl.float64 if BITS == 64 else tl.float32
    x = tl.load(points + index * 3, mask=inside, other=0.0).to(FLOAT)
    y = tl.load(points + index * 3 + 1, mask=inside, other=0.0).to(FLOAT)
    z = tl.load(points + index * 3 + 2, mask=inside, other=0.0).to(FLOAT)
    return x, y, z


@triton.jit
def _squared_length(x, y, z, BITS: tl.constexpr):
    """(x * x + y * y) + z * z as integers."""
    INTEGER: tl.constexpr = tl.int64 if BITS == 64 else tl.int32
    return ((x * x + y * y) + z * z).to(INTEGER, bitcast=True)


# Farthest point sampling ---------------------------------------------------------------------------------------------


@triton.jit
def sample_on_chip(
    points, chosen, num_points, num_samples, SKIP: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """A program samples one cloud, which stays in its registers."""
    cloud = tl.program_id(0).to(tl.int64)
    points += cloud * num_points * 3
    index = tl.arange(0, BLOCK)
    inside = index < num_points
    x, y, z = _load_points(points, index, inside, BITS)
    nearest = _first_distances(x, y, z, inside, SKIP, BITS)  # from each point to the nearest chosen one
    current = tl.full((), 0, tl.int32)
    for sample in range(num_samples):
        tl.store(chosen + cloud * num_samples + sample, current.to(tl.int64))
        center_x, center_y, center_z = _load_points(points, current, True, BITS)
        nearest = tl.minimum(nearest, _squared_length(x - center_x, y - center_y, z - center_z, BITS))
        current = tl.argmax(nearest, 0, tie_break_left=True)


@triton.jit(do_not_specialize=["sample"])
def sample_next(
    points, nearest, farthest, farthest_index, next_farthest, next_farthest_index, chosen, num_points,
    num_samples, sample, SKIP: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """A program takes a block of one cloud: it finds the sample among the farthest points (batch, blocks) of all
    blocks, and then the farthest point of its own."""
    FARTHEST: tl.constexpr = 2 ** (BITS - 1) - 1
    num_blocks = tl.cdiv(num_points, BLOCK)
    cloud = (tl.program_id(0) // num_blocks).to(tl.int64)
    block = tl.program_id(0) % num_blocks
    points += cloud * num_points * 3

    slot = tl.arange(0, BLOCKS)
    of_blocks = tl.load(farthest + cloud * num_blocks + slot, mask=slot < num_blocks, other=-FARTHEST)
    best = tl.argmax(of_blocks, 0, tie_break_left=True)  # blocks lie in the order of their points
    current = tl.load(farthest_index + cloud * num_blocks + best)
    if block == 0:
        tl.store(chosen + cloud * num_samples + sample, current.to(tl.int64))

    index = block * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_points
    row = cloud * num_points + index
    x, y, z = _load_points(points, index, inside, BITS)
    if sample == 0:
        distance = _first_distances(x, y, z, inside, SKIP, BITS)
    else:
        distance = tl.load(nearest + row, mask=inside, other=-FARTHEST)
    center_x, center_y, center_z = _load_points(points, current, True, BITS)
    distance = tl.minimum(distance, _squared_length(x - center_x, y - center_y, z - center_z, BITS))
    tl.store(nearest + row, distance, mask=inside)
    tl.store(next_farthest + cloud * num_blocks + block, tl.max(distance, 0))
    index = block * BLOCK + tl.argmax(distance, 0, tie_break_left=True)
    tl.store(next_farthest_index + cloud * num_blocks + block, index)


@triton.jit
def _first_distances(x, y, z, inside, SKIP: tl.constexpr, BITS: tl.constexpr):
    """Infinite, or below every real distance near the origin, if such points are to be skipped."""
    INFINITY: tl.constexpr = 0x7FF0000000000000 if BITS == 64 else 0x7F800000
    FARTHEST: tl.constexpr = 2 ** (BITS - 1) - 1
    distance = tl.full(x.shape, INFINITY, tl.int64 if BITS == 64 else tl.int32)
    if SKIP:
        bound = tl.full((), 1e-3, x.dtype)  # a bare number would be rounded to float32
        distance = tl.where((x * x + y * y) + z * z <= bound, -1, distance)
    return tl.where(inside, distance, -FARTHEST)


# Nearest neighbours --------------------------------------------------------------------------------------------------


@triton.jit
def find_neighbors(
    queries, points, distances, indices, num_queries, num_points, k, BITS: tl.constexpr, QUERIES: tl.constexpr,
    SUBSETS: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """A program takes a few queries of one cloud through a tournament of its points."""
    FARTHEST: tl.constexpr = 2 ** (BITS - 1) - 1
    blocks = tl.cdiv(num_queries, QUERIES)
    cloud = (tl.program_id(0) // blocks).to(tl.int64)
    query = tl.program_id(0) % blocks * QUERIES + tl.arange(0, QUERIES)
    inside = query < num_queries
    x, y, z = _load_points(queries + cloud * num_queries * 3, query[:, None], inside[:, None], BITS)
    distance, index = _nearest_of_subsets(x, y, z, points, cloud, num_points, BITS, QUERIES, SUBSETS)
    row = (cloud * num_queries + query) * k
    for rank in range(k):
        nearest, winner = _nearest(distance, index)
        tl.store(distances + row + rank, nearest.to(distances.dtype.element_ty, bitcast=True), mask=inside)
        tl.store(indices + row + rank, winner.to(tl.int64), mask=inside)
        # The winner's subset sends the next of its members.
        subset = (winner % SUBSETS)[:, None]
        member = subset + tl.arange(0, MEMBERS)[None, :] * SUBSETS
        left = _distances(x, y, z, points, cloud, member, num_points, BITS)
        gone = (left < nearest[:, None]) | ((left == nearest[:, None]) & (member <= winner[:, None]))
        left, member = _nearest(tl.where(gone, FARTHEST, left), member)
        here = tl.arange(0, SUBSETS)[None, :] == subset
        distance, index = tl.where(here, left[:, None], distance), tl.where(here, member[:, None], index)


@triton.jit
def _nearest_of_subsets(
    x, y, z, points, cloud, num_points, BITS: tl.constexpr, ROWS: tl.constexpr, SUBSETS: tl.constexpr
):
    """Distance and index (ROWS, SUBSETS) of what is nearest to each row of the points i, i + SUBSETS, ..."""
    FARTHEST: tl.constexpr = 2 ** (BITS - 1) - 1
    nearest = tl.full((ROWS, SUBSETS), FARTHEST, tl.int64 if BITS == 64 else tl.int32)
    nearest_index = tl.zeros((ROWS, SUBSETS), tl.int32)
    for start in range(0, num_points, SUBSETS):
        index = start + tl.arange(0, SUBSETS)[None, :]
        distance = _distances(x, y, z, points, cloud, index, num_points, BITS)
        closer = distance < nearest
        nearest, nearest_index = tl.where(closer, distance, nearest), tl.where(closer, index, nearest_index)
    return nearest, nearest_index


@triton.jit
def _distances(x, y, z, points, cloud, index, num_points, BITS: tl.constexpr):
    """Compute distances from (rows, 1) to the points `index` of a cloud; beyond infinity where there is none."""
    FARTHEST: tl.constexpr = 2 ** (BITS - 1) - 1
    inside = index < num_points
    point_x, point_y, point_z = _load_points(points + cloud * num_points * 3, index, inside, BITS)
    distance = _squared_length(x - point_x, y - point_y, z - point_z, BITS)
    return tl.where(inside, distance, FARTHEST)


@triton.jit
def _nearest(distance, index):
    """The smallest distance of each row and the lowest index that has it."""
    nearest = tl.min(distance, 1)
    return nearest, tl.min(tl.where(distance == nearest[:, None], index, 2**31 - 1), 1)


# Nearest pairs -------------------------------------------------------------------------------------------------------


@triton.jit
def find_nearest_pairs(
    points, target, nearest_target, nearest_point, there, back, num_points, num_target,
    BITS: tl.constexpr, ROWS: tl.constexpr, SUBSETS: tl.constexpr,
):  # fmt: skip
    """A program takes some points of one cloud, or some of its targets."""
    blocks = tl.cdiv(num_points, ROWS)
    programs = blocks + tl.cdiv(num_target, ROWS)
    cloud = (tl.program_id(0) // programs).to(tl.int64)
    block = tl.program_id(0) % programs
    if block < blocks:
        _nearest_of_rows(
            points, target, nearest_target, there, cloud, block, num_points, num_target, BITS, ROWS, SUBSETS
        )
    else:
        _nearest_of_rows(
            target, points, nearest_point, back, cloud, block - blocks, num_target, num_points, BITS, ROWS, SUBSETS
        )


@triton.jit
def _nearest_of_rows(
    rows, points, indices, distances, cloud, block, num_rows, num_points, BITS: tl.constexpr,
    ROWS: tl.constexpr, SUBSETS: tl.constexpr,
):  # fmt: skip
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    x, y, z = _load_points(rows + cloud * num_rows * 3, row[:, None], inside[:, None], BITS)
    distance, index = _nearest_of_subsets(x, y, z, points, cloud, num_points, BITS, ROWS, SUBSETS)
    distance, index = _nearest(distance, index)
    row += cloud * num_rows
    tl.store(indices + row, index.to(tl.int64), mask=inside)
    tl.store(distances + row, distance.to(distances.dtype.element_ty, bitcast=True), mask=inside)


# Gradient of the Chamfer distance ------------------------------------------------------------------------------------


@triton.jit
def chamfer_gradients(
    points, target, nearest_target, nearest_point, there_weight, back_weight, grad_points,
    grad_target, num_points, num_target, SQUARED: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program takes some points of one cloud, or some of its targets. Weights (batch,) are those of a distance.

    Nothing is added atomically: each point looks for the pairs that chose it, which costs as much as the search for
    the pairs did and gives the same sum on every run.
    """
    blocks = tl.cdiv(num_points, ROWS)
    programs = blocks + tl.cdiv(num_target, ROWS)
    cloud = (tl.program_id(0) // programs).to(tl.int64)
    block = tl.program_id(0) % programs
    if block < blocks:
        _gradient_of_rows(
            points, target, nearest_target, nearest_point, there_weight, back_weight, grad_points,
            cloud, block, num_points, num_target, SQUARED, BITS, ROWS, COLUMNS,
        )  # fmt: skip
    else:
        _gradient_of_rows(
            target, points, nearest_point, nearest_target, back_weight, there_weight, grad_target,
            cloud, block - blocks, num_target, num_points, SQUARED, BITS, ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit
def _gradient_of_rows(
    rows, others, nearest, other_nearest, weight, other_weight, gradient, cloud, block, num_rows,
    num_others, SQUARED: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = block * ROWS + tl.arange(0, ROWS)
    x, y, z, _ = _pull_of_pairs(rows, others, nearest, weight, cloud, row, num_rows, num_others, SQUARED, BITS)
    back_x = tl.zeros((ROWS, COLUMNS), x.dtype)
    back_y, back_z = back_x, back_x
    for start in range(0, num_others, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        pull_x, pull_y, pull_z, end = _pull_of_pairs(
            others, rows, other_nearest, other_weight, cloud, column, num_others, num_rows, SQUARED, BITS
        )
        here = end[None, :] == row[:, None]
        back_x += tl.where(here, pull_x[None, :], 0.0)
        back_y += tl.where(here, pull_y[None, :], 0.0)
        back_z += tl.where(here, pull_z[None, :], 0.0)
    inside = row < num_rows
    row += cloud * num_rows
    tl.store(gradient + row * 3, x - tl.sum(back_x, 1), mask=inside)
    tl.store(gradient + row * 3 + 1, y - tl.sum(back_y, 1), mask=inside)
    tl.store(gradient + row * 3 + 2, z - tl.sum(back_z, 1), mask=inside)


@triton.jit
def _pull_of_pairs(
    rows, others, nearest, weight, cloud, row, num_rows, num_others, SQUARED: tl.constexpr, BITS: tl.constexpr
):
    """Compute what the pairs of `row` add to its gradient and take from that of their other end; and that end."""
    inside = row < num_rows
    end = tl.load(nearest + cloud * num_rows + row, mask=inside, other=-1).to(tl.int32)
    valid = inside & (end >= 0) & (end < num_others)
    x, y, z = _load_points(rows + cloud * num_rows * 3, row, valid, BITS)
    end_x, end_y, end_z = _load_points(others + cloud * num_others * 3, end, valid, BITS)
    x, y, z = x - end_x, y - end_y, z - end_z
    weight = tl.load(weight + cloud)
    if SQUARED:
        factor = 2 * weight
    else:
        length = tl.sqrt((x * x + y * y) + z * z)
        factor = tl.where(length > 0, weight / length, 0.0)
    return x * factor, y * factor, z * factor, end
