"""Teachers, targets and validation of pretraining, for `autoencode.py` and `distill.py`."""

import math
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from act_training.run.script import errors_of
from act_training.run.training_run import TrainingRun
from modeling_act import ACTStudentConfig, ACTStudentForPreTraining, ACTTeacher
from modeling_act.hub.load_model import load_model
from modeling_act.point_ops import PointGroups, k_nearest_neighbors

F_SCORE_DISTANCE = 0.05  # in units of the sphere's radius
STATISTICS_CLOUDS, STATISTICS_BATCH_SIZE = 1024, 64  # to standardize targets


def load_teacher(name: str) -> ACTTeacher:
    """Load a frozen teacher in eval mode, whose checkpoint must be complete."""
    with errors_of("--teacher"):
        return load_model(name, "ACTTeacher").requires_grad_(False)


class TeacherTargets:
    """Teacher features of groups, standardized if asked, and computed once per training row with `cache`.

    Without a teacher there are none, and a student learns the points of the groups themselves.
    """

    def __init__(self, teacher: ACTTeacher | None, code_mode: str, bf16: bool, of_backbone: bool = False):
        self.teacher, self.code_mode, self.bf16, self.of_backbone = teacher, code_mode, bf16, of_backbone
        self.mean, self.std, self.cached = 0.0, 1.0, None

    def standardize(self, run: TrainingRun, config: ACTStudentConfig) -> None:
        """Measure mean and standard deviation of each dimension on fixed clouds; store them in `config`."""
        clouds = run.data.sample_clouds(STATISTICS_CLOUDS)["points"]
        features = [self(self.teacher.group(points)).flatten(0, 1) for points in clouds.split(STATISTICS_BATCH_SIZE)]
        features = torch.cat(features)
        self.mean, self.std = features.mean(0), features.std(0).clamp_min(1e-6)
        config.target_mean, config.target_std = self.mean.tolist(), self.std.tolist()

    def cache(self, run: TrainingRun) -> None:
        """Compute the features of all training rows, whose points must not change."""
        size = STATISTICS_BATCH_SIZE
        batches = run.data.all_train_batches(size)
        batches = tqdm(batches, desc="teacher", total=-(-len(run.data.train) // size), unit="batch", leave=False)
        self.cached = torch.cat([self(self.teacher.group(batch["points"])) for batch in batches])

    @torch.no_grad()
    def __call__(self, groups: PointGroups, keys: Tensor | None = None) -> Tensor | None:
        """Features (batch, groups, teacher_dim), or None without a teacher; `keys` (batch, 2) of (epoch, row) are
        those of training rows, which may be cached."""
        if self.teacher is None:
            return None
        if self.cached is not None and keys is not None:
            return self.cached[keys[:, 1]]
        with torch.autocast(groups.centers.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.teacher.get_teacher_features(
                groups=groups, code_mode=self.code_mode, of_backbone=self.of_backbone
            )
        return (features.float() - self.mean) / self.std


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

    `targets(groups)` returns teacher features or None, `make_mask(keys, groups)` the mask (batch, groups).
    """
    training = student.training
    student.eval()
    means = Means()
    for batch in batches:
        groups = student.group(batch["points"])
        features, mask = targets(groups), make_mask(batch["keys"], groups)
        values = {"loss": student(groups=groups, teacher_features=features, bool_masked_pos=mask).loss}
        if features is not None:
            masked = features[mask].double()  # (all masked groups, teacher_dim)
            values |= {"features": masked.mean(0), "squares": masked.square().mean(0)}
            values["directions"] = functional.normalize(masked, dim=-1).mean(0)
        means.add(len(mask), **values)
    student.train(training)
    values = means.compute()
    metrics = {"loss": values["loss"].item()}
    if "features" in values and student.config.loss_type == "cosine":
        metrics["constant_loss"] = 1 - values["directions"].norm().item()
    elif "features" in values and student.config.loss_type == "l2":
        metrics["constant_loss"] = (values["squares"] - values["features"].square()).mean().item()
    return metrics
