"""The CPU kernels against plain torch, index for index, for every build and vector width that runs here."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

point_kernels = pytest.importorskip("point_kernels", reason="point_kernels is not installed")

from cases import (  # noqa: E402
    KINDS,
    make_clouds,
    oracle_chamfer,
    oracle_farthest_point_sample,
    oracle_k_nearest_neighbors,
    oracle_nearest_pairs,
)

from point_kernels import cpu_ops  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

if not point_kernels.is_available("cpu"):
    pytest.skip("point_kernels was installed without a C++ compiler", allow_module_level=True)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(scope="session")
def wide_library(tmp_path_factory):
    """Vectors of 64 bytes and no intrinsics: the lanes of AVX-512, and what processors without SSE compile."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the kernels with wide vectors")
    path = tmp_path_factory.mktemp("wide") / "wide.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
    macros = ["-DPOINT_KERNELS_ISA=plain", "-DPOINT_KERNELS_VECTOR_BYTES=64"]
    sources = [ROOT / "point_kernels" / "csrc" / name for name in ("kernels.cpp", "dispatch.cpp")]
    subprocess.run(["g++", *flags, *macros, *sources, "-o", path], check=True, capture_output=True)
    return path


@pytest.fixture(params=["plain", "avx2", "avx512", "wide"], autouse=True)
def build(request):
    """Uses one build of the kernels, and the best one again afterwards."""
    if request.param == "wide":
        cpu_ops.load(request.getfixturevalue("wide_library"))
    else:
        try:
            cpu_ops.select_instruction_set(request.param)
        except ValueError:
            pytest.skip(f"this processor has no {request.param}")
    yield request.param
    cpu_ops.load()


def assert_same(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == wanted.dtype and result.shape == wanted.shape
        different = (result != wanted).nonzero()
        assert len(different) == 0, f"first different at {different[0].tolist()}"


def compare_with_oracle(kind, num_points, dtype, num_clouds=2, most=200):
    """Every operation on one batch, up to `most` samples or neighbours."""
    points = make_clouds(kind, num_clouds, num_points, dtype)
    queries = make_clouds(kind, num_clouds, min(num_points // 2 + 3, 600), dtype)
    count = min(int(torch.randint(1, num_points + 1, ())), most)
    for skip in (False, True):
        chosen = point_kernels.farthest_point_sample(points, count, skip)
        assert_same([chosen], [oracle_farthest_point_sample(points, count, skip)])
    for k in {count, min(count, 8)}:
        expected = oracle_k_nearest_neighbors(queries[:, :40], points, k)
        assert_same(point_kernels.k_nearest_neighbors(queries[:, :40], points, k), expected)
    expected = oracle_nearest_pairs(points, queries)
    assert_same(point_kernels.nearest_pairs(points, queries), expected)
    for squared in (False, True):
        loss, *pairs = point_kernels.chamfer(points, queries, squared)
        assert_same(pairs, expected)
        if kind != "huge":  # whose distances overflow, or not, by the way they are summed
            wanted = oracle_chamfer(points, queries, squared)
            torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_small_clouds(kind):
    for num_points in [*range(1, 20, 3), 31, 32, 33, 63, 64, 65, 70]:
        compare_with_oracle(kind, num_points, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_clouds_around_the_thresholds(kind):
    for num_points in (129, 511, 513, 1537, 2049):
        compare_with_oracle(kind, num_points, torch.float32, most=70)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", ["random", "grid", "far"])
def test_other_dtypes(kind, dtype):
    for num_points in (1, 64, 300, 2100):
        compare_with_oracle(kind, num_points, dtype, num_clouds=1, most=70)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_all_small_sizes(kind, dtype):
    if kind == "huge" and dtype == torch.float16:
        pytest.skip("float16 ends at 65504")
    for num_points in range(1, 71):
        compare_with_oracle(kind, num_points, dtype)


@pytest.mark.parametrize("kind", ["surface", "grid"])
def test_sampling_of_large_clouds(kind, build):
    points = make_clouds(kind, 1, 20_000 if build != "wide" else 9_000)
    assert_same([point_kernels.farthest_point_sample(points, 150)], [oracle_farthest_point_sample(points, 150)])
    expected = oracle_k_nearest_neighbors(points[:, :100], points, 33)
    assert_same(point_kernels.k_nearest_neighbors(points[:, :100], points, 33), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "surface", "far", "line"])
def test_very_large_clouds(kind):
    points, target = make_clouds(kind, 1, 100_000), make_clouds(kind, 1, 5_000)
    assert_same([point_kernels.farthest_point_sample(points, 1000)], [oracle_farthest_point_sample(points, 1000)])
    expected = oracle_k_nearest_neighbors(target[:, :500], points, 40)
    assert_same(point_kernels.k_nearest_neighbors(target[:, :500], points, 40), expected)
    assert_same(point_kernels.nearest_pairs(points, target), oracle_nearest_pairs(points, target))


def test_one_outlier_does_not_change_anything():
    points = make_clouds("surface", 2, 3000)
    points[:, 5] = 1e30
    assert_same([point_kernels.farthest_point_sample(points, 100)], [oracle_farthest_point_sample(points, 100)])
    expected = oracle_k_nearest_neighbors(points[:, :64], points, 16)
    assert_same(point_kernels.k_nearest_neighbors(points[:, :64], points, 16), expected)


def test_values_that_are_no_numbers_stay_in_range():
    for num_points in (3, 40, 700, 3000):
        points = make_clouds("random", 2, num_points)
        points[torch.rand(2, num_points) < 0.3] = torch.nan
        points[torch.rand(2, num_points) < 0.1] = torch.inf
        k = min(num_points, 50)
        chosen = point_kernels.farthest_point_sample(points, k)
        distances, neighbors = point_kernels.k_nearest_neighbors(points, points, k)
        _, nearest_target, nearest_point = point_kernels.chamfer(points, points.flip(1))
        for indices in (chosen, neighbors, nearest_target, nearest_point):
            assert indices.min() >= 0 and indices.max() < num_points
        assert (neighbors.sort(-1).values.diff(dim=-1) > 0).all() and not distances.isnan().any()
