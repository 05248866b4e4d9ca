"""Sets of cells patched together: one patched run for every set, whatever cells it holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...data import TokenPairs
from ...errors import BadInput
from ...models import Model, Site, TokenBatch
from ...models.running.budget import estimate, rows_that_fit
from ...models.running.selection import Kept
from ...progress import Meter
from ..cells import Cell, check_cell
from ..corruptions import Prompt
from ..scoring import MetricLike, metrics_of, normalised
from ..sweeps.growing import NotApplicable, growing
from ..sweeps.whole_runs import Patched, batched
from ..tally import direction_of
from ..trial import Trial, Writes, measured, trials

CellSet = Sequence[Cell]
MANY = 6  # single cells from which the fast way, which begins with a few whole runs, pays
Direction = Literal["denoising", "noising"]


@dataclass(frozen=True, eq=False)
class Joint:
    """What happens when all cells of a set are patched at once, for several sets.

    Attributes:
        sets: the patched sets. values: metric -> its value in every patched run, `sets pairs` (float64).
        clean, corrupted: metric -> its value in the unpatched runs, `pairs`.
        direction: "denoising" (clean values into the corrupted run) or "noising" (the other way round).
    """

    sets: Sequence[tuple[Cell, ...]]
    values: dict[str, Float[Tensor, "sets pairs"]]
    clean: dict[str, Float[Tensor, "pairs"]]
    corrupted: dict[str, Float[Tensor, "pairs"]]
    direction: str

    def scores(self, metric: str) -> Float[Tensor, "sets"]:
        """(patched - corrupted) / (clean - corrupted) of means over pairs: 0 as corrupted, 1 as clean."""
        return normalised(self.values[metric].mean(1), self.clean[metric].mean(), self.corrupted[metric].mean())


def patch_sets(
    model: Model,
    pairs: TokenPairs,
    sets: Sequence[CellSet],
    metric: MetricLike = "logit_diff",
    direction: Direction = "denoising",
    *,
    memory: str | int = "2GB",
    quiet: bool = False,
    label: str = "patch sets",
) -> Joint:
    """Write all cells of a set into one run, and measure; a run for every set and pair.

    What is written is what the other, unpatched run has there: later cells of a set do not see what earlier ones
    changed. The empty set gives the unpatched run.

    Raises:
        BadInput: no sets; latents, which need a sweep; another direction. UnknownName: no such place.
    """
    listed = [tuple(one) for one in sets]
    if not listed:
        raise BadInput("no sets of cells to patch; give at least one")
    if any(cell.latent is not None for one in listed for cell in one):
        raise BadInput("latents cannot be patched in sets; use sweep(..., dictionary=)")
    direction = direction_of(direction, Prompt())  # type: ignore[assignment]
    for cell in {cell for one in listed for cell in one}:
        check_cell(model, cell)
    order = sorted(range(len(listed)), key=lambda i: _first_layer(model, listed[i]))
    places = list(dict.fromkeys(cell.place for one in listed for cell in one))
    starts = sorted({_first_layer(model, one) for one in listed} - {model.cfg.n_layers})
    sites = list(dict.fromkeys([*places, *(Site("resid_pre", layer) for layer in starts)]))
    table = metrics_of(metric)
    values = {name: torch.zeros(len(listed), len(pairs), dtype=torch.float64) for name in table}
    ends: list[dict[str, Tensor]] = [
        {name: torch.zeros(len(pairs), dtype=torch.float64) for name in table} for _ in "ab"
    ]
    other = Prompt().sides(model, pairs, sites)
    with Meter(label, total=len(listed) * len(pairs), unit="run", quiet=quiet) as meter:
        for row in range(len(pairs)):
            (trial,) = trials(model, pairs, row, other(row), direction, sites, None)
            for end, logits in zip(ends, (trial.clean_logits, trial.other_logits)):
                for name, value in measured(trial, table, logits).items():
                    end[name][row] = value[0]
            for chosen, logits in _runs(trial, listed, order, memory):
                for name, value in measured(trial, table, logits).items():
                    values[name][list(chosen), row] = value
                meter.advance(len(chosen))
    return Joint(listed, values, ends[0], ends[1], direction)


def _runs(
    trial: Trial, sets: Sequence[CellSet], order: Sequence[int], memory: str | int
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Single cells by the fast way of sweeps; larger sets that begin in the same layer run on together from there."""
    model, tokens = trial.model, trial.base.tokens
    singles = [i for i in order if len(sets[i]) == 1]
    if len(singles) >= MANY:
        for chosen, logits in _singles(trial, [sets[i][0] for i in singles], memory):
            yield [singles[i] for i in chosen], logits
        order = [i for i in order if len(sets[i]) != 1]
    need = estimate(model, tokens, [], Kept(), "last")
    for layer, group in groupby(order, key=lambda i: _first_layer(model, sets[i])):
        members = list(group)
        if layer == model.cfg.n_layers:  # empty sets
            assert trial.base.logits is not None
            yield members, trial.base.logits.expand(len(members), -1)
            continue
        site = Site("resid_pre", layer)
        rows = rows_that_fit(need, len(members), memory)
        for first in range(0, len(members), rows):
            chosen = members[first : first + rows]
            batch = TokenBatch(*(part.expand(len(chosen), -1) for part in (tokens.ids, tokens.mask)))
            start = (site, trial.base[site].expand(len(chosen), -1, -1))
            edits = _writes(trial, [sets[i] for i in chosen])
            ran = model.run(batch, edits=edits, logits="last", start=start)
            assert ran.logits is not None
            yield chosen, ran.logits


def _singles(trial: Trial, cells: Sequence[Cell], memory: str | int) -> Patched:
    try:
        yield from growing(trial, cells, memory)
    except NotApplicable:  # raised before the first numbers; whole runs give the same ones, slower
        yield from batched(trial, cells, memory)


def _writes(trial: Trial, sets: Sequence[CellSet]) -> list[Writes]:
    parts: dict[Site, list[tuple[int, tuple[object, ...], Tensor]]] = {}
    for row, cells in enumerate(sets):
        for cell in cells:
            write = (row, cell.index(trial.pairs, 0), trial.value(cell))
            parts.setdefault(cell.place, []).append(write)
    return [Writes(site, own) for site, own in parts.items()]


def _first_layer(model: Model, cells: CellSet) -> int:
    return min((cell.layer for cell in cells), default=model.cfg.n_layers)
