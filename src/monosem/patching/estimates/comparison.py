"""How far attribution patching can be trusted here: the exact sweep and its estimate over the same cells."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import pandas as pd
import torch
from torch import Tensor

from ...data import TokenPairs
from ...errors import require
from ...models import Model
from ...plots import BLUE, FAINT, Figure, style
from ...results import Result, analysis, largest
from ...statistics import pearson, spearman
from ..cells import Cell, Which
from ..corruptions import Corruption
from ..experiment import Direction
from ..scoring import MetricLike
from ..sweeps.result import Sweep
from ..sweeps.sweep import sweep
from .gradients import attribution


@dataclass(frozen=True, eq=False)
class EstimateCheck(Result):
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
        return f"EstimateCheck({len(self.exact.cells)} cells; {'; '.join(rows)})"

    def effects(self, metric: str | None = None) -> tuple[Tensor, Tensor]:
        """Mean effects, exact and estimated, `cells` each."""
        return self.exact.effect(metric), self.estimate.effect(metric)

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

    def by_site(self) -> "Iterator[tuple[str, EstimateCheck]]":
        """The check of each site by itself."""
        for site in self.exact.sites:
            yield site, replace(self, exact=self.exact.at_site(site), estimate=self.estimate.at_site(site))

    @property
    def summary(self) -> pd.DataFrame:
        """A row a metric and site: cells, correlations, slope, largest difference. All sites together first."""
        parts = [("all", self), *(self.by_site() if len(self.exact.sites) > 1 else ())]
        rows = []
        for metric in self.exact.metrics:
            for site, part in parts:
                exact, estimate = part.effects(metric)
                numbers = {
                    "cells": len(exact),
                    "pearson": part.pearson(metric),
                    "spearman": part.spearman(metric),
                    "slope": part.slope(metric),
                    "largest_difference": float((estimate - exact).abs().max()),
                }
                rows.append({"metric": metric, "site": site} | numbers)
        return pd.DataFrame(rows)

    @property
    def table(self) -> pd.DataFrame:
        """A row a cell and metric: where, exact and estimated effect, their difference; largest difference first."""
        exact = self.exact.table
        frame = exact[[name for name in ("site", *self.exact.over, "token", "metric") if name in exact]].copy()
        frame["exact"], frame["estimate"] = exact["effect"], self.estimate.table["effect"]
        frame["difference"] = frame["estimate"] - frame["exact"]
        return largest(frame, "difference", len(frame), either_way=True)

    @property
    def best(self) -> Cell:
        """The cell whose estimate is furthest off, by the first metric."""
        exact, estimate = self.effects()
        return self.exact.cells[int((estimate - exact).abs().argmax())]

    def disagreements(self, n: int = 10, metric: str | None = None) -> pd.DataFrame:
        """The n cells whose estimate is furthest off."""
        name = self.exact.metric_of(metric)
        table = self.table
        return table[table["metric"] == name].head(n).reset_index(drop=True)

    def plot(self, metric: str | None = None) -> Figure:
        """Estimated against exact effects, a point a cell, with the diagonal on which both agree."""
        go = require("plotly.graph_objects", "plots")
        name = self.exact.metric_of(metric)
        both = torch.cat(self.effects(name))
        ends = [float(both.min()), float(both.max())]
        figure = go.Figure()
        figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": FAINT}, name="equal", hoverinfo="skip")
        single = len(self.exact.sites) == 1
        for site, part in self.by_site():
            exact, estimate = part.effects(name)
            figure.add_scatter(
                x=exact.tolist(),
                y=estimate.tolist(),
                mode="markers",
                name=site,
                marker={"size": 6, "opacity": 0.7} | ({"color": BLUE} if single else {}),
                text=[str(cell) for cell in part.exact.cells],
                hovertemplate="%{text}<br>exact %{x:.3f}<br>estimate %{y:.3f}<extra></extra>",
            )
        title = f"{name}: Pearson {self.pearson(name):.2f}, Spearman {self.spearman(name):.2f}"
        return style(figure, f"exact effect ({self.exact.direction})", "estimated effect", title)


@analysis
def check_estimate(
    model: Model,
    pairs: TokenPairs,
    sites: str | Sequence[str] = "resid_pre",
    over: str | Sequence[str] = ("layer", "position"),
    *,
    metric: MetricLike = "logit_diff",
    direction: Direction | None = None,
    corruption: Corruption | None = None,
    steps: int = 1,
    memory: str | int = "2GB",
    quiet: bool = False,
    **which: Unpack[Which],
) -> EstimateCheck:
    """The exact sweep and attribution patching over the same cells; arguments as `sweep`.

        check = ms.patching.check_estimate(model, pairs, ["z", "mlp_out"], over="layer")
        check                # correlations and slope
        check.plot()         # scatter with the diagonal

    Args:
        steps: gradients between base and source (see `attribution`). memory: budget of the exact sweep.
    """
    exact = sweep(
        model, pairs, sites, over, metric=metric, direction=direction, corruption=corruption, memory=memory,
        quiet=quiet, **which,
    )  # fmt: skip
    estimate = attribution(
        model, pairs, sites, over, metric=metric, direction=direction, corruption=corruption, steps=steps,
        quiet=quiet, **which,
    )  # fmt: skip
    return EstimateCheck(exact, estimate)
