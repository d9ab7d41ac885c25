"""Deterministic validation of both stages over all processes, every row exactly once."""

import math
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional

from modeling_act import ACTStudentForPreTraining, ACTTeacher
from modeling_act.point_ops import PointGroups, chamfer_l2, k_nearest_neighbors

F_SCORE_DISTANCE = 0.05  # in units of the sphere's radius


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
        rebuilt = output.reconstruction.float()
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


def is_collapsed(metrics: dict[str, float], codebook_size: int) -> bool:
    """Whether arg-max codes tell too little apart to teach more than positions."""
    return metrics["perplexity"] < max(4.0, math.sqrt(codebook_size) / 2)
