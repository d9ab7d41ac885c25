"""Classifiers for `finetune.py` and `few_shot.py`: which weights train, cached features, predictions and metrics."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from act_training.data.batches import validation_batches
from act_training.data.point_sets import PointSet
from act_training.measure.metrics import classification_metrics
from act_training.run.training_run import TrainingRun
from act_training.tasks.transfer import TransferArguments, make_model, set_training
from modeling_act import ACTStudentForPointCloudClassification
from modeling_act.errors import InputError


@dataclass
class ClassificationArguments(TransferArguments):
    protocol: Literal["full", "linear", "mlp3", "bitfit"] = field(
        default="full",
        metadata={"help": "full: all weights; bitfit: biases and head; linear, mlp3: a head on a frozen student"},
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "share of a label that is spread over all classes"})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"--label_smoothing must lie between 0 and 1, got {self.label_smoothing}")
        if self.caches_features:
            self.samplings = 1

    @property
    def is_probe(self) -> bool:
        return self.protocol in ("linear", "mlp3")

    @property
    def caches_features(self) -> bool:
        return self.is_probe and not self.augmentation


def make_classifier(
    options: ClassificationArguments, fields: dict, names: list[str]
) -> ACTStudentForPointCloudClassification:
    """Make a head on a student, where only the weights that the protocol trains require gradients."""
    head = "linear" if options.protocol == "linear" else "mlp3"
    model = make_model(ACTStudentForPointCloudClassification, options, fields, names, head=head)
    if options.is_probe:
        model.student.requires_grad_(False)
    elif options.protocol == "bitfit":
        for name, parameter in model.student.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    return model


class CachedFeatures:
    """Features of a frozen student, computed once for each row of each point set."""

    def __init__(self, run: TrainingRun, model: ACTStudentForPointCloudClassification):
        self.run, self.student, self._features = run, model.student, {}

    @torch.no_grad()
    def __call__(self, point_set: PointSet) -> Tensor:
        """Features (rows, width) of a point set."""
        if id(point_set) not in self._features:
            run, size = self.run, self.run.options.per_device_eval_batch_size
            batches = validation_batches(point_set, size, run.data.sampling, run.device)
            batches = tqdm(batches, desc="features", total=-(-len(point_set) // size), unit="batch", leave=False)
            with run.autocast():
                features = [self.student(batch["points"]).pooler_output.float() for batch in batches]
            self._features[id(point_set)] = torch.cat(features)
        return self._features[id(point_set)]


def prepare_for_protocol(run: TrainingRun, model: ACTStudentForPointCloudClassification) -> CachedFeatures | None:
    """Prepare the model for its first step; return the features of a probe, where they never change."""
    run.calibrate_batch_norm(lambda batch: model(batch["points"]))
    set_training(model)
    return CachedFeatures(run, model) if run.options.caches_features else None


def model_inputs(run: TrainingRun, batch: dict[str, Tensor], features: CachedFeatures | None) -> dict[str, Tensor]:
    """Points and labels of a batch of training rows, or their cached features and labels."""
    if features is None:
        return {"points": batch["points"], "labels": batch["label"]}
    return {"features": features(run.data.train)[batch["keys"][:, 1]], "labels": batch["label"]}


@torch.no_grad()
def predict(run: TrainingRun, model: nn.Module, point_set: PointSet, features: CachedFeatures | None) -> Tensor:
    """Predict logits (rows, num_labels) of every row, in every process."""
    model.eval()
    if features is not None:
        logits = torch.cat([model(features=part).logits for part in features(point_set).split(4096)]).cpu()
    else:
        parts = []
        for batch in run.validation_batches(point_set):
            with run.autocast():
                parts.append((batch["keys"][:, 1].cpu(), model(batch["points"]).logits.float().cpu()))
        parts = gather_object(parts)
        logits = torch.cat([logits for _, logits in parts])[torch.cat([rows for rows, _ in parts]).argsort()]
    set_training(model)
    return logits


def measure(logits: Tensor, labels: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Metrics and predictions (rows,) of logits (rows, num_labels)."""
    predicted = logits.argmax(1).numpy()
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    return {"loss": loss, **classification_metrics(labels, predicted)}, predicted
