"""Logistic regression of many places and many strengths at once, by Newton's method in float64.

Where there are fewer rows than dimensions the unknowns are one number a row (the dual): the weights lie in the span of
the rows, so the matrix of their products K = X Xᵀ is all that is needed, once for all strengths.

A Hessian is factored only while scores still move much (`NEAR`); the steps after that take the last factor with the
gradient as it is now, so each costs two products instead of a Cholesky decomposition and the limit is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from .errors import BadInput

STEPS, HALVINGS = 200, 30
SETTLED = 1e-8  # change of a score below which places are done
NEAR = 0.5  # change of a score below which the last Hessian is still good: p (1 - p) changes by no larger share
LEAST = 1e-24  # of p (1 - p), so that rows that are certain do not divide by zero
SINGLE = 1e6  # condition number up to which a step of a float32 factor is right to some per cent
TOGETHER = {"cpu": 2**18, "cuda": 2**24}  # numbers of a matrix of all places in one step: what a cache holds
Places = Float[Tensor, "places n d"]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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
        state = (
            form.matrix.new_zeros(len(form.matrix), form.matrix.shape[2]),
            form.matrix.new_zeros(len(form.matrix), 1),
        )
        for i in order:
            state = _newton(form, target, weight, penalties[i], *state)
            W[i, part], b[i, part] = form.weights(state[0]), state[1][:, 0]
    return W, b


def _newton(
    form: "_Dual | _Primal", y: Tensor, weight: Tensor, penalty: float, c: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Steps until no score moves, each halved in the places where the loss would grow."""

    side = 1 - 2 * y  # all is said with the probability of the wrong class, which is exact also where it is tiny

    def loss(f: Tensor, c: Tensor, b: Tensor) -> Tensor:
        return (weight * softplus(side * f)).sum(1) + penalty / 2 * form.norm(c, f - b)

    f = _times(form.matrix, c) + b
    now, step, change = loss(f, c, b), None, torch.inf
    for _ in range(STEPS):
        wrong = (side * f).sigmoid()
        if step is None:
            step = form.step(weight * (wrong * (1 - wrong)).clamp(min=LEAST), penalty)
        dc, db = step(-weight * side * wrong, c)
        df = _times(form.matrix, dc) + db
        size = torch.ones_like(b)
        for _ in range(HALVINGS):
            then = loss(f + size * df, c + size * dc, b + size * db)
            worse = ~(then <= now + 1e-12 * now.abs())
            if not bool(worse.any()):
                break
            size = torch.where(worse[:, None], size / 2, size)
        c, b, f, now = c + size * dc, b + size * db, f + size * df, then
        before, change = change, float(df.abs().max())
        if change < SETTLED:
            break
        if change > NEAR or change > before / 2:
            step = None
    return c, b


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v[..., None])[..., 0]


@dataclass(frozen=True)
class _Dual:
    """One unknown a row: w = Zᵀ c, f = K c + b."""

    rows: Places
    matrix: Float[Tensor, "places n n"]
    single: Tensor  # the same in float32

    @classmethod
    def of(cls, Z: Places) -> "_Dual":
        K = Z @ Z.mT
        return cls(Z, K, K.float())

    def weights(self, c: Tensor) -> Tensor:
        return _times(self.rows.mT, c)

    def norm(self, c: Tensor, scores: Tensor) -> Tensor:
        return (c * scores).sum(1)

    def step(self, s: Tensor, penalty: float) -> Step:
        """(S K + penalty) dc + s db = pull - penalty c with Σ (c + dc) = 0; symmetric with dc = √s u."""
        root = s.sqrt()
        K = self.single if _well(s * self.matrix.diagonal(dim1=1, dim2=2), penalty) else self.matrix
        r = root.to(K.dtype)
        A = K * r[:, :, None]
        A *= r[:, None, :]
        solve = _solver(A, penalty)
        one = solve(root)
        total = (root * one).sum(1, keepdim=True)

        def step(pull: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            u = solve((pull - penalty * c) / root)
            db = ((root * u).sum(1, keepdim=True) + c.sum(1, keepdim=True)) / total
            return root * (u - db * one), db

        return step


@dataclass(frozen=True)
class _Primal:
    """One unknown a dimension: f = Z c + b."""

    matrix: Places
    single: Tensor

    @classmethod
    def of(cls, Z: Places) -> "_Primal":
        return cls(Z, Z.float())

    def weights(self, c: Tensor) -> Tensor:
        return c

    def norm(self, c: Tensor, scores: Tensor) -> Tensor:
        return c.square().sum(1)

    def step(self, s: Tensor, penalty: float) -> Step:
        """(Zᵀ S Z + penalty) dc + Zᵀ s db = Zᵀ pull - penalty c, sᵀ Z dc + Σ s db = Σ pull."""
        Z = self.single if _well(s * self.matrix.square().sum(2), penalty) else self.matrix
        solve = _solver((Z * s.to(Z.dtype)[..., None]).mT @ Z, penalty)
        free = _times(self.matrix.mT, s)
        one = solve(free)
        total = s.sum(1, keepdim=True) - (free * one).sum(1, keepdim=True)

        def step(pull: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            u = solve(_times(self.matrix.mT, pull) - penalty * c)
            db = (pull.sum(1, keepdim=True) - (free * u).sum(1, keepdim=True)) / total
            return u - db * one, db

        return step


def _well(diagonal: Tensor, penalty: float) -> bool:
    """Whether float32 is enough for a matrix of this diagonal and the penalty; no eigenvalue is above its trace."""
    return float(diagonal.sum(1).max()) < SINGLE * penalty


def _solver(A: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    """(A + penalty)⁻¹ times a float64 vector a place; A is overwritten."""
    A.diagonal(dim1=1, dim2=2).add_(penalty)
    L, failed = torch.linalg.cholesky_ex(A)
    if bool(failed.any()):
        raise BadInput(
            f"a penalty of {penalty:.1g} is nothing beside these rows: choose a smaller C, or standardise the rows"
        )

    def solve(v: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(L, v.to(L.dtype)[..., None], upper=False)
        return torch.linalg.solve_triangular(L.mT, half, upper=True)[..., 0].double()

    return solve
