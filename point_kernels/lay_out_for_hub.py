"""Lays the installed package out as a kernel repository, which the `kernels` library loads from the Hub or a folder.

    python point_kernels/lay_out_for_hub.py FOLDER
    python -c "from pathlib import Path; from kernels import get_local_kernel; get_local_kernel(Path('FOLDER'))"

The package depends on no build of torch, so one variant serves every version of it: `torch-cpu` with the compiled
library, `torch-cuda` with the Triton kernels beside it. FOLDER is uploaded as a Hub repository of type `kernel`.
"""

import json
import shutil
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path


def lay_out(folder: Path) -> None:
    package = Path(find_spec("point_kernels").origin).parent
    for backend in ("cpu", "cuda"):
        variant = folder / "build" / f"torch-{backend}"
        shutil.copytree(package, variant / "point_kernels", ignore=shutil.ignore_patterns("__pycache__"))
        metadata = {
            "id": f"point_kernels_{backend}_{version('point_kernels').replace('.', '_')}",
            "name": "point-kernels",
            "version": 1,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit("give one folder that does not exist yet")
    lay_out(Path(sys.argv[1]))
