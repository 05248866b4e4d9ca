"""The report of benchmarks, from their results alone: `report.html` (self-contained), `report.md`, `results.json`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plots
from ..errors import require
from ..pages import number, write_report
from ..plots import Figure
from ..statistics import Interval
from .rows import BENCHMARKS
from .task import ALL, DICTIONARY, RANDOM, Scores, arms_of, compared, look_of

ROOM = "monosem.benchmarks"
ENDS = ("value", "low", "high")
TIMES = ("seconds", "processor_seconds")
LEAST_SPAN = 0.05  # of the y axis of a Pareto figure
FAR = 4  # between the largest and the smallest L0: from there on its x axis is logarithmic
PARETO = {"fve": "share of variance explained", "ce_recovered": "share of the loss recovered"}


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write the report; `results` as `results.json` holds them."""
    write_report(ROOM, "benchmarks", results, _facts(results), figures(results), folder)


def scores_of(results: Mapping[str, Any]) -> dict[str, dict[str, Scores]]:
    """dictionary -> task -> scores."""
    return {
        called: {name: Scores.from_dict(dict(one)) for name, one in tasks.items()}
        for called, tasks in results["scores"].items()
    }


def headlines(results: Mapping[str, Any]) -> pd.DataFrame:
    """The main number of each task: dictionary, task, measure, n, arm, value, low, high."""
    rows = [
        (called, name, scores.measure, scores.n, arm, *interval)
        for called, tasks in scores_of(results).items()
        for name, scores in tasks.items()
        for arm, interval in scores.headline.items()
    ]
    columns = ["dictionary", "task", "measure", "n", "arm", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).astype({"n": float})


def figures(results: Mapping[str, Any]) -> dict[str, tuple[Figure, str]]:
    """name -> (figure, caption); a task that could measure nothing has none."""
    found, by_task = {}, _by_task(results)
    if "core" in by_task:
        for measure, words in PARETO.items():
            caption = (
                f"Each point is a dictionary: active latents a token against the {words}, with 95 % intervals. Up and "
                "to the left is better; a line joins dictionaries of one site that no other beats in both (what is "
                "rebuilt at other sites is another task). Grey: random dictionaries; a "
                "triangle is one that lies lower (its number is in the table)."
            )
            found[f"pareto_{measure}"] = (pareto(by_task["core"], measure, words), caption)
    for name, tasks in by_task.items():
        if name != "core" and not all(math.isnan(one.value) for s in tasks.values() for one in s.headline.values()):
            first = next(iter(tasks.values()))
            found[name] = (compared(tasks), f"{first.measure}, mean over the data sets, with 95 % intervals.")
    return found


def pareto(tasks: Mapping[str, Scores], measure: str, words: str) -> Figure:
    """L0 against a measure of `core`: a point a dictionary, one trace for the random ones.

    Raw dimensions are left out: they rebuild an activation with all it has. A random dictionary far below the others
    stands at the lower edge as a triangle, so that they are not squeezed together.
    """
    go = require("plotly.graph_objects", "plots")
    figure, points = go.Figure(), {}
    for called, scores in tasks.items():
        table: list[dict[Any, Any]] = scores.table[scores.table["data"] == ALL].to_dict("records")
        for row in table:
            points[called, row["arm"], row["measure"]] = row
    ends = [points[called, DICTIONARY, measure][end] for called in tasks for end in ENDS]
    known = [end for end in ends if math.isfinite(end)] or [0.0]
    span = max(max(known) - min(known), LEAST_SPAN)
    edge = min(known) - span / 2
    for place, (names, arm) in enumerate([*(([called], DICTIONARY) for called in tasks), ([*tasks], RANDOM)]):
        x, y = ([points[called, arm, what] for called in names] for what in ("l0", measure))
        below = [one["value"] < edge for one in y]
        bars = {"array": [one["high"] - one["value"] for one in y], "thickness": 1}
        bars["arrayminus"] = [one["value"] - one["low"] for one in y]
        random = plots.GREY, ["triangle-down" if low else "circle-open" for low in below]
        color, symbol = random if arm == RANDOM else look_of(place)
        figure.add_scatter(
            x=[one["value"] for one in x],
            y=[edge if low else one["value"] for one, low in zip(y, below)],
            error_y=None if any(below) else bars,
            marker={"color": color, "size": 9, "symbol": symbol},
            hovertext=[f"{called}: {number(one['value'])}" for called, one in zip(names, y)],
            name=names[0] if arm == DICTIONARY else arm,
            mode="markers",
        )
    of_site: dict[str, list[str]] = {}  # what is rebuilt elsewhere is another task
    for called, scores in tasks.items():
        of_site.setdefault(f"{scores.config.get('site', called)} {scores.config.get('site_out', '')}", []).append(
            called
        )
    for names in of_site.values():
        best = frontier(
            [tuple(points[called, DICTIONARY, what]["value"] for what in ("l0", measure)) for called in names]
        )
        if len(names) > 1:
            line = {"color": plots.FAINT, "width": 1}
            figure.add_scatter(
                x=[x for x, _ in best], y=[y for _, y in best], mode="lines", line=line, showlegend=False
            )
    counts = [points[called, arm, "l0"]["value"] for called in tasks for arm in (DICTIONARY, RANDOM)]
    if max(counts) > FAR * min(counts):
        ticks = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(tick) for tick in ticks])
    figure.update_yaxes(range=[edge - span / 10, max(known) + span / 5])
    return plots.style(figure, "active latents a token (L0)", words, height=420)


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both: fewer latents, and a higher share; in the order of their latents."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def _by_task(results: Mapping[str, Any]) -> dict[str, dict[str, Scores]]:
    """task -> dictionary -> scores."""
    found: dict[str, dict[str, Scores]] = {}
    for called, tasks in scores_of(results).items():
        for name, scores in tasks.items():
            found.setdefault(name, {})[called] = scores
    return found


