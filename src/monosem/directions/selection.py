"""Which of many directions carries a behaviour: by what ablating and adding each one does, on other prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .. import edits
from ..data import PromptPairs
from ..edits import Edit
from ..errors import BadInput, check_name
from ..metrics import kl
from ..models import Model, Site
from ..models.transformerlens.text import single_token
from ..progress import Meter
from ..results import Tabled, analysis
from .direction import Direction
from .directions import Directions

LATEST, MOST_KL, LEAST_INDUCED = 0.8, 0.1, 0.0  # the filters of Arditi et al. and of COSMIC
ALIKE_SHARE = 0.1  # COSMIC compares at this share of the layers, where the classes are least alike
FEWEST_SHOWN = 4  # prompts of a side that a prefilter must leave
TINY = 1e-8  # Arditi's, inside logarithms


@dataclass(frozen=True)
class Selection(Tabled):
    """One row a candidate, the chosen one first: site, position, `bypass`, `induce`, `kl`, `score` (larger is better),
    `left_out` (why a filter took it out; empty for those that remain).

    Attributes:
        candidates: the directions, in the order of the table.
    """

    candidates: list[Direction] = field(default_factory=list, repr=False)

    ranked_by: ClassVar[str | None] = "score"

    @property
    def best(self) -> Direction:
        """The candidate with the largest score that no filter takes out. Raises `BadInput` where none remains."""
        if self.rows["left_out"][0]:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.rows["left_out"].value_counts().items())
            late = set(self.rows["left_out"]) == {"late"}
            why = "give directions of earlier layers" if late else "this model may not show the behaviour"
            raise BadInput(f"no candidate passes the filters ({reasons}): {why}")
        return self.candidates[0]

    @property
    def doubts(self) -> list[str]:
        """What the scores cannot say, in words."""
        sites = self.config["baseline"].get("sites", [])
        last = max((Site.parse(site).layer or 0 for site in sites), default=math.inf)
        blind = [one for one in self.candidates if (one.site.layer or 0) > last]
        if not blind:
            return []
        return [
            f"{len(blind)} of {len(self.candidates)} candidates lie behind what COSMIC compares ({', '.join(sites)}), "
            "where the classes are least alike: adding them changes nothing there, and their induce is one constant; "
            "give prompts that end alike, as a chat template ends them, or use by='arditi'"
        ]


@analysis
@torch.no_grad()
def select(
    model: Model,
    directions: Directions,
    pairs: PromptPairs,
    *,
    by: str = "arditi",
    tokens: Sequence[str | int] | None = None,
    latest: float = LATEST,
    most_kl: float = MOST_KL,
    least_induced: float = LEAST_INDUCED,
    batch_size: int = 32,
    quiet: bool = True,
) -> Selection:
    """Rank directions by what they do to prompts that did not find them: positive ones show the behaviour, negative do
    not.

    `by="arditi"` (2024, arXiv:2406.11717) needs `tokens`, with which the behaviour begins ("I" of a refusal). The score
    of a prompt is log p - log(1 - p) of their summed probability after it. `bypass`: mean over positive prompts, with
    the direction ablated everywhere; `induce`: over negative ones, with the direction added once at its site, at every
    token. The least bypass wins.

    `by="cosmic"` (ACL 2025) needs no tokens. At the tenth of the layers whose class means are least alike, last tokens
    side by side: `bypass` is the mean cosine of ablated positive prompts with the mean of the negative ones, `induce`
    of steered negative prompts with the mean of the positive ones. The largest sum wins.

    Filters of both: layers from `latest` of the model on; more than `most_kl` (nats) between next tokens of negative
    prompts before and after ablation; arditi: `induce` below `least_induced`; cosmic: at the last token, layers after
    both medians (over positions) of the layers where the scores are largest.

    Raises:
        BadInput: tokens missing, or given where none are read; prompts that directions were found with. Mismatch:
            directions of another model.
    """
    check_name("way to select", by, ("arditi", "cosmic"))
    if (by == "arditi") == (tokens is None):
        raise BadInput(
            "by='arditi' needs tokens= with which the behaviour begins, such as [' I']; by='cosmic' takes none"
        )
    for one in directions:
        one.check(model)
        one.check_new(pairs.prompts, "they would choose what fits them by chance")
    prompts = _Prompts(model, pairs, batch_size)
    measure: _Arditi | _Cosmic
    measure = _Cosmic(prompts) if tokens is None else _Arditi(prompts, [single_token(model, token) for token in tokens])
    floor = least_induced if by == "arditi" else -math.inf
    rows = []
    with Meter("select", total=len(directions), unit="direction", quiet=quiet) as meter:
        for one in directions:
            rows.append(_row(one, measure, int(latest * model.cfg.n_layers), most_kl, floor))
            meter.advance(1)
    if by == "cosmic":
        _leave_out_late_peaks(rows)
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["left_out"] != "", -_number(rows[i]["score"])))
    table = pd.DataFrame([rows[i] for i in order])
    base: dict[str, Any] = {"baseline": measure.baseline}
    base |= {"prompts": {"positive": len(pairs.positive), "negative": len(pairs.negative)}}
    base |= {"prefilter": dict(pairs.prefilter)} if pairs.prefilter else {}
    return Selection(table, base, [directions[i] for i in order])


def _row(
    one: Direction, measure: "_Arditi | _Cosmic", end: int, most_kl: float, least_induced: float
) -> dict[str, Any]:
    """A candidate's row; what lies from layer `end` on is not measured."""
    row: dict[str, Any] = {"site": str(one.site), "position": one.position, "layer": _depth(one.site)}
    row |= dict.fromkeys(("bypass", "induce", "kl", "score"), math.nan)
    if row["layer"] >= end:
        return row | {"left_out": "late"}
    row |= measure(one)
    return row | {"left_out": _why(row, most_kl, least_induced)}


