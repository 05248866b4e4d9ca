"""The parts of a report: each is a function of a context and what was measured before, and gives plain values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import edits
from ..models import Site
from ..statistics import auroc_interval
from .arms import Arm, rate, responses
from .attacks import ATTACKS
from .context import Context
from .costs import capabilities, divergence, over_refusal, over_refusal_prompts, text_perplexity
from .curves import Row, follows, within_budget
from .span import KINDS, count, measure

Parts = dict[str, dict[str, Any]]  # name of a part -> its data
INDUCED = 24  # unrelated prompts that the direction is added to
AGAIN = 4  # generated tokens after which the guard decides again


@dataclass(frozen=True)
class Part:
    """One part. `count`: how many arms it runs, for progress."""

    name: str
    title: str
    make: Callable[[Context, Parts], dict[str, Any]]
    count: Callable[[Context], int]


def parts(attacks: Sequence[str]) -> list[Part]:
    """All parts of a report with these attacks, in order."""
    found = [Part("direction", "The direction", _direction, lambda context: 0)]
    for name in attacks:
        found.append(Part(name, ATTACKS[name].title, _attack(name), _with_costs(ATTACKS[name].count)))
    if set(attacks) & set(KINDS):
        found.append(Part("layers", "Layer by layer", measure, lambda context: count(context, attacks)))
    found.append(Part("scale", "Rate against scale", _scale, lambda context: 2 * len(context.config.scales)))
    found.append(Part("faithfulness", "Faithfulness", _faithfulness, lambda context: len(_roles(context)) - 1))
    return [*found, Part("guard", "A guard", _guard, lambda context: len(attacks) if _can_calibrate(context) else 0)]


def _with_costs(count: Callable[[Context], int]) -> Callable[[Context], int]:
    return lambda context: count(context) + 1


def _direction(context: Context, earlier: Parts) -> dict[str, Any]:
    return context.vectors.facts


# ---------------------------------------------------------------------- attacks
def _attack(name: str) -> Callable[[Context, Parts], dict[str, Any]]:
    def make(context: Context, earlier: Parts) -> dict[str, Any]:
        arms, prompts = _arms(context, name), context.config.of("behaviour_test")
        rows = [_row(context, arm, prompts) for arm in arms]
        arm = _allowed(context, name, rows)
        costs = {"over_refusal": over_refusal(context, arm)}
        if not arm.prefill:
            costs |= {"capabilities": capabilities(context, arm)}
        return {"arms": rows, "strength": arm.strength, "costs": costs}

    return make


def _row(context: Context, arm: Arm, prompts: list[str]) -> dict[str, Any]:
    """An attack or a control, with its price: KL where it changes the model, and perplexities, as the unchanged model
    has them."""
    row = responses(context, arm, prompts, coherence=True)
    price = {} if arm.prefill else divergence(context, arm)
    price = price if arm.costs else {name: value for name, value in price.items() if name == "own_perplexity"}
    return row | price | ({} if arm.prefill else {"text_perplexity": text_perplexity(context, arm)})


def _arms(context: Context, name: str) -> list[Arm]:
    """Of an attack, made once: fine-tuning trains for them."""
    made: list[Arm] = context.remembered(("arms", name), lambda: list(ATTACKS[name].arms(context)))
    return made


def _allowed(context: Context, name: str, rows: Sequence[Row]) -> Arm:
    """The attack at the strength that the budget allows."""
    kept = within_budget(rows, name, context.config.budget)
    return next(one for one in _arms(context, name) if not one.control and one.strength == kept["strength"])


# ---------------------------------------------------------------------- the direction itself
def _scale(context: Context, earlier: Parts) -> dict[str, Any]:
    """The direction added to unrelated prompts, beside a random one: does it bring the behaviour about?"""
    vectors, arms = context.vectors, []
    for scale in sorted(context.config.scales):
        for name in ("", "random 1"):
            change = edits.add((vectors.site, vectors.units[name]), scale * vectors.gap)
            arms.append(Arm("addition", name, scale, [change]))
    prompts = context.config.of("unrelated_test")[:INDUCED]
    return {"arms": [responses(context, arm, prompts) for arm in arms]}


def _roles(context: Context) -> list[str]:
    """The held-out roles that have prompts."""
    roles = ("behaviour_test", "paraphrases", "near_misses", "unrelated_test")
    return [role for role in roles if context.config.of(role)]


def _faithfulness(context: Context, earlier: Parts) -> dict[str, Any]:
    """Whether the projection of a prompt's last token goes with the behaviour, in the model as it is."""
    by_role, points = {}, list[tuple[str, float, bool]]()
    for role in _roles(context):
        row = (
            earlier["none"]["arms"][0]
            if role == "behaviour_test"
            else responses(context, Arm("none"), context.config.of(role))
        )
        along, shown = _projections(context, context.prompts[role]).tolist(), [line["shown"] for line in row["rows"]]
        by_role[role] = {"shown": row["shown"], "projection": sum(along) / len(along), "labels": row["labels"]}
        points += [(role, value, one) for value, one in zip(along, shown)]
    own = [point for point in points if point[0] in ("behaviour_test", "paraphrases")]
    return {
        "roles": by_role,
        "points": [{"role": role, "projection": value, "shown": one} for role, value, one in points],
        "spearman": follows([p for _, p, _ in points], [one for *_, one in points]),
        "auroc": _auroc(points),
        "auroc_behaviour": _auroc(own),  # among prompts that should all show it
    }