def _facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """What both templates show."""
    by_task = _by_task(results)
    return {
        "sections": [_section(name, tasks) for name, tasks in by_task.items()],
        "names": list(results["scores"]),
        "overview": [_overview(called, by_task) for called in results["scores"]],
        "times": [_times(called, by_task) for called in results["scores"]],
        "origin": results["origin"],
        "left_out": results["left_out"],
        "headline": _headline(results),
    }


def _section(name: str, tasks: Mapping[str, Scores]) -> dict[str, Any]:
    first, task = next(iter(tasks.values())), BENCHMARKS[name]
    common = [note for note in first.notes if all(note in scores.notes for scores in tasks.values())]
    tables = [{"main": _main(first), "rows": [_row(called, scores.headline) for called, scores in tasks.items()]}]
    for measure, words in task.beside.items():
        others = {called: replace(scores, measure=measure) for called, scores in tasks.items()}
        rows = [_row(called, scores.headline) for called, scores in others.items()]
        tables.append({"main": f"{measure}: {words}", "rows": rows})
    return {
        "name": name,
        "title": task.title,
        "meaning": task.meaning,
        "measure": first.measure,
        "baselines": [arm for arm in arms_of(tasks) if arm != DICTIONARY],
        "tables": tables,
        "details": [_details(called, scores, common) for called, scores in tasks.items()],
        "notes": common,
        "interval": first.config.get("interval", "95 %"),
        "settings": _settings({called: scores.config for called, scores in tasks.items()}),
    }


def _main(scores: Scores) -> str:
    return scores.measure if scores.n is None else f"{scores.measure} with {scores.n} latents"


def _row(called: str, headline: Mapping[str, Interval]) -> dict[str, Any]:
    return {"name": called} | {arm: written(*interval) for arm, interval in headline.items()}


def _overview(called: str, by_task: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
    """The main number of each task, and whether its interval meets no baseline's."""
    cells = []
    for tasks in by_task.values():
        headline = tasks[called].headline if called in tasks else {}
        own = headline.get(DICTIONARY)
        others = [interval for arm, interval in headline.items() if arm != DICTIONARY]
        apart = own is not None and all(own.low > one.high or own.high < one.low for one in others)
        cells.append({"value": "–" if own is None else number(own.value), "apart": apart})
    return {"name": called, "cells": cells}


def _times(called: str, by_task: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
    """Seconds of each task: wall-clock and, in brackets, of the processor."""
    cells = []
    for tasks in by_task.values():
        wall, processor = (tasks[called].config.get(kind) if called in tasks else None for kind in TIMES)
        cells.append("–" if wall is None else f"{wall:.0f} ({processor:.0f})")
    return {"name": called, "cells": cells}


def _settings(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each setting; where dictionaries have different ones, whose it is."""
    found: dict[str, dict[str, list[str]]] = {}
    for called, config in configs.items():
        for name, value in config.items():
            if name not in ("interval", *TIMES):
                found.setdefault(name, {}).setdefault(str(value), []).append(called)
    return {
        name: next(iter(values))
        if len(values) == 1
        else "; ".join(f"{v} ({', '.join(of)})" for v, of in values.items())
        for name, values in found.items()
    }


def _details(called: str, scores: Scores, common: Sequence[str]) -> dict[str, Any]:
    """Every number: a row for each measure, data set and n, a column an arm; and the notes that not all have."""
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    table: list[dict[Any, Any]] = scores.table.to_dict("records")
    for row in table:
        n = "" if math.isnan(row["n"]) else f"{row['n']:.0f}"
        found.setdefault((row["measure"], row["data"], n), {})[row["arm"]] = written(*(row[k] for k in ENDS))
    rows = [{"measure": measure, "data": data, "n": n, "cells": cells} for (measure, data, n), cells in found.items()]
    listed = list(dict.fromkeys(row["arm"] for row in table))
    notes = [note for note in scores.notes if note not in common]
    return {"name": called, "arms": listed, "rows": rows, "notes": notes}


def _headline(results: Mapping[str, Any]) -> str:
    names = list(results["scores"])
    what = names[0] if len(names) == 1 else f"{len(names)} dictionaries"
    return f"{what} of {results['origin']['model']}, beside random dictionaries and raw dimensions"


def written(value: float, low: float, high: float) -> str:
    """`0.812 [0.790, 0.830]`; without the brackets where there is no interval."""
    bounds = "" if math.isnan(low) else f" [{number(low)}, {number(high)}]"
    return f"{number(value)}{bounds}"
