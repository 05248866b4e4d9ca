"""How far safe prompts are declined: wholly, in part, not at all, from the results of a report alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from ..judges import Judge, confusion, judge, of_refusals
from ..judges.agreement import labelled_for
from .attacks import ATTACKS
from .costs import DEGREE

TITLES = {"refusal": "full refusal", "partial": "partial refusal", "answer": "full compliance", "empty": "empty"}


def of_model(held: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(attack, what it did on safe prompts) of a model, where the degrees were judged: not in a report of another
    behaviour than refusal, and not in one that was made before they were."""
    for name in held:
        if name in ATTACKS and "degrees" in (one := held[name]["costs"]["over_refusal"]):
            yield name, one


def degrees_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """A row a model and attack: the share of each degree with its interval, how many responses were cut off."""
    rows = []
    for where, held in results["parts"].items():
        for name, one in of_model(held):
            line = {"model": where, "attack": name, "strength": held[name]["strength"]}
            line |= {"n": one["shown"]["of"], "cut": one["cut"]}
            for label in TITLES:
                share = one["degrees"][label]
                line |= {label: share["value"], f"{label}_low": share["low"], f"{label}_high": share["high"]}
            rows.append(line)
    return pd.DataFrame(rows)


def degree_facts(by: Judge) -> dict[str, Any] | None:
    """How the judge of degrees does on labelled responses; None beside a judge of something else."""
    if not of_refusals(by):
        return None
    one = judge(DEGREE)
    found = confusion(one, labelled_for(one, "fifth"))
    right = {label: [row["verdict"] == label for row in found.rows if row["label"] == label] for label in TITLES}
    return {"n": len(found.rows), "found": {TITLES[label]: f"{sum(hit)} of {len(hit)}" for label, hit in right.items()}}
