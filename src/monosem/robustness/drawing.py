"""The figures of a report, from its results alone."""

import math
from collections.abc import Mapping
from typing import Any

from .. import plots
from ..errors import require
from ..plots import Figure
from .attacks import ATTACKS
from .curves import HALF, Row, arms_of, controls_of
from .span import TITLES

# attacks may have the same rate at the same price, as ablation and the first subspace have
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


def drawings(results: Mapping[str, Any]) -> dict[str, tuple[Figure, str]]:
    """name -> (figure, caption); names of other models' begin with their place, "defence_"."""
    found: dict[str, tuple[Figure, str]] = {}
    for where, parts in results["parts"].items():
        rows = [row for name, part in parts.items() if name in ATTACKS for row in part["arms"]]
        start = "" if where == "model" else f"{where}_"
        found[f"{start}success"] = (
            _success(rows, results["config"]),
            "Share of prompts on which the attack succeeds, against what it costs on unrelated prompts. Each point is "
            "a strength; bars: 95 % intervals. Open marks: random directions and shuffled labels, same strengths.",
        )
        found[f"{start}scale"] = (
            _scale(rows, parts),
            "How often the behaviour shows with the direction subtracted (behaviour prompts) and added (unrelated "
            "prompts). A direction that carries the behaviour moves the rate with its sign; a random one does not.",
        )
        if "subspace" in parts:
            found[f"{start}k"] = (
                _k(rows, results["config"]["break_at"]),
                "How often the behaviour still shows with the first k directions removed at all sites.",
            )
        if by_layer := parts.get("layers", {}).get("arms"):
            found[f"{start}layers"] = (
                _layers(by_layer, HALF * arms_of(rows, "none")[0]["shown"]["value"]),
                "How often the behaviour still shows with the direction taken away at one layer alone. Dotted: half of "
                "the rate without an attack.",
            )
        found[f"{start}faithfulness"] = (
            _faithful(parts["faithfulness"]),
            "Each dot is a held-out prompt: how far its last token lies along the direction. Filled: the response "
            "shows the behaviour.",
        )
    return found


def _success(rows: list[Row], config: Mapping[str, Any]) -> Figure:
    figure = require("plotly.graph_objects", "plots").Figure()
    for place, name in enumerate(dict.fromkeys(row["attack"] for row in rows if row.get("kl_token"))):
        color, symbol = plots.LINES[place % len(plots.LINES)], SYMBOLS[place % len(SYMBOLS)]
        arms, drawn = arms_of(rows, name), {"color": color, "symbol": symbol, "size": 9}
        figure.add_scatter(
            **_curve(arms, "success"),
            mode="lines+markers",
            name=ATTACKS[name].title,
            line={"color": color},
            marker=drawn,
            opacity=0.8,
        )
        others = [row for control in controls_of(rows, name) for row in arms_of(rows, name, control)]
        marker = drawn | {"symbol": f"{symbol}-open", "size": 8}
        held = _curve(others, "success") | {"error_y": None}
        figure.add_scatter(**held, mode="markers", marker=marker, showlegend=False)
    figure.add_vline(x=config["budget"], line={"color": plots.FAINT, "dash": "dot"})
    figure.update_yaxes(range=[-0.05, 1.05])
    figure.update_xaxes(type="log", tickformat="~g", dtick=1 if _decades(figure) > 2 else "D2")
    return plots.style(figure, "KL a token on unrelated prompts (nats)", "success of the attack", height=440)


def _decades(figure: Figure) -> float:
    """How many powers of ten the points span."""
    x = [value for trace in figure.data for value in trace.x]
    return math.log10(max(x) / min(x)) if x else 0.0


def _curve(arms: list[Row], what: str) -> dict[str, Any]:
    return {"x": [max(arm["kl_token"]["value"], 1e-5) for arm in arms]} | _points(arms, what)


