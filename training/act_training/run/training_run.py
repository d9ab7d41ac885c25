"""`TrainingRun`: what every training script needs around its loss, and what makes a run exact under interruption.

    for step, parts in run.steps():
        for batch in parts:
            with run.autocast():
                loss = ...
            run.backward(loss)
        run.update()
        ...
        run.save_or_stop()

Row order, subsets, augmentation, masks and torch's seeds are functions of (seed, step), so a checkpoint holds weights,
optimizer and a step, and a resumed run repeats the uninterrupted one bit for bit.
"""

import itertools
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_training.data.batches import VALIDATION_EPOCH, iterate_batches, validation_batches
from act_training.data.keyed_random import Sampling, augment, sample_points, step_seed
from act_training.data.point_sets import PointSet
from act_training.run import checkpoints
from act_training.run.arguments import TrainingArguments
from act_training.run.batch_norm import settle_batch_norm, synchronize_batch_norm
from act_training.run.files import save_weights
from act_training.run.log import RunLog, check_hub, check_tracker
from act_training.run.optimization import (
    RunLength,
    learning_rate_at,
    make_optimizer,
    repeat_exactly,
    set_learning_rate,
    trained_state,
    update_average,
)
from act_training.run.process import Stopped, on_main_process, warn
from act_training.run.run_data import TrainingData, make_row_order, open_training_data
from act_training.run.signals import StopSignals, die_with_launcher, held_back
from modeling_act.errors import InputError

# What may differ between the run that wrote a checkpoint and the one that resumes from it.
FREE_FLAGS = {
    "output_dir", "resume_from_checkpoint", "overwrite_output_dir", "checkpointing_steps", "checkpoints_total_limit",
    "logging_steps", "report_to", "push_to_hub", "hub_model_id", "hub_private", "hub_revision", "license",
    "already_normalized", "up_axis", "unit",
    "dataloader_num_workers", "picture_epochs", "per_device_eval_batch_size",
}  # fmt: skip
SETTLING_BATCHES = 8
SECONDS_TO_STOP = 20  # after a signal, for a process that waits for others


