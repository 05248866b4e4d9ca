"""Over which layers the direction has its effect: it is taken away at one layer alone, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from .. import edits
from .arms import Arm, responses
from .context import Context
from .costs import divergence
from .curves import HALF, Row, arms_of, controls_of, reaching
from .vectors import candidates

Parts = Mapping[str, Mapping[str, Any]]
KINDS = {"one_layer": ("",), "subtraction": ("", "random 1")}  # attack -> what is taken away: the direction, controls
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
    direction's own layer, with a random direction of that length beside it. Each has its KL, as other arms."""
    own, rows = context.vectors.site.layer, list[dict[str, Any]]()
    prompts = context.config.of("behaviour_test")
    for name, controls in KINDS.items():
        if name not in earlier or own is None:
            continue
        scale = earlier[name]["strength"]
        rows += [
            {**row, "strength": float(own)}
            for row in earlier[name]["arms"]
            if row["strength"] == scale and row["control"] in controls
        ]
        for layer in others(context, own):
            for control in controls:
                arm = _arm(context, name, control, layer, scale)
                rows.append(responses(context, arm, prompts, coherence=not control) | divergence(context, arm))
    scales = {name: earlier[name]["strength"] for name in KINDS if name in earlier}
    return {"arms": rows, "own": own, "scales": scales}


def _arm(context: Context, name: str, control: str, layer: int, scale: float | None) -> Arm:
    vectors = context.vectors
    place = (replace(vectors.site, layer=layer), vectors.units[control])
    change = edits.ablate(place) if scale is None else edits.add(place, -scale * vectors.gap)
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
    """A row a model, attack, control and layer: the rate that is left with its interval, and KL a token."""
    rows = []
    for where, held in results["parts"].items():
        for row in held.get("layers", {}).get("arms", []):
            line = {"model": where, "attack": row["attack"], "control": row["control"], "layer": int(row["strength"])}
            line |= {"shown": row["shown"]["value"], "low": row["shown"]["low"], "high": row["shown"]["high"]}
            rows.append(line | {"kl_token": row["kl_token"]["value"], "perplexity": row.get("perplexity")})
    return pd.DataFrame(rows)
