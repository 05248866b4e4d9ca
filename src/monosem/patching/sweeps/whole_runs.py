"""Patching by whole runs: one run a set of cells (the plain definition), or several of them as rows of one batch."""

from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from ...models.running.budget import estimate, rows_that_fit
from ...models.running.selection import Kept
from ..cells import Cell
from ..trials import Trial, writes_of

CellSet = Sequence[Cell]  # the cells of one row, patched together
Patched = Iterator[tuple[Sequence[int], Float[Tensor, "rows vocab"]]]  # which sets, and their last token's logits


def naive(trial: Trial, sets: Sequence[CellSet], memory: str | int) -> Patched:
    """One whole run for each set of cells."""
    return _runs(trial, sets, 1)


def batched(trial: Trial, sets: Sequence[CellSet], memory: str | int) -> Patched:
    """Whole runs with as many sets as rows as the memory budget holds."""
    need = estimate(trial.model, trial.base.tokens, [], Kept(), "last")
    return _runs(trial, sets, rows_that_fit(need, len(sets), memory))


def _runs(trial: Trial, sets: Sequence[CellSet], rows: int) -> Patched:
    for start in range(0, len(sets), rows):
        chunk = range(start, min(start + rows, len(sets)))
        yield chunk, trial.patched(len(chunk), writes_of(trial, [sets[i] for i in chunk]))
