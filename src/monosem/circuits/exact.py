"""Exact scores: every edge patched alone, with everything behind its slot computed anew.

Against the corrupted prompts, edges are paths of the patching room: the clean run with Δ_u added to what one slot
reads, batched by slot, and begun at its block and at the first token that differs. Against values (zero, means), they
are runs of the whole circuit without the edge.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput
from ..models import Model
from ..patching.corruptions import Corruption
from ..patching.paths.nodes import Node, NodeSet, sent_at
from ..patching.paths.paths import along
from ..patching.paths.result import Path
from ..patching.scoring import Metric, MetricLike, one_metric
from ..results import analysis
from .batches import check_apart
from .circuit import Circuit
from .faithfulness import measure
from .graph import Graph, Part
from .scores import EdgeScores
from .units import Units


@analysis
def exact(
    model: Model,
    pairs: TokenPairs,
    edges: Sequence[str] | Int[Tensor, "edges"] | None = None,
    *,
    metric: MetricLike | None = None,
    corruption: Corruption | None = None,
    units: Sequence[Units] = (),
    memory: str | int = "1GB",
    batch_size: int = 8,
    quiet: bool = False,
) -> EdgeScores:
    """By how much the metric falls when an edge alone carries what the corrupted run has; NaN for edges not asked for.

    Args:
        edges: names, or flat indices into the matrices `1 source slot`; None: all of them, one run each.
        corruption, units: as in `attribute`. memory: of runs along paths. batch_size: pairs at once, of the other runs.

    Raises:
        UnknownName: no such edge. BadInput: none given; as `attribute`.
    """
    graph = Graph.of(model, units=units)
    if isinstance(edges, Tensor):
        index = edges
    elif edges is None:
        index = graph.real.flatten().nonzero()[:, 0]
    else:
        places = [graph.index(name) for name in edges]
        index = torch.tensor([source * graph.shape[2] + slot for _, source, slot in places], dtype=torch.long)
    if not len(index):
        raise BadInput("no edges given; name one at least")
    name, function = one_metric(metric, pairs)
    if corruption is not None or units:
        return _without(model, pairs, graph, index, name, function, corruption, batch_size, quiet)
    senders = [_sender(model, part, number) for part in graph.writes for number in range(part.count)]
    receivers = [_receiver(model, part, number) for part in graph.reads for number in range(part.count)]
    chosen = [Path(senders[at // graph.shape[2]], receivers[at % graph.shape[2]]) for at in index.tolist()]
    run = along(model, pairs, chosen, metric={name: function}, direction="noising", memory=memory, quiet=quiet)
    values = torch.full(graph.shape, torch.nan, dtype=torch.float64)
    values.view(-1)[index] = -run.effect(name)
    clean, corrupted = float(run.clean[name].mean()), float(run.corrupted[name].mean())
    check_apart(name, clean, corrupted)
    return EdgeScores(graph, values, "exact", name, model.name, clean, corrupted, len(pairs), pairs.notes)


def _without(
    model: Model,
    pairs: TokenPairs,
    graph: Graph,
    index: Int[Tensor, "edges"],
    name: str,
    metric: Metric,
    corruption: Corruption | None,
    batch_size: int,
    quiet: bool,
) -> EdgeScores:
    """The circuit of all edges but one, for each of them."""
    full = Circuit.full(graph)
    runs: dict[str, Circuit] = {}
    for at in index.tolist():
        edges = full.edges.clone()
        edges.view(-1)[at] = False
        runs[graph.name(0, at // graph.shape[2], at % graph.shape[2])] = Circuit(graph, edges)
    found = measure(model, pairs, runs, {name: metric}, corruption, batch_size, quiet)
    values = torch.full(graph.shape, torch.nan, dtype=torch.float64)
    clean, corrupted = float(found.clean[name].mean()), float(found.corrupted[name].mean())
    values.view(-1)[index] = clean - found.mean(name)
    check_apart(name, clean, corrupted)
    return EdgeScores(graph, values, "exact", name, model.name, clean, corrupted, len(pairs), pairs.notes)


def _sender(model: Model, part: Part, number: int) -> NodeSet:
    if part.layer is None:
        node = Node("embed")
    else:
        branch = model.branch(part.branch, part.layer)
        node = Node(sent_at(branch).name, part.layer, number if part.kind == "head" else None)
    return NodeSet(str(node), (node,))


def _receiver(model: Model, part: Part, number: int) -> NodeSet:
    if part.layer is None:
        node = Node("logits")
    elif part.kind == "whole":
        node = Node(f"{part.branch}_in", part.layer)
    else:
        node = Node(model.branch(part.branch, part.layer).site(part.kind).name, part.layer, number)
    return NodeSet(str(node), (node,))
