"""A circuit run: every slot reads its kept edges from this run, and the others from the other side.

    input_v = other_v + Σ over kept edges u -> v of (what u writes now - what u writes on the other side)

The empty circuit is the other side's run, the full circuit is the clean run. Only kept edges cost: slots without any
are given the other side's values, sources without any are not looked at, and blocks in which nothing lives are passed
over. What sources write lies in one block of memory, so that the slots of a branch get all their sums from one matrix
product. In front of a norm behind the heads (Gemma 2), each slot has its own sum of heads, which goes through the norm
as a whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..models import Moment, Site, TokenBatch
from .batches import Batch
from .circuit import Circuit
from .graph import EVERYWHERE, Part
from .wiring import INPUT, Wiring, Wrote

Masks = Float[Tensor, "circuit place source slot"]


def run_circuits(batch: Batch, circuits: Sequence[Circuit]) -> Float[Tensor, "circuit pairs vocab"]:
    """The logits of several circuits after the last token; they run as copies of one batch."""
    masks = torch.stack([circuit.edges for circuit in circuits]).to(batch.wiring.model.dtype)
    with torch.no_grad():
        return run_masks(batch, masks)


def run_masks(batch: Batch, masks: Masks, *, grad: bool = False) -> Float[Tensor, "circuit pairs vocab"]:
    """The same for masks of any numbers: an edge with weight 0.3 carries that share of the clean run's difference.

    grad: the logits carry gradients to the masks.
    """
    run = _CircuitRun(batch, masks.to(batch.wiring.model.device), grad)
    return run.logits().unflatten(0, (len(masks), len(batch.pairs)))


@dataclass(eq=False)
class _At:
    """An edit that calls a function with the activation; a look at it (`write` False) changes nothing."""

    site: Site
    fn: Callable[[Tensor], Tensor]

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        return self.fn(x), True

    def __str__(self) -> str:
        return f"circuit at {self.site}"


@dataclass(eq=False)
class _CircuitRun:
    """One forward pass of copies of a batch, one for each mask.

    Attributes:
        rows: the live sources whose sums are one product: all of them, but in front of a norm.
        block: what these write now less what they write on the other side, `source rows pos d_model`.
        written: the first row of each part in the block -> the same, with its gradient.
        changes: part of other sources -> the same, before a norm behind heads.
        read: coefficients of the units of the branch that runs.
    """

    batch: Batch
    masks: Masks
    grad: bool
    written: dict[int, Tensor] = field(default_factory=dict)
    changes: dict[Part, Tensor] = field(default_factory=dict)
    read: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        used = self.masks.detach() != 0
        self.live_slots, self.live_sources = used.any(2).any(0).any(0), used.any(3).any(0).any(0)
        self.wiring: Wiring = self.batch.wiring
        self.copies = len(self.masks)
        self.other: Wrote = self.batch.other.repeated(self.copies)
        self.at = self.batch.at.clamp(min=0)
        together = self.live_sources.clone()
        for part in self.wiring.normed:
            together[part.range] = False
        self.rows = together.nonzero()[:, 0]
        stream = self.other.streams[self.wiring.end]
        self.block = stream.new_empty(len(self.rows), *stream.shape)

    def live(self, part: Part) -> Tensor:
        """Numbers, within a part, of what lives in it."""
        writes = part in self.batch.clean.inner
        return (self.live_sources if writes else self.live_slots)[part.range].nonzero()[:, 0]

    def logits(self) -> Float[Tensor, "rows vocab"]:
        wiring, graph, batch = self.wiring, self.wiring.graph, self.batch
        first, tokens = graph.writes[0], batch.pairs.clean
        if len(self.live(first)):
            clean = batch.clean.inner[first]
            self._keep(first, (clean - batch.other.inner[first]).repeat(self.copies, 1, 1)[None])
        edits = list(self._edits())
        end = graph.reads[-1]
        if edits:
            repeated = TokenBatch(tokens.ids.repeat(self.copies, 1), tokens.mask.repeat(self.copies, 1))
            last = edits[-1].site
            with _passing_over(wiring, {edit.site.layer for edit in edits}):
                wiring.model.run(
                    repeated, capture=last, edits=edits, logits=False, grad=self.grad,
                    start=(INPUT, self.other.streams[wiring.reads(graph.reads[0])]),
                )  # fmt: skip
        rows = torch.arange(len(tokens), device=tokens.ids.device).repeat(self.copies)
        at = (torch.arange(len(rows), device=rows.device), tokens.last.repeat(self.copies))
        stream = self.other.streams[wiring.end]
        if len(self.live(end)):
            stream = self._streams([end])[end][0]
        self._let_go()
        return wiring.model.unembed(stream[at])

    def _let_go(self) -> None:
        """Forget what was written. Hooks and edits of the pass refer to each other and to this run, and so stay in
        memory until Python looks for circles; products that wait for their gradients have the block themselves.
        """
        self.written.clear()
        self.changes.clear()
        self.other, self.block = self.batch.other, self.block.new_empty(0)

    # ------------------------------------------------------------------ what the pass does
    def _edits(self) -> Iterator[_At]:
        """Where sources live: its slots are given what the circuit gives them, and what it writes is noted."""
        graph = self.wiring.graph
        slots: dict[tuple[str, int | None], list[Part]] = {}
        for part in graph.reads[:-1]:
            slots.setdefault((part.branch, part.layer), []).append(part)
        for part in graph.writes[1:]:
            if not len(self.live(part)):
                continue
            readers = slots.pop((part.branch, part.layer), [])
            streams = self._once(readers)
            for reader in readers:
                yield _At(self.wiring.site(reader), self._given(reader, streams))
            if part in self.wiring.units and part.kind == "whole":  # the rest is known once its units are
                (unit,) = graph.nodes_of[part.branch, part.layer][1:]
                yield _At(self.wiring.sent(unit), self._read(unit))
            yield _At(self.wiring.sent(part), self._noted(part))

    def _once(self, parts: list[Part]) -> Callable[[Part], Tensor]:
        """What each part reads, computed for all of a branch when the first of them asks."""
        held: dict[Part, Tensor] = {}

        def taken(part: Part) -> Tensor:
            if part not in held:
                held.update(self._streams([one for one in parts if len(self.live(one))]))
            return held.pop(part)

        return taken

    def _given(self, part: Part, streams: Callable[[Part], Tensor]) -> Callable[[Tensor], Tensor]:
        wiring, site = self.wiring, self.wiring.site(part)
        branch, live = wiring.branches[part], self.live(part)

        def fn(x: Tensor) -> Tensor:
            base = self._unread(part)
            if not len(live):
                return base.to(x)
            given = branch.read(streams(part).to(x.dtype))
            if part.kind == "whole":
                return given[0]
            weight, bias = (each[live].to(given) for each in wiring.weight(part))
            values = torch.einsum("hrpd,hdk->rphk", given, weight) + bias
            return base.index_copy(2, live, values.to(base)) if len(live) < part.count else values

        assert site is not None
        return fn

    def _unread(self, part: Part) -> Tensor:
        """What slots compute of the other side's stream."""
        site = self.wiring.site(part)
        if site in self.other.given:
            return self.other.given[site]
        branch = self.wiring.branches[part]
        given = branch.read(self.other.streams[branch.reads])
        if part.kind == "whole":
            return given
        weight, bias = (each.to(given) for each in self.wiring.weight(part))
        return torch.einsum("rpd,hdk->rphk", given, weight) + bias

    def _noted(self, part: Part) -> Callable[[Tensor], Tensor]:
        live, wiring = self.live(part), self.wiring
        units = wiring.units.get(part)

        def fn(x: Tensor) -> Tensor:
            if units is None:
                change = x - self.other.inner[part]
            elif part.kind == "unit":
                change = units.read(x) - self.other.inner[part]
            else:
                change = x - units.write(self.read) - self.other.inner[part]
            if part.kind != "head":
                self._keep(part, wiring.apart(part, change)[live])
            else:
                weight = self.wiring.branches[part].weight()[live].to(change)
                self._keep(part, torch.einsum("rphk,hkd->hrpd", change[:, :, live], weight))
            return x

        return fn

    def _read(self, part: Part) -> Callable[[Tensor], Tensor]:
        def fn(x: Tensor) -> Tensor:
            self.read = self.wiring.units[part].read(x)
            return x

        return fn

    def _keep(self, part: Part, changes: Float[Tensor, "source rows pos d_model"]) -> None:
        """Note what the live sources of a part write."""
        if part in self.wiring.normed:
            self.changes[part] = changes
            return
        first = int((self.rows < part.first).sum())
        changes = changes * (self.wiring.branches[part].scale if part.kind == "head" else 1.0)
        self.block[first : first + len(changes)] = changes.detach()
        if self.grad:
            self.written[first] = changes

    def _streams(self, parts: Sequence[Part]) -> dict[Part, Float[Tensor, "slot rows pos d_model"]]:
        """What each live slot of some parts reads; they read one stream."""
        wiring, graph = self.wiring, self.wiring.graph
        slots = {part: part.first + self.live(part) for part in parts}
        columns = torch.cat([*slots.values()])
        base = self.other.streams[wiring.reads(parts[0])]
        total = base.expand(len(columns), *base.shape)
        visible = int((self.rows < wiring.visible(parts[0])).sum())
        if visible:
            weights = self.masks[:, :, self.rows[:visible]][..., columns]  # circuit place source slot
            written = [changes for first, changes in self.written.items() if first < visible]
            total = total + _Product.apply(self._product, self.block[:visible], weights, *written)
        for source, change in self.changes.items():
            if not bool(graph.real[source.first, parts[0].first]):
                continue
            added = self._product(self.masks[:, :, source.first + self.live(source)][..., columns], change)
            total = total + (wiring.added(source, self.other, added) if source.kind == "head" else added)
        return dict(zip(slots, total.split([len(each) for each in slots.values()])))

    def _product(
        self, weights: Float[Tensor, "circuit place source slot"], changes: Float[Tensor, "source rows pos d_model"]
    ) -> Float[Tensor, "slot rows pos d_model"]:
        """What sources add to each slot's stream, by the weights of their edges."""
        if not self.grad:
            used = weights.flatten(0, 1).any(0).any(1)
            if 2 * int(used.sum()) < len(used):  # fewer to copy than to multiply by zero
                weights, changes = weights[:, :, used], changes[used]
        change = changes.unflatten(1, (self.copies, -1))  # source circuit pairs pos d_model
        if self.wiring.graph.places != EVERYWHERE:
            return torch.einsum("cbpuv,ucbpd->vcbpd", weights[:, self.at], change).flatten(1, 2)
        added = weights[:, 0].mT @ change.flatten(2).transpose(0, 1)  # circuit slot rest
        return added.transpose(0, 1).unflatten(2, change.shape[2:]).flatten(1, 2)


