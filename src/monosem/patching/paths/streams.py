"""What senders add to the residual stream when their output is another run's, layer after layer.

The stream after a change is the base run's stream plus a difference, and the difference grows at the senders alone:
heads that are no senders keep their base output, and MLPs either do too (direct edges) or answer to what reaches them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...models import Model, Site, TokenBatch
from .branches import head_write, mlp_write, wide
from .nodes import Node, NodeSet
from .suffix_runs import Prefix


@dataclass(frozen=True, eq=False)
class Stage:
    """The difference of every sender set where the receivers of one layer read; `layer` None is the end of the stream.

    Attributes:
        pre, mid: `sets batch pos d_model`, at the input of the block, and where its MLP reads.
    """

    layer: int | None
    pre: Float[Tensor, "sets batch pos d_model"]
    mid: Float[Tensor, "sets batch pos d_model"]


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
        self.model, self.tokens = model, base
        changed = where & ((base.ids != source.ids) & base.mask).cumsum(-1).bool()  # causal: equal up to there
        columns = [*changed.any(0).nonzero()[:1, 0].tolist(), int(base.last.min())]
        with torch.no_grad():
            self.prefix = Prefix.of(model, base, min(columns))
        column = self.prefix.column
        self.last = base.last - column  # of each row's last token, in what is kept
        nodes = {node for one in senders for node in one.nodes}
        heads = sorted({node.layer for node in nodes if node.kind == "z"})  # type: ignore[type-var]
        mlps = sorted({node.layer for node in nodes if node.kind == "mlp_out"})  # type: ignore[type-var]
        layers = range(model.cfg.n_layers)
        stream = [Site(name, layer) for name in ("resid_pre", "attn_out", "mlp_out") for layer in layers]
        sent = [Site("resid_pre", 0), *(Site("z", at) for at in heads), *(Site("mlp_out", at) for at in mlps)]
        end = Site("resid_post", model.cfg.n_layers - 1)
        run = model.run(base, capture=[*stream, *(site for site in sent if site.name == "z"), end], logits="last")
        other = model.run(source, capture=sent, logits="last")
        assert run.logits is not None
        assert other.logits is not None
        self.logits, self.source_logits = run.logits, other.logits
        kept = {site: value[:, column:].clone() for site, value in run.activations.items()}
        self.resid_pre = [kept[Site("resid_pre", layer)] for layer in layers] + [kept[end]]
        self.attn_out = [kept[Site("attn_out", layer)] for layer in layers]
        self.mlp_out = [kept[Site("mlp_out", layer)] for layer in layers]
        self.z = {layer: kept[Site("z", layer)] for layer in heads}
        here = changed[:, column:]
        self.sent = {
            site: (other[site][:, column:].to(wide(model)) - kept[site])
            * here.reshape(*here.shape, *[1] * (kept[site].ndim - 2))
            for site in sent
        }

    def mlp_input(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """What the base run's MLP reads, before its norm."""
        return self.resid_pre[layer] if self.model.parallel else self.resid_pre[layer] + self.attn_out[layer]

    def stages(self, sets: Sequence[NodeSet], until: int, freeze_mlps: bool) -> Iterator[Stage]:
        """The differences of some sender sets, from the first layer to `until`, or to the end (`until` = n_layers)."""
        shape = (len(sets), *self.resid_pre[0].shape)
        delta = torch.zeros(shape, dtype=wide(self.model), device=self.resid_pre[0].device)
        if (members := _members(sets, "embed", None))[0]:
            delta[members[0]] += self.sent[Site("resid_pre", 0)]
        for layer in range(min(until + 1, self.model.cfg.n_layers)):
            pre = delta
            delta = self._after_heads(layer, sets, delta)
            mid = pre if self.model.parallel else delta
            yield Stage(layer, pre, mid)
            delta = self._after_mlp(layer, sets, delta, mid, freeze_mlps)
        if until >= self.model.cfg.n_layers:
            yield Stage(None, delta, delta)

    def _after_heads(self, layer: int, sets: Sequence[NodeSet], delta: Tensor) -> Tensor:
        members, heads = _members(sets, "z", layer)
        if not members:
            return delta
        difference, weights = self.sent[Site("z", layer)], self.model.W_O[layer].to(delta)
        change = delta.new_zeros((len(set(members)), *delta.shape[1:]))
        rows = {index: row for row, index in enumerate(dict.fromkeys(members))}
        for index, head in zip(members, heads):  # a set's heads go through the branch's post-norm together
            change[rows[index]] += difference[:, :, head] @ weights[head]
        delta = delta.clone()
        delta[list(rows)] += head_write(self.model, layer, self.z[layer], change)
        return delta

    def _after_mlp(self, layer: int, sets: Sequence[NodeSet], delta: Tensor, mid: Tensor, freeze: bool) -> Tensor:
        members, _ = _members(sets, "mlp_out", layer)
        if not members and freeze:
            return delta
        delta = delta.clone()
        if not freeze:
            reached = [i for i in range(len(sets)) if i not in members and bool(mid[i].any())]
            if reached:
                delta[reached] += self.mlp_change(layer, mid[reached])
        if members:
            delta[members] += self.sent[Site("mlp_out", layer)]
        return delta

    def mlp_change(
        self, layer: int, difference: Float[Tensor, "sets batch pos d_model"]
    ) -> Float[Tensor, "sets batch pos d_model"]:
        """By how much the MLP's share of the stream changes when the difference is added to what it reads."""
        whole = (self.mlp_input(layer) + difference).to(self.model.dtype).flatten(0, 1)
        out = mlp_write(self.model, layer, whole).unflatten(0, difference.shape[:2])
        return out.to(difference.dtype) - self.mlp_out[layer]


def _members(sets: Sequence[NodeSet], kind: str, layer: int | None) -> tuple[list[int], list[int]]:
    """Which sets hold senders of a kind in a layer: one entry a node, with its head."""
    found = [
        (index, -1 if node.head is None else node.head)
        for index, one in enumerate(sets)
        for node in one.nodes
        if Node(node.kind, node.layer) == Node(kind, layer)
    ]
    return [index for index, _ in found], [head for _, head in found]
