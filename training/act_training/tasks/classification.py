"""Classifiers by one of the protocols, for the scripts that train them: which weights train, what is predicted."""

from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from act_training.data.batches import validation_batches
from act_training.measure.metrics import classification_metrics, confusion_matrix
from act_training.run.arguments import check_choice
from act_training.run.training_run import TrainingRun
from act_training.tasks.transfer import TransferArguments, make_model, set_training
from modeling_act import ACTStudentForPointCloudClassification
from modeling_act.errors import InputError

PROTOCOLS = ("full", "linear", "mlp3", "bitfit")


@dataclass
class ClassificationArguments(TransferArguments):
    protocol: str = field(
        default="full",
        metadata={
            "help": "full: all weights, and an MLP-3 head; bitfit: only biases and the head; linear, mlp3: the head "
            "alone, on a frozen student whose features are computed once where there is no augmentation"
        },
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "share of a label that is spread over all classes"})

    def check(self) -> None:
        super().check()
        check_choice("--protocol", self.protocol, PROTOCOLS)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"--label_smoothing must lie between 0 and 1, got {self.label_smoothing}")
        if self.caches_features:
            self.fixed_points = True

    @property
    def is_probe(self) -> bool:
        return self.protocol in ("linear", "mlp3")

    @property
    def caches_features(self) -> bool:
        return self.is_probe and not self.augmentation


def make_classifier(
    options: ClassificationArguments, fields: dict, names: list[str]
) -> ACTStudentForPointCloudClassification:
    """A head on a student, of which only the weights that the protocol trains need gradients."""
    head = "linear" if options.protocol == "linear" else "mlp3"
    model = make_model(ACTStudentForPointCloudClassification, options, fields, names, head=head)
    if options.is_probe:
        model.student.requires_grad_(False)
    elif options.protocol == "bitfit":
        for name, parameter in model.student.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    return model


class Features:
    """What a frozen student makes of each row, computed once; of `train` and of any other set that is asked for."""

    def __init__(self, run: TrainingRun, model: ACTStudentForPointCloudClassification):
        self.run, self.student, self.known = run, model.student, {}

    @torch.no_grad()
    def of(self, point_set) -> Tensor:
        if id(point_set) not in self.known:
            size, run = self.run.options.per_device_eval_batch_size, self.run
            batches = validation_batches(point_set, size, run.sampling, run.device)
            batches = tqdm(batches, desc="features", total=-(-len(point_set) // size), unit="batch", leave=False)
            with run.autocast():
                found = [self.student(batch["points"]).pooler_output.float() for batch in batches]
            self.known[id(point_set)] = torch.cat(found)
        return self.known[id(point_set)]


def begin(run: TrainingRun, model: ACTStudentForPointCloudClassification) -> Features | None:
    """Readies the model for its first step; the features of a probe, where they never change."""
    run.settle_batch_norm(lambda batch: model(batch["points"]))
    set_training(model)
    return Features(run, model) if run.options.caches_features else None


def classification_loss(
    run: TrainingRun, batch: dict[str, Tensor], features: Features | None
) -> tuple[Tensor, Tensor]:
    """Loss and logits of a batch of training rows, from their points or from what is known of them."""
    inputs = {"points": batch["points"]}
    if features is not None:
        inputs = {"features": features.of(run.data.train)[batch["keys"][:, 1]]}
    with run.autocast():
        logits = run.model(**inputs).logits.float()
    smoothing = run.options.label_smoothing
    return nn.functional.cross_entropy(logits, batch["label"], label_smoothing=smoothing), logits


@torch.no_grad()
def predict(
    run: TrainingRun, model: ACTStudentForPointCloudClassification, point_set, features: Features | None
) -> Tensor:
    """Logits (rows, num_labels) of every row, in every process."""
    model.eval()
    if features is not None:
        logits = torch.cat([model(features=part).logits for part in features.of(point_set).split(4096)]).cpu()
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
    """Figures and the confusion matrix of logits (rows, num_labels)."""
    confusion = confusion_matrix(labels, logits.argmax(1).numpy(), logits.shape[1])
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    return {"loss": loss, **classification_metrics(confusion)}, confusion
