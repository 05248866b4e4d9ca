"""The graph of a model: nodes write into the residual stream, slots read it, and every edge is a summand of what a slot
reads.

| node | writes | slots that feed it |
|---|---|---|
| `input` | the embeddings, as they enter the first block | none |
| `a3.h1` | head 1 of layer 3, through the output projection, without its bias | `a3.h1<q>`, `a3.h1<k>`, `a3.h1<v>` |
| `m3` | the MLP of layer 3 with its biases | `m3` |
| `logits` | nothing | `logits`: the final norm and the unembedding, after the last token |

The edge `a0.h1->m3` exists where the node writes before the slot reads: the slot's norm lies inside the slot, and so
does its projection. Where queries share keys (GQA), keys and values have a slot for each kv head, `a3.kv0<k>`, which
feeds all heads of its group; a graph that is not `grouped` has one for each query head, as EAP-IG writes it. Edges are
entries of matrices `place source slot`: no object stands for an edge. There is one place, or one for each named token
position or span. Neurons or latents of an MLP may be nodes of their own, `m3.n17` or `m3.l17` (`units`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import BadInput, UnknownName, did_you_mean
from ..models import Branch, Model, Site
from .units import Units, check_units

END = 2**31 - 1  # the depth of the logits
EVERYWHERE = ("",)  # the one place of a graph that does not tell positions apart


@dataclass(frozen=True)
class Part:
    """Sources, or slots, of one branch: they lie side by side in the matrices.

    Attributes:
        kind: "input", "head", "q", "k", "v", "whole" (a branch without heads), "unit" (parts of such a branch)
            or "logits".
        layer: None for input and logits. branch: "attn", "mlp", as the model's places call it.
        first, count: which rows (columns) of the matrices they are.
        depth: how far along the stream they write (read): an edge leads from a smaller to a larger depth.
        each: what one of them is called with its number: "a3.h{}", "a3.h{}<q>".
        numbers: of units, which ones they are.
    """

    kind: str
    layer: int | None
    branch: str
    first: int
    count: int
    depth: int
    each: str
    numbers: tuple[int, ...] = ()

    @property
    def range(self) -> slice:
        return slice(self.first, self.first + self.count)

    @property
    def names(self) -> list[str]:
        if self.kind in ("input", "whole", "logits"):
            return [self.each]
        return [self.each.format(number) for number in self.numbers or range(self.count)]


@dataclass(frozen=True)
class Branchlet:
    """What the graph must know of a branch: `heads` 0 for a branch without heads."""

    name: str
    layer: int
    heads: int
    kv_heads: int
    reads: int
    writes: int


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes, slots, and which of them an edge may connect.

    Attributes:
        writes: sources, part after part, in the order of the stream. reads: slots, likewise.
        places: names of the token positions or spans that edges are told apart by; `EVERYWHERE` for none.
        units: neurons or latents that are nodes of their own.
        n_layers, n_heads, d_model: as files of other tools say them; 0 where layers differ or nobody said.
    """

    writes: tuple[Part, ...]
    reads: tuple[Part, ...]
    places: tuple[str, ...] = EVERYWHERE
    units: tuple[Units, ...] = ()
    n_layers: int = 0
    n_heads: int = 0
    d_model: int = 0

    # ------------------------------------------------------------------ making one
    @staticmethod
    def of(
        model: Model, places: Sequence[str] = EVERYWHERE, *, grouped: bool = True, units: Sequence[Units] = ()
    ) -> "Graph":
        """The graph of a model.

        Args:
            grouped: whether heads that share keys and values share slots. units: of MLPs, that are nodes of their own.

        Raises:
            BadInput: two sets of units of one MLP; a branch that is no attention with heads and no MLP, or whose q, k
                and v cannot be told apart; streams that are not sums of what branches write.
            UnknownName: as `Model.written_before`.
        """
        model.refuse_streams("a circuit's edges are summands of one stream")
        model.written_before(Site("resid_post", model.cfg.n_layers - 1))  # refuses norms that close a sum
        check_units(units)
        branches = [_branchlet(model, branch) for branch in model.branches()]
        graph = Graph._built(branches, grouped, units)
        return replace(
            graph, places=tuple(places), units=tuple(units), n_layers=model.cfg.n_layers, n_heads=model.cfg.n_heads,
            d_model=model.cfg.d_model,
        )  # fmt: skip

    @staticmethod
    def of_sizes(
        n_layers: int, n_heads: int, n_kv_heads: int | None = None, *, parallel: bool = False, d_model: int = 0
    ) -> "Graph":
        """The graph of a model of these sizes; parallel: MLPs do not read the heads of their own layer."""
        kv = n_kv_heads or n_heads
        if min(n_layers, n_heads, kv) < 1 or n_heads % kv:
            raise BadInput(f"no graph has {n_layers} layers of {n_heads} heads with {kv} kv heads")
        branches = []
        for layer in range(n_layers):
            branches.append(Branchlet("attn", layer, n_heads, kv, 4 * layer, 4 * layer + 1))
            branches.append(Branchlet("mlp", layer, 0, 0, 4 * layer + (0 if parallel else 2), 4 * layer + 3))
        return replace(Graph._built(branches, grouped=True), n_layers=n_layers, n_heads=n_heads, d_model=d_model)

    @classmethod
    def _built(cls, branches: Sequence[Branchlet], grouped: bool, units: Sequence[Units] = ()) -> "Graph":
        writes, reads = [Part("input", None, "", 0, 1, -1, "input")], list[Part]()
        own = {(one.branch, one.layer): one for one in units}

        def add(parts: list[Part], kind: str, one: Branchlet, count: int, depth: int, each: str) -> None:
            first = parts[-1].first + parts[-1].count if parts else 0
            parts.append(Part(kind, one.layer, one.name, first, count, depth, each))

        for one in branches:
            name = f"{_LETTERS.get(one.name, one.name)}{one.layer}"
            if not one.heads:
                add(writes, "whole", one, 1, one.writes, name)
                add(reads, "whole", one, 1, one.reads, name)
                if found := own.get((one.name, one.layer)):
                    add(writes, "unit", one, len(found.numbers), one.writes, f"{name}.{found.letter}{{}}")
                    writes[-1] = replace(writes[-1], numbers=found.numbers)
                continue
            shared = grouped and one.kv_heads != one.heads
            add(writes, "head", one, one.heads, one.writes, f"{name}.h{{}}")
            add(reads, "q", one, one.heads, one.reads, f"{name}.h{{}}<q>")
            for kind in "kv":
                count, each = (one.kv_heads, "kv") if shared else (one.heads, "h")
                add(reads, kind, one, count, one.reads, f"{name}.{each}{{}}<{kind}>")
        add(reads, "logits", Branchlet("", 0, 0, 0, 0, 0), 1, END, "logits")
        reads[-1] = replace(reads[-1], layer=None)
        return cls(tuple(writes), tuple(reads))

    # ------------------------------------------------------------------ sizes and edges
    @cached_property
    def sources(self) -> list[str]:
        """Names of the nodes that write, in the order of the rows."""
        return [name for part in self.writes for name in part.names]

    @cached_property
    def slots(self) -> list[str]:
        """Names of the slots, in the order of the columns."""
        return [name for part in self.reads for name in part.names]

    @property
    def shape(self) -> tuple[int, int, int]:
        """place, source, slot."""
        return len(self.places), len(self.sources), len(self.slots)

    @cached_property
    def real(self) -> Bool[Tensor, "source slot"]:
        """Which sources write before a slot reads."""
        return _depths(self.writes)[:, None] < _depths(self.reads)

    @property
    def n_edges(self) -> int:
        return int(self.real.sum()) * len(self.places)

    @cached_property
    def feeds(self) -> Bool[Tensor, "source slot"]:
        """Through which slots a node reads."""
        held = torch.zeros(len(self.sources), len(self.slots), dtype=torch.bool)
        nodes = self.nodes_of
        for part in self.reads[:-1]:
            for node in nodes[part.branch, part.layer]:
                share = max(1, node.count // part.count) if node.kind == "head" else node.count
                for number in range(node.count):
                    held[node.first + number, part.first + number // share] = True
        return held

    @cached_property
    def nodes_of(self) -> dict[tuple[str, int | None], list[Part]]:
        """Branch and layer -> its nodes: heads; or the whole, and units of it."""
        found: dict[tuple[str, int | None], list[Part]] = {}
        for part in self.writes[1:]:
            found.setdefault((part.branch, part.layer), []).append(part)
        return found

    @cached_property
    def across(self) -> Bool[Tensor, "slot"]:
        """Slots that feed a node at other places too: keys and values."""
        return torch.cat([torch.full((part.count,), part.kind in ("k", "v")) for part in self.reads])

    def with_places(self, places: Sequence[str]) -> Self:
        """The same with edges told apart by place."""
        return replace(self, places=tuple(places))

    # ------------------------------------------------------------------ names
    def name(self, place: int, source: int, slot: int) -> str:
        """`a0.h1->m3`; of a graph with places `a0.h1->m3@end`."""
        bare = f"{self.sources[source]}->{self.slots[slot]}"
        return f"{bare}@{self.places[place]}" if self.places != EVERYWHERE else bare

    def names(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Every edge's name and place in the matrices."""
        for place in range(len(self.places)):
            for source, slot in self.real.nonzero().tolist():
                yield self.name(place, source, slot), (place, source, slot)

    def index(self, name: str) -> tuple[int, int, int]:
        """Place, source and slot of an edge. Raises `UnknownName` for a name that no edge has."""
        bare, _, place = name.partition("@")
        source, arrow, slot = bare.partition("->")
        if not arrow:
            raise UnknownName(f"{name!r} is no edge; write source->slot, such as {self.name(0, 0, 0)}")
        for what, given, known in (("node", source, self._rows), ("slot", slot, self._columns)):
            if given not in known:
                raise UnknownName(f"{name!r}: no {what} {given!r} in this graph{did_you_mean(given, known) or ''}")
        if place not in self.places:
            raise UnknownName(f"{name!r}: the graph's places are {', '.join(filter(None, self.places)) or 'not named'}")
        row, column = self._rows[source], self._columns[slot]
        if not bool(self.real[row, column]):
            raise UnknownName(f"{name!r} is no edge: {source} does not write before {slot} reads")
        return self.places.index(place), row, column

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.sources)}

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.slots)}

    # ------------------------------------------------------------------ one graph beside another
    @property
    def grouped(self) -> bool:
        """Whether heads share slots."""
        return any("kv" in part.each for part in self.reads)

    @property
    def parallel(self) -> bool:
        """Whether MLPs do not read the heads of their own layer."""
        depth = {(part.branch, part.layer): part.depth for part in self.writes}
        mlps = [part for part in self.reads if part.kind == "whole"]
        return any(part.depth < depth.get(("attn", part.layer), -1) for part in mlps)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        same = (self.sources, self.slots, self.places) == (other.sources, other.slots, other.places)
        return same and torch.equal(self.real, other.real)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        places = "" if self.places == EVERYWHERE else f", {len(self.places)} places"
        return f"Graph({len(self.sources)} nodes, {len(self.slots)} slots, {self.n_edges:,} edges{places})"


