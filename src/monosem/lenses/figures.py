"""Pictures of what lenses saw: layers on y, tokens on x, the likeliest token in the cell, more under the mouse."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import BadInput
from ..models import Site
from ..plots import heatmap
from .results import LensResult
from .states import UNITS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MARKS = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
CELL = 12  # characters of a token that fit into a cell


def shown(token: str) -> str:
    """A token as a label: white space is visible, HTML is not markup."""
    for blank, mark in MARKS.items():
        token = token.replace(blank, mark)
    bare = token.strip(" ")
    spaces = "␣" * (len(token) if not bare else len(token) - len(token.rstrip(" ")))
    return html.escape((" " if bare and token.startswith(" ") else "") + bare + spaces, quote=False)


def short(token: str) -> str:
    return shown(token if len(token) <= CELL else token[: CELL - 1] + "…")


def axis(sites: Sequence[Site]) -> tuple[list[str], str]:
    """Labels of the layers, and the title above them: the site's name once, if it is the same everywhere."""
    names = {site.name for site in sites}
    if len(names) == 1:
        return [str(site.layer) for site in sites], f"{names.pop()}, layer"
    return [str(site) for site in sites], ""


def lens_figure(
    result: LensResult,
    value: str = "probability",
    row: int = 0,
    target: str | None = None,
    layers: Sequence[int] | None = None,
) -> "Figure":
    """The heatmap of `LensResult.plot`. Ranks and their like are coloured by their logarithm."""
    if not -len(result.tokens) <= row < len(result.tokens):
        raise BadInput(f"there is no prompt {row}; the result holds {len(result.tokens)}")
    picked = list(range(len(result.sites))) if layers is None else [range(len(result.sites))[i] for i in layers]
    columns = result.chosen[row].nonzero().flatten().tolist()
    grid = result.values(value, target)[picked, row][:, columns]
    words = [[result.top_tokens(layer, row, c) for c in columns] for layer in picked]
    hover = [
        [_hover(result, layer, row, c, words[i][j], value, grid[i, j]) for j, c in enumerate(columns)]
        for i, layer in enumerate(picked)
    ]
    labels, y_title = axis([result.sites[i] for i in picked])
    of = _subject(value, target)
    unit = UNITS.get(value, "")
    colours, bar = (grid.log10(), f"log10 {value}{of}") if value == "rank" else (grid, f"{value}{of}")
    return heatmap(
        colours,
        [shown(result.model.str_token(int(result.tokens.ids[row, c]))) for c in columns],
        labels,
        text=[[short(w[0]) for w in line] for line in words],
        hover=hover,
        x_title="input token",
        y_title=y_title,
        title=f"{result.lens} of {result.model.name}: {bar}{f' ({unit})' if unit else ''}",
        diverging=False,
        limits=limits(value, colours),
    )


def _subject(value: str, target: str | None) -> str:
    if target is None and value == "probability":
        return " of the likeliest token"
    return f" of {shown(target or 'next')!r}" if target or value in ("rank", "log_probability") else ""


def limits(value: str, grid: Tensor) -> tuple[float, float]:
    """Ends of the colour scale: probabilities from 0 to 1, the rest from 0 (or the least) to the largest."""
    if value in ("probability", "tv"):
        return 0.0, 1.0
    finite = grid[grid.isfinite()]
    if not finite.numel():
        return 0.0, 1.0
    low, high = min(0.0, float(finite.min())), float(finite.max())
    return (float(finite.min()) if value == "logsumexp" else low), high if high > low else low + 1.0


def _hover(
    result: LensResult, layer: int, row: int, column: int, words: Sequence[str], value: str, number: Tensor
) -> str:
    position = int(result.tokens.positions[row, column])
    token = shown(result.model.str_token(int(result.tokens.ids[row, column])))
    lines = [f"<b>{result.sites[layer]}</b>, position {position}, after “{token}”", f"{value}: {float(number):.4g}"]
    chances = result.top_probabilities[layer, row, column].tolist()
    lines += [f"{chance:.3f}  {shown(word)}" for chance, word in zip(chances, words)]
    return "<br>".join(lines)


def profile_figure(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    sites: Sequence[Site],
    y_title: str,
    title: str = "",
    zero: bool = False,
) -> "Figure":
    """Lines over layers, with a band of one standard error where there is one.

    Args:
        curves: name -> (`layer` values, `layer` standard errors or None).
        zero: draw the line y = 0.
    """
    from ..errors import require
    from ..plots import BLUE, FAINT, GREY, ORANGE, style

    go = require("plotly.graph_objects", "plots")
    figure = go.Figure()
    labels, x_title = axis(sites)
    for number, (name, (values, error)) in enumerate(curves.items()):
        colour = [BLUE, ORANGE, GREY, "#3a9a6b", "#8b5fbf", "#c24a6a"][number % 6]
        band = None if error is None else {"type": "data", "array": error, "thickness": 1, "width": 2}
        line = {"color": colour, "width": 2}
        figure.add_scatter(
            x=list(range(len(labels))), y=values, name=shown(name), mode="lines+markers", line=line, error_y=band
        )
    step = max(1, len(labels) // 16)
    figure.update_xaxes(tickmode="array", tickvals=list(range(0, len(labels), step)), ticktext=labels[::step])
    if zero:
        figure.add_hline(y=0, line={"color": FAINT, "width": 1})
    return style(figure, x_title, y_title, title)


def as_numbers(values: Tensor) -> np.ndarray:
    return torch.as_tensor(values).float().numpy()
