"""Flags and recipes of scripts, what overrides what and what is refused in one line; what a script sets up."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import yaml
from act_training.run.script import ACTTrainingArguments, as_recipe, parse_arguments, parse_mapping

from forked import run_command
from modeling_act.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
NEEDED = ["--dataset_name", "shapes", "--output_dir", "out"]
RECIPES = sorted((ROOT / "training" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="session")
def kinds():
    """The arguments of each training script."""
    names = {
        "autoencode": "AutoencodeArguments", "distill": "DistillArguments", "finetune": "ClassificationArguments",
        "few_shot": "FewShotArguments", "segment": "SegmentArguments", "detect": "DetectArguments",
    }  # fmt: skip
    return {script: getattr(importlib.import_module(script), name) for script, name in names.items()}


@pytest.fixture
def parse(tmp_path):
    def parse_recipe(recipe="{}", *flags):
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe)
        return parse_arguments(ACTTrainingArguments, "", ["--config", str(path), *NEEDED, *flags])

    return parse_recipe


def test_flags_override_a_recipe_that_overrides_defaults(parse):
    options = parse("learning_rate: 1e-3\nseed: 5\nnum_train_epochs: 7", "--seed", "6")
    assert (options.learning_rate, options.seed, options.num_train_epochs) == (1e-3, 6, 7)
    assert options.weight_decay == 5e-4 and options.warmup_epochs == 10
    assert parse("seed: 5", "--seed=3").seed == 3


@pytest.mark.parametrize(
    "line, name, value",
    [
        ("learning_rate: 1e-3", "learning_rate", 0.001),
        ("learning_rate: .5E-2", "learning_rate", 0.005),
        ("mixed_precision: 'no'", "mixed_precision", "no"),
        ("mixed_precision: bf16", "mixed_precision", "bf16"),
        ("normalize: false", "normalize", False),
        ("normalize: no", "normalize", False),
        ("skip_bad: true", "skip_bad", True),
        ("skip_bad: 1", "skip_bad", True),
        ("augmentation: [scale_shift, rotate_y]", "augmentation", ["scale_shift", "rotate_y"]),
        ("augmentation: rotate_y", "augmentation", ["rotate_y"]),
        ("augmentation: []", "augmentation", []),
        ("max_grad_norm: null", "max_grad_norm", None),
        ("max_grad_norm: 10", "max_grad_norm", 10.0),
        ("train_split: train+test", "train_split", "train+test"),
        ("hub_model_id: '-1'", "hub_model_id", "-1"),
        ("checkpointing_steps: 50", "checkpointing_steps", "50"),
    ],
)
def test_values_of_a_recipe(parse, line, name, value):
    found = getattr(parse(line), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "flags, name, value",
    [
        (["--skip_bad"], "skip_bad", True),
        (["--normalize", "false"], "normalize", False),
        (["--no_normalize"], "normalize", False),
        (["--augmentation"], "augmentation", []),
        (["--augmentation", "rotate_y", "--seed", "2"], "augmentation", ["rotate_y"]),
        (["--learning_rate", "1e-4"], "learning_rate", 1e-4),
    ],
)
def test_values_of_flags_override(parse, flags, name, value):
    assert getattr(parse("augmentation: [scale_shift]", *flags), name) == value


def test_a_mapping_may_be_nested_and_holds_what_was_written(parse):
    recipe = "model: {hidden_size: 16, norm_eps: 1.0e-6, small: 0.00001, dims: [8, 16], heads: {a: 1, b: true}}"
    expected = {"hidden_size": 16, "norm_eps": 1e-6, "small": 1e-5, "dims": [8, 16], "heads": {"a": 1, "b": True}}
    for options in (parse(recipe), parse("{}", "--model", recipe.removeprefix("model: "))):
        assert parse_mapping("--model", options.model, set(expected)) == expected
    assert parse_mapping("--model", None, set()) == {}


@pytest.mark.parametrize(
    "recipe, flags, message",
    [
        ("learning_rat: 1", [], r"unrecognized arguments: --learning_rat; did you mean --learning_rate\?"),
        ("- 1", [], "expected lines of `flag: value`"),
        ("a: [", [], "not YAML"),
        ("num_points: many", [], "--num_points.*: invalid int value: 'many'"),
        ("num_points: 1.5", [], "--num_points.*: invalid int value: '1.5'"),
        ("normalize: maybe", [], "--normalize: .*maybe"),
        ("{}", ["--learning_rat", "1"], r"unrecognized arguments: --learning_rat; did you mean --learning_rate\?"),
        ("{}", ["--learning-rat", "1"], r"unrecognized arguments: --learning-rat; did you mean --learning_rate\?"),
        ("{}", ["--lerning_rate=1"], r"unrecognized arguments: --lerning_rate; did you mean --learning_rate\?"),
        ("{}", ["-learning_rate", "1"], r"unrecognized arguments: -learning_rate; did you mean --learning_rate\?"),
        ("{}", ["--learning"], r"unrecognized arguments: --learning; did you mean --learning_rate\?"),
        ("{}", ["--xyzzy"], "unrecognized arguments: --xyzzy$"),
        ("{}", ["--seed", "0", "stray"], "unrecognized arguments: stray"),
        ("{}", ["--learning_rate", "-1"], "--learning_rate must be positive, got -1.0"),
        ("{}", ["--learning_rate", "nan"], "--learning_rate must be positive, got nan"),
        ("{}", ["--max_train_steps", "0"], "--max_train_steps must be positive, got 0"),
        ("{}", ["--seed", "-1"], "--seed must not be negative"),
        ("mixed_precision: fp8", [], "--mixed_precision.*: invalid choice: 'fp8'"),
        ("final_weights: first", [], "--final_weights.*: invalid choice: 'first'"),
        ("final_weights: ema", [], "needs --ema_decay"),
        ("ema_decay: 1", [], "--ema_decay must lie between 0 and 1"),
        ("validation_share: 0", [], "--validation_share must lie between 0 and 1"),
        ("checkpointing_steps: 0", [], "--checkpointing_steps must be a number of steps or epoch, got '0'"),
        ("streaming: true", [], "--streaming needs --validation_split"),
        ("{streaming: true, skip_bad: true}", [], "cannot skip"),
        ("{streaming: true, max_train_samples: 5}", [], "--max_train_samples cannot be combined with --streaming"),
        ("push_to_hub: true", [], "needs --hub_model_id"),
    ],
)
def test_what_is_refused_is_one_line(parse, recipe, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(recipe, *flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "are required: --dataset_name.*, --output_dir"),
        (["--config"], "--config: expected one argument"),
        ([*NEEDED, "--config", "none.yaml"], "--config none.yaml: No such file"),
    ],
)
def test_missing_parts_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        parse_arguments(ACTTrainingArguments, "", arguments)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{num_group: 3}", "unknown fields num_group; the configuration has group_size, num_groups"),
        ("[1]", "must be a mapping"),
        ("{a", "not a mapping"),
    ],
)
def test_a_mapping_of_unknown_fields_is_refused(text, message):
    with pytest.raises(InputError, match=f"^--model.*{message}"):
        parse_mapping("--model", text, {"num_groups", "group_size"})


@pytest.mark.parametrize(
    "recipe", ["{}", "augmentation: [rotate_y]\nmodel: {num_groups: 8, eps: 1.0e-6}\nema_decay: 0.9"]
)
def test_a_saved_recipe_repeats_the_run(parse, recipe, tmp_path):
    options = parse(recipe)
    (tmp_path / "saved.yaml").write_text(yaml.safe_dump(as_recipe(options)))
    again = parse_arguments(ACTTrainingArguments, "", ["--config", str(tmp_path / "saved.yaml")])
    mappings = [parse_mapping("--model", each.model, {"num_groups", "eps"}) for each in (options, again)]
    assert mappings[0] == mappings[1]
    assert dataclasses.replace(again, model=None) == dataclasses.replace(options, model=None)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read_by_their_scripts(kinds, path):
    kind = next(kind for script, kind in kinds.items() if script in path.stem)
    teacher = ["--teacher", "outputs/teacher"] if kind is kinds["distill"] else []
    options = parse_arguments(kind, "", [*NEEDED, *teacher, "--config", str(path)])
    for name, value in yaml.safe_load(path.read_text()).items():
        if name not in ("model", "dataset_name", "output_dir"):
            assert getattr(options, name) == type(getattr(options, name))(value), name


@pytest.mark.parametrize("script", ["autoencode", "distill", "finetune", "few_shot", "segment", "detect"])
def test_help_names_every_flag(kinds, script, capsys):
    with pytest.raises(SystemExit) as left:
        parse_arguments(kinds[script], "What it does.", ["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "What it does." in text
    assert all(f"--{entry.name} " in text for entry in dataclasses.fields(kinds[script]))


FAULTS = """
import resource, torch
from act_training.run.script import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

