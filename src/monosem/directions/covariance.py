"""Covariances from roots of scatters: shrinkage and inverses, without a d × d matrix where rows are few."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput

SMALLEST = 1e-10  # singular values below this share of the largest are rounding errors of the activations


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
    def of(cls, root: Float[Tensor, "r d"], n: int, shrinkage: float | None = None) -> "Covariance":
        """`shrinkage` is from 0 to 1; None chooses it (`oas`).

        Raises:
            BadInput: rows that do not vary.
        """
        _, singular, axes = torch.linalg.svd(root, full_matrices=False)
        kept = singular > SMALLEST * singular.amax()
        if not bool(kept.any()):
            raise BadInput("all activations of a class are the same: there is no covariance; use method 'dim'")
        values = singular[kept].square() / n
        chosen = float(oas(values.sum(), values.square().sum(), root.shape[1], n))
        return cls(values, axes[kept], chosen if shrinkage is None else shrinkage)

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


def oas(trace: Float[Tensor, "*places"], squares: Float[Tensor, "*places"], d: int, n: int) -> Float[Tensor, "*places"]:
    """Oracle-approximating shrinkage of covariances S, from tr S and tr S² (Chen et al. 2010, IEEE Trans. Signal
    Process. 58:5016, eq. 23, without the terms of order 1/d, as scikit-learn has it), from 0 to 1.

    It needs these sums alone, so it can be had of moments; Ledoit and Wolf's needs the rows.
    """
    alpha, mean = squares / d**2, (trace / d).square()
    rest = (n + 1) * (alpha - mean / d)
    return torch.where(rest > 0, ((alpha + mean) / rest).clamp(max=1), 1.0)
