"""Write app/samples, the shapes that the page offers: `python app/make_samples.py`.

The shapes are our own work, as the code that generates them; the seeds were chosen by eye.
"""

import sys
from pathlib import Path

import numpy as np
import trimesh

APP = Path(__file__).resolve().parent
sys.path.insert(0, str(APP.parent / "training"))

from act_training.synthetic.everyday_shapes import CLASS_NAMES, OBJECTS  # noqa: E402
from act_training.synthetic.shape_kit import triangles_of  # noqa: E402

SEEDS = {"chair": 3, "lamp": 2, "mug": 0, "airplane": 7, "car": 3, "guitar": 4, "boat": 0, "rocket": 6}


def sample(name: str) -> trimesh.Trimesh:
    parts = OBJECTS[CLASS_NAMES.index(name)](np.random.default_rng(SEEDS[name]))
    grids = [grid for part in parts.values() for grid in part]
    surfaces = [trimesh.Trimesh(grid.reshape(-1, 3), triangles_of(*grid.shape[:2])) for grid in grids]
    mesh = trimesh.util.concatenate(surfaces)
    mesh.update_faces(mesh.nondegenerate_faces())
    mesh.remove_unreferenced_vertices()
    return mesh


if __name__ == "__main__":
    for name in SEEDS:
        sample(name).export(APP / "samples" / f"{name}.ply", vertex_normal=False)
