"""The states that a tuned lens is trained on: which windows a step reads, and which of their tokens."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ...activations import Schedule
from ...data import TokenStore
from ...errors import BadInput
from ...jobs import Interrupted, Interrupts
from ...models import Model, TokenBatch
from ...progress import Meter
from .config import TuneConfig

BatchStates = tuple[list[Tensor], Tensor, Tensor]  # of every layer, the last one, the next token (-1: there is none)


class Batches:
    """Windows of a store in the order of the schedule, run through the model.

    Raises:
        BadInput: too little text, or windows of another length than the config's.
    """

    def __init__(self, model: Model, store: TokenStore, config: TuneConfig):
        if store.context != config.context:
            raise BadInput(
                f"the windows have {store.context} tokens, the config says context={config.context}; set it so"
            )
        wanted = config.steps * config.windows
        if len(store) < wanted and not config.repeat:
            raise BadInput(
                f"the text has {len(store):,} windows of {store.context} tokens, {config.steps} steps of "
                f"{config.windows} need {wanted:,}; give more text, fewer steps, or repeat=True"
            )
        self.model, self.store, self.config = model, store, config
        self.schedule = Schedule(len(store), config.seed, math.ceil(wanted / len(store)))
        self.sites = [f"resid_pre.{layer}" for layer in range(model.cfg.n_layers)]
        self.last = f"resid_post.{model.cfg.n_layers - 1}"

    def take(self, step: int) -> BatchStates:
        """Some cells of this step's windows: states a layer, what the unembedding read, and the next tokens."""
        config = self.config
        windows = self.schedule.take(step * config.windows, config.windows)
        count = len(windows) * self.store.context
        keep = torch.arange(count)
        if config.cells is not None and config.cells < count:
            draw = torch.Generator().manual_seed(config.seed_at(step))
            keep = torch.randperm(count, generator=draw)[: config.cells].sort().values
        parts = list(self._states(windows, "final_norm", keep))
        states = [torch.cat(layer) for layer in zip(*(states for states, _, _ in parts))]
        return states, torch.cat([final for _, final, _ in parts]), torch.cat([ids for _, _, ids in parts])

    def first(self, quiet: bool, interrupts: Interrupts) -> Iterator[tuple[list[Tensor], Tensor]]:
        """States of all layers and the last stream, for the regression. Raises `Interrupted`."""
        context, size = self.store.context, self.config.windows_at_once
        count = max(1, min(self.config.init_tokens // context, len(self.store)))
        windows = self.schedule.take(0, count)
        with Meter("least squares", count * context, "tok", quiet) as meter:
            for start in range(0, count, size):
                for states, final, _ in self._states(windows[start : start + size], self.last):
                    yield states, final
                meter.advance(min(size, count - start) * context)
                if interrupts.asked:
                    raise Interrupted("stopped before the first step; nothing was trained yet")

    def sizes(self) -> list[float]:
        """Median root mean square of the states of each layer, and of the last stream."""
        windows = self.schedule.take(0, min(self.config.windows_at_once, len(self.store)))
        states, final, _ = next(self._states(windows, self.last))
        return [float(h.float().square().mean(-1).sqrt().median()) for h in (*states, final)]

    def _states(self, windows: Tensor, last: str, keep: Tensor | None = None) -> Iterator[BatchStates]:
        """States of some of the windows' tokens, a forward pass at a time."""
        context, size = self.store.context, self.config.windows_at_once
        for start in range(0, len(windows), size):
            ids = self.store[windows[start : start + size].numpy()].to(self.model.device)
            low, high = start * context, (start + len(ids)) * context
            cells = torch.arange(high - low) if keep is None else keep[(keep >= low) & (keep < high)] - low
            if not len(cells):
                continue
            cells = cells.to(ids.device)
            run = self.model.run(TokenBatch.whole(ids), capture=[*self.sites, last], logits=False)
            following = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1).flatten()[cells]
            yield [run[site].flatten(0, 1)[cells] for site in self.sites], run[last].flatten(0, 1)[cells], following
