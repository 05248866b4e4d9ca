"""Why a head looks where it looks: a score as a sum over pairs of nodes, one at the query and one at the key.

    score = scaling · (R_q query) · (R_k key),    query = Σ_n query_n,    key = Σ_m key_m

With norms' sizes frozen, a query is a linear function of the stream at its token, and so is a key. What each node gives
to both is read as every other row of the graph is, so that the terms scaling · (R_q query_n) · (R_k key_m) of all pairs
(the bias is a node) add up to the score exactly. A soft cap and a position bias come after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import Edit
from ..errors import BadInput
from ..models import Branch, Moment, Site
from ..models.numbers import count
from ..models.places.weights import bias_of, weight_from
from ..results import Result, analysis
from .choosing import row_blocks
from .frozen import Frozen, Targets
from .graph import AttributionGraph

LEFT_OUT = "left out"
SHOWN = 1000  # pairs in the table
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # of what is read off as linear, relative; else 3e-2


@dataclass(frozen=True, eq=False)
class QKAttribution(Result):
    """Rows: the pairs of nodes with the largest terms: `query_node`, `key_node`, `weight`.

    Attributes:
        terms: `query_node key_node`, of the graph's nodes, in the order of `ids`; "left out" is what a pruned graph
            no longer has.
        score: their sum. pattern: what the head gives to the key. query, key: positions. against: what is subtracted.
    """

    terms: Float[Tensor, "query_node key_node"] = field(repr=False)
    ids: list[str] = field(repr=False)
    score: float
    pattern: float
    layer: int
    head: int
    query: int
    key: int
    against: int | str | None
    tokens: list[str] = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    ranked_by: ClassVar[str | None] = "weight"
    either_way: ClassVar[bool] = True

    def __repr__(self) -> str:
        return f"QKAttribution({self.label}: score {self.score:.3f}, pattern {self.pattern:.3f})"

    @property
    def label(self) -> str:
        words = [f"{self.tokens[one]!r} ({one})" for one in (self.query, self.key)]
        less = "" if self.against is None else f", less {self.against}"
        return f"head {self.head} of layer {self.layer}, from {words[0]} to {words[1]}{less}"

    @property
    def table(self) -> pd.DataFrame:
        flat = self.terms.flatten()
        strongest = flat.abs().topk(min(SHOWN, len(flat))).indices
        best: list[int] = strongest[flat[strongest] != 0].tolist()
        width = len(self.ids)
        pairs = [(self.ids[one // width], self.ids[one % width], float(flat[one])) for one in best]
        return pd.DataFrame(pairs, columns=["query_node", "key_node", "weight"])

    def side(self, which: Literal["query", "key"], n: int = 10) -> pd.DataFrame:
        """The nodes that give most to the score by what they are at the query, or at the key: `id`, `weight`."""
        if which not in ("query", "key"):
            raise BadInput(f"a side is 'query' or 'key', not {which!r}")
        sums = self.terms.sum(1 if which == "query" else 0)
        strongest = sums.abs().topk(min(count(n, "n"), len(sums))).indices
        best: list[int] = strongest[sums[strongest] != 0].tolist()
        return pd.DataFrame({"id": [self.ids[one] for one in best], "weight": sums[best].tolist()})


@analysis
def qk_attribution(
    graph: AttributionGraph,
    layer: int,
    head: int,
    *,
    query: int = -1,
    key: int | None = None,
    against: int | Literal["mean"] | None = None,
) -> QKAttribution:
    """Take the score of a head between two tokens apart into pairs of the graph's nodes.

        ms.graphs.qk_attribution(graph, 9, 1, query=-1, against="mean").top(10)

    Args:
        query, key: positions; key None: where the head looks most.
        against: a softmax knows differences alone: another key's position, or "mean", the mean of all that the query
            sees, is subtracted; None: the score as it is.

    Raises:
        BadInput: a graph from a file; positions that are not there, or that the query does not see; a head that is not
            there, or whose scores are no product of a query and a key.
    """
    if graph.parts is None:
        raise BadInput("this graph is from a file, without a model: make it with graphs.attribution_graph")
    parts, frozen = graph.parts, graph.parts.frozen
    model = frozen.model
    branch = next((one for n, one in enumerate(frozen.branches) if one.layer == layer and n in frozen.constants), None)
    if branch is None or not all(model.has(Site(name, layer)) for name in ("q", "k", "rot_q", "rot_k")):
        raise BadInput(f"layer {layer} has no attention whose scores are products of queries and keys")
    if isinstance(head, bool) or not 0 <= head < branch.n_units:
        raise BadInput(f"layer {layer} has heads 0 to {branch.n_units - 1}, not {head!r}")
    length = frozen.length
    pattern = frozen.run[Site("pattern", layer)][0, head]
    at = _position(query, length, "query")
    seen = (pattern[at] > 0).nonzero().flatten().tolist()
    to = int(pattern[at].argmax()) if key is None else _position(key, length, "key")
    if isinstance(against, str) and against != "mean":
        raise BadInput(f"against= is a position, 'mean', or None, not {against!r}")
    other = against if against is None or isinstance(against, str) else _position(against, length, "against")
    for one in (to, other):
        if isinstance(one, int) and one not in seen:
            raise BadInput(f"the query at token {at} does not look at token {one}: head {head} sees {seen[:10]}")
    weights = {to: 1.0}
    for one in seen if other == "mean" else [] if other is None else [other]:
        weights[int(one)] = weights.get(int(one), 0.0) - (1 / len(seen) if other == "mean" else 1.0)
    with torch.no_grad():
        turned = [_Turned.of(frozen, branch, side, head) for side in ("q", "k")]
        queries = row_blocks(parts, turned[0].targets(frozen, branch, at))
        keys = torch.stack([by * row_blocks(parts, turned[1].targets(frozen, branch, p)) for p, by in weights.items()])
        scaling = getattr(branch.module, "scaling", None) or len(queries) ** -0.5
        terms = scaling * queries.T @ keys.sum(0)
    return _result(graph, terms, (layer, head, at, to), other, float(pattern[at, to]))


def _result(
    graph: AttributionGraph, terms: Tensor, where: tuple[int, int, int, int], against: Any, pattern: float
) -> QKAttribution:
    """Terms of all columns as terms of the graph's nodes."""
    assert graph.parts is not None
    ids = graph.parts.ids
    kept = [one for one in graph.nodes["id"] if one in {*ids}]
    number = {one: at for at, one in enumerate(kept)}
    group = torch.tensor([number.get(one, len(kept)) for one in ids], device=terms.device)
    size = len(kept) + 1
    rows = terms.new_zeros(size, terms.shape[1]).index_add_(0, group, terms)
    whole = terms.new_zeros(size, size).index_add_(1, group, rows)
    return QKAttribution(whole.cpu(), [*kept, LEFT_OUT], float(terms.sum()), pattern, *where, against, graph.tokens)


