"""ACDC: edges are left out one by one, from the logits backwards, where that costs less than a threshold.

Conmy et al. 2023 (arXiv:2304.14997): an edge stays out if the loss rises by less than `threshold` over what it was
before. What is left depends on the order in which edges are tried; here slots go from the logits to the input, and of
each slot's edges the ones from the latest nodes are tried first.

Most edges go, so several are tried at once: the first, the first two, the first three, ..., as copies of one batch.
What holds up to the first edge that must stay is what one by one would give.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput
from ..models import Model
from ..patching.corruptions import Corruption
from ..patching.scoring import Metric, MetricLike, one_metric, refuse_joint
from ..progress import Meter
from ..results import analysis
from .batches import Batch, Batches
from .circuit import Circuit
from .graph import Graph
from .running import run_circuits

AT_ONCE = 8  # edges that are tried together


@analysis
def acdc(
    model: Model,
    pairs: TokenPairs,
    threshold: float,
    *,
    metric: MetricLike = "negative_kl",
    corruption: Corruption | None = None,
    start: Circuit | None = None,
    batch_size: int = 8,
    quiet: bool = False,
) -> Circuit:
    """Leave out every edge whose absence costs less than a threshold; one run an edge, or a few edges.

    Args:
        threshold: by how much the metric may fall for each edge that goes; KL in nats by default.
        start: the edges to begin with, such as the best thousand by another method; default: all of them.

    Raises:
        BadInput: a threshold that is not above 0.
    """
    if not 0 < threshold < float("inf"):
        raise BadInput(f"threshold is above 0, by how much the metric may fall an edge, not {threshold!r}")
    refuse_joint(pairs, "acdc")
    name, function = one_metric(metric, pairs)
    start = Circuit.full(Graph.of(model)) if start is None else start
    batches = list(Batches(model, pairs, start.graph, function, corruption, batch_size))
    edges, current = start.edges.clone(), _means(batches, [start], function)[0]
    order = [at for at in _backwards(start.graph) if bool(edges[at])]
    with Meter("acdc", len(order), "edges", quiet=quiet) as meter:
        while order:
            tried, trials = order[:AT_ONCE], []
            for number in range(len(tried)):
                without = edges.clone()
                for at in tried[: number + 1]:
                    without[at] = False
                trials.append(Circuit(start.graph, without))
            means, done = _means(batches, trials, function), 0
            for trial, mean in zip(trials, means):
                done += 1
                if current - mean >= threshold:
                    break  # this one stays
                edges, current = trial.edges, mean
            order = order[done:]
            meter.advance(done)
    note = f"ACDC at {threshold:g} of {name}: what is left depends on the order of edges"
    return Circuit(start.graph, edges, (note,)).pruned()


def _backwards(graph: Graph) -> list[tuple[int, int, int]]:
    return [
        (place, source, slot)
        for slot in reversed(range(graph.shape[2]))
        for place in reversed(range(graph.shape[0]))
        for source in reversed(graph.real[:, slot].nonzero()[:, 0].tolist())
    ]


def _means(batches: Sequence[Batch], circuits: Sequence[Circuit], metric: Metric) -> list[float]:
    """The mean of the metric over pairs, of each circuit."""
    total = torch.zeros(len(circuits), dtype=torch.float64)
    for batch in batches:
        for number, logits in enumerate(run_circuits(batch, circuits)):
            numbers: Tensor = metric(logits, batch.pairs, batch.clean_logits)
            total[number] += numbers.double().sum().cpu()
    return (total / sum(len(batch.pairs) for batch in batches)).tolist()
