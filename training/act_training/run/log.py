"""Log of a run: progress bar, `log.jsonl` and trackers."""

import json
import time
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from tqdm import tqdm

from act_training.run.arguments import ACTTrainingArguments
from act_training.run.checkpoints import name_in_errors, write_text
from act_training.run.optimization import RunLength
from modeling_act.errors import InputError


def check_tracker(name: str) -> None:
    """Check that the tracker of --report_to is installed; Accelerate silently ignores one that is not."""
    trackers = [str(tracker) for tracker in get_available_trackers()]
    if name == "all" and not trackers:
        raise InputError("--report_to all: no tracker is installed; pip install tensorboard, wandb or trackio")
    if name not in ("none", "all", *trackers):
        raise InputError(f"--report_to {name}: not installed here; pip install {name}")


class RunLog:
    """Progress bar, `log.jsonl` and trackers. A resumed run's log continues from its checkpoint."""

    def __init__(self, options: ACTTrainingArguments, accelerator: Accelerator, length: RunLength, start: int):
        self.path = Path(options.output_dir) / "log.jsonl"
        self.accelerator, self.length = accelerator, length
        self._time, self._timed_step = time.perf_counter(), start
        if accelerator.is_main_process:
            lines = []
            if start and self.path.is_file():
                lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            write_text(self.path, "".join(f"{line}\n" for line in lines if _step_of(line) <= start))
        if options.report_to != "none":
            try:
                accelerator.init_trackers("act")
            except Exception as error:  # trackers have errors of their own, such as a missing login
                raise InputError(f"--report_to {options.report_to}: {' '.join(str(error).split())}") from error
        looks = {"unit": "step", "dynamic_ncols": True, "smoothing": 0.05}
        self.bar = tqdm(total=length.total_steps, initial=start, disable=not accelerator.is_main_process, **looks)

    def update(self, **values: str) -> None:
        """Advance the bar by a step and show `values` beside it."""
        self.bar.set_postfix(values, refresh=False)
        self.bar.update()

    def clouds_per_second(self, step: int) -> float:
        """Return the speed since the last call."""
        now = time.perf_counter()
        rate = (step - self._timed_step) * self.length.global_batch_size / (now - self._time)
        self._time, self._timed_step = now, step
        return rate

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a line of `log.jsonl`, and to the trackers."""
        if self.accelerator.is_main_process:
            record = {"step": step, "epoch": round(self.length.epoch(step), 4), **values}
            with name_in_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.accelerator.log(values, step=step)

    def records(self) -> list[dict]:
        """Read all lines of `log.jsonl`."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def close(self) -> None:
        """Close the bar and the trackers, not Accelerate: other runs of this process may follow."""
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be incomplete
        return float("inf")
