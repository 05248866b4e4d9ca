"""Trials that write parts of one run into another: one pair, one draw of its other side, and one answer to measure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data import TokenPairs
from ..data.joint import FOLLOWED, continued
from ..dictionaries import Codes, Dictionary
from ..errors import BadInput
from ..models import Model, Moment, Run, Site, TokenBatch
from ..models.running.moment import EditLike
from ..models.running.run import lies_before, refuse_ends, refuse_rows
from .cells import Cell
from .corruptions import PROMPT, Corruption, Side, token_axes
from .experiment import Direction, Experiment
from .scoring import MetricLike, check_answers, metrics_of


@dataclass(frozen=True, eq=False)
class AnswerSide:
    """The right or the wrong answer of a pair, where answers are several tokens.

    Attributes:
        name: "right" or "wrong". tokens: its ids, `step`. count: how many sides the pair has.
    """

    name: str
    tokens: Int[Tensor, "step"]
    count: int


@dataclass(frozen=True, eq=False)
class Trial:
    """One pair made ready for patching: the run `base` (tokens and edits), and `source`, whose parts it is given.

    Attributes:
        pairs: the pair alone.
        base: the unpatched run, with every site of the experiment. source: site -> what to write, without batch axis.
        base_logits, clean_logits, other_logits: the logits after the last token (at each step of an answer of several
            tokens: `1 step vocab`) of the unpatched run, of the clean run and of the other side's run.
        answer: the side that this trial measures, where answers have several tokens; its tokens but the last one follow
            the prompt in the runs, and are never patched.
        latent: what latents are set to, where it is not what they are in the source.
        source_tokens: whose activations the source has; None for bare values.
    """

    model: Model
    pairs: TokenPairs
    edits: Sequence[EditLike]
    base: Run
    source: dict[Site, Tensor]
    base_logits: Float[Tensor, "1 *step vocab"]
    clean_logits: Float[Tensor, "1 *step vocab"]
    other_logits: Float[Tensor, "1 *step vocab"]
    dictionary: Dictionary | None = None
    latent: float | None = None
    answer: AnswerSide | None = None
    source_tokens: TokenBatch | None = None

    def unpatched(self, rows: int) -> Float[Tensor, "rows *step vocab"]:
        """The logits of the unpatched run, for variants that change nothing."""
        return self.base_logits.expand(rows, *self.base_logits.shape[1:])

    def patched(
        self, rows: int, edits: Iterable[EditLike], start: Site | None = None
    ) -> Float[Tensor, "rows *step vocab"]:
        """The logits after the last token (or at each step) of copies of the base run with edits in them, begun at a
        place of the stream or (None) at the tokens."""
        tokens = self.base.tokens
        batch = tokens.copies(rows)
        start = None if self.model.ambient_edits else start  # the base run's stream may have those edits already
        begin = None if start is None else (start, self.base[start].expand(rows, -1, -1))
        own = self.edits if start is None else self.edits_after(start)
        return _read(self.model, batch, [], [*own, *edits], self.answer, begin)[1]

    def edits_after(self, start: Site) -> list[EditLike]:
        """The base run's edits that its stream there does not have yet."""
        return [edit for edit in self.edits if edit.site != start and not lies_before(edit.site, start)]

    def read(self, stream: Float[Tensor, "rows pos d_model"]) -> Float[Tensor, "rows *step vocab"]:
        """The logits of a stream behind the last layer: after the last token, or at each step of the answer."""
        return self.model.unembed(stream[:, -1] if self.answer is None else stream[:, -len(self.answer.tokens) :])

    def value(self, cell: Cell) -> Tensor:
        """What the patch writes at `cell.index(...)`: the source's part; for a latent, base + (f' - f) W_dec where the
        dictionary was trained, and base elsewhere."""
        index = cell.index(self.pairs, 0)
        base, source = self.base[cell.place][0], self.source[cell.place]
        if cell.latent is None or self.dictionary is None:
            return source[index]
        before = base[index].flatten(1)
        here, there = (codes.of([cell.latent])[index] for codes in self._codes)
        there = there if self.latent is None else torch.full_like(there, self.latent)
        delta = (there - here).float() * self.dictionary.decoder_rows([cell.latent]).float()
        if (scale := self.dictionary.token_scale(before)) is not None:
            delta = delta * scale
        delta = delta * self.trained[index][..., None]
        return (before.float() + delta).to(base.dtype).reshape(base[index].shape)

    @cached_property
    def trained(self) -> Bool[Tensor, "pos"]:
        """The tokens that the dictionary was trained on, in both runs."""
        assert self.dictionary is not None
        site, skipper = self.dictionary.site, self.dictionary.skipper(self.model)
        counted = skipper.counted(self.base.tokens, {str(site): self.base[site]})[0]
        if self.source_tokens is not None:
            counted = counted & skipper.counted(self.source_tokens, {str(site): self.source[site][None]})[0]
        return counted

    def check_trained(self, cells: Sequence[Cell]) -> None:
        """Raises `BadInput` for a latent's cell at tokens that were named, none of which the dictionary was trained on:
        its patch would change nothing."""
        for cell in cells:
            positions = cell.positions(self.pairs, 0)
            if cell.latent is not None and not bool(self.trained[positions].any()):
                token = self.model.str_token(int(self.base.tokens.ids[0, positions[0]]))
                raise BadInput(
                    f"the dictionary was not trained on token {positions[0]} ({token!r}) of a pair: first, special, or "
                    "an outlier in norm; leave the position out, or load the dictionary with skip=SkipRule.none()"
                )

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
        changed = differs.movedim(cell.position_axis, 0).flatten(1).any(1) if differs.ndim > 1 else differs
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


