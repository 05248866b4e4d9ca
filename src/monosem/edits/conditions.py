"""Conditions: whether an edit acts in a row, decided from a score of its tokens at the prompt's end, and again later.

A decision belongs to a row and depends on nothing but that row's own tokens: not on padding, on other rows of the
batch, or on the KV cache. The first is made at the prompt's last token, and holds for the whole prompt and for what is
generated; with `every=k` a new one is made at each k-th generated token, and holds from that token on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import BadInput
from ..models import Model, Moment, Site
from ..models.numbers import count
from ..models.places.sites import Inner
from .along import rule_of
from .changes import amounts, site_and_vector
from .edit import Trained

Score = Callable[[Float[Tensor, "batch pos ..."]], Float[Tensor, "batch pos"]]
Over = Literal["last", "mean", "max"]


class Decision(NamedTuple):
    """One line of a condition's log: the score of a row at a token (its index in the row), and what followed."""

    row: int
    token: int
    score: float
    open: bool


class RowGate:
    """What conditions and their combinations share: `first | second`, `first & second`, `~first`."""

    at_prompt_end = True  # it reaches other tokens where a continuation is read as a part of the prompt
    sites: tuple[Site, ...]

    def __call__(self, x: Tensor, moment: Moment) -> Bool[Tensor, "batch pos"]:
        raise NotImplementedError

    def prepare(self, model: Model) -> None:
        """Called before a run or a generation."""

    def __or__(self, other: "RowGate") -> "RowGate":
        return Joined((self, other), torch.logical_or)

    def __and__(self, other: "RowGate") -> "RowGate":
        return Joined((self, other), torch.logical_and)

    def __invert__(self) -> "RowGate":
        return Joined((self,), torch.logical_not)


@dataclass(frozen=True, eq=False)
class Joined(RowGate):
    """Conditions joined by a logical function."""

    parts: tuple[RowGate, ...]
    how: Callable[..., Tensor]

    def __post_init__(self) -> None:
        if not all(isinstance(part, RowGate) for part in self.parts):
            raise BadInput("a condition is joined with another condition, made by edits.condition(...)")

    @property
    def sites(self) -> tuple[Site, ...]:  # type: ignore[override]
        return tuple(site for part in self.parts for site in part.sites)

    def __call__(self, x: Tensor, moment: Moment) -> Bool[Tensor, "batch pos"]:
        return self.how(*(part(x, moment) for part in self.parts))

    def prepare(self, model: Model) -> None:
        for part in self.parts:
            part.prepare(model)


