"""Activations of prompts at several places from one pass a batch: one row for each prompt and place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..activations import Skipper, SkipRule
from ..activations.harvesting import one_or_many
from ..activations.skipping import REASONS
from ..errors import BadInput
from ..models import Model, Run, Site, SiteLike
from ..models.places.sites import IN_BLOCK
from ..models.running.run import refuse_rows
from ..progress import Meter
from .positions import Selector, selector

NOT_READ = ("not finite", "outlier")  # reasons for which a token that is named is refused


LONGER, ENOUGH = 1.25, 256  # a batch ends before a prompt so many times as long as its first, once it has these tokens


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
    """

    model: Model
    places: list[Place]
    skippers: dict[Site, Skipper]
    batch_size: int = 32
    not_read: Sequence[str] = NOT_READ
    refused: dict[int, str] = field(default_factory=dict)

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

    def batches(self, *sides: Sequence[str]) -> list[Int[Tensor, "batch"]]:
        """Prompts that are read together: of about one length (of several sides, the longest), so little is padded."""
        lengths = torch.stack([self.model.tokens(list(side)).lengths.cpu() for side in sides]).amax(0)
        found: list[list[int]] = []
        for prompt in lengths.argsort(stable=True).tolist():
            length = int(lengths[prompt])
            now = found[-1] if found else []
            long = bool(now) and length > LONGER * int(lengths[now[0]]) and len(now) * length > ENOUGH
            if not now or long or len(now) == self.batch_size:
                found.append([])
            found[-1].append(prompt)
        return [torch.tensor(one) for one in found]

    def rows(
        self, prompts: Sequence[str], batches: Sequence[Int[Tensor, "batch"]] | None = None
    ) -> Iterator[Float[Tensor, "place batch d"]]:
        """Batch by batch (default: its own `batches`), float64 on the CPU."""
        sites = list(self.skippers)
        for batch in self.batches(prompts) if batches is None else batches:
            run = self.model.run([prompts[i] for i in batch.tolist()], capture=sites, logits=False)
            masks = {place.at: place.at.mask(self.model, run.tokens) for place in self.places}
            yield torch.stack(
                [self._read(number, place, run, masks[place.at]) for number, place in enumerate(self.places)]
            )

    def all_rows(self, prompts: Sequence[str], meter: Meter | None = None) -> Float[Tensor, "place prompt d"]:
        """Of all prompts, in their order, float32."""
        batches, parts = self.batches(prompts), []
        for batch in self.rows(prompts, batches):
            parts.append(batch.float())
            if meter is not None:
                meter.advance(batch.shape[1])
        return in_order(parts, batches)

    def summary(self) -> dict[str, Any]:
        """Which rule left tokens out, and (of means over tokens) how many at all sites together."""
        skippers = list(self.skippers.values())
        counts = sum((skipper.counts for skipper in skippers), start=type(skippers[0].counts)())
        one = skippers[0].summary()
        thresholds = {key: norm for skipper in skippers for key, norm in skipper.thresholds.items()}
        left_out = {reason: counts[reason] for reason in REASONS if counts[reason]}
        return one | {"kept": counts["kept"], "left_out": left_out, "outlier_norm": thresholds}

    def _read(self, number: int, place: Place, run: Run, chosen: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch d"]:
        x, skipper = run[place.site].flatten(2), self.skippers[place.site]
        here = {str(place.site): run[place.site]}
        if place.at.named:
            left_out = skipper.left_out(run.tokens.ids, run.tokens.positions, here)
            for reason in self.not_read:
                self._refuse(number, run, chosen & left_out[reason].to(chosen.device), reason)
        else:
            chosen = chosen & skipper.counted(run.tokens, here).to(chosen.device)
        if bool((empty := ~chosen.any(1)).any()):
            row = int(empty.nonzero()[0, 0])
            text = self.model.text(run.tokens.rows()[row], special=True)
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

    def _refuse(self, number: int, run: Run, bad: Bool[Tensor, "batch pos"], reason: str) -> None:
        if number in self.refused or not bool(bad.any()):
            return
        row, column = bad.nonzero()[0].tolist()
        token = self.model.str_token(int(run.tokens.ids[row, column]))
        text = self.model.text(run.tokens.rows()[row], special=True)
        self.refused[number] = (
            f"at {self.places[number]}, token {token!r} of prompt {text!r:.100} does not count ({reason}): read "
            "another token, the mean over tokens, or give another skip rule"
        )


def in_order(parts: Sequence[Shaped[Tensor, "place batch *d"]], batches: Sequence[Int[Tensor, "batch"]]) -> Tensor:
    """What was read batch by batch, `place prompt ...` in the order of the prompts."""
    return torch.cat(list(parts), 1)[:, torch.cat(list(batches)).argsort()]


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
