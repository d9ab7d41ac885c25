"""Write app/samples, the shapes that the page offers, and app/index.tar.xz, the shapes that it searches unless it is
given others, with their vectors by act-tiny: `python app/make_samples.py`, again when act-tiny is another.

The shapes are our own work, as the code that generates them; the seeds of the samples were chosen by eye.
"""

import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import trimesh

APP = Path(__file__).resolve().parent
sys.path.insert(0, str(APP.parent / "training"))

from act_training.synthetic import broad_objects, broad_parts, broad_shapes  # noqa: E402
from act_training.synthetic.everyday_shapes import CLASS_NAMES, OBJECTS  # noqa: E402
from act_training.synthetic.shape_kit import Surface, triangles_of  # noqa: E402

from modeling_act.hub.load_model import load_model  # noqa: E402
from modeling_act.inference import processor_of  # noqa: E402
from modeling_act.search.shape_index import VECTORS, ShapeIndex, probe_cloud  # noqa: E402

SEEDS = {"chair": 3, "lamp": 2, "mug": 0, "airplane": 7, "car": 3, "guitar": 4, "boat": 0, "rocket": 6}
OTHERS = {
    "vessel": broad_shapes.vessel,
    "tube": broad_shapes.sweep,
    "plate": broad_shapes.plates,
    "component": broad_parts.component,
    "lattice": broad_parts.lattice,
    "tool": broad_objects.tool,
    "plant": broad_objects.plant,
    "animal": broad_objects.animal,
    "figure": broad_objects.figure,
}
PER_CLASS, PER_OTHER = 30, 10
STEPS = 2048  # to which coordinates and vectors are rounded: they take a third of the space


def everyday(name: str, rng: np.random.Generator) -> list[Surface]:
    return [surface for part in OBJECTS[CLASS_NAMES.index(name)](rng).values() for surface in part]


def mesh_of(surfaces: list[Surface]) -> trimesh.Trimesh:
    meshes = [trimesh.Trimesh(surface.reshape(-1, 3), triangles_of(*surface.shape[:2])) for surface in surfaces]
    mesh = trimesh.util.concatenate(meshes)
    mesh.update_faces(mesh.nondegenerate_faces())
    mesh.remove_unreferenced_vertices()
    return mesh


def sample(name: str) -> trimesh.Trimesh:
    return mesh_of(everyday(name, np.random.default_rng(SEEDS[name])))


def indexed_shapes() -> dict[str, trimesh.Trimesh]:
    """Meshes of the index by the names of their files; none is a sample."""
    shapes = {
        f"{name} {number}.ply": everyday(name, np.random.default_rng([2, number]))
        for name in CLASS_NAMES
        for number in range(1, PER_CLASS + 1)
    }
    for name, build in OTHERS.items():
        for number in range(1, PER_OTHER + 1):
            shapes[f"{name} {number}.ply"] = build(np.random.default_rng([3, number]))
    meshes = {name: mesh_of(surfaces) for name, surfaces in shapes.items()}
    for mesh in meshes.values():
        mesh.vertices = np.rint(mesh.vertices / mesh.scale * STEPS) / STEPS
    return meshes


def write_index(folder: Path) -> None:
    """Write `shapes`, and `index`, a ShapeIndex of them."""
    (folder / "shapes").mkdir()
    for name, mesh in indexed_shapes().items():
        mesh.export(folder / "shapes" / name, vertex_normal=False)
    paths, student = sorted((folder / "shapes").iterdir()), load_model("act-tiny", "ACTStudent")
    vectors = student.encode(paths, show_progress=False)
    probe = student.encode(probe_cloud(), show_progress=False)
    about = {"model": "act-tiny", "samples": processor_of(student).samples, "probe": probe.tolist()}
    ShapeIndex.build(folder / "index", [path.name for path in paths], vectors, about)
    np.save(folder / "index" / VECTORS, (vectors * 2 * STEPS).round().numpy() / (2 * STEPS))


def pack(folder: Path, archive: Path) -> None:
    """Write an archive without the names and times of this machine."""

    def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w:xz", preset=9) as file:
        for path in sorted(folder.iterdir()):
            file.add(path, path.name, filter=without_owner)


if __name__ == "__main__":
    for name in SEEDS:
        sample(name).export(APP / "samples" / f"{name}.ply", vertex_normal=False)
    with TemporaryDirectory() as folder:
        write_index(Path(folder))
        pack(Path(folder), APP / "index.tar.xz")
