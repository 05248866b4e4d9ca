"""One pair made ready for patching: the run that is patched, and what is written into it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TokenPairs
from ..dictionaries import Codes, Dictionary
from ..errors import BadInput
from ..models import Model, Moment, Run, Site, TokenBatch
from ..models.running.moment import EditLike
from . import scoring
from .cells import Cell
from .scoring import Metric


@dataclass(frozen=True)
class Side:
    """One side of a pair: a run, and what a patch takes from it.

    Attributes:
        tokens, edits: the run. values: (site, clean activation without batch axis) -> what is written instead of the
            run's own activations; None: those. latent: what latents are set to then; None: they cannot be.
    """

    tokens: TokenBatch
    edits: Sequence[EditLike] = ()
    values: Callable[[Site, Tensor], Tensor] | None = None
    latent: float | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """The run `base` (tokens and edits) into which cells of `source` are written, one cell at a time.

    Attributes:
        pairs: the pair alone.
        base: the unpatched run, with every site of the sweep. source: site -> what to write, without batch axis.
        clean_logits, other_logits: those after the last token of the clean run and of the other side's.
    """

    model: Model
    pairs: TokenPairs
    edits: Sequence[EditLike]
    base: Run
    source: dict[Site, Tensor]
    clean_logits: Float[Tensor, "1 vocab"]
    other_logits: Float[Tensor, "1 vocab"]
    dictionary: Dictionary | None = None
    latent: float | None = None  # what latents are set to, where it is not what they are in the source

    @cached_property
    def length(self) -> int:
        return int(self.base.tokens.lengths[0])

    def value(self, cell: Cell) -> Tensor:
        """What the patch writes at `cell.index(...)`: the source's part; for a latent, base + (f' - f) W_dec."""
        index = cell.index(self.pairs, 0)
        base, source = self.base[cell.place][0], self.source[cell.place]
        if cell.latent is None or self.dictionary is None:
            return source[index]
        own = base[index].flatten(1)
        here, there = (codes.of([cell.latent])[index] for codes in self._codes)
        there = there if self.latent is None else torch.full_like(there, self.latent)
        delta = (there - here).float() * self.dictionary.decoder_rows([cell.latent]).float()
        if (scale := self.dictionary.token_scale(own)) is not None:
            delta = delta * scale
        return (own.float() + delta).to(base.dtype).reshape(base[index].shape)

    @cached_property
    def _codes(self) -> tuple[Codes, Codes]:
        """What the dictionary reads in the base run and in the source."""
        assert self.dictionary is not None
        site = self.dictionary.site
        here, there = (self.dictionary.encode(x.flatten(1)) for x in (self.base[site][0], self.source[site]))
        return here, there

    def first_change(self, cell: Cell) -> int | None:
        """The first position where the patch writes something else than is there; None: the patch changes nothing."""
        positions = cell.positions(self.pairs, 0)
        differs = self.value(cell) != self.base[cell.place][0][cell.index(self.pairs, 0)]
        axis = 1 if cell.site == "pattern" and cell.head is None else 0
        changed = differs.movedim(axis, 0).flatten(1).any(1) if differs.ndim > 1 else differs
        return next((position for position, yes in zip(positions, changed.tolist()) if yes), None)


@dataclass(frozen=True, eq=False)
class Writes:
    """The edit that writes each row's own part of one site: (row, index without batch axis, value)."""

    site: Site
    parts: Sequence[tuple[int, tuple[Any, ...], Tensor]]

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        x = x.clone()
        for row, index, value in self.parts:
            x[row][index] = value.to(x.device, x.dtype)
        return x, True


def trials(
    model: Model,
    pairs: TokenPairs,
    row: int,
    other: Sequence[Side],
    direction: str,
    sites: Sequence[Site],
    dictionary: Dictionary | None,
) -> list[Trial]:
    """A trial for each draw of the other side.

    Raises:
        BadInput: latents are to be set to values that are none of theirs.
    """
    pair = pairs[[row]].to(model.device)
    clean = model.run(pair.clean, capture=sites, logits="last")
    found = []
    for side in other:
        ran = model.run(side.tokens, capture=sites, edits=side.edits, logits="last")
        assert clean.logits is not None
        assert ran.logits is not None
        base, source = (ran, clean) if direction == "denoising" else (clean, ran)
        held = {site: source[site][0] for site in sites}
        if side.values is not None:
            if dictionary is not None and side.latent is None:
                raise BadInput("means are of activations, not of latents: sweep latents with zero() or against a run")
            held = {site: side.values(site, clean[site][0]) for site in sites}
        edits = side.edits if direction == "denoising" else ()
        found.append(Trial(model, pair, edits, base, held, clean.logits, ran.logits, dictionary, side.latent))
    return found


def measured(
    trial: Trial, metrics: dict[str, Metric], logits: Float[Tensor, "rows vocab"]
) -> dict[str, Float[Tensor, "rows"]]:
    """Every metric of rows that are runs of this trial's pair."""
    rows, clean = trial.pairs[[0] * len(logits)], trial.clean_logits.expand(len(logits), -1)
    return scoring.measured(metrics, logits, rows, clean)
