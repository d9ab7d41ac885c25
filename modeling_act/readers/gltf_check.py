"""Holds the JSON of a glTF against the bytes that are there, before anything is allocated. Used by `mesh_files`."""

import math
from collections.abc import Callable

from ..errors import InputError

COMPONENT_SIZES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
NUM_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
# Primitives may share their vertices, and each is given a copy of them.
MOST_ELEMENTS = 30_000_000


def check_gltf(tree: dict, binary_size: int, size_of: Callable[[str], int]) -> None:
    """`binary_size` is that of a GLB's own chunk, `size_of` gives the size of a file beside it."""
    _check_buffers(tree.get("buffers", []), binary_size, size_of)
    for view in tree.get("bufferViews", []):
        end = _count(view, "byteOffset", 0) + _count(view, "byteLength")
        if end > _count(_pick(tree, "buffers", view["buffer"]), "byteLength"):
            raise InputError(f"has a view that ends at byte {end}, beyond its buffer")
    for accessor in tree.get("accessors", []):
        _check_accessor(tree, accessor)
    elements = 0
    for mesh in tree.get("meshes", []):
        for primitive in mesh["primitives"]:
            if primitive.get("extensions"):
                raise InputError(
                    f"is compressed by {', '.join(primitive['extensions'])[:100]}, which is not supported"
                )
            used = [*primitive["attributes"].values(), *([primitive["indices"]] if "indices" in primitive else [])]
            elements += sum(_count(_pick(tree, "accessors", index), "count") for index in used)
    if elements > MOST_ELEMENTS:
        raise InputError(f"holds primitives of {elements} elements, more than {MOST_ELEMENTS}")
    _check_nodes(tree)


def _count(holder: dict, key: str, default: int | None = None) -> int:
    value = holder.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"must have a count as {key}, got {str(value)[:40]!r}")
    return value


def _pick(tree: dict, kind: str, index: int) -> dict:
    """An entry by its index, which Python would count from the end where it is negative."""
    if not isinstance(index, int) or not 0 <= index < len(tree.get(kind, [])):
        raise InputError(f"refers to number {str(index)[:40]} of its {len(tree.get(kind, []))} {kind}")
    return tree[kind][index]


def _check_buffers(buffers: list[dict], binary_size: int, size_of: Callable[[str], int]) -> None:
    uris = [buffer["uri"] for buffer in buffers if "uri" in buffer]
    if len(set(uris)) < len(uris) or len(buffers) - len(uris) > 1:
        raise InputError("reads a file or its own chunk more than once")
    for buffer in buffers:
        uri = buffer.get("uri")
        if uri is None:
            size = binary_size
        elif uri.startswith("data:"):
            size = len(uri) * 3 // 4
        else:
            size = size_of(uri)
        if _count(buffer, "byteLength") > size:
            raise InputError(f"announces a buffer of {buffer['byteLength']} bytes and holds {size}")


def _check_accessor(tree: dict, accessor: dict) -> None:
    if "sparse" in accessor or "bufferView" not in accessor:
        raise InputError("has a sparse accessor or one without a view, which is not supported")
    view, count = _pick(tree, "bufferViews", accessor["bufferView"]), _count(accessor, "count")
    item = COMPONENT_SIZES[accessor["componentType"]] * NUM_COMPONENTS[accessor["type"]]
    stride = _count(view, "byteStride", item)
    end = _count(accessor, "byteOffset", 0) + stride * (count - 1) + item
    if stride < item or end > _count(view, "byteLength"):
        raise InputError(f"has an accessor of {count} elements that ends at byte {end}, beyond its view")


def _check_nodes(tree: dict) -> None:
    """Nodes are trees: a node with two parents multiplies what hangs below it, a cycle never ends."""
    children = [child for node in tree.get("nodes", []) for child in node.get("children", [])]
    roots = [root for scene in tree.get("scenes", []) for root in scene.get("nodes", [])]
    for index in (*children, *roots):
        _pick(tree, "nodes", index)
    parented = set(children)
    if len(parented) < len(children):
        raise InputError("has a node with two parents")
    reached, waiting = set(), [index for index in range(len(tree.get("nodes", []))) if index not in parented]
    while waiting:
        index = waiting.pop()
        reached.add(index)
        waiting += tree["nodes"][index].get("children", [])
    if len(reached) < len(tree.get("nodes", [])):
        raise InputError("has nodes that are their own ancestors")
    if not all(math.isfinite(number) for node in tree.get("nodes", []) for number in node.get("matrix", [])):
        raise InputError("has a node whose matrix is not finite")
