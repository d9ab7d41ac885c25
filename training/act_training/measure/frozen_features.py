"""Features of a frozen student, and classifiers that are fitted to them. Used by distill.py and evaluate.py."""

import warnings

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from act_training.data.batches import Sampling, validation_batches
from act_training.run.run_data import split_rows
from modeling_act import ACTStudent
from modeling_act.errors import InputError
from modeling_act.modeling_act_student import pool_tokens

POOLINGS = ("cls", "max", "mean")
CLASSIFIERS = {  # classifier, its hyperparameter, the values to choose from
    "probe": (LogisticRegression(max_iter=300, tol=1e-3), "C", (0.003, 0.03, 0.3, 3.0, 30.0)),
    "svm": (LinearSVC(dual="auto", max_iter=10_000, random_state=0), "C", (0.001, 0.01, 0.1, 1.0, 10.0)),
    "knn": (KNeighborsClassifier(metric="cosine"), "n_neighbors", (1, 3, 5, 10, 20, 50)),
}


@torch.no_grad()
def embed(
    student: ACTStudent,
    point_set,
    sampling: Sampling,
    batch_size: int,
    layer: int | None = None,
    pooling: str | None = None,
) -> np.ndarray:
    """Frozen features (rows, width) of all rows: the pooled output of a layer, or of the final norm by default.

    Layers count from 1. `pooling` joins cls (the class token), max and mean (over the groups) with "_"; the default is
    the student's own.
    """
    pooling = resolve_pooling(student, layer, pooling)
    training, device = student.training, next(student.parameters()).device
    student.eval()
    features = []
    for batch in validation_batches(point_set, batch_size, sampling, device):
        output = student(batch["points"], read_layers=layer and [layer])
        tokens = output.layer_states[0] if layer else output.last_hidden_state
        features.append(pool_tokens(tokens, student.cls_token is not None, pooling).float().cpu())
    student.train(training)
    return torch.cat(features).numpy()


def resolve_pooling(student: ACTStudent, layer: int | None, pooling: str | None) -> str:
    """Check that the student has such features; return the pooling, or the default one for None."""
    if layer is not None and not 1 <= layer <= len(student.layers):
        raise InputError(f"`layer` must lie between 1 and {len(student.layers)}, got {layer}")
    if pooling is None:
        own = student.config.pooling
        return own if student.cls_token is not None else own.replace("cls", "mean")
    parts = set(pooling.split("_"))
    if not parts <= set(POOLINGS):
        raise InputError(f"`pooling` must join any of {', '.join(POOLINGS)} with _, such as cls_max, got {pooling!r}")
    if "cls" in parts and student.cls_token is None:
        raise InputError(f"`pooling` {pooling} needs a class token, and this student has none; take mean_max")
    return pooling


def fit_and_predict(
    kind: str, features: np.ndarray, labels: np.ndarray, new_features: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """Fit a classifier to standardized features; return its predictions for new rows, and its hyperparameter.

    The hyperparameter is the one that scores best on a fifth of the fitted rows when fitted to the others, the first
    of equals. Only fitted rows are used to standardize.
    """
    if not (np.isfinite(features).all() and np.isfinite(new_features).all()):
        raise InputError("the student's features are not finite")
    train, held_out = split_rows(labels, 0.2, seed)
    if len(np.unique(labels)) < 2 or not len(held_out):
        raise InputError("a classifier needs rows of two classes, and two rows of one of them")
    classifier, name, values = CLASSIFIERS[kind]
    if name == "n_neighbors":
        values = [count for count in values if count <= len(train)]
    pipeline = Pipeline([("scaler", StandardScaler()), ("classifier", classifier)])
    search = GridSearchCV(pipeline, {f"classifier__{name}": values}, cv=[(train, held_out)], refit=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of candidates
        search.fit(features, labels)
    best = clone(pipeline).set_params(**search.best_params_).fit(features, labels)
    return best.predict(new_features), search.best_params_[f"classifier__{name}"]


def probe_accuracy(
    features: np.ndarray, labels: np.ndarray, train: np.ndarray, held_out: np.ndarray, seed: int
) -> dict[str, float]:
    """Accuracy on rows `held_out` of a linear probe that is fitted to rows `train`, and its inverse penalty."""
    predicted, penalty = fit_and_predict("probe", features[train], labels[train], features[held_out], seed)
    return {"accuracy": float((predicted == labels[held_out]).mean()), "penalty": penalty}


def nearest_shape_accuracy(fit_set, test_set, sampling: Sampling) -> float:
    """Accuracy of the nearest neighbor by standardized shape statistics, a baseline without a network."""
    statistics = []
    for point_set in (fit_set, test_set):
        batches = validation_batches(point_set, 256, sampling, torch.device("cpu"))
        statistics.append(np.concatenate([shape_statistics(batch["points"].numpy()) for batch in batches]))
    classifier = make_pipeline(StandardScaler(), KNeighborsClassifier(1)).fit(statistics[0], fit_set.labels())
    return float(classifier.score(statistics[1], test_set.labels()))


def shape_statistics(points: np.ndarray) -> np.ndarray:
    """Shape statistics (batch, 22) of clouds (batch, points, 3) with y up.

    Spectrum of the covariance, extent and moments of the height, histograms of height and distance to the up axis.
    """
    height, radius = points[..., 1], np.linalg.norm(points[..., [0, 2]], axis=-1)
    spectrum = np.linalg.eigvalsh(np.einsum("bni,bnj->bij", points, points) / points.shape[1])
    columns = [spectrum, np.stack([np.ptp(height, axis=1), height.std(1), (height**3).mean(1)], axis=1)]
    for values, lowest in ((height, -1), (radius, 0)):
        edges = np.linspace(lowest, 1, 9)
        columns.append(np.stack([np.histogram(row, edges)[0] / len(row) for row in values]))
    return np.concatenate(columns, axis=1)
