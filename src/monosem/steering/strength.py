"""How strong an edit is: amounts in units that mean the same for every direction, and the amount of a given effect."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..activations.medians import median_norms
from ..dictionaries import Dictionary
from ..edits import DirectionLike, Edit
from ..edits.changes import site_and_vector
from ..errors import BadInput
from ..latents import index_of
from ..metrics import kl
from ..models import Model, Moment, Site, SiteLike, TokenBatch
from ..models.numbers import count
from ..models.places.sites import Inner
from ..models.running.run import knows_the_prompt
from ..plots import Figure, lines
from ..results import Result, analysis
from .reading import END

Make = Callable[[float], Edit | Sequence[Edit]]
AT_ONCE = 8.0  # the most that the amount grows or shrinks by in one step
NO_EFFECT = 1e-7  # nats: below, rounding is all that is seen


def in_norms(model: Model, direction: DirectionLike | tuple[SiteLike, Tensor], times: float) -> float:
    """The amount whose addition is `times` as long as an activation usually is at the direction's site:
    times · median norm / ‖v‖. The median is of a fixed text (`activations.median_norms`), without first and special
    tokens, so that attention sinks do not count."""
    site, vector = site_and_vector(direction)
    length = float(vector.float().norm())
    if not length or not math.isfinite(length):
        raise BadInput(f"a direction at {site} needs a finite length above 0, not {length:g}")
    place = model.site(site)
    return times * median_norms(model, [place])[place] / length


def in_maxima(dictionary: Dictionary, latent: int, times: float) -> float:
    """The value that is `times` a latent's own maximum (with its sign) in the dictionary's index, as studies count
    doses. Raises `BadInput` where the dictionary has no index, or the latent never fires in it."""
    index = index_of(dictionary)
    if index is None:
        raise BadInput(f"{dictionary.name} has no index with the maxima of its latents: make one (`monosem index`)")
    dictionary.decoder_rows(latent)  # refuses a latent that is not there
    top = float(index.maxima[latent] * index.signs[latent])
    if not top:
        raise BadInput(f"latent {latent} of {dictionary.name} never fires in its index: give a plain value")
    return times * top


@dataclass(frozen=True)
class IsoKL(Result):
    """The amount at which an edit changes what is written by a given KL, and the amounts that were tried.

    Attributes:
        amount: found. nats: the KL there. target: what was wanted.
    """

    amount: float
    nats: float
    target: float
    tried: list[tuple[float, float]]

    @property
    def table(self) -> pd.DataFrame:
        """A row an evaluation, in the order in which they were made."""
        return pd.DataFrame(self.tried, columns=["amount", "kl"])

    def plot(self) -> Figure:
        """KL over the amount, both logarithmic."""
        shown = self.table.assign(amount=lambda rows: rows["amount"].abs()).sort_values("amount")
        figure = lines({"KL": (shown["kl"], None)}, shown["amount"].tolist(), x_title="amount", y_title="KL, nats")
        figure.add_hline(y=self.target, line_dash="dot")
        return figure.update_xaxes(type="log").update_yaxes(type="log")


@analysis
def iso_kl(
    model: Model,
    x: Any,
    make: Make,
    *,
    target: float = 1.0,
    start: float = 1.0,
    quantile: float = 0.95,
    max_new_tokens: int = 20,
    tolerance: float = 0.05,
    evaluations: int = 12,
) -> IsoKL:
    """The amount at which the KL of the edited model reaches `target`: what makes edits of different kinds comparable.

    The unedited model continues each prompt greedily; before each of these tokens, KL(unedited ‖ edited) of what comes
    next, in nats; the text is fixed, so that the KL is continuous in the amount. What counts is a quantile over all
    tokens of all prompts, up to the first end of text. It grows with about the square of a small amount, so the amount
    is searched on logarithmic axes: by a power law at first, by regula falsi (Illinois) once it lies between two tried
    ones; about six evaluations.

    Args:
        x: a prompt or several, as for `Model.run`; or their `Spoken`, which several searches can share.
        make: from an amount to an edit, or several: `lambda c: edits.add(direction, c)`.
        start: the first amount tried; a negative one searches among negative amounts.
        quantile: 0.95: the most changed twentieth of the tokens has more than `target`.
        tolerance: relative, of the KL. evaluations: at most.

    Raises:
        BadInput: no amount that was tried reaches the target (an ablation may not), or the edit changes nothing.
    """
    count(evaluations, "evaluations")
    if not (target > 0 and math.isfinite(target) and 0 < quantile <= 1 and start and math.isfinite(start)):
        raise BadInput("iso_kl needs target > 0, 0 < quantile <= 1 and a start that is not 0")
    plain = x if isinstance(x, Spoken) else Spoken.by(model, x, max_new_tokens=max_new_tokens)
    sign, size, tried = math.copysign(1.0, start), abs(start), list[tuple[float, float]]()
    search = _Search(target)
    for _ in range(evaluations):
        nats = float(plain.divergence(make(sign * size)).quantile(quantile))
        tried.append((sign * size, nats))
        if abs(math.log(max(nats, NO_EFFECT) / target)) <= tolerance:
            return IsoKL(sign * size, nats, target, tried)
        size = search.next(size, nats)
    most = max(tried, key=lambda one: one[1])
    if most[1] <= NO_EFFECT:
        raise BadInput(f"the edit changes nothing at {tried[0][0]:g} to {tried[-1][0]:g}: the KL stays 0")
    near = min(tried, key=lambda one: abs(math.log(max(one[1], NO_EFFECT) / target)))
    raise BadInput(
        f"no amount of {len(tried)} tried gives {target:g} nats: nearest {near[1]:.3g} at {near[0]:g}, most "
        f"{most[1]:.3g} at {most[0]:g}; give another start= or target=, or more evaluations="
    )


@dataclass
class _Search:
    """Regula falsi on logarithmic axes; while there is no bracket, the slope of the last two points (at first 2)."""

    target: float
    low: tuple[float, float] | None = None  # log amount, log (KL / target), which is below 0
    high: tuple[float, float] | None = None
    last: int = 0  # the side that the point before was on
    before: tuple[float, float] | None = None  # the point before

    def next(self, amount: float, nats: float) -> float:
        point, value = math.log(amount), math.log(max(nats, NO_EFFECT) / self.target)
        side, before = (1 if value > 0 else -1), self.before
        self.before = point, value
        if side > 0:
            self.high = point, value
        else:
            self.low = point, value
        if self.low is None or self.high is None:
            slope = 2.0 if before is None else (value - before[1]) / (point - before[0])
            step = -value / max(0.25, min(4.0, slope)) if nats > NO_EFFECT else math.log(AT_ONCE)
            return math.exp(point + max(-math.log(AT_ONCE), min(math.log(AT_ONCE), step)))
        (a, below), (b, above) = self.low, self.high
        if side == self.last:  # the same end twice: halve the weight of the other one, so that it moves as well
            below, above = (below / 2, above) if side > 0 else (below, above / 2)
            self.low, self.high = (a, below), (b, above)
        self.last = side
        return math.exp((a * above - b * below) / (above - below))


# ---------------------------------------------------------------------- a fixed text, and what is said at its tokens
@dataclass(frozen=True, eq=False)
class Spoken:
    """What the unedited model says after some prompts: the fixed text along which edits are compared.

    Attributes:
        model: that speaks. prompts: that were continued. ids: of the continuations.
        counted: tokens up to the first end of text. logits: from which each token was chosen.
        streams: what enters a block that passes of edits begin with, by layer, as it is without edits.
    """

    model: Model
    prompts: TokenBatch
    ids: Int[Tensor, "batch step"]
    counted: Bool[Tensor, "batch step"]
    logits: Float[Tensor, "step batch vocab"]
    streams: dict[int, Float[Tensor, "batch pos d"]] = field(default_factory=dict)

    @classmethod
    def by(cls, model: Model, x: Any, *, max_new_tokens: int = 20) -> Self:
        """By a model, greedily."""
        prompts, listener = model.tokens(x), _Listener(None)
        steps = count(max_new_tokens, "max_new_tokens")
        made = model.generate(prompts, listener, max_new_tokens=steps, stop_at_eos=False)
        ids = torch.tensor(made.new, device=model.device)
        ends = torch.isin(ids, torch.tensor(sorted(model.end_ids), dtype=torch.long, device=ids.device))
        return cls(model, prompts, ids, (ends.cumsum(1) - ends.long()) == 0, torch.stack(listener.heard))

    @torch.no_grad()
    def divergence(self, edits: Edit | Sequence[Edit]) -> Float[Tensor, "n"]:
        """KL(unedited ‖ edited) before each token that counts, in nats, prompt after prompt.

        One pass reads the whole text, unless an edit depends on where the prompt ends: then it is spoken again.
        """
        given = [edits] if isinstance(edits, Edit) else list(edits)
        around = [*self.model.ambient_edits, *given]
        if any(knows_the_prompt(one) or one.site.shape[-1] == "vocab" for one in around):
            return self._against(list(self.logits), self._said(given))
        return self._against(self._plain, self._read(self.prompts, given))

    @torch.no_grad()
    def after(self, x: Any) -> Float[Tensor, "n"]:
        """The same KL where other prompts, one for each, stand before the text instead of an edit."""
        return self._against(self._plain, self._read(self.model.tokens(x)))

    @cached_property
    def _plain(self) -> list[Float[Tensor, "batch vocab"]]:
        """The unedited model's logits, read in the way of the edited ones, so that no edit gives exactly 0."""
        return self._read(self.prompts)

    def _against(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Float[Tensor, "n"]:
        found = torch.stack([kl(p, q.to(p.device)) for p, q in zip(before, after)], 1)
        return found[self.counted.to(found.device)].double().cpu()

    def _said(self, edits: Sequence[Edit]) -> list[Float[Tensor, "batch vocab"]]:
        """The edited model's logits before each token, as it is made to say the text."""
        listener, steps = _Listener(self.ids), self.ids.shape[1]
        self.model.generate(self.prompts, [*edits, listener], max_new_tokens=steps, stop_at_eos=False)
        return listener.heard

    def _read(self, prompts: TokenBatch, edits: Sequence[Edit] = ()) -> list[Float[Tensor, "batch vocab"]]:
        """The same from one pass over prompts and text, begun at the first block that an edit looks at."""
        rows, steps = prompts.rows(), self.ids.shape[1]
        whole = [[*row, *new[:-1]] for row, new in zip(rows, self.ids.tolist())]
        start = self._start(whole, edits) if prompts is self.prompts else None
        run = self.model.run(whole, capture=END, edits=edits, logits=False, start=start)
        first = run.tokens.last - (steps - 1)
        places = first[:, None] + torch.arange(steps, device=first.device)
        states = run[END][torch.arange(len(rows), device=places.device)[:, None], places]
        return list(self.model.unembed(states, norm=False).float().unbind(1))

    def _start(self, whole: Sequence[Sequence[int]], edits: Sequence[Edit]) -> tuple[Site, Tensor] | None:
        """Where a pass can begin that these edits change, and what enters there; None for the whole pass."""
        sites = [site for edit in edits for site in (edit.site, *edit.reads)]
        layers = [0 if isinstance(site, Inner) or site.side else site.layer or 0 for site in sites]
        layer = 0 if self.model.ambient_edits else min(layers, default=0)
        if not layer:
            return None
        site = Site("resid_pre", layer)
        if layer not in self.streams:
            self.streams[layer] = self.model.run(whole, capture=site, logits=False)[site]
        return site, self.streams[layer]


class _Listener:
    """Hears the logits of each step of a generation; with `ids`, makes it say these."""

    site = Site("logits")
    by_row = True

    def __init__(self, ids: Int[Tensor, "batch step"] | None):
        self.ids, self.heard = ids, list[Tensor]()

    def __str__(self) -> str:
        return "the text of iso_kl"

    def apply(self, x: Float[Tensor, "batch pos vocab"], moment: Moment) -> tuple[Tensor, bool]:
        self.heard.append(x[:, -1].float().clone())
        if self.ids is None:
            return x, True
        said = self.ids[:, len(self.heard) - 1].to(x.device)
        x = x.clone()
        x[torch.arange(len(x), device=x.device), -1, said] = x[:, -1].max() + 1
        return x, True
