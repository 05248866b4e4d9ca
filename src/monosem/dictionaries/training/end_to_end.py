"""End-to-end training (Braun et al. 2024, arXiv 2405.12241): the loss is what the rest of the model makes of a
reconstruction, not its error.

Loss kl is the mean KL(clean‖spliced) of the next-token distributions, ce the cross-entropy of the next tokens with the
reconstruction spliced in, at tokens that count and have a next one. Tokens that do not count keep their own activation,
as in `evaluate`. With `later_sites`, `later_weight` times the error there is added: the mean over these sites of
Σ|a' − a|² / Σ|a − mean(a)|² at the tokens that count. The model's weights learn nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ... import metrics
from ...activations import TokenStream
from ...errors import BadInput
from ...models import Model, Run, Site, TokenBatch
from ...models.places.sites import EMBEDDINGS, IN_BLOCK, ONCE
from ..rerun import entry, rest_of_run
from .config import AnyConfig, TrainConfig, sites_of
from .sites import sites_named


class Rest(NamedTuple):
    """A batch of windows as the model sees it without a dictionary."""

    model: Model
    run: Run
    kept: Int[Tensor, "n"]  # the tokens that count, of all in order

    def loss(self, rebuilt: Float[Tensor, "n d"], wild: Bool[Tensor, "n 1"], config: TrainConfig) -> Float[Tensor, ""]:
        """Of a reconstruction of the tokens that count, in raw units; `wild` ones among them keep their activation."""
        later = later_sites(config)
        spliced = self.spliced(rebuilt, wild, config, later)
        loss = LOSSES[config.loss](self, spliced)
        if not later:
            return loss
        errors = [
            unexplained_at(*(one[site].flatten(0, 1)[self.kept] for one in (self.run, spliced))) for site in later
        ]
        return loss + config.later_weight * torch.stack(errors).mean()

    def spliced(
        self,
        rebuilt: Float[Tensor, "n d"],
        wild: Bool[Tensor, "n 1"],
        config: TrainConfig,
        capture: Sequence[Site] = (),
    ) -> Run:
        """The rest of the model with the reconstruction in it."""
        site = Site.parse(config.writes[0])
        whole = self.run[site]
        flat = whole.flatten(0, 1).flatten(1)
        rows = torch.where(wild.to(flat.device), flat[self.kept], rebuilt.to(flat))
        value = flat.index_put((self.kept,), rows).view_as(whole)
        grad = torch.is_grad_enabled()
        return rest_of_run(self.model, self.run.tokens, site, value, clean=self.run, grad=grad, capture=capture)

    @property
    def predicting(self) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        """Row and position of the tokens that count and have a next one."""
        context = self.run.tokens.ids.shape[1]
        rows, columns = self.kept // context, self.kept % context
        return rows[columns < context - 1], columns[columns < context - 1]


def _ce(rest: Rest, spliced: Run) -> Tensor:
    (rows, columns), ids = rest.predicting, rest.run.tokens.ids
    return metrics.cross_entropy(_logits(spliced)[rows, columns], ids[rows, columns + 1]).mean()


def _kl(rest: Rest, spliced: Run) -> Tensor:
    at = rest.predicting
    return metrics.kl(_logits(rest.run)[at], _logits(spliced)[at]).mean()


def _logits(run: Run) -> Tensor:
    assert run.logits is not None
    return run.logits


LOSSES = {"ce": _ce, "kl": _kl}


def unexplained_at(clean: Float[Tensor, "n *d"], spliced: Float[Tensor, "n *d"]) -> Float[Tensor, ""]:
    """Σ|a' − a|² / Σ|a − mean(a)|²"""
    clean, spliced = clean.flatten(1).float(), spliced.flatten(1).float()
    return (spliced - clean).square().sum() / (clean - clean.mean(0)).square().sum()


class Cost(NamedTuple):
    """The ce or kl of a batch with the reconstruction spliced in, in nats, and with zeros instead of it."""

    spliced: float
    zeros: float


class EndToEnd:
    """What a run needs of its model: activations of a batch of windows, and what comes after them.

    Raises:
        BadInput: a stream of activations instead of tokens, or a later site that is not later.
    """

    def __init__(self, stream: Any, config: AnyConfig):
        if not isinstance(stream, TokenStream):
            raise BadInput(
                f"loss {config.loss} runs the model on windows of tokens: give a TokenStream, not a "
                f"{type(stream).__name__}"
            )
        self.harvest, self.sites, self.loss = stream.harvest, sites_of(config), config.loss
        later = {site: one.writes[0] for one in config.each.values() for site in later_sites(one)}
        for site, written in later.items():
            self.harvest.model.site(site)
            if _order(site) <= _order(Site.parse(written)):
                raise BadInput(f"later_sites: {site} does not come after {written}; give places behind it")
        befores = [entry(self.harvest.model, Site.parse(one.writes[0])) for one in config.each.values()]
        entries = [site for site in befores if site is not None]
        self.captured = list(dict.fromkeys([*map(Site.parse, self.sites), *later, *entries]))
        self._last: tuple[Tensor, dict[str, Tensor], Rest] | None = None

    def read(self, ids: Int[Tensor, "windows context"]) -> tuple[dict[str, Tensor], Rest]:
        """Site -> rows of the tokens that count, and what comes after; dictionaries of one run share it."""
        if self._last is None or not torch.equal(self._last[0], ids):
            self._last = (ids, *self.rows(ids, counted=True))
        return self._last[1:]

    def rows(self, ids: Int[Tensor, "windows context"], counted: bool) -> tuple[dict[str, Tensor], Rest]:
        """The same; `counted`: the tokens are counted by what became of them.

        Raises:
            BadInput: no token of the batch counts.
        """
        model, skipper = self.harvest.model, self.harvest.skipper
        tokens = TokenBatch.whole(ids.to(model.device))
        run = model.run(tokens, capture=self.captured, logits=self.loss == "kl")
        rows = {site: run[Site.parse(site)].flatten(0, 1).flatten(1) for site in self.sites}
        before = skipper.counts.copy()
        kept = skipper.keep(tokens.ids, rows)
        if not counted:
            skipper.counts = before
        if not len(kept):
            raise BadInput("no token of a batch counts (all are special, first or outliers); make batch_tokens larger")
        return {site: x[kept] for site, x in rows.items()}, Rest(model, run, kept)

    @torch.no_grad()
    def cost(
        self,
        config: TrainConfig,
        ids: Int[Tensor, "windows context"],
        rebuild: Callable[[list[Tensor]], Float[Tensor, "n d"]],
    ) -> Cost:
        """Of a dictionary that rebuilds rows of its site, on windows."""
        rows, rest = self.rows(ids, counted=False)
        rebuilt = rebuild([rows[config.reads[0]].float()])
        none = torch.zeros(len(rebuilt), 1, dtype=torch.bool)
        both = (rest.spliced(y, none, config) for y in (rebuilt, torch.zeros_like(rebuilt)))
        return Cost(*(float(LOSSES[config.loss](rest, run)) for run in both))


def later_sites(config: TrainConfig) -> list[Site]:
    return [] if config.later_sites is None else [Site.parse(site) for site in sites_named(config.later_sites)]


def _order(site: Site) -> tuple[float, int]:
    """When a forward pass comes by."""
    if site.layer is None:
        return (-1.0 if site.name in EMBEDDINGS else float("inf"), ONCE.index(site.name))
    return site.layer, IN_BLOCK.index(site.name)
