"""Over which layers the direction has its effect: it is taken away at one layer alone, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from .. import edits
from ..activations.medians import median_norms
from ..pages import percent
from .arms import Arm, responses
from .context import Context
from .costs import divergence
from .curves import HALF, Row, arms_of, controls_of, reaching
from .vectors import candidates

Parts = Mapping[str, Mapping[str, Any]]
KINDS = {"one_layer": ("",), "subtraction": ("", "random 1")}  # attack -> what is taken away: the direction, controls
ENDS = {"shown": "value", "low": "low", "high": "high"}  # column -> of the rate
TITLES = {"one_layer": "ablation", "subtraction": "subtraction"}


def others(context: Context, own: int | None = None) -> list[int]:
    """The layers that are tried beside the direction's own, at which the attacks themselves were measured."""
    asked = context.config.span_layers
    if asked is not None:
        return sorted(set(asked) - {own})
    return [layer for layer in candidates(context.model, context.config) if layer != own][::2]


def count(context: Context, attacks: Sequence[str]) -> int:
    """How many arms that makes, beforehand: at most one a kind less where the own layer is among those asked for."""
    asked = context.config.span_layers
    n = len(candidates(context.model, context.config)) // 2 if asked is None else len(set(asked))
    return n * sum(len(controls) for name, controls in KINDS.items() if name in attacks)


def measure(context: Context, earlier: Parts) -> dict[str, Any]:
    """Arms whose strength is the layer: of ablation, and of subtraction as strong as the budget allows at the
    direction's own layer, with a random direction of that length beside it. Each has its KL, as other arms.

    The stream grows from layer to layer, so that one length is a nudge in late layers and all there is in early ones.
    What is subtracted is therefore the same share of the stream's usual norm at every layer (`median_norms`)."""
    own, rows = context.vectors.site.layer, list[dict[str, Any]]()
    prompts, gaps = context.config.of("behaviour_test"), dict[int, float]()
    for name, controls in KINDS.items():
        if name not in earlier or own is None:
            continue
        scale = earlier[name]["strength"]
        gaps = {} if scale is None else _alike(context, [own, *others(context, own)], scale)
        rows += [
            {**row, "strength": float(own), "gaps": scale}
            for row in earlier[name]["arms"]
            if row["strength"] == scale and row["control"] in controls
        ]
        for layer in others(context, own):
            for control in controls:
                arm = _arm(context, name, control, layer, gaps.get(layer))
                row = responses(context, arm, prompts, coherence=True) | divergence(context, arm)
                rows.append({**row, "gaps": gaps.get(layer)})
    scales = {name: earlier[name]["strength"] for name in KINDS if name in earlier}
    share = None if own is None or not gaps else gaps[own] * context.vectors.gap / _norms(context, [own])[own]
    return {"arms": rows, "own": own, "scales": scales, "share": share}


def _norms(context: Context, layers: Sequence[int]) -> dict[int, float]:
    """The usual norm at each layer of the direction's site."""
    sites = {layer: replace(context.vectors.site, layer=layer) for layer in layers}
    found = median_norms(context.model, list(sites.values()))
    return {layer: found[site] for layer, site in sites.items()}


def _alike(context: Context, layers: Sequence[int], scale: float) -> dict[int, float]:
    """At each layer so many gaps that are as long, beside the usual norm there, as `scale` gaps at the first one."""
    norms = _norms(context, layers)
    return {layer: scale * norm / norms[layers[0]] for layer, norm in norms.items()}


def _arm(context: Context, name: str, control: str, layer: int, gaps: float | None) -> Arm:
    vectors = context.vectors
    place = (replace(vectors.site, layer=layer), vectors.units[control])
    change = edits.ablate(place) if gaps is None else edits.add(place, -gaps * vectors.gap)
    return Arm(name, control, float(layer), [change])


# ---------------------------------------------------------------------- from the results alone
def spans(held: Parts, base: Row, budget: float) -> Iterator[dict[str, Any]]:
    """A model's spans: of each kind the layers tried and those at which at most half of the unattacked rate is left,
    as seen and with the upper end of the interval. Layers where this costs more KL than the budget are named and do not
    count: there the model is broken, not the behaviour. Nothing for a report from before there were spans."""
    rows = held.get("layers", {}).get("arms", [])
    for name in KINDS:
        for control in ["", *controls_of(rows, name)] if arms_of(rows, name) else []:
            arms = arms_of(rows, name, control)
            within = [arm for arm in arms if arm["kl_token"]["value"] <= budget]
            found = reaching(within, name, control, HALF * base["shown"]["value"])
            yield {
                "attack": name,
                "control": control,
                "tried": [int(arm["strength"]) for arm in arms],
                "nothing": not base["shown"]["count"],
                "over": [int(arm["strength"]) for arm in arms if arm not in within],
                **{how: [int(layer) for layer in layers] for how, layers in found.items()},
            }


def length(part: Mapping[str, Any]) -> str:
    """How much is subtracted, in words; "" where nothing is."""
    scale, share = part.get("scales", {}).get("subtraction"), part.get("share")
    if scale is None:
        return ""
    if share is None:  # a report of an earlier version
        return f"Subtraction is of {scale:g} gaps at every layer, a random direction of that length beside it."
    return (
        f"Subtraction is of {scale:g} gaps at the direction's own layer, {percent(share)} of the stream's usual norm "
        "there (the median over a fixed text), and of the same share at every other layer, where the stream is "
        "shorter or longer; a random direction of that length stands beside it."
    )


def words(one: Mapping[str, Any]) -> str:
    """What a span says: "3 of 5 layers, 14 to 22"."""
    return "nothing to break" if one["nothing"] else _range(one["sure"], len(one["tried"]))


def _range(layers: Sequence[int], of: int) -> str:
    ends = f", {layers[0]}" if len(layers) == 1 else f", {layers[0]} to {layers[-1]}" if layers else ""
    return f"{len(layers) or 'none'} of {of} layer{'' if of == 1 else 's'}{ends}"


def cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    """For a table: what is done, the layers tried, the span by intervals and as seen, where it is over budget."""
    title = f"{TITLES[one['attack']]} of {one['control'] or 'the direction'}"
    seen = words(one) if one["nothing"] else _range(one["seen"], len(one["tried"]))
    tried = ", ".join(map(str, one["tried"]))
    return title, tried, words(one), seen, ", ".join(map(str, one["over"])) or "–"


def layers_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """A row a model, attack, control and layer: how many gaps are subtracted (none where it is ablated), the rate that
    is left with its interval, and KL a token."""
    rows = []
    for where, held in results["parts"].items():
        for row in held.get("layers", {}).get("arms", []):
            line = {"model": where, "attack": row["attack"], "control": row["control"], "layer": int(row["strength"])}
            line |= {"gaps": row.get("gaps"), **{end: row["shown"][of] for end, of in ENDS.items()}}
            rows.append(line | {"kl_token": row["kl_token"]["value"], "perplexity": row.get("perplexity")})
    return pd.DataFrame(rows)
