"""The report of a comparison, from its results alone: `report.html` (self-contained), `report.md`, `results.json`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plots
from ..errors import require
from ..pages import number, write_report
from ..plots import Figure
from .entrants import ENTRANTS
from .verdicts import chosen_budgets

ROOM = "monosem.methods"
LOOK = {"direction": plots.BLUE, "latent": plots.ORANGE, "control": plots.GREY}
SHOWN = 3  # continuations of each method in a report
COLUMNS = "nats success of success_rate success_low success_high shift shift_low shift_high perplexity distinct_2 score"


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write the report; `results` as `results.json` holds them."""
    write_report(ROOM, "methods", results, _facts(results), figures(results), folder)


# ---------------------------------------------------------------------- tables
def detection_table(results: Mapping[str, Any]) -> pd.DataFrame:
    rows = [
        {"concept": name, **{key: value for key, value in row.items() if key != "places"}}
        for name, one in results["concepts"].items()
        for row in one["detection"]
    ]
    columns = ["concept", "method", "place", "choose_auroc", "auroc", "auroc_low", "auroc_high", "left_out"]
    return pd.DataFrame(rows, columns=columns)


def steering_table(results: Mapping[str, Any]) -> pd.DataFrame:
    rows = [
        {"concept": name, **{key: value for key, value in row.items() if key != "texts"}}
        for name, one in results["concepts"].items()
        for row in (one["steering"] or {"rows": []})["rows"]
    ]
    columns = ["concept", "method", "same_as", "budget", "site", "amount", *COLUMNS.split(), "left_out"]
    return pd.DataFrame(rows, columns=columns)


def correlation_table(results: Mapping[str, Any]) -> pd.DataFrame:
    found = results["predict_control"]
    rows = [{"concept": name, **one} for name, one in found["concepts"].items()]
    rows += [] if found["together"] is None else [{"concept": "all", **found["together"]}]
    return pd.DataFrame(rows, columns=["concept", "n", "value", "low", "high", "said"])


# ---------------------------------------------------------------------- figures
def figures(results: Mapping[str, Any]) -> dict[str, tuple[Figure, str]]:
    """name -> (figure, caption)."""
    found = {"detection": (_areas(results), "Test AUROC of each method on each concept, at the place that was chosen.")}
    if any(one["steering"] for one in results["concepts"].values()):
        found["curves"] = (
            _curves(results),
            "How far the judge's chance of the concept moves, by how much the model changes (mean KL along the fixed "
            "text of held-out openings), means over the concepts. Grey: controls. Prompting is one point.",
        )
        found["predict_control"] = (
            _points(results),
            f"Each point is a method on a concept: how well it detects, and how far it steers at a KL of "
            f"{results['config']['budget']:g} nats.",
        )
    return found


def _areas(results: Mapping[str, Any]) -> Figure:
    concepts = list(results["concepts"])
    names = [name for name in ENTRANTS if name in results["config"]["methods"]][::-1]
    table = {
        (one, row["method"]): row.get("auroc")
        for one in concepts
        for row in results["concepts"][one]["detection"]
        if not row["left_out"]
    }
    cells = [[table.get((one, name)) for one in concepts] for name in names]
    values = [[math.nan if cell is None else cell for cell in row] for row in cells]
    text = [["" if cell is None else f"{cell:.2f}" for cell in row] for row in cells]
    return plots.heatmap(values, concepts, names, text=text, unit="AUROC", diverging=False, limits=(0.4, 1.0))


def _curves(results: Mapping[str, Any]) -> Figure:
    """Means over concepts of KL and shift at each budget; the three best directions in colour, the others faint."""
    go = require("plotly.graph_objects", "plots")
    figure, means = go.Figure(), _means(results)
    budget = results["config"]["budget"]
    ranked = sorted(
        (name for name in means if ENTRANTS[name].kind == "direction"),
        key=lambda name: -dict(means[name]).get(budget, (0.0, -math.inf))[1],
    )
    for name in [*(name for name in means if name not in ranked), *ranked]:
        points = [point for _, point in means[name]]
        color = LOOK.get(ENTRANTS[name].kind, plots.LINES[3])
        if name in ranked:
            color = plots.LINES[(0, 4, 5)[ranked.index(name)]] if ranked.index(name) < 3 else plots.FAINT
        mode = "markers" if len(points) == 1 else "lines+markers"
        line = {"color": color, "width": 2, "dash": "dot" if name == "shuffled" else "solid"}
        figure.add_scatter(
            x=[x for x, _ in points], y=[y for _, y in points], mode=mode, name=name, line=line, marker={"color": color}
        )
    figure.update_xaxes(type="log")
    return plots.style(figure, "mean KL (nats a token)", "shift of the judge's chance", height=460)


def _means(results: Mapping[str, Any]) -> dict[str, list[tuple[float | None, tuple[float, float]]]]:
    """method -> (budget, mean KL and mean shift over concepts), for methods that every concept has."""
    held: dict[str, dict[float | None, list[tuple[float, float]]]] = {}
    concepts = [one["steering"]["rows"] for one in results["concepts"].values() if one["steering"]]
    for rows in concepts:
        for row in rows:
            if row["method"] and not row["left_out"]:
                point = (row["nats"], row["shift"])
                held.setdefault(row["method"], {}).setdefault(row["budget"], []).append(point)
    return {
        name: [(budget, tuple(sum(side) / len(side) for side in zip(*points))) for budget, points in some.items()]  # type: ignore[misc]
        for name, some in held.items()
    }


