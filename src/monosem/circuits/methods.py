"""How edges are scored: one function a method, each summed over the pairs of a batch.

A score is by how much the metric falls when the edge alone carries what the other side has, exactly or to first order:
above zero, the edge helps. With Δ_u = other - clean of what a node writes and g_v the metric's gradient at a slot's
input:

| method | score of u -> v |
|---|---|
| `eap` | -Δ_u · g_v at the clean run (Syed et al. 2023, arXiv:2310.10348) |
| `eap-ig` | -Δ_u · mean of g_v over runs between clean and other input (Hanna et al. 2024, arXiv:2403.17806) |
| `eap-ig-activations` | the same, with each branch's output in turn on the way, and the mean over branches |
| `eap-ig-path` | -Σ over steps of (what u writes more from step to step) · g_v there |
| `clean-corrupted` | -Δ_u · (g_v clean + g_v other) / 2 |
| `eap-gp` | -Δ_u · mean of g_v along a path of inputs that leads the output to the other side's |
| `relp` | -Δ_u · g_v with RelP's rules in the backward pass (arXiv:2508.21258) |
| `ifr` | information-flow routes (Ferrando & Voita 2024, arXiv:2403.00824): no contrast, no gradient |
| `exact` | the edge patched alone, everything behind the slot computed anew |
| `random` | a draw: what every method must beat |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import Edit
from ..errors import BadInput, UnknownName, check_name
from ..models import Moment
from .batches import Batch
from .graph import Part
from .relevance import rules
from .slopes import slopes

Values = Float[Tensor, "place source slot"]
RULES: dict[str, Callable[[int, int], float]] = {  # step (from 0), steps -> share of the way from clean to other
    "midpoint": lambda step, steps: (step + 0.5) / steps,
    "left": lambda step, steps: 1 - step / steps,  # EAP-IG's edges: the other input counts, the clean one does not
    "right": lambda step, steps: 1 - (step + 1) / steps,  # the paper's sum, and EAP-IG's nodes
}


@dataclass(frozen=True)
class Options:
    """What methods may be told; each reads what concerns it.

    Attributes:
        steps: gradients of a path. rule: where on each stretch of the path they are taken.
        seed: of draws.
    """

    steps: int = 5
    rule: Literal["midpoint", "left", "right"] = "midpoint"
    seed: int = 0

    def shares(self) -> list[float]:
        """How far from clean (0) to other (1) each step is."""
        check_name("rule", self.rule, RULES)
        return [RULES[self.rule](step, self.steps) for step in range(self.steps)]


def eap(batch: Batch, options: Options) -> Values:
    return _scored(batch, [0.0], tangent=True)


def eap_ig(batch: Batch, options: Options) -> Values:
    return _scored(batch, options.shares(), tangent=False)


def clean_corrupted(batch: Batch, options: Options) -> Values:
    return _scored(batch, [0.0, 1.0], tangent=False)


def _scored(batch: Batch, shares: list[float], *, tangent: bool) -> Values:
    found = batch.slopes(shares)
    return -batch.contract(batch.differences(tangent=tangent), lambda part: found.of(part, batch.keep))


def relp(batch: Batch, options: Options) -> Values:
    """`eap` with the rules of `relevance` in place of derivatives: norms hold their scale, also behind heads."""
    wiring = batch.wiring
    with rules(wiring.model) as edits:
        found = batch.slopes([0.0], edits=edits)
    parts = []
    for part in wiring.graph.writes:
        if part in wiring.normed:
            value = batch.clean.inner[part][batch.keep]
            change = batch.other.inner[part][batch.keep] - value
            branch = wiring.branches[part]
            each = torch.einsum("thd,hdm->htm", change, branch.weight().to(change))
            parts.append(branch.share(each, branch.size(value)).to(change))
        else:
            parts.append(wiring.difference(part, batch.clean, batch.other, batch.keep, tangent=True))
    return -batch.contract(torch.cat(parts), lambda part: found.of(part, batch.keep, held=part.kind != "logits"))


def eap_ig_path(batch: Batch, options: Options) -> Values:
    """Each step's own differences: what a node writes from one end of a stretch to the other, with the gradient in its
    middle. Along direct paths they add up to the whole difference."""
    steps = options.steps
    ends = batch.slopes([step / steps for step in range(steps + 1)], inner=True)
    middles = batch.slopes([(step + 0.5) / steps for step in range(steps)])
    total = torch.zeros(batch.wiring.graph.shape, dtype=torch.float64)
    for step in range(steps):
        sides = [{part: value[at] for part, value in ends.inner.items()} for at in (step, step + 1)]
        one, other = (batch.wiring.built(side) for side in sides)
        parts = [
            batch.wiring.difference(part, one, other, batch.keep, tangent=False) for part in batch.wiring.graph.writes
        ]
        weights = [float(number == step) for number in range(steps)]
        total -= batch.contract(torch.cat(parts), lambda part, weights=weights: middles.of(part, batch.keep, weights))  # type: ignore[misc]
    return total


def eap_ig_activations(batch: Batch, options: Options) -> Values:
    """Every branch's output in turn goes from clean to other while the rest of the run follows."""
    wiring, shares = batch.wiring, options.shares()
    differences = batch.differences(tangent=False)
    total = torch.zeros(wiring.graph.shape, dtype=torch.float64)
    still = batch.embeds([0.0] * len(shares))
    branches = [part for part in wiring.graph.writes if part.kind != "unit"]
    for part in branches:
        if part.kind == "input":
            found = batch.slopes(shares)
        else:
            edit = _towards(batch, part, shares)
            found = slopes(wiring, batch.pairs.clean, still, batch.measure(len(shares)), edits=[edit])
        total -= batch.contract(differences, lambda at, found=found: found.of(at, batch.keep))  # type: ignore[misc]
    return total / len(branches)


