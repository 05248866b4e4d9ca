"""Patching by whole runs: one run a cell (the plain definition), or several cells as rows of one batch."""

from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from ...models.running.budget import estimate, rows_that_fit
from ...models.running.selection import Kept
from ..cells import Cell
from ..experiment import Trial, writes_of

Patched = Iterator[tuple[Sequence[int], Float[Tensor, "rows vocab"]]]  # which cells, and their last token's logits


def naive(trial: Trial, cells: Sequence[Cell], memory: str | int) -> Patched:
    """One whole run for each cell."""
    return _runs(trial, cells, 1)


def batched(trial: Trial, cells: Sequence[Cell], memory: str | int) -> Patched:
    """Whole runs with as many cells as rows as the memory budget holds."""
    need = estimate(trial.model, trial.base.tokens, [], Kept(), "last")
    return _runs(trial, cells, rows_that_fit(need, len(cells), memory))


def _runs(trial: Trial, cells: Sequence[Cell], rows: int) -> Patched:
    for start in range(0, len(cells), rows):
        chunk = range(start, min(start + rows, len(cells)))
        yield chunk, trial.patched(len(chunk), writes_of(trial, [[cells[i]] for i in chunk]))