def _depth(site: Site) -> int:
    """The block that reads it first, as Arditi counts layers."""
    return (site.layer or 0) + (site.name == "resid_post")


def _why(row: dict[str, Any], most_kl: float, least_induced: float) -> str:
    if not all(math.isfinite(row[name]) for name in ("bypass", "induce", "kl")):
        return "not finite"
    if row["kl"] > most_kl:
        return "changes too much"
    return "does not induce" if row["induce"] < least_induced else ""


def _leave_out_late_peaks(rows: list[dict[str, Any]]) -> None:
    """COSMIC's rule for the last token, whose directions late in the model are about the next token."""
    measured = [row for row in rows if math.isfinite(_number(row["score"]))]
    positions = {row["position"] for row in measured}
    if len(positions) < 2:
        return
    peaks = [
        median(max((r for r in measured if r["position"] == p), key=lambda r: r[name])["layer"] for p in positions)
        for name in ("bypass", "induce")
    ]
    for row in measured:
        if row["position"].rpartition(":")[2] in ("last", "-1") and row["layer"] > max(peaks) and not row["left_out"]:
            row["left_out"] = "after both peaks"


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value


# ---------------------------------------------------------------------- prompts that show it
@dataclass(frozen=True)
class Prefiltered:
    """Prompts that do what their side says; `dropped`: how many of each side do not. The pairs keep both for the
    provenance of what is found with them."""

    pairs: PromptPairs
    dropped: dict[str, int]

    def __str__(self) -> str:
        up, down = self.dropped["positive"], self.dropped["negative"]
        return f"left out: {up} positive prompts that do not show the behaviour, {down} negative ones that do"


@torch.no_grad()
def prefilter(
    model: Model, pairs: PromptPairs, tokens: Sequence[str | int], *, fewest: int = FEWEST_SHOWN, batch_size: int = 32
) -> Prefiltered:
    """Keep positive prompts whose score (`select`, by="arditi") is above 0 and negative ones below it, as Arditi et
    al. do before they fit. A pair is kept where both its prompts are.

    Raises:
        BadInput: no tokens, or fewer than `fewest` prompts left on a side.
    """
    ids = sorted({single_token(model, token) for token in tokens})
    if not ids:
        raise BadInput("give tokens with which the behaviour begins, such as [' I']")
    prompts = _Prompts(model, pairs, batch_size)
    up = (_log_odds(prompts.logits(pairs.positive), ids) > 0).tolist()
    down = (_log_odds(prompts.logits(pairs.negative), ids) < 0).tolist()
    dropped = {"positive": up.count(False), "negative": down.count(False)}
    if pairs.paired:
        up = down = [one and other for one, other in zip(up, down)]
    left = min(sum(up), sum(down))
    if left < fewest:
        raise BadInput(
            f"{sum(up)} of {len(up)} positive and {sum(down)} of {len(down)} negative prompts are left, and {fewest} a "
            "side are needed: give more prompts, other tokens, or no prefilter"
        )
    about = {"tokens": [model.str_token(token) for token in ids], "dropped": dropped}
    if pairs.paired:
        kept = pairs.take([i for i, shows in enumerate(up) if shows])
        return Prefiltered(replace(kept, prefilter=about), dropped)
    sides = [[one for one, shows in zip(side, flags) if shows] for side, flags in zip(_sides(pairs), (up, down))]
    return Prefiltered(PromptPairs(sides[0], sides[1], paired=False, prefilter=about), dropped)


