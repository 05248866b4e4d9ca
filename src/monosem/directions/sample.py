"""What a method sees at one place: two classes of rows, by their moments, and the rows themselves where it asks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from .moments import Moments

SAME = 1e-9  # a difference below this share of the activations themselves is a rounding error


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of two classes at one site and position.

    Attributes:
        differences: moments of positive - negative of each pair; None where rows are not paired, or nobody asked.
        background: moments of a broad corpus, of `mean_centred`.
        rows: (positive, negative), of methods that cannot do with moments.
        k: how many directions are wanted, of methods that find several. seed: of methods that draw.
    """

    positive: Moments
    negative: Moments
    differences: Moments | None = None
    background: Moments | None = None
    rows: tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]] | None = field(default=None, repr=False)
    k: int = 1
    seed: int = 0

    @classmethod
    def of(
        cls,
        positive: Float[Tensor, "n d"] | Sequence[Sequence[float]],
        negative: Float[Tensor, "m d"] | Sequence[Sequence[float]],
        *,
        paired: bool = True,
        background: Float[Tensor, "b d"] | None = None,
        k: int = 1,
        seed: int = 0,
    ) -> Self:
        """Of activations that are at hand.

        Raises:
            BadInput: sides that are not `n d`, are empty or not finite, or (paired) have different numbers of rows.
        """
        up, down = (torch.as_tensor(side, dtype=torch.float64) for side in (positive, negative))
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[1] or not len(up) or not len(down):
            raise BadInput(f"a class is rows of one width, [n, d]; got {list(up.shape)} and {list(down.shape)}")
        if not bool(up.isfinite().all() and down.isfinite().all()):
            raise BadInput("activations have rows that are not finite; take these rows out, or load in another dtype")
        if paired and len(up) != len(down):
            raise BadInput(f"{len(up)} positive and {len(down)} negative rows: pairs need as many of each")
        differences = Moments.of(up - down) if paired else None
        beside = None if background is None else Moments.of(background, scatter=False)
        return cls(Moments.of(up), Moments.of(down), differences, beside, (up, down), k, seed)

    @cached_property
    def delta(self) -> Float[Tensor, "d"]:
        """Difference of the class means. Raises `BadInput` where there is none."""
        delta = self.positive.mean - self.negative.mean
        size = max(float(self.positive.mean.norm()), float(self.negative.mean.norm()))
        if float(delta.norm()) <= SAME * size or not bool(delta.any()):
            raise BadInput("the activations of both classes have the same mean: there is no direction between them")
        return delta

    def oriented(self, axis: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
        """An axis without sign as a vector: positive rows lie further along it, and its length is by how much (so
        adding it once moves a negative mean, along it, to the positive one).

        Raises:
            BadInput: the class means do not differ along it, so nothing tells its sign.
        """
        unit = axis / axis.norm()
        gap = float(self.delta @ unit)
        if abs(gap) <= SAME * float(self.delta.norm()):
            raise BadInput("the class means do not differ along the direction found: it has no sign; use method 'dim'")
        return unit * gap

    @property
    def within(self) -> tuple[Float[Tensor, "r d"], int]:
        """A root of the scatter around the class means, and the number of rows."""
        up, down = self.positive, self.negative
        assert up.root is not None
        assert down.root is not None
        return torch.cat([up.root, down.root]), up.n + down.n

    @property
    def total(self) -> Moments:
        """Of both classes together."""
        return self.positive + self.negative
