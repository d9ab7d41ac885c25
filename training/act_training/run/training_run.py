"""`TrainingRun`: the step of every training script, and what makes a run exact under interruption.

    run = TrainingRun(options)
    run.open_data(min_points)
    model = run.prepare(MyModel(config))          # new, or resumed
    for batch in run.batches():                   # saves checkpoints between two steps
        with run.autocast():
            loss = run.model(**batch).loss
        run.step(loss)                            # backward, and for the last batch of a step clip and update

All randomness is a function of (seed, step): a checkpoint holds weights, optimizer and a step, and a resumed run
repeats the uninterrupted one bit for bit.
"""

import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast, gather_object
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from act_training.data.batches import step_seed
from act_training.data.point_sets import PointSet
from act_training.run import training_state
from act_training.run.run_data import RunData, open_run_data
from act_training.run.script import ACTTrainingArguments, Stopped, StopSignal, on_main_process, warn
from act_training.run.training_state import RunLength
from modeling_act.errors import InputError
from modeling_act.hub.publishing import create_repository

CALIBRATION_BATCHES, CALIBRATION_BATCH_SIZE = 8, 32
# Flags that may differ between the run that wrote a checkpoint and the one that resumes from it.
FREE_FLAGS = {
    "output_dir", "resume_from_checkpoint", "overwrite_output_dir", "checkpointing_steps", "checkpoints_total_limit",
    "logging_steps", "report_to", "push_to_hub", "hub_model_id", "hub_private", "hub_revision", "license",
    "already_normalized", "up_axis", "unit", "dataloader_num_workers", "picture_epochs", "per_device_eval_batch_size",
}  # fmt: skip


