"""Logistic regression with scikit-learn's penalty, by Newton's method in the span of the rows."""

import torch
from jaxtyping import Float
from torch import Tensor

STEPS = 100


def logistic(
    rows: Float[Tensor, "n d"], labels: Float[Tensor, "n"], *, strength: float = 1.0, intercept: bool = True
) -> tuple[Float[Tensor, "d"], float]:
    """Weights and bias with the least Σ log loss + strength / 2 |w|² (scikit-learn's C is 1 / strength), the bias free.

    The minimum lies in the span of the rows, so there are at most n + 1 unknowns, however wide rows are.
    """
    X, y = rows.double(), labels.double()
    turned = None
    if X.shape[1] > X.shape[0]:
        U, S, turned = torch.linalg.svd(X, full_matrices=False)
        X = U * S
    penalty = torch.full((X.shape[1],), float(strength), dtype=torch.float64)
    if intercept:
        X = torch.cat([X, torch.ones_like(X[:, :1])], 1)
        penalty = torch.cat([penalty, penalty.new_zeros(1)])
    w = X.new_zeros(X.shape[1])

    def loss(w: Tensor) -> float:
        logits = X @ w
        return float(torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")) + float(
            (penalty * w.square()).sum() / 2
        )

    before = loss(w)
    for _ in range(STEPS):
        p = (X @ w).sigmoid()
        gradient = X.T @ (p - y) + penalty * w
        step = torch.linalg.solve((X * (p * (1 - p))[:, None]).T @ X + torch.diag(penalty + 1e-12), gradient)
        while (now := loss(w - step)) > before and float(step.abs().max()) > 1e-14:
            step = step / 2
        w, done = w - step, before - now <= 1e-13 * abs(before)
        before = now
        if done:
            break
    bias = float(w[-1]) if intercept else 0.0
    weights = w[:-1] if intercept else w
    return (weights if turned is None else turned.T @ weights), bias
