"""A start for tuned lenses in closed form: least squares from the state at a layer to the last one.

Tokens are weighted by the inverse squared norm of their last state. The final norm takes the size of a state away, so
an error counts by the angle it makes; without the weights a few attention sinks, with norms a hundred times the
median's, own the fit.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput


@dataclass
class Moments:
    """Weighted sums of one layer, in float64: Σw, Σwh, Σwd, Σw hᵀh, Σw hᵀd, with d = h_final - h."""

    weight: Float[Tensor, ""]
    h: Float[Tensor, "d_model"]
    d: Float[Tensor, "d_model"]
    hh: Float[Tensor, "d_model d_model"]
    hd: Float[Tensor, "d_model d_model"]

    @classmethod
    def empty(cls, d_model: int, device: torch.device | str = "cpu") -> "Moments":
        zero = lambda *shape: torch.zeros(shape, dtype=torch.float64, device=device)  # noqa: E731
        return cls(zero(), zero(d_model), zero(d_model), zero(d_model, d_model), zero(d_model, d_model))

    def add(self, h: Float[Tensor, "n d_model"], final: Float[Tensor, "n d_model"]) -> None:
        """Tokens' states at the layer and at the end."""
        h, final = h.to(self.h.device).float(), final.to(self.h.device).float()
        w = final.square().mean(-1).clamp_min(1e-12).reciprocal()[:, None]
        d = final - h
        self.weight += w.sum()
        self.h += (w * h).sum(0)
        self.d += (w * d).sum(0)
        self.hh += (w * h).T @ h
        self.hd += (w * h).T @ d

    def solve(
        self, rank: int | None = None, ridge: float = 1e-3
    ) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"]]:
        """A and b that minimise Σw ‖h A + b - d‖² + ridge · mean var(h) · ‖A‖², A of at most `rank`.

        Reduced rank is the projection of the full solution on the directions in which its fitted values vary most
        (Izenman 1975; exact without ridge). Rank 0 fits b alone.

        Raises:
            BadInput: no token was added.
        """
        if not bool(self.weight > 0):
            raise BadInput("no token to fit the translators on; give more text")
        mean_h, mean_d = self.h / self.weight, self.d / self.weight
        if rank == 0:
            return torch.zeros_like(self.hh).float(), mean_d.float()
        hh = self.hh / self.weight - mean_h[:, None] * mean_h
        hd = self.hd / self.weight - mean_h[:, None] * mean_d
        penalty = ridge * hh.diagonal().mean().clamp_min(1e-30)
        matrix = torch.linalg.solve(hh + penalty * torch.eye(len(hh), dtype=hh.dtype, device=hh.device), hd)
        if rank is not None and rank < len(hh):
            directions = torch.linalg.eigh(matrix.T @ hh @ matrix).eigenvectors[:, -rank:]
            matrix = matrix @ directions @ directions.T
        return matrix.float(), (mean_d - mean_h @ matrix).float()


def fitted(
    batches: Iterable[tuple[list[Float[Tensor, "n d_model"]], Float[Tensor, "n d_model"]]],
    layers: int,
    d_model: int,
    rank: int | None,
    ridge: float = 1e-3,
) -> list[tuple[Tensor, Tensor]]:
    """A and b of every layer.

    Args:
        batches: states of the layers, and the last state, of the same tokens.
    """
    moments: list[Moments] = []
    for states, final in batches:
        if not moments:
            device = "cpu" if final.device.type == "mps" else final.device  # MPS has no float64
            moments = [Moments.empty(d_model, device) for _ in range(layers)]
        for own, h in zip(moments, states, strict=True):
            own.add(h, final)
    if not moments:
        raise BadInput("no text to fit the translators on")
    return [own.solve(rank, ridge) for own in moments]
