"""The figures of a report, from its results alone. One quiet style; what a figure shows is said in its caption."""

from dataclasses import dataclass
from typing import Any

from ..errors import require
from ..plots import BLUE, FAINT, GREY, GRID, ORANGE, Figure, style

TARGET, CONTROL, RANDOM = BLUE, ORANGE, GREY


@dataclass(frozen=True)
class Drawing:
    name: str
    figure: Figure
    caption: str


def draw(results: dict[str, Any]) -> dict[str, Drawing]:
    """Every figure of the report by name."""
    sections = results["sections"]
    drawings = [
        search(sections["candidates"], sections["target"]["latent"]),
        held_out(sections["target"]["held_out"]),
        ablation(sections["ablation"]),
        *(dose_curve(sections, name) for name in CURVES),
    ]
    return {drawing.name: drawing for drawing in drawings}


def search(candidates: dict[str, Any], target: int) -> Drawing:
    """Mean difference against AUROC of all latents, the candidates and the target marked."""
    go = require("plotly.graph_objects", "plots")
    every = candidates["all"]
    known = {row["latent"]: "fires on " + ", ".join(row["fires_on"][:3]) for row in candidates["candidates"]}
    groups = [
        ("all latents", FAINT, 5, "circle", lambda i: i not in known and i != target),
        ("candidates", CONTROL, 9, "circle", lambda i: i in known and i != target),
        ("target", TARGET, 16, "star", lambda i: i == target),
    ]
    figure = go.Figure()
    for name, colour, size, symbol, belongs in groups:
        rows = [k for k, latent in enumerate(every["latent"]) if belongs(latent)]
        figure.add_scatter(
            x=[every["difference"][k] for k in rows],
            y=[every["auroc"][k] for k in rows],
            text=[f"latent {every['latent'][k]} {known.get(every['latent'][k], '')}" for k in rows],
            hovertemplate="%{text}<br>difference %{x:.2f}, AUROC %{y:.2f}<extra></extra>",
            mode="markers",
            name=name,
            marker={"color": colour, "size": size, "symbol": symbol},
        )
    style(figure, "mean difference, positive − negative (activation)", "AUROC on the search half")
    figure.update_yaxes(range=[-0.04, 1.04])
    caption = (
        "Each dot is a latent that fired on the search half. A useful candidate lies to the right (large difference) "
        "and at the top (it separates nearly every pair of prompts). Far right but lower: strong, but on both sides."
    )
    return Drawing("search", figure, caption)


def held_out(held: dict[str, Any]) -> Drawing:
    """The target's highest activation on each held-out prompt, by side."""
    go = require("plotly.graph_objects", "plots")
    figure = go.Figure()
    for side, colour in (("positive", TARGET), ("negative", CONTROL)):
        figure.add_box(
            x=held[side],
            name=side,
            text=held["prompts"][side],
            hovertemplate="%{text}<br>%{x:.2f}<extra></extra>",
            boxpoints="all",
            jitter=0.6,
            pointpos=0,
            fillcolor="rgba(0,0,0,0)",
            line={"color": GRID},
            marker={"color": colour, "size": 8},
        )
    style(figure, "highest activation of the target latent on the prompt", "")
    figure.update_layout(showlegend=False)
    caption = (
        f"{held['pairs']} pairs that neither the search nor the choice saw. AUROC {held['auroc']:.2f} "
        f"[{held['auroc_low']:.2f}, {held['auroc_high']:.2f}]: the share of (positive, "
        "negative) pairs in which the positive prompt has the higher activation."
    )
    return Drawing("held_out", figure, caption)


def ablation(section: dict[str, Any]) -> Drawing:
    """KL of every arm of the ablation, on the test prompts on which the target is active and on control prompts."""
    go = require("plotly.graph_objects", "plots")
    looks = {
        "nothing": ("no edit (rounding)", FAINT, 10, "x"),
        "along": ("as much along random directions", RANDOM, 6, "line-ns-open"),
        "random": ("random latents to 0", RANDOM, 8, "circle"),
        "reconstruction": ("reconstruct only", CONTROL, 12, "diamond"),
        "several": ("several latents to 0", TARGET, 12, "star-open"),
        "target": ("target to 0", TARGET, 16, "star"),
    }
    active = [row for row, value in enumerate(section["active"]["test"]) if value != 0]
    every = list(range(len(section["active"]["control"])))
    parts = {
        "control": (f"{len(every)} control prompts", every),
        "test": (f"{len(active)} test prompts on which it is active", active),
    }
    figure = go.Figure()
    for kind, (name, colour, size, symbol) in looks.items():
        points = [
            (sum(arm["kls"][part][row] for row in rows) / len(rows), label, arm["label"])
            for part, (label, rows) in parts.items()
            for arm in section["arms"]
            if arm["kind"] == kind and rows
        ]
        if kind == "along":
            where, named = section["where_active"]["along_kls"], section["directions"]
            points = [(one, parts["test"][0], f"decoder row of {latent}") for one, latent in zip(where, named)]
        figure.add_scatter(
            x=[max(kl, 1e-6) for kl, _, _ in points],
            y=[part for _, part, _ in points],
            text=[label for _, _, label in points],
            hovertemplate="%{text}<br>KL %{x:.2g} nats<extra></extra>",
            mode="markers",
            name=name,
            marker={"color": colour, "size": size, "symbol": symbol},
        )
    style(figure, "mean KL at the next token (nats, log scale)", "", height=260)
    figure.update_xaxes(type="log", dtick=1, exponentformat="power")
    caption = (
        "A latent that matters for the concept lies right of the random latents on test prompts and among them on "
        "control prompts. Strokes: as much as the target's ablation takes away, taken away along the decoder rows of "
        "random latents. Reconstruct only is the price of the dictionary's own error. No edit is the model run once "
        "more in another batch: what lies at or left of it is rounding. No effect at all is drawn at 0.000001."
    )
    return Drawing("ablation", figure, caption)


