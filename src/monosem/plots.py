"""One quiet style for every Plotly figure, and the heatmap and the lines that several rooms draw."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import require

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Figure
else:
    Figure = Any  # plotly is optional, and only the first picture loads it

BLUE, ORANGE, GREY, FAINT = "#3b74d9", "#d9822b", "#7d8590", "rgba(125,133,144,0.35)"
GRID = "rgba(125,133,144,0.25)"  # readable on light and on dark paper
DIVERGING = [[0.0, "#c2571a"], [0.5, "#f7f7f7"], [1.0, "#2b62c4"]]  # white is zero; negative orange, positive blue
SEQUENTIAL = "Viridis"
WORDS_FIT = 45  # columns of a heatmap in whose cells words can be read
LINES = (BLUE, ORANGE, GREY, "#3a9a6b", "#8b5fbf", "#c24a6a")


def style(figure: Figure, x: str = "", y: str = "", title: str = "", height: int = 360) -> Figure:
    """The house style: transparent paper, system font, thin grid, axis titles."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 64, "r": 12, "t": 48 if title else 34, "b": 52},
        # the title stands at the left, so the legend moves to the right of it
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1 if title else 0}
        | ({"xanchor": "right"} if title else {}),
        hoverlabel={"bgcolor": "#24292f", "font": {"color": "#ffffff"}},
        height=height,
        **({"title": {"text": title, "x": 0, "font": {"size": 15}}} if title else {}),
    )
    figure.update_xaxes(title={"text": x}, gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
    figure.update_yaxes(title={"text": y}, gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
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
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A labelled heatmap.

    Args:
        values: `rows columns`, tensor or array; NaN cells stay empty.
        x, y: labels of columns and rows; the same label may come twice (tokens do).
        text: what is written in the cells, where they are wide enough for words.
        hover: HTML shown under the mouse instead of the bare value.
        diverging: colours around zero (white), symmetric; else a sequential scale.
        limits: the ends of the colour scale; default: from the values.
    """
    go = require("plotly.graph_objects", "plots")
    readable = text is not None and len(x) <= WORDS_FIT
    grid = np.asarray(values.detach().float().cpu() if hasattr(values, "detach") else values, dtype=float)
    finite = grid[np.isfinite(grid)]
    top = float(np.abs(finite).max()) if finite.size else 1.0
    low, high = limits or ((-top, top) if diverging else (float(finite.min(initial=0)), float(finite.max(initial=1))))
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            zmin=low,
            zmax=high,
            colorscale=DIVERGING if diverging else SEQUENTIAL,
            colorbar={"title": {"text": unit}, "thickness": 12, "outlinewidth": 0},
            text=text,
            texttemplate="%{text}" if readable else None,
            textfont={"size": 10},
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>" if hover is not None else None,
            xgap=1 if len(x) <= 60 else 0,
            ygap=1 if len(y) <= 60 else 0,
            meta={
                "x": [*map(str, x)],
                "y": [*map(str, y)],
                "xTitle": x_title,
                "yTitle": y_title,
                "title": title,
                "unit": unit,
            },
        )
    )
    # places are numbered and labelled, because equal labels (the same token twice) would fall together; where there
    # are too many to read, some
    for update, labels, most in ((figure.update_xaxes, x, 64), (figure.update_yaxes, y, 40)):
        ticks = list(range(0, len(labels), max(1, -(-len(labels) // most))))
        update(tickmode="array", tickvals=ticks, ticktext=[str(labels[i]) for i in ticks], showgrid=False)
    return style(figure, x_title, y_title, title, height=max(300, min(900, 140 + 22 * len(y))))


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
        curves: name (HTML) -> (values, standard errors or None), each with one number a place.
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
        step = max(1, len(x) // 16)
        figure.update_xaxes(tickmode="array", tickvals=places[::step], ticktext=list(x[::step]))
    if zero:
        figure.add_hline(y=0, line={"color": FAINT, "width": 1})
    return style(figure, x_title, y_title, title)