class StepSummary:
    """Loss, gradient norm and signal of a step, on their way from the device; `keys` are those of its rows."""

    def __init__(self, step: int, keys: list[Tensor], values: Tensor):
        self.step, self.keys = step, keys
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._arrived = torch.cuda.current_stream().record_event() if values.is_cuda else None

    def read(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


class TrainingRun:
    data: TrainingData
    length: RunLength
    log: RunLog
    model: nn.Module  # as this process trains it
    weights: PreTrainedModel  # the same without what Accelerate wraps around it

    def __init__(self, options: TrainingArguments):
        die_with_launcher()
        self.options, self.folder = options, Path(options.output_dir)
        check_tracker(options.report_to)
        # Autocast is entered by the scripts: Accelerate's own wrapper copies every output to float32.
        self.accelerator = Accelerator(
            cpu=options.cpu or not torch.accelerator.is_available(),
            mixed_precision="no",
            log_with=None if options.report_to == "none" else options.report_to,
            project_dir=options.output_dir,
        )
        self.device = self.accelerator.device
        self.signals = StopSignals(SECONDS_TO_STOP if self.accelerator.num_processes > 1 else None)
        self.sampling = Sampling(options.num_points, options.seed, options.normalize, options.point_sampling)
        self.step, self.start, self.best = 0, 0, {}
        self.average: dict[str, Tensor] | None = None
        self.stop_signal = 0
        # A GPU works ahead of its host: what came of a step is read while the next one runs.
        self.reads_late = self.device.type == "cuda"
        if self.reads_late:
            repeat_exactly()
        self._unread: list[StepSummary] = []
        self._refused: Tensor | None = None  # on the device: whether a loss or gradient was not finite so far
        self._keys: list[Tensor] = []  # of the rows of the present step
        torch.manual_seed(options.seed)
        on_main_process(self.accelerator, lambda: check_hub(options))
        on_main_process(self.accelerator, self._prepare_folder)
        slow = self.device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported()
        if slow and options.mixed_precision == "bf16":
            warn("this CPU has no bf16 instructions: --mixed_precision no is many times as fast here")

    def _prepare_folder(self) -> None:
        self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        if not self.options.resume_from_checkpoint and checkpoints.list_checkpoints(self.checkpoint_folder):
            if not self.options.overwrite_output_dir:
                raise InputError(
                    f"{self.folder} holds checkpoints; pass --resume_from_checkpoint latest to go on, or "
                    "--overwrite_output_dir to start anew"
                )
            for name in ("checkpoints", "best", "ema"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / "model.safetensors").unlink(missing_ok=True)
            self.checkpoint_folder.mkdir()
        checkpoints.remove_leftovers(self.checkpoint_folder)

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / "checkpoints"

    def open_data(self, min_points: int, **labelled) -> TrainingData:
        """Opens and checks the rows; `labelled` are `target` and `test_split` of `open_training_data`."""
        return self.use_data(open_training_data(self.options, self.accelerator, min_points, **labelled))

    def use_data(self, data: TrainingData) -> TrainingData:
        """Fixes what to train on, and so how long the run is."""
        self.data, options = data, self.options
        global_batch_size = options.per_device_train_batch_size * self.accelerator.num_processes
        self.length = RunLength(
            len(self.data.train), global_batch_size * options.gradient_accumulation_steps, options.num_train_epochs,
            options.max_train_steps,
        )  # fmt: skip
        return self.data

    def prepare(self, make_model: Callable[[], PreTrainedModel], **inputs: str) -> PreTrainedModel:
        """The model to train, new or from the checkpoint to resume from, and its optimizer.

        `inputs` name whatever else decides the outcome, such as a teacher's digest.
        """
        options = self.options
        recipe = {name: value for name, value in asdict(options).items() if name not in FREE_FLAGS}
        self.description = {
            "recipe": recipe, "processes": self.accelerator.num_processes, "device": self.device.type,
            "data": self.data.fingerprint, **inputs,
        }  # fmt: skip
        resumed = on_main_process(self.accelerator, self._find_checkpoint)
        self.weights = make_model().to(self.device).train()
        self.model = self._wrap(self.weights)
        self.optimizer = make_optimizer(self.weights, options.weight_decay)
        self.average = trained_state(self.weights) if options.ema_decay else None
        if resumed:
            state = checkpoints.read_training_state(Path(resumed), self.weights, self.optimizer)
            self.start, self.best = state["step"], state["best"]
            on_main_process(self.accelerator, lambda: self._find_best(Path(resumed)))
            if options.ema_decay:
                self.average = checkpoints.read_tensors(Path(resumed), "ema", self.device)
        self.step = self.start
        self.log = RunLog(options, self.accelerator, self.length, self.start)
        return self.weights

    def _find_best(self, checkpoint: Path) -> None:
        """A run that goes on in another folder takes its best weights along."""
        best, before = self.folder / "best", checkpoint.parents[1] / "best"
        if self.best and not best.exists():
            if not before.exists():
                raise InputError(f"{checkpoint} goes with {before}, which is not there; resume in its own folder")
            shutil.copytree(before, best)

    def settle_batch_norm(self, forward: Callable[[dict[str, Tensor]], object]) -> None:
        """Before the first step: batch statistics of the first training rows for layers that never trained."""
        if self.start == 0:
            batches = validation_batches(self.data.train, 32, self.sampling, self.device)
            batches = (batch for batch in itertools.islice(batches, SETTLING_BATCHES) if len(batch["points"]) > 1)
            settle_batch_norm(self.weights, forward, batches)

    def _find_checkpoint(self) -> str | None:
        wanted = self.options.resume_from_checkpoint
        if not wanted:
            return None
        found = checkpoints.find_checkpoint(self.checkpoint_folder, wanted, warn)
        if found is None:
            warn(f"no checkpoint in {self.checkpoint_folder} yet: starting at step 0")
            return None
        if different := checkpoints.differences(checkpoints.read_state(found)["run"], self.description):
            raise InputError(f"{found} belongs to another run: {'; '.join(different)}")
        return str(found)

    def _wrap(self, model: PreTrainedModel) -> nn.Module:
        if self.options.sync_batch_norm and self.accelerator.num_processes > 1:
            if self.device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(model)
            else:
                synchronize_batch_norm(model)
        if self.options.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if self.options.compile:
            model.compile()
        return self.accelerator.prepare_model(model)

    # The loop --------------------------------------------------------------------------------------------------------

    def steps(self, sampled: bool = True) -> Iterator[tuple[int, Iterator[dict[str, Tensor]]]]:
        """The remaining steps: number, and batches of points (batch, num_points, 3), keys (batch, 2) of (epoch, row),
        and what labels the set has; points as they are stored unless `sampled`."""
        options, accumulation = self.options, self.options.gradient_accumulation_steps
        rows = make_row_order(self.data, options, self.accelerator)
        stop = self.length.total_steps * accumulation
        batches = iterate_batches(
            self.data.train, rows, self.start * accumulation, stop, options.dataloader_num_workers,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        with held_back():  # from the workers of the loader, which start with its first batch
            batches = itertools.chain([next(batches, None)], batches)
        for step in range(self.start, self.length.total_steps):
            torch.manual_seed(step_seed(options.seed, step, self.accelerator.process_index))
            self.learning_rate = learning_rate_at(
                step, self.length, options.learning_rate, options.min_learning_rate, options.warmup_epochs,
                options.lr_per_epoch,
            )  # fmt: skip
            set_learning_rate(self.optimizer, self.learning_rate)
            self._losses, self._keys = [], []
            yield step, self._parts(batches, sampled)

    def _parts(self, batches: Iterator[dict], sampled: bool) -> Iterator[dict[str, Tensor]]:
        accumulation = self.options.gradient_accumulation_steps
        for part in range(accumulation):
            batch = {name: value.to(self.device, non_blocking=True) for name, value in next(batches).items()}
            self._keys.append(batch["keys"])
            batch = self._sample(batch) if sampled else batch
            with self.accelerator.no_sync(self.model) if part + 1 < accumulation else nullcontext():
                yield batch

    def _sample(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        options, keys = self.options, batch["keys"]
        if options.fixed_points:  # those that validation would take
            validation_keys = torch.stack([torch.full_like(keys[:, 0], VALIDATION_EPOCH), keys[:, 1]], dim=1)
            batch = sample_points(batch | {"keys": validation_keys}, self.sampling)
        else:
            batch = sample_points(batch, self.sampling, training=True)
        return batch | {"keys": keys, "points": augment(batch["points"], keys, options.seed, options.augmentation)}

    @contextmanager
    def autocast(self) -> Iterator[None]:
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.mixed_precision == "bf16"):
                yield
        except ValueError as error:
            if "must be finite" not in str(error):
                raise
            # Point operations refuse what overflowed, in this process and perhaps in no other.
            raise FloatingPointError(f"step {self.step}: {error}; nothing was updated. {self._rows_here()}") from error

    def backward(self, loss: Tensor) -> None:
        self._losses.append(loss.detach())
        self.accelerator.backward(loss / self.options.gradient_accumulation_steps)

    def update(self) -> None:
        """Clips, checks and applies the gradients. Where loss or gradient is not finite, nothing is applied, then or
        later, and the run ends, naming the rows."""
        parameters = [parameter for parameter in self.weights.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.options.max_grad_norm or math.inf).float()
        loss = torch.stack(self._losses).mean().float()
        summary = torch.stack([loss, norm, torch.full_like(norm, self.signals.received)])
        if self.accelerator.num_processes > 1:
            shared = self.accelerator.gather(summary.unsqueeze(0))
            summary = torch.stack([shared[:, 0].mean(), shared[:, 1].max(), shared[:, 2].max()])
        refused = ~summary[:2].isfinite().all()
        self._refused = refused if self._refused is None else self._refused | refused
        self.optimizer.found_inf = self._refused.float()  # fused AdamW then leaves everything as it is
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            update_average(self.average, self.weights, self.options.ema_decay)
        self._unread.append(StepSummary(self.step, self._keys, summary))
        self.step += 1
        self._read_summaries(but=1 if self.reads_late else 0)
        if self.step - self.start > len(self._unread):
            self.log.update(loss=f"{self.loss:.4f}", lr=f"{self.learning_rate:.2e}")

    def _read_summaries(self, but: int = 0) -> None:
        """Waits for all steps but the last few, and ends the run at one that was refused."""
        while len(self._unread) > but:
            summary = self._unread.pop(0)
            self.loss, self.gradient_norm, signal = summary.read()
            self.stop_signal = int(signal)
            if not (math.isfinite(self.loss) and math.isfinite(self.gradient_norm)):
                raise InputError(
                    f"step {summary.step}: loss {self.loss}, gradient norm {self.gradient_norm}; nothing was updated. "
                    f"{self._describe_rows(gather_object(torch.cat(summary.keys).tolist()))}"
                )

    def _rows_here(self) -> str:
        return self._describe_rows([key for keys in self._keys for key in keys.tolist()])

    def _describe_rows(self, seen: list[list[int]]) -> str:
        if not seen:  # before the first step
            return ""
        rows = ", ".join(self.data.train.where(row) for _, row in itertools.islice(seen, 16))
        return (
            f"The step held {len(seen)} rows: {rows}{', ...' if len(seen) > 16 else ''}. Try a lower --learning_rate, "
            "--max_grad_norm 1 or --mixed_precision no"
        )

    @property
    def finished(self) -> bool:
        return self.step >= self.length.total_steps

    def is_log_due(self) -> bool:
        return self.step == 1 or self.step % self.options.logging_steps == 0 or self.finished

    def is_due(self, epochs: float) -> bool:
        """Whether a stretch of so many epochs, or the run, ended with this step."""
        return self.length.completes(epochs, self.step)

    def log_training(self, **values: float) -> None:
        self._read_summaries()
        values = {
            "loss": self.loss, "gradient_norm": self.gradient_norm, "learning_rate": self.learning_rate,
            "clouds_per_second": self.log.clouds_per_second(self.step), **values,
        }  # fmt: skip
        self.log.write(self.step, {f"train/{name}": value for name, value in values.items()})

    def validation_batches(self, point_set: PointSet | None = None) -> Iterator[dict[str, Tensor]]:
        """This process' rows of the validation set, or of another. Judged is what would be saved, so the batch
        statistics of the first process hold for all."""
        if self.accelerator.num_processes > 1:
            for buffer in self.weights.buffers():
                broadcast(buffer)
        torch.manual_seed(self.options.seed)  # noisy codes are the same each time
        return validation_batches(
            self.data.validation if point_set is None else point_set, self.options.per_device_eval_batch_size,
            self.sampling, self.device, self.accelerator.process_index, self.accelerator.num_processes,
        )  # fmt: skip

    def sample_clouds(self, count: int) -> dict[str, Tensor]:
        """The first validation rows, for pictures."""
        rows = range(min(count, len(self.data.validation)))
        return next(validation_batches(self.data.validation.select(rows), count, self.sampling, self.device))

    def log_validation(
        self, group: str, metrics: dict[str, float], best_by: str | None = None, highest: bool = False
    ) -> None:
        """Logs figures of this step; keeps the weights if they are the best by the figure `best_by`, the lowest or
        the highest; of equal ones the first."""
        self._read_summaries()
        self.log.write(self.step, {f"{group}/{name}": value for name, value in metrics.items()})
        sign = -1 if highest else 1
        if best_by and self.step and sign * metrics[best_by] < sign * self.best.get(best_by, sign * math.inf):
            self.best = metrics | {"step": self.step}
            on_main_process(self.accelerator, lambda: save_weights(self.folder / "best", self.weights))

    def save_or_stop(self) -> None:
        """A checkpoint where one is due, and at the end; after a signal a checkpoint and no more steps."""
        every = self.options.checkpointing_steps
        due = self.is_due(1) if every == "epoch" else self.step % int(every) == 0
        if due or self.finished or self.stop_signal:
            self._read_summaries()
        if self.stop_signal:
            self.signals.handled()
        if due or self.finished or self.stop_signal:
            self.save()
        if self.stop_signal:
            self.log.close()
            raise Stopped(self.stop_signal)

    def save(self) -> None:
        state = {"step": self.step, "best": self.best, "run": self.description}
        extra = {} if self.average is None else {"ema": self.average}

        def write(path: Path) -> None:
            self._check_weights()
            checkpoints.write_training_state(path, self.weights, self.optimizer, state, extra)

        limit = self.options.checkpoints_total_limit
        on_main_process(
            self.accelerator,
            lambda: str(checkpoints.write_checkpoint(self.checkpoint_folder, self.step, write, limit)),
        )

    def _check_weights(self) -> None:
        """A finite update can overflow weights, and a finite loss their batch statistics."""
        for name, value in self.weights.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise FloatingPointError(
                    f"step {self.step - 1}: {name} is no longer finite; nothing was saved. {self._rows_here()}"
                )
