"""What happens when nodes of a graph are changed: the straight effect that edges say, or all that the model does then.

A change is a factor: 0 takes a node's activation away, 2 doubles it, -1 turns it round.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .. import edits
from ..dictionaries import Dictionary
from ..edits import Edit
from ..errors import BadInput, UnknownName
from ..models import Site
from ..results import Tabled, analysis
from .graph import AttributionGraph
from .parts import Parts
from .transcoders import Latents
from .units import Neurons

Changes = Mapping[str, float]


@dataclass(frozen=True)
class NodeIntervention(Tabled):
    """`table`: a row a unit or logit of the graph: `id`; `before`, `after` and `change` of its read-out
    (`AttributionGraph.sums`); `expected`, what the edges say.

    Attributes:
        logits: of the last token, before and after: `2 vocab`.
    """

    logits: Float[Tensor, "2 vocab"] = field(default_factory=lambda: torch.empty(2, 0), repr=False)

    ranked_by: ClassVar[str | None] = "change"
    either_way: ClassVar[bool] = True


@analysis
def intervene(
    graph: AttributionGraph,
    changes: Changes,
    *,
    supernodes: Mapping[str, list[str]] | None = None,
    direct: bool = False,
    freeze_attention: bool = True,
) -> NodeIntervention:
    """Run the graph's prompt again with some nodes changed.

    Args:
        graph: as `attribution_graph` made it, or pruned.
        changes: id of a node (or label of a supernode) -> factor of its activation.
        supernodes: label -> ids of its nodes.
        direct: everything else keeps its output (patterns, norms' sizes, MLPs; skip connections of transcoders pass
            changes on), so that only straight effects are seen: the change of a read-out is its edge times
            (factor - 1). Otherwise what follows is computed anew.
        freeze_attention: patterns keep their values, too, where the rest is computed anew.

    Raises:
        BadInput: a graph from a file, no changes, factors that are not finite.
        UnknownName: a node that the graph does not have.
    """
    parts, factors = _parts(graph), _factors(graph, changes, supernodes or {})
    if not factors:
        raise BadInput("changes= names nodes and by what their activation is multiplied: {'12_381_5': 0.0}")
    frozen, model = parts.frozen, parts.frozen.model
    if direct:
        made = [*_held(parts), *_straight(graph, parts, factors)]
    else:
        made = node_edits(graph, changes, supernodes=supernodes)
        made += _patterns(parts) if freeze_attention else []
    sites = {branch.reads for branch in frozen.branches} | {frozen.end}
    run = model.run(frozen.batch, sorted(sites, key=str), edits=made, logits="last")
    before, after = _readouts(parts, graph, frozen.run), _readouts(parts, graph, run)
    columns = torch.tensor([graph.numbers[one] for one in factors])
    expected = graph.edges[:, columns] @ torch.tensor([f - 1 for f in factors.values()]).to(graph.edges)
    table = pd.DataFrame(
        {
            "id": graph.nodes["id"].iloc[graph.rows.tolist()].to_numpy(),
            "before": before.tolist(),
            "after": after.tolist(),
            "change": (after - before).tolist(),
            "expected": expected.tolist(),
        }
    )
    logits = [one.logits[0].float() for one in (frozen.run, run) if one.logits is not None]
    return NodeIntervention(table, {"factors": factors}, torch.stack(logits))


def node_edits(
    graph: AttributionGraph,
    changes: Changes,
    *,
    supernodes: Mapping[str, list[str]] | None = None,
    onwards: bool = False,
) -> list[Edit]:
    """The changes as edits, for `model.run` and `model.generate`: the activation that a unit then has is multiplied, at
    its token; `onwards` at that token and at all after it, generated ones as well."""
    parts, found = _parts(graph), list[Edit]()
    for one, factor in _factors(graph, changes, supernodes or {}).items():
        node = graph.nodes.iloc[graph.number(one)]
        position: Any = slice(int(node.position), None) if onwards else [int(node.position)]
        units = next((part for part in parts.units if part.layer == node.layer and part.kind == node.kind), None)
        if isinstance(units, Neurons):
            site = parts.frozen.branches[units.known.number].site("_post")
            found.append(_neuron(site, int(node["index"]), factor).at(positions=position))
        elif isinstance(units, Latents):
            owner = units.owner
            dictionary = owner if isinstance(owner, Dictionary) else owner.layers[units.number]
            made = edits.scale_latent(dictionary, int(node["index"]), factor, everywhere=True)
            found.append(made.at(positions=position))
        else:
            site, vector = _constant(parts, node)
            found.append(edits.add((site, vector.float()), factor - 1).at(positions=[int(node.position)]))
    return found


def _neuron(site: Site, index: int, factor: float) -> Edit:
    def fn(x: Tensor) -> Tensor:
        changed = x.clone()
        changed[..., index] *= factor
        return changed

    return edits.function(site, fn, f"neuron {index} times {factor:g}")


def _constant(parts: Parts, node: Any) -> tuple[Site, Tensor]:
    """Where an error or a token is written, and what."""
    frozen = parts.frozen
    if node.kind == "token":
        return frozen.start, frozen.at(frozen.start)[node.position]
    if node.kind == "error":
        name = node.id.split("_")[1].removesuffix("-error")
        number = next(
            n for n in parts.opaque if frozen.branches[n].name == name and frozen.branches[n].layer == node.layer
        )
        errors = parts.errors.get(number)
        zero = torch.zeros(frozen.model.cfg.d_model, dtype=frozen.dtype)
        return frozen.branches[number].out, zero if errors is None else errors[node.position]
    raise BadInput(f"{node.id!r} is a {node.kind}: units, errors and tokens can be changed")


def _parts(graph: AttributionGraph) -> Parts:
    if graph.parts is None:
        raise BadInput("this graph is from a file, without a model: make it with graphs.attribute to change nodes")
    return graph.parts


def _factors(graph: AttributionGraph, changes: Changes, supernodes: Mapping[str, list[str]]) -> dict[str, float]:
    """Node -> factor; supernodes are their nodes."""
    found: dict[str, float] = {}
    for name, factor in changes.items():
        if not isinstance(factor, int | float) or not abs(factor) < float("inf"):
            raise BadInput(f"{name!r} is multiplied by a finite number, not {factor!r:.40}")
        members = supernodes.get(name, [name])
        for one in members:
            if one not in graph.numbers:
                raise UnknownName(f"the graph has no node or supernode {one!r}; graph.nodes.id lists its nodes")
            found[one] = float(factor)
    return found


# ---------------------------------------------------------------------- straight effects
def _patterns(parts: Parts) -> list[Edit]:
    frozen = parts.frozen
    sites = [Site("pattern", frozen.branches[number].layer) for number in frozen.constants]
    return [edits.patch(site, frozen.run[site]) for site in sites]


def _held(parts: Parts) -> list[Edit]:
    """Patterns, sizes of norms, and what MLPs add beside skip connections, as the run had them."""
    frozen, model = parts.frozen, parts.frozen.model
    found = _patterns(parts)
    for branch in frozen.branches:
        if branch.norm is not None and model.has(Site(f"{branch.norm}_scale", branch.layer)):
            size = branch.pre.scale(frozen.run[branch.reads])
            found.append(edits.patch(Site(f"{branch.norm}_scale", branch.layer), size))
    if model.last_norm is not None:
        found.append(edits.patch("final_scale", model.final_norm.scale(frozen.run[frozen.end])))
    for number in frozen.constants:
        if frozen.written[number].size is not None:
            found += _held_after(parts, number)
    for number in parts.opaque:
        site = frozen.branches[number].out
        found += _skipping(parts, number) if number in frozen.linear else [edits.patch(site, frozen.run[site])]
    return found


def _skipping(parts: Parts, number: int) -> list[Edit]:
    """What an MLP added in the run, and what skip connections make of changes to what they read."""
    frozen, seen = parts.frozen, dict[Site, Tensor]()
    out, paths = frozen.branches[number].out, frozen.linear[number]

    def look(site: Site) -> Edit:
        def fn(x: Tensor) -> Tensor:
            seen[site] = x[0].to(frozen.dtype)
            return x

        return edits.function(site, fn, f"what the skip connection to {out} reads")

    def held(x: Tensor) -> Tensor:
        change = sum(path.push(seen[path.reads] - frozen.at(path.reads)) for path in paths)
        return frozen.run[out].to(x) + torch.as_tensor(change).to(x)

    sites = list(dict.fromkeys(path.reads for path in paths))
    return [*map(look, sites), edits.function(out, held, f"{out} beside its skip connection")]


def _held_after(parts: Parts, number: int) -> list[Edit]:
    """A norm after attention divides by the size of the run: what it made is multiplied by the new size over that."""
    written, branch = parts.frozen.written[number], parts.frozen.branches[number]
    seen = dict[str, Tensor]()

    def look(x: Tensor) -> Tensor:
        seen["size"] = written.norm.scale(x)
        return x

    def undo(x: Tensor) -> Tensor:
        constant, size = written.constant.to(x.dtype), torch.as_tensor(written.size)
        return (x - constant) * (seen["size"] / size).to(x.dtype) + constant

    label = f"size of the norm after {branch.name} {branch.layer}"
    return [edits.function(branch.raw, look, label), edits.function(branch.out, undo, label)]


def _straight(graph: AttributionGraph, parts: Parts, factors: dict[str, float]) -> list[Edit]:
    """What changed nodes write, added where they write it."""
    frozen, change = parts.frozen, dict[Site, Tensor]()
    for one, factor in factors.items():
        node = graph.nodes.iloc[graph.number(one)]
        units = next((part for part in parts.units if part.layer == node.layer and part.kind == node.kind), None)
        if units is None:
            site, vector = _constant(parts, node)
            change.setdefault(site, torch.zeros_like(frozen.at(frozen.start)))[node.position] += (factor - 1) * vector
            continue
        which = (units.positions == int(node.position)) & (units.indices == int(node["index"]))
        alone = units.chosen(which.nonzero().flatten())
        for number in units.writes:
            made = alone.written(number) * (factor - 1)
            made = frozen.written[number].push(made) if units.raw else made
            site = frozen.branches[number].out
            change[site] = change.get(site, torch.zeros_like(made)) + made
    return [edits.add((site, made.float()[None]), axes="batch pos d_model") for site, made in change.items()]


def _readouts(parts: Parts, graph: AttributionGraph, run: Any) -> Tensor:
    """Of the graph's units and logits, norms' sizes as the graph has them."""
    frozen, whole = parts.frozen, dict[str, Tensor]()
    for one in parts.units:
        if not len(one):
            continue
        targets = one.targets()
        stream = run[next(b.reads for b in frozen.branches if frozen.model.depth(b.reads) == one.depth)][0]
        values = (targets.vectors * stream.to(frozen.dtype)[targets.positions]).sum(-1) + targets.constants
        ids = zip(one.indices.tolist(), one.positions.tolist())
        whole |= {f"{one.layer}_{i}_{p}": value for (i, p), value in zip(ids, values)}
    assert parts.ends is not None
    stream = run[frozen.end][0].to(frozen.dtype)
    ends = (parts.ends.vectors * stream[parts.ends.positions]).sum(-1) + parts.ends.constants
    names = graph.nodes["id"][graph.kinds == "logit"]
    whole |= dict(zip(names, ends))
    return torch.stack([whole[graph.nodes["id"].iloc[row]] for row in graph.rows.tolist()])
