"""What a sweep found: a value for every cell, pair and metric, with scores, errors, a table and heatmaps."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput, UnknownName, did_you_mean, require
from ..files import write_result
from ..plots import heatmap, style
from ..statistics import standard_error
from .cells import Cell
from .scoring import normalised

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class Sweep:
    """Results of patching every cell, one at a time.

    Attributes:
        cells: the patched places, `cells`.
        over: the axes that the cells differ in, in the order of `cells.ORDER`.
        values: metric -> its value in every patched run, `cells pairs` (float64).
        clean, corrupted: metric -> its value in the unpatched runs, `pairs`.
        direction: "denoising": clean values written into the corrupted run; "noising": the other way round.
        method: how the values came about ("growing", "batched", "naive", "attribution", ...).
        labels: what to write for a position, such as its token; positions without a label show as themselves.
        model: the model's name. corruption: what the other side was.
    """

    cells: Sequence[Cell]
    over: tuple[str, ...]
    values: dict[str, Float[Tensor, "cells pairs"]]
    clean: dict[str, Float[Tensor, "pairs"]]
    corrupted: dict[str, Float[Tensor, "pairs"]]
    direction: str
    method: str
    labels: dict[Any, str] = field(default_factory=dict)
    model: str = ""
    corruption: str = ""

    def __repr__(self) -> str:
        pairs = len(next(iter(self.clean.values())))
        what = f"{len(self.cells)} cells over {', '.join(self.over)}, {pairs} pairs, {', '.join(self.values)}"
        return f"Sweep({self.direction} of {', '.join(self.sites)} in {self.model or 'a model'}: {what})"

    @property
    def metrics(self) -> list[str]:
        return list(self.values)

    @property
    def sites(self) -> list[str]:
        return list(dict.fromkeys(cell.site for cell in self.cells))

    @property
    def base(self) -> dict[str, Float[Tensor, "pairs"]]:
        """The run that was patched: corrupted when denoising, clean when noising."""
        return self.corrupted if self.direction == "denoising" else self.clean

    # ------------------------------------------------------------------ numbers
    def mean(self, metric: str | None = None) -> Float[Tensor, "cells"]:
        """Mean over the pairs."""
        return self.values[self._metric(metric)].mean(1)

    def error(self, metric: str | None = None) -> Float[Tensor, "cells"]:
        """Standard error of the mean over pairs; NaN for a single pair."""
        return standard_error(self.values[self._metric(metric)])

    def scores(self, metric: str | None = None) -> Float[Tensor, "cells"]:
        """(patched - corrupted) / (clean - corrupted) of means over pairs: 0 as corrupted, 1 as clean."""
        name = self._metric(metric)
        return normalised(self.mean(name), self.clean[name].mean(), self.corrupted[name].mean())

    def score_error(self, metric: str | None = None) -> Float[Tensor, "cells"]:
        """Standard error of `scores`, a ratio of two means over the same pairs (linearised: delta method)."""
        name = self._metric(metric)
        corrupted, gap = self.corrupted[name], self.clean[name] - self.corrupted[name]
        if len(gap) < 2:
            return torch.full((len(self.cells),), torch.nan, dtype=gap.dtype)
        residual = self.values[name] - corrupted - self.scores(name)[:, None] * gap
        return residual.std(1) / (len(gap) ** 0.5 * gap.mean().abs())

    def effects(self, metric: str | None = None) -> Float[Tensor, "cells pairs"]:
        """Patched minus unpatched run, of every pair, in the metric's own unit."""
        name = self._metric(metric)
        return self.values[name] - self.base[name]

    def effect_error(self, metric: str | None = None) -> Float[Tensor, "cells"]:
        """Standard error of the mean effect: what the pairs differ in without a patch is not in it."""
        return standard_error(self.effects(metric))

    def grid(
        self, values: Float[Tensor, "cells"] | None = None, site: str | None = None
    ) -> tuple[Tensor, list[list[Any]]]:
        """One number a cell (default: the scores) as a dense tensor over the axes, and the coordinates along each.

        `sweep.grid(sweep.mean("logit_diff"))[0]` is `layer position` for a sweep over these. NaN: no such cell.
        """
        name = self._site(site)
        numbers = self.scores() if values is None else values
        own = [i for i, cell in enumerate(self.cells) if cell.site == name]
        ticks = [list(dict.fromkeys(self.cells[i].coordinate(axis) for i in own)) for axis in self.over]
        places = [{tick: n for n, tick in enumerate(axis)} for axis in ticks]
        dense = torch.full([len(axis) for axis in ticks], torch.nan, dtype=torch.float64)
        for i in own:
            dense[tuple(at[self.cells[i].coordinate(axis)] for at, axis in zip(places, self.over))] = numbers[i]
        return dense, ticks

    @property
    def table(self) -> pd.DataFrame:
        """A row a cell and metric: where, mean and its standard error over pairs, effect, score and its error."""
        rows = []
        for metric in self.metrics:
            columns = [self.mean(metric), self.error(metric), self.effects(metric).mean(1)]
            columns += [self.scores(metric), self.score_error(metric)]
            numbers = torch.stack(columns, 1).tolist()
            for cell, (mean, error, effect, score, spread) in zip(self.cells, numbers):
                where = {"site": cell.site} | {axis: cell.coordinate(axis) for axis in self.over}
                if "position" in self.over:
                    where["token"] = self.labels.get(cell.position, "")
                found = {"value": mean, "error": error, "effect": effect, "score": score, "score_error": spread}
                rows.append(where | {"metric": metric} | found)
        return pd.DataFrame(rows)

    def best(self, n: int = 10, metric: str | None = None) -> pd.DataFrame:
        """The n cells whose patch moves the metric furthest from the unpatched run, either way; furthest first."""
        name = self._metric(metric)
        table = self.table
        rows = table[table["metric"] == name].reset_index(drop=True)
        return rows.reindex(rows["effect"].abs().sort_values(ascending=False, kind="stable").index).head(n)

    # ------------------------------------------------------------------ pictures and files
    def plot(self, metric: str | None = None, site: str | None = None) -> "Figure":
        """A heatmap a site: tokens (or heads) on the x axis, layers on the y axis; a line with errors for layers alone.

        Colours are the normalised scores, or the bare effects where clean and corrupted do not differ.
        """
        name = self._metric(metric)
        shown = [self._site(site)] if site is not None else self.sites
        scores = self.scores(name)
        scored = bool(scores.isfinite().any())
        numbers = scores if scored else self.effects(name).mean(1)
        unit = "score" if scored else f"Δ {name}"
        if self.over == ("layer",):
            return self._lines(
                name, numbers, self.score_error(name) if scored else self.effect_error(name), unit, shown
            )
        figures = [self._heatmap(name, numbers, one, unit) for one in shown]
        return figures[0] if len(figures) == 1 else _side_by_side(figures, shown)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The picture (.html) or the table (.csv, .json, .parquet), by the file's ending; `BadInput` for another."""
        table = self.table
        if "position" in self.over and Path(path).suffix == ".parquet":
            table["position"] = table["position"].astype(str)  # may be indices and names of spans
        return write_result(path, table, self.plot)

    def _heatmap(self, metric: str, numbers: Tensor, site: str, unit: str) -> "Figure":
        dense, ticks = self.grid(numbers, site)
        across = self.over.index("position") if "position" in self.over else len(self.over) - 1
        down = [i for i in range(len(self.over)) if i != across]
        rows = dense.movedim(across, -1).reshape(-1, len(ticks[across]))
        y = ["·".join(map(str, combination)) for combination in _combinations([ticks[i] for i in down])]
        x = [
            self.labels.get(tick, str(tick)) if self.over[across] == "position" else str(tick) for tick in ticks[across]
        ]
        hover = [
            [f"{site}, {'·'.join(self.over[i] for i in down)} {y[r]}<br>{self.over[across]} {ticks[across][c]} {x[c]}"
             f"<br>{unit} {rows[r, c]:.3f}" for c in range(len(x))] for r in range(len(y))
        ]  # fmt: skip
        y_title = "·".join(self.over[i] for i in down)
        title = f"{site}, {self.direction}, {metric}"
        return heatmap(rows, x, y, hover=hover, x_title=self.over[across], y_title=y_title, title=title, unit=unit)

    def _lines(self, metric: str, numbers: Tensor, errors: Tensor, unit: str, sites: Sequence[str]) -> "Figure":
        go = require("plotly.graph_objects", "plots")
        figure = go.Figure()
        for site in sites:
            own = [i for i, cell in enumerate(self.cells) if cell.site == site]
            bars = {"array": errors[own].nan_to_num().tolist(), "visible": bool(errors[own].isfinite().any())}
            layers = [self.cells[i].layer for i in own]
            figure.add_scatter(x=layers, y=numbers[own].tolist(), error_y=bars, name=site, mode="lines+markers")
        return style(figure, "layer", unit, f"{self.direction}, {metric}")

    def _metric(self, given: str | None) -> str:
        name = given or self.metrics[0]
        if name not in self.values:
            raise UnknownName(
                f"no metric {name!r}{did_you_mean(name, self.metrics) or '; has ' + ', '.join(self.metrics)}"
            )
        return name

    def _site(self, given: str | None) -> str:
        if given is None and len(self.sites) > 1:
            raise BadInput(f"this sweep has the sites {', '.join(self.sites)}; say which with site=")
        name = given or self.sites[0]
        if name not in self.sites:
            raise UnknownName(
                f"no site {name!r} in this sweep{did_you_mean(name, self.sites)}; it has {', '.join(self.sites)}"
            )
        return name


def _combinations(axes: list[list[Any]]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = [()]
    for axis in axes:
        found = [(*one, tick) for one in found for tick in axis]
    return found


def _side_by_side(figures: list[Any], titles: Sequence[str]) -> Any:
    """One figure of several heatmaps with one colour scale."""
    subplots = require("plotly.subplots", "plots")
    whole = subplots.make_subplots(1, len(figures), subplot_titles=list(titles))
    top = max(figure.data[0].zmax for figure in figures)
    for number, figure in enumerate(figures, 1):
        figure.data[0].update(zmin=-top, zmax=top, showscale=number == len(figures))
        whole.add_trace(figure.data[0], 1, number)
        whole.update_xaxes(figure.layout.xaxis, row=1, col=number, overwrite=False)
        whole.update_yaxes(figure.layout.yaxis, row=1, col=number, overwrite=False)
    first = figures[0].layout
    return style(whole, first.xaxis.title.text, first.yaxis.title.text, height=first.height)
