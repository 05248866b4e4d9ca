"""Sets of cells patched together: one patched run for every set, whatever cells it holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ...data import TokenPairs
from ...errors import BadInput
from ...models import Model, Site
from ...models.running.budget import estimate, rows_that_fit
from ...models.running.selection import Kept
from ...results import analysis
from ..cells import Cell, check_cell, places_of
from ..experiment import Direction
from ..measured import Columns, Measured
from ..scoring import MetricLike
from ..sweeps.engine import Engine
from ..sweeps.whole_runs import CellSet, Patched
from ..trials import Trial, patching_experiment, writes_of

MANY = 6  # single cells from which the fast way, which begins with a few whole runs, pays


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Joint(Measured):
    """What happens when all cells of a set are patched at once; `sets` are the variants."""

    sets: Sequence[tuple[Cell, ...]]

    @property
    def best(self) -> tuple[Cell, ...]:
        """The set that moves the first metric furthest, either way."""
        return self.sets[self.furthest()]


@analysis
def patch_sets(
    model: Model,
    pairs: TokenPairs,
    sets: Sequence[CellSet],
    *,
    metric: MetricLike = "logit_diff",
    direction: Direction = "denoising",
    memory: str | int = "2GB",
    quiet: bool = False,
    label: str = "patch sets",
) -> Joint:
    """Write all cells of a set into one run, and measure; a run for every set and pair.

    What is written is what the other, unpatched run has there: later cells of a set do not see what earlier ones
    changed. The empty set gives the unpatched run.

    Raises:
        BadInput: no sets, or cells instead; latents, which need a sweep; another direction. UnknownName: no such place.
    """
    given = list(sets)
    if any(isinstance(one, Cell) for one in given):
        raise BadInput(f"a set is a list of cells, and {given[0]} stands alone: give [[cell, ...], ...]")
    listed = [tuple(one) for one in given]
    if not listed:
        raise BadInput("no sets of cells to patch; give at least one")
    if any(cell.latent is not None for one in listed for cell in one):
        raise BadInput("latents cannot be patched in sets; use sweep(..., dictionary=)")
    cells = list(dict.fromkeys(cell for one in listed for cell in one))
    for cell in cells:
        check_cell(model, cell)
    order = sorted(range(len(listed)), key=lambda i: _first_layer(model, listed[i]))
    starts = sorted({_first_layer(model, one) for one in listed} - {model.cfg.n_layers})
    captured = list(dict.fromkeys([*places_of(cells), *(Site("resid_pre", layer) for layer in starts)]))
    experiment = patching_experiment(model, pairs, captured, metric, direction)
    columns: Columns = {"set": [", ".join(map(str, one)) for one in listed], "cells": [len(one) for one in listed]}
    engine = Engine()
    runs = experiment.run(lambda trial: _runs(trial, listed, order, engine, memory), columns, label=label, quiet=quiet)
    return Joint.of(runs, sets=listed, **engine.ran)


def _runs(trial: Trial, sets: Sequence[CellSet], order: Sequence[int], engine: Engine, memory: str | int) -> Patched:
    """Single cells by the fast way of sweeps; larger sets that begin in the same layer run on together from there."""
    model = trial.model
    singles = [i for i in order if len(sets[i]) == 1]
    if len(singles) >= MANY:
        for chosen, logits in engine(trial, [sets[i] for i in singles], memory):
            yield [singles[i] for i in chosen], logits
        order = [i for i in order if len(sets[i]) != 1]
    need = estimate(model, trial.base.tokens, [], Kept(), "last")
    for layer, group in groupby(order, key=lambda i: _first_layer(model, sets[i])):
        members = list(group)
        if layer == model.cfg.n_layers:  # empty sets
            yield members, trial.unpatched(len(members))
            continue
        rows = rows_that_fit(need, len(members), memory)
        for first in range(0, len(members), rows):
            chosen = members[first : first + rows]
            edits = writes_of(trial, [sets[i] for i in chosen])
            yield chosen, trial.patched(len(chosen), edits, Site("resid_pre", layer))


def _first_layer(model: Model, cells: CellSet) -> int:
    return min((cell.layer for cell in cells), default=model.cfg.n_layers)