@dataclass(frozen=True, eq=False)
class Condition(RowGate):
    """Open where a score is above (or below) a threshold: `edit.when(condition)`. See `condition` for what it is of.

    Attributes:
        rule: says which tokens do not count in a mean or maximum.
        log: the decisions of the last run or generation, in the order in which they were made. Rows that ended before
            others are scored until all have ended: their decisions at later tokens mean nothing.
    """

    site: Site
    score: Score
    threshold: float
    above: bool
    over: Over = "last"
    every: int | None = None
    rule: Trained | None = None
    log: list[Decision] = field(default_factory=list)

    @property
    def sites(self) -> tuple[Site, ...]:  # type: ignore[override]
        return (self.site,)

    def prepare(self, model: Model) -> None:
        self.log.clear()
        if self.rule is not None:
            self.rule.prepare(model)

    def __call__(self, x: Tensor, moment: Moment) -> Bool[Tensor, "batch pos"]:
        state = moment.lasting.get(self)
        if state is None:
            state = moment.lasting[self] = _State.empty(len(moment.tokens), moment.mask.device)
        known, total = state.open.shape[1], moment.tokens.ids.shape[1]
        if known < total:
            columns = total - known
            self._decide(state, self._scores(moment, columns), self._counted(moment, columns), moment)
        return moment.part(state.open)

    def _scores(self, moment: Moment, columns: int) -> Float[Tensor, "batch column"]:
        """The scores of the last columns so far, of which nothing is known yet."""
        if self.site not in moment.notes:
            raise BadInput(
                f"a condition reads {self.site}, which is not computed before the place of its edit; let it read an "
                "earlier site"
            )
        value = moment.notes[self.site][0][:, -columns:].detach().float()
        scores: Any = self.score(value)
        if not isinstance(scores, Tensor) or scores.shape != value.shape[:2]:
            got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise BadInput(f"a condition's score gives one number a token, {list(value.shape[:2])}, not {got}")
        scores, real = scores.detach().float(), moment.tokens.mask[:, -columns:]
        if not bool((scores.isfinite() | ~real).all()):
            raise BadInput(f"the score of a condition at {self.site} is not finite; it would never be above or below")
        return scores

    def _counted(self, moment: Moment, columns: int) -> Bool[Tensor, "batch column"]:
        """The tokens among the last columns that count: where there is a mean or maximum, by the rule."""
        real = moment.tokens.mask[:, -columns:]
        if self.rule is None or self.over == "last":
            return real
        left_out = self.rule.left_out(moment.notes[self.site][0], moment)
        return real & ~torch.stack(list(left_out.values())).any(0)[:, -columns:]

    def _decide(
        self,
        state: "_State",
        scores: Float[Tensor, "batch column"],
        counted: Bool[Tensor, "batch column"],
        moment: Moment,
    ) -> None:
        columns = scores.shape[1]
        mask, positions = moment.tokens.mask[:, -columns:], moment.tokens.positions[:, -columns:]
        after = positions - moment.prompt_lengths[:, None] + 1  # 0 at the prompt's last token, 1 at the first new one
        ends = int((mask & (after > 0)).any(0).long().argmax()) if bool((mask & (after > 0)).any()) else columns
        if ends:
            state.add(scores[:, :ends], counted[:, :ends])
            self._conclude(state, torch.ones_like(state.now), moment.prompt_lengths - 1, moment)
            state.hold(ends)
        for column in range(ends, columns):
            real = mask[:, column]
            state.add(scores[:, [column]], counted[:, [column]])
            if self.every is not None:
                self._conclude(state, real & (after[:, column] % self.every == 0), positions[:, column], moment)
            state.hold(1)

    def _conclude(self, state: "_State", rows: Bool[Tensor, "batch"], at: Tensor, moment: Moment) -> None:
        """New decisions for some rows, from the tokens since the decision before."""
        if not bool(rows.any()):
            return
        value = state.value(self.over)
        wanted = value > self.threshold if self.above else value < self.threshold
        state.now = torch.where(rows & (state.number > 0), wanted, state.now)  # where nothing counts, it stays
        for row in rows.nonzero()[:, 0].tolist():
            self.log.append(Decision(moment.row(row), int(at[row]), float(value[row]), bool(state.now[row])))
        state.forget(rows)


@dataclass
class _State:
    """What a condition remembers of a run or generation.

    Attributes:
        open: the decision that holds at each column so far. now: the newest of each row.
        last, total, most, number: of the scores since it was made.
    """

    open: Bool[Tensor, "batch column"]
    now: Bool[Tensor, "batch"]
    last: Float[Tensor, "batch"]
    total: Float[Tensor, "batch"]
    most: Float[Tensor, "batch"]
    number: Float[Tensor, "batch"]

    @staticmethod
    def empty(rows: int, device: torch.device) -> "_State":
        zeros = torch.zeros(rows, device=device)
        least = torch.full_like(zeros, -torch.inf)
        return _State(zeros[:, None][:, :0].bool(), zeros.bool(), zeros, zeros, least, zeros)

    def add(self, scores: Float[Tensor, "batch column"], real: Bool[Tensor, "batch column"]) -> None:
        index = torch.arange(scores.shape[1], device=scores.device)
        last = torch.where(real, index, -1).max(1).values
        newest = scores.gather(1, last.clamp(min=0)[:, None])[:, 0]
        self.last = torch.where(last >= 0, newest, self.last)
        self.total = self.total + scores.masked_fill(~real, 0.0).sum(1)
        self.most = torch.maximum(self.most, scores.masked_fill(~real, -torch.inf).max(1).values)
        self.number = self.number + real.sum(1)

    def value(self, over: Over) -> Float[Tensor, "batch"]:
        return {"last": self.last, "mean": self.total / self.number.clamp(min=1), "max": self.most}[over]

    def hold(self, columns: int) -> None:
        """The newest decision holds at this many more columns."""
        self.open = torch.cat([self.open, self.now[:, None].expand(-1, columns)], 1)

    def forget(self, rows: Bool[Tensor, "batch"]) -> None:
        self.total, self.number = self.total.masked_fill(rows, 0.0), self.number.masked_fill(rows, 0.0)
        self.most = self.most.masked_fill(rows, -torch.inf)


