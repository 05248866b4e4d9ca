"""Scores of every edge of a model's graph, by any method of the table."""

from collections.abc import Sequence
from typing import Literal

import torch

from ..data import TokenPairs
from ..errors import BadInput
from ..models import Model
from ..patching.corruptions import Corruption
from ..patching.scoring import MetricLike, one_metric, refuse_joint
from ..progress import Meter
from ..results import analysis
from .batches import Batches, check_apart
from .graph import Graph
from .methods import Options, method_of
from .scores import EdgeScores
from .units import Units


@analysis
def attribute(
    model: Model,
    pairs: TokenPairs,
    method: str = "eap-ig",
    *,
    metric: MetricLike | None = None,
    corruption: Corruption | None = None,
    places: list[str] | Literal["positions"] | None = None,
    units: Sequence[Units] = (),
    steps: int = 5,
    rule: Literal["midpoint", "left", "right"] = "midpoint",
    batch_size: int = 8,
    seed: int = 0,
    quiet: bool = False,
) -> EdgeScores:
    """Score every edge: by how much the metric falls when it alone is corrupted. Above zero, the edge helps.

        scores = ms.circuits.attribute(model, pairs, method="eap-ig", steps=5)
        scores.top(20)
        circuit = scores.greedy(edges=500)

    Sums over examples are divided once by their number, so that scores do not depend on `batch_size`.

    Args:
        method: a row of `circuits.methods.EDGE_METHODS`.
        metric: a name of `patching.METRICS` or a function; default: what suits the answers.
        corruption: what a corrupted edge carries: None, the pairs' corrupted prompts; or `patching.mean()`, `zero()`,
            `positional_mean()`, `resample()`.
        places: tell edges apart by token: names of spans of the pairs ("other" as the last: all other tokens), or
            "positions", one place each.
        units: neurons or latents that are nodes of their own: `[circuits.neuron_units(model, 3, [17, 40])]`.
        steps, rule: of methods with a path between both sides.

    Raises:
        UnknownName: no such method, metric or rule. BadInput: clean and corrupted runs do not differ in the metric; a
            model whose branches are not heads and MLPs; as `places_of`.
    """
    options = Options(steps, rule, seed)
    row = method_of(method, options)
    refuse_joint(pairs, "attribute")
    name, function = one_metric(metric, pairs)
    graph = Graph.of(model, places_named(pairs, places), units=units)
    batches = Batches(model, pairs, graph, function, corruption, batch_size)
    total, ends = torch.zeros(graph.shape, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    with Meter(f"score edges ({method})", len(pairs), "pairs", quiet=quiet) as meter:
        for batch in batches:
            ends += batch.ends()
            total += row.score(batch, options)
            meter.advance(len(batch.pairs))
    clean, corrupted = (ends / len(pairs)).tolist()
    check_apart(name, clean, corrupted)
    values = torch.where(graph.real, total / len(pairs), 0.0)
    return EdgeScores(graph, values, method, name, model.name, clean, corrupted, len(pairs), pairs.notes)


def places_named(pairs: TokenPairs, places: list[str] | Literal["positions"] | None) -> tuple[str, ...]:
    """The names of a graph's places, as they are given."""
    if places is None:
        return ("",)
    if places == "positions":
        return tuple(map(str, range(pairs.clean.ids.shape[1])))
    if isinstance(places, str) or not places or len({*places}) < len(places):
        raise BadInput("places= is 'positions', or a list of names of spans, each once")
    return tuple(places)
