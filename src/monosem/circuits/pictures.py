"""A circuit as a picture: nodes by layer from the input below to the logits above, edges by what reads them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..errors import require
from ..plots import BLUE, GREY, LINES, ORANGE, Figure, literal, style

SHOWN = 60  # edges of a picture that can be read
READERS = {"q": (BLUE, "query"), "k": (ORANGE, "key"), "v": (LINES[3], "value"), "": (GREY, "MLP or logits")}


def drawn(table: pd.DataFrame, title: str) -> Figure:
    """Edges as `Circuit.table` lists them: `source`, `slot` and, where there are scores, `score`."""
    go = require("plotly.graph_objects", "plots")
    ends = [(source, *_reader(slot)) for source, slot in zip(table["source"], table["slot"])]
    nodes = list(dict.fromkeys(name for source, node, _ in ends for name in (source, node)))
    last = max([_layer(name) or 0 for name in nodes] or [0])
    at = _places(nodes, last)
    scores = table["score"].tolist() if "score" in table else [1.0] * len(table)
    largest = max(map(abs, scores)) or 1.0
    figure = go.Figure()
    seen: set[str] = set()
    for (source, node, kind), score, edge in zip(ends, scores, table["edge"]):
        colour, label = READERS[kind]
        line = {"color": colour, "width": 0.6 + 5 * abs(score) / largest, "dash": "solid" if score >= 0 else "dot"}
        xs, ys = _curve(at[source], at[node])
        figure.add_scatter(
            x=xs, y=ys, mode="lines", line=line, opacity=0.75, name=f"read as {label}", legendgroup=label,
            showlegend=label not in seen, hoverinfo="text", text=f"{literal(edge)}: {score:.4g}",
        )  # fmt: skip
        seen.add(label)
    figure.add_scatter(
        x=[at[name][0] for name in nodes], y=[at[name][1] for name in nodes], mode="markers+text", text=nodes,
        textposition="middle center", textfont={"size": 10, "color": "#1b1f24"}, showlegend=False, hoverinfo="text",
        marker={"size": 40, "color": "#f4f1e8", "line": {"color": GREY, "width": 1}, "symbol": _symbols(nodes)},
    )  # fmt: skip
    layers = sorted({at[name][1] for name in nodes})
    labels = ["input" if y == -1 else "logits" if y == last + 1 else str(int(y)) for y in layers]
    ranks = {y: rank for rank, y in enumerate(layers)}
    for trace in figure.data:  # layers without a node take no room
        trace.y = [_ranked(y, ranks, layers) for y in trace.y]
    figure.update_yaxes(tickvals=[*range(len(layers))], ticktext=labels, zeroline=False)
    figure.update_xaxes(visible=False)
    figure.update_layout(legend={"orientation": "h", "y": -0.04})
    return style(figure, "", "layer", f"{title}; dotted: edges that work against the answer", 80 + 62 * len(layers))


def _reader(slot: str) -> tuple[str, str]:
    """The node that a slot belongs to, and what it reads as: a kv head's group is drawn as a node of its own."""
    node, _, kind = slot.partition("<")
    return node, kind.rstrip(">")


def _layer(node: str) -> int | None:
    if node in ("input", "logits"):
        return None
    digits = node.split(".")[0].lstrip("abcdefghijklmnopqrstuvwxyz_")
    return int(digits) if digits.isdecimal() else None


def _places(nodes: Sequence[str], last: int) -> dict[str, tuple[float, float]]:
    """x by order in the layer, heads left of MLPs; y is the layer."""
    rows: dict[int, list[str]] = {}
    for name in nodes:
        layer = _layer(name)
        rows.setdefault(-1 if name == "input" else last + 1 if name == "logits" else layer or 0, []).append(name)
    places = {}
    for y, names in rows.items():
        ordered = sorted(names, key=lambda name: (name.startswith("m"), ".kv" in name, len(name), name))
        for number, name in enumerate(ordered):
            places[name] = (number - (len(ordered) - 1) / 2 + 0.18 * (y % 3 - 1), float(y))
    return places


def _curve(one: tuple[float, float], other: tuple[float, float], steps: int = 12) -> tuple[list[float], list[float]]:
    """A line that leaves upwards and arrives upwards."""
    shares = [step / steps for step in range(steps + 1)]
    smooth = [share * share * (3 - 2 * share) for share in shares]
    return [one[0] + s * (other[0] - one[0]) for s in smooth], [one[1] + s * (other[1] - one[1]) for s in shares]


def _ranked(y: float, ranks: dict[float, int], layers: Sequence[float]) -> float:
    below = max(layer for layer in layers if layer <= y + 1e-9)
    above = min((layer for layer in layers if layer > below), default=below)
    share = 0.0 if above == below else (y - below) / (above - below)
    return ranks[below] + share


def _symbols(nodes: Sequence[str]) -> list[Any]:
    return ["square" if name.startswith("m") else "circle" for name in nodes]
