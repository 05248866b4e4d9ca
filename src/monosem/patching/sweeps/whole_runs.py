"""Patching by whole runs: one run a cell (the plain definition), or several cells as rows of one batch."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from jaxtyping import Float
from torch import Tensor

from ...models import TokenBatch
from ...models.running.budget import estimate, rows_that_fit
from ...models.running.selection import Kept
from ..cells import Cell
from ..trial import Trial, Writes

Patched = Iterator[tuple[Sequence[int], Float[Tensor, "rows vocab"]]]  # which cells, and their last token's logits


def naive(trial: Trial, cells: Sequence[Cell], memory: str | int) -> Patched:
    """One whole run for each cell."""
    return _runs(trial, cells, 1)


def batched(trial: Trial, cells: Sequence[Cell], memory: str | int) -> Patched:
    """Whole runs with as many cells as rows as the memory budget holds."""
    need = estimate(trial.model, trial.base.tokens, [], Kept(), "last")
    return _runs(trial, cells, rows_that_fit(need, len(cells), memory))


def _runs(trial: Trial, cells: Sequence[Cell], rows: int) -> Patched:
    tokens = trial.base.tokens
    for start in range(0, len(cells), rows):
        chunk = range(start, min(start + rows, len(cells)))
        by_site = groupby(sorted(enumerate(chunk), key=lambda x: cells[x[1]].place), key=lambda x: cells[x[1]].place)
        edits = [
            Writes(site, [(row, cells[i].index(trial.pairs, 0), trial.value(cells[i])) for row, i in members])
            for site, members in by_site
        ]
        batch = TokenBatch(tokens.ids.expand(len(chunk), -1), tokens.mask.expand(len(chunk), -1))
        logits = trial.model.run(batch, edits=[*trial.edits, *edits], logits="last").logits
        assert logits is not None
        yield list(chunk), logits
