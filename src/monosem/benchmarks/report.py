"""The report of benchmarks, from their results alone: `report.html` (self-contained), `report.md`, `results.json`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plots
from ..errors import require
from ..pages import number, write_report
from ..plots import Figure
from .rows import BENCHMARKS
from .task import ALL, COLORS, DICTIONARY, RANDOM, RAW, Scores, arms_of, compared

ROOM = "monosem.benchmarks"
ENDS = ("value", "low", "high")
TIMES = ("seconds", "processor_seconds")
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
                "to the left is better; the line joins those that no other beats in both. Grey: the baselines."
            )
            found[f"pareto_{measure}"] = (pareto(by_task["core"], measure, words), caption)
    for name, tasks in by_task.items():
        if name != "core" and not all(math.isnan(one.value) for s in tasks.values() for one in s.headline.values()):
            first = next(iter(tasks.values()))
            found[name] = (compared(tasks), f"{first.measure}, mean over the data sets, with 95 % intervals.")
    return found


def pareto(tasks: Mapping[str, Scores], measure: str, words: str) -> Figure:
    """L0 against a measure of `core`: a point a dictionary, one trace for each baseline."""
    go = require("plotly.graph_objects", "plots")
    figure, points = go.Figure(), {}
    for called, scores in tasks.items():
        table: list[dict[Any, Any]] = scores.table[scores.table["data"] == ALL].to_dict("records")
        for row in table:
            points[called, row["arm"], row["measure"]] = row
    shapes = {RANDOM: "circle-open", RAW: "diamond-open"}
    traces = [([called], DICTIONARY) for called in tasks] + [([*tasks], arm) for arm in shapes]
    for place, (names, arm) in enumerate(traces):
        x, y = ([points[called, arm, what] for called in names] for what in ("l0", measure))
        bars = {"array": [one["high"] - one["value"] for one in y], "thickness": 1}
        bars["arrayminus"] = [one["value"] - one["low"] for one in y]
        color = plots.GREY if arm in shapes else COLORS[place % len(COLORS)]
        figure.add_scatter(
            x=[one["value"] for one in x],
            y=[one["value"] for one in y],
            mode="markers",
            error_y=bars,
            marker={"color": color, "size": 9, "symbol": shapes.get(arm, "circle")},
            text=names,
            name=names[0] if arm == DICTIONARY else arm,
        )
    best = frontier([tuple(points[called, DICTIONARY, what]["value"] for what in ("l0", measure)) for called in tasks])
    line = {"color": plots.FAINT, "width": 1}
    figure.add_scatter(x=[x for x, _ in best], y=[y for _, y in best], mode="lines", line=line, showlegend=False)
    ticks = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(tick) for tick in ticks])
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
    sections = []
    for name, tasks in _by_task(results).items():
        first = next(iter(tasks.values()))
        sections.append(
            {
                "name": name,
                "title": BENCHMARKS[name].title,
                "meaning": BENCHMARKS[name].meaning,
                "main": first.measure if first.n is None else f"{first.measure} with {first.n} latents",
                "baselines": [arm for arm in arms_of(tasks) if arm != DICTIONARY],
                "rows": [_row(called, scores) for called, scores in tasks.items()],
                "details": [_details(called, scores) for called, scores in tasks.items()],
                "notes": list(dict.fromkeys(note for scores in tasks.values() for note in scores.notes)),
                "interval": first.config.get("interval", "95 %"),
                "times": {
                    f"{kind.replace('_', ' ')}, {called}": scores.config.get(kind)
                    for called, scores in tasks.items()
                    for kind in TIMES
                },
                "settings": {k: v for k, v in first.config.items() if k not in ("interval", *TIMES)},
            }
        )
    return {
        "sections": sections,
        "names": list(results["scores"]),
        "origin": results["origin"],
        "left_out": results["left_out"],
        "headline": _headline(results),
    }


def _row(called: str, scores: Scores) -> dict[str, Any]:
    return {"name": called} | {arm: written(*interval) for arm, interval in scores.headline.items()}


def _details(called: str, scores: Scores) -> dict[str, Any]:
    """Every number: a row for each measure, data set and n, a column an arm."""
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    table: list[dict[Any, Any]] = scores.table.to_dict("records")
    for row in table:
        n = "" if math.isnan(row["n"]) else f"{row['n']:.0f}"
        found.setdefault((row["measure"], row["data"], n), {})[row["arm"]] = written(*(row[k] for k in ENDS))
    rows = [{"measure": measure, "data": data, "n": n, "cells": cells} for (measure, data, n), cells in found.items()]
    listed = list(dict.fromkeys(row["arm"] for row in table))
    return {"name": called, "arms": listed, "rows": rows}


def _headline(results: Mapping[str, Any]) -> str:
    names = list(results["scores"])
    what = names[0] if len(names) == 1 else f"{len(names)} dictionaries"
    return f"{what} of {results['origin']['model']}, beside random dictionaries and raw dimensions"


def written(value: float, low: float, high: float) -> str:
    """`0.812 [0.790, 0.830]`; without the brackets where there is no interval."""
    bounds = "" if math.isnan(low) else f" [{number(low)}, {number(high)}]"
    return f"{number(value)}{bounds}"
