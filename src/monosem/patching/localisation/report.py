"""The report of a localisation: `report.html` (self-contained), `report.md`, `results.json`, `config.yaml`."""

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ... import __version__
from ...files import writable_folder, write_json, write_text
from ...pages import embedded, environment, number, plotly_script
from ...statistics import Interval, Share

if TYPE_CHECKING:
    from .result import Component, Localisation

ROOM = "monosem.patching"

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


def write(found: "Localisation", folder: Path) -> Path:
    """Write the four files; returns the page's path."""
    writable_folder(folder)
    facts = _facts(found)
    page = environment(ROOM, escape=True).get_template("localisation.html.jinja")
    html = page.render(**facts, plots=_plots(found), plotly=plotly_script())
    write_text(folder / "config.yaml", yaml.safe_dump(found.config, sort_keys=False, allow_unicode=True))
    write_json(folder / "results.json", _storable(found.results))
    write_text(folder / "report.md", environment(ROOM).get_template("localisation.md.jinja").render(**facts))
    write_text(folder / "report.html", html)
    return folder / "report.html"


def headline(found: "Localisation") -> str:
    """The finding in one sentence, and what it is compared with."""
    if not found.components:
        return f"No single place restores {found.config['threshold']:.0%} of the effect: nothing was localised."
    label, best = list(found.evidence.items())[-1]
    what = f"The {len(best.cells)} {label} found restore {_percent(best.sufficiency)} of the effect"
    said = f"{what}; without them {_percent(best.necessity)} of it is lost."
    if drawn := found.control.get("sufficiency"):
        said += f" Random sets of the same make restore {min(drawn):.0%} to {max(drawn):.0%}."
    return said


def _percent(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.value:.0%}"
    return f"{interval.value:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def _facts(found: "Localisation") -> dict[str, Any]:
    """What both templates show."""
    return {
        "config": found.config,
        "found": found,
        "headline": headline(found),
        "definitions": DEFINITIONS,
        "groups": [
            ("Components", "Attention and MLP outputs that restore the answer", found.components, found.sweep.labels),
            ("Against", "Places whose clean activation moves the answer away", found.opposing, found.sweep.labels),
            ("Heads", "Heads of the attention layers found", found.heads, found.sweep.labels),
            ("Heads against", "Heads that move the answer away", found.opposing_heads, found.sweep.labels),
        ],
        "row": _row,
        "sets": [
            {
                "label": label,
                "cells": [str(cell) for cell in one.cells],
                "sufficiency": str(one.sufficiency),
                "necessity": str(one.necessity),
                "pn": _shown(one.pn),
                "ps": _shown(one.ps),
                "pns": f"{number(one.pns[0], 2)} to {number(one.pns[1], 2)}",
                "both": _shown(one.both),
            }
            for label, one in found.evidence.items()
        ],
        "control": {name: _spread(values) for name, values in found.control.items()},
        "backups": [] if found.backup is None else found.backup.table.to_dict("records"),
        "origin": {
            "model": found.config["model"],
            "pairs": f"{found.config['pairs']}: {found.config['task']}",
            "monosem": __version__,
            "torch": version("torch"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
    }


def _row(one: "Component", labels: dict[Any, str]) -> dict[str, Any]:
    cell = one.cell
    where = "all" if cell.at is None else ", ".join(map(str, cell.at))
    token = labels.get(cell.position, "")
    name = f"head {cell.layer}.{cell.head}" if cell.head is not None else f"{cell.site}.{cell.layer}"
    return {"name": name, "position": where, "token": token}


def _shown(share: Share) -> str:
    if not share.of:
        return "– (no such pairs)"
    interval = share.interval
    return f"{share} = {share.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _spread(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _plots(found: "Localisation") -> dict[str, dict[str, str]]:
    """The figures by name, ready for the page."""
    plots = {
        f"sweep_{site}": embedded(
            found.sweep.plot(site=site),
            f"{site} restored in the corrupted run, one layer and position at a time. Blue: the answer comes back "
            "(1 = as in the clean run). Orange: it moves further away.",
        )
        for site in found.sweep.sites
    }
    if found.head_sweep is not None:
        caption = "Every head of the attention layers found, restored alone at the positions found."
        plots["heads"] = embedded(found.head_sweep.plot(), caption)
    if found.backup is not None:
        caption = "Each dot is a head. Above the dotted line it matters more once what was found is corrupted."
        plots["backup"] = embedded(found.backup.plot(), caption)
    return plots


def _storable(value: Any) -> Any:
    """NaN has no place in JSON: it becomes null."""
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
