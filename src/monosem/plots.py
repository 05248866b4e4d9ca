"""One quiet style for every Plotly figure, and the heatmap and the lines that several rooms draw."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import require

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Figure
else:
    Figure = Any  # plotly is optional, and only the first picture loads it

__all__ = ["by_layer", "heatmap", "lines", "literal", "style"]

BLUE, ORANGE, GREY, FAINT = "#3b74d9", "#d9822b", "#7d8590", "rgba(125,133,144,0.35)"
GRID = "rgba(125,133,144,0.25)"  # readable on light and on dark paper
DIVERGING = [[0.0, "#c2571a"], [0.5, "#f7f7f7"], [1.0, "#2b62c4"]]  # white is zero; negative orange, positive blue
SEQUENTIAL = "Viridis"
WORDS_FIT = 45  # columns of a heatmap that has words in its cells
WIDE_ENOUGH, LETTER, ROW = 900, 6.5, 14  # pixels: a figure that needs no scrolling, a letter in a cell, a line
TOOLBAR = 34  # pixels at the top right that the buttons cover
TITLE_AT = {"x": 0, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 10, "l": 6}}
LEGEND_AT = {"orientation": "h", "yref": "container", "yanchor": "top", "x": 0, "xanchor": "left"}
LINES = (BLUE, ORANGE, GREY, "#3a9a6b", "#8b5fbf", "#c24a6a")


def literal(text: Any) -> str:
    """Text as Plotly shows it letter by letter, which takes a part of HTML for markup; line breaks stay."""
    return html.escape(str(text), quote=False).replace("\n", "<br>")


def style(figure: Figure, x: str = "", y: str = "", title: str = "", height: int = 360) -> Figure:
    """The house style: transparent paper, system font, thin grid, axis titles.

    All words that are given, here and in traces, are shown as they are. (Only a heatmap's cells and what is under the
    mouse are HTML.)
    """
    legend = 0
    for trace in figure.data:
        trace.name = None if trace.name is None else literal(trace.name)
        legend += trace.type != "heatmap" and trace.showlegend is not False
        for part in ("x", "y", "text") if trace.type != "heatmap" else ():
            values = trace[part]
            if values is not None and not isinstance(values, str) and any(isinstance(value, str) for value in values):
                trace[part] = [literal(value) for value in values]
    for note in figure.layout.annotations:
        note.text = literal(note.text)
    # the title stands beside the buttons, and a legend below both
    top = TOOLBAR + (26 if legend > 1 else 14 if title else 0)
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 64, "r": 12, "t": top, "b": 52},
        legend=LEGEND_AT | {"y": 1 - TOOLBAR / height},
        hoverlabel={"bgcolor": "#24292f", "font": {"color": "#ffffff"}, "namelength": -1},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        height=height,
        **({"title": {"text": literal(title), "font": {"size": 15}} | TITLE_AT} if title else {}),
    )
    figure.update_xaxes(title={"text": literal(x)}, gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
    figure.update_yaxes(title={"text": literal(y)}, gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
    return figure


def heatmap(
    values: Any,
    x: Sequence[Any],
    y: Sequence[Any],
    *,
    text: Sequence[Sequence[str]] | None = None,
    hover: Sequence[Sequence[str]] | None = None,
    x_title: str = "",
    y_title: str = "",
    title: str = "",
    unit: str = "",
    diverging: bool = True,
    less_is_better: bool = False,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A labelled heatmap.

    Args:
        values: `rows columns`, tensor or array; NaN cells stay empty.
        x, y: labels of columns and rows; the same label may come twice (tokens do).
        text: HTML that is written in the cells; up to `WORDS_FIT` columns, and the figure is as wide as they need.
        hover: HTML shown under the mouse instead of the bare value.
        diverging: colours around zero (white), symmetric; else a sequential scale.
        less_is_better: of a sequential scale: the least number is the brightest, else the largest.
        limits: the ends of the colour scale; default: from the values.
    """
    go = require("plotly.graph_objects", "plots")
    readable = text is not None and len(x) <= WORDS_FIT
    grid = np.asarray(values.detach().float().cpu() if hasattr(values, "detach") else values, dtype=float)
    finite = grid[np.isfinite(grid)]
    top = float(np.abs(finite).max()) if finite.size else 1.0
    low, high = limits or ((-top, top) if diverging else (float(finite.min(initial=0)), float(finite.max(initial=1))))
    # as the page that is a grid takes it, whose script has no markup
    meta: dict[str, Any] = {"x": [*map(str, x)], "y": [*map(str, y)], "xTitle": x_title, "yTitle": y_title}
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            zmin=low,
            zmax=high,
            colorscale=DIVERGING if diverging else f"{SEQUENTIAL}_r" if less_is_better else SEQUENTIAL,
            colorbar={"title": {"text": literal(unit)}, "thickness": 12, "outlinewidth": 0},
            text=text,
            texttemplate="%{text}" if readable else None,
            textfont={"size": 10},
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>" if hover is not None else None,
            xgap=1 if len(x) <= 60 else 0,
            ygap=1 if len(y) <= 60 else 0,
            meta=meta | {"title": title, "unit": unit},
        )
    )
    # places are numbered and labelled, because equal labels (the same token twice) would fall together; where there
    # are too many to read, some
    for update, labels, most in ((figure.update_xaxes, x, 64), (figure.update_yaxes, y, 40)):
        ticks = list(range(0, len(labels), max(1, -(-len(labels) // most))))
        update(tickmode="array", tickvals=ticks, ticktext=[literal(labels[i]) for i in ticks], showgrid=False)
    rows = max(min(22 * len(y), 760), ROW * len(y) if readable else 0)
    style(figure, x_title, y_title, title, height=max(300, 140 + rows))
    return figure.update_layout(width=_width(text or []) if readable else None)


def _width(text: Sequence[Sequence[str]]) -> int | None:
    """Pixels of a heatmap in whose cells the longest of the texts fits; None where every screen is as wide."""
    longest = max((len(html.unescape(cell)) for row in text for cell in row), default=0)
    pixels = round(160 + max((len(row) for row in text), default=0) * (longest * LETTER + 6))
    return pixels if pixels > WIDE_ENOUGH else None


def lines(
    curves: Mapping[str, tuple[Any, Any | None]],
    x: Sequence[str] | Sequence[float],
    *,
    x_title: str = "",
    y_title: str = "",
    title: str = "",
    zero: bool = False,
) -> Figure:
    """Lines with a bar of one standard error where there is one.

    Args:
        curves: name -> (values, standard errors or None), each with one number a place.
        x: where the places are, or their labels, one by one.
        zero: draw the line y = 0.
    """
    go = require("plotly.graph_objects", "plots")
    figure = go.Figure()
    labelled = any(isinstance(place, str) for place in x)
    places = list(range(len(x)) if labelled else x)
    for number, (name, (values, error)) in enumerate(curves.items()):
        bar = None if error is None else {"type": "data", "array": np.asarray(error), "thickness": 1, "width": 2}
        line = {"color": LINES[number % len(LINES)], "width": 2}
        figure.add_scatter(x=places, y=np.asarray(values), name=name, mode="lines+markers", line=line, error_y=bar)
    if labelled:
        step = -(-len(x) // 16)
        figure.update_xaxes(tickmode="array", tickvals=places[::step], ticktext=[literal(place) for place in x[::step]])
    if zero:
        figure.add_hline(y=0, line={"color": FAINT, "width": 1})
    return style(figure, x_title, y_title, title)


def by_layer(places: Sequence[str]) -> tuple[Sequence[str] | Sequence[float], str]:
    """Where places stand on an axis, and its title: the numbers of the layers where all else is the same ("resid_post.3
    last", "resid_post.9 last"), else their names."""
    parts = [re.fullmatch(r"(.+?)\.(\d+)(\D.*)?", place) for place in places]
    same = {(part[1], part[3]) for part in parts if part}
    if len(places) < 2 or None in parts or len(same) > 1:
        return places, "place"
    name, rest = same.pop()
    return [float(part[2]) for part in parts if part], f"layer of {name}" + (f", {rest.strip(' @')}" if rest else "")
