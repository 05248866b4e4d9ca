"""Count, mean and scatter of rows that come batch after batch, in float64; the rows are let go."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the same number of rows at every place (a place is a site and a position); without places, `d` alone.

    Attributes:
        n: how many rows. mean: `*place d`.
        root: `*place r d`, with rootᵀ root = Σ (x - mean)(x - mean)ᵀ; r is at most 2 d, however many rows there are. A
            root loses no digits, as the squares of numbers do. None where no scatter is kept.
    """

    n: int
    mean: Float[Tensor, "*place d"]
    root: Float[Tensor, "*place r d"] | None = None

    @classmethod
    def of(cls, rows: Float[Tensor, "*place n d"], scatter: bool = True) -> Self:
        rows = rows.double()
        mean = rows.mean(-2)
        return cls(rows.shape[-2], mean, _short(rows - mean[..., None, :]) if scatter else None)

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets of rows (Chan, Golub & LeVeque 1979, for roots)."""
        n = self.n + other.n
        step = other.mean - self.mean
        root = None
        if self.root is not None and other.root is not None:
            between = (self.n * other.n / n) ** 0.5 * step
            root = _short(torch.cat([self.root, other.root, between[..., None, :]], -2))
        return Moments(n, self.mean + step * (other.n / n), root)

    def __iter__(self) -> Iterator["Moments"]:
        """Place by place."""
        for number, mean in enumerate(self.mean):
            yield replace(self, mean=mean, root=None if self.root is None else self.root[number])

    @property
    def uncentred(self) -> Float[Tensor, "*place r d"]:
        """A root of Σ x xᵀ: the mean counts, too."""
        assert self.root is not None
        return torch.cat([self.root, self.n**0.5 * self.mean[..., None, :]], -2)


def _short(root: Float[Tensor, "*place r d"]) -> Float[Tensor, "*place r d"]:
    """The same scatter from at most 2 d rows."""
    return torch.linalg.qr(root, mode="r").R if root.shape[-2] > 2 * root.shape[-1] else root
