"""Files of other tools: graphs of EAP-IG (.json and .pt, read and written) and scores of auto-circuit (read).

EAP-IG writes a slot for each query head. A graph by kv head is written so, each query head with an equal share of its
group's score; read back for a model, shares are summed, and an edge is kept where any of its group is. Pickles go
through torch's reader of plain weights, which runs no code.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadFile, BadInput, Mismatch, UnknownName
from ..files import replacing, write_json
from ..models import Model
from ..reading import read_object, read_torch
from .circuit import Circuit
from .graph import EVERYWHERE, Graph
from .scores import EdgeScores

FilePath = str | os.PathLike[str]
LARGEST = 10**8  # sources times slots of a graph that is read: a model of 80 layers and 64 heads has 8 * 10^7


def save_graph(path: FilePath, scores: EdgeScores, circuit: Circuit | None = None) -> Path:
    """Write scores, and a circuit of them, as EAP-IG's graph: `.json` or `.pt` by the ending.

    Raises:
        BadInput: another ending; edges told apart by position; a circuit of another graph.
    """
    target, graph = Path(path), scores.graph
    if graph.places != EVERYWHERE or graph.units or min(graph.n_layers, graph.n_heads) < 1:
        raise BadInput(
            "EAP-IG's files hold one score an edge of heads and MLPs, of layers that are alike; give scores without "
            "places and units"
        )
    if circuit is not None and circuit.graph != graph:
        raise Mismatch("the circuit is of another graph than the scores")
    fine = Graph.of_sizes(graph.n_layers, graph.n_heads, parallel=graph.parallel, d_model=graph.d_model)
    values = torch.zeros(fine.shape[1:], dtype=torch.float64)
    kept = torch.zeros(fine.shape[1:], dtype=torch.bool)
    chosen = torch.zeros(graph.shape, dtype=torch.bool) if circuit is None else circuit.edges
    for own, part in zip(graph.reads, fine.reads):
        share = part.count // own.count
        values[:, part.range] = scores.values[0, :, own.range].repeat_interleave(share, -1) / share
        kept[:, part.range] = chosen[0, :, own.range].repeat_interleave(share, -1)
    cfg = {
        "n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel,
        "d_model": graph.d_model,
    }  # fmt: skip
    nodes = kept.any(1)
    if target.suffix == ".pt":
        held = {
            "cfg": cfg, "src_nodes": fine.sources, "dst_nodes": fine.slots, "edges_scores": values.float(),
            "edges_in_graph": kept, "nodes_in_graph": nodes,
        }  # fmt: skip
        with replacing(target) as temporary:
            torch.save(held, temporary)
        return target
    if target.suffix != ".json":
        raise BadInput(f"{path}: EAP-IG's graphs end in .json or .pt")
    inside = {name: {"in_graph": yes} for name, yes in zip(fine.sources, nodes.tolist())}
    edges = {
        name: {"score": float(values[at[1:]]), "in_graph": bool(kept[at[1:]])} for name, at in fine.names()
    }  # fmt: skip
    logits = {"logits": {"in_graph": bool(kept[:, -1].any())}}
    write_json(target, {"cfg": cfg, "nodes": inside | logits, "edges": edges})
    return target


def load_graph(path: FilePath, model: Model | None = None) -> tuple[EdgeScores, Circuit]:
    """Read EAP-IG's graph: its scores, and the edges that it keeps.

    Args:
        model: sums scores by query head into the model's own slots.

    Raises:
        BadFile: not such a file, or one whose names and sizes contradict each other. Mismatch: of another model.
    """
    source = Path(path)
    held = read_torch(source) if source.suffix == ".pt" else read_object(source)
    try:
        cfg = held["cfg"]
        sizes = [int(cfg[name]) for name in ("n_layers", "n_heads")]
        _check_size(*sizes)
        graph = Graph.of_sizes(*sizes, parallel=bool(cfg.get("parallel_attn_mlp", False)), d_model=int(cfg["d_model"]))
        values, kept = _matrices(held, graph) if source.suffix == ".pt" else _named(held, graph)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, BadInput, UnknownName) as error:
        raise BadFile(f"{path} is no graph of EAP-IG: {_short(error)}") from None
    scores = EdgeScores(graph, values[None], f"file {source.name}")
    circuit = Circuit(graph, kept[None] & graph.real, values=scores.values)
    return (scores, circuit) if model is None else _for(model, scores, circuit)


def _short(error: Exception) -> str:
    words = f"no {error}" if isinstance(error, KeyError) else str(error)
    return words if len(words) <= 200 else f"{words[:200]}…"


def _check_size(layers: int, heads: int) -> None:
    if (1 + layers * (heads + 1)) * (1 + layers * (3 * heads + 1)) > LARGEST:
        raise ValueError(f"{layers} layers of {heads} heads are more than any model has")


def _matrices(held: Mapping[str, Any], graph: Graph) -> tuple[Tensor, Tensor]:
    names = [list(held[key]) for key in ("src_nodes", "dst_nodes")]
    if names != [graph.sources, graph.slots]:
        raise ValueError("its nodes are not in the order of a graph of these sizes")
    values, kept = held["edges_scores"], held["edges_in_graph"]
    if tuple(values.shape) != graph.shape[1:] or tuple(kept.shape) != graph.shape[1:]:
        raise ValueError(f"its scores have shape {list(values.shape)}, not {list(graph.shape[1:])}")
    return values.double(), kept.bool()


def _named(held: Mapping[str, Any], graph: Graph) -> tuple[Tensor, Tensor]:
    values = torch.full(graph.shape[1:], torch.nan, dtype=torch.float64)
    values[~graph.real] = 0.0
    kept = torch.zeros(graph.shape[1:], dtype=torch.bool)
    for name, edge in held["edges"].items():
        _, *at = graph.index(name)  # a file may hold a few edges of a large graph: no list of all names
        if edge.get("score") is not None:
            values[tuple(at)] = float(edge["score"])
        kept[tuple(at)] = bool(edge["in_graph"])
    return values, kept


def _for(model: Model, scores: EdgeScores, circuit: Circuit) -> tuple[EdgeScores, Circuit]:
    graph = Graph.of(model)
    if graph.sources != scores.graph.sources or graph.parallel != scores.graph.parallel:
        raise Mismatch(f"the file's graph has other nodes than {model.name}")
    summed = scores.by_group(graph)
    counts = EdgeScores(scores.graph, circuit.edges.double(), "kept").by_group(graph).values
    return replace(summed, model=model.name), Circuit(graph, counts > 0, values=summed.values)


def load_auto_circuit(path: FilePath, model: Model) -> EdgeScores:
    """Read auto-circuit's scores: a file of tensors by module, `blocks.0.hook_q_input` with `[pos] head source`.

    Raises:
        BadFile: a module of another name, or a tensor of another shape. Mismatch: of another model.
    """
    held, own = read_torch(path), Graph.of(model)
    graph = Graph.of_sizes(own.n_layers, own.n_heads, parallel=own.parallel, d_model=own.d_model)
    if graph.sources != own.sources:
        raise Mismatch(f"{model.name} has layers of different kinds, which auto-circuit's scores do not")
    names = {
        f"blocks.{part.layer}.hook_{part.kind}_input": part for part in graph.reads if part.kind in ("q", "k", "v")
    }
    names |= {f"blocks.{part.layer}.hook_mlp_in": part for part in graph.reads if part.kind == "whole"}
    names[f"blocks.{own.n_layers - 1}.hook_resid_post"] = graph.reads[-1]
    positions = {value.shape[0] for name, value in held.items() if _by_position(names.get(name), value)}
    if len(positions) > 1:
        raise BadFile(f"{path}: its tensors have {sorted(positions)} positions; all must have one number of them")
    places = tuple(map(str, range(positions.pop()))) if positions else EVERYWHERE
    values = torch.full((len(places), *graph.shape[1:]), torch.nan, dtype=torch.float64)
    values[:, ~graph.real] = 0.0
    for name, value in held.items():
        part = names.get(name)
        if part is None:
            raise BadFile(f"{path}: {str(name)[:60]!r} is no module of a factorised graph of auto-circuit")
        count = int(graph.real[:, part.first].sum())
        wide = value.double().reshape(len(places), part.count, -1) if value.numel() else value
        if wide.numel() != len(places) * part.count * count:
            raise BadFile(f"{path}: {name} has shape {list(value.shape)}; {part.count} slots read {count} nodes")
        values[:, :count, part.range] = wide.movedim(1, 2)
    scores = EdgeScores(graph.with_places(places), values, f"file {Path(path).name}", model=model.name)
    return scores.by_group(own) if own.grouped else replace(scores, graph=replace(own, places=places))


def _by_position(part: Any, value: Any) -> bool:
    heads = part is not None and part.kind in ("q", "k", "v")
    return isinstance(value, Tensor) and value.ndim == (3 if heads else 2)
