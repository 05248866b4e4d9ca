"""The report of a study, from its results alone: `report.html` (self-contained) and `report.md`."""

from pathlib import Path
from typing import Any

import pandas as pd

from ..files import writable_folder, write_json, write_text
from ..pages import embedded, environment, plotly_script
from ..plots import Figure
from .figures import draw
from .sections import SECTIONS
from .sections.dictionary import QUALITY


def write(results: dict[str, Any], folder: Path) -> None:
    """Write `report.html`, `report.md` and `results.json` into the folder."""
    writable_folder(folder)
    write_json(folder / "results.json", results)
    write_text(folder / "report.md", markdown(results))
    write_text(folder / "report.html", html(results))


def html(results: dict[str, Any]) -> str:
    """The report as one page: styles, figures and plotly.js are inside, nothing is fetched."""
    drawings = draw(results)
    return (
        environment("monosem.studies", escape=True)
        .get_template("report.html.jinja")
        .render(
            **_facts(results),
            plots={name: embedded(drawing.figure, drawing.caption) for name, drawing in drawings.items()},
            plotly=plotly_script(),
        )
    )


def markdown(results: dict[str, Any]) -> str:
    return environment("monosem.studies").get_template("report.md.jinja").render(**_facts(results))


def figures_of(results: dict[str, Any]) -> dict[str, Figure]:
    return {name: drawing.figure for name, drawing in draw(results).items()}


def arms_table(results: dict[str, Any]) -> pd.DataFrame:
    """One row an arm of defence and attack, with its numbers on test and on control prompts."""
    rows = []
    for section in ("defence", "attack"):
        for arm in results["sections"][section]["arms"]:
            row = {"section": section, **{key: arm[key] for key in ("kind", "label", "latent", "value", "dose")}}
            row |= {f"{part}_{key}": value for part in ("test", "control") for key, value in arm[part].items()}
            rows.append(row)
    return pd.DataFrame(rows)


def _facts(results: dict[str, Any]) -> dict[str, Any]:
    sections = results["sections"]
    attack, defence = sections["attack"], sections["defence"]
    targets = [arm for arm in attack["arms"] if arm["kind"] == "target"]
    return {
        "config": results["config"],
        "origin": results["provenance"],
        "titles": {section.name: (section.letter, section.title) for section in SECTIONS},
        "quality": QUALITY,
        "targets": targets,
        "primary": next(arm for arm in targets if arm["dose"] == attack["primary_dose"]),
        "ablated": defence["arms"][0],
        "spliced": defence["arms"][1],
        "defence_table": _summaries(defence["arms"]),
        "attack_table": _summaries(attack["arms"]),
        **sections,
    }


def _summaries(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a summary table: every arm but the random ones, which are put together by dose as mean and range."""
    rows: list[dict[str, Any]] = [
        {"label": arm["label"], "kind": arm["kind"], "dose": arm["dose"], "value": arm["value"]}
        | {part: {key: (arm[part].get(key), None, None) for key in SHOWN} for part in ("test", "control")}
        | {"intervals": {part: _interval(arm[part]) for part in ("test", "control")}, "n": 1}
        for arm in arms
        if arm["kind"] != "random"
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for arm in arms:
        if arm["kind"] == "random":
            groups.setdefault((arm["dose"], None if arm["dose"] is not None else arm["value"]), []).append(arm)
    for (dose, value), group in groups.items():
        to = f"{value:g}" if dose is None else "0" if dose == 0 else f"{dose:g} × own maximum"
        rows.append(
            {
                "label": f"{len(group)} random latent{'s' if len(group) > 1 else ''} to {to}",
                "kind": "random",
                "dose": dose,
                "value": value,
            }
            | {part: {key: _spread(group, part, key) for key in SHOWN} for part in ("test", "control")}
            | {"intervals": {}, "n": len(group)}
        )
    return sorted(rows, key=lambda row: (row["dose"] is None, row["dose"] or 0))


SHOWN = ("changed_rate", "kl", "concept_shift", "edited_perplexity")
Triple = tuple[float | None, float | None, float | None]


def _spread(arms: list[dict[str, Any]], part: str, key: str) -> Triple:
    values = [arm[part][key] for arm in arms if arm[part].get(key) is not None]
    return (sum(values) / len(values), min(values), max(values)) if values else (None, None, None)


def _interval(summary: dict[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    names = {"changed_rate": "changed", "kl": "kl", "concept_shift": "concept"}
    return {key: (summary.get(f"{name}_low"), summary.get(f"{name}_high")) for key, name in names.items()}
