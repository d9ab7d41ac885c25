"""`ShapeIndex`: a folder of named vectors, searched by usearch: exactly, or above `MAX_TO_SCAN` through a graph."""

import json
import os
from collections import Counter
from pathlib import Path
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

MAX_TO_SCAN = 200_000
VECTORS, ABOUT, GRAPH = "vectors.npy", "index.json", "graph.usearch"
MIN_PROBE_COSINE = 0.999  # between the probe vectors of the index and of a model, if it is the same model


class ShapeIndex:
    """Vectors (n, width) of length one with their `names`; `about` says which model made them."""

    def __init__(self, names: list[str], vectors: np.ndarray, about: dict[str, Any], graph: Any = None):
        self.names, self.vectors, self.about, self.graph = names, vectors, about, graph

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def build(cls, folder: str | Path, names: list[str], vectors: Tensor, about: dict[str, Any]) -> "ShapeIndex":
        """Write an index and open it. `about` should hold `probe`, the model's vector of `probe_cloud()`."""
        check_usearch()
        if len(names) != len(vectors) or not len(names):
            raise InputError(f"an index needs a name for each vector, got {len(names)} names, {len(vectors)} vectors")
        check_names(names)
        vectors, folder = to_unit_length(vectors), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (ABOUT, GRAPH):  # ABOUT is written last: a folder with it is complete
            (folder / name).unlink(missing_ok=True)
        draft = folder / f".{VECTORS}.writing"  # an index that is open keeps the old file
        with draft.open("wb") as file:
            np.save(file, vectors)
        os.replace(draft, folder / VECTORS)
        if len(names) > MAX_TO_SCAN:
            graph = Index(ndim=vectors.shape[1], metric=MetricKind.Cos, dtype="f16")
            graph.add(np.arange(len(names)), vectors)
            graph.save(folder / GRAPH)
        (folder / ABOUT).write_text(json.dumps({"names": names, "about": about}, indent=1), encoding="utf-8")
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "ShapeIndex":
        """Open an index; its vectors stay on disk until they are compared."""
        check_usearch()
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise InputError(f"{folder}: is no index; python -m modeling_act encode SHAPES --index {folder} makes one")
        names, about = translate_errors(folder / ABOUT, read_about)
        vectors = translate_errors(folder / VECTORS, lambda path: np.load(path, mmap_mode="r", allow_pickle=False))
        if vectors.ndim != 2 or vectors.dtype != np.float32 or len(vectors) != len(names):
            needed = f"must hold a float32 vector for each of {len(names)} names"
            raise InputError(f"{folder}: {VECTORS} {needed}, got {vectors.dtype} of shape {vectors.shape}")
        graph = None
        if len(names) > MAX_TO_SCAN:
            graph = Index.restore(folder / GRAPH, view=True)
            if graph is None or len(graph) != len(names) or graph.ndim != vectors.shape[1]:
                raise InputError(f"{folder}: {GRAPH} is missing, or of other vectors; make the index again")
        return cls(names, vectors, about, graph)

    def search(self, vectors: Tensor, count: int = 10) -> list[list[tuple[str, float]]]:
        """Find for each vector (n, width) the names nearest to it with their cosines, nearest first."""
        queries = to_unit_length(vectors)
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise InputError(f"queries must be of shape (n, {self.vectors.shape[1]}), got {queries.shape}")
        if count < 1:
            raise InputError(f"`count` must be at least 1, got {count}")
        if not len(queries):
            return []
        count = min(count, len(self))
        if self.graph is not None:
            matches = self.graph.search(queries, count)
        else:
            matches = search(self.vectors, queries, count, MetricKind.Cos, exact=True)
        results = []
        for query, rows in zip(queries, np.asarray(matches.keys).reshape(len(queries), -1), strict=True):
            cosines = self.vectors[rows] @ query  # again, so that the scan and the graph return the same numbers
            order = np.argsort(-cosines, kind="stable")
            results.append([(self.names[rows[place]], float(cosines[place])) for place in order])
        return results

    def check_model(self, vector: Tensor) -> None:
        """Raise unless `vector`, a model's of `probe_cloud()`, comes from the model that made the index."""
        probe, name = torch.tensor(self.about.get("probe") or [], dtype=torch.float32), self.about.get("model")
        if probe.shape != vector.shape or torch.cosine_similarity(probe, vector.float(), dim=0) < MIN_PROBE_COSINE:
            raise InputError(f"the index was made by another model or processor ({name}); make it again")


def read_about(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Read names and what made them; whatever is not as `build` wrote it raises here, and not in a search."""
    content = json.loads(path.read_text(encoding="utf-8"))
    check_names(content["names"])
    torch.tensor(content["about"].get("probe") or [], dtype=torch.float32)
    return content["names"], content["about"]


def probe_cloud() -> np.ndarray:
    """A fixed cloud (4096, 3), whose vector identifies a model."""
    angles = np.arange(4096)[:, None] * np.array([0.754877666, 0.569840291, 0.3247179572])
    return np.cos(2 * np.pi * angles) * np.array([1.0, 0.7, 0.4])


def check_usearch() -> None:
    if Index is None:
        raise InputError('searching needs usearch: in the clone, pip install ".[search]"')


def check_names(names: list) -> None:
    """Raise unless names are different relative paths: a name is looked up below a folder of shapes."""
    for name in names:
        if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise InputError(f"names in an index must be relative paths without '..', got {name!r:.100}")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"two clouds have one name, {name!r}")


def to_unit_length(vectors: Tensor) -> np.ndarray:
    vectors = torch.as_tensor(vectors).detach().cpu().float()
    if bad := int((~vectors.isfinite()).sum()):
        raise InputError(f"vectors must be finite, got {bad} numbers that are not")
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()
