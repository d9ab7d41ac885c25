"""What a frozen student knows: features of any layer and pooling, and classifiers that are fitted to them.

Features are standardised by the fitted rows alone, and what a classifier leaves open is chosen on a part of these.
Used by the probe during pretraining, compare.py and evaluate.py.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from act_training.data.batches import validation_batches
from act_training.data.keyed_random import Sampling
from act_training.data.splits import split_rows
from modeling_act import ACTStudent
from modeling_act.errors import InputError

POOLINGS = ("cls", "max", "mean")


@torch.no_grad()
def embed(
    student: ACTStudent,
    point_set,
    sampling: Sampling,
    batch_size: int,
    layer: int | None = None,
    pooling: str | None = None,
) -> np.ndarray:
    """Frozen features of every row, (rows, width): the output of a layer (1-based), or by default of the last one
    after the final norm.

    `pooling` joins any of cls (the class token), max and mean (over the groups) with "_". By default it is that of
    `pooler_output`: cls_max, or without a class token mean_max.
    """
    pooling = check_features(student, layer, pooling)
    training, device = student.training, next(student.parameters()).device
    student.eval()
    features = []
    for batch in validation_batches(point_set, batch_size, sampling, device):
        output = student(batch["points"], read_layers=layer and [layer])
        tokens = output.layer_states[0] if layer else output.last_hidden_state
        features.append(pool(tokens, student.cls_token is not None, pooling).float().cpu())
    student.train(training)
    return torch.cat(features).numpy()


def check_features(student: ACTStudent, layer: int | None, pooling: str | None) -> str:
    """The pooling that is meant, if the student has such features."""
    if layer is not None and not 1 <= layer <= len(student.layers):
        raise InputError(f"`layer` must lie between 1 and {len(student.layers)}, got {layer}")
    if pooling is None:
        return "mean_max" if student.cls_token is None else "cls_max"
    parts = pooling.split("_")
    if not set(parts) <= set(POOLINGS):
        raise InputError(f"`pooling` must join any of {', '.join(POOLINGS)} with _, such as cls_max, got {pooling!r}")
    if "cls" in parts and student.cls_token is None:
        raise InputError(f"`pooling` {pooling} needs a class token, and this student has none; take mean_max")
    return pooling


def pool(tokens: Tensor, has_cls_token: bool, pooling: str) -> Tensor:
    """Tokens (batch, tokens, hidden_size), the class token first where there is one -> (batch, width)."""
    groups = tokens[:, 1:] if has_cls_token else tokens
    pooled = {"cls": tokens[:, 0], "max": groups.amax(1), "mean": groups.mean(1)}
    return torch.cat([pooled[part] for part in pooling.split("_")], dim=-1)


# Classifiers ---------------------------------------------------------------------------------------------------------


def linear_probe(penalty: float):
    """Multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=penalty, max_iter=300, tol=1e-3)


def linear_svm(penalty: float):
    """One linear support vector machine a class, against the rest."""
    from sklearn.svm import LinearSVC

    return LinearSVC(C=penalty, dual="auto", max_iter=10_000, random_state=0)


def nearest_neighbors(count: int):
    """The most frequent class among the nearest by cosine."""
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(count, metric="cosine")


# Each with what it is tried with: inverse strengths of its penalty, or numbers of neighbors.
CLASSIFIERS = {
    "probe": (linear_probe, (0.003, 0.03, 0.3, 3.0, 30.0)),
    "svm": (linear_svm, (0.001, 0.01, 0.1, 1.0, 10.0)),
    "knn": (nearest_neighbors, (1, 3, 5, 10, 20, 50)),
}


def predict(
    kind: str, features: np.ndarray, labels: np.ndarray, new_features: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """Labels of new rows by a classifier fitted to rows with labels, and its penalty or number of neighbors: what is
    best on a fifth of the fitted rows when fitted to the rest of them, of equally good ones the first."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit(rows: np.ndarray, choice: float):
        return make_pipeline(StandardScaler(), make(choice)).fit(features[rows], labels[rows])

    if not (np.isfinite(features).all() and np.isfinite(new_features).all()):
        raise InputError("the student's features are not finite")
    fitted, choosing = split_rows(labels, 0.2, seed)
    if len(np.unique(labels)) < 2 or not len(choosing):
        raise InputError("a classifier needs rows of two classes, and two rows of one of them")
    make, choices = CLASSIFIERS[kind]
    if kind == "knn":
        choices = [count for count in choices if count <= len(fitted)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of what is only tried
        scores = [fit(fitted, choice).score(features[choosing], labels[choosing]) for choice in choices]
    best = choices[int(np.argmax(scores))]
    return fit(np.arange(len(labels)), best).predict(new_features), best


def probe_accuracy(
    features: np.ndarray, labels: np.ndarray, train: np.ndarray, held_out: np.ndarray, seed: int
) -> dict:
    """Accuracy of a linear probe of rows `train` on rows `held_out`, to which nothing was fitted."""
    predicted, penalty = predict("probe", features[train], labels[train], features[held_out], seed)
    return {"accuracy": float((predicted == labels[held_out]).mean()), "penalty": penalty}
