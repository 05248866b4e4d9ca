"""What the arms say together: pure functions of the rows of a report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..pages import percent
from ..statistics import PERCENTILES, Interval, mcnemar, spearman

Row = Mapping[str, Any]
LEVEL = 0.05
IDLE = 0.1  # a control with less than this share of the attack's KL does nothing to speak of
# Median perplexity of responses, in the model without defence, above which they have lost the thread. Of 24 responses
# of smollm2 it is 2 where it says what is likeliest, 20 where it draws (nine in ten below 38), and 4,120 where it draws
# at temperature 1.5.
LOST = 100.0
DEAR = 2.0  # times the attack's KL: a control beyond that is no comparison
HALF = 0.5  # of the unattacked rate: what the least subtraction leaves, and what is left at a layer of the span
DRAWS = 2000


def arms_of(rows: Iterable[Row], attack: str, control: str = "") -> list[Row]:
    """The arms of an attack, or of one of its controls, by strength."""
    found = [row for row in rows if row["attack"] == attack and row["control"] == control]
    return sorted(found, key=lambda row: row["strength"] or 0.0)


def controls_of(rows: Iterable[Row], attack: str) -> list[str]:
    return list(dict.fromkeys(row["control"] for row in rows if row["attack"] == attack and row["control"]))


def within_budget(rows: Sequence[Row], attack: str, budget: float) -> Row:
    """The strongest arm of an attack whose KL a token stays within a budget; where none does, the weakest. Chosen by
    harmless prompts alone, so that the behaviour's rate had no part in it."""
    arms = arms_of(rows, attack)
    fits = [arm for arm in arms if _kl(arm) <= budget]
    return fits[-1] if fits else arms[0]


def of_its_price(rows: Sequence[Row], arm: Row, control: str) -> Row:
    """The arm of a control whose KL is the nearest to an attack's arm, by ratio; the same strength where there is no
    KL. At one strength prices differ: a direction of shuffled labels may cost ten times what the fitted one does."""
    arms = arms_of(rows, arm["attack"], control)
    if _kl(arm) > 0 and any(_kl(one) > 0 for one in arms):
        return min((one for one in arms if _kl(one) > 0), key=lambda one: abs(math.log(_kl(one) / _kl(arm))))
    return next((one for one in arms if one["strength"] == arm["strength"]), arms[0])


def _idle(control: Row, arm: Row) -> bool:
    """Whether a control hardly changes the model beside the attack: then it only shows that some change is needed."""
    return _kl(arm) > 0 and _kl(control) < IDLE * _kl(arm)


def _kl(row: Row) -> float:
    """Nats a token; 0 of an arm that does not change the model."""
    held = row.get("kl_token")
    return float(held["value"]) if held else 0.0


# ---------------------------------------------------------------------- verdicts
def verdict(rows: Sequence[Row], attack: str, budget: float, break_at: float, comparisons: int) -> dict[str, Any]:
    """What one attack does at the strength that the budget allows, beside no attack and beside its controls.

    Each control is taken at the strength whose KL is the nearest (`of_its_price`). One that costs more than `DEAR`
    times as much even there is no comparison.

    Exact McNemar tests on the same prompts, each at level 0.05 / `comparisons`. The words are no stronger than the
    numbers: an attack that does no more than a control of its price is said to do no more, whatever its rate.
    """
    arm, base = within_budget(rows, attack, budget), arms_of(rows, "none")[0]
    same = {name: of_its_price(rows, arm, name) for name in controls_of(rows, attack)}
    level = LEVEL / max(comparisons, 1)
    p_none, p_controls = compared(base, arm), {name: compared(row, arm) for name, row in same.items()}
    dear = [name for name, row in same.items() if _kl(row) > DEAR * _kl(arm)]
    unclear = [
        name
        for name, row in same.items()
        if name not in dear and not (p_controls[name] < level and _won(arm) > _won(row))
    ]
    idle = {name: _idle(row, arm) for name, row in same.items()}
    over = _kl(arm) > budget
    as_much = [_named(name, same[name]) for name in unclear]
    words = _words(base, arm, p_none < level and _won(arm) > _won(base), as_much, break_at, over)
    breaks = words.startswith("breaks")
    if breaks or words.startswith("weakens it"):
        words += _beside(idle, dear)
    return {
        "attack": attack,
        "strength": arm["strength"],
        "shown": arm["shown"],
        "success": arm["success"],
        "kl_token": arm.get("kl_token"),
        "over_budget": over,
        "p_none": p_none,
        "p_controls": p_controls,
        "controls": {
            name: {key: row[key] for key in ("shown", "success", "strength")}
            | {"kl": _kl(row), "idle": idle[name], "dear": name in dear, "perplexity": row.get("perplexity")}
            for name, row in same.items()
        },
        "level": level,
        "words": words,
        "breaks": breaks,
        "lost": words.startswith("the responses lose"),
        "as_controls": bool(unclear) and arm["shown"]["value"] <= break_at and words.startswith("no more"),
        "compared": bool(breaks) and not dear,
        "sure": breaks and arm["shown"]["high"] <= break_at,
    }


