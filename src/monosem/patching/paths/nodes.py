"""Nodes: the two ends of a path through the residual stream. Senders write into it, receivers read from it.

| sender | writes |
|---|---|
| `embed` | what enters the first block |
| `z.L.H` | head H of layer L, through the output projection (and the branch's post-norm) |
| `mlp_out.L` | the MLP of layer L; likewise every branch without heads |

| receiver | reads |
|---|---|
| `q.L.H`, `k.L.G`, `v.L.G` | the query of head H, key or value of kv head G, through the layer's norm |
| `mlp_in.L` | the MLP of layer L, through its norm; likewise every branch that treats each token alone |
| `logits` | the unembedding, through the final norm, after the last token |

Heads of linear attention, of state spaces and of latent attention are senders alone: what they read of the stream goes
through a convolution or a latent first, and is no projection of it.

A name without its head (`z.3`) means every head of the layer, without its layer (`z`) every one in the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from ...errors import BadInput, UnknownName, did_you_mean
from ...models import Branch, Model, Site
from ...models.running.selection import heads_at

READ_BY_HEADS = ("q", "k", "v")


@dataclass(frozen=True)
class Node:
    """One sender or receiver; `head` counts kv heads for k and v."""

    kind: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.kind, self.layer, self.head) if part is not None)

    @property
    def reads_whole(self) -> bool:
        """Whether it is a whole branch as a receiver, such as mlp_in."""
        return self.kind.endswith("_in")

    def branch(self, model: Model) -> Branch | None:
        """The branch that it is a part of; None for embed and logits."""
        if self.layer is None:
            return None
        return model.branch_of(
            Site(self.kind.removesuffix("_in") + "_out" if self.reads_whole else self.kind, self.layer)
        )

    def depth(self, model: Model) -> int:
        """Place along the stream (`Model.depth`): a receiver reads what senders of a smaller depth have written."""
        if (branch := self.branch(model)) is None:
            return model.depth("embed" if self.kind == "embed" else "logits")
        reads = self.reads_whole or (branch.units == "head" and self.kind != branch.site("z").name)
        return model.depth(branch.reads if reads else branch.out)


def sent_at(branch: Branch) -> Site:
    """Where a branch's senders are: its heads, or what it adds to the stream."""
    return branch.site("z") if branch.units == "head" else branch.out


def sender_kinds(model: Model) -> dict[str, tuple[str, ...]]:
    """Kind -> what tells its nodes apart: heads of branches that have them, other branches as a whole."""
    axes = {one: ("layer", "head") if one.units == "head" else ("layer",) for one in model.branches()}
    return {"embed": (), **{sent_at(branch).name: cut for branch, cut in axes.items()}}


def receiver_kinds(model: Model) -> dict[str, tuple[str, ...]]:
    """Kind -> what tells its nodes apart: what heads read, pointwise branches as a whole, and the logits."""
    kinds: dict[str, tuple[str, ...]] = {}
    for branch in model.branches():
        if branch.kind == "attention":
            kinds |= {branch.site(name).name: ("layer", "head") for name in READ_BY_HEADS}
        elif branch.pointwise:
            kinds[f"{branch.name}_in"] = ("layer",)
    return kinds | {"logits": ()}


@dataclass(frozen=True)
class NodeSet:
    """Nodes that are patched together, under one label."""

    label: str
    nodes: tuple[Node, ...]

    def __str__(self) -> str:
        return self.label


NodesLike = str | Node | Sequence[str | Node] | Mapping[str, str | Node | Sequence[str | Node]]


def senders_of(model: Model, names: NodesLike) -> list[NodeSet]:
    """Names, each node a set of its own; or `{label: names}`, all nodes of a label one set.

    Raises:
        UnknownName: no such kind, layer or head. BadInput: nothing given.
    """
    return _sets(model, names, sender_kinds(model), "sender")


def receivers_of(model: Model, names: NodesLike) -> list[NodeSet]:
    """The same for receivers; `logits` stands alone, because it takes in everything that others would pass on."""
    sets = _sets(model, names, receiver_kinds(model), "receiver")
    for one in sets:
        if len(one.nodes) > 1 and any(node.kind == "logits" for node in one.nodes):
            raise BadInput(f"receivers {one.label!r}: 'logits' must be a set of its own")
    return sets


def _sets(model: Model, names: NodesLike, kinds: Mapping[str, tuple[str, ...]], what: str) -> list[NodeSet]:
    if isinstance(names, Mapping):
        sets = [NodeSet(str(label), tuple(_nodes(model, some, kinds, what))) for label, some in names.items()]
    else:
        sets = [NodeSet(str(node), (node,)) for node in _nodes(model, names, kinds, what)]
    if not sets or not all(one.nodes for one in sets):
        raise BadInput(f"no {what}s given; name at least one of {', '.join(kinds)}")
    return sets


def _nodes(
    model: Model, chosen: str | Node | Sequence[str | Node], kinds: Mapping[str, tuple[str, ...]], what: str
) -> list[Node]:
    names = [chosen] if isinstance(chosen, str | Node) else list(chosen)
    return list(dict.fromkeys(node for name in names for node in _expand(model, str(name), kinds, what)))


def _expand(model: Model, name: str, kinds: Mapping[str, tuple[str, ...]], what: str) -> list[Node]:
    kind, *numbers = name.strip().split(".")
    if kind not in kinds:
        raise UnknownName(
            f"no {what} {name!r}{_reason(model, kind)}{did_you_mean(kind, kinds) or ''}; {what}s: {', '.join(kinds)}"
        )
    axes = kinds[kind]
    if len(numbers) > len(axes) or not all(number.isdecimal() for number in numbers):
        raise UnknownName(f"no {what} {name!r}; write {'.'.join([kind, *(axis.upper() for axis in axes)])}")
    having = [layer for layer, block in enumerate(model.anatomy) if kind in block.places]
    heads = max((heads_at(model, Site(kind, layer)) for layer in having), default=0)
    counts = {"layer": model.cfg.n_layers, "head": heads}
    if "head" in axes and not heads:
        raise UnknownName(f"no {what} {name!r}: {model.name} has no attention heads")
    choices = []
    for place, axis in enumerate(axes):
        chosen = [int(numbers[place])] if place < len(numbers) else list(range(counts[axis]))
        if chosen[0] >= counts[axis]:
            raise UnknownName(f"no {what} {name!r}: {kind} has {axis}s 0 to {counts[axis] - 1}")
        choices.append(chosen)
    nodes = [Node(kind, *values) for values in product(*choices)]
    return [node for node in nodes if _is_there(model, node)] if len(nodes) > 1 else nodes


def _reason(model: Model, kind: str) -> str:
    """Why what heads read is no receiver."""
    for branch in model.branches():
        if branch.units == "head" and kind in {branch.site(name).name for name in READ_BY_HEADS}:
            return f" (heads of {branch.kind.replace('_', ' ')} do not read it off the stream directly)"
    return ""


def _is_there(model: Model, node: Node) -> bool:
    """Layers may differ: "every one in the model" are the nodes of layers that have the branch."""
    try:
        node.branch(model)
    except UnknownName:
        return False
    return True
