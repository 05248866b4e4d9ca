"""What a sweep found: the numbers of an experiment whose variants are cells."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, check_name
from ...plots import Figure
from ..cells import Cell
from ..measured import Measured
from .pictures import picture


@dataclass(frozen=True, eq=False, kw_only=True)
class Sweep(Measured):
    """Results of patching every cell, one at a time.

    Attributes:
        cells: the patched places, one a variant.
        over: the axes that the cells differ in, in the order of `cells.ORDER`.
        labels: what to write for a position, such as its token; positions without a label show as themselves.
        method: "growing", "batched", "naive", "attribution", ...
    """

    cells: Sequence[Cell]
    over: tuple[str, ...]
    labels: dict[Any, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        pairs = len(next(iter(self.clean.values())))
        what = f"{len(self.cells)} cells over {', '.join(self.over)}, {pairs} pairs, {', '.join(self.values)}"
        return (
            f"{type(self).__name__}({self.direction} of {', '.join(self.sites)} in {self.model or 'a model'}: {what})"
        )

    @property
    def sites(self) -> list[str]:
        return list(dict.fromkeys(cell.site for cell in self.cells))

    @property
    def best(self) -> Cell:
        """The cell whose patch moves the first metric furthest, either way."""
        return self.cells[self.furthest()]

    def take(self, which: Sequence[int] | Tensor) -> Self:
        chosen = [self.cells[i] for i in torch.as_tensor(which).tolist()]
        return replace(super().take(which), cells=chosen)

    def at_site(self, site: str | None = None) -> Self:
        """The cells of one site (None: of the only one).

        Raises:
            BadInput: there are several sites, and none was named. UnknownName: no such site in this sweep.
        """
        if site is None and len(self.sites) > 1:
            raise BadInput(f"this sweep has the sites {', '.join(self.sites)}; say which with site=")
        name = site or self.sites[0]
        check_name("site", name, self.sites)
        return self.take([i for i, cell in enumerate(self.cells) if cell.site == name])

    def grid(
        self, values: Float[Tensor, "cells"] | None = None, site: str | None = None
    ) -> tuple[Tensor, list[list[Any]]]:
        """One number a cell (default: the scores) as a dense tensor over the axes, and the coordinates along each.

        `sweep.grid(sweep.mean("logit_diff"))[0]` is `layer position` for a sweep over these. NaN: no such cell.
        """
        part = self.at_site(site)
        rows = [i for i, cell in enumerate(self.cells) if cell.site == part.cells[0].site]
        numbers = self.scores() if values is None else values
        return part.grid_over(self.over, numbers[rows])

    def plot(self, metric: str | None = None, site: str | None = None) -> Figure:
        """A heatmap a site: tokens (or heads) on the x axis, layers on the y axis; a line with errors for layers alone.

        Colours are the normalised scores, or the bare effects where clean and corrupted do not differ.
        """
        sites = self.sites if site is None else [self.at_site(site).cells[0].site]
        return picture(self.rows(metric), self.over, self.direction, sites)
