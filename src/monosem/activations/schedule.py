"""The order in which items are visited: a fresh permutation each epoch, readable from any point."""

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import BadInput


class Schedule:
    """`epochs` passes over `count` items, each in an order drawn from (seed, epoch). Nothing but a cursor is state.

    Raises:
        BadInput: nothing to visit, or no epoch.
    """

    def __init__(self, count: int, seed: int, epochs: int):
        if count < 1 or epochs < 1:
            raise BadInput(f"nothing to visit: {count} items, {epochs} epochs")
        self.count, self.seed, self.epochs = count, seed, epochs
        self._cached: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return self.count * self.epochs

    def take(self, cursor: int, n: int) -> Int[Tensor, "n"]:
        """The items at `cursor`, `cursor + 1`, ... `cursor + n - 1` (fewer at the end), across borders of epochs."""
        parts = []
        end = min(cursor + n, len(self))
        while cursor < end:
            epoch, at = divmod(cursor, self.count)
            part = self._order(epoch)[at : at + end - cursor]
            parts.append(part)
            cursor += len(part)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)

    def _order(self, epoch: int) -> Int[Tensor, "count"]:
        if self._cached[0] != epoch:
            # a large odd factor, so that (seed, epoch + 1) is not (seed + 1, epoch)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._cached = (epoch, torch.randperm(self.count, generator=generator))
        return self._cached[1]
