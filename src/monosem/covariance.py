"""Covariances with shrinkage, and the products with their inverses.

Covariances are means over rows (divided by n), so that they do not grow with n. `inverse` is of many places at once,
from centred rows X, `n d`, and the smaller of X Xᵀ and Xᵀ X. `Covariance` is of one place, from a root of the scatter
where the rows are gone, and has a pseudo-inverse.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import BadInput, check_name

Shrinkage = Literal["ledoit_wolf", "oas", "none"]
TINY = 1e-12  # of the mean variance: below it a dimension has none
MIXED = 1024  # rows drawn at once, a multiple of 16: torch draws the same numbers as all in one go
SMALLEST = 1e-10  # singular values below this share of the largest are rounding errors of the activations


def _ledoit_wolf(traces: "Traces") -> Tensor:
    """Ledoit & Wolf 2004 (J. Multivar. Anal. 88:365), as scikit-learn has it."""
    if traces.fourth is None:
        raise BadInput("shrinkage='ledoit_wolf' needs the rows, which are not kept here: use 'oas'")
    mean = traces.trace / traces.d
    apart = traces.squares - traces.d * mean.square()
    noise = (traces.fourth / traces.n**2 - traces.squares / traces.n).clamp(min=0)
    return torch.where(apart > 0, torch.minimum(noise, apart) / apart, 0.0)


def _oas(traces: "Traces") -> Tensor:
    """Oracle-approximating shrinkage (Chen et al. 2010, IEEE Trans. Signal Process. 58:5016, eq. 23, without the terms
    of order 1/d, as scikit-learn has it). It needs no rows, so it can be had of moments."""
    alpha, mean = traces.squares / traces.d**2, (traces.trace / traces.d).square()
    rest = (traces.n + 1) * (alpha - mean / traces.d)
    return torch.where(rest > 0, ((alpha + mean) / rest).clamp(max=1), 1.0)


SHRINKAGES: dict[str, Callable[["Traces"], Tensor]] = {
    "ledoit_wolf": _ledoit_wolf,
    "oas": _oas,
    "none": lambda traces: torch.zeros_like(traces.trace),
}


@dataclass(frozen=True)
class Traces:
    """What shrinkage needs of a covariance S of n rows: tr S, tr S², and (where there are rows) Σ_i |x_i|⁴."""

    n: int
    d: int
    trace: Float[Tensor, "places"]
    squares: Float[Tensor, "places"]
    fourth: Float[Tensor, "places"] | None = None


@dataclass(frozen=True, eq=False)
class Inverse:
    """Σ⁻¹ = base I + sign Bᵀ B, for Σ = (1 - ρ) Xᵀ X / n + ρ tr(Xᵀ X / n) / d I.

    With fewer rows than dimensions it is Woodbury's form: base = 1 / (ρ μ), sign -1, B `n d`. Else base is 0, sign +1,
    and B, `d d`, is the inverse of the Cholesky factor, so that |B z|² is the squared distance.

    Attributes:
        rho: the weight of the multiple of the identity.
    """

    base: Float[Tensor, "places"]
    sign: float
    B: Float[Tensor, "places r d"]
    rho: Float[Tensor, "places"]

    def squared(self, z: Float[Tensor, "places n d"]) -> Float[Tensor, "places n"]:
        """zᵀ Σ⁻¹ z of every row."""
        inner = (z @ self.B.mT).square().sum(2)
        return self.base[:, None] * z.square().sum(2) + self.sign * inner

    def times(self, v: Float[Tensor, "places d"]) -> Float[Tensor, "places d"]:
        """Σ⁻¹ v."""
        inner = self.B.mT @ (self.B @ v[..., None])
        return self.base[:, None] * v + self.sign * inner[..., 0]


def inverse(X: Float[Tensor, "places n d"], shrinkage: Shrinkage | float, what: str = "rows") -> Inverse:
    """The inverse of the shrunken covariance of rows that are centred already.

    Args:
        shrinkage: its name, or ρ itself, from 0 to 1.
        what: the rows, for errors.

    Raises:
        UnknownName: no such shrinkage. BadInput: ρ outside 0 to 1, rows that do not differ, or a covariance that has no
            inverse (too few rows or a constant dimension, without shrinkage).
    """
    X = X.double()
    n, d = X.shape[1:]
    wide = n < d
    K = X @ X.mT if wide else X.mT @ X
    trace = K.diagonal(dim1=1, dim2=2).sum(1) / n
    if bool((trace <= 0).any()):
        raise BadInput(f"the {what} do not differ at a place: there is no covariance; read another position")
    rho = _rho(shrinkage, Traces(n, d, trace, K.square().sum((1, 2)) / n**2, X.square().sum(2).square().sum(1)))
    smooth = rho * trace / d
    M = K * ((1 - rho) / n)[:, None, None]
    M.diagonal(dim1=1, dim2=2).add_(smooth[:, None])
    L, failed = torch.linalg.cholesky_ex(M)
    if not wide:
        pivots = L.diagonal(dim1=1, dim2=2).square().amin(1)
        failed = failed.bool() | ~(pivots > TINY * trace / d)
    if bool(failed.any()) or (wide and bool((rho <= 0).any())):
        raise BadInput(
            f"the covariance of {n} {what} in {d} dimensions has no inverse: too few of them, or a constant dimension; "
            "use shrinkage='ledoit_wolf', or more rows"
        )
    if not wide:
        eye = torch.eye(d, dtype=X.dtype, device=X.device).expand_as(L)
        return Inverse(torch.zeros_like(rho), 1.0, torch.linalg.solve_triangular(L, eye, upper=False), rho)
    B = torch.linalg.solve_triangular(L, X, upper=False) * ((1 - rho) / n / smooth).sqrt()[:, None, None]
    return Inverse(1 / smooth, -1.0, B, rho)


def _rho(shrinkage: Shrinkage | float, traces: Traces) -> Float[Tensor, "places"]:
    if isinstance(shrinkage, str):
        check_name("shrinkage", shrinkage, SHRINKAGES)
        return SHRINKAGES[shrinkage](traces)
    if isinstance(shrinkage, bool) or not 0 <= shrinkage <= 1:
        raise BadInput(f"shrinkage is {', '.join(map(repr, SHRINKAGES))} or a number from 0 to 1, not {shrinkage!r}")
    return torch.full_like(traces.trace, float(shrinkage))


def class_residuals(
    X: Float[Tensor, "places n d"], classes: Tensor
) -> tuple[Float[Tensor, "places classes d"], Float[Tensor, "places n d"]]:
    """Class means, and the rows less the mean of their class; `classes` are numbers from 0, one a row."""
    X, classes = X.double(), classes.to(X.device)
    count = int(classes.max()) + 1
    means = torch.zeros(len(X), count, X.shape[2], dtype=X.dtype, device=X.device).index_add_(1, classes, X)
    means /= classes.bincount(minlength=count)[:, None]
    return means, X - means[:, classes]


def same_covariance(rows: Float[Tensor, "n d"], seed: int) -> Float[Tensor, "n d"]:
    """As many normal rows, with the mean and covariance of these: a null for what rows have beyond both."""
    mean, n = rows.mean(0), len(rows)
    centred = (rows - mean).double() / math.sqrt(n - 1)
    draw = torch.Generator().manual_seed(seed)
    mixed = [
        torch.randn(len(some), n, generator=draw, dtype=torch.float64) @ centred
        for some in torch.arange(n).split(MIXED)
    ]
    return (mean + torch.cat(mixed)).float()


@dataclass(frozen=True)
class Covariance:
    """(1 - shrinkage) S + shrinkage · tr(S) / d · I, with S = rootᵀ root / n.

    The cut-off of small singular values is relative: data in other units give the same directions.

    Attributes:
        values: variances along `axes` (orthonormal rows, `r d`), before shrinkage.
    """

    values: Float[Tensor, "rows"]
    axes: Float[Tensor, "r d"]
    shrinkage: float

    @classmethod
    def of(cls, root: Float[Tensor, "r d"], n: int, shrinkage: Shrinkage | float = "oas") -> "Covariance":
        """Of n rows. With shrinkage "none" (0), `solve` has the pseudo-inverse.

        Raises:
            BadInput: rows that do not vary.
        """
        _, singular, axes = torch.linalg.svd(root, full_matrices=False)
        kept = singular > SMALLEST * singular.amax()
        if not bool(kept.any()):
            raise BadInput("all activations of a class are the same: there is no covariance; use method 'dim'")
        values = singular[kept].square() / n
        traces = Traces(n, root.shape[1], values.sum()[None], values.square().sum()[None])
        return cls(values, axes[kept], float(_rho(shrinkage, traces)))

    def __matmul__(self, x: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
        return (1 - self.shrinkage) * self.axes.T @ (self.values * (self.axes @ x)) + self._rest * x

    def solve(self, x: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
        """The inverse times x; without shrinkage, the pseudo-inverse."""
        along, rest = self.axes @ x, self._rest
        inside = self.axes.T @ (along / ((1 - self.shrinkage) * self.values + rest))
        return inside if rest == 0 else inside + (x - self.axes.T @ along) / rest

    @property
    def _rest(self) -> float:
        """What shrinkage adds to the variance along every axis."""
        return self.shrinkage * float(self.values.sum()) / self.axes.shape[1]


@dataclass(frozen=True, eq=False)
class Whitening:
    """x -> Λ^(-1/2) Uᵀ (x - mean): the main axes of a shrunken covariance, each with variance one.

    Attributes:
        axes: `k d`, the largest first, already scaled; mean: `d`.
        kept: the share of the variance that the k axes hold.
    """

    mean: Float[Tensor, "d"]
    axes: Float[Tensor, "k d"]
    kept: float

    @classmethod
    def fit(
        cls, X: Float[Tensor, "n d"], *, shrinkage: Shrinkage | float = "ledoit_wolf", components: int | None = None
    ) -> "Whitening":
        """Raises `BadInput` for rows without a covariance that has an inverse on the axes asked for, and for a number
        of components that is not there."""
        X = X.double()
        mean, (n, d) = X.mean(0), X.shape
        k = d if components is None else components
        if not 1 <= k <= d:
            raise BadInput(f"components is a number from 1 to {d}, not {components}")
        C = X - mean
        K = C.T @ C / n
        traces = Traces(n, d, K.trace()[None], K.square().sum()[None], C.square().sum(1).square().sum()[None])
        rho = _rho(shrinkage, traces)[0]
        values, vectors = torch.linalg.eigh((1 - rho) * K + rho * K.trace() / d * torch.eye(d, dtype=K.dtype))
        values, vectors = values.flip(0), vectors.flip(1)
        if bool(values[k - 1] <= TINY * values[0]):
            raise BadInput(f"{n} rows do not vary along {k} axes: ask for fewer components, or use shrinkage")
        return cls(mean, vectors[:, :k].T / values[:k].sqrt()[:, None], float(values[:k].sum() / values.sum()))

    def __call__(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows k"]:
        return (x.double() - self.mean) @ self.axes.T
