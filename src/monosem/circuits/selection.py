"""Which edges make a circuit: the largest scores, all above a threshold, or greedily from the logits backwards.

Ties: of edges with equal scores, the one that comes first in the matrices (place, source, slot) is taken first. A score
that is NaN was not computed; such an edge is always taken.
"""

import heapq
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BadInput
from .circuit import Circuit
from .graph import Graph

Values = Float[Tensor, "place source slot"]


def order(graph: Graph, values: Values, *, absolute: bool) -> Int[Tensor, "edges"]:
    """Flat indices of all edges, the largest score first."""
    edges = graph.real.expand(graph.shape).flatten().nonzero()[:, 0]
    keys = _keys(values, absolute).flatten()[edges]
    return edges[keys.sort(descending=True, stable=True).indices]


def top_n(graph: Graph, values: Values, n: int, *, absolute: bool = True) -> Circuit:
    """The n edges with the largest scores, pruned.

    The notes say so where pruning leaves few of them, or none: edges that lie on no path from the input to the logits
    do nothing. `greedy` takes connected edges alone.
    """
    n = _counted(graph, n)
    chosen = torch.zeros(graph.shape, dtype=torch.bool)
    chosen.view(-1)[order(graph, values, absolute=absolute)[:n]] = True
    return _noted(Circuit(graph, chosen).pruned(), n)


def threshold(graph: Graph, values: Values, at_least: float, *, absolute: bool = True) -> Circuit:
    """All edges whose score is at least so large, pruned."""
    chosen = (_keys(values, absolute) >= at_least) & graph.real
    return _noted(Circuit(graph, chosen).pruned(), int(chosen.sum()))


def greedy(graph: Graph, values: Values, n: int, *, absolute: bool = True) -> Circuit:
    """n edges, each time the largest of those that lead into what was taken: first into the logits, then into the
    nodes that the taken edges come from. Every node can reach the logits; those that nothing reaches are pruned."""
    n = _counted(graph, n)
    keys = _keys(values, absolute)
    chosen = torch.zeros(graph.shape, dtype=torch.bool)
    seen, heap = torch.zeros(graph.shape[0], graph.shape[2], dtype=torch.bool), list[tuple[float, int]]()

    def offer(place: int, slot: int) -> None:
        if not seen[place, slot]:
            seen[place, slot] = True
            for source in graph.real[:, slot].nonzero()[:, 0].tolist():
                index = (place * graph.shape[1] + source) * graph.shape[2] + slot
                heapq.heappush(heap, (-float(keys[place, source, slot]), index))

    for place in range(graph.shape[0]):
        offer(place, graph.shape[2] - 1)
    for _ in range(n):
        if not heap:
            break
        _, index = heapq.heappop(heap)
        chosen.view(-1)[index] = True
        place, source = divmod(index // graph.shape[2], graph.shape[1])
        for slot in graph.feeds[source].nonzero()[:, 0].tolist():
            for at in range(graph.shape[0]) if graph.across[slot] else (place,):
                offer(at, slot)
    return _noted(Circuit(graph, chosen).pruned(), n)


def sizes_of(graph: Graph, shares: tuple[float, ...]) -> list[int]:
    """How many edges shares of the graph are, at least one."""
    return [max(1, int(share * graph.n_edges)) for share in shares]


def _keys(values: Values, absolute: bool) -> Values:
    return (values.abs() if absolute else values).nan_to_num(nan=torch.inf)


def _counted(graph: Graph, n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= graph.n_edges:
        raise BadInput(f"a circuit has 1 to {graph.n_edges:,} edges of this graph, not {n!r}")
    return n


def _noted(circuit: Circuit, wanted: int) -> Circuit:
    left = circuit.n_edges
    if left == wanted:
        return circuit
    what = "none of the" if not left else f"{left:,} of the"
    note = f"{what} {wanted:,} chosen edges lie on a path from the input to the logits"
    if not left:
        note += ": the circuit is empty, and runs as the corrupted prompt does; choose with greedy(edges=...), or more"
    return replace(circuit, notes=(*circuit.notes, note))
