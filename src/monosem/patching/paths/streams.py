"""What senders add to the residual stream when their output is another run's, layer after layer.

The stream after a change is the base run's stream plus a difference, and the difference grows at the senders alone:
heads that are no senders keep their base output, and MLPs either do too (direct edges) or answer to what reaches them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...models import Branch, Model, Site, TokenBatch
from .nodes import Node, NodeSet, sent_at
from .suffix_runs import Prefix


def wide(model: Model) -> torch.dtype:
    """Differences are kept in at least float32."""
    return torch.promote_types(model.dtype, torch.float32)


@dataclass(frozen=True, eq=False)
class Stage:
    """The difference of every sender set at one place of the stream that receivers read.

    Attributes:
        site: the place; the last resid_post for what the final norm reads. depth: how far along the stream it is.
    """

    site: Site
    depth: int
    difference: Float[Tensor, "sets batch pos d_model"]


class Streams:
    """The base run's stream, and how the senders' outputs differ from it in the source run.

    Everything is kept from the first token on at which a sender can change anything (`prefix.column`): earlier tokens
    are as in the base run, whatever is patched.

    Args:
        senders: every node that will send, whose differences are kept.
        where: the token positions at which senders are changed, `batch pos`.
    """

    def __init__(
        self,
        model: Model,
        base: TokenBatch,
        source: TokenBatch,
        senders: Sequence[NodeSet],
        where: Bool[Tensor, "batch pos"],
    ):
        model.refuse_streams("a difference has no one way along them")
        self.model, self.tokens = model, base
        differ = (base.ids != source.ids) & base.mask
        reached = differ.any(-1, keepdim=True) if model.looks_ahead else differ.cumsum(-1).bool()
        reached = reached if base.source is None else base.mask  # all of a target reads the source
        changed = where & reached  # equal before the first token that differs, where attention is causal
        columns = [*changed.any(0).nonzero()[:1, 0].tolist(), int(base.last.min())]
        with torch.no_grad():
            self.prefix = Prefix.of(model, base, min(columns))
        column = self.prefix.column
        self.last = base.last - column  # of each row's last token, in what is kept
        everything = model.branches()
        kinds = {(node.kind, node.layer) for one in senders for node in one.nodes}
        sending = [branch for branch in everything if (sent_at(branch).name, branch.layer) in kinds]
        self.end = Site("resid_post", model.cfg.n_layers - 1)
        model.written_before(self.end)  # refuses streams that are no sums
        stream = [*(Site("resid_pre", layer) for layer in model.layers()), *(branch.out for branch in everything)]
        sent = [Site("resid_pre", 0), *map(sent_at, sending)]
        run = model.run(base, capture=[*stream, *sent, self.end], logits="last")
        other = model.run(source, capture=sent, logits="last")
        assert run.logits is not None
        assert other.logits is not None
        self.logits, self.source_logits = run.logits, other.logits
        self.kept = {site: value[:, column:].clone() for site, value in run.activations.items()}
        self.resid_pre = [self.kept[Site("resid_pre", layer)] for layer in model.layers()] + [self.kept[self.end]]
        here = changed[:, column:]
        self.sent = {
            site: (other[site][:, column:].to(wide(model)) - self.kept[site])
            * here.reshape(*here.shape, *[1] * (self.kept[site].ndim - 2))
            for site in sent
        }

    def base(self, stream: Site) -> Float[Tensor, "batch pos d_model"]:
        """The base run's stream."""
        if stream in self.kept:
            return self.kept[stream]
        assert stream.layer is not None
        written = [one for one in self.model.written_before(stream) if one.layer == stream.layer]
        return sum((self.kept[one.out] for one in written), self.resid_pre[stream.layer])

    def stages(self, sets: Sequence[NodeSet], until: int, freeze_mlps: bool) -> Iterator[Stage]:
        """The differences of some sender sets, wherever a branch or (last) the final norm reads, up to a depth."""
        model, shape = self.model, (len(sets), *self.resid_pre[0].shape)
        delta = torch.zeros(shape, dtype=wide(model), device=self.resid_pre[0].device)
        if (members := _members(sets, "embed", None))[0]:
            delta[members[0]] += self.sent[Site("resid_pre", 0)]
        for layer in model.layers():
            read: dict[Site, Tensor] = {}
            for branch in model.branches(layer):
                depth = model.depth(branch.reads)
                if depth > until:
                    return
                if branch.reads not in read:
                    read[branch.reads] = delta
                    yield Stage(branch.reads, depth, delta)
                delta = self._after(branch, sets, delta, read[branch.reads], freeze_mlps)
            delta = delta * model.anatomy[layer].factor
        if until >= model.depth(self.end):
            yield Stage(self.end, model.depth(self.end), delta)

    def _after(self, branch: Branch, sets: Sequence[NodeSet], delta: Tensor, read: Tensor, freeze: bool) -> Tensor:
        """The difference behind a branch: its senders send, and a pointwise branch may answer to what it reads."""
        members, heads = _members(sets, sent_at(branch).name, branch.layer)
        if branch.units == "head":
            return self._after_heads(branch, members, heads, delta) if members else delta
        reached = []
        if branch.pointwise and not freeze:
            reached = [i for i in range(len(sets)) if i not in members and bool(read[i].any())]
        if not members and not reached:
            return delta
        delta = delta.clone()
        if reached:
            delta[reached] += self.answer_change(branch, read[reached])
        if members:
            delta[members] += self.sent[branch.out]
        return delta

    def _after_heads(self, branch: Branch, members: list[int], heads: list[int], delta: Tensor) -> Tensor:
        site = sent_at(branch)
        difference, weights = self.sent[site], branch.weight().to(delta)
        change = delta.new_zeros((len(set(members)), *delta.shape[1:]))
        rows = {index: row for row, index in enumerate(dict.fromkeys(members))}
        for index, head in zip(members, heads):  # a set's heads go through the branch's post-norm together
            change[rows[index]] += difference[:, :, head] @ weights[head]
        delta = delta.clone()
        delta[list(rows)] += branch.write_change(self.kept[site], change)
        return delta

    def answer_change(
        self, branch: Branch, difference: Float[Tensor, "sets batch pos d_model"]
    ) -> Float[Tensor, "sets batch pos d_model"]:
        """By how much a pointwise branch's output changes when the difference is added to what it reads."""
        whole = (self.base(branch.reads) + difference).to(self.model.dtype).flatten(0, 1)
        out = branch.answer(whole).unflatten(0, difference.shape[:2])
        return out.to(difference.dtype) - self.kept[branch.out]


def _members(sets: Sequence[NodeSet], kind: str, layer: int | None) -> tuple[list[int], list[int]]:
    """Which sets hold senders of a kind in a layer: one entry a node, with its head."""
    members = [
        (index, -1 if node.head is None else node.head)
        for index, one in enumerate(sets)
        for node in one.nodes
        if Node(node.kind, node.layer) == Node(kind, layer)
    ]
    return [index for index, _ in members], [head for _, head in members]
