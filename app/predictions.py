"""What the page shows of one cloud, computed: no layout here, and nothing that comes from a browser but numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from reading import OpenCloud, open_cloud
from torch import nn

from modeling_act.errors import InputError
from modeling_act.hub.load_model import SEGMENTERS, load_model
from modeling_act.inference import processor_of
from modeling_act.point_prediction import label_points, number_of_category
from modeling_act.search.shape_index import ShapeIndex, probe_cloud
from modeling_act.viewer.page import ShownCloud

NUM_CLASSES, NUM_HITS = 5, 6

PLAIN, FEATURES, SIMILARITY, PARTS = "Shape", "Features", "Similarity", "Parts"


@dataclass
class Models:
    """Those that were given; what has none is not shown."""

    student: nn.Module | None = None
    classifier: nn.Module | None = None
    segmenter: nn.Module | None = None
    teacher: nn.Module | None = None
    pretraining: nn.Module | None = None
    index: ShapeIndex | None = None
    shapes: Path | None = None  # the folder whose files the index names

    @property
    def colorings(self) -> list[str]:
        of_student, of_segmenter = [FEATURES, SIMILARITY] * bool(self.student), [PARTS] * bool(self.segmenter)
        return [PLAIN, *of_student, *of_segmenter]


def load_models(names: dict[str, str | None]) -> Models:
    """`names`: folders or Hub ids, the folders of `index` and `shapes`. Without a student, the encoder of the
    pretraining model or of the classifier is one."""
    wanted = {
        "student": ("ACTStudent",),
        "classifier": ("ACTStudentForPointCloudClassification",),
        "segmenter": SEGMENTERS,
        "teacher": ("ACTTeacher",),
        "pretraining": ("ACTStudentForPreTraining",),
    }
    names = {name: value for name, value in names.items() if value}
    if encoder := names.get("student") or names.get("pretraining") or names.get("classifier"):
        names["student"] = encoder
    if "pretraining" in names and "teacher" not in names:
        raise InputError("--pretraining needs --teacher, the model that draws what it predicts")
    if "index" in names and "student" not in names:
        raise InputError("--index needs --student, the model that it was built with")
    models = Models(**{name: load_model(names[name], *classes) for name, classes in wanted.items() if name in names})
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


def given(model: nn.Module) -> dict[str, str]:
    """How the page's clouds stand, for a processor that knows how its model's stood."""
    return {"up_axis": "y"} if processor_of(model).up_axis else {}


def classify(models: Models, cloud: OpenCloud) -> list[tuple[str, float]]:
    """The likeliest classes and their probabilities."""
    model = models.classifier
    with torch.inference_mode():
        logits = model(**processor_of(model)(cloud.points, **given(model))).logits[0]
    scores, labels = logits.float().softmax(-1).topk(min(NUM_CLASSES, len(logits)))
    return [
        (model.config.id2label[label], score) for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
    ]


def categories(models: Models) -> list[str]:
    """What the segmenter must be told of an object; none if it needs nothing."""
    if not hasattr(models.segmenter, "category_embedding"):
        return []
    config = models.segmenter.config
    return config.category_names or [str(number) for number in range(config.num_categories)]


def color(models: Models, cloud: OpenCloud, coloring: str, picked: int, category: str | None) -> ShownCloud:
    """The cloud in one of `models.colorings`. `picked` is the point that SIMILARITY compares all with."""
    shown = ShownCloud(cloud.points, cloud.name)
    if coloring == PARTS:
        number = number_of_category(models.segmenter, category)
        processor = processor_of(models.segmenter)
        points = processor.read(cloud.points, **given(models.segmenter))
        labels, _ = label_points(models.segmenter, points, processor, number)
        shown.labels, shown.label_names = labels.numpy(), models.segmenter.config.id2label
    elif coloring == FEATURES:
        shown.colors = principal_colors(models.student.encode_points(cloud.points, **given(models.student)))
    elif coloring == SIMILARITY:
        features = models.student.encode_points(cloud.points, **given(models.student))
        shown.values = models.student.similarity(features[picked], features).numpy()
    else:
        shown.colors = cloud.colors
    return shown


def principal_colors(features: torch.Tensor) -> np.ndarray:
    """(points, width) -> (points, 3) in [0, 1]: the three directions in which the features differ most, as red, green
    and blue."""
    features = features.double() - features.double().mean(0)
    _, vectors = torch.linalg.eigh(features.T @ features)
    vectors = vectors[:, -3:].flip(1)
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # of both signs, always one
    places = (features @ vectors).numpy()
    low, high = np.quantile(places, (0.02, 0.98), axis=0)
    colors = np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.pad(0.1 + 0.85 * colors, ((0, 0), (0, 3 - colors.shape[1])))


def neighbors(models: Models, cloud: OpenCloud) -> list[tuple[str, float, ShownCloud | None]]:
    """Names of the nearest shapes of the index, their cosines, and those shapes where their files are there."""
    vector = models.student.encode(cloud.points, show_progress=False, **given(models.student))
    return [(name, cosine, _shape(models, name)) for name, cosine in models.index.search(vector[None], NUM_HITS)[0]]


def shape_path(models: Models, name: str) -> Path | None:
    """Where the shape of this name lies, if in the folder of shapes and nowhere else."""
    if models.shapes is None:
        return None
    path = (models.shapes / name).resolve()
    return path if path.is_relative_to(models.shapes) and path.is_file() else None


def _shape(models: Models, name: str) -> ShownCloud | None:
    path = shape_path(models, name)
    if path is None:
        return None
    try:
        points = open_cloud(path).points
    except InputError:  # the file has gone bad since; its name is still right
        return None
    return ShownCloud(points[np.random.default_rng(0).permutation(len(points))[:2048]], path.stem)


def rebuild(models: Models, cloud: OpenCloud, seed: int) -> list[ShownCloud]:
    """What the teacher makes of the cloud; with a pretraining model what both make of the groups that `seed` leaves
    visible, and those."""
    student = models.pretraining
    model = student or models.teacher
    points = processor_of(model)(cloud.points, **given(model))["points"]
    if student is None:
        (made,) = models.teacher.reconstruct(points)
        return [
            ShownCloud(made["input"].numpy(), "the original"),
            ShownCloud(made["reconstruction"].numpy(), "rebuilt"),
        ]
    (made,) = student.reconstruct(points, models.teacher, seed=seed)
    share = 1 - int(student.config.mask_ratio * student.config.num_groups) / student.config.num_groups
    names = {"visible": f"{share:.0%} stays visible", "reconstruction": "rebuilt from it", "input": "the original"}
    return [ShownCloud(made[key].numpy(), name) for key, name in names.items()]
