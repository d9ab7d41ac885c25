"""What a run leaves: its log while it goes on, and a folder that `from_pretrained` loads and the Hub takes."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_model

from act_training.data.schema import BLOCK_SIZE
from act_training.report.html import write_report
from act_training.report.pictures import save_cloud_panels
from act_training.run.arguments import TrainingArguments, as_recipe, save_recipe
from act_training.run.files import naming, replace_folder, save_weights, write_text
from act_training.run.process import describe_versions
from modeling_act import ACTPointCloudProcessor
from modeling_act.errors import InputError
from modeling_act.hub.card import make_card
from modeling_act.hub.publishing import publish, without_local_paths, write_eval_results

MEASURED = {
    "last": "of the weights after the last step",
    "best": "of the weights that did best in validation, after step {step}",
    "ema": "of the weights after the last step, not of their average, which this model holds",
}


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
    public = replace(recipe, **without_local_paths(asdict(recipe)))
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
        return publish(folder, name, options.hub_private, options.hub_revision)
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
