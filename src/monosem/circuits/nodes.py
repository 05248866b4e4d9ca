"""Attribution patching of nodes, and its two repairs: AtP* (Kramár et al. 2024, arXiv:2403.00745).

`atp` is first order: I(n) = -(other - clean) · ∂metric/∂n for a node's whole output, and for the queries, keys and
values of heads. Two errors hide important nodes:

- **Saturated attention.** A query or key that moves a pattern far is not first order. `atp*` recomputes the pattern and
  is first order in it alone (the QK fix). A key at position t changes one score of each row, so the new row is known in
  closed form from the old one, p'_t = p_t e^δ / (1 - p_t + p_t e^δ), and nothing is recomputed for it.
- **Cancellation.** Effects along two paths may cancel by accident. `atp*` takes the mean size of effects over gradients
  that each leave out what one layer adds (GradDrop).

A score is a size: E |I(n)|, which sorts nodes for exact patching. The signed `effect` stands beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TokenPairs
from ..edits import Edit
from ..errors import BadInput
from ..models import Model, Moment, Site
from ..patching.scoring import MetricLike, one_metric, refuse_joint
from ..progress import Meter
from ..results import Result, analysis
from .batches import Batch, Batches, check_apart
from .graph import Graph, Part

Effects = dict[Part, Float[Tensor, "pairs node"]]
Pattern = Float[Tensor, "pairs head query key"]


@dataclass(frozen=True, eq=False)
class NodeScores(Result):
    """A row a node: `node`, `score` (size of its effect) and `effect` (by how much the metric falls, first order)."""

    rows: pd.DataFrame = field(repr=False)
    method: str
    metric: str
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    ranked_by = "score"

    @property
    def table(self) -> pd.DataFrame:
        return self.rows


@analysis
def node_scores(
    model: Model,
    pairs: TokenPairs,
    method: Literal["atp", "atp*"] = "atp*",
    *,
    metric: MetricLike | None = None,
    batch_size: int = 8,
    quiet: bool = False,
) -> NodeScores:
    """Score the input, every head and MLP, and every head's query, key and value.

    Args:
        method: "atp": one gradient; "atp*": with the QK fix and GradDrop, one gradient a layer.

    Raises:
        BadInput: another method; clean and corrupted runs do not differ in the metric. UnknownName: "atp*" of a model
            whose patterns cannot be read.
    """
    if method not in ("atp", "atp*"):
        raise BadInput(f"method is 'atp' or 'atp*', not {method!r}")
    refuse_joint(pairs, "node_scores")
    name, function = one_metric(metric, pairs)
    graph = Graph.of(model)
    parts = [*graph.writes, *(part for part in graph.reads if part.kind in ("q", "k", "v"))]
    total: dict[Part, Tensor] = {part: torch.zeros(2, part.count, dtype=torch.float64) for part in parts}
    ends = torch.zeros(2, dtype=torch.float64)
    with Meter(f"score nodes ({method})", len(pairs), "pairs", quiet=quiet) as meter:
        for batch in Batches(model, pairs, graph, function, None, batch_size):
            ends += batch.ends()
            plain = _effects(batch, parts, _fixed(batch) if method == "atp*" else None, None)
            dropped = [plain]
            if method == "atp*" and (layers := model.layers())[1:]:
                fixed = _fixed(batch)
                dropped = [_effects(batch, parts, fixed, layer) for layer in layers]
            for part in parts:
                sizes = torch.stack([one[part].abs() for one in dropped]).sum(0) / max(1, len(dropped) - 1)
                total[part] += torch.stack([sizes.sum(0), plain[part].sum(0)]).double().cpu()
            meter.advance(len(batch.pairs))
    check_apart(name, *(ends / len(pairs)).tolist())
    rows = [
        {"node": node, "kind": part.kind, "layer": part.layer, "score": score, "effect": effect}
        for part in parts
        for node, score, effect in zip(part.names, *(total[part] / len(pairs)).tolist())
    ]
    return NodeScores(pd.DataFrame(rows), method, name)


@dataclass(frozen=True, eq=False)
class _Fix:
    """Scores less clean scores where all queries, or all keys, of a layer are the other run's; patterns; by layer."""

    query: dict[int, Pattern]
    key: dict[int, Pattern]
    pattern: dict[int, Pattern]