# name -> (axis title, key of the arm's summary, key of its interval, what to see)
CURVES = {
    "kl": ("mean KL at the next token (nats)", "kl", "kl", "How far predictions move."),
    "changed": (
        "next tokens changed (share)",
        "changed_rate",
        "changed",
        "How often the most probable next token is another one.",
    ),
    "concept": (
        "shift of the concept score",
        "concept_shift",
        "concept",
        "Towards the concept (up), 1 being the positive prompts.",
    ),
    "perplexity": (
        "perplexity of the continuation",
        "edited_perplexity",
        "perplexity",
        "What the unedited model thinks of the text: a steep rise means that it falls apart. Dotted: no edit.",
    ),
}


def dose_curve(sections: dict[str, dict[str, Any]], name: str) -> Drawing:
    """One measure over the dose, 0 being the ablation: target and random latents, on test and on control prompts."""
    go = require("plotly.graph_objects", "plots")
    axis, key, interval, see = CURVES[name]
    arms = [*sections["ablation"]["arms"], *sections["steering"]["arms"]]
    figure, most = go.Figure(), 0
    for kind, part, colour, symbol in (
        ("target", "test", TARGET, "circle"),
        ("target", "control", CONTROL, "circle"),
        ("random", "test", RANDOM, "circle"),
        ("random", "control", RANDOM, "circle-open"),
    ):
        points = _over_doses(arms, kind, part, key, interval)
        if not points:
            continue
        most = max([most, *(n for *_, n in points)])
        figure.add_scatter(
            x=[dose for dose, *_ in points],
            y=[mean for _, mean, *_ in points],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - mean for _, mean, _, high, _ in points],
                "arrayminus": [mean - low for _, mean, low, _, _ in points],
                "thickness": 1,
                "width": 3,
            },
            mode="lines+markers",
            name=f"{kind}, {part} prompts",
            line={"color": colour, "dash": "dot" if kind == "random" else "solid"},
            marker={"symbol": symbol},
            customdata=[n for *_, n in points],
            hovertemplate="dose %{x:g}: %{y:.3g} (%{customdata} latent(s))<extra></extra>",
        )
    style(figure, "dose (× the latent's own maximum; 0: ablated)", axis)
    figure.update_xaxes(rangemode="tozero")
    if name == "perplexity":
        figure.update_yaxes(type="log")
        baseline = next(arm for arm in arms if arm["kind"] == "target")["test"]["baseline_perplexity"]
        if baseline is not None:
            figure.add_hline(y=baseline, line={"dash": "dot", "color": TARGET, "width": 1})
    bars = f"Bars: the target's 95 % interval over prompts; the range over the random latents, up to {most} of them."
    return Drawing(f"dose_{name}", figure, f"{see} {bars}")


def _over_doses(
    arms: list[dict[str, Any]], kind: str, part: str, key: str, interval: str
) -> list[tuple[float, float, float, float, int]]:
    """(dose, mean, lower end, upper end, latents) of the arms of a kind at each dose.

    The ends are of the 95 % interval of a single arm of the target, and the range over random latents.
    """
    points = []
    for dose in sorted({arm["dose"] for arm in arms if arm["dose"] is not None}):
        found = [arm[part] for arm in arms if arm["kind"] == kind and arm["dose"] == dose]
        known = [summary for summary in found if summary.get(key) is not None]
        if not known:
            continue
        values = [summary[key] for summary in known]
        ends = (min(values), max(values))
        if kind == "target":
            low, high = known[0].get(f"{interval}_low"), known[0].get(f"{interval}_high")
            ends = (low, high) if low is not None and high is not None else ends
        points.append((dose, sum(values) / len(values), *ends, len(known)))
    return points
