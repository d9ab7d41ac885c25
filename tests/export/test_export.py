"""Exported files beside the model they came from, on clouds of other sizes than the ones they were traced with."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from forked import run_command
from modeling_act import (
    ACTPointCloudProcessor,
    ACTStudent,
    ACTStudentConfig,
    ACTStudentForObjectDetection,
    ACTStudentForPreTraining,
)
from modeling_act.errors import InputError
from modeling_act.export.export_act import OUTPUTS, export_onnx, export_program
from small_models import small_models, small_student_config

ROOT = Path(__file__).resolve().parents[2]

onnx = pytest.importorskip("onnx", reason="export needs the extra `export`")
onnxruntime = pytest.importorskip("onnxruntime", reason="export needs the extra `export`")
pytest.importorskip("onnxscript", reason="export needs the extra `export`")

SIZES = ((1, 64), (3, 100), (1, 257), (3, 512), (1, 1024))  # clouds, points
DETECTION = {
    "num_queries": 8,
    "detection_dim": 16,
    "detection_num_hidden_layers": 2,
    "detection_num_attention_heads": 2,
    "num_angle_bins": 4,
}
BARE = {"CC": "", "CXX": "", "PATH": "", "CUDA_VISIBLE_DEVICES": ""}  # no compiler to be found, no GPU


def build(name):
    """A small model whose every weight matters: drawn large enough, and running statistics away from 0 and 1."""
    if name == "detection":
        model = ACTStudentForObjectDetection(small_student_config(**DETECTION))
    elif name == "near_origin":
        model = ACTStudent(small_student_config(skip_near_origin=True))
    elif name == "student":
        model = ACTStudent(small_student_config(whitening=True))
    else:
        model_class, config, _ = small_models()[name]
        model = model_class(config)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(std=0.3)
        for key, value in model.named_buffers():
            if "running" in key:
                value.uniform_(0.5, 1.5)
            elif "whitening" in key:
                value.normal_(std=0.3)
    return model.eval()


def clouds(num_clouds, num_points):
    """Unequal points, then many copies of one, then copies of all: ties in sampling and neighbours."""
    points = torch.randn(3, num_clouds, num_points, 3)
    points[1, :, ::2] = points[1, :, 1:2].clone()
    points[2, :, num_points // 2 :] = points[2, :, : num_points - num_points // 2].clone()
    return points.unbind()


def inputs_of(name, points):
    return {"points": points} | ({"category": torch.arange(len(points)) % 4} if name == "parts" else {})


@torch.no_grad()
def eager(model, inputs):
    if hasattr(model, "get_teacher_features"):
        points = inputs["points"]
        return {"teacher_features": model.get_teacher_features(points), "centers": model.group(points).centers}
    output = model(**inputs)
    values = {name: output[field] for name, field in OUTPUTS[type(model).__name__].items()}
    return values | ({"embedding": model.embed(**inputs)} if "embedding" in values else {})


def run_onnx(session, inputs):
    names = [output.name for output in session.get_outputs()]
    values = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return dict(zip(names, map(torch.from_numpy, values), strict=True))


def assert_same(found, expected, tolerance):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert value.std() > 0.01, f"{name} is the same everywhere, which proves nothing"
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance * scale, msg=lambda text, n=name: n + text
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Name -> model, program and session, exported when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            model, folder = build(name), tmp_path_factory.mktemp(name)
            processor, path = ACTPointCloudProcessor(num_points=200), folder / "model.onnx"
            export_onnx(model, path, processor)
            program = export_program(model, folder / "model.pt2", processor).module()
            made[name] = model, program, onnxruntime.InferenceSession(path), path
        return made[name]

    return get


NAMES = ["student", "parts"]
SLOW_NAMES = ["near_origin", "classification", "linear", "semantic", "detection", "teacher"]


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_NAMES)])
def test_exported_model_equals_the_model(name, exported):
    model, program, session, path = exported(name)
    onnx.checker.check_model(path, full_check=True)
    for size in SIZES:
        for points in clouds(*size):
            inputs = inputs_of(name, points)
            expected = eager(model, inputs)
            assert_same(program(*inputs.values()), expected, 1e-5)
            assert_same(run_onnx(session, inputs), expected, 1e-5)


def test_grouping_is_inside_as_operators_of_onnx_alone(exported):
    """One loop and not one copy of its body a group; nothing but standard operators; no paths of this machine."""
    path = exported("student")[3]
    graph = onnx.load(path).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("Scan") == 1 and operators.count("ArgMax") == 0
    assert {node.domain for node in graph.node} == {""}
    assert [axis.dim_param for axis in graph.input[0].type.tensor_type.shape.dim] == ["batch", "points", ""]
    data = path.read_bytes()
    assert str(ROOT).encode() not in data and sys.prefix.encode() not in data


def test_metadata(exported):
    def read(name):
        found = exported(name)[2].get_modelmeta().custom_metadata_map
        return {key: json.loads(value) for key, value in found.items()}

    about = read("parts")
    assert about["model"] == "ACTStudentForPartSegmentation"
    assert about["id2label"] == {str(label): f"LABEL_{label}" for label in range(5)}
    assert (about["min_points"], about["num_points"], about["normalize"]) == (16, 200, True)
    assert (about["num_categories"], about["category_names"]) == (4, None)
    assert "id2label" not in read("student")


def test_runs_on_numpy_and_onnxruntime_alone(exported, run_python, tmp_path):
    """The snippet of docs/export.md, in a process without torch, compiler and GPU."""
    model, _, _, path = exported("student")
    cloud = np.random.default_rng(1).uniform(-3, 8, (300, 3))
    np.save(tmp_path / "cloud.npy", cloud)
    (tmp_path / "student.onnx").write_bytes(path.read_bytes())
    snippets = re.findall("```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    snippet = next(text for text in snippets if "InferenceSession" in text)
    end = "\nimport sys\nassert not {'torch', 'modeling_act'} & set(sys.modules)\nnp.savez('found', points, embedding)"
    run_python("-c", snippet + end, environment=BARE, cwd=tmp_path)
    points, embedding = np.load(tmp_path / "found.npz").values()
    assert points.shape == (200, 3) and np.isclose(np.linalg.norm(points, axis=1).max(), 1)
    expected = eager(model, {"points": torch.from_numpy(points[None]).float()})["embedding"]
    torch.testing.assert_close(torch.from_numpy(embedding), expected, rtol=0, atol=1e-5)


def test_program_runs_on_torch_alone(exported, run_python, tmp_path):
    model, _, _, path = exported("student")
    (tmp_path / "student.pt2").write_bytes(path.with_suffix(".pt2").read_bytes())
    points = torch.randn(3, 77, 3)
    torch.save(points, tmp_path / "points.pt")
    code = """if True:
        import json, sys, torch
        about = {"about.json": ""}
        program = torch.export.load("student.pt2", extra_files=about).module()
        outputs = program(torch.load("points.pt"))
        assert "modeling_act" not in sys.modules and json.loads(about["about.json"])["num_points"] == 200
        torch.save(dict(outputs), "found.pt")"""
    run_python("-c", code, environment=BARE, cwd=tmp_path)
    assert_same(torch.load(tmp_path / "found.pt"), eager(model, {"points": points}), 1e-5)


def test_clouds_that_are_too_small_are_refused(exported):
    model, program, session, _ = exported("student")
    points = torch.randn(1, 15, 3)
    with pytest.raises(ValueError, match="`num_groups` must not exceed the number of points"):
        model(points)
    with pytest.raises(AssertionError, match="size.*>= 16"):
        program(points)
    with pytest.raises(Exception, match=re.escape("k argument [16] should not be greater than specified axis dim")):
        session.run(None, {"points": points.numpy()})
    assert session.run(None, {"points": torch.randn(1, 16, 3).numpy()})[0].shape == (1, 48)


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path):
    student = build("student")
    with pytest.raises(InputError, match="student.pt: the file's name must end in .onnx"):
        export_onnx(student, tmp_path / "student.pt")
    with pytest.raises(InputError, match="there is no folder"):
        export_program(student, tmp_path / "missing" / "student.pt2")
    with pytest.raises(InputError, match="ACTStudentForPreTraining cannot be exported, only ACTStudent, "):
        export_onnx(ACTStudentForPreTraining(small_student_config()), tmp_path / "student.onnx")
    with pytest.raises(InputError, match="export needs float32 weights, got torch.bfloat16"):
        export_onnx(student.bfloat16(), tmp_path / "student.onnx")
    code = """if True:
        import sys
        sys.path.insert(0, "tests")
        sys.modules |= dict.fromkeys(["onnx", "onnxscript", "onnxruntime"])
        from small_models import ACTStudent, small_student_config
        from modeling_act.errors import InputError
        from modeling_act.export.export_act import export_onnx, export_program
        student = ACTStudent(small_student_config()).train()
        export_program(student)  # needs none of these
        assert student.training and student.layers[0].training
        try:
            export_onnx(student, "student.onnx")
        except InputError as error:
            print(error)"""
    lines = run_command("-c", code).stdout.splitlines()
    assert lines[-1] == 'ONNX files need onnx: in the clone, pip install ".[export]"'
    assert not list(tmp_path.iterdir())


def test_writing_says_nothing_of_packages_that_no_model_needs(run_python, tmp_path):
    code = f"""if True:
        import sys
        sys.path.insert(0, "tests")
        sys.modules["torchvision"] = None
        from small_models import ACTStudent, small_student_config
        from modeling_act.export.export_act import export_onnx
        export_onnx(ACTStudent(small_student_config()), {str(tmp_path / "student.onnx")!r})"""
    process = run_python("-c", code)
    assert (tmp_path / "student.onnx").is_file() and "torchvision" not in process.stderr + process.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("num_groups", "sizes"), [(64, (1024, 2048)), (512, (8192, 3000))])
def test_paper_size(num_groups, sizes, tmp_path):
    model = ACTStudent(ACTStudentConfig(num_groups=num_groups)).eval()
    program = export_program(model).module()
    export_onnx(model, tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    for num_points in sizes:
        inputs = {"points": torch.randn(2, num_points, 3)}
        expected = eager(model, inputs)
        assert_same(program(*inputs.values()), expected, 1e-5)
        assert_same(run_onnx(session, inputs), expected, 1e-5)