def condition(
    score: Any,
    *,
    above: float | None = None,
    below: float | None = None,
    over: Over | None = None,
    every: int | None = None,
    measure: Literal["projection", "cosine"] = "projection",
) -> Condition:
    """Whether an edit acts in a row: `edits.add(v, 4.0).when(edits.condition(probe, above=0.5))`.

    Args:
        score: a direction (a `Direction`, whose vector that detects is taken, or `(site, vector)`); or a function of
            the activation `batch pos d` at a site in float32 that gives a number for each token, as `(site, function)`
            or as an object with a `site` that can be called, such as a probe. It must treat every token alone.
        above, below: the threshold; one of the two. A threshold of a false positive rate is chosen on held-out text: a
            direction that has one (`Direction.with_threshold`) needs neither.
        over: of the tokens since the decision before (first: of the prompt) the "last", the "mean" or the "max"; None:
            as the direction's threshold was chosen, else "last". Of a `Direction`, tokens that it was not fitted on
            (the first, special ones, norm outliers) do not count in a mean or maximum; where none counts, the decision
            before stays (at first: closed).
        every: decide again at every k-th generated token; None: once, at the prompt's end.
        measure: of a direction v: x · v̂, or the cosine of x and v.

    Raises:
        BadInput: no score or threshold, or two thresholds. When run: a site that does not lie before the edit's, or
            scores of another shape or that are not finite.
    """
    held = getattr(score, "calibration", None)
    if above is None and below is None and held is not None and measure == "projection":
        if over not in (None, held["over"]):
            raise BadInput(
                f"this direction's threshold was chosen with over={held['over']!r}, not {over!r}: give above="
            )
        above, over = held["threshold"], held["over"]
    over = over or "last"
    if (above is None) == (below is None):
        raise BadInput("a condition has one threshold: above= or below=")
    if over not in ("last", "mean", "max") or measure not in ("projection", "cosine"):
        raise BadInput(
            f"over is 'last', 'mean' or 'max' and measure 'projection' or 'cosine'; got {over!r} and {measure!r}"
        )
    site, function = _score_of(score, measure)
    if isinstance(site, Inner) or site.query_axis != 1:
        raise BadInput(f"a condition reads a site with one activation a token, not {site}")
    threshold = float(amounts(above if below is None else below))
    every = None if every is None else count(every, "every")
    return Condition(site, function, threshold, below is None, over, every, rule_of(score))


def _score_of(given: Any, measure: str) -> tuple[Site, Score]:
    if isinstance(given, tuple) and len(given) == 2 and callable(given[1]):
        return Site.parse(given[0]), given[1]
    if callable(given) and hasattr(given, "site"):
        return Site.parse(given.site), given
    site, vector = site_and_vector(given)
    read = getattr(given, "read", None)
    vector = torch.as_tensor(vector if read is None else read).float().flatten()
    if not bool(vector.any()) or not bool(vector.isfinite().all()):
        raise BadInput("a condition's direction is a finite vector that is not zero")
    unit = vector / vector.norm()

    def along(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        if flat.shape[-1] != len(unit):
            raise BadInput(f"a condition's direction has {len(unit)} entries, {site} has {flat.shape[-1]}")
        projection = flat @ unit.to(x.device)
        return projection if measure == "projection" else projection / flat.norm(dim=-1).clamp(min=1e-30)

    return site, along