class _Product(torch.autograd.Function):
    """`product(weights, block)`, with gradients to the weights and to the parts of which the block is made.

    The block holds all parts already, and none of its rows is written twice: there is nothing to add up part by part,
    and one block to keep for all gradients.
    """

    @staticmethod
    def forward(ctx: Any, product: Callable[..., Tensor], block: Tensor, weights: Tensor, *parts: Tensor) -> Tensor:
        ctx.product, ctx.block, ctx.sizes = product, block, [len(part) for part in parts]
        ctx.save_for_backward(weights)
        return product(weights, block)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        (weights,) = ctx.saved_tensors
        weights, block = weights.detach().requires_grad_(), ctx.block.detach().requires_grad_()
        with torch.enable_grad():
            by_weight, by_change = torch.autograd.grad(ctx.product(weights, block), (weights, block), slope)
        return None, None, by_weight, *by_change.split(ctx.sizes)


@contextmanager
def _passing_over(wiring: Wiring, layers: set[int | None]) -> Iterator[None]:
    """Blocks in which nothing lives hand on what they are given."""
    model: Any = wiring.model
    with model.turn():
        several = model.tuple_blocks
        skipped = (
            [] if model.carries or model.loops else [block for n, block in enumerate(model.blocks) if n not in layers]
        )
        before = [block.__dict__.get("forward") for block in skipped]

        def passed_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return hidden_states if several is None else (hidden_states, *[None] * (several - 1))

        for block in skipped:
            block.forward = passed_on
        try:
            yield
        finally:
            for block, forward in zip(skipped, before):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward
