"""Scores of all edges of a graph, and the circuits that they make."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BadInput
from ..plots import Figure, heatmap
from ..results import Result
from . import selection
from .circuit import Circuit
from .graph import Graph

SHOWN = 10_000  # rows of a table that `table` gives whole; `top` ranks all edges


@dataclass(frozen=True, eq=False)
class EdgeScores(Result):
    """By how much the metric falls when an edge alone is corrupted: exactly, or as a method estimates it; means over
    pairs.

    Attributes:
        values: NaN where an edge was not scored. method: a row of `EDGE_METHODS`, or "exact".
        clean, corrupted: the metric's mean at both ends. n: how many pairs.
    """

    graph: Graph
    values: Float[Tensor, "place source slot"] = field(repr=False)
    method: str
    metric: str = ""
    model: str = ""
    clean: float = float("nan")
    corrupted: float = float("nan")
    n: int = 0
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    ranked_by = "score"
    either_way = True

    def __post_init__(self) -> None:
        if tuple(self.values.shape) != self.graph.shape:
            raise BadInput(f"scores of this graph have shape {list(self.graph.shape)}, not {list(self.values.shape)}")

    def __repr__(self) -> str:
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"EdgeScores({self.method} of {self.graph.n_edges:,} edges in {self.model or 'a model'}, {self.n} pairs, "
            f"{self.metric} {self.clean:.4g} clean and {self.corrupted:.4g} corrupted{notes})"
        )

    # ------------------------------------------------------------------ circuits
    def top_n(self, edges: int, *, absolute: bool = True) -> Circuit:
        """`selection.top_n`: the edges with the largest scores, pruned."""
        return self._made(selection.top_n(self.graph, self.values, edges, absolute=absolute), "top_n")

    def threshold(self, at_least: float, *, absolute: bool = True) -> Circuit:
        """`selection.threshold`: all edges with at least this score, pruned."""
        return self._made(selection.threshold(self.graph, self.values, at_least, absolute=absolute), "threshold")

    def greedy(self, edges: int, *, absolute: bool = True) -> Circuit:
        """`selection.greedy`: edges from the logits backwards, so that all are connected."""
        return self._made(selection.greedy(self.graph, self.values, edges, absolute=absolute), "greedy")

    def _made(self, circuit: Circuit, how: str) -> Circuit:
        config = {**self.config, "selection": how}
        return replace(circuit, values=self.values, config=config)

    # ------------------------------------------------------------------ other forms
    def by_node(self) -> Float[Tensor, "place source"]:
        """Each node's scores summed over the slots that read it."""
        return (self.values.nan_to_num() * self.graph.real).sum(-1)

    def by_group(self, graph: Graph) -> "EdgeScores":
        """Scores by query head as scores by kv head: sums over each group.

        Raises:
            BadInput: the graph has other nodes, or slots that are no groups of these.
        """
        if graph.sources != self.graph.sources or graph.shape[2] > self.graph.shape[2]:
            raise BadInput("scores are summed into a graph of the same nodes, with fewer slots")
        summed = torch.zeros(self.graph.shape[0], *graph.shape[1:], dtype=self.values.dtype)
        mine = {(part.kind, part.branch, part.layer): part for part in self.graph.reads}
        for part in graph.reads:
            own = mine[part.kind, part.branch, part.layer]
            values = self.values[:, :, own.range]
            summed[:, :, part.range] = values.unflatten(-1, (part.count, -1)).sum(-1)
        return replace(self, graph=replace(graph, places=self.graph.places), values=summed)

    # ------------------------------------------------------------------ to look at
    def top(self, n: int = 10, by: str | None = None, *, absolute: bool = True) -> pd.DataFrame:
        """The n edges with the largest scores, either way or (absolute=False) above zero first."""
        if by not in (None, "score"):
            return super().top(n, by)
        return self.rows_of(selection.order(self.graph, self.values, absolute=absolute)[:n])

    @property
    def table(self) -> pd.DataFrame:
        """A row an edge, in the order of the matrices."""
        return self.rows_of(self.graph.real.expand(self.graph.shape).flatten().nonzero()[:, 0])

    def rows_of(self, flat: Int[Tensor, "edges"]) -> pd.DataFrame:
        """The rows of some edges, by their flat index into the matrices."""
        graph = self.graph
        _, n_sources, n_slots = graph.shape
        place, rest = flat // (n_sources * n_slots), flat % (n_sources * n_slots)
        source, slot = rest // n_slots, rest % n_slots
        frame = pd.DataFrame({
            "source": pd.Series(graph.sources).iloc[source.tolist()].tolist(),
            "slot": pd.Series(graph.slots).iloc[slot.tolist()].tolist(),
            "score": self.values.flatten()[flat].tolist(),
        })  # fmt: skip
        frame.insert(0, "edge", frame["source"] + "->" + frame["slot"])
        if len(graph.places) > 1:
            frame["place"] = [graph.places[at] for at in place.tolist()]
            frame["edge"] += "@" + frame["place"]
        return frame

    def plot(self) -> Figure:
        """Nodes by layer: each node's scores summed over the slots that read it."""
        graph = self.graph
        scores = self.by_node().sum(0)
        layers: list[int | None] = [*dict.fromkeys(part.layer for part in graph.writes[1:])]
        wide = max((part.count for part in graph.writes if part.kind == "head"), default=0)
        whole = list(dict.fromkeys(part.branch for part in graph.writes if part.kind == "whole"))
        columns = [*map(str, range(wide)), *(name.upper() for name in whole)]
        grid = torch.full((len(layers), len(columns)), torch.nan, dtype=torch.float64)
        for part in graph.writes[1:]:
            row, first = layers.index(part.layer), 0 if part.kind == "head" else wide + whole.index(part.branch)
            if part.kind == "unit":
                grid[row, first] += scores[part.range].sum()  # a branch and its units are one cell
            else:
                grid[row, first : first + part.count] = scores[part.range].double()
        title = f"{self.method}: what falls when a node is corrupted, {self.metric}"
        return heatmap(grid, columns, list(map(str, layers)), x_title="head", y_title="layer", title=title,
                       unit=f"Δ {self.metric}")  # fmt: skip
