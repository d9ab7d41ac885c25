"""Small real models in folders, an index of the samples, and the page served from a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from small_models import small_student_config, small_teacher_config

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "app"))

CLASSES = ["chair", "<b>lamp</b>", "mug"]
PARTS = ["chair/seat", "chair/leg", "lamp/shade", "lamp/pole", "mug/body"]


@pytest.fixture(scope="session")
def model_names(tmp_path_factory) -> dict[str, str]:
    """What each flag of the app is given."""
    from modeling_act import (
        ACTPointCloudProcessor,
        ACTStudent,
        ACTStudentForPartSegmentation,
        ACTStudentForPointCloudClassification,
        ACTStudentForPreTraining,
        ACTTeacher,
    )
    from modeling_act.loading import load_model
    from modeling_act.shape_index import ShapeIndex, probe_cloud

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


@contextmanager
def served(folder: Path, names: dict[str, str]):
    """The address of the page, started as a user starts it; uploads go below `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app/app.py", "--port", str(port)]
    command += [word for name, value in names.items() for word in (f"--{name}", value)]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder / "uploads"), "OMP_NUM_THREADS": "1"}
    log = folder / "app.log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/config", timeout=5).read()
                break
            except urllib.error.URLError:
                time.sleep(0.25)
        else:
            raise AssertionError(f"the page does not answer: {log.read_text()}")
        yield address
        # Gradio logs where it refused a forged request; nothing of ours may have failed.
        assert f'File "{ROOT}' not in log.read_text(), log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="session")
def address(model_names, tmp_path_factory):
    with served(tmp_path_factory.mktemp("served"), model_names) as address:
        yield address


@pytest.fixture
def cloud_file(tmp_path):
    """A full cube: wherever one clicks there is a point."""
    path = tmp_path / "cube.xyz"
    np.savetxt(path, np.random.default_rng(0).random((600, 3)), fmt="%.5f")
    return path
