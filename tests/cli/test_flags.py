"""Flags of the command line, and the console command that an installation brings."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from modeling_act.__main__ import main
from modeling_act.cli import main as command_line


def test_the_installed_command_is_the_same():
    (entry,) = entry_points(group="console_scripts", name="act")
    assert entry.load() is command_line.run_command
    program = Path(sys.executable).with_name("act")
    printed = subprocess.run([program, "encode", "--help"], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("usage: act encode")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["encode", "x", "--batch-siz", "3"],
            "encode: error: unrecognized arguments: --batch-siz; did you mean --batch_size?",
        ),
        (["classify", "--mode=x"], "classify: error: unrecognized arguments: --mode; did you mean --model?"),
        (["classify", "x"], "classify: error: the following arguments are required: --model"),
        (["encode", "x", "--seed", "a"], "encode: error: argument --seed: invalid int value: 'a'"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_the_nearest(capsys, arguments, line):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    program = "python -m modeling_act"
    assert capsys.readouterr().err == f"{program} {line}; see {program} {arguments[0]} --help\n"


def test_convert_knows_its_program_and_its_flags(capsys):
    assert main(["convert", "a.pth", "out", "--group-siz", "3"]) == 1
    assert capsys.readouterr().err == "error: unrecognized arguments: --group-siz; did you mean --group_size?\n"
    program = Path(sys.executable).with_name("act")
    printed = subprocess.run([program, "convert", "--help"], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("usage: act convert")
