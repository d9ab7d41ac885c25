"""The layout rules of CONTRIBUTING.md, checked on the source itself.

A rule is a function of a file's path and text that yields (line, message) for each thing it refuses. Every rule runs
over the tree, and over snippets it must refuse or accept.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "modeling_act"
SCRIPTS = ("training", "benchmarks", "model_cards", "app")
KERNELS = "point_kernels"
SOURCES = (PACKAGE, KERNELS, *SCRIPTS, "tests")
LEAVES = ("readers", "hub", "search", "export", "convert", "viewer")
PACKAGES = (PACKAGE, "act_training")
# Who may import whom, from the lowest room up. What stands in no list here (scripts, app, cards) may import all of it.
MAY_IMPORT = {
    KERNELS: (),
    PACKAGE: (KERNELS, f"{PACKAGE}.readers", f"{PACKAGE}.hub"),  # hub: pipelines load their models by it
    f"{PACKAGE}.readers": (PACKAGE,),
    f"{PACKAGE}.hub": (PACKAGE,),
    f"{PACKAGE}.search": (PACKAGE, f"{PACKAGE}.readers"),
    f"{PACKAGE}.export": (PACKAGE,),
    f"{PACKAGE}.convert": (PACKAGE,),
    f"{PACKAGE}.viewer": (PACKAGE,),
    f"{PACKAGE}.cli": (PACKAGE, *(f"{PACKAGE}.{room}" for room in LEAVES)),
}
BELOW_TRAINING = tuple(room for room in MAY_IMPORT if room != KERNELS)
for _room, _below in {
    "data": "", "synthetic": "", "prepare": "data synthetic", "run": "data", "measure": "data run",
    "report": "data run measure", "tasks": "data run measure report",
}.items():  # fmt: skip
    MAY_IMPORT[f"act_training.{_room}"] = (*BELOW_TRAINING, *(f"act_training.{below}" for below in _below.split()))
ROOMS = tuple(MAY_IMPORT)
TRAINING_SCRIPTS = {path.stem for path in (ROOT / "training").glob("*.py")}
# What an installation without extras brings; huggingface_hub comes with transformers.
LIGHT_DEPENDENCIES = {"torch", "transformers", "huggingface_hub", "numpy", "safetensors", "trimesh"}


def imports_of(tree, skip_guarded=False):
    """Every import statement below `tree`, without those inside try/except ImportError if `skip_guarded`."""
    for node in ast.iter_child_nodes(tree):
        handlers = node.handlers if skip_guarded and isinstance(node, ast.Try) else []
        if any(handler.type and "ImportError" in ast.unparse(handler.type) for handler in handlers):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from imports_of(node, skip_guarded)


def absolute_names(node):
    """The dotted names of the modules an import statement takes from outside its own package."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if node.level == 0 else []


