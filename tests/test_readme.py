"""The README runs as it stands, block after block, and the shapes in its comments are true."""

from pathlib import Path

from pages import read_blocks, run_page

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def test_blocks_run(small_shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_page(README, tmp_path) == 6  # shapes in comments


def test_no_python_block_is_left_out():
    assert [block.runs for block in read_blocks(README) if block.language == "python"] == [True] * 5
