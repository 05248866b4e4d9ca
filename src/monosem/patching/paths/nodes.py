"""Nodes: the two ends of a path through the residual stream. Senders write into it, receivers read from it.

| sender | writes |
|---|---|
| `embed` | what enters the first block |
| `z.L.H` | head H of layer L, through the output projection (and the branch's post-norm) |
| `mlp_out.L` | the MLP of layer L |

| receiver | reads |
|---|---|
| `q.L.H`, `k.L.G`, `v.L.G` | the query of head H, key or value of kv head G, through the layer's norm |
| `mlp_in.L` | the MLP of layer L, through its norm |
| `logits` | the unembedding, through the final norm, after the last token |

A name without its head (`z.3`) means every head of the layer, without its layer (`z`) every one in the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from ...errors import BadInput, UnknownName, did_you_mean
from ...models import Model

# kind -> what tells its nodes apart
SENDERS: dict[str, tuple[str, ...]] = {"embed": (), "z": ("layer", "head"), "mlp_out": ("layer",)}
RECEIVERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("q", "k", "v"), ("layer", "head")),
    "mlp_in": ("layer",),
    "logits": (),
}


@dataclass(frozen=True)
class Node:
    """One sender or receiver; `head` counts kv heads for k and v."""

    kind: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.kind, self.layer, self.head) if part is not None)

    def depth(self, model: Model) -> int:
        """Place along the stream: a receiver reads what senders of at most its own depth have written.

        In a block: queries, keys and values read at 3L, heads write at 3L + 1, where the MLP reads (at 3L in parallel
        blocks, where it does not see the heads of its own layer), and it writes at 3L + 2.
        """
        if self.kind == "embed":
            return 0
        if self.layer is None:
            return 3 * model.cfg.n_layers
        within = {"z": 1, "mlp_in": 0 if model.parallel else 1, "mlp_out": 2}
        return 3 * self.layer + within.get(self.kind, 0)


@dataclass(frozen=True)
class NodeSet:
    """Nodes that are patched together, under one label."""

    label: str
    nodes: tuple[Node, ...]

    def __str__(self) -> str:
        return self.label


NodesLike = str | Node | Sequence[str | Node] | Mapping[str, str | Node | Sequence[str | Node]]


def senders_of(model: Model, given: NodesLike) -> list[NodeSet]:
    """Names, each node a set of its own; or `{label: names}`, all nodes of a label one set.

    Raises:
        UnknownName: no such kind, layer or head. BadInput: nothing given.
    """
    return _sets(model, given, SENDERS, "sender")


def receivers_of(model: Model, given: NodesLike) -> list[NodeSet]:
    """The same for receivers; `logits` stands alone, because it takes in everything that others would pass on."""
    found = _sets(model, given, RECEIVERS, "receiver")
    for one in found:
        if len(one.nodes) > 1 and any(node.kind == "logits" for node in one.nodes):
            raise BadInput(f"receivers {one.label!r}: 'logits' must be a set of its own")
    return found


def _sets(model: Model, given: NodesLike, kinds: Mapping[str, tuple[str, ...]], what: str) -> list[NodeSet]:
    if isinstance(given, Mapping):
        sets = [NodeSet(str(label), tuple(_nodes(model, names, kinds, what))) for label, names in given.items()]
    else:
        sets = [NodeSet(str(node), (node,)) for node in _nodes(model, given, kinds, what)]
    if not sets or not all(one.nodes for one in sets):
        raise BadInput(f"no {what}s given; name at least one of {', '.join(kinds)}")
    return sets


def _nodes(
    model: Model, given: str | Node | Sequence[str | Node], kinds: Mapping[str, tuple[str, ...]], what: str
) -> list[Node]:
    names = [given] if isinstance(given, str | Node) else list(given)
    return list(dict.fromkeys(node for name in names for node in _expand(model, str(name), kinds, what)))


def _expand(model: Model, name: str, kinds: Mapping[str, tuple[str, ...]], what: str) -> list[Node]:
    kind, *numbers = name.strip().split(".")
    if kind not in kinds:
        raise UnknownName(f"no {what} {name!r}{did_you_mean(kind, kinds) or ''}; {what}s: {', '.join(kinds)}")
    axes = kinds[kind]
    if len(numbers) > len(axes) or not all(number.isdecimal() for number in numbers):
        raise UnknownName(f"no {what} {name!r}; write {'.'.join([kind, *(axis.upper() for axis in axes)])}")
    heads = model.cfg.n_kv_heads if kind in ("k", "v") else model.cfg.n_heads
    counts = {"layer": model.cfg.n_layers, "head": heads}
    choices = []
    for place, axis in enumerate(axes):
        chosen = [int(numbers[place])] if place < len(numbers) else list(range(counts[axis]))
        if chosen[0] >= counts[axis]:
            raise UnknownName(f"no {what} {name!r}: {kind} has {axis}s 0 to {counts[axis] - 1}")
        choices.append(chosen)
    return [Node(kind, *values) for values in product(*choices)]
