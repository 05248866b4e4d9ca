"""Directions read along a text: one score for each layer and token."""

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..lenses.grid import TokenGrid
from ..models import Model
from ..models.running.run import refuse_rows
from ..plots import Figure
from ..results import Result, analysis
from .direction import Direction
from .directions import Directions


@dataclass(frozen=True, eq=False)
class DirectionScores(Result):
    """One row a layer and token in `table`: `score`.

    Where a direction knows the means that it was fitted on, -1 is the mean of the negative prompts and 1 of the
    positive ones, at the tokens read there; else the score is x · v̂, in units of activation. `config["units"]` says
    which.

    Attributes:
        values: `direction row column`.
    """

    grid: TokenGrid = field(repr=False)
    values: Float[Tensor, "direction row column"] = field(repr=False)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        return self.grid.table({"score": self.values})

    def plot(self, row: int = 0) -> Figure:
        """Layers on y, tokens of one prompt on x; blue is the positive side. Raises `BadInput` for no such prompt."""
        columns = self.grid.columns(row)
        most = float(self.values[:, row][:, columns].abs().max())
        units = self.config["units"]
        return self.grid.heatmap(
            self.values,
            row,
            text=lambda cell: f"{float(self.values[cell]):.1f}",
            hover=lambda cell: [f"score {float(self.values[cell]):.3f} ({units})"],
            title="along the directions",
            unit="score",
            limits=(-most, most),
            diverging=True,
        )


@analysis
def along(model: Model, x: Any, directions: Directions | Direction) -> DirectionScores:
    """How far each token of prompts lies along directions of several layers, at one position each.

    The first token of a prompt often has a norm far above all others (an attention sink); its scores say nothing then.

    Raises:
        BadInput: two directions at one site. Mismatch, UnknownName: directions of another model.
    """
    chosen = [directions] if isinstance(directions, Direction) else list(directions)
    sites = [one.site for one in chosen]
    if len(set(sites)) < len(sites):
        raise BadInput("there are several directions at one site: choose one position, directions.at('last')")
    for one in chosen:
        one.check(model)
    refuse_rows(model, "a reading")
    run = model.run(x, capture=sites, logits=False)
    scaled = all(_gap(one) is not None and one.centre is not None for one in chosen)
    layers = []
    for one in chosen:
        value = one.score(run[one.site]) if scaled else one.projection(run[one.site])
        layers.append((2 * value / (_gap(one) or 1.0) if scaled else value).cpu())
    values = torch.stack(layers).masked_fill(~run.tokens.mask.cpu(), math.nan)
    grid = TokenGrid.of(model, sites, run.tokens, run.tokens.mask)
    units = "-1: mean of the negative prompts, 1: of the positive ones" if scaled else "units of activation"
    return DirectionScores(grid, values, {"units": units})


def _gap(one: Direction) -> float | None:
    """Distance of the class means along what reads, as a unit vector."""
    gap = one.provenance.get("gap")
    return float(gap) if isinstance(gap, int | float) and gap > 0 else None
