"""A graph laid over a model: where its nodes write, where its slots read, and the weights in between."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput, Mismatch
from ..models import Branch, Model, Site, TokenBatch
from ..models.running.moment import EditLike
from ..patching.paths.nodes import sent_at
from .graph import Graph, Part
from .units import Units

INPUT = Site("resid_pre", 0)


@dataclass(frozen=True, eq=False)
class Wrote:
    """What every node wrote in a run (or what is written in its place), and the streams that slots read.

    Attributes:
        inner: part -> `rows pos d_model`, of heads what they mix, `rows pos head d_head`, of units their coefficients,
            `rows pos unit`. A branch with units of its own writes the rest.
        raw: heads in front of a norm -> their branch's output before that norm.
        streams: place -> `rows pos d_model`.
        given: place of q, k, v or of what an MLP is given -> its values, where a run had them; and units' sites.
    """

    inner: dict[Part, Tensor]
    raw: dict[Part, Tensor]
    streams: dict[Site, Tensor]
    given: dict[Site, Tensor]

    def repeated(self, times: int) -> "Wrote":
        """Copies of all rows, one block after the other."""
        if times == 1:
            return self

        return Wrote(*(_copies(held, times) for held in (self.inner, self.raw, self.streams, self.given)))


def _copies(held: dict[Any, Tensor], times: int) -> dict[Any, Tensor]:
    return {key: value.repeat(times, *[1] * (value.ndim - 1)) for key, value in held.items()}


class Wiring:
    """A graph's parts in a model.

    Raises:
        Mismatch: the graph is of another model. BadInput: it has slots by query head where heads share keys.
    """

    def __init__(self, model: Model, graph: Graph):
        own = Graph.of(model, units=graph.units)
        if (own.sources, own.slots) != (graph.sources, graph.slots):
            if own.grouped and not graph.grouped and own.sources == graph.sources:
                raise BadInput(
                    f"{model.name} has keys and values by kv head, and this graph by query head: its scores can be "
                    "summed by group (scores.by_group()), and circuits read with Graph.of(model)"
                )
            raise Mismatch(f"the graph ({len(graph.sources)} nodes) is not {model.name}'s ({len(own.sources)} nodes)")
        if model.ambient_edits:
            raise BadInput("circuits inside model.editing(...) would miss its edits; leave that block first")
        self.model, self.graph = model, graph
        self.end = Site("resid_post", model.cfg.n_layers - 1)
        self.branches: dict[Part, Branch] = {
            part: model.branch(part.branch, part.layer)
            for part in (*graph.writes, *graph.reads)
            if part.layer is not None
        }

    def site(self, part: Part) -> Site:
        """Where a part's values are written, or what its slots compute first: q, k, v, what an MLP is given."""
        if part.kind == "input":
            return INPUT
        if part.kind == "logits":
            return self.end
        branch = self.branches[part]
        return branch.site(part.kind) if part.kind in ("q", "k", "v") else Site(f"{branch.name}_input", branch.layer)

    def sent(self, part: Part) -> Site:
        """Where a part of sources can be read off."""
        if part.kind == "unit":
            return self.units[part].site
        return INPUT if part.kind == "input" else sent_at(self.branches[part])

    @cached_property
    def units(self) -> dict[Part, Units]:
        """Of parts of units, and of the branches that these are parts of."""
        held: dict[tuple[str, int | None], Units] = {(one.branch, one.layer): one for one in self.graph.units}
        return {
            part: held[part.branch, part.layer]
            for part in self.graph.writes
            if (part.branch, part.layer) in held and part.kind in ("whole", "unit")
        }

    def inner(self, values: Callable[[Site], Tensor]) -> dict[Part, Tensor]:
        """What every node writes, from the values of sites: a branch less its units."""
        found = {}
        for part in self.graph.writes:
            value, units = values(self.sent(part)), self.units.get(part)
            if units is not None and part.kind == "unit":
                value = units.read(value)
            elif units is not None:
                value = value - units.write(units.read(values(units.site)))
            found[part] = value
        return found

    def reads(self, part: Part) -> Site:
        """The stream that a part of slots reads."""
        return self.end if part.kind == "logits" else self.branches[part].reads

    def visible(self, part: Part) -> int:
        """How many sources, from the first on, write before a part of slots reads."""
        return int(self.graph.real[:, part.first].sum())

    @cached_property
    def normed(self) -> list[Part]:
        """The heads in front of a norm."""
        return [part for part in self.graph.writes if part.kind == "head" and self.branches[part].norm_out is not None]

    @cached_property
    def _weights(self) -> dict[Part, tuple[Tensor, Tensor]]:
        return {}

    def weight(self, part: Part) -> tuple[Float[Tensor, "slot d_model d_head"], Float[Tensor, "slot d_head"]]:
        """The projection of q, k or v from what the norm gives, and its bias."""
        if part not in self._weights:
            model, kind, layer = self.model, part.kind.upper(), int(part.layer or 0)
            views = [getattr(model, f"W_{kind}"), getattr(model, f"b_{kind}")]
            self._weights[part] = tuple(view[layer] if kind == "Q" else view.kv_heads[layer] for view in views)  # type: ignore[assignment]
        return self._weights[part]

    # ------------------------------------------------------------------ what nodes wrote
    @torch.no_grad()
    def run(self, tokens: TokenBatch, edits: Sequence[EditLike] = (), given: bool = False) -> tuple[Wrote, Tensor]:
        """A run, and its logits after the last token. given: keep what slots compute first as well."""
        graph = self.graph
        sent = {part: self.sent(part) for part in graph.writes}
        raw = {part: self.branches[part].raw for part in self.normed}
        streams = list(dict.fromkeys(self.reads(part) for part in graph.reads))
        computed = [self.site(part) for part in graph.reads[:-1]] if given else []
        wanted = [*sent.values(), *raw.values(), *streams, *computed]
        run = self.model.run(tokens, capture=list(dict.fromkeys(wanted)), edits=edits, logits="last")
        assert run.logits is not None
        before = {part: run[site] for part, site in raw.items()}
        kept = {site: run[site] for site in (*computed, *(one.site for one in graph.units))}
        return Wrote(self.inner(run.__getitem__), before, {site: run[site] for site in streams}, kept), run.logits

    @torch.no_grad()
    def built(self, inner: dict[Part, Tensor]) -> Wrote:
        """The streams that follow where every node writes what it is given, whatever it reads."""
        stream, raws, streams = inner[self.graph.writes[0]], dict[Part, Tensor](), dict[Site, Tensor]()
        for branch in self.model.branches():
            if branch.reads not in streams:
                streams[branch.reads] = stream
            part = self.graph.nodes_of[branch.name, branch.layer][0]
            value = self.total(part, inner)
            if part.kind == "head":
                out = branch.project(value)
                if part in self.normed:
                    raws[part] = out
                value = branch.write(out)
            stream = stream + value
        streams[self.end] = stream
        return Wrote(inner, raws, streams, {})

    def total(self, part: Part, inner: Mapping[Part, Tensor]) -> Tensor:
        """What a branch writes with its units."""
        value = inner[part]
        for unit in self.graph.nodes_of.get((part.branch, part.layer), [])[1:]:
            value = value + self.units[unit].write(inner[unit])
        return value

    # ------------------------------------------------------------------ differences
    def apart(self, part: Part, value: Float[Tensor, "*tokens width"]) -> Float[Tensor, "source *tokens d_model"]:
        """What each source of a part without heads adds to the stream."""
        if part.kind != "unit":
            return value[None]
        directions = self.units[part].directions.to(value)
        return torch.einsum("...u,ud->u...d", value, directions)

    def difference(
        self, part: Part, one: Wrote, other: Wrote, keep: Tensor, *, tangent: bool
    ) -> Float[Tensor, "source token d_model"]:
        """What each of a part's sources writes in `other` less what it writes in `one`, at the kept tokens.

        In front of a norm: along its chord from one to the other, so that the heads' differences add up to the
        branch's; `tangent`: along its tangent at `one`, which is the derivative there.
        """
        change = (other.inner[part] - one.inner[part])[keep]
        if part.kind != "head":
            return self.apart(part, change)
        branch = self.branches[part]
        each = torch.einsum("thd,hdm->htm", change, branch.weight().to(change))
        if part in self.normed:
            a, b = one.raw[part][keep], (one if tangent else other).raw[part][keep]
            each = branch.post.between(a, b).push(each)
        return each * branch.scale

    def added(self, part: Part, base: Wrote, change: Float[Tensor, "slot rows pos d_model"]) -> Tensor:
        """What heads add to a stream when their raw outputs change by so much, less what they add in `base`."""
        branch = self.branches[part]
        if part not in self.normed:
            return change * branch.scale
        raw = base.raw[part]
        return branch.write(raw + change) - branch.write(raw)
