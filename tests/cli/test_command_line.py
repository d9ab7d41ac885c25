"""`python -m modeling_act`: every command on small real files and models, through `main` and once from a shell."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModel

from forked import run_command
from modeling_act import (
    ACTPointCloudProcessor,
    ACTStudent,
    ACTStudentForPartSegmentation,
    ACTStudentForPointCloudClassification,
    ACTStudentForPreTraining,
    ACTTeacher,
    ACTViewTeacher,
)
from modeling_act.__main__ import main
from modeling_act.cli.commands import COMMANDS
from modeling_act.cli.tables import check_table, list_clouds, path_below, write_table
from modeling_act.hub.load_model import load_model
from modeling_act.point_ops import chamfer_l1
from modeling_act.readers.cloud import read_cloud
from shape_files import make_shapes
from small_models import (
    save_small_text_model,
    small_student_config,
    small_teacher_config,
    small_view_teacher_config,
)

NAMES = ["box.ply", "can.stl", "nested/ball.off", "ring.glb", "scan.xyz"]
PARTS = {"num_categories": 2, "category_names": ["chair", "car"], "parts_of_category": [[0, 1], [2, 3, 4]]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    made = {
        "student": ACTStudent(small_student_config()),
        "classifier": ACTStudentForPointCloudClassification(small_student_config(id2label=dict(enumerate("abcde")))),
        "parts": ACTStudentForPartSegmentation(small_student_config(**PARTS)),
        "teacher": ACTTeacher(small_teacher_config()),
        "pretraining": ACTStudentForPreTraining(small_student_config()),
    }
    folder = tmp_path_factory.mktemp("models")
    for name, model in made.items():
        model.save_pretrained(folder / name)
        ACTPointCloudProcessor(64).save_pretrained(folder / name)
    return folder


@pytest.fixture
def shapes(tmp_path):
    return make_shapes(tmp_path / "shapes")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command in a folder of its own; the lines of JSON that it printed, or its one line of error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        assert main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
        captured = capsys.readouterr()
        if code:
            assert not captured.out and captured.err.count("\n") == 1
            return captured.err.strip()
        return [json.loads(line) for line in captured.out.splitlines()]

    return run


def test_encode_writes_what_encode_gives(run, models, shapes):
    student = ACTStudent.from_pretrained(models / "student")
    expected = student.encode([shapes / name for name in NAMES], show_progress=False).numpy()
    for file in ("vectors.npz", "vectors.json", "vectors.parquet"):
        lines = run("encode", shapes, "--model", models / "student", "--out", file, "--batch_size", 2, "--quiet")
        assert lines == [{"clouds": 5, "skipped": 0, "width": 48}]
    with np.load("vectors.npz", allow_pickle=False) as arrays:
        assert arrays["name"].tolist() == NAMES
        assert np.allclose(arrays["vector"], expected, atol=1e-6)
    rows = json.loads(Path("vectors.json").read_text())
    assert [row["name"] for row in rows] == NAMES
    assert np.allclose([row["vector"] for row in rows], expected, atol=1e-6)
    table = parquet.read_table("vectors.parquet").to_pydict()
    assert table["name"] == NAMES and np.allclose(table["vector"], expected, atol=1e-6)


def test_similar_finds_the_shape_itself(run, models, shapes):
    run("encode", shapes, "--model", models / "student", "--index", "index", "--quiet")
    lines = run("similar", shapes / "ring.glb", shapes / "nested", "--index", "index", "--count", 2, "--quiet")
    assert [line["name"] for line in lines] == ["ring.glb", "nested/ball.off"]
    for line in lines:
        assert line["nearest"][0] == [line["name"], pytest.approx(1, abs=1e-5)] and len(line["nearest"]) == 2
    error = run("similar", shapes, "--index", "index", "--model", models / "classifier", code=1)
    assert error.startswith("modeling_act similar: the index was made by another model")


@pytest.mark.parametrize(("kind", "width"), [("clip", 16), ("siglip", 24)])
def test_similar_to_a_text(run, shapes, tmp_path, kind, width):
    save_small_text_model(tmp_path / "joint", kind)
    model = ACTStudentForPreTraining(small_student_config(cloud_dims=[width], text_model="joint"))
    model.save_pretrained("pretraining")
    ACTPointCloudProcessor(64).save_pretrained("pretraining")
    model = ACTStudentForPreTraining.from_pretrained("pretraining")  # with its processor
    clouds = model.encode([shapes / name for name in NAMES], space="teacher", show_progress=False)
    command = ("encode", shapes, "--model", "pretraining", "--space", "teacher", "--out", "vectors.npz")
    assert run(*command, "--index", "index", "--quiet") == [{"clouds": 5, "skipped": 0, "width": width}]
    with np.load("vectors.npz", allow_pickle=False) as arrays:
        assert np.allclose(arrays["vector"], clouds, atol=1e-6)

    tokens = torch.tensor([[3, 8, 5, 1, 0, 0, 0, 0]])  # a round mug, the end, and padding
    joint = AutoModel.from_pretrained("joint").eval()
    cosines = torch.cosine_similarity(joint.get_text_features(input_ids=tokens).pooler_output, clouds)
    nearest = [[NAMES[place], pytest.approx(cosines[place].item(), abs=1e-5)] for place in (-cosines).argsort()]
    text = ("similar", "--text", "a round mug", "--index", "index")
    assert run(*text) == [{"name": "a round mug", "nearest": nearest}]
    assert run(*text, "--count", 1, "--text_model", tmp_path / "joint")[0]["nearest"] == nearest[:1]
    (by_cloud,) = run("similar", shapes / "box.ply", "--index", "index", "--count", 1, "--quiet")
    assert by_cloud["nearest"] == [["box.ply", pytest.approx(1, abs=1e-5)]]


def test_texts_need_a_space_and_a_model(run, models, shapes):
    run("encode", shapes, "--model", models / "student", "--index", "own", "--quiet")
    text = ("similar", "--text", "a mug", "--index")
    assert "own: is of the student's own space, without text" in run(*text, "own", code=1)
    model = ACTStudentForPreTraining(small_student_config(cloud_dims=[12]))
    model.save_pretrained("unnamed")
    run("encode", shapes, "--model", "unnamed", "--index", "index", "--space", "teacher", "--quiet")
    assert "index: its student names no text model; give --text_model" in run(*text, "index", code=1)
    assert "none: no text model can be read" in run(*text, "index", "--text_model", "none", code=1)
    save_small_text_model("joint", "clip")
    assert "queries must be of shape (n, 12), got (1, 16)" in run(*text, "index", "--text_model", "joint", code=1)
    about = Path("index/index.json")
    about.write_text(about.read_text().replace('"space": "teacher"', '"space": ["text"]'))
    assert "index: its space must be student or teacher, got ['text']" in run(*text, "index", code=1)


def test_classify(run, models, shapes):
    lines = run("classify", shapes, "--model", models / "classifier", "--top_k", 2, "--out", "classes.npz", "--quiet")
    assert [line["name"] for line in lines] == NAMES
    with np.load("classes.npz", allow_pickle=False) as arrays:
        best = arrays["probabilities"].argsort(1)[:, ::-1]
        assert [line["labels"] for line in lines] == [["abcde"[place] for place in row[:2]] for row in best]
        assert arrays["label"].tolist() == [line["labels"][0] for line in lines]
        assert np.allclose(arrays["probabilities"].sum(1), 1, atol=1e-5)
        run("classify", shapes, "--model", models / "classifier", "--out", "classes.json", "--quiet")
        for row, line, values in zip(
            json.loads(Path("classes.json").read_text()), lines, arrays["probabilities"], strict=True
        ):
            assert (row["name"], row["label"]) == (line["name"], line["labels"][0])
            assert row["probabilities"] == pytest.approx(dict(zip("abcde", values.tolist(), strict=True)), abs=1e-6)


def test_segment_colors_every_point(run, models, shapes):
    command = ("segment", shapes, "--model", models / "parts", "--category", "car", "--out", "parts", "--npz")
    lines = run(*command, "--quiet")
    assert [line["points"] for line in lines] == [8192, 8192, 8192, 8192, 300]
    for name, line in zip(NAMES, lines, strict=True):
        assert (
            set(line["parts"]) <= {"LABEL_2", "LABEL_3", "LABEL_4"} and sum(line["parts"].values()) == line["points"]
        )
        cloud = read_cloud(f"parts/{name}.ply")
        with np.load(f"parts/{name}.npz", allow_pickle=False) as arrays:
            assert np.allclose(cloud.points, arrays["points"])
            counts = np.bincount(arrays["labels"])
            assert len(np.unique(cloud.colors, axis=0)) == (counts > 0).sum()


def test_reconstruct(run, models, shapes):
    both = ("--teacher", models / "teacher", "--student", models / "pretraining")
    lines = run("reconstruct", shapes / "box.ply", *both, "--out", "drawn", "--quiet")[0]
    assert (lines["name"], lines["visible"], lines["of"]) == ("box.ply", 4 * 8, 16 * 8)
    parts = {part: read_cloud(f"drawn/box.ply.{part}.ply") for part in ("input", "visible", "reconstruction")}
    sizes = {part: len(cloud.points) for part, cloud in parts.items()}
    assert sizes == {"input": 64, "visible": 32, "reconstruction": 128}
    assert np.abs(parts["input"].points).max(0) == pytest.approx([0.5, 1, 1.5], abs=1e-5)  # where the box was
    distances = np.linalg.norm(parts["visible"].points[:, None] - parts["input"].points[None], axis=2).min(1)
    assert distances.max() < 1e-5
    alone = run("reconstruct", shapes / "box.ply", "--teacher", models / "teacher", "--out", "alone", "--quiet")[0]
    made, given = (
        torch.from_numpy(read_cloud(f"alone/box.ply.{part}.ply").points)[None] for part in ("reconstruction", "input")
    )
    scale = (given - given.mean(1)).norm(dim=-1).max()
    assert alone["chamfer_l1"] == pytest.approx((chamfer_l1(made, given) / scale).item(), rel=1e-4)
    assert "needs its teacher" in run(
        "reconstruct", shapes, "--student", models / "pretraining", "--out", "x", "--quiet", code=1
    )


def test_view(run, shapes):
    assert run("view", shapes, "--out", "page.html", "--quiet") == [{"page": "page.html", "clouds": 5}]
    names = [Path(name).name for name in NAMES[:3]]
    assert f"<title>{', '.join(names)}, ...</title>" in Path("page.html").read_text()
    page = Path("page.html").read_text()
    (shapes / "deep" / "er").mkdir(parents=True)
    shutil.copy(shapes / NAMES[0], shapes / "deep" / "er" / "copy.ply")
    run("view", shapes / "deep", "--out", "deep.html", "--quiet")
    assert "<title>copy.ply</title>" in Path("deep.html").read_text()
    assert all(name in page for name in NAMES) and "http://" not in page and "https://" not in page


def test_info(models, tmp_path, capsys):
    assert main(["info", str(models / "classifier")]) == 0
    lines = json.loads(capsys.readouterr().out)
    model = ACTStudentForPointCloudClassification.from_pretrained(models / "classifier")
    assert lines["class"] == "ACTStudentForPointCloudClassification" and lines["labels"] == list("abcde")
    assert lines["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert lines["processor"]["num_points"] == 64 and lines["num_groups"] == 16
    ACTViewTeacher(small_view_teacher_config()).save_pretrained(tmp_path / "views")
    assert main(["info", str(tmp_path / "views")]) == 0
    assert json.loads(capsys.readouterr().out)["num_views"] == 3


def test_convert_is_the_converter(run, tmp_path, capsys):
    assert main(["convert", str(tmp_path / "none.pth"), str(tmp_path / "out")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_clouds_that_cannot_be_read(run, models, shapes, capsys):
    (shapes / "bad.ply").write_text("nothing")
    command = ("encode", shapes, "--model", models / "student", "--out", "vectors.npz", "--quiet")
    first = f"{shapes}/bad.ply: has no header from ply to end_header"
    assert run(*command, "--strict", code=1) == f"modeling_act encode: {first}"
    assert not list(shapes.parent.glob("*vectors*"))
    (shapes / "empty.xyz").write_text("")
    for name in ("readme.txt", "box.blend", "cup.blend"):
        (shapes / name).write_text("no cloud")
    for flags, code in (((), 1), (("--skip_bad",), 0)):
        assert main([*map(str, command), *flags]) == code
        captured = capsys.readouterr()
        ignored = f"ignored in {shapes}, no clouds: 2 .blend, 1 readme.txt\n"
        listed = f"skipped 2 clouds that cannot be read:\n  {first}\n  {shapes}/empty.xyz: is empty\n"
        assert captured.err == ignored + listed
        assert json.loads(captured.out) == {"clouds": 5, "skipped": 2, "width": 48}
    assert main(["view", str(shapes), "--out", "page.html", "--quiet"]) == 1
    assert listed in capsys.readouterr().err and Path("page.html").is_file()
    for name in ("readme.txt", "box.blend", "cup.blend"):
        (shapes / name).unlink()
    segment = ("segment", shapes, "--model", models / "parts", "--category", "0", "--out", "parts", "--quiet")
    assert "must be what the object is, one of chair, car, got '0'" in run(*segment, code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "SHAPES", "--model", "STUDENT"], "encode needs --out FILE, --index FOLDER or both"),
        (["encode", "SHAPES", "--model", "STUDENT", "--out", "x.csv"], "x.csv: must end in one of .npz, .json"),
        (["encode", "SHAPES", "--model", "STUDENT", "--out", "none/x.npz"], "there is no folder none"),
        (["encode", "EMPTY", "--model", "STUDENT", "--out", "x.npz"], "holds no file of points or of a mesh"),
        (["encode", "nothing.ply", "--model", "STUDENT", "--out", "x.npz"], "nothing.ply: there is no such file"),
        (["encode", "SHAPES", "--model", "EMPTY", "--out", "x.npz"], "no model can be read from there"),
        (["encode", "SHAPES", "--model", "TEACHER", "--out", "x.npz"], "holds ACTTeacher, where ACTStudent is needed"),
        (["encode", "SHAPES", "--model", "STUDENT", "--out", "x.npz", "--up_axis", "z"], "does not know which axis"),
        (["classify", "SHAPES", "--model", "STUDENT"], "holds ACTStudent, where ACTStudentForPointCloudClassif"),
        (["similar", "SHAPES", "--index", "EMPTY"], "is no index; python -m modeling_act encode SHAPES --index"),
        (["similar", "--index", "EMPTY"], "similar needs clouds, or --text in their place"),
        (["similar", "SHAPES", "--text", "a mug", "--index", "EMPTY"], "similar needs clouds, or --text in their"),
        (["similar", "SHAPES", "--text_model", "x", "--index", "EMPTY"], "--text_model goes with --text"),
        (["encode", "SHAPES", "--space", "teacher", "--model", "STUDENT", "--out", "x.npz"], "PreTraining is needed"),
        (["encode", "SHAPES", "--space", "teacher", "--model", "PRETRAINING", "--out", "x.npz"], "without that head"),
        (["reconstruct", "SHAPES", "--out", "x"], "reconstruct needs --teacher, --student or both"),
        (["encode", "SHAPES/box.ply", "SHAPES/box.ply", "--model", "STUDENT", "--out", "x.npz"], "two clouds would"),
    ],
)
def test_what_is_refused_is_one_line(run, models, shapes, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {
        "SHAPES": shapes,
        "STUDENT": models / "student",
        "TEACHER": models / "teacher",
        "PRETRAINING": models / "pretraining",
        "EMPTY": tmp_path / "empty",
    }
    for word, place in places.items():
        arguments = [argument.replace(word, str(place)) for argument in arguments]
    assert message in run(*arguments, "--quiet", code=1)


def test_every_command_has_a_line_of_help():
    listed = run_command("-m", "modeling_act", "--help").stdout
    for name in (*COMMANDS, "convert"):
        assert re.search(rf"\n    {name}\s+\S", listed), name


def test_from_a_shell(run_python, models, shapes, tmp_path):
    command = ("encode", shapes, "--model", models / "student", "--out", tmp_path / "x.npz", "--num_workers", 2)
    process = run_python("-m", "modeling_act", *command)
    assert json.loads(process.stdout) == {"clouds": 5, "skipped": 0, "width": 48}
    assert "5/5" in process.stderr and "Warning" not in process.stderr


def test_names_of_clouds(shapes, tmp_path):
    assert list(list_clouds([str(shapes)])) == NAMES
    assert list(list_clouds([str(shapes / "nested"), str(shapes / "box.ply")])) == ["nested/ball.off", "box.ply"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a/../../../x"])
def test_results_stay_below_their_folder(tmp_path, name):
    with pytest.raises(ValueError, match="would lie outside"):
        path_below(tmp_path / "out", name, ".ply")
    assert path_below(tmp_path / "out", "a/b c", ".ply") == tmp_path / "out/a/b c.ply"


@pytest.mark.parametrize(
    ("name", "values"), [("a.npz", [[1], [1, 2]]), ("a.json", [[1], [1, 2]]), ("a.parquet", [[1], "x"])]
)
def test_a_table_is_complete_or_not_there(tmp_path, name, values):
    (tmp_path / name).write_text("before")
    with pytest.raises(ValueError):
        write_table(tmp_path / name, {"name": ["a", "b"], "value": values})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_tables_of_vectors_are_small(tmp_path):
    vectors = np.random.default_rng(0).random((100, 64), dtype=np.float32)
    for suffix in ("json", "parquet"):
        write_table(tmp_path / f"table.{suffix}", {"name": [str(row) for row in range(100)], "vector": vectors})
    text = (tmp_path / "table.json").read_text()
    assert text.count("\n") == 102 and len(text) < 14 * vectors.size  # a row a line, and the fewest digits
    assert np.array_equal(np.float32([row["vector"] for row in json.loads(text)]), vectors)
    schema = parquet.read_schema(tmp_path / "table.parquet")
    assert str(schema.field("vector").type.value_type) == "float"


def test_parquet_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_act.cli.tables.pyarrow", None)
    check_table(tmp_path / "table.npz")
    with pytest.raises(ValueError, match="writing parquet needs pyarrow: pip install pyarrow"):
        check_table(tmp_path / "table.parquet")


def test_what_cannot_be_written_or_run_is_said_first(run, models, shapes, tmp_path):
    command = ("encode", shapes, "--model", models / "student", "--quiet")
    (tmp_path / "file").touch()
    assert "File exists" in run(*command, "--index", "file", "--out", "x.npz", code=1)
    assert not Path("x.npz").exists()
    for device in ("nothing", "cuda:77"):
        assert f"--device {device}: " in run(*command, "--out", "x.npz", "--device", device, code=1)


def test_similar_takes_the_revision_that_made_the_index(run, models, shapes, monkeypatch):
    wanted = []

    def load(name, *kinds, revision=None):
        wanted.append(revision)
        return load_model(name, *kinds)

    monkeypatch.setattr("modeling_act.cli.commands.load_model", load)
    run("encode", shapes, "--model", models / "student", "--revision", "v1", "--index", "index", "--quiet")
    run("similar", shapes, "--index", "index", "--quiet")
    run("similar", shapes, "--index", "index", "--revision", "v2", "--quiet")
    assert wanted == ["v1", "v1", "v2"]


def test_points_of_a_map_keep_their_places(run, models):
    points = np.random.default_rng(0).normal(size=(100, 3)) + [5e6, 6e5, 100]
    np.save("map.npy", points)
    run("segment", "map.npy", "--model", models / "parts", "--category", "car", "--out", "parts", "--quiet")
    assert np.array_equal(read_cloud("parts/map.npy.ply", dtype=np.float64).points, points)


def test_code_of_others_is_not_offered_to_be_run(tmp_path, run):
    """transformers would ask on stdout and wait."""
    (tmp_path / "other").mkdir()
    config = {"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    (tmp_path / "other" / "code.py").write_text("raise SystemExit")
    assert "contains custom code" in run("info", tmp_path / "other", code=1)


def test_a_reconstruction_leaves_the_modes_of_both(models):
    teacher = ACTTeacher.from_pretrained(models / "teacher").train()
    student = ACTStudentForPreTraining.from_pretrained(models / "pretraining").train()
    points = ACTPointCloudProcessor(64)(np.random.default_rng(0).normal(size=(100, 3)))["points"]
    teacher.reconstruct(points)
    student.reconstruct(points, teacher)
    assert all(module.training for model in (teacher, student) for module in model.modules())
