"""What it costs a model that values stand at sites in place of its own: loss and KL of a batch of windows."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import metrics
from ..models import Model, Run, Site, TokenBatch
from .rerun import rest_of_run

LOGIT_ROWS = 512  # rows of logits compared at once: 100 MB in float32 for a vocabulary of 49,152


class SpliceCost(NamedTuple):
    """Of the counted tokens that have a next one, in order: its loss and KL(clean‖spliced), in nats."""

    ce: Float[Tensor, "n"]
    kl: Float[Tensor, "n"]


class _Known(NamedTuple):
    site: Site
    value: Float[Tensor, "batch pos *d"]
    kept: Bool[Tensor, "batch pos"]
    cost: SpliceCost


class Splices:
    """A batch and its clean run, which captured the sites and their entries (`rerun.entry`).

    A value that was put in before is not run again, and what the model has there itself is not run at all: the
    dictionaries of a site share the passes with zeros, and one that rebuilds everything takes none.
    """

    def __init__(self, model: Model, tokens: TokenBatch, run: Run):
        self.model, self.tokens, self.run = model, tokens, run
        self._known: list[_Known] = []

    def clean(self, kept: Bool[Tensor, "batch pos"]) -> Float[Tensor, "n"]:
        """Loss of the next tokens without a splice."""
        return torch.cat([metrics.cross_entropy(logits, after) for logits, after, _ in self._rows(self._own, kept)])

    def cost(self, site: Site, value: Float[Tensor, "batch pos *d"], kept: Bool[Tensor, "batch pos"]) -> SpliceCost:
        """With the value at the site, at all positions; counted where `kept`."""
        for known in self._known:
            if known.site == site and torch.equal(known.kept, kept) and torch.equal(known.value, value):
                return known.cost
        cost = self._measured(site, value, kept)
        self._known.append(_Known(site, value, kept, cost))
        return cost

    def _measured(
        self, site: Site, value: Float[Tensor, "batch pos *d"], kept: Bool[Tensor, "batch pos"]
    ) -> SpliceCost:
        if torch.equal(value, self.run[site]):
            ce = self.clean(kept)
            return SpliceCost(ce, torch.zeros_like(ce))
        logits = rest_of_run(self.model, self.tokens, site, value, clean=self.run).logits
        assert logits is not None
        parts = [
            (metrics.cross_entropy(edited, after), metrics.kl(clean, edited))
            for edited, after, clean in self._rows(logits, kept)
        ]
        return SpliceCost(*(torch.cat(part) for part in zip(*parts)))

    @property
    def _own(self) -> Float[Tensor, "batch pos vocab"]:
        assert self.run.logits is not None
        return self.run.logits

    def _rows(
        self, logits: Float[Tensor, "batch pos vocab"], kept: Bool[Tensor, "batch pos"]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Some rows at a time: logits, the next tokens, and the clean logits."""
        rows, columns = kept[:, :-1].nonzero(as_tuple=True)
        for row, column in zip(rows.split(LOGIT_ROWS), columns.split(LOGIT_ROWS)):
            yield logits[row, column], self.tokens.ids[row, column + 1], self._own[row, column]
