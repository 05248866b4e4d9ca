"""Which units become nodes, where there are more than a graph can hold: the most influential, by one reverse sweep.

Influence starts at the logits (their weights) and flows from a row to what it is made of, by shares of magnitude.
Layers are visited from the last to the first: when a layer's turn comes, all that reads it has been visited, so that
its influence is final. It gets its share of the nodes that are left, by how much influence it and the layers before it
hold. What is not chosen becomes a part of the error nodes, so that rows still add up.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..progress import Meter
from .frozen import Targets
from .influence import SMALLEST
from .parts import Parts, Source


def most_influential(parts: Parts, logits: Targets, weights: Tensor, n: int, rows: int, quiet: bool) -> Parts:
    """The same parts with at most n units.

    Args:
        rows: how many targets to compute at once.
    """
    if parts.n_units <= n:
        return parts
    influence = [torch.zeros(len(one), dtype=parts.frozen.dtype, device=one.values.device) for one in parts.units]
    kept, left = list(parts.units), n
    with Meter("choosing nodes", n, "nodes", quiet=quiet) as meter:
        _spread(parts, logits, weights, influence, rows)
        for i in range(len(kept) - 1, -1, -1):
            own, all_left = float(influence[i].sum()), float(sum(part.sum() for part in influence[: i + 1]))
            wanted = min(math.ceil(left * own / all_left) if all_left > 0 else 0, left, int((influence[i] > 0).sum()))
            best = influence[i].topk(wanted).indices.sort().values
            kept[i] = parts.units[i].chosen(best)
            left -= wanted
            if wanted:
                _spread(parts, kept[i].targets(), influence[i][best], influence, rows)
            meter.advance(wanted)
    return parts.with_units(kept)


def _spread(parts: Parts, targets: Targets, weights: Tensor, influence: list[Tensor], rows: int) -> None:
    """Adds to the influence of units what targets of these weights give them."""
    for some, chunk in targets.chunks(rows):
        blocks = {source: block.abs_() for source, block in parts.rows(chunk).items() if source.kind != "bias"}
        sizes = {source: _values(parts, source, block).abs() for source, block in blocks.items()}
        total = torch.stack([block @ sizes[source] for source, block in blocks.items()]).sum(0)
        shares = weights[some] / total.clamp(min=SMALLEST)
        for source, block in blocks.items():
            if source.kind == "units":
                influence[source.number][: block.shape[1]] += (shares @ block) * sizes[source]


def _values(parts: Parts, source: Source, block: Tensor) -> Tensor:
    if source.kind != "units":
        return block.new_ones(block.shape[1])
    return parts.units[source.number].values[: block.shape[1]]


def row_blocks(parts: Parts, targets: Targets) -> Tensor:
    """What each column gives to each target, `target column`."""
    starts = parts.starts()
    made = torch.zeros(len(targets), parts.n_columns, dtype=parts.frozen.dtype, device=targets.vectors.device)
    for source, block in parts.rows(targets).items():
        columns = slice(starts[source], starts[source] + block.shape[1])
        torch.mul(block, _values(parts, source, block), out=made[:, columns])
    return made


def edges(parts: Parts, logits: Targets, rows: int, quiet: bool) -> Iterator[tuple[slice, Targets, Tensor]]:
    """Every row: which, its targets, and what each column gives to it; units first, then logits."""
    first = 0
    groups = [one.targets() for one in parts.units if len(one)] + [logits]
    with Meter("edges", sum(map(len, groups)), "rows", quiet=quiet) as meter:
        for group in groups:
            for some, chunk in group.chunks(rows):
                yield slice(first + some.start, first + some.stop), chunk, row_blocks(parts, chunk)
                meter.advance(len(chunk))
            first += len(group)