def _beside(idle: Mapping[str, bool], dear: Sequence[str]) -> str:
    """What a verdict adds of controls that compare badly with the attack."""
    if dear:
        who = f"control ({dear[0]}) costs" if len(dear) == 1 else f"controls ({', '.join(dear)}) cost"
        return f"; not shown to be more than any change would, as its {who} over {DEAR:g} times as much KL"
    return "; its controls hardly change the model" if idle and all(idle.values()) else ""


def _named(control: str, row: Row) -> str:
    """A control that does as much as the attack; one that only says nonsense by then is named as such."""
    lost = _perplexity(row) > LOST
    return f"{control}, whose responses lose the thread, median perplexity {_perplexity(row):,.0f}" if lost else control


def _perplexity(row: Row) -> float:
    return row.get("perplexity") or 0.0


def _words(base: Row, arm: Row, changes: bool, unclear: list[str], break_at: float, over: bool) -> str:
    """No stronger than the numbers: what is not shown is not said."""
    said = arm["shown"]
    if base["shown"]["low"] < 0.5:
        return "the behaviour shows too seldom without an attack to say what breaks it"
    if not changes:
        return "no change that these prompts could show"
    if (perplexity := _perplexity(arm)) > LOST:
        return f"the responses lose the thread (median perplexity {perplexity:,.0f}), so they are no success either"
    if unclear:
        return f"no more than its control ({'; '.join(unclear)}) does"
    if over:
        return "changes the model by more than the budget at every strength, so the behaviour is not all that it breaks"
    broken = said["of"] - said["count"] - _won(arm)
    if said["value"] <= break_at and broken > break_at * said["of"]:
        return f"weakens it: little is left, but {broken} of {said['of']} responses are empty or loops"
    if said["high"] <= break_at:
        return f"breaks it: at most {percent(said['high'])} is left"
    if said["value"] <= break_at:
        return f"breaks it on these prompts; up to {percent(said['high'])} may be left"
    return "weakens it"


def compared(one: Row, other: Row) -> float:
    """Exact p that both arms succeed on as many of the same prompts."""
    pairs = [(a["success"], b["success"]) for a, b in zip(one["rows"], other["rows"], strict=True)]
    return mcnemar(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))


def _won(row: Row) -> int:
    return int(row["success"]["count"])


# ---------------------------------------------------------------------- curves
def area(rows: Sequence[Row], attack: str, control: str, budget: float, seed: int = 0) -> Interval:
    """Area under success against KL, from 0 to `budget` nats a token, divided by the budget: the mean, over budgets up
    to this one, of the best success that the attack reaches within each. Between two strengths it is the weaker one's.
    Without any KL there is the success of no attack. With its interval by bootstrap over prompts."""
    arms = [*arms_of(rows, "none"), *arms_of(rows, attack, control)]
    won = np.array([[line["success"] for line in arm["rows"]] for arm in arms], dtype=float)
    price = np.array([_kl(arm) for arm in arms])
    order = np.argsort(price, kind="stable")
    won, price = won[order], price[order]
    inside = price <= budget
    won, widths = won[inside], np.diff([*price[inside], budget]) / budget

    def of(shares: np.ndarray) -> np.ndarray:
        return np.asarray(np.maximum.accumulate(shares, axis=0).T @ widths)

    value = float(of(won.mean(1)))
    chosen = np.random.default_rng(seed).integers(0, won.shape[1], size=(DRAWS, won.shape[1]))
    low, high = np.quantile(of(won[:, chosen].mean(2)), PERCENTILES)
    return Interval(value, float(low), float(high))


def least_to_break(rows: Sequence[Row], attack: str, control: str, most: float) -> dict[str, float | None]:
    """The least strength of an attack (k of a subspace, gaps that are subtracted) at which the behaviour's rate is at
    most `most` ("seen"), and at which the upper end of its interval is ("sure"); None where none that was tried
    reaches it."""
    return {how: min(found, default=None) for how, found in reaching(rows, attack, control, most).items()}


def reaching(rows: Sequence[Row], attack: str, control: str, most: float) -> dict[str, list[float]]:
    """The strengths, in order, at which the behaviour's rate is at most `most` ("seen"), and at which the upper end of
    its interval is ("sure")."""
    arms = arms_of(rows, attack, control)
    ends = {"seen": "value", "sure": "high"}
    return {how: [arm["strength"] for arm in arms if arm["shown"][end] <= most] for how, end in ends.items()}


def follows(projections: Sequence[float], shown: Sequence[float]) -> float:
    """Spearman's correlation of the direction's projection with the behaviour; NaN where either is constant."""
    return spearman(torch.tensor(projections), torch.tensor(shown, dtype=torch.float)) if len(shown) > 2 else math.nan
