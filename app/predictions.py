"""Predictions of the models for one cloud. No layout here, and only numbers from the browser."""

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from reading import OpenCloud, open_cloud
from torch import nn

from modeling_act.errors import InputError
from modeling_act.hub.load_model import SEGMENTERS, load_model
from modeling_act.inference import label_points, number_of_category, processor_of
from modeling_act.search.shape_index import ShapeIndex, probe_cloud
from modeling_act.viewer.page import ViewerCloud

NUM_CLASSES, NUM_HITS = 5, 6
STUDENT = "act-tiny"  # the default, which comes with the package
INDEX = Path(__file__).with_name("index.tar.xz")  # its default: shapes and their index, by make_samples.py
# Cosines of STUDENT from which a shape is close, by the number of `samples` of an index. See app/README.md.
CLOSE = {1: 0.4, 4: 0.5}
PLAIN, FEATURES, SIMILARITY, PARTS = "Shape", "Features", "Similarity", "Parts"
CLASSES_OF = {
    "student": ("ACTStudent",),
    "classifier": ("ACTStudentForPointCloudClassification",),
    "segmenter": SEGMENTERS,
    "teacher": ("ACTTeacher",),
    "pretraining": ("ACTStudentForPreTraining",),
}


@dataclass
class Models:
    """Models of the page, which leaves out the sections that have none."""

    student: nn.Module | None = None
    classifier: nn.Module | None = None
    segmenter: nn.Module | None = None
    teacher: nn.Module | None = None
    pretraining: nn.Module | None = None
    index: ShapeIndex | None = None
    shapes: Path | None = None  # folder of the files that the index names
    names: dict[str, str] = field(default_factory=dict)  # of the models, index and shapes, by flag
    unpacked: TemporaryDirectory | None = None  # holds the files of INDEX, and is deleted with the models

    @property
    def colorings(self) -> list[str]:
        return [PLAIN, *[FEATURES, SIMILARITY] * bool(self.student), *[PARTS] * bool(self.segmenter)]

    @property
    def min_cosine(self) -> float | None:
        """Cosine below which no shape of the index is close to another, where that was measured."""
        return CLOSE.get(self.index.about.get("samples", 1)) if self.names.get("student") == STUDENT else None

    @property
    def categories(self) -> list[str]:
        """Kinds of objects that a part segmenter must choose from; none if it needs no choice."""
        if not hasattr(self.segmenter, "category_embedding"):
            return []
        config = self.segmenter.config
        return config.category_names or [str(number) for number in range(config.num_categories)]


def load_models(names: dict[str, str | None]) -> Models:
    """Load the models of these folders or Hub ids, and the folders `index` and `shapes`. The default student is the
    encoder of the pretraining model, or STUDENT, which by default searches INDEX."""
    names = {name: value for name, value in names.items() if value}
    names.setdefault("student", names.get("pretraining", STUDENT))
    if "pretraining" in names and "teacher" not in names:
        raise InputError("--pretraining needs --teacher")
    unpacked = None
    if names["student"] == STUDENT and "index" not in names:
        unpacked = TemporaryDirectory(prefix="act_page_", ignore_cleanup_errors=True)
        shutil.unpack_archive(INDEX, unpacked.name, filter="data")
        names = {"index": f"{unpacked.name}/index", "shapes": f"{unpacked.name}/shapes"} | names
    loaded = {name: load_model(names[name], *kinds) for name, kinds in CLASSES_OF.items() if name in names}
    models = Models(**loaded, names=names, unpacked=unpacked)
    if "index" in names:
        models.index = ShapeIndex.load(names["index"])
        try:
            models.index.check_model(models.student.encode(probe_cloud(), show_progress=False))
        except InputError as error:
            raise InputError(f"--index {names['index']}, --student {names['student']}: {error}") from error
    if "shapes" in names:
        models.shapes = Path(names["shapes"]).resolve()
        if not models.shapes.is_dir():
            raise InputError(f"--shapes {names['shapes']}: there is no such folder")
    return models


def up_axis(model: nn.Module) -> dict[str, str]:
    """Processor argument: the page's clouds have y up, if the model's processor distinguishes axes."""
    return {"up_axis": "y"} if processor_of(model).up_axis else {}