def remote_code():
    """Flat files of the package that a saved model takes along: what its classes import, and so on."""
    waiting = ["modeling_act_student", "modeling_act_teacher", "modeling_act_view_teacher"]
    waiting += ["modeling_act_detection", "pipelines_act"]
    needed = set()
    while waiting:
        name = waiting.pop()
        needed.add(name)
        for node in imports_of(ast.parse((ROOT / PACKAGE / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module not in needed:
                waiting.append(node.module)
    return needed


REMOTE_CODE = remote_code()


# The rules -----------------------------------------------------------------------------------------------------------


def saved_model_needs_only_flat_files(path, text):
    # transformers copies a saved model's code file by file, along its imports `from .file import name`.
    if len(path.parts) == 2 and path.suffix == ".py" and path.stem not in {*REMOTE_CODE, "__init__", "__main__"}:
        yield 1, f"no saved model needs {path}: put it into a room of {PACKAGE}/"


def remote_code_imports_name_their_file(path, text):
    if len(path.parts) != 2 or path.stem not in REMOTE_CODE:
        return
    guarded = set(imports_of(ast.parse(text))) and {ast.unparse(node) for node in imports_of(ast.parse(text), True)}
    for node in imports_of(ast.parse(text)):
        own = any(name.split(".")[0] == PACKAGE for name in absolute_names(node))
        if own and ast.unparse(node) in guarded:
            yield node.lineno, f"a room is imported inside try/except ImportError, got `{ast.unparse(node)}`"
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            flat = node.level == 1 and node.module and (ROOT / PACKAGE / f"{node.module}.py").is_file()
            if not flat or node.names[0].name == "*":
                yield node.lineno, f"import as `from .file import name`, got `{ast.unparse(node)}`"


def text_never_looks_like_an_import(path, text):
    # transformers finds the files to copy by this regular expression, in docstrings and comments too.
    real = {node.lineno for node in imports_of(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"\s*(from\s+\.\S+\s+import|import\s+\.\S+\s*$)", line) and number not in real:
            yield number, "begins like a relative import, which transformers would follow; reword the line"


def dependencies_are_light(path, text):
    for node in imports_of(ast.parse(text), skip_guarded=True):
        for name in absolute_names(node):
            if name.split(".")[0] not in LIGHT_DEPENDENCIES | {PACKAGE} | sys.stdlib_module_names:
                yield node.lineno, f"`{name}` is optional: import it inside try/except ImportError, in functions too"


def point_ops_stand_alone(path, text):
    for node in imports_of(ast.parse(text)):
        if path.name == "point_ops.py" and isinstance(node, ast.ImportFrom) and node.level > 0:
            yield node.lineno, f"point_ops.py imports nothing from the package, got `{ast.unparse(node)}`"


def room_of(module):
    """The room of a module by its dotted name: `act_training.run`; of flat files the package."""
    parts = module.replace(f"{PACKAGE}.__main__", f"{PACKAGE}.cli").split(".")
    if parts[0] in (PACKAGE, "act_training") and len(parts) > 1 and ".".join(parts[:2]) in MAY_IMPORT:
        return ".".join(parts[:2])
    return parts[0]


def imported_modules(path, node):
    """Dotted names of the modules a statement imports; relative names resolved."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    package = [part for part in path.parts[:-1] if part != "training"]
    base = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*base, *filter(None, [node.module])])
    return [f"{module}.{alias.name}" for alias in node.names] if module in PACKAGES else [module]


def imports_point_downwards(path, text):
    module = ".".join(part for part in path.with_suffix("").parts if part != "training")
    own = room_of(module)
    for node in imports_of(ast.parse(text)):
        for name in imported_modules(path, node):
            room = room_of(name)
            if (
                room in {"tests", "conftest", "benchmarks"}
                or (room == "training" and own in ROOMS)
                or room.startswith("test_")
            ):
                yield node.lineno, f"nothing imports {room}, got `{ast.unparse(node)}`"
            elif room in ROOMS and room != own and room not in MAY_IMPORT.get(own, ROOMS):
                yield node.lineno, f"{own} does not import {room}, got `{ast.unparse(node)}`"
            elif own not in ROOMS and room in TRAINING_SCRIPTS:
                yield node.lineno, f"scripts do not import each other, got `{ast.unparse(node)}`"


def files_are_short(path, text):
    limit = 700 if path.name.startswith("modeling_") else 400
    lines = len(text.splitlines())
    if lines > limit:
        yield lines, f"{lines} lines, the limit is {limit}: split the file by meaning"


def functions_are_short(path, text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 150 if node.name == "main" and path.parts[0] in SCRIPTS else 60
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:  # a docstring counts nothing
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            if lines > limit:
                yield node.lineno, f"`{node.name}` has {lines} lines without its docstring, the limit is {limit}"


def package_never_prints(path, text):
    for node in ast.walk(ast.parse(text)):
        printing = isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        if printing and path.parent.name not in ("cli", "convert"):
            yield node.lineno, "no print() in the package: raise, warn, or use a transformers logger"


def text_is_ascii(path, text):
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.isascii():
            yield number, f"not ASCII: {[character for character in line if not character.isascii()]}"


def javascript_parses(path, text):
    if not (node := shutil.which("node")):
        pytest.skip("needs node, which parses JavaScript")
    is_module = re.search(r"^(import|export)\b", text, flags=re.MULTILINE)
    command = [node, *(["--input-type=module"] if is_module else []), "--check", "-"]
    process = subprocess.run(command, input=text, capture_output=True, text=True)
    if process.returncode:
        place, *lines = process.stderr.splitlines()  # "[stdin]:2"
        yield int(place.rpartition(":")[2]), next(line for line in lines if "Error: " in line)


def no_machine_paths(path, text):
    for number, line in enumerate(text.splitlines(), start=1):
        for match in re.finditer(r"(?<![\w./~$}<>-])/(?:work|tmp|root|home|Users)\b[\w./-]*", line):
            yield number, f"`{match[0]}` is a path of one machine"


# rule: (folders it runs over, suffix of the files, "" for all)
RULES = {
    saved_model_needs_only_flat_files: ((PACKAGE,), ".py"),
    remote_code_imports_name_their_file: ((PACKAGE,), ".py"),
    text_never_looks_like_an_import: ((PACKAGE,), ".py"),
    dependencies_are_light: ((PACKAGE,), ".py"),
    point_ops_stand_alone: ((PACKAGE,), ".py"),
    imports_point_downwards: ((PACKAGE, KERNELS, *SCRIPTS), ".py"),
    files_are_short: (SOURCES, ".py"),
    functions_are_short: (SOURCES, ".py"),
    package_never_prints: ((PACKAGE,), ".py"),
    text_is_ascii: (SOURCES, ".py"),
    javascript_parses: ((), ".js"),
    no_machine_paths: ((), ""),
}


# The tree ------------------------------------------------------------------------------------------------------------


def project_files(folders, suffix):
    """Paths, relative to the root, of the tracked and not yet ignored files; all folders if none is named."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of the project's files")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in sorted(map(PurePosixPath, filter(None, listing.split("\0")))):
        if (not folders or path.parts[0] in folders) and path.name.endswith(suffix) and (ROOT / path).is_file():
            yield path


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_tree_keeps(rule):
    refused = []
    for path in project_files(*RULES[rule]):
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            text = ""  # a binary file has a place in the tree, and no lines
        refused += [f"{path}:{line}: {message}" for line, message in rule(path, text)]
    assert not refused, "\n" + "\n".join(refused)


# The rules themselves ------------------------------------------------------------------------------------------------

MODELING = f"{PACKAGE}/modeling_act_student.py"
LONG_FUNCTION = "def {}():\n" + "    x = 1\n" * 100
DOCUMENTED_FUNCTION = 'def f():\n    """\n' + "    words\n" * 100 + '    """\n    return 1\n'
HOME = "/" + "home/someone/data"

# rule, path, text, the line refused (None: accepted)
CASES = [
    (saved_model_needs_only_flat_files, f"{PACKAGE}/publishing.py", "", 1),
    (saved_model_needs_only_flat_files, f"{PACKAGE}/hub/publishing.py", "", None),
    (saved_model_needs_only_flat_files, f"{PACKAGE}/point_ops.py", "", None),
    (remote_code_imports_name_their_file, MODELING, "\nfrom . import point_ops", 2),
    (remote_code_imports_name_their_file, MODELING, "from ..point_ops import knn", 1),
    (remote_code_imports_name_their_file, MODELING, "from .readers.cloud import read_cloud", 1),
    (remote_code_imports_name_their_file, MODELING, "from .point_ops import *", 1),
    (remote_code_imports_name_their_file, MODELING, f"from {PACKAGE}.point_ops import knn", 1),
    (remote_code_imports_name_their_file, MODELING, "import torch\nfrom .point_ops import knn", None),
    (
        remote_code_imports_name_their_file,
        MODELING,
        f"try:\n    from {PACKAGE}.readers.cloud import a\nexcept ImportError:\n    pass",
        None,
    ),
    (remote_code_imports_name_their_file, f"{PACKAGE}/cli/main.py", "from ..point_ops import knn", None),
    (text_never_looks_like_an_import, MODELING, '"""Use it as\n\n    from .point_ops import knn\n"""', 3),
    (text_never_looks_like_an_import, MODELING, '"""\nimport .point_ops\n"""', 2),
    (text_never_looks_like_an_import, MODELING, "from .point_ops import (\n    knn,\n)", None),
    (dependencies_are_light, MODELING, "import torch\nimport timm", 2),
    (dependencies_are_light, MODELING, "def f():\n    from timm.models import create_model", 2),
    (dependencies_are_light, MODELING, "try:\n    import timm\nexcept ValueError:\n    timm = None", 2),
    (dependencies_are_light, MODELING, "try:\n    import timm\nexcept (ImportError, RuntimeError):\n    pass", None),
    (dependencies_are_light, MODELING, "import math\nimport torch.nn as nn\nfrom .point_ops import knn", None),
    (point_ops_stand_alone, f"{PACKAGE}/point_ops.py", "def f():\n    from .act_layers import Block", 2),
    (point_ops_stand_alone, f"{PACKAGE}/point_ops.py", "from torch import Tensor", None),
    (imports_point_downwards, "training/distill.py", "from tests.test_layout import RULES", 1),
    (imports_point_downwards, "model_cards/publish.py", "import conftest", 1),
    (imports_point_downwards, "training/distill.py", "import benchmarks.speed", 1),
    (imports_point_downwards, MODELING, "from training.data import load", 1),
    (imports_point_downwards, f"{KERNELS}/src/{KERNELS}/ops.py", f"from {PACKAGE} import point_ops", 1),
    (imports_point_downwards, f"{PACKAGE}/readers/cloud.py", "from ..cli.main import main", 1),
    (imports_point_downwards, f"{PACKAGE}/cli/main.py", "from ..readers.cloud import read_cloud", None),
    (imports_point_downwards, "training/act_training/data/batches.py", "from act_training.run import process", 1),
    (imports_point_downwards, "training/act_training/data/batches.py", "from act_training.run.script import warn", 1),
    (
        imports_point_downwards,
        "training/act_training/run/run_data.py",
        "from act_training.data.schema import IGNORED",
        None,
    ),
    (imports_point_downwards, "training/distill.py", "from evaluate import measure", 1),
    (imports_point_downwards, "training/distill.py", f"from {PACKAGE} import ACTStudentModel", None),
    (files_are_short, MODELING, "x = 1\n" * 701, 701),
    (files_are_short, MODELING, "x = 1\n" * 700, None),
    (files_are_short, f"{PACKAGE}/point_ops.py", "x = 1\n" * 401, 401),
    (functions_are_short, MODELING, "class A:\n    def f(self):\n" + "        x = 1\n" * 60, 2),
    (functions_are_short, MODELING, LONG_FUNCTION.format("main"), 1),
    (functions_are_short, "training/distill.py", LONG_FUNCTION.format("main"), None),
    (functions_are_short, MODELING, DOCUMENTED_FUNCTION, None),
    (package_never_prints, MODELING, "def f(x):\n    print(x)", 2),
    (package_never_prints, f"{PACKAGE}/convert/official_checkpoint.py", "print(1)", None),
    (text_is_ascii, MODELING, "x = 1\n# 2 \N{MULTIPLICATION SIGN} 2", 2),
    (text_is_ascii, MODELING, "x = 1", None),
    (javascript_parses, "a.js", "const a = 1;\na = (;\n", 2),
    (javascript_parses, "a.js", '"use strict";\nvar public = 1;\n', 2),
    (javascript_parses, "a.js", "const a = 1;\n", None),
    (javascript_parses, "a.js", 'import { a } from "./b.js";\nexport const c = await a;\n', None),
    (javascript_parses, "a.js", "export const a = 1;\na = (;\n", 2),
    (no_machine_paths, "README.md", f"Data lies\nin `{HOME}`.", 2),
    (no_machine_paths, "Makefile", "\tcp x " + "/" + "tmp", 1),
    (no_machine_paths, "README.md", "https://example.org/home/x, ~/work, a/tmp/b, <home>/work, /path/to/python", None),
]


@pytest.mark.parametrize(("rule", "path", "text", "line"), CASES)
def test_rule_refuses_and_accepts(rule, path, text, line):
    assert [number for number, _ in rule(PurePosixPath(path), text)] == ([] if line is None else [line])


def test_every_rule_has_a_case_it_refuses():
    assert {rule for rule, _, _, line in CASES if line is not None} == set(RULES)
