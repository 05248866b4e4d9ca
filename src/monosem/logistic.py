"""Logistic regression of many places and many strengths at once, by Newton's method in float64.

Where there are fewer rows than dimensions the unknowns are one number a row (the dual): the weights lie in the span of
the rows, so the matrix of their products K = X Xᵀ is all that is needed, once for all strengths.

A Hessian is factored only while scores still move much (`NEAR`). The steps after that take the last factor with the
gradient as it is now, as far as the quadratic of the Hessian as it is now says: three products instead of a Cholesky
decomposition. Each penalty starts ahead, where the two before it point.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from .errors import BadInput

STEPS, HALVINGS = 200, 30
SETTLED = 1e-7  # change of a score below which places are done
SURE = 0.5  # change of a score below which no loss grows: p (1 - p), and so the quadratic, changes by no larger share
NEAR = 2.0  # change of a score below which the last factor still preconditions well
LEAST = 1e-24  # of p (1 - p), so that rows that are certain do not divide by zero
SINGLE = 1e6  # condition number up to which a step of a float32 factor is right to some per cent
TOGETHER = {"cpu": 2**18, "cuda": 2**24}  # numbers of a matrix of all places in one step: what a cache holds
Places = Float[Tensor, "places n d"]


def logistic_paths(
    Z: Places, y: Bool[Tensor, "n"], penalties: Sequence[float], counts: Float[Tensor, "n"] | None = None
) -> tuple[Float[Tensor, "penalties places d"], Float[Tensor, "penalties places"]]:
    """Weights and biases that minimise Σ_i c_i log(1 + exp(∓ f_i)) + penalty / 2 |w|², f = Z w + b, b free, for every
    place and penalty: scikit-learn's `LogisticRegression(C=1 / penalty)`.

    The strongest penalty is fitted first, and each next one starts from there.

    Args:
        counts: how much each row counts; default: 1.

    Raises:
        BadInput: a penalty so weak that float64 does not see it beside the rows.
    """
    target = y.to(Z.device).double()
    weight = torch.ones_like(target) if counts is None else counts.to(Z.device).double()
    order = sorted(range(len(penalties)), key=lambda i: -penalties[i])
    together = TOGETHER.get(Z.device.type, TOGETHER["cuda"]) // max(1, min(Z.shape[1:]) ** 2)
    W = torch.empty(len(penalties), len(Z), Z.shape[2], dtype=torch.float64, device=Z.device)
    b = torch.empty(len(penalties), len(Z), dtype=torch.float64, device=Z.device)
    for start in range(0, len(Z), max(1, together)):
        part = slice(start, start + max(1, together))
        form = _Dual.of(Z[part].double()) if Z.shape[1] <= Z.shape[2] else _Primal.of(Z[part].double())
        before = state = form.start()
        for i in order:
            # scores grow about as much from a penalty to the next as they did before
            ahead = _Point(*(2 * now - then for now, then in zip(state, before)))
            before, state = state, _newton(form, target, weight, penalties[i], ahead)
            W[i, part], b[i, part] = form.weights(state.c), state.b[:, 0]
    return W, b


class _Point(NamedTuple):
    """Unknowns and biases, or a change of both."""

    c: Float[Tensor, "places unknowns"]
    b: Float[Tensor, "places 1"]


Step = Callable[[Tensor, Tensor], _Point]


def _newton(form: "_Dual | _Primal", y: Tensor, weight: Tensor, penalty: float, at: _Point) -> _Point:
    """Steps until no score moves, each halved in the places where the loss would grow."""
    side = 1 - 2 * y  # all is said with the probability of the wrong class, which is exact also where it is tiny

    def loss(f: Tensor, c: Tensor, b: Tensor) -> Tensor:
        return _sum(weight * softplus(side * f)) + penalty / 2 * form.inner(c, c, f - b)

    (c, b), f = at, form.scores(at)
    step, change = None, torch.inf
    for _ in range(STEPS):
        wrong = (side * f).sigmoid()
        s = (weight * wrong * (1 - wrong)).clamp(min=LEAST)  # also of rows that do not count
        if step is None:
            step = form.step(s, penalty)
        pull = -weight * side * wrong
        dc, db = by = step(pull, c)
        df = form.scores(by)
        slope = _sum(pull * df) - penalty * form.inner(c, dc, df - db)
        size = _ratio(slope, _sum(s * df * df) + penalty * form.inner(dc, dc, df - db))
        before, change = change, float((size * df).abs().max())
        if change > SURE:
            size = _halved(loss, (f, c, b), (df, dc, db), size)
        c, b, f = c + size * dc, b + size * db, f + size * df
        if change < SETTLED:
            break
        if change > NEAR or change > before / 2:
            step = None
    return _Point(c, b)


def _halved(loss: Callable[..., Tensor], at: Sequence[Tensor], by: Sequence[Tensor], size: Tensor) -> Tensor:
    now = loss(*at)
    for _ in range(HALVINGS):
        worse = ~(loss(*(x + size * dx for x, dx in zip(at, by))) <= now + 1e-12 * now.abs())
        if not bool(worse.any()):
            break
        size = torch.where(worse, size / 2, size)
    return size


def _sum(v: Tensor) -> Float[Tensor, "places 1"]:
    return v.sum(1, keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Of nothing by nothing: 0, for such a place is done."""
    return torch.where(below > 0, above / below, 0.0)


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v[..., None])[..., 0]


