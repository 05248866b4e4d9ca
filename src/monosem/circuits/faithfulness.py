"""How well circuits do what the model does: the metric of each, its faithfulness, and KL to the model.

Faithfulness is f(C) = (m(C) - m(∅)) / (m(N) - m(∅)), with m the mean of a metric over pairs, N the clean run and ∅ the
run in which every edge is corrupted: a ratio of means, 0 for the empty circuit, 1 for the whole model, and it may
leave 0..1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput, Mismatch
from ..models import Model
from ..patching.corruptions import PROMPT, Corruption
from ..patching.experiment import Experiment
from ..patching.measured import Measured
from ..patching.scoring import METRICS, Metric, MetricLike, metrics_of, one_metric, refuse_joint
from ..results import analysis
from .batches import Batch, Batches
from .circuit import Circuit
from .running import run_circuits

CircuitsLike = Circuit | Sequence[Circuit] | Mapping[str, Circuit]
TOKENS_AT_ONCE = 512  # of copies of a batch, one for each circuit


@dataclass(frozen=True, eq=False, kw_only=True)
class Faithfulness(Measured):
    """Circuits run on pairs: a row of `table` is a circuit by a metric, and its `score` the faithfulness."""

    circuits: Sequence[Circuit]

    def take(self, which: Sequence[int] | Tensor) -> Self:
        return replace(super().take(which), circuits=[self.circuits[i] for i in torch.as_tensor(which).tolist()])

    def shares(self, metric: str | None = None) -> Tensor:
        """f(C) of every circuit."""
        return self.scores(metric)

    def kl(self) -> Tensor:
        """KL(model‖circuit) after the last token in nats, summed over the vocabulary; the mean over pairs."""
        return -self.mean("negative_kl")


@analysis
def faithfulness(
    model: Model,
    pairs: TokenPairs,
    circuits: CircuitsLike,
    *,
    metric: MetricLike | None = None,
    corruption: Corruption | None = None,
    batch_size: int = 8,
    quiet: bool = False,
) -> Faithfulness:
    """Run circuits and measure them; KL to the model is measured beside any metric.

        ms.circuits.faithfulness(model, pairs, {"500": scores.greedy(500)}).table

    Args:
        circuits: one, several, or by name.
        metric: as in `attribute`, or several. corruption: what edges outside a circuit carry; as in `attribute`.

    Raises:
        Mismatch: circuits of different graphs, or of another model. BadInput: as `Experiment.run`.
    """
    named = named_circuits(circuits)
    refuse_joint(pairs, "faithfulness")
    metrics = dict([one_metric(metric, pairs)] if metric is None or isinstance(metric, str) else metrics_of(metric))
    metrics.setdefault("negative_kl", METRICS["negative_kl"])
    return measure(model, pairs, named, metrics, corruption, batch_size, quiet)


def measure(
    model: Model,
    pairs: TokenPairs,
    named: Mapping[str, Circuit],
    metrics: Mapping[str, Metric],
    corruption: Corruption | None = None,
    batch_size: int = 8,
    quiet: bool = False,
) -> Faithfulness:
    """`faithfulness` with circuits by name and metrics as functions."""
    circuits = list(named.values())
    graph = circuits[0].graph
    batches = Batches(model, pairs, graph, next(iter(metrics.values())), corruption, batch_size)

    def trials(rows: slice) -> Iterator[tuple[Batch, float]]:
        yield batches.batch(rows), 1.0

    # circuits of like size run together, because what lives in one of a batch is computed for all of them
    by_size = sorted(range(len(circuits)), key=lambda number: circuits[number].n_edges)

    def variants(batch: Batch) -> Iterator[tuple[list[int], Tensor]]:
        at_once = max(1, TOKENS_AT_ONCE // batch.pairs.clean.ids.numel())
        for number in by_size:  # the whole model needs no run of its own
            if circuits[number].n_edges == graph.n_edges:
                yield [number], batch.clean_logits
        part = [number for number in by_size if circuits[number].n_edges < graph.n_edges]
        for first in range(0, len(part), at_once):
            which = part[first : first + at_once]
            yield which, run_circuits(batch, [circuits[number] for number in which]).flatten(0, 1)

    label = (corruption or PROMPT).label
    experiment = Experiment(pairs, metrics, "denoising", trials, batch_size, model=model.name, corruption=label)
    columns: dict[str, Sequence[Any]] = {"circuit": [*named], "edges": [circuit.n_edges for circuit in circuits]}
    run = experiment.run(variants, columns, label="run circuits", quiet=quiet)
    return Faithfulness.of(run, circuits=circuits)


def named_circuits(circuits: CircuitsLike) -> dict[str, Circuit]:
    """Circuits by name. Raises `BadInput` for none, `Mismatch` for circuits of different graphs."""
    if isinstance(circuits, Circuit):
        circuits = [circuits]
    named = (
        dict(circuits)
        if isinstance(circuits, Mapping)
        else {
            f"{one.n_edges} edges ({n})" if len(circuits) > 1 else f"{one.n_edges} edges": one
            for n, one in enumerate(circuits)
        }
    )
    if not named:
        raise BadInput("no circuit given; give at least one")
    first = next(iter(named.values()))
    for name, circuit in named.items():
        if circuit.graph is not first.graph and circuit.graph != first.graph:
            raise Mismatch(f"circuit {name!r} is of another graph than {next(iter(named))!r}: measure them one by one")
    return named
