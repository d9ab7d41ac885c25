"""Teachers, targets and validation of pretraining, for `autoencode.py` and `distill.py`."""

import copy
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from act_training.data.batches import VALIDATION_EPOCH, read_batch
from act_training.data.point_sets import PointSet
from act_training.run.script import errors_of, on_main_process
from act_training.run.training_run import TrainingRun
from act_training.run.training_state import digest_of, write_text
from modeling_act import ACTStudentForPreTraining, ACTTeacher, ACTViewTeacher
from modeling_act.backbone_families import is_timm_name
from modeling_act.errors import InputError
from modeling_act.hub.load_model import load_model
from modeling_act.point_ops import PointGroups, k_nearest_neighbors

F_SCORE_DISTANCE = 0.05  # in units of the sphere's radius
STATISTICS_CLOUDS, STATISTICS_BATCH_SIZE = 1024, 64  # to standardize targets


def load_teacher(name: str, up_axis: str | None = None) -> ACTTeacher | ACTViewTeacher:
    """Load a frozen teacher in eval mode, whose checkpoint must be complete; an image Transformer becomes a teacher of
    views. Cameras must stand around the `up_axis` of the clouds, if it is known."""
    with errors_of("--teacher"):
        if not is_timm_name(name):
            kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type", "")
            if kind.startswith("act_"):
                teacher = load_model(name, "ACTTeacher", "ACTViewTeacher").requires_grad_(False)
                if getattr(teacher.config, "up_axis", up_axis) != up_axis and up_axis:
                    raise ValueError(f"{name} looks at clouds with {teacher.config.up_axis} up, not {up_axis}")
                return teacher
        return ACTViewTeacher.from_backbone(name, up_axis=up_axis or "y")


class SelfTeacher:
    """Teacher that is the moving average of the student itself, and sees all groups: its normalized tokens."""

    def __init__(self, student: ACTStudentForPreTraining):
        self.model = copy.deepcopy(student.student).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, average: dict[str, Tensor]) -> None:
        """Take the run's average of the student's weights."""
        for name, value in self.model.state_dict().items():
            value.copy_(average[f"student.{name}"])

    def __call__(self, groups: PointGroups) -> tuple[Tensor, Tensor]:
        tokens = self.model(groups=groups).last_hidden_state[:, -groups.centers.shape[1] :].float()
        features = functional.layer_norm(tokens, tokens.shape[-1:])
        return features, features.mean(1)


