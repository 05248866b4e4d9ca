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
        search(sections["candidates"]),
        held_out(sections["candidates"]),
        defence(sections["defence"]),
        *(dose_curve(sections, name) for name in CURVES),
    ]
    return {drawing.name: drawing for drawing in drawings}


def search(candidates: dict[str, Any]) -> Drawing:
    """Mean difference against AUROC of all latents, the candidates and the target marked."""
    go = require("plotly.graph_objects", "plots")
    every, target = candidates["all"], candidates["target"]
    promoted = {row["latent"]: ", ".join(row["promoted"][:3]) for row in candidates["candidates"]}
    groups = [
        ("all latents", FAINT, 5, "circle", lambda i: i not in promoted and i != target),
        ("candidates", CONTROL, 9, "circle", lambda i: i in promoted and i != target),
        ("target", TARGET, 16, "star", lambda i: i == target),
    ]
    figure = go.Figure()
    for name, colour, size, symbol, belongs in groups:
        rows = [k for k, latent in enumerate(every["latent"]) if belongs(latent)]
        figure.add_scatter(
            x=[every["difference"][k] for k in rows],
            y=[every["auroc"][k] for k in rows],
            text=[f"latent {every['latent'][k]} {promoted.get(every['latent'][k], '')}" for k in rows],
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


def held_out(candidates: dict[str, Any]) -> Drawing:
    """The target's highest activation on each held-out prompt, by side."""
    go = require("plotly.graph_objects", "plots")
    held = candidates["held_out"]
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
        f"Prompts that neither the search nor the choice saw. AUROC {held['auroc']:.2f}: the share of (positive, "
        "negative) pairs in which the positive prompt has the higher activation."
    )
    return Drawing("held_out", figure, caption)


def defence(section: dict[str, Any]) -> Drawing:
    """KL of every arm of the defence, on test and on control prompts."""
    go = require("plotly.graph_objects", "plots")
    looks = {
        "random": ("random latents to 0", RANDOM, 8, "circle"),
        "reconstruction": ("reconstruct only", CONTROL, 12, "diamond"),
        "target": ("target to 0", TARGET, 16, "star"),
    }
    figure = go.Figure()
    for kind, (name, colour, size, symbol) in looks.items():
        arms = [arm for arm in section["arms"] if arm["kind"] == kind]
        points = [(arm[part]["kl"], f"{part} prompts", arm["label"]) for part in ("control", "test") for arm in arms]
        figure.add_scatter(
            x=[max(kl, 1e-6) for kl, _, _ in points],
            y=[part for _, part, _ in points],
            text=[label for _, _, label in points],
            hovertemplate="%{text}<br>KL %{x:.2g} nats<extra></extra>",
            mode="markers",
            name=name,
            marker={"color": colour, "size": size, "symbol": symbol},
        )
    style(figure, "mean KL at the next token (nats, log scale)", "")
    figure.update_xaxes(type="log", dtick=1, exponentformat="power")
    figure.update_layout(height=240)
    caption = (
        "A latent that matters for the concept lies right of the random latents on test prompts and among them on "
        "control prompts. Reconstruct only is the price of the dictionary's own error."
    )
    return Drawing("defence", figure, caption)


# name -> (axis title, key of the arm's summary, what to see)
CURVES = {
    "kl": ("mean KL at the next token (nats)", "kl", "How far predictions move."),
    "changed": (
        "next tokens changed (share)",
        "changed_rate",
        "How often the most probable next token is another one.",
    ),
    "concept": (
        "shift of the concept score",
        "concept_shift",
        "Towards the concept (up), 1 being the positive prompts.",
    ),
    "perplexity": (
        "perplexity of the continuation",
        "edited_perplexity",
        "What the unedited model thinks of the text: a steep rise means that it falls apart. Dotted: no edit.",
    ),
}


def dose_curve(sections: dict[str, dict[str, Any]], name: str) -> Drawing:
    """One measure over the dose: target on test and control prompts, random latents on test prompts."""
    go = require("plotly.graph_objects", "plots")
    axis, key, see = CURVES[name]
    attack = sections["attack"]
    figure = go.Figure()
    lines = [("target", "test", TARGET), ("target", "control", CONTROL), ("random", "test", RANDOM)]
    for kind, part, colour in lines:
        points = _over_doses(attack["arms"], kind, part, key)
        if not points:
            continue
        figure.add_scatter(
            x=[dose for dose, _, _, _ in points],
            y=[mean for _, mean, _, _ in points],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - mean for _, mean, _, high in points],
                "arrayminus": [mean - low for _, mean, low, _ in points],
                "thickness": 1,
                "width": 3,
            },
            mode="lines+markers",
            name=f"{kind}, {part} prompts",
            line={"color": colour, "dash": "dot" if kind == "random" else "solid"},
            hovertemplate="dose %{x:g}: %{y:.3g}<extra></extra>",
        )
    style(figure, "dose (× the latent's own maximum)", axis)
    figure.update_xaxes(rangemode="tozero")
    if name == "perplexity":
        figure.update_yaxes(type="log")
        baseline = next(arm for arm in attack["arms"] if arm["kind"] == "target")["test"]["baseline_perplexity"]
        if baseline is not None:
            figure.add_hline(y=baseline, line={"dash": "dot", "color": TARGET, "width": 1})
    return Drawing(f"dose_{name}", figure, f"{see} Bars: range over the random latents.")


def _over_doses(arms: list[dict[str, Any]], kind: str, part: str, key: str) -> list[tuple[float, float, float, float]]:
    """(dose, mean, lowest, highest) over the arms of a kind at each dose."""
    points = []
    for dose in sorted({arm["dose"] for arm in arms if arm["dose"] is not None}):
        values = [arm[part].get(key) for arm in arms if arm["kind"] == kind and arm["dose"] == dose]
        known = [value for value in values if value is not None]
        if known:
            points.append((dose, sum(known) / len(known), min(known), max(known)))
    return points
