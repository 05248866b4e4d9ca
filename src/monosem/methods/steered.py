"""Steering: what each direction makes the model write, at strengths that change the model as much as one another's.

The strength of a method is the one at which the KL along a fixed text is the same for all (`steering.iso_kl`), on the
first half of the openings; what is reported is of the second half. The judge saw texts of the concept that no method
was fitted on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import edits
from ..directions import Direction
from ..errors import BadInput
from ..metrics import continuation_perplexity
from ..probes import area_by_group
from ..statistics import bootstrap_mean, wilson
from ..steering import Spoken, in_norms, iso_kl, outcomes
from ..steering.outcome import Outcome, distinct
from .asking import told
from .detection import Detection, Scene
from .entrants import ENTRANTS
from .scorers import Chances, scorer

TOLERANCE, EVALUATIONS = 0.15, 10  # of the search for a strength
BEGIN = 0.3  # usual norms: the first strength that is tried
ROWS = 128  # continuations that are made at once
SEARCHING, WRITING = 0.4, 0.45  # of the work
SAME = 1 - 1e-6  # cosine from which two directions are one
PROMPT = "prompt"


@dataclass(frozen=True)
class Arm:
    """A direction at one strength, and the methods whose direction it is."""

    methods: tuple[str, ...]
    direction: Direction
    budget: float
    amount: float
    nats: float  # on the openings that the strength was found on

    @property
    def edit(self) -> edits.Edit:
        return edits.add((self.direction.site, self.direction.unit), self.amount)


@dataclass(frozen=True)
class Written:
    """What an arm wrote after each opening, and what it is worth."""

    texts: list[str]
    chances: Float[Tensor, "n"]  # that the text has the concept, as the judge sees it
    perplexities: list[float]  # under the unedited model
    distinct: list[float]
    nats: float  # KL along the fixed text, mean over the tokens of the second half


@dataclass
class Steering:
    """Rows as `results.json` has them: one a method and budget, and what the unedited model does."""

    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stage:
    """What all arms of a concept share."""

    scene: Scene
    judge: Chances
    tune: list[str]
    held: list[str]
    plain: Outcome
    spoken: tuple[Spoken, Spoken]  # of tune and held

    @classmethod
    def of(cls, scene: Scene) -> "Stage":
        config, openings = scene.config, scene.concept.openings
        order = torch.randperm(len(openings), generator=torch.Generator().manual_seed(scene.seed)).tolist()
        chosen = [openings[i] for i in order[: config.openings]]
        tune, held = chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]
        judge = scorer(scene.concept.scorer, scene.material)
        new = config.max_new_tokens
        plain = outcomes(scene.model, [*tune, *held], [()], max_new_tokens=new, quiet=True)[0]
        spoken = [Spoken.by(scene.model, side, max_new_tokens=new) for side in (tune, held)]
        return cls(scene, judge, tune, held, plain, (spoken[0], spoken[1]))

    @property
    def openings(self) -> list[str]:
        return [*self.tune, *self.held]

    def written(self, made: Outcome, change: edits.Edit | Sequence[edits.Edit]) -> Written:
        nats = self.spoken[1].divergence(change) if change else torch.zeros(1)
        spread = [distinct(new) for new in made.new]
        return Written(made.texts, self.judge(self.openings, made.texts), made.perplexities, spread, float(nats.mean()))


def steer(scene: Scene, detection: Detection) -> Steering:
    """Every method that has a direction, and prompting, at every budget."""
    stage = Stage.of(scene)
    plain = stage.written(stage.plain, ())
    found = Steering([_row(stage, plain, plain, "", None, None)])
    tried: dict[str, float] = {}
    wanted = [name for name in scene.config.methods if ENTRANTS[name].steers and name in detection.directions]
    if wanted:
        site, tried = _layer(stage, detection.directions)
        arms, failed = _arms(stage, detection.directions, wanted, site)
        found.rows += [{"method": name, "left_out": why} for name, why in failed.items()]
        found.rows += _measured(stage, plain, arms)
        found.facts["site"] = site
    if PROMPT in scene.config.methods:
        found.rows.append(_row(stage, plain, _prompted(stage), PROMPT, None, None))
    found.facts |= {"layers": tried, "openings": {"tune": len(stage.tune), "held": len(stage.held)}}
    found.facts["judge"] = _judged(stage)
    return found


def _judged(stage: Stage) -> dict[str, float]:
    """How well the judge tells the test texts apart, which nothing was fitted on."""
    rows = stage.scene.material.without_states(stage.scene.material.rows("test"))
    return dict(zip(("auroc", "low", "high"), area_by_group(stage.judge([""] * len(rows), rows.texts), rows)))


# ---------------------------------------------------------------------- strengths
def _amounts(stage: Stage, direction: Direction, budgets: Sequence[float]) -> dict[float, tuple[float, float]]:
    """Budget -> the length that is added, and the KL that it gives. Raises `BadInput` where none gives it."""
    site, unit = direction.site, direction.unit
    amount, found = in_norms(stage.scene.model, (site, unit), BEGIN), {}
    before = None
    for budget in sorted(budgets):
        start = amount if before is None else amount * math.sqrt(budget / before)
        search = iso_kl(
            stage.scene.model,
            stage.spoken[0],
            lambda c: edits.add((site, unit), c),
            target=budget,
            start=start,
            tolerance=TOLERANCE,
            evaluations=EVALUATIONS,
        )
        amount, before = search.amount, budget
        found[budget] = (search.amount, search.nats)
    return found


def _layer(stage: Stage, directions: Mapping[str, Mapping[str, Direction]]) -> tuple[str, dict[str, float]]:
    """The site at which all methods steer: where the first method of the table raises the judge's chance most, on the
    first half of the openings, at the budget of the ranking."""
    first = next((name for name in directions if ENTRANTS[name].kind == "direction"), next(iter(directions)))
    sites, budget = directions[first], stage.scene.config.budget
    if len(sites) == 1:
        return next(iter(sites)), {}
    found: dict[str, float] = {}
    arms = []
    for site, direction in sites.items():
        try:
            amount, nats = _amounts(stage, direction, [budget])[budget]
        except BadInput:
            continue
        arms.append(Arm((first,), direction, budget, amount, nats))
        found[site] = math.nan
    if not arms:
        raise BadInput(f"no strength of {first!r} changes the model by {budget:g} nats at any layer")
    new, changes = stage.scene.config.max_new_tokens, [arm.edit for arm in arms]
    for site, made in zip(found, outcomes(stage.scene.model, stage.tune, changes, max_new_tokens=new, quiet=True)):
        found[site] = float(stage.judge(stage.tune, made.texts).mean())
    return max(found, key=lambda site: found[site]), found


def _arms(
    stage: Stage, directions: Mapping[str, Mapping[str, Direction]], wanted: Sequence[str], site: str
) -> tuple[list[Arm], dict[str, str]]:
    """Of each different direction an arm a budget; and why methods have none. A latent is at its own site."""
    different: list[tuple[list[str], Direction]] = []
    for name in wanted:
        at = directions[name]
        one = at.get(site) or next(iter(at.values()))
        same = next((names for names, other in different if other.site == one.site and other.cosine(one) > SAME), None)
        different.append(([name], one)) if same is None else same.append(name)
    arms, failed = list[Arm](), dict[str, str]()
    budgets = stage.scene.config.budgets
    for names, one in different:
        try:
            found = _amounts(stage, one, budgets)
            arms += [Arm(tuple(names), one, budget, *both) for budget, both in found.items()]
        except BadInput as error:
            failed |= dict.fromkeys(names, str(error))
        stage.scene.advance(SEARCHING / len(different))
    return arms, failed


# ---------------------------------------------------------------------- what is written
def _measured(stage: Stage, plain: Written, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    scene = stage.scene
    new, rows = scene.config.max_new_tokens, list[dict[str, Any]]()
    together = max(1, ROWS // len(stage.openings))
    for first in range(0, len(arms), together):
        some = arms[first : first + together]
        made = outcomes(scene.model, stage.openings, [arm.edit for arm in some], max_new_tokens=new, quiet=True)
        for arm, one in zip(some, made):
            written = stage.written(one, arm.edit)
            rows += [_row(stage, plain, written, name, arm, arm.methods[0]) for name in arm.methods]
        scene.advance(WRITING * len(some) / len(arms))
    return rows


def _prompted(stage: Stage) -> Written:
    """What is written after an instruction; KL and perplexity are of the bare opening, as for edits."""
    model, new = stage.scene.model, stage.scene.config.max_new_tokens
    instructed = [told(model, opening, stage.scene.concept.asks_for_it) for opening in stage.openings]
    made = outcomes(model, instructed, [()], max_new_tokens=new, quiet=True)[0]
    bare = model.tokens(stage.openings).rows()
    whole = [[*row, *tokens] for row, tokens in zip(bare, made.new)]
    odd = continuation_perplexity(model, model.tokens(whole), torch.tensor([len(row) for row in bare]))
    nats = float(stage.spoken[1].after(instructed[len(stage.tune) :]).mean())
    return Written(
        made.texts, stage.judge(stage.openings, made.texts), odd.tolist(), [distinct(one) for one in made.new], nats
    )


def _row(
    stage: Stage, plain: Written, written: Written, name: str, arm: Arm | None, same: str | None
) -> dict[str, Any]:
    """The numbers of the second half of the openings; `tuned` is of the first half."""
    half = len(stage.tune)
    chances, before = written.chances[half:], plain.chances[half:]
    shift = bootstrap_mean((chances - before).tolist(), seed=stage.scene.seed)
    success = int((chances > 0.5).sum())
    share = wilson(success, len(chances))
    fluent = [_fluency(one, other) for one, other in zip(written.perplexities, plain.perplexities)]
    first, second = slice(half), slice(half, None)
    tuned, score = (
        _harmonic(_gain(written.chances[part], plain.chances[part]), _mean(fluent[part])) for part in (first, second)
    )
    odd = [math.log(value) for value in written.perplexities[half:] if value == value]
    return {
        "method": name,
        "same_as": None if same in (None, name) else same,
        "budget": None if arm is None else arm.budget,
        "site": None if arm is None else str(arm.direction.site),
        "amount": None if arm is None else arm.amount,
        "tuned_nats": None if arm is None else arm.nats,
        "nats": written.nats,
        "success": success,
        "of": len(chances),
        "success_rate": share.value,
        "success_low": share.low,
        "success_high": share.high,
        "chance": float(chances.mean()),
        "shift": shift.value,
        "shift_low": shift.low,
        "shift_high": shift.high,
        "perplexity": math.exp(sum(odd) / len(odd)) if odd else math.nan,
        "distinct_2": _mean(written.distinct[half:]),
        "tuned": tuned,
        "score": score,
        "texts": list(zip(stage.held, written.texts[half:])),
        "left_out": "",
    }


def _gain(chances: Float[Tensor, "n"], before: Float[Tensor, "n"]) -> float:
    """How much of the way from the unedited mean chance to 1 is gone: 0 for the unedited model, and for a step back."""
    room = 1 - float(before.mean())
    return 0.0 if room <= 0 else max(0.0, float(chances.mean() - before.mean())) / room


def _fluency(perplexity: float, plain: float) -> float:
    """1 where a text is no odder to the unedited model than what it writes itself; 0 for no text."""
    return 0.0 if math.isnan(perplexity) else min(1.0, plain / perplexity) if plain == plain else 1.0


def _harmonic(a: float, b: float) -> float:
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if value == value]
    return sum(kept) / len(kept) if kept else math.nan
