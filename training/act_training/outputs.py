"""What a run leaves: its log while it goes on, and a folder that `from_pretrained` loads and the Hub takes."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from huggingface_hub import ModelCardData
from safetensors.torch import load_model
from tqdm import tqdm
from transformers import PreTrainedModel

from act_training.arguments import TrainingArguments, as_recipe, save_recipe
from act_training.data.prepared_scenes import BLOCK_SIZE
from act_training.optimization import RunLength
from act_training.pictures import save_cloud_panels
from act_training.report import write_report
from act_training.runs import describe_versions, naming
from modeling_act import ACTPointCloudProcessor
from modeling_act.errors import InputError
from modeling_act.publishing import (
    collect,
    one_line,
    prepare_repository,
    publish,
    without_local_path,
    write_eval_results,
)

UNKNOWN_LICENSE = (
    "The code in this folder is Apache-2.0. No licence of the weights was given: it follows from that of the data, of "
    "a pretrained backbone, and of the model this one began from.\n\n"
)
MEASURED = {
    "last": "of the weights after the last step",
    "best": "of the weights that did best in validation, after step {step}",
    "ema": "of the weights after the last step, not of their average, which this model holds",
}


def check_tracker(name: str) -> None:
    """`name` is that of --report_to; Accelerate passes over one that is not installed."""
    trackers = [str(tracker) for tracker in get_available_trackers()]
    if name == "all" and not trackers:
        raise InputError("--report_to all: no tracker is installed; pip install tensorboard, wandb or trackio")
    if name not in ("none", "all", *trackers):
        raise InputError(f"--report_to {name}: not installed here; pip install {name}")


def check_hub(options: TrainingArguments) -> None:
    """Makes the repository before anything is trained for it, so that a Hub that takes nothing from here says so."""
    if not options.push_to_hub:
        return
    if options.hub_model_id.count("/") != 1:
        raise InputError(f"--hub_model_id must be ORGANIZATION/NAME, got {options.hub_model_id!r}")
    try:
        prepare_repository(options.hub_model_id, options.hub_private, options.hub_revision)
    except InputError as error:
        raise InputError(f"--push_to_hub: {error}; or train without it, and publish afterwards") from error


class RunLog:
    """Progress bar, `log.jsonl` and trackers. The log of a resumed run goes on where its checkpoint was written."""

    def __init__(self, options: TrainingArguments, accelerator: Accelerator, length: RunLength, start: int):
        self.path = Path(options.output_dir) / "log.jsonl"
        self.accelerator, self.length = accelerator, length
        self.clock, self.clocked_step = time.perf_counter(), start
        if accelerator.is_main_process:
            lines = []
            if start and self.path.is_file():
                lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) is not None and _step_of(line) <= start]
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        if options.report_to != "none":
            try:
                accelerator.init_trackers("act")
            except Exception as error:  # one that waits for a login, say; each tracker has errors of its own
                raise InputError(f"--report_to {options.report_to}: {one_line(error)}") from error
        self.bar = tqdm(
            total=length.total_steps, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05,
            disable=not accelerator.is_main_process,
        )  # fmt: skip

    def update(self, **shown: str) -> None:
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def clouds_per_second(self, step: int) -> float:
        """Since the last call."""
        now = time.perf_counter()
        rate = (step - self.clocked_step) * self.length.global_batch_size / (now - self.clock)
        self.clock, self.clocked_step = now, step
        return rate

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            record = {"step": step, "epoch": round(self.length.epoch(step), 4), **values}
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.accelerator.log(values, step=step)

    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def close(self) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:  # not `end_training`: other runs of this script may follow
            tracker.finish()


def _step_of(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be half a line
        return None


def write_text(path: Path, text: str) -> None:
    """All of it or nothing."""
    temporary = path.with_name(f".{path.name}.writing")
    with naming(path):
        temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """A folder as `write` fills it, in place of the one that was there."""
    new, old = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    with naming(path):
        write(new)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def save_weights(folder: Path, model: PreTrainedModel, weights: dict[str, torch.Tensor] | None = None) -> None:
    """A folder for `from_pretrained`, with these weights in place of some of the model's own."""
    state = None if weights is None else model.state_dict() | weights
    replace_folder(folder, lambda path: model.save_pretrained(path, state_dict=state))


def save_pictures(run, clouds: list[dict[str, torch.Tensor]]) -> Path:
    """Panels side by side, a row a cloud, as of this step."""
    path = run.folder / "pictures" / f"step-{run.step:08d}.png"
    if run.accelerator.is_main_process:
        with naming(path):
            save_cloud_panels(path, _as_arrays(clouds), title=f"epoch {run.length.epoch(run.step):.1f}")
    return path