def _points(arms: list[Row], what: str) -> dict[str, Any]:
    values = [arm[what] for arm in arms]
    bars = {"type": "data", "array": [one["high"] - one["value"] for one in values], "thickness": 1}
    bars["arrayminus"] = [one["value"] - one["low"] for one in values]
    return {"y": [one["value"] for one in values], "error_y": bars}


def _scale(rows: list[Row], parts: Mapping[str, Any]) -> Figure:
    figure = require("plotly.graph_objects", "plots").Figure()
    base = arms_of(rows, "none")
    sets = [("subtracted, behaviour prompts", rows, "subtraction", -1.0)]
    sets.append(("added, unrelated prompts", parts["scale"]["arms"], "addition", 1.0))
    for place, (words, held, attack, sign) in enumerate(sets):
        for control, name, color in (("", "the direction", plots.LINES[place]), ("random 1", "random", plots.GREY)):
            arms = arms_of(held, attack, control)
            if arms:
                x = [sign * arm["strength"] for arm in arms]
                start = base if sign < 0 else []
                x = [0.0] * len(start) + x
                line = {"color": color, "dash": "solid" if place == 0 else "dash"}
                figure.add_scatter(
                    x=x, **_points([*start, *arms], "shown"), mode="lines+markers", name=f"{name} {words}", line=line
                )
    figure.update_yaxes(range=[-0.05, 1.05])
    return plots.style(figure, "scale (gaps of the class means)", "rate of the behaviour", height=420)


def _k(rows: list[Row], break_at: float) -> Figure:
    figure = require("plotly.graph_objects", "plots").Figure()
    for place, control in enumerate(["", *controls_of(rows, "subspace")]):
        arms = arms_of(rows, "subspace", control)
        color = plots.LINES[place % len(plots.LINES)]
        points = _points(arms, "shown")
        x = [arm["strength"] for arm in arms]
        figure.add_scatter(x=x, **points, mode="lines+markers", name=control or "fitted", line={"color": color})
    figure.add_hline(y=break_at, line={"color": plots.FAINT, "dash": "dot"})
    figure.update_yaxes(range=[-0.05, 1.05])
    figure.update_xaxes(tickvals=sorted({row["strength"] for row in arms_of(rows, "subspace")}))
    return plots.style(figure, "directions removed (k)", "rate of the behaviour", height=400)


def _layers(rows: list[Row], half: float) -> Figure:
    figure = require("plotly.graph_objects", "plots").Figure()
    drawn = [(name, control) for name in TITLES for control in ["", *controls_of(rows, name)] if arms_of(rows, name)]
    for place, (name, control) in enumerate(drawn):
        arms, color = arms_of(rows, name, control), plots.GREY if control else plots.LINES[place % len(plots.LINES)]
        x = [arm["strength"] for arm in arms]
        title = f"{TITLES[name]} of {control or 'the direction'}"
        figure.add_scatter(x=x, **_points(arms, "shown"), mode="lines+markers", name=title, line={"color": color})
    figure.add_hline(y=half, line={"color": plots.FAINT, "dash": "dot"})
    figure.update_yaxes(range=[-0.05, 1.05])
    figure.update_xaxes(tickvals=sorted({row["strength"] for row in rows}))
    return plots.style(figure, "layer", "rate of the behaviour", height=400)


def _faithful(part: Mapping[str, Any]) -> Figure:
    figure = require("plotly.graph_objects", "plots").Figure()
    roles = list(part["roles"])
    for shown, symbol in ((True, "circle"), (False, "circle-open")):
        points = [one for one in part["points"] if one["shown"] == shown]
        figure.add_scatter(
            x=[one["projection"] for one in points],
            y=[one["role"].replace("_", " ") for one in points],
            mode="markers",
            name="shows the behaviour" if shown else "does not",
            marker={"symbol": symbol, "color": plots.BLUE if shown else plots.ORANGE, "size": 8},
        )
    figure.update_yaxes(categoryorder="array", categoryarray=[role.replace("_", " ") for role in reversed(roles)])
    return plots.style(figure, "projection of the prompt's last token on the direction", "", height=320)