def classify(models: Models, cloud: OpenCloud) -> dict[str, float]:
    """The most probable classes with their probabilities, in falling order."""
    model = models.classifier
    with torch.inference_mode():
        logits = model(**processor_of(model)(cloud.points, **up_axis(model))).logits[0]
    scores, labels = logits.float().softmax(-1).topk(min(NUM_CLASSES, len(logits)))
    return dict(zip(map(model.config.id2label.get, labels.tolist()), scores.tolist(), strict=True))


def color(models: Models, cloud: OpenCloud, coloring: str, picked: int, category: str | None) -> ViewerCloud:
    """Color the cloud in one of `models.colorings`; SIMILARITY compares with the point `picked`."""
    if coloring == PLAIN:
        return ViewerCloud(cloud.points, cloud.name, colors=cloud.colors)
    if coloring == PARTS:
        model, processor = models.segmenter, processor_of(models.segmenter)
        points = processor.read(cloud.points, **up_axis(model))
        labels, _ = label_points(model, points, processor, number_of_category(model, category))
        return ViewerCloud(cloud.points, cloud.name, labels=labels.numpy(), label_names=model.config.id2label)
    features = models.student.encode_points(cloud.points, **up_axis(models.student))
    if coloring == FEATURES:
        return ViewerCloud(cloud.points, cloud.name, colors=principal_colors(features))
    values = models.student.similarity(features[picked], features).numpy()
    return ViewerCloud(cloud.points, cloud.name, values=values)


def principal_colors(features: torch.Tensor) -> np.ndarray:
    """Map features (points, width) to colors (points, 3) in [0, 1]: their first three principal components."""
    features = features.double() - features.double().mean(0)
    _, vectors = torch.linalg.eigh(features.T @ features)
    vectors = vectors[:, -3:].flip(1)
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # eigh leaves the sign open
    components = (features @ vectors).numpy()
    low, high = np.quantile(components, (0.02, 0.98), axis=0)
    colors = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.pad(0.1 + 0.85 * colors, ((0, 0), (0, 3 - colors.shape[1])))


def neighbors(models: Models, cloud: OpenCloud) -> list[tuple[str, float, ViewerCloud | None]]:
    """Names of the nearest shapes of the index, cosines, and the shapes themselves where their files are readable."""
    options = {"samples": models.index.about.get("samples", 1), **up_axis(models.student)}
    vector = models.student.encode(cloud.points, show_progress=False, **options)
    hits = []
    for name, cosine in models.index.search(vector[None], NUM_HITS)[0]:
        path, shape = shape_path(models, name), None
        with suppress(InputError):  # a damaged file; its name is still right
            shape = path and thinned(open_cloud(path).points, path.stem, 2048)
        hits.append((name, cosine, shape))
    return hits


def shape_path(models: Models, name: str) -> Path | None:
    """File of a shape of the index, if it lies in the folder of shapes."""
    path = models.shapes and (models.shapes / name).resolve()
    return path if path and path.is_relative_to(models.shapes) and path.is_file() else None


def thinned(points: np.ndarray, name: str, count: int) -> ViewerCloud:
    """Cloud of `count` random points, always the same."""
    return ViewerCloud(points[np.random.default_rng(0).permutation(len(points))[:count]], name)


def rebuild(models: Models, cloud: OpenCloud, seed: int) -> list[ViewerCloud]:
    """The teacher's reconstruction; with a pretraining model, the one from the groups that `seed` leaves visible."""
    student = models.pretraining
    model = student or models.teacher
    points = processor_of(model)(cloud.points, **up_axis(model))["points"]
    if student is None:
        (clouds,) = models.teacher.reconstruct(points)
        names = {"input": "original", "reconstruction": "rebuilt"}
    else:
        (clouds,) = student.reconstruct(points, models.teacher, seed=seed)
        share = len(clouds["visible"]) / len(clouds["reconstruction"])
        names = {"visible": f"{share:.0%} visible", "reconstruction": "rebuilt from it", "input": "original"}
    return [ViewerCloud(clouds[key].numpy(), name) for key, name in names.items()]
