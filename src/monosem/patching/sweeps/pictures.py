"""Pictures of sweeps, from their tables alone, so that a report can be drawn again from its numbers."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pandas as pd
import torch

from ...errors import require
from ...plots import Figure, heatmap, lines, literal, style
from ..measured import dense, shown_in


def picture(rows: pd.DataFrame, over: Sequence[str], direction: str, sites: Sequence[str]) -> Figure:
    """Heatmaps of some of the sites, side by side; a line with errors where cells differ by layer alone.

    Args:
        rows: the table of a sweep, of one metric and all sites.
    """
    kind, unit = shown_in(rows)
    parts = [rows[rows["site"] == site] for site in sites]
    if list(over) == ["layer"]:
        layers = sorted({layer for part in parts for layer in part["layer"]})  # some sites are not in every layer
        by_layer = [part.set_index("layer").reindex(layers) for part in parts]
        curves = {site: (part[kind], part[f"{kind}_se"]) for site, part in zip(sites, by_layer)}
        title = f"{direction}, {rows['metric'].iloc[0]}"
        return lines(curves, layers, x_title="layer", y_title=unit, title=title)
    figures = [_heatmap(part, over, kind, unit, direction) for part in parts]
    return figures[0] if len(figures) == 1 else _side_by_side(figures, sites)


def _heatmap(part: pd.DataFrame, over: Sequence[str], kind: str, unit: str, direction: str) -> Figure:
    site, metric = part["site"].iloc[0], part["metric"].iloc[0]
    columns = {axis: part[axis].to_numpy() for axis in over}
    grid, ticks = dense(columns, over, torch.tensor(part[kind].to_numpy(dtype=float)))
    across = over.index("position") if "position" in over else len(over) - 1
    down = [i for i in range(len(over)) if i != across]
    rows = grid.movedim(across, -1).reshape(-1, len(ticks[across]))
    y = ["·".join(map(str, combination)) for combination in product(*(ticks[i] for i in down))]
    x = [str(tick) for tick in ticks[across]]
    if over[across] == "position":
        tokens = dict(zip(part["position"], part["token"]))
        x = [tokens[tick] or str(tick) for tick in ticks[across]]
    y_title = "·".join(over[i] for i in down)
    hover = [
        [f"{site}, {y_title} {y[r]}<br>{over[across]} {ticks[across][c]} {literal(x[c])}<br>{unit} {rows[r, c]:.3f}"
         for c in range(len(x))] for r in range(len(y))
    ]  # fmt: skip
    title = f"{site}, {direction}, {metric}"
    return heatmap(rows, x, y, hover=hover, x_title=over[across], y_title=y_title, title=title, unit=unit)


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
    first = figures[0]
    return style(whole, first.data[0].meta["xTitle"], first.data[0].meta["yTitle"], height=first.layout.height)