_LETTERS = {"attn": "a", "mlp": "m"}


def _depths(parts: Sequence[Part]) -> Int[Tensor, "n"]:
    return torch.from_numpy(np.repeat([part.depth for part in parts], [part.count for part in parts]))


def _branchlet(model: Model, branch: Branch) -> Branchlet:
    depths = model.depth(branch.reads), model.depth(branch.out)
    where = f"layer {branch.layer} of {model.name}"
    if model.anatomy[branch.layer].factor != 1:
        raise BadInput(f"{where} multiplies the whole stream, so that what a node wrote changes on its way")
    heads = branch.slot.heads
    if heads is None:
        if branch.pointwise:
            return Branchlet(branch.name, branch.layer, 0, 0, *depths)
        raise BadInput(f"{where}: {branch.name} is a {branch.kind}; circuits are of attention heads and MLPs")
    places = model.anatomy[branch.layer].places
    if missing := [name for name in "qkv" if branch.site(name).name not in places]:
        raise BadInput(f"{where}: its heads have no {', '.join(missing)} of their own that could read alone")
    if "gate" in branch.slot.mixer.parts:
        raise BadInput(f"{where}: its heads have output gates, which read the stream beside q, k and v")
    return Branchlet(branch.name, branch.layer, heads.n, heads.n_kv, *depths)
