"""Small files of real shapes, for the tests of commands and readers."""

from pathlib import Path

import numpy as np
import trimesh

SHAPES = {
    "box.ply": lambda: trimesh.creation.box((1, 2, 3)),
    "nested/ball.off": lambda: trimesh.creation.icosphere(2),
    "ring.glb": lambda: trimesh.creation.torus(1.0, 0.3),
    "can.stl": lambda: trimesh.creation.cylinder(0.5, 2),
}


def make_shapes(folder: Path) -> Path:
    """Write four meshes in four formats, one of them in a subfolder, and a scan of 300 points."""
    for name, make in SHAPES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make().export(folder / name)
    np.savetxt(folder / "scan.xyz", np.random.default_rng(0).normal(size=(300, 3)))
    return folder