def _points(results: Mapping[str, Any]) -> Figure:
    go = require("plotly.graph_objects", "plots")
    figure = go.Figure()
    for place, (concept, points) in enumerate(results["predict_control"]["points"].items()):
        marker = {
            "size": 8,
            "color": plots.LINES[place % len(plots.LINES)],
            "symbol": ("circle", "diamond")[place // 6 % 2],
        }
        figure.add_scatter(
            x=[one[1] for one in points],
            y=[one[2] for one in points],
            text=[one[0] for one in points],
            mode="markers",
            name=concept,
            marker=marker,
        )
    return plots.style(figure, "test AUROC", "shift of the judge's chance", height=420)


# ---------------------------------------------------------------------- what the templates show
def _facts(results: Mapping[str, Any]) -> dict[str, Any]:
    config, concepts = results["config"], results["concepts"]
    names = list(concepts)
    what = f"{len(names)} concepts" if len(names) > 1 else concepts[names[0]]["title"]
    return {
        "headline": f"Methods compared on {what}, {results['origin']['model']}",
        "names": names,
        "summary": [_summary(row) for row in results["summary"]],
        "budget": f"{config['budget']:g}",
        "correlations": [_correlation(row) for row in _records(correlation_table(results))],
        "sections": [_section(name, one, config) for name, one in concepts.items()],
        "origin": results["origin"],
        "settings": config,
        "entrants": {name: one.about for name, one in ENTRANTS.items() if name in config["methods"]},
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _summary(row: Mapping[str, Any]) -> dict[str, str]:
    over = {name: written(row, name) if name in row else "–" for name in ("auroc_over", "score_over")}
    cells = {name: written(row, name) for name in ("auroc", "shift", "score")} | over
    return {"method": row["method"], "about": row["about"], "concepts": str(row["auroc_concepts"]), **cells}


def _correlation(row: Mapping[str, Any]) -> dict[str, str]:
    cell = f"{number(row['value'], 2)} [{number(row['low'], 2)}, {number(row['high'], 2)}]"
    return {"concept": row["concept"], "n": str(row["n"]), "value": cell, "said": row["said"]}


def written(row: Mapping[str, Any], name: str) -> str:
    """`0.81 [0.79, 0.83]`; without the brackets where there is no interval."""
    value, low, high = (row.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    bounds = "" if low is None or math.isnan(low) else f" [{number(low, 2)}, {number(high, 2)}]"
    return f"{number(value, 2)}{bounds}"


def _section(name: str, one: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    steering = one["steering"]
    rows = [] if steering is None else steering["rows"]
    known = [row for row in rows if row["method"] and not row["left_out"]]
    at = {row["method"]: row for row in known if row["budget"] in (config["budget"], None)}
    best = chosen_budgets(rows)
    table = []
    for row in one["detection"]:
        method = row["method"]
        moved, chosen = at.get(method), best.get(method)
        cells = {
            "method": method,
            "place": row.get("place") or "",
            "auroc": "–" if row["left_out"] else written(row, "auroc"),
        }
        cells |= dict.fromkeys(("nats", "success", "shift", "perplexity", "score"), "–")
        if moved is not None:
            cells |= {"nats": number(moved["nats"], 2), "success": f"{moved['success']} of {moved['of']}"}
            cells |= {"shift": written(moved, "shift"), "perplexity": number(moved["perplexity"], 1)}
        if chosen is not None:
            strength = "" if chosen["budget"] is None else f" at {chosen['budget']:g}"
            cells |= {"score": f"{number(chosen['score'], 2)}{strength}"}
        table.append(cells)
    left_out = {row["method"]: row["left_out"] for row in [*one["detection"], *rows] if row["left_out"]}
    plain = next((row for row in rows if row["method"] == ""), None)
    facts = {} if steering is None else steering["facts"]
    return {
        "name": name,
        "title": one["title"],
        "source": one["source"],
        "texts": one["texts"],
        "rows": table,
        "left_out": left_out,
        "plain": None if plain is None else f"{plain['success']} of {plain['of']}",
        "plain_perplexity": "" if plain is None else number(plain["perplexity"], 1),
        "judge": None if steering is None else {key: number(value, 2) for key, value in facts["judge"].items()},
        "site": facts.get("site"),
        "seconds": number(one["processor_seconds"], 0),
        "instruction": one["instruction"],
        "question": one["question"],
        "examples": [] if plain is None else _examples(plain, at),
    }


def _examples(plain: Mapping[str, Any], at: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the methods that steer furthest write after an opening, beside the unedited model and a control."""
    order = sorted(
        (name for name in at if ENTRANTS[name].kind != "control" and not at[name]["same_as"]),
        key=lambda n: -at[n]["shift"],
    )
    chosen = [("unedited", plain), *((name, at[name]) for name in order[:3])]
    chosen += [(name, at[name]) for name in ("random",) if name in at]
    return [
        {"opening": opening, "texts": [(name, row["texts"][i][1]) for name, row in chosen]}
        for i, (opening, _) in enumerate(plain["texts"][:SHOWN])
    ]
