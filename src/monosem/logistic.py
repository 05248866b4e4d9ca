"""Logistic regression of many places and many strengths at once, by Newton's method in float64.

Where there are fewer rows than dimensions the unknowns are one number a row (the dual): the weights lie in the span of
the rows, so the matrix of their products K = X Xᵀ is all that is needed, once for all strengths.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

STEPS, HALVINGS = 60, 30
SETTLED = 1e-7  # change of a score below which a place is done; Newton's next step would be about its square
LEAST = 1e-12  # of p (1 - p), so that rows that are certain do not divide by zero
Places = Float[Tensor, "places n d"]


def logistic_paths(
    Z: Places, y: Bool[Tensor, "n"], penalties: Sequence[float], counts: Float[Tensor, "n"] | None = None
) -> tuple[Float[Tensor, "penalties places d"], Float[Tensor, "penalties places"]]:
    """Weights and biases that minimise Σ_i c_i log(1 + exp(∓ f_i)) + penalty / 2 |w|², f = Z w + b, b free, for every
    place and penalty: scikit-learn's `LogisticRegression(C=1 / penalty)`.

    The strongest penalty is fitted first, and each next one starts from there.

    Args:
        counts: how much each row counts; default: 1.
    """
    Z, target = Z.double(), y.to(Z.device).double()
    weight = torch.ones_like(target) if counts is None else counts.to(Z.device).double()
    dual = Z.shape[1] <= Z.shape[2]
    kernel = Z @ Z.mT if dual else Z
    unknowns = kernel.shape[2]
    solve = _dual if dual else _primal
    state = torch.zeros(len(Z), unknowns + 1, dtype=torch.float64, device=Z.device)
    W, b = [torch.empty(0)] * len(penalties), [torch.empty(0)] * len(penalties)
    for place in sorted(range(len(penalties)), key=lambda i: -penalties[i]):
        state = _newton(kernel, target, weight, penalties[place], state, solve, dual)
        c, b[place] = state[:, :-1], state[:, -1]
        W[place] = (Z.mT @ c[..., None])[..., 0] if dual else c
    return torch.stack(W), torch.stack(b)


def _newton(kernel: Tensor, y: Tensor, weight: Tensor, penalty: float, state: Tensor, solve, dual: bool) -> Tensor:  # type: ignore[no-untyped-def]
    """Newton steps of all places that have not settled yet, halved where the loss would grow."""
    state, active = state.clone(), torch.arange(len(kernel), device=kernel.device)

    def scores(K: Tensor, at: Tensor) -> Tensor:
        return (K @ at[:, :-1, None])[..., 0] + at[:, -1:]

    def loss(f: Tensor, at: Tensor) -> Tensor:
        c = at[:, :-1]
        norm = (c * (f - at[:, -1:])).sum(1) if dual else c.square().sum(1)
        return (weight * (softplus(f) - y * f)).sum(1) + penalty / 2 * norm

    for _ in range(STEPS):
        K, at = (kernel, state) if len(active) == len(kernel) else (kernel[active], state[active])
        f = scores(K, at)
        p = f.sigmoid()
        s = weight * (p * (1 - p)).clamp(min=LEAST)
        new = solve(K, s, s * f + weight * (y - p), penalty)
        before, moved = loss(f, at), scores(K, new)
        size = torch.ones(len(at), 1, dtype=at.dtype, device=at.device)
        for _ in range(HALVINGS):
            worse = loss(f + size * (moved - f), at + size * (new - at)) > before + 1e-12 * before.abs()
            if not bool(worse.any()):
                break
            size = torch.where(worse[:, None], size / 2, size)
        state[active] = at + size * (new - at)
        change = (size * (moved - f)).abs().amax(1)
        active = active[change > SETTLED]
        if not len(active):
            break
    return state


def _dual(K: Tensor, s: Tensor, response: Tensor, penalty: float) -> Tensor:
    """(K + penalty / s) a = r - b 1 with Σ a = 0, r = response / s; symmetric with a = √s u."""
    root = s.sqrt()
    A = K * root[:, :, None]
    A *= root[:, None, :]
    A.diagonal(dim1=1, dim2=2).add_(penalty)
    sides = torch.stack([response / root, root], 2)
    u, one = torch.cholesky_solve(sides, torch.linalg.cholesky(A)).unbind(2)
    b = (root * u).sum(1, keepdim=True) / (root * one).sum(1, keepdim=True)
    return torch.cat([root * (u - b * one), b], 1)


def _primal(Z: Tensor, s: Tensor, response: Tensor, penalty: float) -> Tensor:
    """(Zᵀ S Z + penalty) w = Zᵀ (S r - b s), Σ (S r - S Z w - b s) = 0."""
    A = (Z * s[..., None]).mT @ Z
    A.diagonal(dim1=1, dim2=2).add_(penalty)
    ZS = (Z.mT @ torch.stack([response, s], 2)).contiguous()
    u, one = torch.cholesky_solve(ZS, torch.linalg.cholesky(A)).unbind(2)
    free = ZS[..., 1]  # Zᵀ s
    b = (response.sum(1) - (free * u).sum(1)) / (s.sum(1) - (free * one).sum(1))
    return torch.cat([u - b[:, None] * one, b[:, None]], 1)
