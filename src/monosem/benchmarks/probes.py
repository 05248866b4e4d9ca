"""Linear probes on a few latents: ours, and what sae-bench and sae-probes do.

Ours ranks latents free of scale, standardises them on training rows, and chooses the regularisation on validation rows.
Rows are samples, columns latents; labels are 0 and 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BadInput, require
from ..logistic import logistic_paths
from ..probes.linear import effects

STRENGTHS = tuple(10.0**power for power in range(2, -5, -1))  # of the L2 penalty a row, strongest first
SMALL, FOLDED = 12, 128  # rows up to which sae-probes leaves two out, and below which it makes six folds


@dataclass(frozen=True)
class Probe:
    """`score(X) = standardised X @ weights + bias`; above 0 it says 1."""

    weights: Float[Tensor, "k"]
    bias: float
    mean: Float[Tensor, "k"]
    scale: Float[Tensor, "k"]
    strength: float

    def score(self, X: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        return (X.double() - self.mean) / self.scale @ self.weights + self.bias


# ---------------------------------------------------------------------- ours
def ranked(X: Float[Tensor, "n latents"], y: Int[Tensor, "n"]) -> Int[Tensor, "latents"]:
    """Latents by |mean of class 1 - mean of class 0| over the standard deviation within the classes, largest first;
    the louder of two equally telling latents does not come first. Ties go to the lower number."""
    return effects(X[None], y == 1)[0].argsort(descending=True, stable=True)


def fitted(
    X: Float[Tensor, "n k"],
    y: Int[Tensor, "n"],
    X_validation: Float[Tensor, "m k"],
    y_validation: Int[Tensor, "m"],
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """An L2-regularised logistic probe whose strength has the least log loss on the validation rows; of equal ones,
    the strongest."""
    best: tuple[float, Probe] | None = None
    for probe in _logistic(X, y, sorted(strengths, reverse=True)):
        scores = probe.score(X_validation)
        loss = float(torch.nn.functional.binary_cross_entropy_with_logits(scores, y_validation.double()))
        if best is None or loss < best[0] - 1e-9:
            best = loss, probe
    assert best is not None
    return best[1]


def logistic(X: Float[Tensor, "n k"], y: Int[Tensor, "n"], strength: float, *, balanced: bool = False) -> Probe:
    """The minimum of mean log loss + strength / 2 |w|² on standardised columns; the bias is free.

    Args:
        balanced: both classes count alike, however many rows they have.

    Raises:
        BadInput: rows of one class only.
    """
    return _logistic(X, y, [strength], balanced)[0]


def _logistic(X: Tensor, y: Tensor, strengths: Sequence[float], balanced: bool = False) -> list[Probe]:
    X, target = X.double(), y.double()
    if target.min() == target.max():
        raise BadInput("a probe needs training rows of both classes")
    mean, scale = X.mean(0), X.std(0, unbiased=False)
    scale = torch.where(scale > 0, scale, 1.0)
    share = target.mean() if balanced else 0.5
    counts = 0.5 * (target / share + (1 - target) / (1 - share))
    W, b = logistic_paths(((X - mean) / scale)[None], y > 0, [strength * len(X) for strength in strengths], counts)
    return [Probe(w[0], float(bias[0]), mean, scale, strength) for w, bias, strength in zip(W, b, strengths)]


def f1(predicted: Bool[Tensor, "n"], y: Bool[Tensor, "n"]) -> float:
    """2 TP / (2 TP + FP + FN), 0 where that is 0 / 0."""
    hits, total = int((predicted & y).sum()), int(predicted.sum()) + int(y.sum())
    return 2 * hits / total if total else 0.0


# ---------------------------------------------------------------------- as other tools do it
class Peer(NamedTuple):
    """What another tool's probe found: the latents it used, its classifier (scikit-learn) and its numbers."""

    latents: list[int]
    classifier: Any
    numbers: dict[str, float]


def saebench_probe(X: Tensor, y: Tensor, X_test: Tensor, y_test: Tensor, k: int) -> Peer:
    """sae-bench 0.6 sparse_probing: the k largest |difference of means|, as they are (a loud latent wins although it
    says nothing), then scikit-learn's default LogisticRegression, columns not scaled. Raises `MissingExtra`."""
    linear = require("sklearn.linear_model", "benchmarks")
    gap = (X[y == 1].mean(0) - X[y == 0].mean(0)).abs()
    latents = sorted(gap.topk(min(k, len(gap))).indices.tolist())
    model = linear.LogisticRegression(max_iter=1000).fit(X[:, latents].numpy(), y.numpy())
    return Peer(latents, model, {"test_accuracy": float(model.score(X_test[:, latents].numpy(), y_test.numpy()))})


