"""Ridge regression from sums: the one solver behind tuned lenses, linear future lenses and affine maps.

States come in batches and are not kept, only their normal equations, in float64, taken around a provisional mean: a
coordinate with a large constant part would otherwise lose its variance to rounding.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput

Per = Literal["mean", "coordinate"]


class NormalEquations:
    """Weighted sums of x, y, xᵀx and xᵀy; `solve` gives the affine map from x to y."""

    def __init__(self) -> None:
        self.weight = 0.0  # of all rows so far

    def add(
        self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], weight: Float[Tensor, "n"] | None = None
    ) -> None:
        """Add rows; products are taken in the dtype of x (at least float32), and summed in float64.

        Args:
            weight: of the rows; all 1 by default.
        """
        device = torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no float64
        x, y = (rows.to(device, torch.promote_types(rows.dtype, torch.float32)) for rows in (x, y))
        w = torch.ones(len(x), 1, dtype=x.dtype, device=device) if weight is None else weight[:, None].to(x)
        if not self.weight:
            self.x0, self.y0 = ((w * rows).sum(0) / w.sum() for rows in (x, y))
            zeros = lambda *shape: torch.zeros(shape, dtype=torch.float64, device=device)  # noqa: E731
            self.sum_x, self.sum_y = zeros(x.shape[1]), zeros(y.shape[1])
            self.xx, self.xy = zeros(x.shape[1], x.shape[1]), zeros(x.shape[1], y.shape[1])
        x, y = x - self.x0, y - self.y0
        weighted, weighted_y = (x, y) if weight is None else (w * x, w * y)
        self.weight += float(w.sum())
        self.sum_x += weighted.sum(0)
        self.sum_y += weighted_y.sum(0)
        self.xx += weighted.T @ x
        self.xy += weighted.T @ y

    def solve(
        self, ridge: float, per: Per, rank: int | None = None
    ) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, "d_out"]]:
        """Matrix A and bias b, float32, that minimise the weighted mean of ‖x A + b - y‖² and a penalty on A.

        Args:
            ridge: the size of the penalty; the bias is free. 0 is plain least squares.
            per: "mean": ridge · (mean variance of x) · ‖A‖², so that its meaning does not depend on the scale of x;
                "coordinate": every coordinate of x with its own variance, as if all had been standardised.
            rank: the largest rank of A; None is full, 0 fits b alone. A is the full solution projected on the
                directions in which its fitted values vary most (Izenman 1975; exact without ridge).

        Raises:
            BadInput: no row was added.
        """
        if not self.weight:
            raise BadInput("no token to fit the map on; give more text")
        mean_x, mean_y = self.sum_x / self.weight, self.sum_y / self.weight
        if rank == 0:
            return torch.zeros_like(self.xy).float(), (self.y0 + mean_y).float()
        xx = self.xx / self.weight - mean_x[:, None] * mean_x
        matrix = _ridge(xx, self.xy / self.weight - mean_x[:, None] * mean_y, ridge, per)
        if rank is not None and rank < min(matrix.shape):
            directions = torch.linalg.eigh(matrix.T @ xx @ matrix).eigenvectors[:, -rank:]
            matrix = matrix @ directions @ directions.T
        return matrix.float(), (self.y0 + mean_y - (self.x0 + mean_x) @ matrix).float()


def _ridge(
    xx: Float[Tensor, "d_in d_in"], xy: Float[Tensor, "d_in d_out"], ridge: float, per: Per
) -> Float[Tensor, "d_in d_out"]:
    if ridge == 0:
        return torch.linalg.lstsq(xx.cpu(), xy.cpu(), driver="gelsd").solution.to(xy.device)
    variance = xx.diagonal().clone()
    mean = variance.mean().clamp_min(1e-30)
    # a coordinate that never varies gets no weight
    penalty = ridge * mean if per == "mean" else ridge * variance + 1e-12 * mean
    return torch.linalg.solve(xx + torch.diag(penalty.expand(len(xx))), xy)
