"""Scores against a circuit that is known: how well they tell its edges from the others."""

from dataclasses import dataclass

import torch

from ..errors import BadInput, Mismatch
from ..statistics import Interval, auroc_interval
from . import selection
from .circuit import Circuit
from .curves import SHARES
from .scores import EdgeScores


@dataclass(frozen=True)
class Recovery:
    """How scores rank the edges of a known circuit.

    Attributes:
        auroc: probability that an edge of the circuit has a larger score than another one, ties counting half: the area
            under the whole ROC, with both corners.
        mib_auroc: as MIB's InterpBench task computes it: greedy circuits of ten sizes, trapezoids without the corner at
            (0, 0), false positive rates divided by the last one.
        precision: share of the circuit among as many edges with the largest scores as it has.
    """

    auroc: Interval
    mib_auroc: float
    precision: float


def recovery(scores: EdgeScores, truth: Circuit, *, absolute: bool = True) -> Recovery:
    """Compare scores with a known circuit of the same graph.

    Raises:
        Mismatch: another graph. BadInput: the circuit is empty or the whole graph, or an edge was not scored.
    """
    graph = scores.graph
    if truth.graph != graph:
        raise Mismatch("the known circuit is of another graph than the scores")
    real = graph.real.expand(graph.shape)
    values = (scores.values.abs() if absolute else scores.values)[real]
    inside = truth.edges[real]
    if bool(values.isnan().any()):
        raise BadInput(f"{int(values.isnan().sum())} edges were not scored: a ranking needs all of them")
    if not bool(inside.any()) or bool(inside.all()):
        raise BadInput(f"the known circuit has {int(inside.sum())} of {len(inside)} edges: nothing to tell apart")
    size = int(inside.sum())
    first = selection.order(graph, scores.values, absolute=absolute)[:size]
    hits = float(truth.edges.flatten()[first].double().mean())
    return Recovery(auroc_interval(values[inside], values[~inside]), _mib(scores, truth, absolute), hits)


def _mib(scores: EdgeScores, truth: Circuit, absolute: bool) -> float:
    graph = scores.graph
    real, inside = graph.real.expand(graph.shape), truth.edges
    rates = []
    for size in selection.sizes_of(graph, SHARES):
        chosen = scores.greedy(size, absolute=absolute).edges
        true, false = int((chosen & inside).sum()), int((chosen & ~inside).sum())
        rates.append((false / int((real & ~inside).sum()), true / int(inside.sum())))
    x, y = torch.tensor(rates, dtype=torch.float64).unbind(1)
    return float(torch.trapezoid(y, x / x[-1])) if float(x[-1]) > 0 else float(y[-1])
