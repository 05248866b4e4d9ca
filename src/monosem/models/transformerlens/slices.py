"""TransformerLens's `pos_slice` and `batch_slice`: an integer drops the axis, `(a, b)` is the slice a:b, lists keep it.

Positions are counted in each row's real tokens, as `run(positions=...)` counts them: in a padded batch -1 is the last
token of every row.
"""

from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput
from ..numbers import whole_number, whole_numbers, whole_slice
from ..running.activations import Activations
from ..running.selection import Positions, columns_of
from ..tokens import TokenBatch

# a whole number, a list, array or tensor of them, a slice, a tuple of its bounds, "last", or None for all
PosSlice = Positions | Tensor | None
Slice = Any


def positions_of(pos_slice: PosSlice) -> Positions | None:
    """The same as `run(positions=...)` takes it."""
    if pos_slice is None or isinstance(pos_slice, str | slice):
        return pos_slice  # type: ignore[return-value]
    if isinstance(pos_slice, tuple):
        return slice(*pos_slice)
    return whole_number(pos_slice, "pos_slice") if _is_one(pos_slice) else whole_numbers(pos_slice, "pos_slice")


def at_positions(run: Activations, x: Tensor, pos_slice: PosSlice, axis: int = -2) -> Tensor:
    """Some positions of an activation of the run (or of what was computed from one); the batch is its first axis.

    Raises:
        BadInput: positions that are not there, or unequal numbers of them in the rows.
    """
    positions = positions_of(pos_slice)
    if positions is None:
        return x
    tokens = run.tokens
    if run.columns is not None:  # among the kept ones
        tokens = TokenBatch(run.columns, torch.ones_like(run.columns, dtype=torch.bool))
    columns = columns_of(tokens, positions).to(x.device)
    if run.has_batch_dim and tokens.padded:
        at = range(x.ndim)[axis]
        index = columns.reshape(len(columns), *[1] * (at - 1), -1, *[1] * (x.ndim - at - 1))
        x = x.gather(at, index.expand(*x.shape[:at], -1, *x.shape[at + 1 :]))
    else:
        x = x.index_select(axis, columns[0])
    return x.squeeze(axis) if isinstance(positions, int) else x


def along(x: Tensor, chosen: Slice, what: str, axis: int = 0) -> Tensor:
    """Items of an axis: rows of a batch, or neurons. Raises `BadInput`, with the name `what`, for those not there."""
    items = indices(x.shape[axis], chosen, what)
    if isinstance(items, int):
        return x.select(axis, items)
    return x.index_select(axis, torch.tensor(items, device=x.device, dtype=torch.long))


def indices(n: int, chosen: Slice, what: str) -> int | list[int]:
    """The numbers below n that are chosen; one number stands alone."""
    if chosen is None or isinstance(chosen, slice | tuple):
        bounds = slice(None) if chosen is None else slice(*chosen) if isinstance(chosen, tuple) else chosen
        return list(range(n))[whole_slice(bounds, what)]
    items = whole_numbers(chosen, what)
    if bad := [item for item in items if not -n <= item < n]:
        raise BadInput(f"{what}: there are {n}, {bad[0]} is not one of them")
    items = [item % n for item in items]
    return items[0] if _is_one(chosen) else items


def _is_one(chosen: Any) -> bool:
    return isinstance(chosen.tolist() if hasattr(chosen, "tolist") else chosen, int)
