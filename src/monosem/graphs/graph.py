"""An attribution graph: nodes, what each gives to each, and what can be said of the whole."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BadInput, UnknownName
from ..results import Result
from .files import write_graph
from .influence import largest_share, shares_of, sweep
from .parts import Parts
from .viewer import write_page

SINK = 0.3  # `at_first_token` from which on lists and pictures begin with the other tokens (as templates/graph.js)
KINDS = ("neuron", "latent", "error", "token", "bias", "logit")


@dataclass(frozen=True, eq=False)
class AttributionGraph(Result):
    """What each node of one prompt gives to each other one.

    Attributes:
        nodes: a row a node, in the order of units (layer, position, index), errors, tokens, bias, logits:

            id          unique: `12_381_5` is unit 381 of layer 12 at token 5; errors are `12_mlp-error_5`
            kind        "neuron", "latent", "error", "token", "bias" or "logit"
            layer       -1 for tokens and bias, the number of layers for logits
            position, index (of the unit, or the token's id), activation, label
            probability of logits; depth: nodes read from smaller depths alone

        edges: `row node`: what the node (column) gives to the node of the row. Rows are the units, then the logits.
        rows: the node of each row. sums: what each row adds up to: the read-out in the run.
        weights: how much each logit counts.
        tokens: of the prompt, as text. model: its name. facts: what it was made with.
        parts: the frozen run that it was made of; None for a graph from a file.
    """

    nodes: pd.DataFrame
    edges: Float[Tensor, "row node"]
    rows: Int[Tensor, "row"]
    sums: Float[Tensor, "row"]
    weights: Float[Tensor, "logit"]
    tokens: list[str]
    model: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    parts: Parts | None = field(default=None, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    ranked_by: ClassVar[str | None] = "influence"

    def __repr__(self) -> str:
        counts = self.nodes["kind"].value_counts()
        kinds = ", ".join(f"{counts[kind]} {kind}s" for kind in KINDS if kind in counts and kind != "bias")
        return f"AttributionGraph({self.model}: {len(self.tokens)} tokens; {kinds}; {self.n_edges:,} edges)"

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        return int((self.edges != 0).sum())

    # ------------------------------------------------------------------ nodes
    @cached_property
    def kinds(self) -> "np.ndarray[Any, Any]":
        return self.nodes["kind"].to_numpy()

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Node id -> its number."""
        return {one: number for number, one in enumerate(self.nodes["id"])}

    def number(self, node: str | int) -> int:
        """The number of a node, given by its id or number. Raises `UnknownName`."""
        if isinstance(node, str) and node in self.numbers:
            return self.numbers[node]
        if isinstance(node, int) and not isinstance(node, bool) and 0 <= node < len(self.nodes):
            return node
        raise UnknownName(f"the graph has no node {node!r}; graph.nodes.id lists them")

    @property
    def _row_kinds(self) -> "np.ndarray[Any, Any]":
        return self.kinds[self.rows.cpu().numpy()]

    @property
    def logit_rows(self) -> slice:
        """The rows of logits, the last ones."""
        return slice(len(self.rows) - len(self.weights), len(self.rows))

    def inputs(self, node: str | int, n: int = 10) -> pd.DataFrame:
        """The n nodes that give most to a node: its row, with `weight` (largest magnitudes first)."""
        at = (self.rows == self.number(node)).nonzero().flatten()
        if not len(at):
            return self._weighted(torch.zeros(len(self.nodes)), n)
        return self._weighted(self.edges[int(at[0])], n)

    def outputs(self, node: str | int, n: int = 10) -> pd.DataFrame:
        """The n nodes to which a node gives most."""
        column = torch.zeros(len(self.nodes), dtype=self.edges.dtype)
        column[self.rows.cpu()] = self.edges[:, self.number(node)].cpu()
        return self._weighted(column, n)

    def _weighted(self, weights: Tensor, n: int) -> pd.DataFrame:
        best = weights.abs().topk(min(n, len(weights))).indices
        best = best[weights[best] != 0].cpu()
        columns = ["id", "kind", "layer", "position", "index", "activation", "label"]
        return self.nodes.iloc[best.numpy()][columns].assign(weight=weights.cpu()[best].numpy()).reset_index(drop=True)

    # ------------------------------------------------------------------ the whole
    @property
    def error(self) -> float:
        """How far rows are from their sums at most, relative to the largest sum."""
        return float((self.edges.sum(-1) - self.sums).abs().max() / self.sums.abs().max().clamp(min=1e-12))

    @cached_property
    def shares(self) -> Float[Tensor, "row node"]:
        """Magnitudes as shares of their rows. The bias, which no input changes, is left out."""
        edges = self.edges.clone()
        edges[:, self._are("bias")] = 0
        return shares_of(edges)

    @property
    def row_weights(self) -> Float[Tensor, "row"]:
        """The logits' weights, as shares; 0 for units."""
        whole = self.shares.new_zeros(len(self.rows))
        whole[self.logit_rows] = (self.weights / self.weights.sum().clamp(min=1e-10)).to(whole)
        return whole

    @cached_property
    def influence(self) -> Float[Tensor, "node"]:
        """How much of the logits goes through each node, over all paths; 1 would be all of it."""
        depths = torch.tensor(self.nodes["depth"].tolist(), device=self.rows.device)[self.rows]
        return sweep(self.shares, self.rows, depths, self.row_weights)

    @property
    def replacement(self) -> float:
        """The share of influence that goes back to tokens, and not to errors."""
        by_kind = {kind: float(self.influence[self._are(kind)].sum()) for kind in ("token", "error")}
        return by_kind["token"] / max(sum(by_kind.values()), 1e-10)

    @property
    def completeness(self) -> float:
        """The share of what rows are made of that no error gives, rows weighted by their influence.

        A graph in which everything comes from errors has 0. `circuit_tracer_completeness` has 1/2 there, as it counts
        errors and tokens as explained nodes of their own.
        """
        influence = self.influence[self.rows] + self.row_weights
        explained = 1 - self.shares[:, self._are("error")].sum(-1)
        return float((explained * influence).sum() / influence.sum().clamp(min=1e-10))

    @property
    def circuit_tracer_completeness(self) -> float:
        """What circuit-tracer calls completeness: nodes without a row count as explained."""
        influence = self.influence.clone()
        influence[self.rows] += self.row_weights
        explained = torch.ones_like(influence)
        explained[self.rows] = 1 - self.shares[:, self._are("error")].sum(-1)
        return float((explained * influence).sum() / influence.sum().clamp(min=1e-10))

    @property
    def at_first_token(self) -> float:
        """The share of neurons' and latents' influence that is at the first token, where they read no other: of an
        attention sink it is large, and says nothing of the rest of the prompt."""
        table = self.table[np.isin(self.kinds, ("neuron", "latent"))]
        first = table.loc[table["position"] == 0, "influence"]
        return float(first.sum() / max(table["influence"].sum(), 1e-10))

    def _are(self, kind: str) -> Tensor:
        return torch.tensor(self.kinds == kind, device=self.edges.device)

    @property
    def scores(self) -> dict[str, float]:
        return {
            "replacement": self.replacement,
            "completeness": self.completeness,
            "circuit_tracer_completeness": self.circuit_tracer_completeness,
        }

    @property
    def table(self) -> pd.DataFrame:
        """A row a node, with its influence."""
        return self.nodes.assign(influence=self.influence.cpu().numpy())

    # ------------------------------------------------------------------ a smaller graph
    def prune(self, nodes: float = 0.8, edges: float = 0.98) -> "AttributionGraph":
        """The nodes and edges through which most influence goes.

        The most influential nodes that make up a share of all influence stay, with all tokens and logits; then the
        edges that make up a share of what is left (each counts as its share of the row times the row's influence); then
        units and errors that lead nowhere, and units that nothing leads to, go. As circuit-tracer does it.

        Raises:
            BadInput: shares that are not above 0 and at most 1.
        """
        for name, share in (("nodes", nodes), ("edges", edges)):
            if not 0 < share <= 1:
                raise BadInput(f"{name}= is a share of the influence, above 0 and at most 1, not {share!r}")
        always = self._are("token") | self._are("logit") | self._are("bias")
        kept = always | (self.influence >= largest_share(self.influence, nodes))
        within = self._within(kept)
        influence = within.influence[within.rows] + within.row_weights
        scores = within.shares * influence[:, None]
        strong = (scores >= largest_share(scores.flatten(), edges)) | within._are("bias")
        within = replace(within, edges=torch.where(strong, within.edges, 0))
        while True:
            kept = within._connected()
            if bool(kept.all()):
                return within
            within = within._within(kept)

    def _connected(self) -> Tensor:
        """Nodes that lead somewhere and that something leads to."""
        there = (self.edges != 0) & ~self._are("bias")
        used, fed = there.any(0), torch.zeros(len(self.nodes), dtype=torch.bool, device=self.edges.device)
        fed[self.rows] = there.any(-1)
        units, errors = self._are("neuron") | self._are("latent"), self._are("error")
        return ~((units | errors) & ~used) & ~(units & ~fed)

    def _within(self, kept: Tensor) -> "AttributionGraph":
        """With these nodes alone (all logits are among them)."""
        number = kept.cumsum(0) - 1
        rows = kept[self.rows].nonzero().flatten()
        return replace(
            self,
            nodes=self.nodes[kept.cpu().numpy()].reset_index(drop=True),
            edges=self.edges[rows][:, kept],
            rows=number[self.rows[rows]],
            sums=self.sums[rows],
        )

    # ------------------------------------------------------------------ files
    def save(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """The viewer (.html; options of `viewer.page`), the graph as other viewers read it (.json), or the table of its
        nodes (.csv, .parquet)."""
        ending = Path(path).suffix.lower()
        if ending == ".json":
            return write_graph(self, path)
        return write_page(self, path, **options) if ending == ".html" else super().save(path)