def _log_odds(logits: Float[Tensor, "n vocab"], tokens: list[int]) -> Float[Tensor, "n"]:
    p = logits.double().softmax(-1)[:, tokens].sum(-1)
    return (p + TINY).log() - (1 - p + TINY).log()


# ---------------------------------------------------------------------- measures
@dataclass
class _Prompts:
    model: Model
    pairs: PromptPairs
    batch_size: int

    def logits(self, side: Sequence[str], changes: Sequence[Edit] = ()) -> Float[Tensor, "prompt vocab"]:
        """After each prompt."""
        return self._each(side, lambda batch: self.model.run(batch, edits=changes, logits="last").logits)

    def states(self, side: Sequence[str], sites: list[Site], changes: Sequence[Edit] = ()) -> Float[Tensor, "prompt d"]:
        """Last tokens at some sites, side by side."""

        def one(batch: list[str]) -> Tensor:
            run = self.model.run(batch, capture=sites, edits=changes, logits=False)
            return torch.cat([run.last(site).float() for site in sites], -1)

        return self._each(side, one)

    def damage(self, direction: Direction, clean: Tensor) -> float:
        """KL of the next token after negative prompts, mean, with the direction ablated everywhere."""
        changed = self.logits(self.pairs.negative, edits.ablate_writes(self.model, direction.vector))
        return float(kl(clean, changed).mean())

    def _each(self, side: Sequence[str], read: Callable[[list[str]], Any]) -> Tensor:
        starts = range(0, len(side), self.batch_size)
        return torch.cat([read(list(side[start : start + self.batch_size])).cpu() for start in starts])


class _Arditi:
    def __init__(self, prompts: _Prompts, tokens: list[int]):
        self.prompts, self.tokens = prompts, sorted(set(tokens))
        self.clean = prompts.logits(prompts.pairs.negative)
        self.baseline = {
            "positive": self._score(prompts.logits(prompts.pairs.positive)),
            "negative": self._score(self.clean),
        }

    def __call__(self, one: Direction) -> dict[str, float]:
        prompts = self.prompts
        ablated = prompts.logits(prompts.pairs.positive, edits.ablate_writes(prompts.model, one.vector))
        added = prompts.logits(prompts.pairs.negative, [edits.add((one.site, one.vector))])
        found = {"bypass": self._score(ablated), "induce": self._score(added)}
        return found | {"kl": prompts.damage(one, self.clean), "score": -found["bypass"]}

    def _score(self, logits: Float[Tensor, "prompt vocab"]) -> float:
        return float(_log_odds(logits, self.tokens).mean())


class _Cosmic:
    def __init__(self, prompts: _Prompts):
        self.prompts = prompts
        every = [Site("resid_post", layer) for layer in range(prompts.model.cfg.n_layers)]
        up, down = (prompts.states(side, every).mean(0).chunk(len(every)) for side in _sides(prompts.pairs))
        cosines = [float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in zip(up, down)]
        order = sorted(range(len(every)), key=lambda layer: cosines[layer])
        layers = sorted(order[: max(1, round(ALIKE_SHARE * len(every)))])
        self.sites = [every[layer] for layer in layers]
        self.up, self.down = (torch.cat([means[layer] for layer in layers]) for means in (up, down))
        self.clean = prompts.logits(prompts.pairs.negative)
        self.baseline = {"sites": [str(site) for site in self.sites], "cosine": [cosines[layer] for layer in layers]}

    def __call__(self, one: Direction) -> dict[str, float]:
        prompts = self.prompts
        ablated = prompts.states(prompts.pairs.positive, self.sites, edits.ablate_writes(prompts.model, one.vector))
        added = prompts.states(prompts.pairs.negative, self.sites, [edits.add((one.site, one.vector))])
        cosine = torch.nn.functional.cosine_similarity
        found = {
            "bypass": float(cosine(ablated, self.down[None]).mean()),
            "induce": float(cosine(added, self.up[None]).mean()),
        }
        return found | {"kl": prompts.damage(one, self.clean), "score": sum(found.values())}


def _sides(pairs: PromptPairs) -> tuple[Sequence[str], Sequence[str]]:
    return pairs.positive, pairs.negative
