"""The report of a localisation, from its results alone: `report.html` (self-contained), `report.md`, `results.json`.

`write(json.loads(Path("results.json").read_text()), folder)` makes it again.
"""

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ... import __version__
from ...files import writable_folder, write_json, write_text
from ...pages import embedded, environment, number, plotly_script
from ...statistics import Interval, Share
from ..sets.backups import picture as backup_picture
from ..sweeps.pictures import picture as sweep_picture

ROOM = "monosem.patching"
GROUPS = (  # title, meaning, kind of place, whether it restores the answer
    ("Components", "Attention and MLP outputs that restore the answer", "component", True),
    ("Against", "Places whose clean activation moves the answer away", "component", False),
    ("Heads", "Heads of the attention layers found", "head", True),
    ("Heads against", "Heads that move the answer away", "head", False),
)

# what each number means: name -> (formula, plain words); m is the metric's mean over pairs
DEFINITIONS = {
    "restored": (
        "(m(corrupted run, place restored) − m(corrupted)) / (m(clean) − m(corrupted))",
        "The share of the effect that comes back when only this place gets its clean activation (denoising).",
    ),
    "lost": (
        "(m(clean) − m(clean run, place corrupted)) / (m(clean) − m(corrupted))",
        "The share of the effect that goes when only this place gets its corrupted activation (noising).",
    ),
    "sufficiency": (
        "restored, for the whole set at once",
        "Near 1: the set alone is enough. Above 1: it overshoots, because places that work against the answer are not "
        "in it.",
    ),
    "necessity": (
        "lost, for the whole set at once",
        "Near 1: without the set the answer is as in the corrupted run. Near 0 although sufficient: others stand in.",
    ),
    "PN": (
        "P(wrong once the set is corrupted | right in the clean run)",
        "Probability of necessity, counted over pairs.",
    ),
    "PS": (
        "P(right once the set is restored | wrong in the corrupted run)",
        "Probability of sufficiency, counted over pairs.",
    ),
    "PNS": (
        "max(0, PN + PS − 1) ≤ PNS ≤ min(PN, PS)",
        "Probability that the set is both needed and enough: the bounds that the counts allow (Tian and Pearl 2000).",
    ),
    "both": (
        "P(set breaks the clean and repairs the corrupted run | right clean, wrong corrupted)",
        "The same, seen directly on the pairs where both can be seen.",
    ),
    "need": (
        "(m(A corrupted) − m(A and head corrupted)) / (m(clean) − m(corrupted)), and the same without A",
        "What a head adds before and after the set A is corrupted. A backup head adds little before and more after.",
    ),
}


def write(results: Mapping[str, Any], folder: Path) -> Path:
    """Write the report and, beside it, `config.yaml`; returns the page's path.

    Args:
        results: `Localisation.results`, or the same read from `results.json`.
    """
    writable_folder(folder)
    facts = _facts(results)
    page = environment(ROOM, escape=True).get_template("localisation.html.jinja")
    html = page.render(**facts, plots=_plots(results), plotly=plotly_script())
    config = yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", config)
    write_json(folder / "results.json", results)
    write_text(folder / "report.md", environment(ROOM).get_template("localisation.md.jinja").render(**facts))
    write_text(folder / "report.html", html)
    return folder / "report.html"


def headline(results: Mapping[str, Any]) -> str:
    """The finding in one sentence, and what it is compared with."""
    if not any(_group(results, "component", True)):
        return f"No single place restores {results['config']['threshold']:.0%} of the effect: nothing was localised."
    label, last = list(results["evidence"].items())[-1]
    what = f"The {len(last['cells'])} {label} found restore {_percent(last['sufficiency'])} of the effect"
    said = f"{what}; without them {_percent(last['necessity'])} of it is lost."
    if drawn := results["control"].get("sufficiency"):
        said += f" Random sets of the same shape restore {min(drawn):.0%} to {max(drawn):.0%}."
    return said


def origin() -> dict[str, str]:
    """The versions that the numbers come from."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"monosem": __version__, **versions, "python": platform.python_version()}


def storable(value: Any) -> Any:
    """The same in plain values that JSON has: NaN becomes null."""
    if isinstance(value, Mapping):
        return {key: storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value


def _facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """What both templates show."""
    config = results["config"]
    named = {"model": config["model"], "pairs": f"{config['pairs']}: {config['task']}"}
    return {
        **results,
        "headline": headline(results),
        "definitions": DEFINITIONS,
        "groups": [(title, meaning, _group(results, kind, restores)) for title, meaning, kind, restores in GROUPS],
        "sets": [_set(label, one) for label, one in results["evidence"].items()],
        "control": {name: _spread(values) for name, values in results["control"].items()},
        "backups": results["tables"].get("backup", []),
        "origin": named | results["origin"],
    }


def _group(results: Mapping[str, Any], kind: str, restores: bool) -> list[dict[str, Any]]:
    """Rows of one kind of place that restore the answer, or move it away."""
    rows = [row for row in results["tables"]["found"] if row["kind"] == kind and (row["restored"] > 0) == restores]
    return [row | {"name": _name(row)} for row in rows]


def _name(row: Mapping[str, Any]) -> str:
    head = row["head"]
    return f"{row['site']}.{row['layer']}" if head is None else f"head {row['layer']}.{head}"


def _set(label: str, one: Mapping[str, Any]) -> dict[str, Any]:
    intervals = {name: str(_interval(one[name])) for name in ("sufficiency", "necessity")}
    shares = {name: _shown(Share(**one[name])) for name in ("pn", "ps", "both")}
    pns = " to ".join(number(bound, 2) for bound in one["pns"])
    return {"label": label, "cells": one["cells"], **intervals, **shares, "pns": pns}


def _interval(one: Mapping[str, float | None]) -> Interval:
    return Interval(**{name: math.nan if number is None else number for name, number in one.items()})


def _percent(one: Mapping[str, float | None]) -> str:
    interval = _interval(one)
    if math.isnan(interval.low):
        return f"{interval.value:.0%}"
    return f"{interval.value:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def _shown(share: Share) -> str:
    if not share.of:
        return "– (no such pairs)"
    interval = share.interval
    return f"{share} = {share.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _spread(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _plots(results: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The figures by name, ready for the page."""
    tables = {name: pd.DataFrame(rows) for name, rows in results["tables"].items()}
    sweep, over, plots = tables["sweep"], ("layer", "position"), {}
    for site in dict.fromkeys(sweep["site"]):
        plots[f"sweep_{site}"] = embedded(
            sweep_picture(sweep, over, "denoising", [site]),
            f"{site} restored in the corrupted run, one layer and position at a time. Blue: the answer comes back "
            "(1 = as in the clean run). Orange: it moves further away.",
        )
    if "head_sweep" in tables:
        caption = "Every head of the attention layers found, restored alone at the positions found."
        table = tables["head_sweep"]
        heads = sweep_picture(table, (*over, "head"), "denoising", list(dict.fromkeys(table["site"])))
        plots["heads"] = embedded(heads, caption)
    if len(tables.get("backup", ())):  # no row where every head of the model is in what was found
        caption = "Each dot is a head. Above the dotted line it matters more once what was found is corrupted."
        plots["backup"] = embedded(backup_picture(tables["backup"]), caption)
    return plots
