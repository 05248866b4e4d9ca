"""Profiles: one number a layer of some lines (prompts, groups, languages), or one number a layer and token."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import check_name
from ...models import Model, Site, TokenBatch
from ...plots import Figure, lines
from ...results import Result
from ...statistics import standard_error
from ..grid import TokenGrid, layer_axis, visible

Line = Float[Tensor, "layer sample"]


@dataclass(frozen=True, eq=False)
class Profile(Result):
    """Numbers over layers.

    Attributes:
        sites: the places read, one a layer. lens: the name of the lens that they were seen through.
    """

    model: Model = field(repr=False)
    sites: list[Site]
    lens: str

    def title(self, what: str) -> str:
        """What a picture shows, of which model, and through which lens."""
        return f"{self.lens} of {self.model.name}: {what}"

    def layer_table(self, key: str, values: Mapping[str, Mapping[str, Line]]) -> pd.DataFrame:
        """One row a line and layer: the means over samples of every value, and `<value>_se`, their standard errors (NaN
        for a single sample).

        Args:
            key: the column with the names of the lines. values: name of a value -> name of a line -> its samples.
        """
        names = list(next(iter(values.values())))
        data: dict[str, list[Any]] = {
            key: [name for name in names for _ in self.sites],
            "site": [str(site) for site in self.sites] * len(names),
            "layer": [site.layer for site in self.sites] * len(names),
        }
        for value, samples in values.items():
            data[value] = [mean for name in names for mean in samples[name].mean(-1).tolist()]
            data[f"{value}_se"] = [error for name in names for error in standard_error(samples[name]).tolist()]
        return pd.DataFrame(data)

    def plot_lines(self, samples: Mapping[str, Line], y_title: str, title: str, zero: bool = False) -> Figure:
        """Means over samples, over layers, with a standard error where there are several samples."""
        curves = {
            visible(name): (line.mean(-1), standard_error(line) if line.shape[1] > 1 else None)
            for name, line in samples.items()
        }
        labels, x_title = layer_axis(self.sites)
        return lines(curves, labels, x_title=x_title, y_title=y_title, title=title, zero=zero)


@dataclass(frozen=True, eq=False)
class TokenProfile(Profile):
    """Numbers over layers and tokens.

    Attributes:
        chosen: which tokens were read, `batch pos`.
        measures: name -> `layer batch pos`; NaN where nothing was read.
    """

    tokens: TokenBatch = field(repr=False)
    chosen: Bool[Tensor, "batch pos"] = field(repr=False)
    measures: dict[str, Float[Tensor, "layer batch pos"]] = field(repr=False)

    def __getitem__(self, value: str) -> Float[Tensor, "layer batch pos"]:
        """Raises `UnknownName`, with a suggestion, when there is no such value."""
        check_name("value", value, self.measures)
        return self.measures[value]

    @property
    def grid(self) -> TokenGrid:
        """The cells, as tables and heatmaps need them."""
        return TokenGrid.of(self.model, self.sites, self.tokens, self.chosen)

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell."""
        return self.grid.table(self.measures)

    def samples(self, value: str) -> dict[str, Line]:
        """The numbers of every prompt's tokens, by the beginning of the prompt."""
        grid, texts = self[value], self.tokens.rows()
        names = [f"{row}: {self.model.text(text)[:40]}" for row, text in enumerate(texts)]
        return {name: grid[:, row][:, self.chosen[row].cpu()] for row, name in enumerate(names)}