def _auroc(points: Sequence[tuple[str, float, bool]]) -> dict[str, Any]:
    up, down = (torch.tensor([p for _, p, one in points if one == wanted]) for wanted in (True, False))
    found = auroc_interval(up, down)._asdict() if len(up) and len(down) else dict.fromkeys(("value", "low", "high"))
    return {**found, "shown": len(up), "not_shown": len(down)}


@torch.no_grad()
def _projections(context: Context, prompts: list[str]) -> Float[Tensor, "prompts"]:
    site, unit = context.vectors.site, context.vectors.units[""]
    size = context.config.batch_size
    runs = (context.model.run(prompts[i : i + size], capture=site, logits=False) for i in range(0, len(prompts), size))
    return torch.cat([run.last(site).float().cpu() @ unit for run in runs])


# ---------------------------------------------------------------------- a guard
def _benign(context: Context) -> list[str]:
    """All unrelated test prompts, however few are answered: a threshold needs many, and a projection costs little."""
    return list(dict.fromkeys(context.config.prompts["unrelated_test"]))


def _can_calibrate(context: Context) -> bool:
    return _rank(context) <= len(_benign(context)[::2])


def _rank(context: Context) -> int:
    """Which of the sorted scores of n benign prompts is the threshold: conformal, as `probes.with_threshold`."""
    n = len(_benign(context)[::2])
    return math.ceil((n + 1) * (1 - context.config.target_fpr) - 1e-9)


def _guard(context: Context, earlier: Parts) -> dict[str, Any]:
    """A gate on the direction's projection at the prompt's end (CAST, Lee et al. 2024): where it opens, it is
    added, and the behaviour should show. The threshold is of half of the unrelated prompts, the rest measures it.
    Each attack is tried against it, at the strength that the budget allowed without it."""
    config, vectors = context.config, context.vectors
    if not _can_calibrate(context):
        n = len(_benign(context)[::2])
        return {
            "left_out": f"{n} unrelated prompts cannot set a threshold of a false positive rate of {config.target_fpr}"
        }
    benign = _projections(context, context.asked(_benign(context)[::2]))
    threshold = float(benign.sort().values[_rank(context) - 1])
    place = (_behind(context, vectors.site), vectors.units[""])
    gate = edits.condition(place, above=threshold)
    sets = {role: config.of(role) for role in _roles(context)} | {"unrelated_test": _benign(context)[1::2]}
    sets["over-refusal"] = over_refusal_prompts(config.over_refusal)
    fired = {
        role: rate((_projections(context, context.asked(prompts)) > threshold).tolist())
        for role, prompts in sets.items()
    }
    prefilled = [prompt + config.prefill for prompt in context.prompts["behaviour_test"]]
    fired["behaviour_test, prefilled"] = rate((_projections(context, prefilled) > threshold).tolist())
    guard = edits.add(place, vectors.gap).when(gate)  # the gate reads the state before the addition
    arms = [_allowed(context, name, earlier[name]["arms"]) for name in earlier if name in ATTACKS]
    tried = [replace(arm, edits=[*arm.edits, guard], control="guard") for arm in arms]
    rows = [responses(context, arm, config.of("behaviour_test")) for arm in tried]
    return {
        "threshold": threshold,
        "target_fpr": config.target_fpr,
        "calibrated_on": len(benign),
        "fired": fired,
        "arms": rows,
        "delay": _delay(context, replace(gate, every=AGAIN, log=[]), prefilled),
    }


def _behind(context: Context, site: Site) -> Site:
    """The same state one place on, where edits at the site itself have acted: the guard sees an attacked state. There
    is no such place after the last layer or inside a block, and there it sees the state before the attack."""
    last = site.name != "resid_post" or site.layer is None or site.layer + 1 == context.model.cfg.n_layers
    return site if last else replace(site, name="resid_pre", layer=int(site.layer or 0) + 1)


def _delay(context: Context, gate: edits.Condition, prompts: list[str]) -> dict[str, Any]:
    """How many tokens a prefilled answer has before the gate opens, when it decides again every `AGAIN` tokens."""
    first = dict[int, int]()
    lengths = context.model.tokens(prompts).lengths.tolist()
    watch = edits.add((gate.site, context.vectors.units[""]), 0.0).when(gate)  # changes nothing
    made = context.model.generate(prompts, edits=[watch], max_new_tokens=context.config.max_new_tokens)
    for decision in gate.log:
        said = decision.token < lengths[decision.row] + len(made.new[decision.row])  # the row had not ended
        if decision.open and said and decision.row not in first:
            first[decision.row] = max(decision.token + 1 - lengths[decision.row], 0)
    waits = sorted(first.values())
    return {
        "caught": rate([row in first for row in range(len(prompts))]),
        "median": waits[len(waits) // 2] if waits else None,
    }