@dataclass(frozen=True)
class _Form:
    matrix: Float[Tensor, "places n unknowns"]
    single: Tensor  # the same in float32

    def start(self) -> _Point:
        places, _, unknowns = self.matrix.shape
        return _Point(self.matrix.new_zeros(places, unknowns), self.matrix.new_zeros(places, 1))

    def scores(self, at: _Point) -> Float[Tensor, "places n"]:
        return _times(self.matrix, at.c) + at.b


@dataclass(frozen=True)
class _Dual(_Form):
    """One unknown a row: w = Zᵀ c, f = K c + b."""

    rows: Places

    @classmethod
    def of(cls, Z: Places) -> "_Dual":
        K = Z @ Z.mT
        return cls(K, K.float(), Z)

    def weights(self, c: Tensor) -> Tensor:
        return _times(self.rows.mT, c)

    def inner(self, c: Tensor, d: Tensor, scores: Tensor) -> Tensor:
        """Of two weights, with the second's scores (without a bias)."""
        return _sum(c * scores)

    def step(self, s: Tensor, penalty: float) -> Step:
        """(S K + penalty) dc + s db = pull - penalty c with Σ (c + dc) = 0; symmetric with dc = √s u."""
        root = s.sqrt()
        K = self.single if _well(s * self.matrix.diagonal(dim1=1, dim2=2), penalty) else self.matrix
        r = root.to(K.dtype)
        A = K * r[:, :, None]
        A *= r[:, None, :]
        solve = _solver(A, penalty)
        one = solve(root)
        total = _sum(root * one)

        def step(pull: Tensor, c: Tensor) -> _Point:
            u = solve((pull - penalty * c) / root)
            db = (_sum(root * u) + _sum(c)) / total
            return _Point(root * (u - db * one), db)

        return step


@dataclass(frozen=True)
class _Primal(_Form):
    """One unknown a dimension: f = Z c + b."""

    @classmethod
    def of(cls, Z: Places) -> "_Primal":
        return cls(Z, Z.float())

    def weights(self, c: Tensor) -> Tensor:
        return c

    def inner(self, c: Tensor, d: Tensor, scores: Tensor) -> Tensor:
        return _sum(c * d)

    def step(self, s: Tensor, penalty: float) -> Step:
        """(Zᵀ S Z + penalty) dc + Zᵀ s db = Zᵀ pull - penalty c, sᵀ Z dc + Σ s db = Σ pull."""
        Z = self.single if _well(s * self.matrix.square().sum(2), penalty) else self.matrix
        solve = _solver((Z * s.to(Z.dtype)[..., None]).mT @ Z, penalty)
        free = _times(self.matrix.mT, s)
        one = solve(free)
        total = _sum(s) - _sum(free * one)

        def step(pull: Tensor, c: Tensor) -> _Point:
            u = solve(_times(self.matrix.mT, pull) - penalty * c)
            db = (_sum(pull) - _sum(free * u)) / total
            return _Point(u - db * one, db)

        return step


def _well(diagonal: Tensor, penalty: float) -> bool:
    """Whether float32 is enough for a matrix of this diagonal and the penalty; no eigenvalue is above its trace."""
    return float(diagonal.sum(1).max()) < SINGLE * penalty


def _solver(A: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    """(A + penalty)⁻¹ times a float64 vector a place; A is overwritten."""
    A.diagonal(dim1=1, dim2=2).add_(penalty)
    L, failed = torch.linalg.cholesky_ex(A)
    if bool(failed.any()) and not bool(A.isfinite().all()):
        raise BadInput("the rows hold NaN, infinity or numbers too large to multiply: leave them out")
    if bool(failed.any()):
        raise BadInput(
            f"a penalty of {penalty:.1g} is nothing beside these rows: choose a smaller C, or standardise the rows"
        )

    def solve(v: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(L, v.to(L.dtype)[..., None], upper=False)
        return torch.linalg.solve_triangular(L.mT, half, upper=True)[..., 0].double()

    return solve
