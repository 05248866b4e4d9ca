"""Batches of whole windows of token ids, for training on what the rest of a model makes of them."""

from jaxtyping import Int
from torch import Tensor

from ..errors import BadInput
from .harvesting import Harvest
from .stream import HarvestStream


class TokenStream(HarvestStream):
    """Iterator over batches of windows, in an order drawn from (seed, epoch); its state is a number, and what was
    counted. `harvest` says what to read of them, and which tokens count.

    Raises:
        BadInput: batches of no window, or more windows than there are.
    """

    def __init__(self, harvest: Harvest, windows: int, seed: int, epochs: int):
        super().__init__(harvest, seed, epochs)
        self.windows = windows
        if not 1 <= windows <= len(self.schedule):
            raise BadInput(f"batches of {windows:,} windows cannot be served from {len(self.schedule):,}")
        self.config |= {"sites": [str(site) for site in harvest.sites], "batch_windows": windows}

    def __next__(self) -> Int[Tensor, "windows context"]:
        if self.cursor + self.windows > len(self.schedule):
            raise StopIteration
        indices = self.schedule.take(self.cursor, self.windows)
        self.cursor += self.windows
        return self.harvest.store[indices.numpy()]
