"""Deterministic validation of both stages over all processes, every row exactly once, and the probe people watch."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional

from act_training.batches import read_batch
from act_training.errors import InputError
from act_training.keyed_random import Sampling, sample_points
from modeling_act import ACTStudentForPreTraining, ACTTeacher
from modeling_act.point_ops import PointGroups, chamfer_l2, k_nearest_neighbors

F_SCORE_DISTANCE = 0.05  # in units of the sphere's radius
VALIDATION_EPOCH = -1  # keys subsets and masks of validation, so that they never change
PENALTIES = (0.003, 0.03, 0.3, 3.0, 30.0)  # inverse strengths tried for the probe


def validation_batches(
    point_set, batch_size: int, sampling: Sampling, device: torch.device, rank: int = 0, world_size: int = 1
) -> Iterator[dict[str, Tensor]]:
    """The rows of one process, each row of the set in one process; always the same points."""
    rows = range(rank, len(point_set), world_size)
    for start in range(0, len(rows), batch_size):
        keys = [(VALIDATION_EPOCH, row) for row in rows[start : start + batch_size]]
        batch = {name: value.to(device) for name, value in read_batch(point_set, keys).items()}
        yield sample_points(batch, sampling)


class Means:
    """Means over rows and processes, in double precision; each process adds them in the same order."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, count: int, **means: Tensor) -> None:
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0) + value.double().cpu() * count
        self.count += count

    def compute(self) -> dict[str, Tensor]:
        parts = gather_object([(self.sums, self.count)])  # a process without a row knows no names
        count = sum(part for _, part in parts)
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        return {name: sum(sums[name] for sums, _ in parts if name in sums) / count for name in names}


@torch.no_grad()
def evaluate_autoencoder(teacher: ACTTeacher, batches: Iterator, accelerator: Accelerator) -> dict[str, float]:
    """Reconstruction from arg-max codes, of groups and of whole clouds, and how many codes are in use."""
    training = teacher.training
    teacher.eval()
    means, histogram = Means(), torch.zeros(teacher.config.codebook_size, dtype=torch.float64)
    for batch in batches:
        points = batch["points"]
        output = teacher(points)
        rebuilt = (output.fine_points + output.centers.unsqueeze(2)).flatten(1, 2).float()
        there = k_nearest_neighbors(rebuilt, points, 1)[0].squeeze(2)
        back = k_nearest_neighbors(points, rebuilt, 1)[0].squeeze(2)
        precision, recall = ((d < F_SCORE_DISTANCE**2).double().mean(1) for d in (there, back))
        means.add(
            len(points),
            reconstruction_loss=output.reconstruction_loss,
            kl_loss=output.kl_loss,
            chamfer_l1=(there.sqrt().mean() + back.sqrt().mean()) / 2,
            chamfer_l2=there.mean() + back.mean(),
            f_score=(2 * precision * recall / (precision + recall).clamp_min(1e-12)).mean(),
            logit_scale=output.logits.float().std(-1).mean(),
        )
        histogram += torch.bincount(output.code_indices.flatten().cpu(), minlength=len(histogram))
    teacher.train(training)
    histogram = accelerator.reduce(histogram.to(accelerator.device), "sum").cpu()
    return {name: value.item() for name, value in means.compute().items()} | code_use(histogram)


def code_use(histogram: Tensor) -> dict[str, float]:
    """How many codes are in use, and how many equally used ones would be as diverse."""
    share = histogram / histogram.sum()
    perplexity = torch.special.entr(share).sum().exp().item()
    return {"codes_used": int((histogram > 0).sum()), "perplexity": perplexity}


@torch.no_grad()
def evaluate_distillation(
    student: ACTStudentForPreTraining, target: Callable, hide: Callable, batches: Iterator, seed: int
) -> dict[str, float]:
    """The loss with masks that never change, and for features the loss of the best constant prediction, which shows
    how much there was to learn."""
    training = student.training
    student.eval()
    means = Means()
    for batch in batches:
        groups = student.group(batch["points"])
        features, mask = target(groups), hide(student, batch["keys"], groups, seed)
        found = {"loss": pretraining_loss(student, groups, features, mask)}
        if features is not None:
            hidden = features[mask].double()  # (all hidden groups, teacher_dim)
            found |= {"features": hidden.mean(0), "squares": hidden.square().mean(0)}
            found["directions"] = functional.normalize(hidden, dim=-1).mean(0)
        means.add(len(mask), **found)
    student.train(training)
    found = means.compute()
    metrics = {"loss": found["loss"].item()}
    if "features" in found and student.config.loss_type == "cosine":
        metrics["constant_loss"] = 1 - found["directions"].norm().item()
    elif "features" in found and student.config.loss_type == "l2":
        metrics["constant_loss"] = (found["squares"] - found["features"].square()).mean().item()
    return metrics


def pretraining_loss(
    student: nn.Module, groups: PointGroups, features: Tensor | None, mask: Tensor, num_masked: int | None = None
) -> Tensor:
    """How far the student is from the features of hidden groups, or without features from their points."""
    inputs = {"groups": groups, "bool_masked_pos": mask, "num_masked": num_masked}
    if features is not None:
        return student(teacher_features=features, **inputs).loss
    predicted = student(**inputs).predicted_features.float()
    hidden = groups.neighborhoods[mask]  # (all hidden groups, group_size, 3)
    return chamfer_l2(predicted.flatten(0, 1).unflatten(1, (-1, 3)), hidden)


# The probe -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def embed(student: nn.Module, point_set, sampling: Sampling, batch_size: int) -> np.ndarray:
    """Frozen features of every row, (rows, width): [class token, maximum over the groups]."""
    training, device = student.training, next(student.parameters()).device
    student.eval()
    batches = validation_batches(point_set, batch_size, sampling, device)
    features = [student(batch["points"]).pooler_output.float().cpu() for batch in batches]
    student.train(training)
    return torch.cat(features).numpy()


def split_rows(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows kept and held out, the latter about `share` of each class, at least one of each class of two or more."""
    random, held_out = np.random.default_rng([seed, 7]), []
    for label in np.unique(labels):
        rows = random.permutation((labels == label).nonzero()[0])
        held_out.append(rows[: max(1, round(share * len(rows)))] if len(rows) > 1 else rows[:0])
    held_out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def probe_accuracy(
    features: np.ndarray, labels: np.ndarray, train: np.ndarray, held_out: np.ndarray, seed: int
) -> dict:
    """Logistic regression on standardised frozen features: the penalty is chosen on a part of `train`, then accuracy
    on `held_out`, which nothing was fitted to."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit(rows: np.ndarray, penalty: float):
        return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300, tol=1e-3)).fit(
            features[rows], labels[rows]
        )

    if not np.isfinite(features).all():
        raise InputError("the student's features are not finite")
    fitted, choosing = (train[rows] for rows in split_rows(labels[train], 0.2, seed))
    scores = [fit(fitted, penalty).score(features[choosing], labels[choosing]) for penalty in PENALTIES]
    best = PENALTIES[int(np.argmax(scores))]
    return {"accuracy": fit(train, best).score(features[held_out], labels[held_out]), "penalty": best}


def is_collapsed(metrics: dict[str, float], codebook_size: int) -> bool:
    """Whether arg-max codes tell too little apart to teach more than positions."""
    return metrics["perplexity"] < max(4.0, math.sqrt(codebook_size) / 2)
