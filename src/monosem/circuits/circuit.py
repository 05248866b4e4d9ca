"""A circuit: some edges of a graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import BadInput
from ..plots import Figure
from ..results import Result
from .graph import Graph
from .pictures import SHOWN, drawn


@dataclass(frozen=True, eq=False)
class Circuit(Result):
    """The edges that a circuit keeps; whatever it leaves out carries what the corrupted prompt has there.

    Attributes:
        edges: which edges it keeps. notes: what was assumed or left out while it was made, one sentence each.
        values: the scores by which they were chosen; None where nobody scored them.
    """

    graph: Graph
    edges: Bool[Tensor, "place source slot"] = field(repr=False)
    notes: tuple[str, ...] = ()
    values: Tensor | None = field(default=None, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raises `BadInput` for edges of another shape, or edges that no graph of this shape has."""
        if tuple(self.edges.shape) != self.graph.shape or self.edges.dtype != torch.bool:
            raise BadInput(
                f"a circuit of this graph is a boolean tensor of shape {list(self.graph.shape)}, not "
                f"{self.edges.dtype} of shape {list(self.edges.shape)}"
            )
        if bool((self.edges & ~self.graph.real).any()):
            place, source, slot = (self.edges & ~self.graph.real).nonzero()[0].tolist()
            raise BadInput(f"{self.graph.name(place, source, slot)} is no edge: the slot reads before the node writes")

    @staticmethod
    def of(graph: Graph, names: Sequence[str]) -> "Circuit":
        """Edges by their names, `["input->a0.h1<v>", "a0.h1->logits"]`. Raises `UnknownName` for an unknown name."""
        chosen = torch.zeros(graph.shape, dtype=torch.bool)
        for name in names:
            chosen[graph.index(name)] = True
        return Circuit(graph, chosen)

    @staticmethod
    def full(graph: Graph) -> "Circuit":
        """Every edge: the model itself."""
        return Circuit(graph, graph.real.expand(graph.shape).clone())

    @staticmethod
    def empty(graph: Graph) -> "Circuit":
        """No edge: the model on the corrupted prompt."""
        return Circuit(graph, torch.zeros(graph.shape, dtype=torch.bool))

    @property
    def n_edges(self) -> int:
        return int(self.edges.sum())

    @cached_property
    def nodes(self) -> list[str]:
        """The nodes that write along a kept edge."""
        kept = self.edges.any(-1).any(0)
        return [name for name, yes in zip(self.graph.sources, kept.tolist()) if yes]

    def __repr__(self) -> str:
        share = self.n_edges / self.graph.n_edges
        notes = "".join(f"; {note}" for note in self.notes)
        return f"Circuit({self.n_edges:,} edges ({share:.2%}) of {len(self.nodes)} nodes{notes})"

    # ------------------------------------------------------------------ other circuits
    def complement(self) -> "Circuit":
        """All other edges."""
        return replace(self, edges=self.graph.real & ~self.edges, notes=())

    def without(self, edges: Bool[Tensor, "place source slot"]) -> "Circuit":
        return replace(self, edges=self.edges & ~edges)

    def plus(self, edges: Bool[Tensor, "place source slot"]) -> "Circuit":
        return replace(self, edges=self.edges | edges)

    def out_of(self, node: str) -> Bool[Tensor, "place source slot"]:
        """The kept edges that leave a node. Raises `BadInput` for a node that the graph does not have."""
        if node not in self.graph.sources:
            raise BadInput(f"no node {node!r} writes in this graph")
        chosen = torch.zeros_like(self.edges)
        row = self.graph.sources.index(node)
        chosen[:, row] = self.edges[:, row]
        return chosen

    def pruned(self) -> Self:
        """The edges that lie on a path from the input to the logits; the others change nothing.

        A sweep along the stream finds the nodes that the input reaches, a sweep back the ones that reach the logits.
        """
        graph, edges = self.graph, self.edges
        reached = _sweep_forward(graph, edges)
        edges = edges & reached[:, :, None]
        return replace(self, edges=edges & _sweep_back(graph, edges)[:, None, :])

    # ------------------------------------------------------------------ to look at
    @property
    def table(self) -> pd.DataFrame:
        """A row an edge: its name, both ends, and its score where there is one."""
        rows = []
        for place, source, slot in self.edges.nonzero().tolist():
            graph = self.graph
            row: dict[str, Any] = {
                "edge": graph.name(place, source, slot), "source": graph.sources[source], "slot": graph.slots[slot]
            }  # fmt: skip
            if len(graph.places) > 1:
                row["place"] = graph.places[place]
            if self.values is not None:
                row["score"] = float(self.values[place, source, slot])
            rows.append(row)
        return pd.DataFrame(rows, columns=None if rows else ["edge", "source", "slot"])

    def plot(self, edges: int = SHOWN) -> Figure:
        """The edges with the largest scores (without scores: the first ones) and their nodes, by layer.

        Raises:
            BadInput: the circuit has no edge to draw.
        """
        if not self.n_edges:
            raise BadInput("the circuit has no edges, so there is nothing to draw")
        table = self.table
        if "score" in table:
            table = table.iloc[table["score"].abs().argsort(kind="stable")[::-1]]
        table = table.head(edges).reset_index(drop=True)
        left = self.n_edges - len(table)
        return drawn(
            table, f"{len(table)} of {self.n_edges:,} edges, by size of score" if left else f"{len(table)} edges"
        )


def _sweep_forward(graph: Graph, edges: Bool[Tensor, "place source slot"]) -> Bool[Tensor, "place source"]:
    """The nodes that a path from the input reaches, at each place."""
    reached = torch.zeros(graph.shape[:2], dtype=torch.bool)
    reached[:, 0] = True
    for part in graph.writes[1:]:
        into = graph.feeds[part.range].any(0).nonzero()[:, 0]
        hit = (edges[:, :, into] & reached[:, :, None]).any(1)
        hit = torch.where(graph.across[into], hit.any(0), hit)
        reached[:, part.range] = (hit[:, None] & graph.feeds[part.range][:, into]).any(-1)
    return reached


def _sweep_back(graph: Graph, edges: Bool[Tensor, "place source slot"]) -> Bool[Tensor, "place slot"]:
    """The slots from which a path leads to the logits, at each place."""
    useful = torch.zeros(graph.shape[0], graph.shape[2], dtype=torch.bool)
    useful[:, -1] = True
    for part in graph.writes[:0:-1]:
        node = (edges[:, part.range] & useful[:, None]).any(-1)  # place node
        into = graph.feeds[part.range].any(0).nonzero()[:, 0]
        slots = (node[:, :, None] & graph.feeds[part.range][:, into]).any(1)
        useful[:, into] = torch.where(graph.across[into], slots.any(0), slots)
    return useful
