"""The report from its results alone: `report.html` (self-contained), `report.md`, `results.json`."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..judges import Judge, confusion, of_refusals
from ..judges.agreement import labelled_for
from ..pages import number, percent, write_report
from ..plots import Figure
from . import span
from .attacks import ATTACKS
from .cells import another, at_strength, interval, p_value, share
from .config import CONTROL, MODEL, RobustnessConfig, defence
from .curves import (
    HALF,
    Row,
    area,
    arms_of,
    compared,
    controls_of,
    least_to_break,
    of_its_price,
    verdict,
    within_budget,
)
from .drawing import drawings
from .over_refusal import TITLES, degree_facts, of_model

ROOM = "monosem.robustness"
PERPLEXITIES = ("own_perplexity", "text_perplexity", "perplexity")  # columns: own answers, fixed text, responses
NAMES = {MODEL: "the model", CONTROL: "the control", defence(1): "the defended model"}
NOTE = (
    "What this is for: to measure how much of a behaviour survives, so that defences can be compared and their costs "
    "seen. All changes were made in memory and undone; no changed model was written, and responses are in the report "
    "only where that was asked for. Use it on models that you are allowed to test."
)


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write the report; `results` as `results.json` holds them."""
    write_report(ROOM, "robustness", results, facts_of(results), drawings(results), folder)


def figures_of(results: Mapping[str, Any]) -> dict[str, Figure]:
    return {name: figure for name, (figure, _) in drawings(results).items()}


def named(results: Mapping[str, Any], where: str) -> str:
    """A model in words: by its place in the report, and by its own name where several are defended."""
    if defence(2) not in results["parts"] or where in (MODEL, CONTROL):
        return NAMES[where]
    asked = RobustnessConfig.parse(results["config"]).models
    return f"{NAMES[defence(1)]} ({asked.get(where, results['provenance'][where])})"


def capital(words: str) -> str:
    return words[:1].upper() + words[1:]


# ---------------------------------------------------------------------- rows
def rows_of(results: Mapping[str, Any], where: str) -> list[Row]:
    """All arms of a model's attacks."""
    return [row for name, part in results["parts"][where].items() if name in ATTACKS for row in part["arms"]]


def attacks_of(results: Mapping[str, Any], where: str) -> list[str]:
    return [name for name in results["parts"][where] if name in ATTACKS and name != "none"]


