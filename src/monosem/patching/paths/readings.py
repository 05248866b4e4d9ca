"""Runs in which receivers read a changed stream and everything else reads its own: the last step of path patching."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...edits import Edit
from ...models import Model, Moment, Site
from .nodes import READ_BY_HEADS, Node, NodeSet
from .streams import Stage, Streams, wide

# what a receiver does with its changed input: one tensor for all sender sets, `sets batch pos ...`
Recorded = dict[Node, Tensor]


@dataclass(frozen=True, eq=False)
class Reading:
    """Reads stages and keeps what the receivers make of them: their q, k, v, MLP output, or last stream."""

    streams: Streams
    nodes: frozenset[Node]
    recorded: Recorded = field(default_factory=dict)

    @cached_property
    def depths(self) -> dict[Node, int]:
        return {node: node.depth(self.streams.model) for node in self.nodes}

    def take(self, stage: Stage) -> None:
        model, streams = self.streams.model, self.streams
        change, rows = stage.difference, torch.arange(stage.difference.shape[1], device=stage.difference.device)
        mine = [node for node in self.nodes if self.depths[node] == stage.depth]
        by_branch: dict[str, dict[str, Tensor]] = {}
        for node in mine:
            branch = node.branch(model)
            if branch is None:
                self.recorded[node] = streams.resid_pre[-1][rows, streams.last] + change[:, rows, streams.last]
            elif node.reads_whole:
                self.recorded[node] = streams.answer_change(branch, change)
            else:
                if branch.name not in by_branch:
                    names = {branch.site(name).name: name for name in READ_BY_HEADS}
                    wanted = [name for site, name in names.items() if any(one.kind == site for one in mine)]
                    stream = (streams.base(branch.reads) + change).to(model.dtype).flatten(0, 1)
                    values = branch.projections(wanted, stream)
                    by_branch[branch.name] = {branch.site(name).name: value for name, value in values.items()}
                value = by_branch[branch.name][node.kind][..., node.head, :]
                self.recorded[node] = value.unflatten(0, change.shape[:2]).clone()

    def keep(self, nodes: Collection[Node]) -> None:
        """Forget what the other receivers recorded."""
        for node in [node for node in self.recorded if node not in nodes]:
            del self.recorded[node]


@dataclass(frozen=True, eq=False)
class Passage:
    """A sender set (its number among those recorded) and the receivers that read it."""

    sender: int
    receiver: NodeSet


def logits_of(streams: Streams, recorded: Recorded, passages: Sequence[Passage]) -> Float[Tensor, "cells batch vocab"]:
    """Logits after the last token of base runs with the receivers changed, one for each passage.

    All must begin in the same layer.
    """
    model, first = streams.model, passages[0].receiver.nodes[0]
    if first.kind == "logits":
        return model.unembed(torch.stack([recorded[first][one.sender] for one in passages]))
    if all(ends_block(model, one.receiver) for one in passages):
        changes = torch.stack([recorded[one.receiver.nodes[0]][one.sender] for one in passages])
        return _from(streams, int(first.layer or 0) + 1, changes)
    layer = min(int(node.layer or 0) for one in passages for node in one.receiver.nodes)
    none = torch.zeros((), dtype=wide(model), device=model.device)
    return _from(
        streams, layer, none.expand(len(passages), *streams.resid_pre[layer].shape), _edits(streams, recorded, passages)
    )


def ends_block(model: Model, receiver: NodeSet) -> bool:
    """Whether the receiver is one whole branch that nothing in its block reads: its change enters the next block."""
    branch = receiver.nodes[0].branch(model)
    if len(receiver.nodes) > 1 or branch is None or not receiver.nodes[0].reads_whole:
        return False
    return all(model.depth(one.reads) < model.depth(branch.out) for one in model.branches(branch.layer))


def _from(
    streams: Streams,
    layer: int,
    change: Float[Tensor, "cells batch pos d_model"],
    edits: Sequence[Edit] = (),
) -> Float[Tensor, "cells batch vocab"]:
    """Base runs from the input of a block on, with a change of the stream there."""
    stream = (streams.resid_pre[layer] + change).to(streams.model.dtype)
    if layer < streams.model.cfg.n_layers:
        return streams.prefix.run(layer, stream, edits)
    rows = torch.arange(stream.shape[1], device=stream.device)
    return streams.model.unembed(stream[:, rows, streams.last])


def _edits(streams: Streams, recorded: Recorded, passages: Sequence[Passage]) -> list[Edit]:
    """One edit for each site in which some passage has a receiver."""
    places: dict[Site, list[tuple[int, Node]]] = {}
    for row, one in enumerate(passages):
        for node in one.receiver.nodes:
            branch = node.branch(streams.model)
            assert branch is not None
            places.setdefault(branch.out if node.reads_whole else Site(node.kind, node.layer), []).append((row, node))
    edits = []
    for site, entries in places.items():
        rows = torch.tensor([row for row, _ in entries], device=streams.model.device)
        values = torch.stack([recorded[node][passages[row].sender] for row, node in entries])
        index: tuple[Any, ...] = (rows,)
        if entries[0][1].reads_whole:
            values = values + streams.kept[site]
        else:  # rows and heads are one index: n batch pos d_head
            index = (rows, slice(None), slice(None), torch.tensor([node.head for _, node in entries]).to(rows))
        edits.append(Edit(site, _writing(index, values, len(passages)), "path"))
    return edits


def _writing(index: tuple[Any, ...], values: Tensor, count: int) -> Callable[[Tensor, Moment], Tensor]:
    def fn(x: Tensor, moment: Moment) -> Tensor:
        new = x.clone().unflatten(0, (count, -1))
        new[index] = values.to(x.dtype)
        return new.flatten(0, 1)

    return fn
