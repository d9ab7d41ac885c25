"""Progress bar, `log.jsonl` and trackers of a run."""

import json
import time
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from tqdm import tqdm

from act_training.run.arguments import TrainingArguments
from act_training.run.files import naming, write_text
from act_training.run.optimization import RunLength
from modeling_act.errors import InputError
from modeling_act.hub.publishing import create_repository, one_line


def check_tracker(name: str) -> None:
    """`name` is that of --report_to; Accelerate passes over one that is not installed."""
    trackers = [str(tracker) for tracker in get_available_trackers()]
    if name == "all" and not trackers:
        raise InputError("--report_to all: no tracker is installed; pip install tensorboard, wandb or trackio")
    if name not in ("none", "all", *trackers):
        raise InputError(f"--report_to {name}: not installed here; pip install {name}")


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


def check_hub(options: TrainingArguments) -> None:
    """Makes the repository before anything is trained for it, so that a Hub that takes nothing from here says so."""
    if not options.push_to_hub:
        return
    if options.hub_model_id.count("/") != 1:
        raise InputError(f"--hub_model_id must be ORGANIZATION/NAME, got {options.hub_model_id!r}")
    try:
        create_repository(options.hub_model_id, options.hub_private, options.hub_revision)
    except InputError as error:
        raise InputError(f"--push_to_hub: {error}; or train without it, and publish afterwards") from error
