"""Logistic regression with classes in balance: convex, exact, the same numbers on every machine."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

STEPS, HALVINGS, GOOD = 100, 40, 1e-9  # Newton steps, halvings of one, gradient a row at which it has arrived


def logistic(
    x: Float[Tensor, "n f"], y: Bool[Tensor, "n"], *, l2: float = 1.0
) -> tuple[Float[Tensor, "f"], Float[Tensor, ""]]:
    """Weights and bias that minimise Σ_i c_i log(1 + exp(-±(w·x_i + b))) + l2 |w|² / 2, where c gives both classes the
    weight n / 2: scikit-learn's `LogisticRegression(C=1 / l2, class_weight="balanced")`. Newton's method in float64.

    Scale the columns of x first: the penalty counts weights, whatever the units.
    """
    rows = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64, device=x.device)], 1)
    signs = torch.where(y, 1.0, -1.0).double()
    positive = int(y.sum())
    counts = torch.where(y, len(y) / (2 * max(positive, 1)), len(y) / (2 * max(len(y) - positive, 1))).double()
    penalty = torch.full((rows.shape[1],), l2, dtype=torch.float64, device=x.device)
    penalty[-1] = 0

    def loss(w: Tensor) -> Tensor:
        return (counts * torch.nn.functional.softplus(-signs * (rows @ w))).sum() + (penalty * w * w).sum() / 2

    w = rows.new_zeros(rows.shape[1])
    now = loss(w)
    for _ in range(STEPS):
        wrong = torch.sigmoid(-signs * (rows @ w))  # the probability that is given to the other class
        gradient = penalty * w - rows.T @ (counts * signs * wrong)
        if float(gradient.abs().max()) < GOOD * len(rows):
            break
        curvature = (rows.T * (counts * wrong * (1 - wrong))) @ rows + torch.diag(penalty + 1e-10)
        step = torch.linalg.solve(curvature, gradient)
        for _ in range(HALVINGS):
            after = loss(w - step)
            if after <= now:
                break
            step = step / 2
        else:
            break
        w, now = w - step, after
    return w[:-1], w[-1]


def f1(predicted: Bool[Tensor, "n"], y: Bool[Tensor, "n"]) -> float:
    """2 TP / (2 TP + FP + FN), 0 where that is 0 / 0."""
    hits = int((predicted & y).sum())
    total = int(predicted.sum()) + int(y.sum())
    return 2 * hits / total if total else 0.0
