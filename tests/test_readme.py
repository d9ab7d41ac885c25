"""Every Python snippet of the README runs as it stands, and its shape comments are true."""

import re

import pytest
import torch

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.split("import ")[-1].split("\n")[0][:40])
def test_snippet_runs(snippet):
    namespace = {}
    exec(compile(snippet, "README.md", "exec"), namespace)  # noqa: S102
    for expression, comment in re.findall(r"^([\w.]+) +# (\([^)]*\)):", snippet, flags=re.MULTILINE):
        assert tuple(eval(expression, namespace).shape) == eval(comment), expression
    for value in namespace.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert value.isfinite().all()


def test_there_are_snippets_and_shapes_to_check():
    assert len(SNIPPETS) == 3
    assert len(re.findall(r"^[\w.]+ +# \([^)]*\):", README, flags=re.MULTILINE)) == 3