def _position(position: int, length: int, what: str) -> int:
    if isinstance(position, bool) or not isinstance(position, int) or not -length <= position < length:
        raise BadInput(f"{what}= is one of the {length} tokens' positions, not {position!r}")
    return position % length


@dataclass(frozen=True, eq=False)
class _Turned:
    """What is between a head's query (or key) projection and the score: a rotation, and a norm of frozen size.

    Attributes:
        maps: `pos turned d_head`, at each token. weight, bias: of the projection. here, there: its output, and what the
            score reads, `pos ...`.
    """

    maps: Float[Tensor, "pos turned d_head"]
    weight: Float[Tensor, "d_model d_head"]
    bias: Float[Tensor, "d_head"]
    there: Float[Tensor, "pos turned"]

    @staticmethod
    def of(frozen: Frozen, branch: Branch, side: str, head: int) -> "_Turned":
        """Reads the linear map off: a row of a batch for each direction of the head, through the layer's own modules.

        Raises `BadInput` where it is none (norms of queries and keys that take out a mean).
        """
        model, dtype, layer = frozen.model, frozen.dtype, branch.layer
        site, after, begin = Site(side, layer), Site(f"rot_{side}", layer), Site("resid_pre", layer)
        patterns = [Site("pattern", frozen.branches[one].layer) for one in frozen.constants]  # softmaxes as the graph's
        run = model.run(frozen.batch, capture=[site, after, begin, *patterns], logits=False)
        number = head if side == "q" else head // (branch.n_units // run[after].shape[2])
        width = run[site].shape[-1]
        unit = torch.eye(width, dtype=run[site].dtype, device=run[site].device)

        def put(x: Tensor, moment: Moment) -> Tensor:
            changed = x.clone()
            changed[:, :, number] = unit[:, None].to(x)
            return changed

        rows = frozen.batch[[0] * width]
        start = (begin, run[begin].expand(width, -1, -1))
        made = model.run(rows, capture=after, edits=Edit(site, put, "directions"), start=start, logits=False)[after]
        maps = made[:, :, number].permute(1, 2, 0).to(dtype)  # pos turned d_head
        here, there = (run[one][0, :, number].to(dtype) for one in (site, after))
        plain = torch.einsum("ptd,pd->pt", maps, here)
        size = (plain * there).sum(-1) / plain.square().sum(-1).clamp(min=1e-30)  # 1, but for a norm of frozen size
        size = torch.where((size - 1).abs() < 1e-12, 1.0, size)
        wrong = (plain * size[:, None] - there).abs().max() > TOLERANCE.get(model.dtype, 3e-2) * there.abs().max()
        if bool(wrong):
            raise BadInput(f"what layer {layer} makes of its {side} is no linear map when its norm is frozen")
        weight, bias = weight_from(model, site)[number].to(dtype), bias_of(model, site).to(dtype)[number]
        return _Turned(maps * size[:, None, None], weight, bias, there)

    def targets(self, frozen: Frozen, branch: Branch, position: int) -> Targets:
        """Its coordinates at a token, as read-outs of the stream."""
        reading = frozen.readings[next(n for n, one in enumerate(frozen.branches) if one.out == branch.out)]
        turn = self.maps[position]
        rows = turn @ self.weight.T  # turned d_model
        positions = torch.full((len(rows),), position, device=rows.device)
        constants = rows @ reading.norm.bias + turn @ self.bias
        return Targets(
            reading.pull_at(rows, positions),
            positions,
            frozen.model.depth(branch.reads),
            constants,
            self.there[position],
        )
