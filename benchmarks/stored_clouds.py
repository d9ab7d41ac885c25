"""The same clouds (clouds, points, 3) in every storage format that training opens, for data.py and embed.py."""

from pathlib import Path

import h5py
import numpy as np
from act_training.data.schema import build_dataset

MESH_FACES = 1280  # of an .off file, as a small CAD model has


def write_npy(folder: Path, clouds: np.ndarray) -> Path:
    folder.mkdir()
    for number, cloud in enumerate(clouds):
        np.save(folder / f"{number:05}.npy", cloud)
    return folder


def write_ply(folder: Path, clouds: np.ndarray) -> Path:
    folder.mkdir()
    for number, cloud in enumerate(clouds):
        properties = "".join(f"property float {axis}\n" for axis in "xyz")
        header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(cloud)}\n{properties}end_header\n"
        (folder / f"{number:05}.ply").write_bytes(header.encode() + cloud.astype("<f4").tobytes())
    return folder


def write_off(folder: Path, clouds: np.ndarray) -> Path:
    """Write meshes as text, from which points are sampled when they are opened: triangulated spheres, each stretched
    differently."""
    folder.mkdir()
    columns, rows = 32, MESH_FACES // 64 + 1
    turn, height = np.meshgrid(np.linspace(0, 2 * np.pi, columns, endpoint=False), np.linspace(0.1, 3.0, rows))
    sphere = np.stack([np.cos(turn) * np.sin(height), np.sin(turn) * np.sin(height), np.cos(height)], -1).reshape(
        -1, 3
    )
    corner = np.arange(columns * (rows - 1)).reshape(rows - 1, columns)
    right = np.roll(corner, -1, axis=1)
    faces = np.stack([corner, right, corner + columns, right, right + columns, corner + columns], -1).reshape(-1, 3)
    for number, cloud in enumerate(clouds):
        with (folder / f"{number:05}.off").open("w") as file:
            file.write(f"OFF\n{len(sphere)} {len(faces)} 0\n")
            np.savetxt(file, sphere * (1 + abs(cloud[0])), fmt="%.6f")
            np.savetxt(file, np.insert(faces, 0, 3, axis=1), fmt="%d")
    return folder


def write_npz(path: Path, clouds: np.ndarray) -> Path:
    np.savez(path, points=clouds)
    return path


def write_h5(path: Path, clouds: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["points"] = clouds
    return path


def write_arrow(folder: Path, clouds: np.ndarray) -> Path:
    build_dataset({"points": clouds}).save_to_disk(folder)
    return folder


def write_parquet(path: Path, clouds: np.ndarray) -> Path:
    build_dataset({"points": clouds}).to_parquet(path, batch_size=256)
    return path


# name: (written by, file name, the largest number of rows: small files are many and slow)
FORMS = {
    "folder of npy": (write_npy, "npy", 512),
    "folder of ply": (write_ply, "ply", 512),
    "folder of off": (write_off, "off", 128),
    "npz": (write_npz, "set.npz", None),
    "h5": (write_h5, "set.h5", None),
    "save_to_disk": (write_arrow, "arrow", None),
    "parquet": (write_parquet, "set.parquet", None),
    "parquet, streamed": (write_parquet, "streamed.parquet", None),
}
