"""How far attribution patching can be trusted here: the exact sweep and its estimate over the same cells."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from torch import Tensor

from ...data import TokenPairs
from ...errors import require
from ...files import write_result
from ...models import Model
from ...plots import BLUE, FAINT, style
from ...statistics import pearson, spearman
from ..measured import Sweep
from ..scoring import MetricLike
from ..sweeps.sweep import sweep
from .gradients import attribution

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class Comparison:
    """An exact sweep and an estimate of it, cell by cell; numbers are about mean effects over the pairs.

    Attributes:
        exact, estimate: two sweeps over the same cells and metrics.
    """

    exact: Sweep
    estimate: Sweep

    def __repr__(self) -> str:
        rows = [
            f"{metric}: Pearson {self.pearson(metric):.3f}, Spearman {self.spearman(metric):.3f}, "
            f"slope {self.slope(metric):.3f}"
            for metric in self.exact.metrics
        ]
        return f"Comparison({len(self.exact.cells)} cells; {'; '.join(rows)})"

    def effects(self, metric: str | None = None) -> tuple[Tensor, Tensor]:
        """Mean effects, exact and estimated, `cells` each."""
        return self.exact.effects(metric).mean(1), self.estimate.effects(metric).mean(1)

    def pearson(self, metric: str | None = None) -> float:
        """Linear correlation over cells; NaN where either side is constant."""
        return pearson(*self.effects(metric))

    def spearman(self, metric: str | None = None) -> float:
        """Correlation of the ranks (ties share their mean rank)."""
        return spearman(*self.effects(metric))

    def slope(self, metric: str | None = None) -> float:
        """Of the least-squares line through the origin, estimate against exact: below 1, effects are underestimated."""
        exact, estimate = self.effects(metric)
        return float((exact @ estimate) / (exact @ exact))

    @property
    def summary(self) -> pd.DataFrame:
        """A row a metric and site: cells, correlations, slope, largest difference. All sites together first."""
        rows = []
        for metric in self.exact.metrics:
            for site in [None, *(self.exact.sites if len(self.exact.sites) > 1 else [])]:
                part = self if site is None else self._of(site)
                exact, estimate = part.effects(metric)
                numbers = {
                    "cells": len(exact),
                    "pearson": part.pearson(metric),
                    "spearman": part.spearman(metric),
                    "slope": part.slope(metric),
                    "largest_difference": float((estimate - exact).abs().max()),
                }
                rows.append({"metric": metric, "site": site or "all"} | numbers)
        return pd.DataFrame(rows)

    @property
    def table(self) -> pd.DataFrame:
        """A row a cell and metric: where, exact and estimated effect, their difference; largest difference first."""
        places = self.exact.table
        columns = [name for name in places.columns if name in ("site", "token", "metric", *self.exact.over)]
        frame = places[columns].copy()
        frame["exact"], frame["estimate"] = places["effect"], self.estimate.table["effect"]
        frame["difference"] = frame["estimate"] - frame["exact"]
        order = frame["difference"].abs().sort_values(ascending=False, kind="stable").index
        return frame.reindex(order).reset_index(drop=True)

    def disagreements(self, n: int = 10, metric: str | None = None) -> pd.DataFrame:
        """The n cells whose estimate is furthest off."""
        name = metric or self.exact.metrics[0]
        table = self.table
        return table[table["metric"] == name].head(n).reset_index(drop=True)

    def plot(self, metric: str | None = None) -> "Figure":
        """Estimated against exact effects, a point a cell, with the diagonal on which both agree."""
        go = require("plotly.graph_objects", "plots")
        name = metric or self.exact.metrics[0]
        exact, estimate = self.effects(name)
        ends = [float(torch.cat([exact, estimate]).min()), float(torch.cat([exact, estimate]).max())]
        figure = go.Figure()
        figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": FAINT}, name="equal", hoverinfo="skip")
        sites = self.exact.sites
        for site in sites:
            own = [i for i, cell in enumerate(self.exact.cells) if cell.site == site]
            figure.add_scatter(
                x=exact[own].tolist(),
                y=estimate[own].tolist(),
                mode="markers",
                name=site,
                marker={"size": 6, "opacity": 0.7} | ({"color": BLUE} if len(sites) == 1 else {}),
                text=[str(self.exact.cells[i]) for i in own],
                hovertemplate="%{text}<br>exact %{x:.3f}<br>estimate %{y:.3f}<extra></extra>",
            )
        title = f"{name}: Pearson {self.pearson(name):.2f}, Spearman {self.spearman(name):.2f}"
        return style(figure, f"exact effect ({self.exact.direction})", "estimated effect", title)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The picture (.html) or the table (.csv, .json, .parquet), by the file's ending; `BadInput` for another."""
        table = self.table
        if "position" in self.exact.over and Path(path).suffix == ".parquet":
            table["position"] = table["position"].astype(str)  # may be indices and names of spans
        return write_result(path, table, self.plot)

    def _of(self, site: str) -> "Comparison":
        return Comparison(_part(self.exact, site), _part(self.estimate, site))


def compare(
    model: Model,
    pairs: TokenPairs,
    sites: str | Sequence[str] = "resid_pre",
    over: str | Sequence[str] = ("layer", "position"),
    metric: MetricLike = "logit_diff",
    direction: Literal["denoising", "noising"] | None = None,
    *,
    steps: int = 1,
    memory: str | int = "2GB",
    **cells: Any,
) -> Comparison:
    """The exact sweep and attribution patching over the same cells.

        found = ms.patching.compare(model, pairs, ["z", "mlp_out"], over="layer")
        found                # correlations and slope
        found.plot()         # scatter with the diagonal

    Args:
        steps: gradients between base and source (see `attribution`). memory: budget of the exact sweep.
        cells: which cells, and the rest of what `sweep` and `attribution` both take (layers, positions, heads,
            neurons, dictionary, latents, corruption, quiet).
    """
    exact = sweep(model, pairs, sites, over, metric, direction, memory=memory, **cells)
    return Comparison(exact, attribution(model, pairs, sites, over, metric, direction, steps=steps, **cells))


def _part(whole: Sweep, site: str) -> Sweep:
    """The cells of one site."""
    own = [i for i, cell in enumerate(whole.cells) if cell.site == site]
    values = {name: value[own] for name, value in whole.values.items()}
    return replace(whole, cells=[whole.cells[i] for i in own], values=values)
