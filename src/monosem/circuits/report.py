"""The report of a circuit, from its results alone: `report.html` (self-contained), `report.md`, `results.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import require
from ..pages import number, percent, write_report
from ..plots import BLUE, FAINT, ORANGE, Figure, style
from .curves import curve_figure
from .pictures import SHOWN, drawn

ROOM = "monosem.circuits"
LISTED = 25  # edges and nodes in the tables
SAID = {
    "sufficiency": "what the circuit alone reaches, as a share of clean minus corrupted",
    "necessity": "what is lost when the circuit alone is corrupted, as the same share",
    "PN": "of the pairs that are right clean: wrong once the circuit is corrupted",
    "PS": "of the pairs that are wrong corrupted: right once the circuit is clean",
    "PNS, lower bound": "needed and enough, at least",
    "PNS, upper bound": "needed and enough, at most",
    "incompleteness, mean over sets": "how differently circuit and model break without some nodes; 0 is complete",
    "effect left to the model, mean over sets": "what the model keeps without them; near 0, completeness says nothing",
    "incompleteness, largest": "the same, for the set with the largest difference",
    "smallest minimality of a node": "how little the least needed node does, at its best",
}


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write the report; `results` as `results.json` holds them."""
    write_report(ROOM, "circuit", results, _facts(results), figures(results), folder)


def headline(results: Mapping[str, Any]) -> str:
    """One sentence: how large the circuit is, and what it does."""
    edges, share = len(results["edges"]), len(results["edges"]) / results["graph"]["edges"]
    faithful = results["circuit"]["score"]
    return (
        f"{edges:,} edges ({100 * share:.2f} % of {results['model']}) give {number(faithful, 2)} of the effect on "
        f"{results['task']}"
    )


def figures(results: Mapping[str, Any]) -> dict[str, tuple[Figure, str]]:
    """name -> (figure, caption)."""
    table = pd.DataFrame(results["edges"])
    shown = min(SHOWN, len(table))
    found = {
        "circuit": (
            drawn(table.head(SHOWN), f"{shown} of {len(table):,} edges, by size of score"),
            "Nodes by layer, input below and logits above. Lines are edges, coloured by what reads them and wide where "
            "the score is large. kv stands for the heads that share a key and value.",
        ),
        "curve": (_curve(results), "Faithfulness of circuits of growing size, on pairs that gave no scores."),
    }
    if results["check"]:
        found["check"] = (_check(results), "Scores beside what the metric falls by when the edge alone is patched.")
    return found


def _curve(results: Mapping[str, Any]) -> Figure:
    return curve_figure(pd.DataFrame(results["curve"]["rows"]), results["metric"])


def _check(results: Mapping[str, Any]) -> Figure:
    go = require("plotly.graph_objects", "plots")
    rows = pd.DataFrame(results["check"]["edges"])
    ends = [float(rows[["exact", "score"]].min().min()), float(rows[["exact", "score"]].max().max())]
    figure = go.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": FAINT}, name="equal", hoverinfo="skip")
    for drawn_at_random, colour, name in ((False, BLUE, "largest scores"), (True, ORANGE, "drawn at random")):
        part = rows[rows["drawn"] == drawn_at_random]
        figure.add_scatter(
            x=part["exact"].tolist(), y=part["score"].tolist(), text=part["edge"].tolist(), mode="markers", name=name,
            marker={"color": colour, "size": 7}, hovertemplate="%{text}<br>exact %{x:.4f}, score %{y:.4f}",
        )  # fmt: skip
    return style(figure, f"exact fall of {results['metric']}", "score")


def _run(row: Mapping[str, Any]) -> dict[str, str]:
    """How a circuit runs; `by` is how its edges were chosen."""
    numbers = ("value", "clean", "corrupted", "kl", "kl_of_nothing")
    return {"by": row["circuit"], "edges": f"{row['edges']:,}", "faithfulness": number(row["score"])} | {
        name: number(row[name]) for name in numbers
    }


def _facts(results: Mapping[str, Any]) -> dict[str, Any]:
    checked = {row["edge"]: row["exact"] for row in (results["check"] or {"edges": []})["edges"]}
    minimal = {row["node"]: row["share"] for row in results["evidence"]["minimality"]}
    edges = [
        {"edge": row["edge"], "score": number(row["score"]), "exact": number(checked.get(row["edge"]))}
        for row in results["edges"][:LISTED]
    ]
    curve = [
        {
            "chosen_by": row["chosen_by"], "share": f"{100 * row['share']:.1f} %", "edges": f"{row['edges']:,}",
            "faithfulness": number(row["faithfulness"]), "kl": number(row["kl"]),
        }
        for row in results["curve"]["rows"]
    ]  # fmt: skip
    numbers = [
        {"name": row["number"], "value": number(row["value"]), "about": SAID.get(row["number"], ""),
         "between": "" if row.get("low") is None else f"[{number(row['low'])}, {number(row['high'])}]"}
        for row in results["evidence"]["numbers"]
    ]  # fmt: skip
    summary = [
        {"edges": row["edges"], "n": row["n"], "pearson": number(row["pearson"]), "spearman": number(row["spearman"]),
         "slope": number(row["slope"]), "same_sign": percent(row["same_sign"])}
        for row in (results["check"] or {"summary": []})["summary"]
    ]  # fmt: skip
    return {
        "headline": headline(results), "model": results["model"], "task": results["task"], "metric": results["metric"],
        "example": results["example"], "notes": results["notes"], "edges": edges,
        "n_edges": f"{len(results['edges']):,}",
        "nodes": [{"node": node, "share": number(share)} for node, share in list(minimal.items())[:LISTED]],
        "curve": curve, "cpr": number(results["curve"]["cpr"]), "cmd": number(results["curve"]["cmd"]),
        "numbers": numbers, "summary": summary, "ends": {key: number(at) for key, at in results["ends"].items()},
        "circuit": _run(results["circuit"]),
        "other_way": results["other_way"] and _run(results["other_way"]),
        "origin": {
            "task": results["task"], "pairs for the scores and their exact check": results["pairs"]["scores"],
            "pairs for everything else": results["pairs"]["judged"],
            "graph": f"{results['graph']['nodes']:,} nodes, {results['graph']['edges']:,} edges",
            "monosem": results["version"], **results["settings"],
        },
    }  # fmt: skip
