"""Optimal ablation: every node's best constant (Li & Janson 2024, arXiv:2409.09951).

    a*_n = argmin over a of E over prompts of KL(model ‖ model with a written for node n at every token)

Zeros and means may be far from anything that the model has seen, and do harm of their own. The best constant harms
least: what is lost with it is what the node tells of the prompt. Every node is ablated alone; all edges that leave it
share its constant. It is found by Adam from the node's mean, with steps in units of its values' root mean square.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TokenPairs
from ..edits import Edit
from ..errors import BadInput
from ..models import Model, Moment, Site, TokenBatch
from ..patching.corruptions import Corruption, constants, token_means
from ..patching.scoring import MetricLike, one_metric, refuse_joint
from ..progress import Meter
from ..results import Result, analysis
from .batches import Batch, Batches
from .faithfulness import TOKENS_AT_ONCE
from .graph import Graph, Part

Constants = Float[Tensor, "node width"]  # of a part's nodes; of heads, what they mix


@dataclass(frozen=True, eq=False)
class OptimalAblation(Result):
    """A row a node: `node`, `at_mean` and `at_best`: what the metric loses with its mean, and with its best constant.

    Attributes:
        corruption: writes the constants; `attribute(..., corruption=found.corruption)` and all that takes one.
        constants: site -> `d_model`, of heads `head d_head`.
    """

    rows: pd.DataFrame = field(repr=False)
    corruption: Corruption
    constants: Mapping[Site, Tensor] = field(repr=False)
    metric: str
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    ranked_by = "at_best"

    @property
    def table(self) -> pd.DataFrame:
        return self.rows


@analysis
def optimal_ablation(
    model: Model,
    pairs: TokenPairs,
    *,
    metric: MetricLike = "negative_kl",
    steps: int = 40,
    learning_rate: float = 0.1,
    batch_size: int = 8,
    quiet: bool = False,
) -> OptimalAblation:
    """Find the constant for each node that costs least when it stands in the node's place.

        best = ms.circuits.optimal_ablation(model, pairs)
        scores = ms.circuits.attribute(model, pairs, "eap", corruption=best.corruption)

    Costs `steps` gradients a node, of the part of the model behind it: minutes for a few pairs of a small model.

    Args:
        metric: what shall fall least; KL to the model, in nats, unless said otherwise.
        steps, learning_rate: of Adam; the rate, in root mean squares of the node's values, falls to 0 as a cosine.

    Raises:
        BadInput: no step, or a rate that is not above 0; a metric without a gradient.
    """
    if isinstance(steps, bool) or steps < 1 or not 0 < learning_rate < math.inf:
        raise BadInput("steps and learning_rate of optimal_ablation are above 0")
    refuse_joint(pairs, "optimal_ablation")
    name, function = one_metric(metric, pairs)
    graph = Graph.of(model)
    batches = list(Batches(model, pairs, graph, function, None, batch_size))
    sites = {part: batches[0].wiring.sent(part) for part in graph.writes}
    means = token_means(model, pairs.clean, list(sites.values()))
    top = sum(float(function(one.clean_logits, one.pairs, one.clean_logits).sum()) for one in batches) / len(pairs)
    rows, best = [], dict[Site, Tensor]()
    with Meter("optimal ablation", len(graph.sources), "nodes", quiet=quiet) as meter:
        for part, site in sites.items():
            start = means[site].to(batches[0].clean.inner[part]).reshape(part.count, -1)
            found, lost = _descended(batches, part, start, steps, learning_rate)
            best[site] = found.reshape(means[site].shape)
            rows += [
                {"node": node, "kind": part.kind, "layer": part.layer, "at_mean": one, "at_best": other}
                for node, one, other in zip(part.names, *(top + lost).tolist())
            ]
            meter.advance(part.count)
    return OptimalAblation(pd.DataFrame(rows), constants(best, "optimal constant"), best, name)


def _descended(
    batches: list[Batch], part: Part, start: Constants, steps: int, rate: float
) -> tuple[Constants, Float[Tensor, "2 node"]]:
    """The best constants of a part's nodes, each ablated alone, and minus the metric at the start and there."""
    values = torch.cat([one.clean.inner[part][one.pairs.clean.mask] for one in batches])
    size = values.square().mean(0).reshape(start.shape).mean(-1, keepdim=True).sqrt().clamp(min=1e-8)
    moved = torch.zeros_like(start, requires_grad=True)  # in units of `size`
    optimiser = torch.optim.Adam([moved], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    kept, seen = start, list[Tensor]()
    for _ in range(steps + 1):
        now = (start + moved.detach() * size).requires_grad_()
        slope, lost = torch.zeros_like(now), torch.zeros(len(start), dtype=torch.float64)
        for batch in batches:
            for nodes in _at_once(batch, part):
                loss = _losses(batch, part, now, nodes)
                lost[nodes] += loss.detach().double().cpu()
                slope += torch.autograd.grad(loss.sum(), now)[0]
        seen.append(lost / sum(len(batch.pairs) for batch in batches))
        better = seen[-1] <= torch.stack(seen).amin(0)  # the best constant seen, so that none is worse than the mean
        kept = torch.where(better.to(kept.device)[:, None], now.detach(), kept)
        moved.grad = slope * size
        optimiser.step()
        schedule.step()
    return kept, torch.stack([seen[0], torch.stack(seen).amin(0)])


def _at_once(batch: Batch, part: Part) -> list[list[int]]:
    """Nodes whose runs fit together, as copies of one batch."""
    size = max(1, TOKENS_AT_ONCE // batch.pairs.clean.ids.numel())
    return [[*range(first, min(first + size, part.count))] for first in range(0, part.count, size)]


def _losses(batch: Batch, part: Part, values: Constants, nodes: list[int]) -> Float[Tensor, "node"]:
    """Minus the metric, summed over a batch's pairs, of runs with one node's constant each."""
    wiring, tokens, times = batch.wiring, batch.pairs.clean, len(nodes)
    first = Site("resid_pre", part.layer or 0)

    def written(x: Tensor, moment: Moment) -> Tensor:
        x = x.clone().unflatten(0, (times, -1))
        for number, node in enumerate(nodes):
            (x[number, :, :, node] if part.kind == "head" else x[number])[:] = values[node].to(x)
        return x.flatten(0, 1)

    run = wiring.model.run(
        TokenBatch(tokens.ids.repeat(times, 1), tokens.mask.repeat(times, 1)),
        edits=Edit(wiring.sent(part), written, "constant"),
        start=(first, batch.clean.streams[first].repeat(times, 1, 1)),
        logits="last",
        grad=True,
    )
    assert run.logits is not None
    loss = -batch.measure(times)(run.logits)
    if not loss.requires_grad:
        raise BadInput("the metric carries no gradient; compute it from the logits with torch alone")
    return loss.unflatten(0, (times, -1)).sum(1)