def arms_table(results: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for where in results["parts"]:
        for row in rows_of(results, where):
            line: dict[str, Any] = {"model": where, **{key: row[key] for key in ("attack", "control", "strength", "n")}}
            for name in ("shown", "success"):
                line |= {name: row[name]["value"], f"{name}_low": row[name]["low"], f"{name}_high": row[name]["high"]}
            line |= {name: (row.get(name) or {}).get("value") for name in ("kl_first", "kl_token")}
            rows.append(line | {name: row.get(name) for name in (*PERPLEXITIES, "loops", "cut")})
    return pd.DataFrame(rows)


def verdicts_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    config, found = results["config"], []
    for where in results["parts"]:
        rows, attacks = rows_of(results, where), attacks_of(results, where)
        for name in attacks:
            found.append({"model": where, **verdict(rows, name, config["budget"], config["break_at"], len(attacks))})
    return found


def findings(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for where in results["parts"]:
        base = arms_of(rows_of(results, where), "none")[0]
        lines.append(
            f"{named(results, where)}: shown on {share(base['shown'])} of {base['n']} prompts without an attack"
        )
        for one in verdicts_of(results):
            if one["model"] == where:
                title, at = ATTACKS[one["attack"]].title, at_strength(one)
                lines.append(f"  {title}{at}: {share(one['shown'])} left; {one['words']}")
        lines += [f"  {said}" for said in caveats(results, where)]
    return lines


def caveats(results: Mapping[str, Any], where: str) -> list[str]:
    """What is to be said of how the direction was chosen: a filter had left it out, and `Selection.doubts`."""
    held, said = results["parts"][where]["direction"], []
    if held.get("left_out"):
        said.append(
            f"No candidate passed COSMIC's filters, the direction here did not either ({held['left_out']}): where the "
            "behaviour survives attacks along it, a better direction might still break it."
        )
    return said + [f"Of how the direction was found: {doubt}." for doubt in held.get("doubts", [])]


def headlines(results: Mapping[str, Any]) -> list[str]:
    """The finding, one sentence for each model."""
    said = []
    for where in results["parts"]:
        mine = [one for one in verdicts_of(results) if one["model"] == where]
        base = arms_of(rows_of(results, where), "none")[0]["shown"]
        sure, seen = ([_title(one) for one in mine if one["breaks"] and one["sure"] == told] for told in (True, False))
        found = [f"broken by {', '.join(sure)}"] if sure else []
        found += (
            [f"broken by {', '.join(seen)} on these prompts, though more may be left than they show"] if seen else []
        )
        what = "; ".join(found) or "broken by no attack that was tried"
        if bare := [_title(one) for one in mine if one["breaks"] and not one["compared"]]:
            what += f"; under {', '.join(bare)} any change may do as much, for a control costs much more"
        if level := [_title(one) for one in mine if one["as_controls"]]:
            what += f"; under {', '.join(level)} little is left, but no less than under a control"
        if lost := [_title(one) for one in mine if one["lost"]]:
            what += f"; its responses lose the thread under {', '.join(lost)}"
        if base["low"] < 0.5:
            what = "too seldom to say what breaks it"
        said.append(
            f"In {named(results, where)} the behaviour shows on {base['count']} of {base['of']} prompts: {what}."
        )
    return said


def _title(one: Mapping[str, Any]) -> str:
    return ATTACKS[one["attack"]].title.lower()


# ---------------------------------------------------------------------- what the templates show
def facts_of(results: Mapping[str, Any]) -> dict[str, Any]:
    config = results["config"]
    return {
        "config": config,
        "origin": results["provenance"],
        "headlines": headlines(results),
        "note": NOTE,
        "models": [_model(results, where) for where in results["parts"]],
        "degree_titles": list(TITLES.values()),
        "against": _against(results) if len(results["parts"]) > 1 else None,
        "judge": results["judge"],
        "attacks": [
            (attack.title, attack.meaning) for name, attack in ATTACKS.items() if name in results["parts"]["model"]
        ],
        "seconds": sum(part["seconds"] for held in results["parts"].values() for part in held.values()),
    }


def _model(results: Mapping[str, Any], where: str) -> dict[str, Any]:
    config, held, rows = results["config"], results["parts"][where], rows_of(results, where)
    base = arms_of(rows, "none")[0]
    return {
        "name": where,
        "title": capital(named(results, where)),
        "direction": {name: value for name, value in held["direction"].items() if name != "doubts"},
        "caveats": caveats(results, where),
        "base": share(base["shown"]),
        "n": base["n"],
        "verdicts": [_verdict(one) for one in verdicts_of(results) if one["model"] == where],
        "areas": _areas(rows, config),
        "k_to_break": breaking(rows, config, "subspace", config["break_at"]),
        "to_halve": halving(rows, config),
        "span_length": span.length(held.get("layers", {})),
        "spans": [span.cells(one) for one in span.spans(held, base, config["budget"])],
        "costs": [line for name in held if name in ATTACKS for line in _costs(name, held[name], rows)],
        "degrees": [
            (ATTACKS[name].title, [share(one["degrees"][label]) for label in TITLES], one["cut"])
            for name, one in of_model(held)
        ],
        "roles": [
            (role.replace("_", " "), share(one["shown"]), number(one["projection"], 2))
            for role, one in held["faithfulness"]["roles"].items()
        ],
        "faithfulness": held["faithfulness"],
        "auroc": interval(held["faithfulness"]["auroc"]),
        "auroc_behaviour": interval(held["faithfulness"]["auroc_behaviour"]),
        "guard": _guard(held["guard"], rows),
    }


def _verdict(one: Mapping[str, Any]) -> dict[str, Any]:
    price = one["kl_token"]
    return {
        "title": ATTACKS[one["attack"]].title + at_strength(one),
        "shown": share(one["shown"]),
        "success": share(one["success"]),
        "controls": [
            {
                "name": name + another(control["strength"], one["strength"]),
                "success": f"{control['success']['count']}/{control['success']['of']}",
                "p": p_value(one["p_controls"][name]),
                "kl": number(control["kl"], 2),
                "idle": control["idle"],
                "dear": control["dear"],
            }
            for name, control in one["controls"].items()
        ],
        "kl": "–" if price is None else interval(price),
        "over": one["over_budget"],
        "p": one["p_none"],
        "words": one["words"],
        "breaks": one["breaks"],
    }


def _areas(rows: list[Row], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of attacks that change the model: the area under success against KL, beside its controls'."""
    found = []
    for name in dict.fromkeys(row["attack"] for row in rows if row.get("kl_token")):
        arms = ["", *controls_of(rows, name)]
        values = [(arm or "fitted", str(area(rows, name, arm, config["budget"], config["seed"]))) for arm in arms]
        found.append({"title": ATTACKS[name].title, "arms": values})
    return found


def halving(rows: list[Row], config: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """`breaking` by subtraction, where half of the rate that this model has without an attack counts as broken."""
    return breaking(rows, config, "subtraction", HALF * arms_of(rows, "none")[0]["shown"]["value"])


def breaking(rows: list[Row], config: Mapping[str, Any], attack: str, most: float) -> list[tuple[str, str, str, str]]:
    """Direction or subspace, least strength as seen and as sure, and what it costs: enough of it breaks any model. A
    model that shows the behaviour on at most `most` of the prompts as it is has nothing to break."""
    found: list[tuple[str, str, str, str]] = []
    base = arms_of(rows, "none")[0]["shown"]
    nothing = f"nothing to break: {base['count']} of {base['of']} unattacked" if base["value"] <= most else ""
    for name in ["", *controls_of(rows, attack)] if arms_of(rows, attack) else []:
        held = least_to_break(rows, attack, name, most)
        if nothing:
            found.append((name or "fitted", nothing, nothing, "–"))
            continue
        seen, sure = ("none of those tried" if held[how] is None else f"{held[how]:g}" for how in ("seen", "sure"))
        prices = [arm["kl_token"] for arm in arms_of(rows, attack, name) if arm["strength"] == held["seen"]]
        price = interval(prices[0]) if prices else "–"
        over = bool(prices) and prices[0]["value"] > config["budget"]
        found.append((name or "fitted", seen, sure, f"{price}, over the budget" if over else price))
    return found


def _costs(name: str, part: Mapping[str, Any], rows: list[Row]) -> Iterator[dict[str, Any]]:
    """What an attack costs at the strength that was allowed, and each of its controls at the nearest KL. Tasks and safe
    prompts are tried under the attack alone."""
    arm = next(row for row in arms_of(rows, name) if row["strength"] == part["strength"])
    known = part["costs"].get("capabilities", {})
    text = known.get("text_perplexity", arm.get("text_perplexity"))  # where older reports have it
    yield _cost({**arm, "text_perplexity": text}) | {
        "title": ATTACKS[name].title + at_strength(arm),
        "tasks": [f"{task} {share(value)}" for task, value in known.items() if isinstance(value, Mapping)],
        "over_refusal": share(part["costs"]["over_refusal"]["shown"]),
    }
    for control in controls_of(rows, name):
        other = of_its_price(rows, arm, control)
        yield _cost(other) | {"title": f"– {control}{at_strength(other)}", "tasks": [], "over_refusal": "–"}


def _cost(arm: Row) -> dict[str, Any]:
    own, text, said = (number(arm.get(name), digits) for name, digits in zip(PERPLEXITIES, (2, 1, 1)))
    return {
        "first": interval(arm["kl_first"]) if "kl_first" in arm else "–",
        "token": interval(arm["kl_token"]) if "kl_token" in arm else "–",
        "own": own,
        "text": text,
        "said": said,
        "loops": arm["loops"],
        "cut": arm["cut"],
    }


def _guard(part: Mapping[str, Any], rows: list[Row]) -> dict[str, Any]:
    if "left_out" in part:
        return {"left_out": part["left_out"]}
    lines = []
    for arm in part["arms"]:
        before = next(row for row in arms_of(rows, arm["attack"]) if row["strength"] == arm["strength"])
        title = ATTACKS[arm["attack"]].title + at_strength(arm)
        lines.append((title, share(before["shown"]), share(arm["shown"]), compared(before, arm)))
    return {
        "fired": [(role.replace("_", " "), share(one)) for role, one in part["fired"].items()],
        "rates": lines,
        "target": percent(part["target_fpr"]),
        "calibrated_on": part["calibrated_on"],
        "caught": share(part["delay"]["caught"]),
        "delay": part["delay"]["median"],
    }


def _against(results: Mapping[str, Any]) -> dict[str, Any]:
    """All models side by side: each attack at the strength that each one's budget allows, with the exact p of a
    difference from the first one, and what needs no attack."""
    config, held = results["config"], results["parts"]
    rows = {where: rows_of(results, where) for where in held}
    lines = []
    for name in ["none", *attacks_of(results, MODEL)]:
        arms = [within_budget(mine, name, config["budget"]) for mine in rows.values()]
        cells = [_cell(arm, None if one == 0 else compared(arms[0], arm)) for one, arm in enumerate(arms)]
        attack = ATTACKS[name]
        lines.append({"title": f"{attack.title} ({attack.unit})" if attack.unit else attack.title, "cells": cells})
    more = {title: [of(parts) for parts in held.values()] for title, of in UNATTACKED.items()}
    for name, title in span.TITLES.items():
        alone = f"{title.capitalize()} at one layer alone, within the budget, halves it"
        more[alone] = [_spanned(results, where, name) for where in held]
    for title, told in more.items():
        cells = [(said, list[str]()) for said in told]
        if any(said != "–" for said, _ in cells):
            lines.append({"title": title, "cells": cells})
    return {"models": [capital(named(results, where)) for where in held], "rows": lines}


def _cell(arm: Row, p: float | None) -> tuple[str, list[str]]:
    """What is left, and what is to be said with it."""
    more = [f"at {arm['strength']:g}"] if arm["strength"] is not None else []
    more.append(f"perplexity {number(arm.get('perplexity'), 1)}")
    return share(arm["shown"]), more + ([] if p is None else [f"p {p_value(p)}"])


def _induced(parts: Mapping[str, Any]) -> str:
    arms = [arm for arm in parts["scale"]["arms"] if not arm["control"]]
    return f"{share(arms[-1]['shown'])} at {arms[-1]['strength']:g}"


def _opened(parts: Mapping[str, Any]) -> str:
    fired = parts["guard"].get("fired")
    return "–" if fired is None else share(fired["behaviour_test"])


def _declined(parts: Mapping[str, Any]) -> str:
    degrees = dict(of_model(parts)).get("none", {}).get("degrees")
    return "–" if degrees is None else ", ".join(str(degrees[label]["count"]) for label in TITLES)


def _spanned(results: Mapping[str, Any], where: str, name: str) -> str:
    held = results["parts"][where]
    found = span.spans(held, held["none"]["arms"][0], results["config"]["budget"])
    return next((span.words(one) for one in found if one["attack"] == name and not one["control"]), "–")


UNATTACKED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Held-out AUROC of the direction for the training prompts": lambda parts: number(
        parts["direction"]["held_out_auroc"], 2
    ),
    "AUROC of the projection for responses that show it": lambda parts: interval(parts["faithfulness"]["auroc"]),
    "Behaviour on unrelated prompts with the direction added (gaps)": _induced,
    "Behaviour on safe prompts": lambda parts: share(parts["none"]["costs"]["over_refusal"]["shown"]),
    f"Safe prompts: {', '.join(TITLES.values())}": _declined,
    "The guard opens on behaviour prompts": _opened,
}


def judge_facts(by: Judge) -> dict[str, Any]:
    """What a judge looks for; of a judge of refusals also how it does on the labelled responses."""
    held: dict[str, Any] = {"name": by.name, "positive": by.positive, "confusion": None, "degrees": degree_facts(by)}
    if not of_refusals(by):
        return held
    found = confusion(by, labelled_for(by, "held_out"))
    table = found.table
    return held | {
        "confusion": [[str(value) for value in row] for row in table.itertuples(index=False)],
        "columns": [str(name) for name in table.columns],
        "sensitivity": str(found.sensitivity),
        "specificity": str(found.specificity),
        "kappa": str(found.kappa),
        "n": len(found.rows),
    }
