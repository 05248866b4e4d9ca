"""Graph files as public viewers read them (Neuronpedia, circuit-tracer's page).

Two things differ from circuit-tracer's own files: error nodes are `12_mlp-error_5`, where circuit-tracer writes
`0_12_5`, the id of latent 12 of layer 0; and `monosem` holds what the format has no place for (which units are neurons,
the bias, scores). Viewers pass over it.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import check_writable, json_value, write_text

SCHEMA = 1
UNITS = ("neuron", "latent")
# kinds as the format calls them; latents of one layer are called so as well
TYPES = {
    "neuron": "cross layer transcoder",
    "latent": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "token": "embedding",
    "logit": "logit",
}


def paired(layer: int, index: int) -> int:
    """Layer and index as one number (Cantor's pairing), as the format counts features."""
    return (layer + index) * (layer + index + 1) // 2 + index


def graph_json(graph: Any, slug: str = "graph", pins: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A graph as an object of JSON.

    Args:
        graph: an `AttributionGraph`.
        pins: what a viewer is to show first: "pinnedIds", and "supernodes", `[[label, id, id, ...], ...]`.
    """
    influence = graph.influence.double().cpu().numpy()
    order = np.argsort(-influence, kind="stable")
    cumulative = np.empty_like(influence)
    cumulative[order] = np.cumsum(influence[order]) / max(float(influence.sum()), 1e-10)
    best = max(graph.nodes.loc[graph.kinds == "logit", "probability"].fillna(0), default=0)
    nodes = [
        _node(row, cumulative[number], float(best))
        for number, row in enumerate(graph.nodes.to_dict("records"))
        if row["kind"] != "bias"
    ]
    ids, bias = graph.nodes["id"].tolist(), np.flatnonzero(graph.kinds == "bias")
    rows, columns = (graph.edges != 0).nonzero(as_tuple=True)
    values, targets = graph.edges[rows, columns].tolist(), graph.rows[rows].tolist()
    links, constants = [], {}
    for target, source, weight in zip(targets, columns.tolist(), values):
        if source in bias:
            constants[ids[target]] = weight
        else:
            links.append({"source": ids[source], "target": ids[target], "weight": weight})
    kinds = {row["id"]: row["kind"] for row in graph.nodes.to_dict("records") if row["kind"] in UNITS}
    return {
        "metadata": {
            "slug": slug,
            "scan": graph.model,
            "transcoder_list": list(graph.facts.get("transcoders", [])),
            "prompt_tokens": graph.tokens,
            "prompt": "".join(graph.tokens),
            "node_threshold": 1.0,
            "schema_version": SCHEMA,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
        | dict(pins or {}),
        "nodes": nodes,
        "links": links,
        "monosem": {"kinds": kinds, "bias": constants, "facts": json_value(dict(graph.facts)), "scores": graph.scores},
    }


def _node(row: Mapping[str, Any], cumulative: float, best: float) -> dict[str, Any]:
    kind, layer, index, position = row["kind"], int(row["layer"]), int(row["index"]), int(row["position"])
    p = row["probability"] if kind == "logit" and not math.isnan(row["probability"]) else 0.0
    label = f'Output "{row["label"]}" (p={p:.3f})' if kind == "logit" else row["label"]
    written = {"token": "E", "logit": str(layer + 1)}.get(kind, str(layer))
    return {
        "node_id": row["id"],
        "feature": paired(layer, index) if kind in UNITS else index,
        "layer": written,
        "ctx_idx": position,
        "feature_type": TYPES[kind],
        "token_prob": p,
        "is_target_logit": kind == "logit" and p == best,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{'L' if kind == 'logit' else written}_{index if kind != 'error' else row['id']}-{position}",
        "clerp": label,
        "influence": None if kind == "logit" else float(cumulative),
        "activation": float(row["activation"]) if kind in UNITS else None,
    }


def write_graph(graph: Any, path: str | os.PathLike[str]) -> Path:
    """Raises `BadInput` for a place that cannot be written to."""
    target = check_writable(path)
    write_text(target, json.dumps(graph_json(graph, target.stem), ensure_ascii=False, allow_nan=False))
    return target