ordinary = faults()
keep_freed_memory()
faults()
print(ordinary, faults())
"""


def test_freed_memory_is_kept_for_the_next_step(run_python):
    ordinary, kept = map(int, run_python("-c", FAULTS, environment={"PYTHONPATH": "training"}).stdout.split())
    if ordinary < 2**14:
        pytest.skip("this system serves large blocks without page faults anyway")
    assert kept < ordinary / 50


@pytest.mark.parametrize("setting", ["enable", "disable"])
def test_bars_of_weights_are_hidden_and_those_of_downloads_stay(setting):
    code = f"""if True:
        from huggingface_hub.utils import are_progress_bars_disabled, {setting}_progress_bars
        from transformers.utils import logging
        from act_training.run.script import hide_progress_bars_of_weights
        {setting}_progress_bars()
        hide_progress_bars_of_weights()
        print(logging.is_progress_bar_enabled(), are_progress_bars_disabled())"""
    assert run_command("-c", code).stdout.split() == ["False", str(setting == "disable")]


@pytest.mark.parametrize("script", ["autoencode", "distill", "finetune", "segment", "prepare_data", "demo"])
def test_a_script_names_what_is_not_installed(run_python, script):
    code = "import runpy, sys; sys.modules |= {'accelerate': None, 'yaml': None}; sys.path.insert(0, 'training')\n"
    process = run_python("-c", f"{code}runpy.run_path('training/{script}.py', run_name='__main__')", returncode=1)
    line = process.stderr.splitlines()[-1]
    assert line.startswith("the training scripts need accelerate, yaml: ") and line.endswith('-e ".[train]"')
    assert "Traceback" not in process.stderr
