"""Writes app/samples, the shapes that the page offers: `python app/make_samples.py`. Own work, as the code that draws
them; the seeds were chosen by eye."""

import sys
from pathlib import Path

import numpy as np

APP = Path(__file__).resolve().parent
sys.path.insert(0, str(APP.parent / "training"))

from act_training.synthetic.everyday_shapes import CLASS_NAMES, OBJECTS, triangles_of  # noqa: E402

SEEDS = {"chair": 3, "lamp": 2, "mug": 0, "airplane": 7, "car": 3, "guitar": 4, "boat": 0, "rocket": 6}


def ply(surfaces: list[np.ndarray]) -> bytes:
    """A binary mesh of these grids of corners."""
    starts = np.cumsum([0, *(surface.size // 3 for surface in surfaces)])
    corners = np.concatenate([surface.reshape(-1, 3) for surface in surfaces])
    faces = np.concatenate([triangles_of(*s.shape[:2]) + start for s, start in zip(surfaces, starts, strict=False)])
    flat = np.linalg.norm(np.cross(corners[faces[:, 1]] - corners[faces[:, 0]],
                                   corners[faces[:, 2]] - corners[faces[:, 0]]), axis=1) < 1e-9  # fmt: skip
    used, faces = np.unique(faces[~flat], return_inverse=True)
    rows = np.empty(len(faces.reshape(-1, 3)), dtype=[("count", "u1"), ("corners", "<u2", 3)])
    rows["count"], rows["corners"] = 3, faces.reshape(-1, 3)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(used)}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    header += f"element face {len(rows)}\nproperty list uchar ushort vertex_indices\nend_header\n"
    return header.encode() + corners[used].astype("<f4").tobytes() + rows.tobytes()


def sample(name: str) -> bytes:
    parts = OBJECTS[CLASS_NAMES.index(name)](np.random.default_rng(SEEDS[name]))
    return ply([surface for part in parts.values() for surface in part])


if __name__ == "__main__":
    for name in SEEDS:
        (APP / "samples" / f"{name}.ply").write_bytes(sample(name))
