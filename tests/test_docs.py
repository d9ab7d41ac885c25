"""Instructions of the documentation work: blocks run, commands, flags, recipes and links exist."""

import contextlib
import functools
import importlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest

from pages import Block, read_blocks, run_page, without_blocks

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS, ROOT / "app" / "README.md"]
SLOW = {"transfer.md", "training.md", "export.md"}  # they train, and trace models
LANGUAGES = {"bash", "python", "json", "yaml", "text", "bibtex"}
RECIPES = sorted(path.name for path in (ROOT / "training" / "recipes").glob("*.yaml"))
FOLDERS = ("app", "benchmarks", "docs", "model_cards", "modeling_act", "point_kernels", "tests", "training")
WRITTEN = {"recipe.yaml", "metadata.yaml"}  # by runs, not by us
LAUNCHERS = {  # what stands before a script, and who knows its flags
    "accelerate": ("accelerate.commands.launch", "launch_command_parser"),
    "torchrun": ("torch.distributed.run", "get_args_parser"),
}
of_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in SLOW)) for page in DOCS]
)
def test_blocks_run(page, small_shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path)


# Commands ------------------------------------------------------------------------------------------------------------


@functools.cache
def flags_of(script: str) -> frozenset[str]:
    """The flags in a script's own --help."""
    before = list(sys.path)
    sys.path.insert(0, str((ROOT / script).parent))
    try:
        return flags_in_help(lambda: runpy.run_path(str(ROOT / script), run_name="__main__"), script)
    finally:
        sys.path[:] = before


@functools.cache
def flags_of_command(name: str) -> frozenset[str]:
    """Those of `python -m modeling_act NAME`."""
    main = importlib.import_module("modeling_act.__main__").main
    return flags_in_help(lambda: main(sys.argv[1:]), "modeling_act", name)


def flags_in_help(run: Callable[[], object], *words: str) -> frozenset[str]:
    told, before = io.StringIO(), sys.argv
    sys.argv = [*words, "--help"]
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), pytest.raises(SystemExit) as ended:
            run()
    finally:
        sys.argv = before
    assert not ended.value.code, f"{' '.join(words)}: {told.getvalue()}"
    return frozenset(re.findall(r"(?<![\w-])--[\w-]+", told.getvalue()))


@functools.cache
def flags_of_launcher(name: str) -> frozenset[str]:
    module, function = LAUNCHERS[name]
    return frozenset(getattr(importlib.import_module(module), function)()._option_string_actions)


def commands_in(text: str) -> list[list[str]]:
    """The words of each command, without placeholders such as [--flag]."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    commands = [[]]
    for word in (word for line in words for word in [*line, "\n"]):
        if word in ("\n", "&&", "|", ";", "do", "done"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def check_command(command: list[str]) -> None:
    for word in command:
        if word.split("/")[0] in FOLDERS and "/" in word:
            assert (ROOT / word).exists(), f"there is no {word}"
    if command[1:3] == ["-m", "modeling_act"] and len(command) > 3:
        known = flags_of_command(command[3])
        check_flags(" ".join(command[:4]), command[4:], lambda: known)
    elif scripts := [word for word in command if fnmatch(word, "*/*.py")]:
        place = command.index(scripts[0])
        for launcher in LAUNCHERS.keys() & set(command[:place]):
            check_flags(launcher, command[:place], lambda launcher=launcher: flags_of_launcher(launcher))
        check_flags(scripts[0], command[place:], lambda: flags_of(scripts[0]))
    if command[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert command[1] in targets, f"make knows {', '.join(targets)}, not {command[1]}"


def check_flags(program: str, words: list[str], known: Callable[[], frozenset[str]]) -> None:
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    unknown = flags - known() if flags else ()  # a script that takes none is not asked, it would begin its work
    assert not unknown, f"{program} has no {', '.join(sorted(unknown))}"


@of_page
def test_blocks_say_what_they_are_and_name_what_there_is(page):
    for block in read_blocks(page):
        assert block.language in LANGUAGES, f"{block}: a block of {block.language!r}, not of {', '.join(LANGUAGES)}"
        if block.language == "bash":
            syntax = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True, check=False)
            assert not syntax.returncode, f"{block}: {syntax.stderr}"
            for command in commands_in(block.text):
                with located(block):
                    check_command(command)
        elif block.language == "python":
            compile(block.text, str(block), "exec")


@contextlib.contextmanager
def located(block: Block):
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{block}: {error}") from error


def test_a_command_that_is_wrong_is_found():
    """The checks themselves."""
    for wrong in (
        "python training/no_such_script.py --output_dir x",
        "python training/finetune.py --no_such_flag x",
        "python training/finetune.py --config training/recipes/none.yaml",
        "python training/finetune.py --output_dir x && python -m modeling_act encode x --no_such_flag",
        "python -m modeling_act no_such_command x",
        "torchrun --no_such_flag 2 training/finetune.py",
        "make no_such_target",
    ):
        with pytest.raises(AssertionError):
            for command in commands_in(wrong):
                check_command(command)
    for command in commands_in("A=1 torchrun --nproc_per_node 2 \\\n  training/finetune.py --config=x ... # --none"):
        check_command(command)


# Prose ---------------------------------------------------------------------------------------------------------------


@functools.cache
def flags_of_all() -> frozenset[str]:
    """Flags that a page may name alone."""
    scripts = [f"training/{path.name}" for path in sorted((ROOT / "training").glob("*.py"))]
    scripts += ["app/app.py", "model_cards/publish.py"]
    names = (*importlib.import_module("modeling_act.cli.commands").COMMANDS, "convert")
    known = [*map(flags_of, scripts), *map(flags_of_command, names), *map(flags_of_launcher, LAUNCHERS)]
    return frozenset().union(*known)


@of_page
def test_prose_names_what_there_is(page):
    for words in re.findall(r"`([^`\n]+)`", without_blocks(page)):
        if words.startswith(("python ", "make ", "torchrun ", "accelerate ")):
            for command in commands_in(words):
                check_command(command)
        elif words.startswith("--"):
            check_flags("nothing here", words.split(), flags_of_all)
        elif words.endswith(".yaml") and "/" not in words and words not in WRITTEN:
            assert any(fnmatch(recipe, words) for recipe in RECIPES), f"there is no recipe {words}"
        elif re.fullmatch(r"[\w./-]+", words) and words.split("/")[0] in FOLDERS and "/" in words:
            assert (ROOT / words).exists(), f"there is no {words}"


def test_every_recipe_and_every_page_is_named():
    named = re.findall(r"`([\w*]+\.yaml)`", "".join(page.read_text(encoding="utf-8") for page in DOCS))
    missing = [recipe for recipe in RECIPES if not any(fnmatch(recipe, name) for name in named)]
    assert not missing, f"no page of docs/ names {', '.join(missing)}"
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in DOCS if page.name != "README.md" and f"({page.name})" not in index]
    assert not missing, f"docs/README.md does not name {', '.join(missing)}"


# Links ---------------------------------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """Anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def markdown() -> list[Path]:
    skipped = {".venv", ".git", "node_modules"}
    found = (path for path in ROOT.rglob("*.md") if not skipped & set(path.relative_to(ROOT).parts))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(ROOT).parts))


@pytest.mark.parametrize("page", markdown(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if re.match(r"\w+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = page if not place else page.parent / place
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        if anchor:
            assert anchor in anchors_of(target), f"{page.name}: {link} has no such heading"
