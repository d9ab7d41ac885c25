"""Small files of points and of meshes in every format that is read, as bytes."""

import base64
import io
import json
import struct

import numpy as np
import trimesh

RANDOM = np.random.default_rng(0)
POINTS = RANDOM.normal(size=(40, 3)).astype(np.float32)
NORMALS = (POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)).astype(np.float32)
COLORS = RANDOM.integers(0, 256, (40, 3)).astype(np.uint8)
BOX = trimesh.creation.box((1, 2, 3))


# Files of every kind -------------------------------------------------------------------------------------------------


def text_of(*columns, separator=" "):
    return "".join(separator.join(f"{value:.9g}" for value in row) + "\n" for row in np.hstack(columns)).encode()


def npy_of(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def npz_of(save=np.savez, **arrays):
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def pack_lzf(data):
    """Greedy: the latest three equal bytes make a reference, everything else is plain."""
    packed, plain, seen, at = bytearray(), bytearray(), {}, 0

    def flush():
        for start in range(0, len(plain), 32):
            run = plain[start : start + 32]
            packed.extend([len(run) - 1, *run])
        plain.clear()

    while at < len(data):
        key = bytes(data[at : at + 3])
        before, seen[key] = seen.get(key), at
        if len(key) < 3 or before is None or at - before > 8192:
            plain.append(data[at])
            at += 1
            continue
        length = 3
        while length < 264 and at + length < len(data) and data[before + length] == data[at + length]:
            length += 1
        flush()
        high, low = divmod(at - before - 1, 256)
        short = min(length - 2, 7)
        packed.extend([short << 5 | high, *([length - 2 - 7] if short == 7 else []), low])
        at += length
    flush()
    return bytes(packed)


def pcd_of(kind, normals=True, count=40):
    packed = COLORS.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    fields = [("x", POINTS[:, 0]), ("y", POINTS[:, 1]), ("z", POINTS[:, 2]), ("rgb", packed.view(np.float32))]
    fields += [(f"normal_{axis}", NORMALS[:, place]) for place, axis in enumerate("xyz")] if normals else []
    names = " ".join(name for name, _ in fields)
    size = len(fields)
    header = f"# .PCD v0.7\nVERSION 0.7\nFIELDS {names}\nSIZE {'4 ' * size}\nTYPE {'F ' * size}\nCOUNT {'1 ' * size}\n"
    header += f"WIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA {kind}\n"
    columns = np.stack([values for _, values in fields], axis=1).astype("<f4")
    if kind == "ascii":
        body = text_of(columns)
    elif kind == "binary":
        body = columns.tobytes()
    else:
        plain = columns.T.tobytes()
        body = pack_lzf(plain)
        body = struct.pack("<II", len(body), len(plain)) + body
    return header.encode() + body


def ply_cloud(kind):
    header = f"ply\nformat {kind} 1.0\nelement vertex 40\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    header += "".join(f"property float n{axis}\n" for axis in "xyz")
    header += "".join(f"property uchar {color}\n" for color in ("red", "green", "blue")) + "end_header\n"
    if kind == "ascii":
        return header.encode() + text_of(POINTS, NORMALS, COLORS)
    layout = [("xyz", "<f4", 3), ("normals", "<f4", 3), ("colors", "u1", 3)]
    rows = np.array(list(zip(POINTS, NORMALS, COLORS, strict=True)), dtype=layout)
    return header.encode() + (rows if kind.endswith("little_endian") else rows.byteswap()).tobytes()


def export(mesh, kind, **options):
    data = mesh.export(file_type=kind, **options)
    return data if isinstance(data, bytes) else data.encode()


def scene_of_boxes():
    scene = trimesh.Scene()
    for place in range(3):
        scene.add_geometry(BOX, transform=trimesh.transformations.translation_matrix((10 * place, 0, 0)))
    return scene


def embedded_gltf():
    files = BOX.export(file_type="gltf")
    tree = json.loads(files["model.gltf"])
    for buffer in tree["buffers"]:
        buffer["uri"] = "data:application/octet-stream;base64," + base64.b64encode(files[buffer["uri"]]).decode()
    return json.dumps(tree).encode()


CLOUDS = {
    "separated.xyz": text_of(POINTS),
    "normals.xyz": text_of(POINTS, NORMALS),
    "commas.txt": text_of(POINTS, NORMALS, separator=","),
    "named.csv": b"x, y, z\n" + text_of(POINTS, separator=", "),
    "counted.pts": b"40\n" + text_of(POINTS),
    "colors.txt": text_of(POINTS, COLORS),
    "comment.txt": b"# by hand\n\n" + text_of(POINTS) + b"\n",
    "three.npy": npy_of(POINTS),
    "six.npy": npy_of(np.hstack([POINTS, NORMALS]).astype(np.float64)),
    "fortran.npy": npy_of(np.asfortranarray(POINTS)),
    "named.npz": npz_of(points=POINTS, normals=NORMALS, colors=COLORS, faces=np.zeros((9, 3), np.int64)),
    "packed.npz": npz_of(np.savez_compressed, cloud=POINTS, label=np.array(3)),
    "ascii.pcd": pcd_of("ascii"),
    "binary.pcd": pcd_of("binary"),
    "compressed.pcd": pcd_of("binary_compressed"),
    "plain.pcd": pcd_of("binary_compressed", normals=False),
    "ascii.ply": ply_cloud("ascii"),
    "little.ply": ply_cloud("binary_little_endian"),
    "big.ply": ply_cloud("binary_big_endian"),
    "cloud.obj": b"".join(b"v " + row + b"\n" for row in text_of(POINTS).splitlines()),
    "cloud.glb": export(trimesh.Scene(trimesh.PointCloud(POINTS)), "glb"),
}
MESHES = {
    "binary.ply": export(BOX, "ply"),
    "text.ply": export(BOX, "ply", encoding="ascii"),
    "box.obj": b"mtllib ../../secret.mtl\n# \xe9t\xe9\n" + export(BOX, "obj"),
    "box.off": export(BOX, "off"),
    "one_line.off": export(BOX, "off").replace(b"OFF\n", b"OFF", 1),
    "box.stl": export(BOX, "stl"),
    "text.stl": export(BOX, "stl_ascii"),
    "box.glb": export(BOX, "glb"),
    "embedded.gltf": embedded_gltf(),
    "scene.glb": export(scene_of_boxes(), "glb"),
}


def damage(data, draw):
    """Break the bytes of a file in one of seven ways."""
    data, size = bytearray(data), len(data)
    start, stop = sorted((draw.randrange(size), draw.randrange(size)))
    stop = min(stop, start + 300)
    way = draw.randrange(7)
    if way == 0:
        for _ in range(draw.randrange(1, 9)):
            data[draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif way == 1:
        del data[start:]
    elif way == 2:
        data[start:start] = draw.randbytes(draw.randrange(1, 200))
    elif way == 3:
        data[start:start] = data[start:stop] * draw.randrange(1, 4)
    elif way == 4:
        del data[start:stop]
    elif way == 5:  # a number in the header of a binary file
        place = draw.randrange(min(160, size))
        data[place : place + 4] = struct.pack("<I", draw.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)))
    else:  # a number in a text header
        numbers = [place for place in range(min(2000, size)) if data[place : place + 1].isdigit()]
        place = draw.choice(numbers or [0])
        data[place : place + 1] = draw.choice((b"999999999999", b"-1", b"1e30", b"4294967295", b"0", b"99999", b"nan"))
    return bytes(data)
