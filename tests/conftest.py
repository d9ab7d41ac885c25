"""Set-up shared by all tests: no network, a Hub cache of their own, fixed seeds, subprocesses that inherit it."""

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / "tests" / "environment"
sys.path[:0] = [str(ROOT / "training"), str(ROOT / "benchmarks")]  # as for the scripts there

# Read by huggingface_hub and transformers at import, so set before them. The Hub cache is a new one every run: remote
# code left by an earlier run would be imported in place of the code under test.
_hub_cache = tempfile.TemporaryDirectory(prefix="modeling_act_tests_")
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HOME=_hub_cache.name)

# Makes torchvision importable beside a CPU-only torch, here and in every subprocess; the file says why that is needed.
_torchvision_operators = runpy.run_path(str(ENVIRONMENT / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ENVIRONMENT), os.environ.get("PYTHONPATH")]))

import torch  # noqa: E402

torch.set_num_threads(1)  # small tensors gain nothing from more, and lose a lot where other processes want the cores


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(params=["torch", "kernels"])
def implementation(request):
    """The test runs in plain torch, and once more on the compiled kernels where they are installed."""
    from modeling_act import point_ops

    if request.param == "torch":
        with point_ops.without_kernels():
            yield request.param
    elif not point_ops._kernels_serve("cpu"):
        pytest.skip("point_kernels is not installed")
    else:
        yield request.param


@pytest.fixture
def own_hub(monkeypatch):
    """A Hub for the real client in this process; `hub.environment` is for one in another."""
    import huggingface_hub

    from loopback_hub import TOKEN, LoopbackHub

    with LoopbackHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="session")
def run_python():
    """Runs `python *arguments` from the root of the project, asserts its exit code and returns its CompletedProcess.

    `run_python("-c", code)`, `run_python("training/demo.py", "--help")`,
    `run_python("-c", code, returncode=1, environment={"HF_HUB_OFFLINE": "0"})`.
    """

    def run(*arguments, returncode=0, environment=None, timeout=300, **options):
        command = [sys.executable, *map(str, arguments)]
        options = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True} | options
        process = subprocess.run(command, env=os.environ | (environment or {}), timeout=timeout, **options)
        output = f"{' '.join(command)}\n{process.stdout}\n{process.stderr}"
        assert process.returncode == returncode, f"exit code {process.returncode}, not {returncode}: {output}"
        return process

    return run
