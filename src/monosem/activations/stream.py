"""Shuffled batches of activations straight from the model: an iterator that can be stopped and resumed exactly."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TextSource
from ..errors import BadInput, Mismatch
from ..jobs import differences
from ..models import Model, SiteLike
from .buffer import ShuffleBuffer
from .harvesting import Harvest, harvest, made_by
from .schedule import Schedule
from .second import AnySite
from .skipping import SkipRule

AHEAD = 4  # batches in the buffer before the first is served: enough windows that the first ones are mixed, too
GROWTH = 0.5  # batches that the buffer grows by with every batch, up to its size, so that reading is spread over steps

Batch = Float[Tensor, "batch_tokens d"] | dict[AnySite, Float[Tensor, "batch_tokens d"]]


class HarvestStream:
    """What iterators over a harvest share: what was counted, and a state that can be gone on with.

    Attributes:
        cursor: windows read. config: what decides which batches come; a state of other settings is refused.
    """

    def __init__(self, harvest: Harvest, seed: int, epochs: int):
        self.harvest, self.schedule, self.cursor = harvest, Schedule(len(harvest.store), seed, epochs), 0
        self.config: dict[str, Any] = {
            **made_by(harvest.model, harvest.second),
            "windows": harvest.store.fingerprint,
            "seed": seed,
            "epochs": epochs,
            "skip": str(harvest.skipper.rule),
        }

    def __iter__(self) -> Self:
        return self

    @property
    def skipped(self) -> Counter[str]:
        """Tokens read so far by what became of them (see `Skipper.counts`)."""
        return self.harvest.skipped

    @property
    def skip(self) -> SkipRule:
        return self.harvest.skipper.rule

    @property
    def thresholds(self) -> dict[str, float]:
        """Site -> norm above which a token is left out as an outlier."""
        return self.harvest.thresholds

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the very next batch; tensors, numbers and strings only."""
        counted = {"skipped": dict(self.skipped), "thresholds": dict(self.thresholds)}
        return {"config": dict(self.config), "cursor": self.cursor, **counted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, bit for bit.

        Raises:
            Mismatch: the state is of a stream with other settings; the message names them.
        """
        check_config(self.config, state["config"])
        self.cursor = int(state["cursor"])
        self.harvest.skipper.counts = Counter(state["skipped"])
        self.harvest.skipper.thresholds = dict(state["thresholds"])


class ActivationStream(HarvestStream):
    """Iterator over shuffled batches; a tensor for one site, {site: tensor} with aligned rows for several.

    Windows are visited in an order drawn from (seed, epoch); their tokens pass through a shuffle buffer. It serves as
    soon as some batches are mixed, grows while it serves, and is then kept full. Rows are carried over from one epoch
    to the next; at the very end, rows that do not fill a batch are left out and counted as `remainder`.

    The state holds the rows in the buffer (at most its size in bytes). Running the model again to refill it would make
    the state small, but take as long as filling did, and be exact only where the same machine with the same number of
    threads gives the same bits. To train for several epochs, harvest once into `ActivationShards`, whose state is a
    number.
    """

    def __init__(
        self,
        harvest: Harvest,
        batch_tokens: int,
        buffer_tokens: int,
        seed: int,
        epochs: int,
        dtype: torch.dtype,
        tokens: int | None = None,
    ):
        super().__init__(harvest, seed, epochs)
        self.batch_tokens, self.dtype = batch_tokens, dtype
        self.on_read: Callable[[int], None] | None = None  # called after every forward pass with the rows that it gave
        store, sites = harvest.store, harvest.sites
        pass_tokens = harvest.batch_size * store.context
        needed = batch_tokens + pass_tokens
        if batch_tokens < 1 or buffer_tokens < needed:
            raise BadInput(
                f"a buffer of {buffer_tokens:,} tokens cannot serve batches of {batch_tokens:,} from passes of "
                f"{pass_tokens:,} tokens: it must hold both, {needed:,}"
            )
        self.served = 0  # batches given
        most = len(self.schedule) * store.context
        self.wanted = most if tokens is None else min(tokens, most)  # rows to read
        buffer_tokens = max(min(buffer_tokens, self.wanted), needed)
        widths = {str(site): harvest.width(site) for site in sites}
        model = harvest.model
        self.buffer = ShuffleBuffer(buffer_tokens, widths, harvest.dtype or model.dtype, seed, model.device)
        self.config |= {
            "sites": list(widths),
            "batch_size": harvest.batch_size,
            "batch_tokens": batch_tokens,
            "buffer_tokens": buffer_tokens,
            "tokens": tokens,
        }

    @classmethod
    def build(
        cls,
        model: Model,
        texts: TextSource,
        sites: SiteLike | Sequence[SiteLike],
        *,
        batch_tokens: int = 4096,
        buffer_tokens: int = 131_072,
        batch_size: int = 16,
        seed: int = 0,
        epochs: int = 1,
        skip: SkipRule | None = None,
        dtype: torch.dtype = torch.float32,
        context: int = 256,
        tokens: int | None = None,
    ) -> Self:
        """Shuffled batches of activations, harvested as they are needed.

        Args:
            texts: a `TokenStore`, windows of token ids, or documents (then packed in memory into windows of `context`).
            batch_tokens: rows a batch. buffer_tokens: rows shuffled together (in the model's dtype, on its device), no
                more than will be served.
            batch_size: windows a forward pass.
            epochs: passes over the text, each in another order.
            dtype: of the batches.
            tokens: rows that will be asked for in all: no more are read. None: all of every epoch.

        Raises:
            UnknownName: no such site. BadInput: sizes that do not fit each other, too little text.
        """
        source = harvest(model, texts, sites, batch_size=batch_size, skip=skip, context=context)
        return cls(source, batch_tokens, buffer_tokens, seed, epochs, dtype, tokens)

    def __next__(self) -> Batch:
        self._refill()
        if len(self.buffer) < self.batch_tokens:
            self.skipped["remainder"] = len(self.buffer)
            raise StopIteration
        self.served += 1
        rows = {name: x.to(self.dtype) for name, x in self.buffer.sample(self.batch_tokens).items()}
        sites = self.harvest.sites
        return rows[str(sites[0])] if len(sites) == 1 else {site: rows[str(site)] for site in sites}

    @property
    def batches_at_most(self) -> int:
        """Batches if no token were skipped: the real number is known only at the end."""
        return self.wanted // self.batch_tokens

    @property
    def unread(self) -> int:
        """Rows that are still to be read (if no token were skipped, where `tokens` was not given)."""
        return max(self.wanted - self.served * self.batch_tokens - len(self.buffer), 0)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"served": self.served, "buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.served = int(state["served"])
        self.buffer.load_state_dict(state["buffer"])

    def _refill(self) -> None:
        """Read until the buffer is as full as it should be by now. Whatever stops it between two passes, the next call
        goes on with the same one."""
        size, level = self.harvest.batch_size, self.batch_tokens * (AHEAD + GROWTH * self.served)
        while (
            len(self.buffer) < level
            and self.unread
            and self.cursor < len(self.schedule)
            and self.buffer.room >= size * self.harvest.store.context
        ):
            batch = self.harvest.read(self.schedule.take(self.cursor, size))
            self.cursor = min(self.cursor + size, len(self.schedule))
            self.buffer.add({str(site): x for site, x in batch.activations.items()})
            if self.on_read is not None:
                self.on_read(len(batch))


def check_config(now: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raises `Mismatch` naming each setting in which a saved state differs."""
    said = {name: saved.get(name, value) for name, value in now.items()}  # a state of an earlier version says less
    different = differences(said, now)
    if different:
        raise Mismatch(f"the saved stream had other settings: {'; '.join(different)}; use the same ones, or start anew")
