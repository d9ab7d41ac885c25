"""What a student learns: normalized features of one teacher or several, and the losses."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm, mse_loss, smooth_l1_loss
from transformers import initialization as init

from .point_ops import chamfer_l2


class ACTTargetNorm(nn.Module):
    """Normalization of the features (..., sum of `dims`) of teachers whose widths are `dims`, each by itself.

    "standardize" shifts and scales each dimension to mean 0 and deviation 1. "phi_s" (RADIO's PHI-S) rotates a
    teacher's features so that all dimensions have the same variance, and scales them by one number: directions keep
    their share. Both are measured once. "layer_norm" normalizes each feature vector, without weights.
    """

    def __init__(self, kind: str, dims: list[int]):
        super().__init__()
        self.kind, self.dims = kind, dims
        if kind in ("standardize", "phi_s"):
            self.register_buffer("mean", torch.zeros(sum(dims)))
            self.register_buffer("std", torch.ones(sum(dims)))
        if kind == "phi_s":
            self.register_buffer("rotation", torch.eye(sum(dims)))

    @torch.no_grad()
    def reset(self) -> None:
        """Initialize buffers that no checkpoint holds."""
        for name, buffer in self.named_buffers():
            init.copy_(buffer, {"mean": torch.zeros, "std": torch.ones, "rotation": torch.eye}[name](len(buffer)))

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Measure the statistics of features (rows, sum of `dims`)."""
        if self.kind not in ("standardize", "phi_s"):
            return
        features = features.float()
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp_min(1e-6))
        if self.kind == "phi_s":
            parts = [equalizing_rotation(torch.cov(part.double().t())) for part in features.split(self.dims, dim=1)]
            self.rotation.copy_(torch.block_diag(*parts))
            variances = self.std.square().split(self.dims)
            self.std.copy_(torch.cat([part.mean().sqrt().expand_as(part) for part in variances]))

    def forward(self, features: Tensor) -> Tensor:
        if self.kind == "layer_norm":
            return torch.cat([layer_norm(part, part.shape[-1:]) for part in features.split(self.dims, dim=-1)], dim=-1)
        if self.kind == "none":
            return features
        features = (features - self.mean) / self.std
        return features @ self.rotation.t() if self.kind == "phi_s" else features

    def invert(self, features: Tensor) -> Tensor:
        """Return normalized features to the teacher's scale; a layer norm has no way back and stays."""
        if self.kind in ("none", "layer_norm"):
            return features
        return (features @ self.rotation if self.kind == "phi_s" else features) * self.std + self.mean


def equalizing_rotation(covariance: Tensor) -> Tensor:
    """Rotation (dim, dim) after which all dimensions have the same variance.

    Each step rotates two dimensions, one above and one below the mean variance, so that the first gets the mean.
    """
    dim = len(covariance)
    rotation, matrix = torch.eye(dim).to(covariance), covariance / covariance.trace().clamp_min(1e-12) * dim
    for _ in range(dim - 1):
        variances = matrix.diagonal()
        high, low = variances.argmax(), variances.argmin()
        above, below, shared = variances[high] - 1, variances[low] - 1, matrix[high, low]
        if above < 1e-9:
            break
        # The tangent t of the angle that makes (high + 2 t shared + t^2 low) / (1 + t^2) one.
        tangent = (-shared + (shared.square() - above * below).sqrt()) / below
        cosine = 1 / (1 + tangent.square()).sqrt()
        sine = tangent * cosine
        turn = torch.stack([torch.stack([cosine, sine]), torch.stack([-sine, cosine])])
        pair = torch.stack([high, low])
        rotation[pair] = turn @ rotation[pair]
        matrix[pair] = turn @ matrix[pair]
        matrix[:, pair] = matrix[:, pair] @ turn.t()
    return rotation


def distillation_loss(predicted: Tensor, target: Tensor, loss_type: str = "cosine") -> Tensor:
    """Compute the mean distance of features (..., teacher_dim)."""
    predicted, target = at_least_float32(predicted), at_least_float32(target.detach())
    if loss_type == "cosine":
        return 1 - cosine_similarity(predicted, target, dim=-1).mean()
    return (mse_loss if loss_type == "l2" else smooth_l1_loss)(predicted, target)


def teachers_loss(
    predicted: Tensor, target: Tensor, dims: list[int], weights: list[float] | None, loss_type: str
) -> Tensor:
    """Sum the weighted losses of several teachers, whose features of widths `dims` lie beside each other."""
    pairs = zip(predicted.split(dims, dim=-1), target.split(dims, dim=-1), weights or [1.0] * len(dims), strict=True)
    return sum(weight * distillation_loss(ours, theirs, loss_type) for ours, theirs, weight in pairs)


def coordinate_loss(predicted: Tensor, neighborhoods: Tensor) -> Tensor:
    """Compute Point-MAE's loss, the Chamfer-L2 distance of predictions (batch, masked groups, 3 * group_size) and the
    points of the masked groups (all masked groups, group_size, 3)."""
    return chamfer_l2(at_least_float32(predicted).flatten(0, 1).unflatten(1, (-1, 3)), neighborhoods)


def at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
