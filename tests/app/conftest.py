"""Small real models in folders, an index of the samples, and the page that shows them."""

import sys

import numpy as np
import pytest
import torch
from app_server import CLASSES, ROOT, served

from small_models import small_student_config, small_teacher_config

sys.path.insert(0, str(ROOT / "app"))

PARTS = ["chair/seat", "chair/leg", "lamp/shade", "lamp/pole", "mug/body"]


@pytest.fixture(scope="session")
def model_names(tmp_path_factory) -> dict[str, str]:
    """Value of each flag of the app."""
    from modeling_act import (
        ACTPointCloudProcessor,
        ACTStudent,
        ACTStudentForPartSegmentation,
        ACTStudentForPointCloudClassification,
        ACTStudentForPreTraining,
        ACTTeacher,
    )
    from modeling_act.hub.load_model import load_model
    from modeling_act.search.shape_index import ShapeIndex, probe_cloud

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    of_parts = {"num_labels": 5, "id2label": dict(enumerate(PARTS)), "num_categories": 3, "category_names": CLASSES}
    models = {
        "student": ACTStudent(small_student_config()),
        "classifier": ACTStudentForPointCloudClassification(
            small_student_config(num_labels=3, id2label=dict(enumerate(CLASSES)))
        ),
        "segmenter": ACTStudentForPartSegmentation(
            small_student_config(**of_parts, parts_of_category=[[0, 1], [2, 3], [4]])
        ),
        "teacher": ACTTeacher(small_teacher_config()),
        "pretraining": ACTStudentForPreTraining(small_student_config()),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        ACTPointCloudProcessor(256).save_pretrained(folder / name)
    student = load_model(str(folder / "student"), "ACTStudent")
    samples = sorted((ROOT / "app" / "samples").glob("*.ply"))
    vectors = student.encode([str(path) for path in samples], show_progress=False)
    about = {"probe": student.encode(probe_cloud(), show_progress=False).tolist()}
    names = [path.name for path in samples[:-1]] + ["gone.ply"]  # no file of this name is there
    ShapeIndex.build(folder / "index", names, vectors, about)
    folders = {name: str(folder / name) for name in (*models, "index")}
    return folders | {"shapes": str(ROOT / "app" / "samples")}


@pytest.fixture(scope="session")
def address(model_names, tmp_path_factory):
    with served(tmp_path_factory.mktemp("served"), model_names) as address:
        yield address


@pytest.fixture
def cloud_file(tmp_path):
    """A cube full of points, so that every click hits one."""
    path = tmp_path / "cube.xyz"
    np.savetxt(path, np.random.default_rng(0).random((600, 3)), fmt="%.5f")
    return path