def sae_probes_order(X: Tensor, y: Tensor, normalised: bool = True) -> Int[Tensor, "latents"]:
    """sae-probes 0.4: latents by |difference of means|, each divided by the mean of its non-zero magnitudes."""
    if normalised:
        X = X / (X.abs().sum(0) / ((X != 0).sum(0) + 1e-6) + 1e-6)
    return (X[y == 1].mean(0) - X[y == 0].mean(0)).abs().argsort(descending=True)


def sae_probes_split(y: np.ndarray, train: int, test: int, seed: int = 42) -> tuple[np.ndarray, np.ndarray]:
    """sae-probes 0.4: rows for training and for the test, half of each class in both."""
    rng = np.random.RandomState(seed)  # its own generator; another one would draw other rows
    classes, sizes = [np.where(y == label)[0] for label in (1, 0)], [-(-n // 2) for n in (train, test)]
    first = [rng.choice(rows, n, replace=False) for rows, n in zip(classes, (sizes[0], train - sizes[0]))]
    left = [np.setdiff1d(rows, used) for rows, used in zip(classes, first)]
    second = [rng.choice(rows, n, replace=False) for rows, n in zip(left, (sizes[1], test - sizes[1]))]
    return rng.permutation(np.concatenate(first)), rng.permutation(np.concatenate(second))


def sae_probes_probe(
    X: np.ndarray, y: np.ndarray, X_test: np.ndarray, y_test: np.ndarray, *, penalty: str = "l2", seed: int = 1
) -> Peer:
    """sae-probes 0.4 `find_best_reg`: C from 1e5 down to 1e-5 by validation AUROC; of equal ones the largest, so that
    classes that can be separated get no regularisation. Columns are not scaled. Raises `MissingExtra`."""
    linear = require("sklearn.linear_model", "benchmarks")
    scores = require("sklearn.metrics", "benchmarks")
    options: dict[str, Any] = {"l1_ratio": 1, "solver": "saga"} if penalty == "l1" else {}

    def model(C: float = 1.0) -> Any:
        return linear.LogisticRegression(C=C, max_iter=1000, random_state=seed, **options)

    def area(C: float, train: Any, held_out: Any) -> float:
        if len(np.unique(y[train])) < 2:
            return 0.5
        said = model(C).fit(X[train], y[train]).predict_proba(X[held_out])[:, 1]
        return float(scores.roc_auc_score(y[held_out], said))

    grid, found = np.logspace(5, -5, 10), []
    if len(X) > 3:
        folds = _folds(X, y, seed)
        found = [np.mean([area(C, *fold) for fold in folds]) for C in grid]
    shuffled = np.random.RandomState(seed).permutation(len(X))
    fit = model(grid[int(np.argmax(found))] if found else 1.0).fit(X[shuffled], y[shuffled])
    said = fit.predict(X_test)
    numbers = {
        "test_f1": scores.f1_score(y_test, said, average="weighted"),
        "test_acc": scores.accuracy_score(y_test, said),
        "test_auc": scores.roc_auc_score(y_test, fit.predict_proba(X_test)[:, 1]),
        "val_auc": max(found) if found else scores.roc_auc_score(y, fit.predict_proba(X)[:, 1]),
    }
    return Peer([*range(X.shape[1])], fit, {name: float(value) for name, value in numbers.items()})


def _folds(X: np.ndarray, y: np.ndarray, seed: int) -> list[tuple[Any, Any]]:
    if len(X) >= FOLDED:
        first = len(X) - min(int(0.2 * len(X)), 100)
        return [(np.arange(first), np.arange(first, len(X)))]
    selection = require("sklearn.model_selection", "benchmarks")
    split = (
        selection.LeavePOut(2)
        if len(X) <= SMALL
        else selection.StratifiedKFold(n_splits=6, shuffle=True, random_state=seed)
    )
    return [(train, held) for train, held in split.split(X, y) if len(np.unique(y[held])) == 2]