def finish_run(
    run,
    title: str,
    text: str,
    usage: str,
    metrics: dict,
    clouds: list[dict[str, torch.Tensor]],
    test: dict[str, float] | None = None,
    tables: dict[str, list[dict]] | None = None,
    images: dict[str, Path] | None = None,
) -> None:
    """Leaves a folder that `from_pretrained` loads, with metrics, recipe, card and report; uploads it if asked.

    `metrics` are of the validation rows and the last weights, `test` of the test split and the weights that are left.
    """
    if not run.accelerator.is_main_process:
        return run.log.close()
    options, recipe = run.options, repeatable(run.options)
    public = without_local_paths(recipe)
    for name, value in asdict(public).items():
        text = text.replace(f"`{getattr(options, name)}`", f"`{value}`")
    # Without a single finite validation there is no best.
    kind = "last" if options.final_weights == "best" and not run.best else options.final_weights
    measured = MEASURED[kind].format(step=run.best.get("step"))
    summary = {name: value for name, value in (run.best if kind == "best" else metrics).items() if name != "step"}
    with naming(run.folder):
        card = make_card(title, text, usage, summary, measured, test, options.license)
        _fill_folder(run, kind, {"metrics": metrics, "test": test}, recipe, card)
    images = {path.stem: path for path in sorted((run.folder / "pictures").glob("step-*.png"))[-1:]} | (images or {})
    report = run.folder / "report.html"
    with naming(report):
        write_report(
            report, title, _marked(summary, test), run.log.records(), _as_arrays(clouds), tables, images,
            yaml.safe_load(as_recipe(public)),
        )  # fmt: skip
    run.log.close()
    print(json.dumps(_marked(metrics, test)))
    where = f"; published as {_push(run.folder, options)}" if options.push_to_hub else ""
    print(f"{run.folder}: model, metrics.json, report.html{where}")


def repeatable(options: TrainingArguments) -> TrainingArguments:
    """The options of the same run from step 0, which deletes and publishes nothing."""
    return replace(
        options, resume_from_checkpoint=None, overwrite_output_dir=False, push_to_hub=False, hub_model_id=None,
        hub_private=False, hub_revision=None,
    )  # fmt: skip


def without_local_paths(options: TrainingArguments) -> TrainingArguments:
    """The options as others may read them: of a file or folder here, only its name."""
    values = {name: value for name, value in asdict(options).items() if isinstance(value, str)}
    return replace(options, **{name: without_local_path(value) for name, value in values.items()})


def _marked(metrics: dict, test: dict | None) -> dict:
    return metrics | {f"test {name}": value for name, value in (test or {}).items()}


def _fill_folder(run, kind: str, figures: dict, recipe: TrainingArguments, card: str) -> None:
    """Model, processor, metrics, recipe and card, the weights last: what has weights is complete."""
    staged = run.folder / ".final"
    if kind == "best":
        replace_folder(staged, lambda path: shutil.copytree(run.folder / "best", path, dirs_exist_ok=True))
    else:
        save_weights(staged, run.weights, run.average if kind == "ema" else None)
    if run.average is not None:
        save_weights(run.folder / "ema", run.weights, run.average)
    save_recipe(staged / "recipe.yaml", recipe)
    make_processor(run).save_pretrained(staged)
    record = figures | {"best": run.best, "steps": run.step, "versions": describe_versions()}
    write_text(staged / "metrics.json", json.dumps(record, indent=1))
    write_text(staged / "README.md", card)
    names = [path.name for path in sorted(staged.iterdir(), key=lambda path: path.suffix == ".safetensors")]
    for name in names:
        os.replace(staged / name, run.folder / name)
    staged.rmdir()
    shutil.rmtree(run.folder / ".eval_results", ignore_errors=True)
    if figures["test"]:
        write_eval_results(run.folder)


def _as_arrays(clouds: list[dict[str, torch.Tensor]]) -> list[dict[str, np.ndarray]]:
    return [{name: points.float().cpu().numpy() for name, points in panels.items()} for panels in clouds]


def _push(folder: Path, options: TrainingArguments) -> str:
    """Publishes a finished folder; returns the commit's address."""
    name = options.hub_model_id
    try:
        return publish(collect(folder, name), name, options.hub_private, options.hub_revision)
    except InputError as error:
        raise InputError(
            f"{folder} holds the whole finished model, but {error}; the same command with --resume_from_checkpoint "
            "latest uploads it without training"
        ) from error


def make_processor(run) -> ACTPointCloudProcessor:
    """What takes a user's clouds to what the model was trained on."""
    options, sampling = run.options, run.sampling
    in_rooms = getattr(options, "task", None) == "scenes"  # their blocks stand on the floor, whatever a flag says
    return ACTPointCloudProcessor(
        sampling.num_points, sampling.method, "cloud" if options.already_normalized else sampling.normalize,
        "z" if in_rooms else options.up_axis, options.unit, BLOCK_SIZE if in_rooms else None,
    )  # fmt: skip


def load_final_weights(run) -> None:
    """Puts those weights into the model that `finish_run` will leave."""
    if run.options.final_weights == "best" and run.best:
        load_model(run.weights, str(run.folder / "best" / "model.safetensors"))
    elif run.options.final_weights == "ema":
        run.weights.load_state_dict(run.average, strict=False)


def make_card(
    title: str,
    text: str,
    usage: str,
    metrics: dict[str, float],
    measured: str,
    test: dict[str, float] | None = None,
    license: str | None = None,
) -> str:
    """A model card whose numbers are those of metrics.json, and whose licence is what the user says."""
    data = ModelCardData(library_name="transformers", license=license, tags=["point-cloud", "act"])
    terms = "" if license else UNKNOWN_LICENSE
    tables = f"## Validation\n\nFigures {measured}.\n\n{_table(metrics)}\n"
    if test:
        tables += f"## Test\n\nFigures of the weights that this folder holds; read once.\n\n{_table(test)}\n"
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{text}\n\n```python\n{usage}\n```\n\n"
        f"{tables}{terms}`recipe.yaml` repeats the run; `metrics.json` holds the versions it ran with.\n"
    )


def _table(metrics: dict[str, float]) -> str:
    rows = "".join(f"| {name} | {value:.6g} |\n" for name, value in metrics.items())
    return f"| measure | value |\n|---|---|\n{rows}"
