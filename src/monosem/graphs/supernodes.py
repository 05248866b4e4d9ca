"""Which nodes of a graph do one thing: units that read from the same nodes and write to the same ones."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from .files import UNITS
from .graph import AttributionGraph


def suggest_supernodes(graph: AttributionGraph, similarity: float = 0.7) -> dict[str, list[str]]:
    """Label -> ids of units that belong together, for `intervene` and the viewer; groups of two or more.

    The most influential units come first: each joins the group that it is most alike, if the cosine of what it reads
    and writes (both sides of the same length) with the group's mean is at least `similarity`; else it starts a group.

    Raises:
        BadInput: a similarity that is not above 0 and at most 1.
    """
    if not 0 < similarity <= 1:
        raise BadInput(f"similarity= is a cosine, above 0 and at most 1, not {similarity!r}")
    rows = {int(node): row for row, node in enumerate(graph.rows.tolist())}
    units = [n for n in graph.influence.argsort(descending=True).tolist() if graph.kinds[n] in UNITS and n in rows]
    members, sums = list[list[int]](), list[Tensor]()
    for unit in units:
        own = _profile(graph, rows[unit], unit)
        alike = [float(torch.nn.functional.cosine_similarity(own, one, dim=0)) for one in sums]
        best = max(range(len(alike)), key=lambda i: alike[i], default=-1)
        if best >= 0 and alike[best] >= similarity:
            members[best].append(unit)
            sums[best] = sums[best] + own
        else:
            members.append([unit])
            sums.append(own)
    groups = [sorted(group) for group in members if len(group) > 1]
    return {
        f"{i}: {_label(graph, group)}": [graph.nodes["id"].iloc[n] for n in group] for i, group in enumerate(groups, 1)
    }


def _profile(graph: AttributionGraph, row: int, unit: int) -> Float[Tensor, "n"]:
    """What a unit reads and what it writes, signed, each side of length 1; the bias is left out."""
    reads = torch.where(graph._are("bias"), 0, graph.edges[row])
    sides = [reads, graph.edges[:, unit]]
    return torch.cat([torch.nn.functional.normalize(side, dim=0) for side in sides])


def _label(graph: AttributionGraph, group: list[int]) -> str:
    nodes = graph.nodes.iloc[group]
    low, high = int(nodes["layer"].min()), int(nodes["layer"].max())
    layers = f"layer {low}" if low == high else f"layers {low} to {high}"
    return f"{layers} at {graph.tokens[int(nodes['position'].mode().iloc[0])].strip()}"