class TrainingRun:
    """Data, model, optimizer, log and checkpoints of a run, and its step. `weights` is the model, `model` the same as
    Accelerate wraps it for this process; `global_step` counts updates."""

    def __init__(self, options: ACTTrainingArguments):
        self.options, self.folder = options, Path(options.output_dir)
        self.checkpoint_folder = self.folder / "checkpoints"
        check_tracker(options.report_to)
        # Autocast is entered by the scripts: Accelerate's own wrapper copies every output to float32.
        self.accelerator = Accelerator(
            cpu=options.cpu or not torch.accelerator.is_available(),
            mixed_precision="no",
            log_with=None if options.report_to == "none" else options.report_to,
            project_dir=options.output_dir,
        )
        self.device = self.accelerator.device
        self.stop_signal = StopSignal()
        self.global_step, self.start, self.best = 0, 0, {}
        self.average: dict[str, Tensor] | None = None
        self.stop_number = 0  # of the signal that all processes stop at
        self._losses, self._keys = [], []  # of the batches of the present step
        if self.device.type == "cuda":
            training_state.use_deterministic_algorithms()
        elif options.mixed_precision == "bf16" and not torch.cpu._is_avx512_bf16_supported():
            warn("this CPU has no bf16 instructions: --mixed_precision no is many times as fast here")
        torch.manual_seed(options.seed)
        on_main_process(self.accelerator, self._prepare_folder)

    def _prepare_folder(self) -> None:
        folder = self.checkpoint_folder
        folder.mkdir(parents=True, exist_ok=True)
        if not self.options.resume_from_checkpoint and training_state.list_checkpoints(folder):
            if not self.options.overwrite_output_dir:
                advice = "pass --resume_from_checkpoint latest to continue, or --overwrite_output_dir to start anew"
                raise InputError(f"{self.folder} holds checkpoints; {advice}")
            for name in ("checkpoints", "best", "ema"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / "model.safetensors").unlink(missing_ok=True)
            folder.mkdir()
        for leftover in folder.glob(".*-step-*"):  # of an interrupted save
            shutil.rmtree(leftover, ignore_errors=True)

    def open_data(self, min_points: int, **target) -> RunData:
        """Open and check the rows; `target` are the arguments `target` and `test_split` of `open_run_data`."""
        return self.use_data(open_run_data(self.options, self.accelerator, min_points, **target))

    def use_data(self, data: RunData) -> RunData:
        """Set the rows to train on, which decide how long the run is."""
        self.data, options = data, self.options
        batch_size = options.per_device_train_batch_size * self.accelerator.num_processes
        batch_size *= options.gradient_accumulation_steps
        self.length = RunLength(len(data.train), batch_size, options.num_train_epochs, options.max_train_steps)
        return data

    def prepare(self, model: PreTrainedModel, **inputs: str) -> PreTrainedModel:
        """Prepare a new model for training, or load the checkpoint to resume from; create the Hub repository.

        `inputs` identify whatever else decides the outcome, such as a teacher's digest.
        """
        options = self.options
        if options.push_to_hub:
            on_main_process(self.accelerator, self._create_repository)
        recipe = {name: value for name, value in asdict(options).items() if name not in FREE_FLAGS}
        machine = {"processes": self.accelerator.num_processes, "device": self.device.type}
        self.description = {"recipe": recipe, "data": self.data.fingerprint, **machine, **inputs}
        checkpoint = on_main_process(self.accelerator, self._find_checkpoint)
        self.weights = model.to(self.device).train()
        self.model = self._wrap(self.weights)
        self.optimizer = training_state.make_optimizer(self.weights, options.weight_decay)
        self.average = training_state.trained_state(self.weights) if options.ema_decay else None
        if checkpoint:
            self._resume(Path(checkpoint))
        self.log = RunLog(options, self.accelerator, self.length, self.start)
        return self.weights

    def _create_repository(self) -> None:
        options = self.options
        try:
            create_repository(options.hub_model_id, options.hub_private, options.hub_revision)
        except InputError as error:
            raise InputError(f"--push_to_hub: {error}; or train without it, and publish afterwards") from error

    def _find_checkpoint(self) -> str | None:
        wanted = self.options.resume_from_checkpoint
        if not wanted:
            return None
        checkpoint = training_state.find_checkpoint(self.checkpoint_folder, wanted, warn)
        if checkpoint is None:
            warn(f"no checkpoint in {self.checkpoint_folder} yet: starting at step 0")
            return None
        if changes := training_state.differences(training_state.read_state(checkpoint)["run"], self.description):
            raise InputError(f"{checkpoint} belongs to another run: {'; '.join(changes)}")
        return str(checkpoint)

    def _wrap(self, model: PreTrainedModel) -> nn.Module:
        if self.options.sync_batch_norm and self.accelerator.num_processes > 1:
            if self.device.type != "cuda":
                raise InputError("--sync_batch_norm needs GPUs: torch synchronizes batch statistics on CUDA only")
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if self.options.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if self.options.compile:
            model.compile()
        return self.accelerator.prepare_model(model)

    def _resume(self, checkpoint: Path) -> None:
        state = training_state.read_training_state(checkpoint, self.weights, self.optimizer)
        self.start = self.global_step = state["step"]
        self.best = state["best"]
        on_main_process(self.accelerator, lambda: self._copy_best(checkpoint))
        if self.options.ema_decay:
            average = load_file(checkpoint / "ema.safetensors")
            self.average = {name: value.to(self.device) for name, value in average.items()}

    def _copy_best(self, checkpoint: Path) -> None:
        """Copy the best weights so far, if the run continues in another folder."""
        best, before = self.folder / "best", checkpoint.parents[1] / "best"
        if self.best and not best.exists():
            if not before.exists():
                raise InputError(f"{checkpoint} goes with {before}, which does not exist; resume in its own folder")
            shutil.copytree(before, best)

    def calibrate_batch_norm(self, forward: Callable[[dict[str, Tensor]], object]) -> None:
        """Measure batch statistics of layers that never trained on the first rows, before the first step."""
        if self.start == 0:
            batches = itertools.islice(self.data.all_train_batches(CALIBRATION_BATCH_SIZE), CALIBRATION_BATCHES)
            batches = (batch for batch in batches if len(batch["points"]) > 1)  # statistics need two rows
            training_state.calibrate_batch_norm(self.weights, forward, batches)

    # The loop --------------------------------------------------------------------------------------------------------

    def batches(self, sampled: bool = True) -> Iterator[dict[str, Tensor]]:
        """Yield the remaining batches of `RunData.train_batches`; save a checkpoint between two steps where one is
        due, and stop after a signal."""
        options, accumulation = self.options, self.options.gradient_accumulation_steps
        total = self.length.total_steps
        schedule = options.learning_rate, options.min_learning_rate, options.warmup_epochs, options.lr_per_epoch
        batches = self.data.train_batches(self.start * accumulation, total * accumulation, sampled)
        for step in range(self.start, total):
            torch.manual_seed(step_seed(options.seed, step, self.accelerator.process_index))
            self.learning_rate = training_state.learning_rate_at(step, self.length, *schedule)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate
            self._losses, self._keys = [], []
            for part in range(accumulation):
                batch = next(batches)
                self._keys.append(batch["keys"])
                with self.accelerator.no_sync(self.model) if part + 1 < accumulation else nullcontext():
                    yield batch
            self._save_or_stop()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in bf16 if asked. Values that overflow in a forward pass end the run, naming the rows."""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.mixed_precision == "bf16"):
                yield
        except FloatingPointError as error:  # in this process and perhaps in no other
            hint = self._hint(torch.cat(self._keys).tolist()) if self._keys else ""  # none before the first step
            raise FloatingPointError(f"step {self.global_step}: {error}; nothing was updated. {hint}") from error

    def step(self, loss: Tensor) -> None:
        """Compute gradients; after the last batch of a step clip and apply them. A loss or gradient that is not finite
        ends the run before, naming the rows."""
        self._losses.append(loss.detach())
        self.accelerator.backward(loss / self.options.gradient_accumulation_steps)
        if not self._is_updated:
            return
        parameters = [parameter for parameter in self.weights.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.options.max_grad_norm or math.inf).float()
        stop = torch.full_like(norm, self.stop_signal.number)
        summary = torch.stack([torch.stack(self._losses).mean().float(), norm, stop])
        if self.accelerator.num_processes > 1:  # all stop at the same step
            shared = self.accelerator.gather(summary.unsqueeze(0))
            summary = torch.stack([shared[:, 0].mean(), shared[:, 1].max(), shared[:, 2].max()])
        self.loss, self.gradient_norm, signal = summary.tolist()
        self.stop_number = int(signal)
        if not (math.isfinite(self.loss) and math.isfinite(self.gradient_norm)):
            hint = self._hint(gather_object(torch.cat(self._keys).tolist()))
            failure = f"loss {self.loss}, gradient norm {self.gradient_norm}; nothing was updated"
            raise InputError(f"step {self.global_step}: {failure}. {hint}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            training_state.update_average(self.average, self.weights, self.options.ema_decay)
        self.global_step += 1
        self.log.bar.set_postfix(loss=f"{self.loss:.4f}", lr=f"{self.learning_rate:.2e}", refresh=False)
        self.log.bar.update()

    @property
    def _is_updated(self) -> bool:
        """True from the last batch of a step on, False before it under gradient accumulation."""
        return len(self._losses) == self.options.gradient_accumulation_steps

    def _hint(self, keys: list[list[int]]) -> str:
        """Name the rows (epoch, row) of a step that failed, and what to try."""
        rows = ", ".join(self.data.train.where(row) for _, row in itertools.islice(keys, 16))
        held = f"The step held {len(keys)} rows: {rows}{', ...' if len(keys) > 16 else ''}"
        return f"{held}. Try a lower --learning_rate, --max_grad_norm 1 or --mixed_precision no"

    @property
    def finished(self) -> bool:
        return self.global_step >= self.length.total_steps

    def is_log_due(self) -> bool:
        """Return True at the first step, every --logging_steps, and at the last."""
        step = self.global_step
        return self._is_updated and (step == 1 or step % self.options.logging_steps == 0 or self.finished)

    def is_due(self, epochs: float) -> bool:
        """Return True if this step completes another `epochs` epochs, or the run."""
        return self._is_updated and self.length.completes(epochs, self.global_step)

    def log_training(self, **values: float) -> None:
        """Log loss, gradient norm, learning rate, speed and `values` of this step."""
        step = {"loss": self.loss, "gradient_norm": self.gradient_norm, "learning_rate": self.learning_rate}
        values = step | {"clouds_per_second": self.log.clouds_per_second(self.global_step)} | values
        self.log.write(self.global_step, {f"train/{name}": value for name, value in values.items()})

    def validation_batches(self, point_set: PointSet | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield this process' validation rows, or those of another set, for the weights that would be saved: all
        processes use the batch statistics of the first."""
        if self.accelerator.num_processes > 1:
            for buffer in self.weights.buffers():
                broadcast(buffer)
        torch.manual_seed(self.options.seed)  # noisy codes are the same each time
        return self.data.validation_batches(point_set)

    def log_validation(
        self, group: str, metrics: dict[str, float], best_by: str | None = None, highest: bool = False
    ) -> None:
        """Log `metrics`; save the weights if they are the best so far by the metric `best_by` (lowest or highest), and
        of equals those of the lowest loss."""

        def rank(metrics: dict[str, float]) -> tuple[float, float]:
            return -metrics[best_by] if highest else metrics[best_by], metrics.get("loss", 0.0)

        self.log.write(self.global_step, {f"{group}/{name}": value for name, value in metrics.items()})
        counts = best_by and self.global_step and math.isfinite(metrics[best_by])
        if counts and (not self.best or rank(metrics) < rank(self.best)):
            self.best = metrics | {"step": self.global_step}
            on_main_process(self.accelerator, lambda: training_state.save_weights(self.folder / "best", self.weights))

    def _save_or_stop(self) -> None:
        """Save a checkpoint where one is due, at the end and after a signal, which stops the run."""
        every = self.options.checkpointing_steps
        due = self.is_due(1) if every == "epoch" else self.global_step % int(every) == 0
        if due or self.finished or self.stop_number:
            on_main_process(self.accelerator, self._save)
        if self.stop_number:
            self.log.close()
            raise Stopped(self.stop_number)

    def _save(self) -> None:
        state = {"step": self.global_step, "best": self.best, "run": self.description}
        for name, value in self.weights.state_dict().items():  # a finite update can overflow weights or statistics
            if value.is_floating_point() and not value.isfinite().all():
                hint = self._hint(torch.cat(self._keys).tolist())
                failure = f"{name} is no longer finite; nothing was saved"
                raise FloatingPointError(f"step {self.global_step - 1}: {failure}. {hint}")

        def write(path: Path) -> None:
            training_state.write_training_state(path, self.weights, self.optimizer, state, self.average)

        limit = self.options.checkpoints_total_limit
        training_state.write_checkpoint(self.checkpoint_folder, self.global_step, write, limit)

    @property
    def final_weights(self) -> str:
        """--final_weights, or "last" where no validation was finite and there is no best."""
        return "last" if self.options.final_weights == "best" and not self.best else self.options.final_weights

    def load_final_weights(self) -> bool:
        """Load the weights of the result into the model; return False if these are those of the last step."""
        if self.final_weights == "best":
            load_model(self.weights, str(self.folder / "best" / "model.safetensors"))
        elif self.final_weights == "ema":
            self.weights.load_state_dict(self.average, strict=False)
        return self.final_weights != "last"


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
            resumed = start and self.path.is_file()
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if resumed else []
            training_state.write_text(self.path, "".join(f"{line}\n" for line in lines if _step_of(line) <= start))
        if options.report_to != "none":
            try:
                accelerator.init_trackers("act")
            except Exception as error:  # trackers have errors of their own, such as a missing login
                raise InputError(f"--report_to {options.report_to}: {' '.join(str(error).split())}") from error
        looks = {"unit": "step", "dynamic_ncols": True, "smoothing": 0.05}
        self.bar = tqdm(total=length.total_steps, initial=start, disable=not accelerator.is_main_process, **looks)

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
            with training_state.name_in_errors(self.path), self.path.open("a", encoding="utf-8") as file:
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