def writes_of(trial: Trial, rows: Sequence[Iterable[Cell]]) -> list[Writes]:
    """The edits of a batch in which each row has cells of its own patched, one edit a site."""
    parts: dict[Site, list[tuple[int, tuple[Any, ...], Tensor]]] = {}
    for row, cells in enumerate(rows):
        for cell in cells:
            write = (row, cell.index(trial.pairs, 0), trial.value(cell))
            parts.setdefault(cell.place, []).append(write)
    return [Writes(site, written) for site, written in parts.items()]


def patching_experiment(
    model: Model,
    pairs: TokenPairs,
    places: Sequence[Site],
    metric: MetricLike,
    direction: str | None = None,
    corruption: Corruption | None = None,
    dictionary: Dictionary | None = None,
) -> Experiment[Trial]:
    """An experiment that writes parts of one side's run into the other's, pair by pair.

    Args:
        places: the sites that its variants write, which both runs must capture.

    Raises:
        BadInput: another direction, or denoising from bare values; edits of `model.editing(...)` that name rows, or
            (with answers of several tokens) depend on where the prompt ends. UnknownName: no such metric.
    """
    refuse_rows(model, "patching")
    if pairs.joint:
        refuse_ends(model, FOLLOWED)
    corruption = corruption or PROMPT
    direction = direction_of(direction, corruption)
    metrics = metrics_of(metric)
    check_answers(metrics, pairs)
    sides = corruption.sides(model, pairs, places)

    def trials(rows: slice) -> Iterator[tuple[Trial, float]]:
        others = sides(rows.start)
        pair = pairs[[rows.start]].to(model.device)
        answers = _answers(pair)
        for answer in answers:
            clean = _read(model, _followed(pair.clean, answer), places, (), answer)
            for side in others:
                trial = _trial(model, pair, clean, side, direction, places, dictionary, answer)
                yield trial, 1 / len(others) / len(answers)

    return Experiment(
        pairs, metrics, direction, trials, model=model.name, corruption=corruption.label, has_scale=corruption.is_run
    )


def _answers(pair: TokenPairs) -> list[AnswerSide | None]:
    """What trials of a pair measure: the next token (None), or the sides of answers of several tokens."""
    held = {"right": pair.right_tokens, "wrong": pair.wrong_tokens}
    given = {name: tokens[0][tokens[0] >= 0] for name, tokens in held.items() if tokens is not None}
    return [AnswerSide(name, tokens, len(given)) for name, tokens in given.items()] or [None]


def _followed(tokens: TokenBatch, answer: AnswerSide | None) -> TokenBatch:
    return tokens if answer is None else continued(tokens, answer.tokens[None])


def _read(
    model: Model,
    tokens: TokenBatch,
    places: Sequence[Site],
    edits: Sequence[EditLike],
    answer: AnswerSide | None,
    start: tuple[Site, Tensor] | None = None,
) -> tuple[Run, Float[Tensor, "rows *step vocab"]]:
    """A run with its logits after the last token, or at each step of an answer that follows the prompt."""
    if answer is None:
        run = model.run(tokens, capture=places, edits=edits, start=start, logits="last")
        assert run.logits is not None
        return run, run.logits
    last, steps = Site("resid_post", model.cfg.n_layers - 1), slice(-len(answer.tokens), None)
    whole = bool(model.ambient_edits)  # they may act after the last layer
    run = model.run(tokens, capture=[*places, last], edits=edits, start=start, logits=whole)
    return run, run.logits[:, steps] if run.logits is not None else model.unembed(run[last][:, steps])


def _trial(
    model: Model,
    pair: TokenPairs,
    clean: tuple[Run, Tensor],
    side: Side,
    direction: Direction,
    places: Sequence[Site],
    dictionary: Dictionary | None,
    answer: AnswerSide | None,
) -> Trial:
    """Raises `BadInput` where latents are to be set to values that the corruption does not define for latents."""
    other = _read(model, _followed(side.tokens, answer), places, side.edits, answer)
    base, source = (other, clean) if direction == "denoising" else (clean, other)
    written = {site: source[0][site][0] for site in places}
    if side.values is not None:
        if dictionary is not None and side.latent is None:
            raise BadInput("means are of activations, not of latents: sweep latents with zero() or against a run")
        written = {site: _valued(side, site, clean[0][site][0], int(pair.clean.lengths[0])) for site in places}
    edits = side.edits if direction == "denoising" else ()
    own = source[0].tokens if side.values is None else None
    return Trial(
        model, pair, edits, base[0], written, base[1], clean[1], other[1], dictionary, side.latent, answer, own
    )  # fmt: skip


def _valued(side: Side, site: Site, clean: Tensor, length: int) -> Tensor:
    """What bare values are at a site, at the tokens of the prompt; the answer's own stay."""
    assert side.values is not None
    here, whole = clean, clean.clone()
    part = whole
    for axis in token_axes(site):
        here, part = here.narrow(axis, 0, length), part.narrow(axis, 0, length)
    part.copy_(side.values(site, here))
    return whole


def direction_of(direction: str | None, corruption: Corruption) -> Direction:
    """The direction asked for, or what suits the corruption. Raises `BadInput` where the two do not go together."""
    if direction not in (None, "denoising", "noising"):
        raise BadInput(f"direction is 'denoising' or 'noising', not {direction!r}")
    if direction == "denoising" and not corruption.is_run:
        raise BadInput(f"{corruption.label} gives values and no run to restore; use direction='noising'")
    return direction or ("denoising" if corruption.is_run else "noising")  # type: ignore[return-value]