class TeacherTargets:
    """Features that a student learns, as keyword arguments of its `forward`: those of each teacher beside each other.

    Without a teacher there are none, and a student learns the points of the groups themselves. `cache` computes what
    fixed samplings allow once; the features of a `SelfTeacher` come last and are never cached.
    """

    def __init__(
        self,
        teachers: list[ACTTeacher | ACTViewTeacher],
        code_mode: str = "argmax",
        bf16: bool = False,
        of_backbone: bool = False,
    ):
        self.teachers, self.code_mode, self.bf16, self.of_backbone = teachers, code_mode, bf16, of_backbone
        self.self_teacher: SelfTeacher | None = None
        self.cached: dict[str, TargetCache] = {}  # by split
        self.learns_cloud = False

    @torch.no_grad()
    def __call__(
        self, groups: PointGroups, batch: dict[str, Tensor], number: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Features of `groups` (batch, groups, ...), of a batch that they are cut from: of validation rows, or, if
        targets are cached, of training rows in the samplings `number` (batch,)."""
        if not self.teachers and self.self_teacher is None:
            return {}
        parts = []
        if self.cached:
            cache = self.cached["validation" if number is None else "train"]
            parts.append(cache.read(batch["keys"][:, 1], number))
        elif self.teachers:
            parts.append(self._features(groups, batch))
        if self.self_teacher is not None:
            parts.append(self.self_teacher(groups))
        features, clouds = (torch.cat([part.float() for part in kind], dim=-1) for kind in zip(*parts, strict=True))
        return {"teacher_features": features} | ({"cloud_features": clouds} if self.learns_cloud else {})

    @torch.no_grad()
    def _features(self, groups: PointGroups, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Features of all teachers but the student itself: of groups, and of clouds."""
        parts = []
        with torch.autocast(groups.centers.device.type, torch.bfloat16, enabled=self.bf16):
            for teacher in self.teachers:
                if isinstance(teacher, ACTViewTeacher):
                    options = {"points": batch.get("teacher_points", batch["points"])}
                else:
                    options = {"code_mode": self.code_mode, "of_backbone": self.of_backbone}
                parts.append(teacher.get_teacher_features(groups=groups, return_cloud=True, **options))
        return tuple(torch.cat([part.float() for part in kind], dim=-1) for kind in zip(*parts, strict=True))

    def measure(self, run: TrainingRun, student: ACTStudentForPreTraining) -> None:
        """Measure the statistics of the student's normalization on the first training rows, if it has any."""
        if student.config.target_norm not in ("standardize", "phi_s"):
            return
        features = []
        batches = run.data.all_train_batches(STATISTICS_BATCH_SIZE)
        for batch in itertools.islice(batches, STATISTICS_CLOUDS // STATISTICS_BATCH_SIZE):
            first = torch.zeros_like(batch["keys"][:, 0])  # of the samplings
            features.append(self(student.group(batch["points"]), batch, first))
        student.target_norm.measure(torch.cat([part["teacher_features"].flatten(0, 1) for part in features]))
        if self.learns_cloud:
            student.cloud_norm.measure(torch.cat([part["cloud_features"] for part in features]))

    def cache(self, run: TrainingRun, student: ACTStudentForPreTraining, folder: Path) -> None:
        """Compute the features of all samplings of the training rows and of the validation rows, or continue what
        another run began."""
        data = run.data
        for split, point_set, samplings in (
            ("train", data.train, run.options.samplings),
            ("validation", data.validation, 1),
        ):
            self.cached[split] = self._fill(run, student, folder / split, point_set, samplings)

    def _fill(
        self, run: TrainingRun, student: ACTStudentForPreTraining, folder: Path, point_set: PointSet, samplings: int
    ) -> "TargetCache":
        config, processes = student.config, run.accelerator.num_processes
        teachers = [identify(teacher) for teacher in self.teachers]
        sizes = config.num_groups, config.group_size, config.skip_near_origin, samplings, self.of_backbone, self.bf16
        cache = TargetCache(folder, [run.data.fingerprint, len(point_set), asdict(run.data.sampling), sizes, teachers])
        first = self._compute(run, student, point_set, range(1), samplings)
        on_main_process(run.accelerator, lambda: cache.create(first, len(point_set)))
        cache.open()
        starts = range(
            STATISTICS_BATCH_SIZE * run.accelerator.process_index, len(point_set), STATISTICS_BATCH_SIZE * processes
        )
        for start in tqdm(starts, desc=f"teacher, {folder.name}", unit="batch", leave=False):
            rows = range(start, min(start + STATISTICS_BATCH_SIZE, len(point_set)))
            if not cache.done[rows.start : rows.stop].all():
                cache.write(rows, self._compute(run, student, point_set, rows, samplings))
        run.accelerator.wait_for_everyone()
        return cache

    def _compute(
        self, run: TrainingRun, student: ACTStudentForPreTraining, point_set: PointSet, rows: range, samplings: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Features of each sampling of some rows. A picture serves all samplings of its cloud."""
        batch = read_batch(point_set, [(VALIDATION_EPOCH, row) for row in rows])
        batch = {name: values.to(run.device) for name, values in batch.items()}
        numbers = [torch.full_like(batch["keys"][:, 0], number) for number in range(samplings)]
        batches = [run.data.sample_fixed(batch, number) for number in numbers]
        groups = [student.group(batch["points"]) for batch in batches]
        if not all(isinstance(teacher, ACTViewTeacher) for teacher in self.teachers):
            return [self._features(part, batch) for part, batch in zip(groups, batches, strict=True)]
        moved = [in_frame(part, batch) for part, batch in zip(groups, batches, strict=True)]
        points = batches[0]["teacher_points"] * batches[0]["radius"] + batches[0]["center"]
        features, cloud = self._features(PointGroups(*map(torch.hstack, zip(*moved, strict=True))), {"points": points})
        return [(part, cloud) for part in features.split(student.config.num_groups, dim=1)]


def identify(teacher: PreTrainedModel) -> str:
    """Identify a teacher by its weights and its configuration."""
    fields = {name: value for name, value in teacher.config.to_diff_dict().items() if name != "transformers_version"}
    return f"{digest_of(teacher)} {json.dumps(fields, sort_keys=True, default=str)}"


def in_frame(groups: PointGroups, batch: dict[str, Tensor]) -> PointGroups:
    """Return groups of sampled points to where they lie in the cloud as it is stored."""
    center, radius = batch["center"], batch["radius"]
    return PointGroups(groups.centers * radius + center, groups.neighborhoods * radius.unsqueeze(3))


class TargetCache:
    """Teacher features of training rows on disk, read without loading them all: features (rows, samplings, groups,
    feature_dim) and clouds (rows, samplings, cloud_dim) in half precision, and which rows are done."""

    def __init__(self, folder: Path, description: list):
        self.folder, self.description = folder, json.dumps(description)

    def create(self, first: list[tuple[Tensor, Tensor]], num_rows: int) -> None:
        """Create the files, with room for rows like the `first`, unless they are there already."""
        marker = self.folder / "cache.json"
        if marker.is_file():
            if marker.read_text() != self.description:
                raise InputError(
                    f"{self.folder} holds features of other data or teachers; name another --cache_folder"
                )
            return
        features, clouds = (torch.stack(values, dim=1)[0].shape for values in zip(*first, strict=True))
        draft = self.folder.with_name(f".writing-{self.folder.name}-{os.getpid()}")
        draft.mkdir(parents=True)
        for name, shape, dtype in (("features", features, "f2"), ("clouds", clouds, "f2"), ("done", (), "?")):
            np.lib.format.open_memmap(draft / f"{name}.npy", "w+", dtype, (num_rows, *shape))
        write_text(draft / "cache.json", self.description)
        try:
            draft.rename(self.folder)
        except OSError:  # another run was faster
            shutil.rmtree(draft)
            self.create(first, num_rows)

    def open(self) -> None:
        self.features, self.clouds, self.done = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r+") for name in ("features", "clouds", "done")
        )

    def write(self, rows: range, samplings: list[tuple[Tensor, Tensor]]) -> None:
        for array, values in zip((self.features, self.clouds), zip(*samplings, strict=True), strict=True):
            values = torch.stack(values, dim=1).half()
            if not values.isfinite().all():
                raise InputError(f"features of rows {rows.start} to {rows.stop - 1} are not finite in half precision")
            array[rows.start : rows.stop] = values.cpu().numpy()
            array.flush()
        self.done[rows.start : rows.stop] = True
        self.done.flush()

    def read(self, rows: Tensor, samplings: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (batch, groups, feature_dim) and clouds (batch, cloud_dim) of rows (batch,), on their device."""
        places = rows.cpu().numpy(), 0 if samplings is None else samplings.cpu().numpy()
        return tuple(torch.from_numpy(array[places]).to(rows.device) for array in (self.features, self.clouds))


class Means:
    """Means over rows and processes, in double precision; each process adds them in the same order."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, count: int, **means: Tensor) -> None:
        """Add means over `count` rows."""
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0) + value.double().cpu() * count
        self.count += count

    def compute(self) -> dict[str, Tensor]:
        """Return the means over all rows of all processes."""
        parts = gather_object([(self.sums, self.count)])  # a process without a row knows no names
        count = sum(part for _, part in parts)
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        return {name: sum(sums[name] for sums, _ in parts if name in sums) / count for name in names}


@torch.no_grad()
def evaluate_autoencoder(teacher: ACTTeacher, batches: Iterator, accelerator: Accelerator) -> dict[str, float]:
    """Measure reconstruction from arg-max codes, of groups and of whole clouds, and how many codes are in use."""
    training = teacher.training
    teacher.eval()
    means, histogram = Means(), torch.zeros(teacher.config.codebook_size, dtype=torch.float64)
    for batch in batches:
        points = batch["points"]
        output = teacher(points)
        reconstruction = output.reconstruction.float()
        to_cloud = k_nearest_neighbors(reconstruction, points, 1)[0].squeeze(2)
        from_cloud = k_nearest_neighbors(points, reconstruction, 1)[0].squeeze(2)
        precision, recall = ((square < F_SCORE_DISTANCE**2).double().mean(1) for square in (to_cloud, from_cloud))
        means.add(
            len(points),
            reconstruction_loss=output.reconstruction_loss,
            kl_loss=output.kl_loss,
            chamfer_l1=(to_cloud.sqrt().mean() + from_cloud.sqrt().mean()) / 2,
            chamfer_l2=to_cloud.mean() + from_cloud.mean(),
            f_score=(2 * precision * recall / (precision + recall).clamp_min(1e-12)).mean(),
            logit_scale=output.logits.float().std(-1).mean(),
        )
        histogram += torch.bincount(output.code_indices.flatten().cpu(), minlength=len(histogram))
    teacher.train(training)
    histogram = accelerator.reduce(histogram.to(accelerator.device), "sum").cpu()
    return {name: value.item() for name, value in means.compute().items()} | code_use(histogram)


def code_use(histogram: Tensor) -> dict[str, float]:
    """Count the codes in use, and how many equally used codes would be as diverse (perplexity)."""
    share = histogram / histogram.sum()
    perplexity = torch.special.entr(share).sum().exp().item()
    return {"codes_used": int((histogram > 0).sum()), "perplexity": perplexity}


def is_collapsed(metrics: dict[str, float], codebook_size: int) -> bool:
    """Return True if arg-max codes distinguish too little to teach more than positions."""
    return metrics["perplexity"] < max(4.0, math.sqrt(codebook_size) / 2)


@torch.no_grad()
def evaluate_distillation(
    student: ACTStudentForPreTraining, targets: Callable, make_mask: Callable, batches: Iterator
) -> dict[str, float]:
    """Measure the loss under masks that never change, and of features the loss of the best constant prediction, which
    shows how much there is to learn.

    `targets(groups, batch)` returns what the student learns, `make_mask(keys, groups)` the mask (batch, groups).
    """
    training = student.training
    student.eval()
    means = Means()
    for batch in batches:
        groups = student.group(batch["points"])
        features, mask = targets(groups, batch), make_mask(batch["keys"], groups)
        output = student(groups=groups, bool_masked_pos=mask, **features)
        names = ("loss", "group_loss", "cloud_loss") if "cloud_features" in features else ("loss",)
        values = {name: output[name] for name in names}
        if features:
            masked = student.target_norm(features["teacher_features"][mask]).double()  # (masked groups, teacher_dim)
            values |= {"features": masked.mean(0), "squares": masked.square().mean(0)}
            values["directions"] = functional.normalize(masked, dim=-1).mean(0)
        means.add(len(mask), **values)
    student.train(training)
    values = means.compute()
    metrics = {name: values[name].item() for name in ("loss", "group_loss", "cloud_loss") if name in values}
    if "features" in values and student.config.loss_type == "cosine":
        metrics["constant_loss"] = 1 - values["directions"].norm().item()
    elif "features" in values and student.config.loss_type == "l2":
        metrics["constant_loss"] = (values["squares"] - values["features"].square()).mean().item()
    return metrics
