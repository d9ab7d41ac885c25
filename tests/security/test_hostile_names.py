"""Malicious names of clouds: on the command line, in an index, in a page; and a processor that names code."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch

from hostile_cases import write_folder
from modeling_act import (
    ACTPointCloudProcessor,
    ACTStudent,
    ACTStudentForPartSegmentation,
    ACTStudentForPreTraining,
    ACTTeacher,
)
from modeling_act.__main__ import main
from modeling_act.cli.tables import list_clouds, path_below
from modeling_act.errors import InputError
from modeling_act.search.shape_index import ShapeIndex
from small_models import small_student_config, small_teacher_config

NAMES = [
    "-rf.xyz",
    "--out=elsewhere.xyz",
    "a\nb\x1b[2J.xyz",
    "...xyz",
    "..\\..\\up.xyz",
    "~.xyz",
    "$HOME;rm.xyz",
    "{{data}}</script><img src=x onerror=alert(1)>.xyz".replace("/", "\u2044"),
    "\u202ezyx.exe.xyz",
    "\udcff.xyz",
    "CON.xyz",
    "n" * 200 + ".xyz",
    ".hidden/.xyz.xyz",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    made = {"student": ACTStudent, "parts": ACTStudentForPartSegmentation, "pretraining": ACTStudentForPreTraining}
    for name, kind in made.items():
        kind(small_student_config()).save_pretrained(folder / name)
        ACTPointCloudProcessor(64).save_pretrained(folder / name)
    ACTTeacher(small_teacher_config()).save_pretrained(folder / "teacher")
    ACTPointCloudProcessor(64).save_pretrained(folder / "teacher")
    return folder


@pytest.fixture
def clouds(tmp_path):
    """A folder of clouds with such names, in a working folder that holds nothing else."""
    for name in NAMES:
        path = tmp_path / "work" / "clouds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, np.random.default_rng(0).normal(size=(80, 3)))
    return tmp_path / "work" / "clouds"


def everything(folder):
    return sorted(os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)


def test_results_lie_below_their_folder_whatever_a_cloud_is_called(models, clouds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(clouds.parent)
    before = everything(tmp_path)
    for command in (
        ["segment", "clouds", "--model", models / "parts", "--out", "out", "--npz", "--category", "0"],
        [
            "reconstruct",
            "clouds",
            "--teacher",
            models / "teacher",
            "--student",
            models / "pretraining",
            "--out",
            "out",
        ],
    ):
        code = main([*map(str, command), "--quiet"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        assert len(captured.out.splitlines()) == len(NAMES) and captured.out.isascii()
    new = [path for path in everything(tmp_path) if path not in before]
    assert len(new) == 5 * len(NAMES)
    assert all(path.startswith(str(clouds.parent / "out") + os.sep) for path in new), new


def test_names_come_back_from_tables_and_indices_as_text(models, clouds, monkeypatch, capsys):
    monkeypatch.chdir(clouds.parent)
    student = str(models / "student")
    assert main(["encode", "clouds", "--model", student, "--out", "t.json", "--index", "index", "--quiet"]) == 0
    names = [row["name"] for row in json.loads((clouds.parent / "t.json").read_text())]
    assert set(names) == {name.replace("\udcff", "\N{REPLACEMENT CHARACTER}") for name in NAMES}
    capsys.readouterr()
    assert main(["similar", "clouds", "--index", "index", "--count", "2", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == len(NAMES) and captured.out.isascii()
    assert ShapeIndex.load(clouds.parent / "index").names == names


def test_a_page_shows_names_as_text(clouds, monkeypatch):
    monkeypatch.chdir(clouds.parent)
    assert main(["view", "clouds", "--out", "page.html", "--quiet"]) == 0
    page = (clouds.parent / "page.html").read_text(encoding="utf-8")
    assert "<img" not in page and page.count("</script>") == 2
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["clouds"]
    assert {cloud["name"] for cloud in shown} == set(list_clouds(["clouds"]))


def test_errors_show_no_control_characters(models, clouds, monkeypatch, capsys):
    monkeypatch.chdir(clouds.parent)
    (clouds / NAMES[2]).write_bytes(b"junk")
    (clouds / "note.\x1b[2J").write_bytes(b"of a suffix that is ignored")
    command = ["encode", "clouds", "--model", str(models / "student"), "--out", "t.npz", "--quiet"]
    for flags, num_lines in ((["--strict"], 2), ([], 3)):
        assert main(command + flags) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == num_lines and all(line.isprintable() for line in error.splitlines())
        assert r"a\nb\x1b[2J.xyz" in error and r"1 .\x1b[2J" in error
        assert (clouds.parent / "t.npz").exists() == (not flags)


def test_links_in_a_folder_of_results_are_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "precious")
    (tmp_path / "out" / "b.ply").symlink_to(tmp_path / "precious.ply")
    for name in ("a/x", "b"):
        with pytest.raises(InputError, match="would lie outside"):
            path_below(tmp_path / "out", name, ".ply")


def test_a_processor_runs_no_code_of_its_folder(tmp_path):
    ACTPointCloudProcessor(64).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "preprocessor_config.json"
    content = json.loads(file.read_text()) | {"auto_map": {"AutoFeatureExtractor": "evil.Evil"}}
    evil = f"open({str(tmp_path / 'marker')!r}, 'w')\nclass Evil:\n    pass\n".encode()
    shutil.rmtree(tmp_path / "model")
    folder = write_folder(
        tmp_path / "model", {"preprocessor_config.json": json.dumps(content).encode(), "evil.py": evil}
    )
    assert ACTPointCloudProcessor.from_pretrained(folder).num_points == 64
    assert not (tmp_path / "marker").exists()
