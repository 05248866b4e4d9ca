"""What path patching found: the numbers of an experiment whose variants are paths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import check_name
from ...plots import Figure, heatmap, literal
from ..measured import Measured
from .nodes import NodeSet


@dataclass(frozen=True)
class Path:
    """What `sender` writes is read by `receiver`."""

    sender: NodeSet
    receiver: NodeSet

    def __str__(self) -> str:
        return f"{self.sender} → {self.receiver}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Paths(Measured):
    """The effect of every path; `paths` are the variants, and there is none where no path leads."""

    paths: Sequence[Path]

    @property
    def best(self) -> Path:
        """The path that moves the first metric furthest, either way."""
        return self.paths[self.furthest()]

    def take(self, which: Sequence[int] | Tensor) -> Self:
        return replace(super().take(which), paths=[self.paths[i] for i in torch.as_tensor(which).tolist()])

    def shares(self, metric: str | None = None) -> Float[Tensor, "paths"]:
        """Mean effect over the mean gap between clean and corrupted: -1 = the path alone corrupts, 1 = it restores."""
        return self.effect(metric) / self.gap(metric).mean()

    def grid(self, values: Float[Tensor, "paths"] | None = None) -> tuple[Tensor, list[list[Any]]]:
        """One number a path (default: the scores), `sender receiver`, and their labels. NaN: there is no such path."""
        return self.grid_over(("sender", "receiver"), values)

    def plot(self, metric: str | None = None, receiver: str | None = None) -> Figure:
        """Heads and MLPs by layer for a single receiver, else senders against receivers.

        Colours are `shares`, or the bare effects where clean and corrupted do not differ; `receiver` is the label of
        one receiver of several.
        """
        name = self.metric_of(metric)
        receivers = list(dict.fromkeys(self.columns["receiver"]))
        if receiver is not None:
            check_name("receiver", receiver, receivers)
        chosen = receiver or (receivers[0] if len(receivers) == 1 else None)
        title = f"{'paths' if chosen is None else f'→ {chosen}'}, {self.direction}, {name}"
        numbers, unit = self.shares(name), "share"
        if not bool(numbers.isfinite().all()):
            numbers, unit = self.effect(name), f"Δ {name}"
        rows = [i for i, label in enumerate(self.columns["receiver"]) if chosen in (None, label)]
        if chosen is None or any(len(self.paths[i].sender.nodes) > 1 for i in rows):
            values, (senders, shown) = self.grid(numbers)
            return heatmap(values, shown, senders, x_title="receiver", y_title="sender", title=title, unit=unit)
        return _by_layer([self.paths[i] for i in rows], numbers[rows], title, unit)


def _by_layer(paths: Sequence[Path], numbers: Tensor, title: str, unit: str) -> Figure:
    """Layers down, heads and the MLP across: one receiver, single senders."""
    nodes = [path.sender.nodes[0] for path in paths]
    heads = sorted({node.head for node in nodes if node.head is not None})
    whole = dict.fromkeys(
        node.kind.removesuffix("_out") for node in nodes if node.layer is not None and node.head is None
    )
    columns: list[Any] = [*heads, *whole]
    layers: list[Any] = sorted({node.layer for node in nodes if node.layer is not None})
    rows = [*([None] if any(node.kind == "embed" for node in nodes) else []), *layers]
    columns = columns or [None]
    grid = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64)
    hover = [["" for _ in columns] for _ in rows]
    for path, node, number in zip(paths, nodes, numbers):
        column = node.kind.removesuffix("_out") if node.head is None else node.head
        at = rows.index(node.layer), columns.index(column) if node.kind != "embed" else len(columns) - 1
        grid[at] = number
        hover[at[0]][at[1]] = f"{literal(path)}<br>{literal(unit)} {number:.3f}"
    x = ["MLP" if column == "mlp" else str(column) for column in columns]
    y = ["embed" if layer is None else str(layer) for layer in rows]
    return heatmap(grid, x, y, hover=hover, x_title="head", y_title="layer", title=title, unit=unit)
