"""`ShapeIndex`: a folder of vectors with names, and which of them are nearest to others. Searched by usearch.

Up to `MOST_TO_SCAN` vectors are compared one by one, exactly; more are searched through a graph, which misses few.
"""

import json
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..readers.cloud import translate_errors

try:
    from usearch.index import Index, MetricKind, search
except ImportError:
    Index = None

MOST_TO_SCAN = 200_000
VECTORS, ABOUT, GRAPH = "vectors.npy", "index.json", "graph.usearch"
SAME = 0.999  # cosine of what two models make of one cloud, if they are one


class ShapeIndex:
    """`vectors` (n, width) of length one, their `names`, and `about`, what made them."""

    def __init__(self, names: list[str], vectors: np.ndarray, about: dict[str, Any], graph: Any = None):
        self.names, self.vectors, self.about, self.graph = names, vectors, about, graph

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def build(cls, folder: str | Path, names: list[str], vectors: Tensor, about: dict[str, Any]) -> "ShapeIndex":
        """Writes the folder anew and opens it. `about` must hold `probe`, the model's vector of `probe_cloud()`."""
        check_usearch()
        if len(names) != len(vectors) or not len(names):
            raise InputError(f"an index needs a name for each vector, got {len(names)} names, {len(vectors)} vectors")
        _check_names(names)
        vectors = _to_unit_length(vectors)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABOUT).unlink(missing_ok=True)  # written last, so that a folder which has it is whole
        (folder / GRAPH).unlink(missing_ok=True)
        draft = folder / f".{VECTORS}.writing"  # whoever has the old ones open goes on reading those
        with draft.open("wb") as file:
            np.save(file, vectors)
        os.replace(draft, folder / VECTORS)
        if len(names) > MOST_TO_SCAN:
            graph = Index(ndim=vectors.shape[1], metric=MetricKind.Cos, dtype="f16")
            graph.add(np.arange(len(names)), vectors)
            graph.save(folder / GRAPH)
        about = {"names": names, "about": about}
        (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "ShapeIndex":
        """Vectors stay on disk until they are compared."""
        check_usearch()
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise InputError(f"{folder}: is no index; python -m modeling_act encode SHAPES --index {folder} makes one")
        told = translate_errors(folder / ABOUT, lambda path: json.loads(path.read_text(encoding="utf-8")))
        vectors = translate_errors(folder / VECTORS, lambda path: np.load(path, mmap_mode="r", allow_pickle=False))
        told = told if isinstance(told, dict) else {}
        names, about = told.get("names"), told.get("about") or {}
        if not isinstance(names, list) or vectors.ndim != 2 or vectors.dtype != np.float32:
            raise InputError(f"{folder}: is damaged: {ABOUT} must hold names, {VECTORS} a table of float32")
        probe = about.get("probe") or [] if isinstance(about, dict) else None
        if not isinstance(probe, list) or not all(isinstance(number, (int, float)) for number in probe):
            raise InputError(f"{folder}: is damaged: {ABOUT} must say what made it, with numbers as its probe")
        if len(names) != len(vectors):
            raise InputError(f"{folder}: holds {len(names)} names and {len(vectors)} vectors")
        _check_names(names)
        graph = None
        if len(names) > MOST_TO_SCAN:
            graph = Index.restore(folder / GRAPH, view=True)
            if graph is None or len(graph) != len(names) or graph.ndim != vectors.shape[1]:
                raise InputError(f"{folder}: {GRAPH} is missing, or of other vectors; make the index again")
        return cls(names, vectors, about, graph)

    def search(self, vectors: Tensor, count: int = 10) -> list[list[tuple[str, float]]]:
        """For each vector (n, width) the names nearest to it and their cosines, the nearest first."""
        queries = _to_unit_length(vectors)
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise InputError(f"queries must be of shape (n, {self.vectors.shape[1]}), got {queries.shape}")
        if count < 1:
            raise InputError(f"`count` must be at least 1, got {count}")
        count = min(count, len(self))
        if not len(queries):
            return []
        if self.graph is not None:
            found = self.graph.search(queries, count)
        else:
            found = search(self.vectors, queries, count, MetricKind.Cos, exact=True)
        keys = np.asarray(found.keys).reshape(len(queries), -1)
        # The index tells distances; cosines are computed anew, so that both ways give the same figures.
        cosines = np.einsum("nkd,nd->nk", self.vectors[keys], queries)
        order = np.argsort(-cosines, axis=1, kind="stable")
        return [
            [(self.names[keys[row, place]], float(cosines[row, place])) for place in order[row]]
            for row in range(len(queries))
        ]

    def check_model(self, vector: Tensor) -> None:
        """Raises unless `vector`, of `probe_cloud()`, comes from the model that made the index."""
        probe = torch.as_tensor(self.about.get("probe") or [], dtype=torch.float32)
        if probe.shape != vector.shape or torch.cosine_similarity(probe, vector.float(), dim=0) < SAME:
            made = self.about.get("model", "unknown")
            raise InputError(f"the index was made by another model or processor ({made}); vectors cannot be compared")


def probe_cloud() -> np.ndarray:
    """(4096, 3), always the same: what a model makes of it tells it from others."""
    turn = np.arange(4096)[:, None] * np.array([0.754877666, 0.569840291, 0.3247179572])
    return np.cos(2 * np.pi * turn) * np.array([1.0, 0.7, 0.4])


def check_usearch() -> None:
    if Index is None:
        raise InputError('searching needs usearch: pip install "modeling_act[search]"')


def _check_names(names: list) -> None:
    """Whoever opens the file of a name must find it below the folder that was meant."""
    for name in names:
        path = PurePosixPath(name) if isinstance(name, str) else None
        if path is None or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise InputError(f"names in an index must be relative paths without '..', got {name!r:.100}")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise InputError(f"two clouds have one name, {twice!r}")


def _to_unit_length(vectors: Tensor) -> np.ndarray:
    vectors = torch.as_tensor(vectors).detach().cpu().float()
    if not vectors.isfinite().all():
        row = (~vectors.isfinite().all(-1)).nonzero()[0].tolist()
        raise InputError(f"vectors must be finite, got NaN or infinity in row {row[0] if row else 0}")
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()


__all__ = ["ShapeIndex", "check_usearch", "probe_cloud"]
