"""Activations of prompts at several places from one pass a batch: one row for each prompt and place.

A prompt that another one begins with is read in it: later tokens change nothing before them. (Lists of statements that
are cut after every token, as control vectors are trained on, cost little more than the whole statements.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..activations import Skipper, SkipRule
from ..activations.harvesting import one_or_many
from ..activations.skipping import REASONS
from ..errors import BadInput
from ..models import Model, Run, Site, SiteLike, TokenBatch
from ..models.places.sites import IN_BLOCK
from ..models.running.run import refuse_rows
from ..progress import Meter
from .positions import Selector, selector

NOT_READ = ("not finite", "outlier")  # reasons for which a token that is named is refused


PASS = 32  # what a pass costs beside its tokens, in tokens: measured on smollm2 with one thread (of 16, 24, 32, 48, 64)
KEPT = 2**24  # numbers of states that are kept at a time
SAME = 1e-3  # relative difference of a state that rounding makes, in float32


@dataclass(frozen=True)
class Place:
    """A site, and the tokens that are read there."""

    site: Site
    at: Selector

    def __str__(self) -> str:
        return f"{self.site} at {self.at}"


@dataclass
class Reader:
    """Reads prompts at places.

    Attributes:
        skippers: of each site its own, for a token that is an outlier at one layer may be none at another.
        not_read: reasons for which a token that is named is refused.
        refused: place -> why: a named token is an outlier or not finite there, or a prompt has no token that counts.
        held: of prompts that were read ahead (`hold`), their numbers in `states`.
    """

    model: Model
    places: list[Place]
    skippers: dict[Site, Skipper]
    batch_size: int = 32
    not_read: Sequence[str] = NOT_READ
    refused: dict[int, str] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    states: Float[Tensor, "place prompt d"] | None = None

    @classmethod
    def of(
        cls, model: Model, sites: Sequence[Site], at: Any, skip: SkipRule | None = None, batch_size: int = 32
    ) -> "Reader":
        """Raises `BadInput` for a site that does not have one vector of the stream's width a token; `UnknownName`."""
        if bad := [site for site in sites if not is_stream_wide(model, site)]:
            raise BadInput(f"{bad[0]} is no vector of the stream: a direction is fitted at a site of the stream")
        return cls.anywhere(model, sites, at, skip, batch_size)

    @classmethod
    def anywhere(
        cls, model: Model, sites: Sequence[Site], at: Any, skip: SkipRule | None = None, batch_size: int = 32
    ) -> "Reader":
        """At sites of any shape with one state a token, which may have heads. Raises `UnknownName`."""
        refuse_rows(model, "reading states")
        given = at if isinstance(at, list | tuple) else [at]
        selectors = [one for each in given for one in selector(each).each(model)]
        measured = Skipper.of(model, sites, skip)
        skippers = {}
        for site in sites:
            skippers[site] = Skipper(measured.rule, model.special_ids, model.cfg.d_vocab)
            skippers[site].thresholds = {key: norm for key, norm in measured.thresholds.items() if key == str(site)}
        return cls(model, [Place(site, one) for site in sites for one in selectors], skippers, batch_size)

    @property
    def at_once(self) -> int:
        """Of how many prompts the states are kept at a time, at places of the stream."""
        return max(1, KEPT // (len(self.places) * self.model.cfg.d_model))

    def hold(self, prompts: Sequence[str]) -> None:
        """Read these ahead, all together and so with the least padding, where their states can be kept."""
        different = list(dict.fromkeys(prompts))
        if len(different) <= self.at_once:
            self.states = self.rows(different)
            self.held = {prompt: number for number, prompt in enumerate(different)}

    def rows(
        self, prompts: Sequence[str], meter: Meter | None = None, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "place prompt d"]:
        """The states of prompts, in their order, on the CPU."""
        if self.states is not None and all(prompt in self.held for prompt in prompts):
            return self.states[:, [self.held[prompt] for prompt in prompts]].to(dtype)
        tokens = self.model.tokens(list(prompts))
        host = self._hosts(tokens)
        order, parts = list[int](), []
        for batch in self._batches(sorted(set(host), key=lambda i: (int(tokens.lengths[i]), i)), tokens.lengths):
            run = self.model.run(tokens[batch], capture=list(self.skippers), logits=False)
            guests = [i for i, one in enumerate(host) if one in batch]
            for start in range(0, len(guests), self.batch_size):
                some = guests[start : start + self.batch_size]
                parts.append(self._of(*self._within(run, [batch.index(host[i]) for i in some], tokens[some])).to(dtype))
                order += some
                if meter is not None:
                    meter.advance(len(some))
        return torch.cat(parts, 1)[:, torch.tensor(order).argsort()]

    def _batches(self, order: Sequence[int], lengths: Int[Tensor, "n"]) -> list[list[int]]:
        """Prompts that are run together, given from the shortest on: the cuts of this list that cost least, where a
        pass costs its tokens, padding too, and `PASS` more."""
        costs, begins = [0], [0]  # of the first n prompts: the least cost, and where the last batch of these begins
        for end, prompt in enumerate(order, 1):
            length, earliest = int(lengths[prompt]), max(0, end - self.batch_size)
            cost, begin = min((costs[i] + (end - i) * length + PASS, i) for i in range(earliest, end))
            costs.append(cost)
            begins.append(begin)
        found, end = list[list[int]](), len(order)
        while end:
            found.append(list(order[begins[end] : end]))
            end = begins[end]
        return found[::-1]

    def _hosts(self, tokens: TokenBatch) -> list[int]:
        """For each prompt the one in which it is read: itself, or the longest one that begins with it.

        The first of these is tried: where its state is another one when it is alone (a model whose tokens see later
        ones, an edit around this that looks at the end of a prompt), every prompt is read alone.
        """
        ids, host = tokens.rows(), list(range(len(tokens)))
        order = sorted(host, key=lambda i: (ids[i], i))
        for one, following in reversed(list(pairwise(order))):  # what begins with a list follows it
            if ids[following][: len(ids[one])] == ids[one]:
                host[one] = host[following]
        guests = [i for i, one in enumerate(host) if len(ids[one]) > len(ids[i])]
        if not guests:
            return host
        first = min(guests, key=lambda i: len(ids[host[i]]))
        site, last = next(reversed(self.skippers)), len(ids[first]) - 1
        alone, inside = (
            self.model.run(tokens[[i]], capture=site, logits=False)[site][0].flatten(1).float()
            for i in (first, host[first])
        )
        near = SAME * max(1.0, torch.finfo(self.model.dtype).eps / torch.finfo(torch.float32).eps / 512)
        same = (alone[last] - inside[last]).norm() <= near * alone[last].norm()
        return host if bool(same) else list(range(len(tokens)))

    def _within(
        self, run: Run, rows: Sequence[int], tokens: TokenBatch
    ) -> tuple[TokenBatch, dict[Site, Float[Tensor, "batch pos ..."]]]:
        """Prompts that rows of a run begin with, and their states: the run's own where they are its rows.

        Args:
            rows: of each prompt, the row that it is read in. tokens: the prompts.
        """
        states = {site: run[site] for site in self.skippers}
        if list(rows) == list(range(len(run.tokens))) and torch.equal(run.tokens.lengths, tokens.lengths):
            return run.tokens, states
        start = run.tokens.mask.long().argmax(1)[list(rows)]
        columns = (start[:, None] + tokens.positions).clamp(max=run.tokens.ids.shape[1] - 1)
        index = torch.tensor(rows)[:, None].to(columns.device)
        return tokens, {site: state[index, columns] for site, state in states.items()}

    def _of(self, tokens: TokenBatch, states: Mapping[Site, Tensor]) -> Float[Tensor, "place batch d"]:
        masks = {place.at: place.at.mask(self.model, tokens) for place in self.places}
        return torch.stack(
            [self._read(n, place, tokens, states[place.site], masks[place.at]) for n, place in enumerate(self.places)]
        )

    def summary(self) -> dict[str, Any]:
        """Which rule left tokens out, and (of means over tokens) how many at all sites together."""
        skippers = list(self.skippers.values())
        counts = sum((skipper.counts for skipper in skippers), start=type(skippers[0].counts)())
        one = skippers[0].summary()
        thresholds = {key: norm for skipper in skippers for key, norm in skipper.thresholds.items()}
        left_out = {reason: counts[reason] for reason in REASONS if counts[reason]}
        return one | {"kept": counts["kept"], "left_out": left_out, "outlier_norm": thresholds}

    def _read(
        self, number: int, place: Place, tokens: TokenBatch, state: Tensor, chosen: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch d"]:
        x, skipper = state.flatten(2), self.skippers[place.site]
        if place.at.named:  # the norms of all other tokens do not matter
            at = chosen.nonzero()
            here = {str(place.site): state[tuple(at.to(state.device).T)]}
            left_out = skipper.left_out(tokens.ids[tuple(at.T)], tokens.positions[tuple(at.T)], here)
            for reason in self.not_read:
                self._refuse(number, tokens, at[left_out[reason].to(at.device)], reason)
        else:
            chosen = chosen & skipper.counted(tokens, {str(place.site): state}).to(chosen.device)
        if bool((empty := ~chosen.any(1)).any()):
            row = int(empty.nonzero()[0, 0])
            text = self.model.text(tokens.rows()[row], special=True)
            self.refused.setdefault(
                number,
                f"prompt {text!r:.100} has no token that counts at {place}: none is chosen, or all are first, "
                "special or outliers in norm",
            )
        if bool((chosen.sum(1) == 1).all()):
            return x[torch.arange(len(x)), chosen.long().argmax(1).to(x.device)].double().cpu()
        weights = chosen.to(x.device).double()
        values = torch.where(weights[..., None] > 0, x.double(), 0.0)  # what is not read may be NaN
        return (torch.einsum("bp,bpd->bd", weights, values) / weights.sum(1, keepdim=True).clamp(min=1)).cpu()

    def _refuse(self, number: int, tokens: TokenBatch, bad: Int[Tensor, "n 2"], reason: str) -> None:
        if number in self.refused or not len(bad):
            return
        row, column = bad[0].tolist()
        token = self.model.str_token(int(tokens.ids[row, column]))
        text = self.model.text(tokens.rows()[row], special=True)
        self.refused[number] = (
            f"at {self.places[number]}, token {token!r} of prompt {text!r:.100} does not count ({reason}): read "
            "another token, the mean over tokens, or give another skip rule"
        )


def is_stream_wide(model: Model, site: Site) -> bool:
    """Whether the site has one vector of the stream's width for each token."""
    return site.shape == ("position", "d_model")


def sites_of(model: Model, site: SiteLike | Sequence[SiteLike], layers: Any = None) -> list[Site]:
    """Sites from "resid_post" (of all `layers`), from one full name, or from several.

    Raises:
        UnknownName: no such site or layer. BadInput: `layers` beside full names.
    """
    names = one_or_many(site)
    if all(isinstance(name, str) and name in IN_BLOCK for name in names):
        wanted = [model.site((str(name), layer)) for name in names for layer in model.layers(layers)]
    elif layers is not None:
        raise BadInput("layers= goes with the name of a site that every block has, such as 'resid_post'")
    else:
        wanted = [model.site(name) for name in names]  # type: ignore[arg-type]
    if not wanted or len(set(wanted)) != len(wanted):
        raise BadInput(f"give at least one site, and each once; got {', '.join(map(str, wanted)) or 'none'}")
    return wanted