def _effects(batch: Batch, parts: Sequence[Part], fix: _Fix | None, dropped: int | None) -> Effects:
    """-Δ · gradient of every node, summed over tokens; without what a layer adds, on the way back."""
    wiring, model = batch.wiring, batch.wiring.model
    sites = {part: wiring.sent(part) if part in batch.clean.inner else wiring.site(part) for part in parts}
    patterns = [Site("pattern", layer) for layer in (fix.pattern if fix else ())]
    edits = [] if dropped is None else [Edit(one.out, _held, "held") for one in model.branches(dropped)]
    run = model.run(batch.pairs.clean, capture=[*sites.values(), *patterns], edits=edits, logits="last", grad=True)
    assert run.logits is not None
    captured = [run[site] for site in (*sites.values(), *patterns)]
    found = torch.autograd.grad(batch.measure()(run.logits).sum(), captured, allow_unused=True)
    slopes = dict(zip((*sites.values(), *patterns), found))
    effects: Effects = {}
    for part, site in sites.items():
        slope = slopes[site]
        other = batch.other.inner.get(part, batch.other.given.get(site))
        assert other is not None
        if fix is not None and part.kind in ("q", "k") and int(part.layer or 0) in fix.pattern:
            row = slopes[Site("pattern", part.layer)]
            effects[part] = _through_pattern(part, fix, row)
            continue
        here = torch.zeros_like(other) if slope is None else (other - run[site].detach()) * slope
        wide = here.sum(-1) if here.ndim == 4 else here.sum(-1, keepdim=True)  # pairs pos node
        effects[part] = -(wide * batch.pairs.clean.mask[..., None]).sum(1)
    return effects


def _held(x: Tensor, moment: Moment) -> Tensor:
    return x.detach()


def _through_pattern(part: Part, fix: _Fix, slope: Pattern | None) -> Float[Tensor, "pairs node"]:
    layer = int(part.layer or 0)
    p = fix.pattern[layer]
    g = torch.zeros_like(p) if slope is None else slope
    if part.kind == "q":
        effect = -((query_pattern(p, fix.query[layer]) - p) * g).sum((-1, -2))
    else:
        effect = -key_effects(p, fix.key[layer], g).sum((-1, -2))
    return effect.unflatten(1, (part.count, -1)).sum(-1)  # a kv head's keys are read by its whole group


def query_pattern(p: Pattern, change: Pattern) -> Pattern:
    """Rows of a pattern whose scores change by so much; what a sink takes of a row stays in its sum."""
    change = torch.where(p > 0, change, -torch.inf)
    top = change.amax(-1, keepdim=True).clamp(min=0)
    grown = p * (change - top).exp()
    return grown / (grown.sum(-1, keepdim=True) + _rest(p) * (-top).exp())


def _rest(p: Pattern) -> Float[Tensor, "*any query 1"]:
    """What a row lacks to 1 is a sink's share, known to its rounding: below that it is none (e^-δ would blow it up)."""
    rest = 1 - p.sum(-1, keepdim=True)
    return torch.where(rest > p.shape[-1] * torch.finfo(p.dtype).eps, rest, 0.0)


def key_effects(p: Pattern, change: Pattern, slope: Pattern) -> Pattern:
    """For every row and key t: Σ_j (p'_j - p_j) slope_j where the score of t alone changes by `change[..., t]`.

    p'_t = p_t e^δ / (c + p_t e^δ) with c = 1 - p_t, and the others shrink in proportion, so that the sum is

        p_t (e^δ - 1) / (c + p_t e^δ) · (c slope_t - Σ_{j≠t} p_j slope_j),

    with c and the last sum added up from both sides of t: nothing cancels where p_t is near 1.
    """
    change = torch.where(p > 0, change, 0.0)
    others, weighed = _but_own(p) + _rest(p), _but_own(p * slope)
    up, down = (-change.clamp(min=0)).exp(), change.clamp(max=0).exp()  # e^-δ where δ > 0, e^δ where it is not
    return p * (down - up) / (others * up + p * down) * (others * slope - weighed)


def _but_own(x: Tensor) -> Tensor:
    """Sums over the last axis without each entry itself."""
    before = torch.nn.functional.pad(x.cumsum(-1)[..., :-1], (1, 0))
    after = torch.nn.functional.pad(x.flip(-1).cumsum(-1)[..., :-1], (1, 0)).flip(-1)
    return before + after


@torch.no_grad()
def _fixed(batch: Batch) -> _Fix:
    """Scores with the other run's queries, then keys, of every layer at once: z is put back, so that layers behind see
    the clean stream. Soft caps, norms of queries and keys and masks are the model's own."""
    model, pairs = batch.wiring.model, batch.pairs
    layers = [int(part.layer or 0) for part in batch.wiring.graph.reads if part.kind == "q"]
    names = ("rot_q", "rot_k", "z")
    other = model.run(pairs.corrupted, capture=[Site(n, layer) for n in names[:2] for layer in layers], logits=False)
    asked = [Site(n, layer) for n in ("scores", "pattern", "z") for layer in layers]
    clean = model.run(pairs.clean, capture=asked, logits=False)
    changes = []
    for name in names[:2]:
        put = [_put(Site(name, layer), other[Site(name, layer)]) for layer in layers]
        back = [_put(Site("z", layer), clean[Site("z", layer)]) for layer in layers]
        scores = [Site("scores", layer) for layer in layers]
        run = model.run(pairs.clean, capture=[*scores, Site("z", layers[-1])], edits=[*put, *back], logits=False)
        changes.append({layer: run[site] - clean[site] for layer, site in zip(layers, scores)})
    return _Fix(changes[0], changes[1], {layer: clean[Site("pattern", layer)] for layer in layers})


def _put(site: Site, value: Tensor) -> Edit:
    def fn(x: Tensor, moment: Moment) -> Tensor:
        return value.to(x)

    return Edit(site, fn, "put")
