"""Pages of the documentation: their fenced blocks, and how tests run them.

A block of bash or Python runs unless the line before it says what it needs; a comment may add flags to its last line:

    <!-- needs: a prepared ShapeNet55 -->
    <!-- test adds: --max_train_steps 4 -->
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from forked import run_command

ROOT = Path(__file__).resolve().parents[1]
MARK = r"(?:<!-- (needs|test adds): ([^\n]+) -->\n)?"
FENCE = re.compile(rf"^{MARK}```([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
# Blocks run in a folder of their page, which has links to these parts of the project.
LINKED = ("app", "benchmarks", "point_kernels", "pretrained", "setup.cfg", "training")


@dataclass
class Block:
    page: Path
    line: int
    language: str
    text: str
    needs: str | None = None
    adds: str = ""

    @property
    def runs(self) -> bool:
        return self.needs is None and self.language in ("bash", "python")

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    text, blocks = page.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(text):
        mark, value, language, content = match.groups()
        block = Block(page, text[: match.start(3)].count("\n") + 1, language.strip(), content)
        if mark == "needs":
            block.needs = value
        elif mark:
            block.adds = value
        blocks.append(block)
    return blocks


def without_blocks(page: Path) -> str:
    """Text of a page without its blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def run_page(page: Path, folder: Path) -> int:
    """Run the blocks of a page in this folder, in order; each Python block is a program of its own.

    Returns the number of checked shapes, which comments name: `vectors  # (2, 768): ...`.
    """
    for name in LINKED:
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    blocks = [block for block in read_blocks(page) if block.runs]
    return sum(run_python_block(block) if block.language == "python" else run_bash_block(block) for block in blocks)


def run_python_block(block: Block) -> int:
    torch.manual_seed(0)
    namespace = {"__name__": "__main__"}
    # Blank lines before it, so that an error names the line of the page.
    exec(compile("\n" * block.line + block.text, str(block.page), "exec"), namespace)  # noqa: S102
    shapes = re.findall(r"^([\w.(), ]+?) +# (\([\d, +]*\)):", block.text, flags=re.MULTILINE)
    for expression, shape in shapes:
        assert tuple(eval(expression, namespace).shape) == eval(shape), f"{block}: {expression}"
    for name, value in namespace.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert value.isfinite().all(), f"{block}: {name}"
    return len(shapes)


def run_bash_block(block: Block) -> int:
    """Run its commands, which must be those of this project."""
    for command in f"{block.text.rstrip()} {block.adds}".replace("\\\n", "").splitlines():
        program, *words = shlex.split(command, comments=True)
        assert program in ("python", "act"), f"{block}: {command}"
        words = words if program == "python" else ["-m", "modeling_act", *words]
        run_command(*words, folder=Path.cwd(), timeout=900)
    return 0
