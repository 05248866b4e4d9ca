"""Batches of whole windows of token ids, for training on what the rest of a model makes of them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from jaxtyping import Int
from torch import Tensor

from ..errors import BadInput
from .harvesting import Harvest, made_by
from .schedule import Schedule
from .skipping import SkipRule
from .stream import check_config


class TokenStream:
    """Iterator over batches of windows, in an order drawn from (seed, epoch); its state is a number, and what was
    counted. `harvest` says what to read of them, and which tokens count.

    Raises:
        BadInput: batches of no window, or more windows than there are.
    """

    def __init__(self, harvest: Harvest, windows: int, seed: int, epochs: int):
        self.harvest, self.windows = harvest, windows
        self.schedule, self.cursor = Schedule(len(harvest.store), seed, epochs), 0
        if not 1 <= windows <= len(self.schedule):
            raise BadInput(f"batches of {windows:,} windows cannot be served from {len(self.schedule):,}")
        self.config: dict[str, Any] = {
            **made_by(harvest.model, harvest.second),
            "sites": [str(site) for site in harvest.sites],
            "windows": harvest.store.fingerprint,
            "batch_windows": windows,
            "seed": seed,
            "epochs": epochs,
            "skip": str(harvest.skipper.rule),
        }

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Int[Tensor, "windows context"]:
        if self.cursor + self.windows > len(self.schedule):
            raise StopIteration
        indices = self.schedule.take(self.cursor, self.windows)
        self.cursor += self.windows
        return self.harvest.store[indices.numpy()]

    @property
    def skipped(self) -> Counter[str]:
        """Tokens that were trained on so far, by what became of them (see `Skipper.counts`)."""
        return self.harvest.skipped

    @property
    def skip(self) -> SkipRule:
        return self.harvest.skipper.rule

    @property
    def thresholds(self) -> dict[str, float]:
        """Site -> norm above which a token is left out as an outlier."""
        return self.harvest.thresholds

    def state_dict(self) -> dict[str, Any]:
        counted = {"skipped": dict(self.skipped), "thresholds": dict(self.thresholds)}
        return {"config": dict(self.config), "cursor": self.cursor, **counted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `Mismatch` when the state is of a stream with other settings."""
        check_config(self.config, state["config"])
        self.cursor = int(state["cursor"])
        self.harvest.skipper.counts = Counter(state["skipped"])
        self.harvest.skipper.thresholds = dict(state["thresholds"])
