"""The Triton kernels without a GPU: correct in Triton's interpreter, and compiled for one ahead of time."""

import importlib.metadata
import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: pip install --no-deps triton", allow_module_level=True)
if importlib.util.find_spec("point_kernels.triton_ops") is None:
    pytest.skip("point_kernels is not installed: pip install ./point_kernels", allow_module_level=True)

CASES = "tests/point_kernels/triton_cases.py"


@pytest.fixture
def interpreter():
    """The environment that chooses it."""
    if tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) < (3, 7):
        pytest.skip("the interpreter of Triton before 3.7 does not run with numpy 2.4")
    return {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_cases_in_the_interpreter(run_python, interpreter):
    run_python("-m", "pytest", "-q", CASES, "-m", "not slow", environment=interpreter)


@pytest.mark.slow
def test_slow_cases_in_the_interpreter(run_python, interpreter):
    run_python("-m", "pytest", "-q", CASES, "-m", "slow", environment=interpreter)


@pytest.mark.gpu
def test_cases_on_the_gpu(run_python):
    run_python("-m", "pytest", "-q", CASES, environment={"TRITON_INTERPRET": "0"})


@pytest.fixture
def launches(monkeypatch, tmp_path):
    """Launches of the wrappers, recorded in place of running them: (kernel, arguments, options)."""
    from triton.runtime.jit import JITFunction

    from point_kernels import triton_ops  # noqa: F401  before the interpreter is chosen

    recorded = []

    def record(kernel, *arguments, grid, warmup, **options):
        recorded.append((kernel, arguments, options))

    monkeypatch.setattr(JITFunction, "run", record)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # lets the wrappers take CPU tensors; the kernels stay what they are
    return recorded


def compile_for_hopper(kernel, arguments, options):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    from triton.runtime.jit import mangle_type

    compiler_options = {name: options[name] for name in ("num_warps", "enable_fp_fusion")}
    values = dict(zip(kernel.arg_names, arguments, strict=False))
    constants = {name: value for name, value in options.items() if name not in compiler_options}
    constants |= {name: value for name, value in values.items() if value is None}
    types = {name: mangle_type(value) for name, value in values.items()} | dict.fromkeys(constants, "constexpr")
    assert list(types) == kernel.arg_names
    return compile(ASTSource(kernel, types, constants), GPUTarget("cuda", 90, 32), compiler_options)


def sample_cloud(ops, dtype=torch.float32, num_points=1024):
    points = torch.zeros(2, num_points, 3, dtype=dtype)
    ops.farthest_point_sample(points, 1, True)


def find_neighbors(ops):
    points = torch.zeros(2, 1024, 3)
    ops.k_nearest_neighbors(points[:, :64], points, 32)


def measure_chamfer(ops):
    points, target = torch.zeros(2, 1024, 3), torch.zeros(2, 32, 3)
    _, *nearest = ops.chamfer_forward(points, target, False)
    ops.chamfer_backward(torch.ones(2), points, target, *nearest, False)


CALLS = {
    "sample": sample_cloud,
    "sample_bfloat16": lambda ops: sample_cloud(ops, torch.bfloat16),
    "sample_float64": lambda ops: sample_cloud(ops, torch.float64),
    "sample_8192_points": lambda ops: sample_cloud(ops, num_points=8192),
    "sample_blocks": lambda ops: sample_cloud(ops, num_points=20_000),
    "find_neighbors": find_neighbors,
    "measure_chamfer": measure_chamfer,
}


@pytest.mark.parametrize("call", CALLS)
def test_kernels_compile_without_contraction(launches, call):
    from point_kernels import triton_ops

    CALLS[call](triton_ops)
    assert launches
    for launch in launches:
        compiled = compile_for_hopper(*launch)
        assert ".target sm_90" in compiled.asm["ptx"] and "fma." not in compiled.asm["ptx"]
        # The assembler contracts as well unless told otherwise, and spills what does not fit into the registers.
        instructions = set(compiled.asm["sass"].replace(".", " ").split())
        assert {"FADD", "DADD"} & instructions
        assert {"FFMA", "DFMA", "STL", "LDL"} & instructions == set()


def test_a_cpu_tensor_is_refused_outside_the_interpreter():
    from point_kernels import triton_ops

    with pytest.raises(ValueError, match="need tensors on a CUDA device, got one on cpu"):
        triton_ops.farthest_point_sample(torch.zeros(1, 4, 3), 2, False)
