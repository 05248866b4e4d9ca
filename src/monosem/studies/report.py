"""The report of a study, from its results alone: `report.html` (self-contained) and `report.md`."""

import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import writable_folder, write_json, write_text
from ..pages import embedded, environment, plotly_script
from ..plots import Figure
from .arms import BASELINES
from .figures import draw
from .sections import SECTIONS
from .sections.dictionary import QUALITY
from .sections.target import FEW_PAIRS


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
    """One row an arm of ablation and steering, with its numbers on test and on control prompts."""
    rows = []
    for section in ("ablation", "steering"):
        for arm in results["sections"][section]["arms"]:
            row = {"section": section, **{key: arm[key] for key in ("kind", "label", "latent", "value", "dose")}}
            row |= {f"{part}_{key}": value for part in ("test", "control") for key, value in arm[part].items()}
            rows.append(row)
    return pd.DataFrame(rows)


def _facts(results: dict[str, Any]) -> dict[str, Any]:
    sections = results["sections"]
    ablation, steering = sections["ablation"], sections["steering"]
    arms = {kind: [arm for arm in ablation["arms"] if arm["kind"] == kind] for kind in ("target", "reconstruction")}
    targets = [arm for arm in steering["arms"] if arm["kind"] == "target"]
    primary = next(arm for arm in targets if arm["dose"] == steering["primary_dose"])
    outcomes = {arm["latent"]: arm["test"] for arm in [*steering["arms"], primary] if _is_runner_up(arm, primary)}
    return {
        "config": results["config"],
        "origin": results["provenance"],
        "titles": {section.name: (section.letter, section.title) for section in SECTIONS},
        "quality": QUALITY,
        "targets": targets,
        "primary": primary,
        "outcomes": outcomes,
        "baselines": [arm for arm in steering["arms"] if arm["kind"] in BASELINES],
        "ablated": arms["target"][0],
        "spliced": arms["reconstruction"][0],
        "ablation_table": _summaries(ablation["arms"]),
        "steering_table": _summaries(steering["arms"]),
        "few_pairs": FEW_PAIRS,
        "commands": commands(results),
        **sections,
    }


def _is_runner_up(arm: dict[str, Any], primary: dict[str, Any]) -> bool:
    return arm["kind"] == "candidate" or arm is primary


def commands(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(what it shows, command): how to see the same texts, in the precision and on the device of the study."""
    config, origin, sections = results["config"], results["provenance"], results["sections"]
    steering, target = sections["steering"], sections["target"]["latent"]
    arm = next(a for a in steering["arms"] if a["kind"] == "target" and a["dose"] == steering["primary_dose"])
    prompt, same = steering["alone"]["prompt"], steering["alone"]["same"]
    but = (
        "" if same else f" (in {origin['dtype']} rounding depends on the batch: by itself its text comes out otherwise)"
    )
    on = ["--model", config["model"], "--dtype", origin["dtype"], "--device", origin["device"]]
    steer = ["monosem", "steer", config["dictionary"], str(target)]
    more = ["--max-new-tokens", str(config["max_new_tokens"]), *on]
    value = repr(float(arm["value"]))
    runner_up = next((latent for latent in sections["candidates"]["order"] if latent != target), None)
    made = [
        (f"an example of section D again{but}", [*steer, value, *more, "--", prompt]),
        ("the same opening with the latent ablated", [*steer, "0", *more, "--", prompt]),
        ("what else is known about the latent", ["monosem", "latents", "show", config["dictionary"], str(target)]),
    ]
    if runner_up is not None:
        study = ["monosem", "study", "config.yaml", "--latent", str(runner_up), "--out", "."]
        made.append(("in the folder of the report: the runner-up studied as well, without a new search", study))
    return [(what, shlex.join(command)) for what, command in made]


def _summaries(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a summary table: every arm but the random ones, which are put together as mean and range. Random latents
    that were continued and those that were not stand in rows of their own, so that a row has one n."""
    rows: list[dict[str, Any]] = [
        {"label": arm["label"], "kind": arm["kind"], "dose": arm["dose"], "value": arm["value"], "latents": 1}
        | {part: {key: (arm[part].get(key), None, None) for key in SHOWN} for part in ("test", "control")}
        | {"intervals": {part: _interval(arm[part]) for part in ("test", "control")}}
        | {"n": {part: arm[part]["n"] for part in ("test", "control")}}
        | {"changed": {part: arm[part]["changed"] for part in ("test", "control")}}
        for arm in arms
        if arm["kind"] != "random"
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for arm in arms:
        if arm["kind"] == "random":
            plain = None if arm["dose"] is not None else arm["value"]
            groups.setdefault((arm["dose"], plain, bool(arm["continued"])), []).append(arm)
    for (dose, value, continued), group in groups.items():
        to = f"{value:g}" if dose is None else "0" if dose == 0 else f"{dose:g} × own maximum"
        also = "" if continued or dose == 0 else ", next token alone"
        rows.append(
            {
                "label": f"{len(group)} random latent{'s' if len(group) > 1 else ''} to {to}{also}",
                "kind": "random",
                "dose": dose,
                "value": value,
                "latents": len(group),
            }
            | {part: {key: _spread(group, part, key) for key in SHOWN} for part in ("test", "control")}
            | {"intervals": {}}
            | {"n": {part: group[0][part]["n"] for part in ("test", "control")}}
            | {"changed": {part: sum(arm[part]["changed"] for arm in group) for part in ("test", "control")}}
        )
    return sorted(rows, key=lambda row: (row["dose"] is None, row["dose"] or 0))


SHOWN = ("changed_rate", "kl", "concept_shift", "edited_perplexity")
Triple = tuple[float | None, float | None, float | None]


def _spread(arms: list[dict[str, Any]], part: str, key: str) -> Triple:
    values = [arm[part][key] for arm in arms if arm[part].get(key) is not None]
    return (sum(values) / len(values), min(values), max(values)) if values else (None, None, None)


def _interval(summary: dict[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    names = {"changed_rate": "changed", "kl": "kl", "concept_shift": "concept", "edited_perplexity": "perplexity"}
    return {key: (summary.get(f"{name}_low"), summary.get(f"{name}_high")) for key, name in names.items()}
