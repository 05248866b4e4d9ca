"""`attribution_graph`: of one prompt."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pandas as pd
import torch

from ..dictionaries import CrossLayer, Dictionary
from ..errors import BadInput
from ..models import Model
from ..models.numbers import count
from ..models.running.budget import bytes_of, shown
from ..progress import say
from ..results import analysis
from .choosing import edges, most_influential
from .frozen import Frozen
from .graph import AttributionGraph
from .logits import Logits, Tokens, logits_of
from .parts import Parts
from .transcoders import Transcoders, check, sites_of
from .units import has_neurons, neuron_sites

MOST_ROWS = 512  # targets at once, where memory allows


@analysis
def attribution_graph(
    model: Model,
    x: Any,
    transcoders: Transcoders | Sequence[Transcoders] = (),
    *,
    tokens: Tokens | None = None,
    wrong: Tokens | None = None,
    direction: Any = None,
    n_logits: int = 10,
    n_nodes: int = 2000,
    neurons: Literal["up", "half", "none"] = "up",
    everywhere: bool = False,
    memory: str | int = "2GB",
    quiet: bool = False,
) -> AttributionGraph:
    """The attribution graph of a prompt: what each neuron or latent, each token and each error gives to each other one.

    Attention patterns and norms' sizes are frozen at what the run had. From token embeddings to logits everything is
    then a linear function, so that rows add up exactly: what all nodes give to a node, and the bias, is its read-out.
    An MLP's neurons are nodes without any training; where transcoders are given, their latents are (Ameisen et al.
    2025, Circuit Tracing). What nodes do not write is a node as well, the error of its layer and token.

    Args:
        x: one prompt: text, or token ids.
        transcoders: of one layer each (skip connections are linear maps beside attention), or a cross-layer one.
        tokens: whose logits to explain, instead of the likeliest: texts of one token, or ids. wrong: tokens whose
            logits are subtracted. direction: `("final_norm", vector)` instead.
        n_logits: the fewest likeliest tokens that have 95 % of the probability, and at most so many.
        n_nodes: neurons or latents at most, the most influential. The others are parts of the error nodes.
        neurons: of MLPs without a transcoder; in gated ones the value is read through "up" alone, or "half" through
            the gate (`monosem.graphs.units`). "none": such an MLP is one error node a token.
        everywhere: latents also at tokens that a transcoder was not trained on (the first one, outliers), where
            otherwise all is error.
        memory: what edges and working space may take.

    Raises:
        BadInput: several prompts, tokens that are not one each, a graph that is too large for the memory (it says by
            how much), transcoders that a graph cannot take apart. Mismatch: of another model.
        UnknownName: norms that close the sum of a block (post-LN), or a head between the last stream and the logits.
    """
    given = [transcoders] if isinstance(transcoders, Dictionary | CrossLayer) else list(transcoders)
    check(model, given)
    limit = count(n_nodes, "n_nodes")
    widest = max([model.cfg.d_mlp, *(one.width for one in given)])
    length = int(model.tokens(x).ids.shape[1])
    _check_memory(model, length, min(limit, model.cfg.n_layers * widest * length), n_logits, memory, quiet)
    with torch.no_grad():
        with model.turn():
            frozen = _frozen(model, x, given, neurons)
            logits = logits_of(frozen, tokens, wrong, direction, n_logits)
            parts = Parts.of(frozen, given, neurons, everywhere)
        if not parts.n_units and neurons != "none" and not given:
            raise BadInput(f"{model.name} has no MLP whose neurons can be read: give transcoders")
        rows = _rows(parts, memory)
        parts = most_influential(parts, logits.targets(frozen), logits.weights, limit, rows, quiet)
        return _graph(parts, logits, rows, {"neurons": neurons, "transcoders": [one.name for one in given]}, quiet)


def _frozen(model: Model, x: Any, given: Sequence[Transcoders], neurons: str) -> Frozen:
    read = [branch for branch in model.branches() if neurons != "none" and has_neurons(branch)]
    return Frozen.of(model, x, [*sites_of(given), *(site for one in read for site in neuron_sites(model, one))])


def _graph(parts: Parts, logits: Logits, rows: int, facts: dict[str, Any], quiet: bool) -> AttributionGraph:
    frozen, n_logits = parts.frozen, len(logits.labels)
    model = frozen.model
    n_rows, n_nodes = parts.n_units + n_logits, parts.n_columns + n_logits
    matrix = torch.zeros(n_rows, n_nodes, dtype=frozen.dtype, device=model.device)
    sums = matrix.new_zeros(n_rows)
    ends = logits.targets(frozen)
    for some, targets, made in edges(parts, ends, rows, quiet):
        matrix[some, : parts.n_columns] = made
        sums[some] = targets.sums
    numbers = torch.arange(n_nodes, device=model.device)
    at = torch.cat([numbers[: parts.n_units], numbers[parts.n_columns :]])
    facts |= {"ids": frozen.batch.ids[0].tolist()}
    nodes = _nodes(model, parts, logits)
    return AttributionGraph(
        nodes, matrix, at, sums, logits.weights, frozen.tokens, model.name, facts, replace(parts, ends=ends)
    )


def _nodes(model: Model, parts: Parts, logits: Logits) -> pd.DataFrame:
    frozen = parts.frozen
    length, end, words = frozen.length, model.cfg.n_layers, frozen.tokens
    ids = frozen.batch.ids[0].tolist()
    found: list[dict[str, Any]] = []
    for one in parts.units:
        found += [
            {"kind": one.kind, "layer": one.layer, "position": position}
            | {"index": index, "activation": value, "label": "", "depth": one.depth}
            for position, index, value in zip(one.positions.tolist(), one.indices.tolist(), one.values.tolist())
        ]
    for number in parts.opaque:
        branch = frozen.branches[number]
        found += [
            {"kind": "error", "layer": branch.layer, "position": p}
            | {"index": -1, "label": f"error of {branch.name} {branch.layer}", "depth": model.depth(branch.reads)}
            for p in range(length)
        ]
    found += [
        {"kind": "token", "layer": -1, "position": p, "index": ids[p], "label": words[p]} | {"depth": -1}
        for p in range(length)
    ]
    found.append({"kind": "bias", "layer": -1, "position": 0, "index": -1, "label": "bias", "depth": -1})
    found = [{"id": name} | one for name, one in zip(parts.ids, found)]
    at = {"kind": "logit", "layer": end, "position": length - 1, "depth": model.depth(frozen.end)}
    for token, label, weight in zip(logits.tokens, logits.labels, logits.weights.tolist()):
        found.append({"id": f"{end + 1}_{token}_{length - 1}", "index": token, "label": label} | at)
        found[-1]["probability"] = weight if token >= 0 else float("nan")
    columns = ["id", "kind", "layer", "position", "index", "activation", "label", "probability", "depth"]
    return pd.DataFrame(found).reindex(columns=columns)


# ---------------------------------------------------------------------- memory
def _check_memory(model: Model, length: int, n_nodes: int, n_logits: int, memory: str | int, quiet: bool) -> None:
    """Says in advance what the largest tensors take. Raises `BadInput` where they do not fit."""
    c = model.cfg
    item = 8 if model.dtype == torch.float64 else 4
    columns = n_nodes + (len(model.branches()) + 1) * length + n_logits
    need = (n_nodes + n_logits) * columns * item * 2  # once more when shares are taken
    patterns = c.n_layers * c.n_heads * length**2 * item * 2
    weights = c.n_layers * c.d_model * (c.n_heads + c.n_kv_heads) * c.d_head * item  # of attention, as frozen maps
    budget = bytes_of(memory)
    one_row = c.n_layers * c.d_mlp * length * item * 2
    if (total := need + patterns + weights + one_row) > budget:
        raise BadInput(
            f"a graph of {n_nodes:,} nodes and {length} tokens needs {shown(total)} (edges {shown(need)}, patterns "
            f"{shown(patterns)}, weights of attention {shown(weights)}), over memory={shown(budget)}: give fewer "
            "n_nodes=, a shorter prompt, or more memory="
        )
    say(
        f"graph of up to {n_nodes:,} nodes: edges {shown(need)}, patterns {shown(patterns)}, within {shown(budget)}",
        quiet,
    )


def _rows(parts: Parts, memory: str | int) -> int:
    """How many targets at once take no more than half of the memory."""
    item = 8 if parts.frozen.dtype == torch.float64 else 4
    c, length = parts.frozen.model.cfg, parts.frozen.length
    one = item * (2 * parts.n_columns + length * (6 * c.d_model + 3 * c.n_heads * c.d_head))
    return max(1, min(MOST_ROWS, bytes_of(memory) // 2 // one))
