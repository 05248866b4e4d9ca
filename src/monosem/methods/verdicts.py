"""What detection and steering say together: which detector also steers, and the means over concepts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..statistics import bootstrap_mean, correlation_interval
from .entrants import ENTRANTS

FEWEST = 8  # methods of one concept below which a correlation of ranks is not reported as one
CONTROL = "shuffled"  # what a method must beat: its own formula on labels that say nothing
Rows = Sequence[Mapping[str, Any]]


def predicts(detection: Rows, steering: Rows, budget: float) -> list[tuple[str, float, float]]:
    """(method, test AUROC, shift of the judge's chance at the budget) of each direction that has both; no controls."""
    areas = {row["method"]: row["auroc"] for row in detection if not row["left_out"]}
    moved = {row["method"]: row["shift"] for row in steering if not row["left_out"] and row.get("budget") == budget}
    both = [name for name in areas if name in moved and ENTRANTS[name].kind in ("direction", "latent")]
    return [(name, float(areas[name]), float(moved[name])) for name in both]


def predict_control(concepts: Mapping[str, Any], budget: float) -> dict[str, Any]:
    """Spearman's correlation of detection with steering over the methods: of each concept, and of all (`_together`).
    Methods that write one vector count with each of their detectors; they are not independent, so that intervals of
    one concept are too narrow rather than too wide."""
    points = {
        name: predicts(one["detection"], one["steering"]["rows"], budget)
        for name, one in concepts.items()
        if one["steering"] is not None
    }
    points = {name: some for name, some in points.items() if len(some) > 1}
    rows = {name: _correlation([some]) for name, some in points.items()}
    together = _together(list(points.values()), list(rows.values())) if points else None
    return {"concepts": rows, "together": together, "points": points}


def _together(groups: Sequence[Sequence[tuple[str, float, float]]], rows: Rows) -> dict[str, Any]:
    """From 3 concepts on the mean of their correlations, concepts drawn again; of fewer, their ranks together."""
    pooled = _correlation(groups)
    values = [row["value"] for row in rows if not math.isnan(row["value"])]
    if len(values) < 3:
        return pooled
    found = bootstrap_mean(values)
    return pooled | {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "said": _said(found, pooled["n"]),
    }


def _correlation(groups: Sequence[Sequence[tuple[str, float, float]]]) -> dict[str, Any]:
    sides = [[torch.tensor([one[i] for one in some]) for some in groups] for i in (1, 2)]
    found = correlation_interval(*sides)
    n = sum(map(len, groups))
    return {"n": n, "value": found.value, "low": found.low, "high": found.high, "said": _said(found, n)}


def _said(found: Any, n: int) -> str:
    """In words no stronger than the interval."""
    if n < FEWEST or math.isnan(found.value):
        return f"{n} methods: too few to say anything" if n < FEWEST else "one side does not vary"
    if found.low > 0:
        return "better detectors steer more"
    return "better detectors steer less" if found.high < 0 else "no relation is shown either way"


def chosen_budgets(steering: Rows) -> dict[str, Mapping[str, Any]]:
    """Of each method the row whose score on the first half of the openings is best: the second half judges it."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in steering:
        if row["left_out"] or not row["method"]:
            continue
        if row["method"] not in found or row["tuned"] > found[row["method"]]["tuned"]:
            found[row["method"]] = row
    return found


def summary(concepts: Mapping[str, Any], budget: float) -> list[dict[str, Any]]:
    """A row a method: means over concepts with 95 % intervals (concepts drawn again), and over how many.

    `auroc` of detection; at the budget `shift` of the judge's chance; `score`, the harmonic mean of gain and fluency,
    at the strength that is best on the other half of the openings. `auroc_over` and `score_over`: by how much above a
    difference of shuffled labels, concept by concept, so that what makes a concept easy counts on neither side.
    """
    found = {name: _measured(concepts, name, budget) for name in ENTRANTS}
    rows = []
    for name, measured in found.items():
        if not measured["auroc"] and not measured["shift"]:
            continue
        row: dict[str, Any] = {"method": name, "about": ENTRANTS[name].about}
        for column, values in measured.items():
            row |= _mean(column, list(values.values()))
        for column in () if name == CONTROL else ("auroc", "score"):
            control = found.get(CONTROL, {}).get(column, {})
            both = measured[column].keys() & control.keys()
            row |= _mean(f"{column}_over", [measured[column][one] - control[one] for one in sorted(both)])
        rows.append(row)
    return rows


def _measured(concepts: Mapping[str, Any], name: str, budget: float) -> dict[str, dict[str, float]]:
    """Column of `summary` -> concept -> a method's value."""
    found: dict[str, dict[str, float]] = {"auroc": {}, "shift": {}, "score": {}}
    for concept, one in concepts.items():
        for row in one["detection"]:
            if row["method"] == name and not row["left_out"]:
                found["auroc"][concept] = row["auroc"]
        if one["steering"] is None:
            continue
        steering = one["steering"]["rows"]
        for row in steering:
            if row["method"] == name and not row["left_out"] and row["budget"] in (budget, None):
                found["shift"][concept] = row["shift"]
        if (best := chosen_budgets(steering).get(name)) is not None:
            found["score"][concept] = best["score"]
    return found


def _mean(column: str, values: Sequence[float]) -> dict[str, Any]:
    interval, few = bootstrap_mean(values), len(values) < 3
    return {
        column: interval.value,
        f"{column}_low": math.nan if few else interval.low,
        f"{column}_high": math.nan if few else interval.high,
        f"{column}_concepts": len(values),
    }