def _towards(batch: Batch, part: Part, shares: list[float]) -> Edit:
    clean, other = (batch.wiring.total(part, side.inner) for side in (batch.clean, batch.other))
    between = torch.cat([clean + share * (other - clean) for share in shares])

    def fn(x: Tensor, moment: Moment) -> Tensor:
        return between.to(x)

    return Edit(batch.wiring.sent(part), fn, "interpolated")


def eap_gp(batch: Batch, options: Options) -> Values:
    """Inputs on a path that follows the gradient of the output's distance from the other side's (Zhang et al. 2025,
    EAP-GP): each step goes down ‖logits - other logits‖², as far as an even share of what is left to go."""
    wiring, steps = batch.wiring, options.steps
    target, rows = batch.other_logits, len(batch.pairs)
    stream = batch.embeds([0.0])
    goal = batch.embeds([1.0])
    total = torch.zeros(wiring.graph.shape, dtype=torch.float64)
    differences = batch.differences(tangent=False)

    def distance(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows"]:
        return (logits - target).square().sum(-1)

    for step in range(steps):
        found = slopes(wiring, batch.pairs.clean, stream, batch.measure())
        total -= batch.contract(differences, lambda at, found=found: found.of(at, batch.keep)) / steps  # type: ignore[misc]
        if step + 1 < steps:
            down = _input_slope(batch, stream, distance) * batch.keep[None, ..., None]
            left = (goal - stream).flatten(2).norm(dim=-1) / (steps - step)
            size = down.flatten(2).norm(dim=-1).clamp(min=torch.finfo(down.dtype).tiny)
            stream = stream - down * (left / size).reshape(1, rows, 1, 1)
    return total


def _input_slope(batch: Batch, stream: Tensor, measure: Callable[[Tensor], Tensor]) -> Float[Tensor, "1 rows pos d"]:
    """The gradient of a number with respect to what enters the first block: the sum of the gradients of all slots that
    read it."""
    found = slopes(batch.wiring, batch.pairs.clean, stream, measure)
    every = torch.ones_like(batch.keep)
    total = sum(found.of(part, every).sum(0) for part in batch.wiring.graph.reads)
    return total.unflatten(0, batch.keep.shape)[None]  # type: ignore[union-attr]


def ifr(batch: Batch, options: Options) -> Values:
    """prox(u) = max(0, ‖y‖₁ - ‖u - y‖₁) of what each source adds to a slot's stream y, over their sum; the mean over
    real tokens (not their sum), as no gradient picks some of them out. Where no source is near, all are 0."""
    wiring, graph = batch.wiring, batch.wiring.graph
    real = batch.pairs.clean.mask & (batch.at >= 0)
    shares = torch.zeros(graph.shape, dtype=torch.float64)
    lengths = batch.pairs.clean.lengths[:, None].expand(real.shape)[real].to(torch.float64)
    places, written = batch.at[real], _written(batch, real)
    last = torch.zeros_like(real)
    last[torch.arange(len(real)), batch.pairs.clean.last] = True
    for part in graph.reads:
        count, stream = wiring.visible(part), batch.clean.streams[wiring.reads(part)][real]
        near = (stream.abs().sum(-1) - (written[:count] - stream).abs().sum(-1)).clamp(min=0).double()
        near = near / near.sum(0).clamp(min=1e-12)
        near = near * last[real] if part.kind == "logits" else near / lengths
        for place in range(graph.shape[0]):
            score = near[:, places == place].sum(-1).cpu()
            shares[place, :count, part.range] = score[:, None].expand(-1, part.count)
    return shares


def _written(batch: Batch, keep: Tensor) -> Float[Tensor, "source token d_model"]:
    """What every node writes in the clean run; the norm behind heads with the size that it has there."""
    wiring = batch.wiring
    parts = []
    for part in wiring.graph.writes:
        value = batch.clean.inner[part][keep]
        if part.kind != "head":
            parts.append(wiring.apart(part, value))
            continue
        branch = wiring.branches[part]
        each = torch.einsum("thd,hdm->htm", value, branch.weight().to(value))
        parts.append(branch.share(each, branch.size(value)).to(value))
    return torch.cat(parts)


def random(batch: Batch, options: Options) -> Values:
    draw = torch.Generator().manual_seed(options.seed)
    return torch.rand(batch.wiring.graph.shape, generator=draw, dtype=torch.float64) * len(batch.pairs)


@dataclass(frozen=True)
class Method:
    """A row of `EDGE_METHODS`.

    Attributes:
        score: sum over a batch's pairs. what: one line of help. is_signed: whether scores have a sign.
        options: the options that it reads.
    """

    score: Callable[[Batch, Options], Values]
    what: str
    is_signed: bool = True
    options: tuple[str, ...] = ()


EDGE_METHODS: dict[str, Method] = {
    "eap": Method(eap, "one gradient, at the clean run"),
    "eap-ig": Method(eap_ig, "the mean gradient over inputs between clean and corrupted", options=("steps", "rule")),
    "eap-ig-activations": Method(
        eap_ig_activations, "the same over each branch's output in turn: slow", options=("steps", "rule")
    ),
    "eap-ig-path": Method(eap_ig_path, "each step with its own differences", options=("steps",)),
    "clean-corrupted": Method(clean_corrupted, "the mean of the gradients at both ends"),
    "relp": Method(relp, "rules that conserve relevance in place of derivatives, at the clean run"),
    "eap-gp": Method(eap_gp, "gradients along a path that follows the output", options=("steps",)),
    "ifr": Method(ifr, "information-flow routes: what is near the stream, on the clean run alone", is_signed=False),
    "random": Method(random, "a draw", is_signed=False, options=("seed",)),
}


ELSEWHERE = {  # what some look for here: functions with results of their own
    "edge-pruning": "learn_circuit", "ugs": "learn_circuit", "exact": "exact", "acdc": "acdc", "atp": "node_scores",
    "atp*": "node_scores", "optimal": "optimal_ablation",
}  # fmt: skip


def known_method(name: str) -> Method:
    """A row of the table. Raises `UnknownName` for another name: with its function, if it has one."""
    if function := ELSEWHERE.get(name):
        raise UnknownName(
            f"{name!r} is no method that scores all edges in a few passes: ms.circuits.{function} does it"
        )
    check_name("method", name, EDGE_METHODS)
    return EDGE_METHODS[name]


def method_of(name: str, options: Options) -> Method:
    """A row of the table. Raises `UnknownName` for another name; `BadInput` for options that make no path."""
    row = known_method(name)
    if isinstance(options.steps, bool) or not isinstance(options.steps, int) or options.steps < 1:
        raise BadInput(f"steps counts gradients, at least 1, not {options.steps!r}")
    options.shares()
    return row
