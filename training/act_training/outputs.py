"""What a run leaves: its log while it goes on, and a folder that `from_pretrained` loads and the Hub takes."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from huggingface_hub import HfApi, ModelCardData
from tqdm import tqdm
from transformers import PreTrainedModel

from act_training.arguments import TrainingArguments, save_recipe
from act_training.optimization import RunLength
from act_training.pictures import save_cloud_panels
from act_training.report import write_report
from act_training.runs import describe_versions

# What is uploaded of an output folder: nothing of the run itself, no optimizer.
PUBLISHED = ["*.safetensors", "*.json", "*.py", "README.md", "recipe.yaml", "report.html", "pictures/*"]
LEFT_OUT = ["checkpoints/*", "best/*", "ema/*", ".*"]


class RunLog:
    """Progress bar, `log.jsonl` and trackers. The log of a resumed run goes on where its checkpoint was written."""

    def __init__(self, options: TrainingArguments, accelerator: Accelerator, length: RunLength, start: int):
        self.path = Path(options.output_dir) / "log.jsonl"
        self.accelerator, self.length = accelerator, length
        self.clock, self.clocked_step = time.perf_counter(), start
        if accelerator.is_main_process:
            lines = self.path.read_text(encoding="utf-8").splitlines() if start and self.path.is_file() else []
            kept = [line for line in lines if _step_of(line) is not None and _step_of(line) <= start]
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        if options.report_to != "none":
            accelerator.init_trackers("act")
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
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.accelerator.log(values, step=step)

    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def close(self) -> None:
        self.bar.close()
        self.accelerator.end_training()


def _step_of(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be half a line
        return None


def write_text(path: Path, text: str) -> None:
    """All of it or nothing."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """A folder as `write` fills it, in place of the one that was there."""
    new, old = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
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
        save_cloud_panels(path, _as_arrays(clouds), title=f"epoch {run.length.epoch(run.step):.1f}")
    return path


def finish_run(run, title: str, text: str, usage: str, metrics: dict, clouds: list[dict[str, torch.Tensor]]) -> None:
    """Leaves a folder that `from_pretrained` loads, with metrics, recipe, card and report; uploads it if asked."""
    if run.accelerator.is_main_process:
        summary = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        _fill_folder(run, metrics, make_card(title, text, usage, summary))
        pictures = sorted((run.folder / "pictures").glob("*.png"))
        recipe = yaml.safe_load((run.folder / "recipe.yaml").read_text(encoding="utf-8"))
        write_report(
            run.folder / "report.html", title, summary, run.log.records(), _as_arrays(clouds),
            images={path.stem: path for path in pictures[-1:]}, recipe=recipe,
        )  # fmt: skip
        where = push(run.options) if run.options.push_to_hub else None
    run.log.close()
    if run.accelerator.is_main_process:
        print(json.dumps(metrics))
        print(f"{run.folder}: model, metrics.json, report.html{f'; published as {where}' if where else ''}")


def _fill_folder(run, metrics: dict, card: str) -> None:
    """Model, metrics, recipe and card, the weights last: what has weights is complete."""
    options, staged, best = run.options, run.folder / ".final", run.folder / "best"
    if options.final_weights == "best" and best.is_dir():
        replace_folder(staged, lambda path: shutil.copytree(best, path, dirs_exist_ok=True))
    else:
        save_weights(staged, run.weights, run.average if options.final_weights == "ema" else None)
    if run.average is not None:
        save_weights(run.folder / "ema", run.weights, run.average)
    save_recipe(staged / "recipe.yaml", options)
    record = {"metrics": metrics, "best": run.best, "steps": run.step, "versions": describe_versions()}
    write_text(staged / "metrics.json", json.dumps(record, indent=1))
    write_text(staged / "README.md", card)
    for path in sorted(staged.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        os.replace(path, run.folder / path.name)
    staged.rmdir()


def _as_arrays(clouds: list[dict[str, torch.Tensor]]) -> list[dict[str, np.ndarray]]:
    return [{name: points.float().cpu().numpy() for name, points in panels.items()} for panels in clouds]


def push(options: TrainingArguments) -> str:
    """Uploads the finished folder in one commit; returns its address."""
    api = HfApi()
    repository = api.create_repo(options.hub_model_id, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=repository, folder_path=options.output_dir, allow_patterns=PUBLISHED, ignore_patterns=LEFT_OUT,
        commit_message="Upload model",
    )  # fmt: skip
    return commit.commit_url


def make_card(title: str, text: str, usage: str, metrics: dict[str, float]) -> str:
    """A model card whose numbers are those of metrics.json."""
    data = ModelCardData(library_name="transformers", license="apache-2.0", tags=["point-cloud", "act"])
    rows = "".join(f"| {name} | {value:.6g} |\n" for name, value in metrics.items())
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{text}\n\n```python\n{usage}\n```\n\n"
        f"## Validation\n\n| measure | value |\n|---|---|\n{rows}\n"
        "`recipe.yaml` repeats the run; `metrics.json` holds the versions it ran with.\n"
    )
