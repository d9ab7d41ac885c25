"""Set-up of all tests and their subprocesses: no network, a Hub cache of their own, fixed seeds."""

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / "tests" / "environment"
sys.path[:0] = [str(ROOT / "training"), str(ROOT / "benchmarks")]  # as for the scripts there

# huggingface_hub and transformers read these at import. Every run has a new Hub cache: otherwise remote code of an
# earlier run would be imported in place of the code under test.
_hub_cache = tempfile.TemporaryDirectory(prefix="modeling_act_tests_")
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HOME=_hub_cache.name)

# Makes torchvision importable beside a CPU-only torch, here and in every subprocess; the file says why.
_torchvision_operators = runpy.run_path(str(ENVIRONMENT / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ENVIRONMENT), os.environ.get("PYTHONPATH")]))

import torch  # noqa: E402

torch.set_num_threads(1)  # small tensors gain nothing from more threads


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
    """Run a test in plain torch, and again on the compiled kernels where they are installed."""
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
    """A Hub for the client in this process; subprocesses take `hub.environment`."""
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
    """Function that runs `python *arguments` in the root of the project and returns its CompletedProcess.

    It fails if the exit code is not `returncode`.

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


@pytest.fixture(scope="module")
def small_shapes():
    """A built-in set of a few shapes in place of thousands, unless the whole one is there."""
    from act_training.data.point_sets import built_in_folder

    from forked import run_command

    folder = built_in_folder("everyday_shapes")
    code = f"""if True:
        import prepare_data
        from act_training.prepare.everyday import NUM_CLOUDS
        NUM_CLOUDS["everyday_shapes"] = {{"train": 300, "test": 50}}
        prepare_data.main(["everyday_shapes", "--out", {str(folder)!r}])"""
    if folder.is_dir():
        yield
        return
    run_command("-c", code)
    yield
    shutil.rmtree(folder)
