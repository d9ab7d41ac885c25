"""The package as users get it: a wheel for any Python, an installation without a compiler, a repository of kernels."""

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

if not importlib.util.find_spec("point_kernels") or not importlib.util.find_spec("point_kernels.cpu_ops"):
    pytest.skip("point_kernels is not installed", allow_module_level=True)

USE = """
import logging
logging.basicConfig(format="%(message)s")
import point_kernels, torch
print(point_kernels.__file__)
if point_kernels.is_available("cpu"):
    print(point_kernels.farthest_point_sample(torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]]), 3).tolist())
"""


@pytest.fixture
def install(tmp_path, run_python):
    """Builds a wheel from a copy of the sources, installs it into an empty folder and uses it there."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("building needs setuptools 77")

    def run(**environment):
        source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
        shutil.copytree(ROOT / "point_kernels", source, ignore=shutil.ignore_patterns("*.so", "build", "*.egg-info"))
        pip = ("-m", "pip", "--disable-pip-version-check")
        build = (*pip, "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "-w", wheels, source)
        run_python(*build, environment=environment)
        (wheel,) = wheels.iterdir()
        run_python(*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
        used = run_python("-c", USE, environment={"PYTHONPATH": str(site)}, cwd=tmp_path)
        assert used.stdout.startswith(str(site))
        return wheel.name, used

    return run


@pytest.mark.slow
def test_wheel_serves_every_python(install):
    name, used = install()
    assert name.startswith("point_kernels-0.2.0-py3-none-") and "any" not in name
    assert used.stdout.endswith("[[0, 2, 1]]\n") and not used.stderr


def test_without_a_compiler_it_installs_and_says_so_once(install):
    _, used = install(CC="no-such-compiler", CXX="no-such-compiler")
    assert "[[" not in used.stdout
    assert len(used.stderr.splitlines()) == 1 and "so plain torch is used there" in used.stderr


def test_repository_for_the_kernels_library(tmp_path, run_python):
    folder = tmp_path / "repository"
    run_python("point_kernels/lay_out_for_hub.py", folder)
    run_python("point_kernels/lay_out_for_hub.py", folder, returncode=1)
    variants = sorted(path.name for path in (folder / "build").iterdir())
    assert variants == ["torch-cpu", "torch-cuda"]
    if not importlib.util.find_spec("kernels"):
        pytest.skip("the kernels library is not installed: laid out, not loaded")
    code = (
        "import sys, torch; from pathlib import Path; from kernels import get_local_kernel\n"
        "loaded = get_local_kernel(Path(sys.argv[1]), backend='cpu', trust_remote_code=True)\n"
        "print(loaded.__name__, loaded.nearest_pairs(torch.zeros(1, 1, 3), torch.ones(1, 2, 3))[0].tolist())"
    )
    assert run_python("-c", code, folder).stdout == "point_kernels_cpu_0_2_0 [[0]]\n"
