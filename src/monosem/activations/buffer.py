"""A shuffle buffer: rows go in in order and come out at random, each exactly once, and nothing is ever concatenated."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BadInput, Mismatch

Rows = Mapping[str, Float[Tensor, "n d"]]


class ShuffleBuffer:
    """Preallocated rows in the model's own dtype, for one site or several whose rows stay aligned.

    Rows are written into free slots and never move. A permutation of the occupied slots is drawn when rows were added
    since the last one, so refilling at half empty costs one permutation for half a buffer of samples.

    Args:
        capacity: tokens.
        widths: name -> length of a row.
    """

    def __init__(
        self,
        capacity: int,
        widths: Mapping[str, int],
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if capacity < 1 or not widths:
            raise BadInput(
                f"a shuffle buffer needs a capacity of at least 1 and one row width; got {capacity}, {widths}"
            )
        self.capacity = capacity
        self.data = {name: torch.empty(capacity, width, dtype=dtype, device=device) for name, width in widths.items()}
        self.generator = torch.Generator().manual_seed(seed)
        self._free: Int[Tensor, "free"] = torch.arange(capacity)  # slots to write to
        self._held: Int[Tensor, "held"] = torch.empty(0, dtype=torch.long)  # occupied slots, in the order of serving
        self._stale = False  # rows were added since the order was drawn

    def __len__(self) -> int:
        return len(self._held)

    @property
    def room(self) -> int:
        """Rows that can still be added."""
        return len(self._free)

    def add(self, rows: Rows) -> None:
        """Put rows in.

        Raises:
            BadInput: other names than the buffer's, different numbers of rows, or more than there is room for.
        """
        counts = {len(x) for x in rows.values()}
        if rows.keys() != self.data.keys() or len(counts) != 1:
            raise BadInput(f"this buffer takes equally many rows of {', '.join(self.data)}; got {', '.join(rows)}")
        count = counts.pop()
        if count > self.room:
            raise BadInput(f"{count} rows do not fit: the buffer has room for {self.room} of {self.capacity}")
        slots, self._free = self._free[:count], self._free[count:]
        for name, data in self.data.items():
            data.index_copy_(0, slots.to(data.device), rows[name].to(data.device, data.dtype))
        self._held = torch.cat([self._held, slots])
        self._stale = True

    def sample(self, count: int) -> dict[str, Float[Tensor, "n d"]]:
        """Take `count` rows out, drawn without replacement from all that are held.

        Raises:
            BadInput: fewer are held.
        """
        if count > len(self):
            raise BadInput(f"{count} rows were asked for, the buffer holds {len(self)}")
        if self._stale:
            self._held = self._held[torch.randperm(len(self), generator=self.generator)]
            self._stale = False
        slots, self._held = self._held[:count], self._held[count:]
        self._free = torch.cat([self._free, slots])
        return {name: x.index_select(0, slots.to(x.device)) for name, x in self.data.items()}

    def state_dict(self) -> dict[str, Any]:
        """The rows held (copied, in the order of serving) and the generator: a loaded buffer serves the same rows."""
        rows = {name: x.index_select(0, self._held.to(x.device)).cpu() for name, x in self.data.items()}
        return {"rows": rows, "generator": self.generator.get_state(), "stale": self._stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `Mismatch` when the state is of a buffer with other rows or a larger capacity."""
        rows: Rows = state["rows"]
        shapes = {name: (x.dtype, x.shape[1]) for name, x in rows.items()}
        count = len(next(iter(rows.values())))
        if shapes != {name: (x.dtype, x.shape[1]) for name, x in self.data.items()} or count > self.capacity:
            raise Mismatch(f"the saved buffer ({count} rows, {shapes}) does not fit this one of {self.capacity}")
        for name, x in rows.items():
            self.data[name][:count] = x.to(self.data[name].device)
        self._held, self._free = torch.arange(count), torch.arange(count, self.capacity)
        self._stale = bool(state["stale"])
        self.generator.set_state(state["generator"])
