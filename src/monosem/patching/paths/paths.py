"""Path patching: how much of what a sender does reaches the output through one receiver.

Activation patching of a head moves everything downstream of it. A path patch moves what one receiver reads:

1. both prompts are run; the *base* run is the clean one ("noising") or the corrupted one ("denoising"), the other is
   the *source*;
2. senders write what they write in the source run, while all other heads keep their base output; the receivers' inputs
   are recorded;
3. the base run is repeated with the receivers reading the recorded inputs, everything after them computed anew.

Nothing is linearised: norms see the changed stream, qk-norm and rotation follow natively, the change of a head in front
of a post-norm is taken after it (Wang et al. 2022, arXiv:2211.00593; the residual-difference form).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data import TokenPairs
from ...errors import BadInput, UnknownName
from ...models import Model
from ...models.running.budget import bytes_of
from ...plots import heatmap
from ...progress import Meter
from ..cells import Positions, index_of
from ..measured import Sweep
from ..scoring import Metric, MetricLike, measured, metrics_of
from .nodes import NodeSet, NodesLike, receivers_of, senders_of
from .receivers import Passage, Reading, logits_of
from .senders import Streams

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Direction = Literal["noising", "denoising"]
EVERYTHING = ("embed", "z", "mlp_out")


@dataclass(frozen=True)
class Path:
    """One cell of the result: what `sender` writes is read by `receiver`."""

    sender: NodeSet
    receiver: NodeSet
    site: str = "path"

    def __str__(self) -> str:
        return f"{self.sender} → {self.receiver}"

    def coordinate(self, axis: str) -> str:
        """Label of its sender or receiver."""
        end: NodeSet = getattr(self, axis)
        return end.label


@dataclass(frozen=True, eq=False)
class Paths(Sweep):
    """A `Sweep` whose cells are paths, over `("sender", "receiver")`; there is no cell where no path leads."""

    cells: Sequence[Path]  # type: ignore[assignment]

    def __repr__(self) -> str:
        return super().__repr__().replace("Sweep(", "Paths(", 1)

    def shares(self, metric: str | None = None) -> Float[Tensor, "cells"]:
        """Mean effect over the mean gap between clean and corrupted: -1 = the path alone corrupts, 1 = it restores."""
        name = self._metric(metric)
        gap = (self.clean[name] - self.corrupted[name]).mean()
        return self.effects(name).mean(1) / gap

    def plot(self, metric: str | None = None, site: str | None = None) -> "Figure":
        """Heads and MLPs by layer for a single receiver, else senders against receivers.

        Colours are `shares`, or the bare effects where clean and corrupted do not differ; `site` is the label of one
        receiver of several.
        """
        name = self._metric(metric)
        receivers = list(dict.fromkeys(path.receiver.label for path in self.cells))
        if site is not None and site not in receivers:
            raise UnknownName(f"no receiver {site!r}; the result has {', '.join(receivers[:8])}")
        chosen = site or (receivers[0] if len(receivers) == 1 else None)
        own = [i for i, path in enumerate(self.cells) if chosen in (None, path.receiver.label)]
        title = f"{'paths' if chosen is None else f'→ {chosen}'}, {self.direction}, {name}"
        shares = self.shares(name)
        scored = bool(shares.isfinite().all())
        numbers, unit = (shares, "share") if scored else (self.effects(name).mean(1), f"Δ {name}")
        if chosen is None or any(len(self.cells[i].sender.nodes) > 1 for i in own):
            values, (senders, shown) = self.grid(numbers)
            return heatmap(values, shown, senders, x_title="receiver", y_title="sender", title=title, unit=unit)
        return _by_layer(self, own, numbers, title, unit)


def paths(
    model: Model,
    pairs: TokenPairs,
    senders: NodesLike = EVERYTHING,
    receivers: NodesLike = "logits",
    metric: MetricLike = "logit_diff",
    *,
    direction: Direction = "noising",
    positions: Positions = None,
    freeze_mlps: bool = True,
    memory: str | int = "1GB",
    quiet: bool = False,
) -> Paths:
    """Patch the path from every sender (set) to every receiver (set) behind it.

        found = ms.patching.paths(model, pairs, senders="z", receivers=["q.20.3", "logits"])
        found.plot(site="q.20.3")

    Args:
        senders, receivers: names as listed in `patching.nodes`, each patched alone; or `{label: [names]}`, all nodes of
            a label together.
        metric: as in a sweep: names of `METRICS`, functions, several at once.
        direction: "noising" sends corrupted values along the path in the clean run, "denoising" the reverse.
        positions: token indices or names of spans at which senders are changed (default: all). The way from sender to
            receiver keeps to its position, so these are those of the receivers, too.
        freeze_mlps: True: direct edges only, MLPs between sender and receiver keep their base output. False: they
            answer to the change (the definition of Wang et al.), so a path may lead through them.
        memory: budget of one batch of runs, estimated from shapes.

    Raises:
        UnknownName, BadInput: unknown nodes, metrics or positions; no path from any sender to any receiver; edits that
            are in force (`model.editing`), which would not reach the parts that are computed here.
    """
    if direction not in ("noising", "denoising"):
        raise BadInput(f"direction is 'noising' or 'denoising', not {direction!r}")
    if model.ambient_edits:
        raise BadInput("path patching inside model.editing(...) would miss its edits; leave that block first")
    sending, receiving = senders_of(model, senders), receivers_of(model, receivers)
    cells = [Path(s, r) for s in sending for r in receiving if _leads(model, s, r)]
    if not cells:
        raise BadInput("no path leads from these senders to these receivers: receivers must lie behind senders")
    metrics = metrics_of(metric)
    rows = _rows_at_once(model, pairs, receiving, memory)
    size = min(rows, len(pairs))
    parts = []
    with Meter("paths", len(cells) * len(pairs), "run", quiet=quiet) as meter:
        for first in range(0, len(pairs), size):
            part = pairs[slice(first, first + size)].to(model.device)
            job = _Job(model, part, cells, metrics, direction, freeze_mlps, rows // size, meter)
            parts.append(job(_chosen(part, positions)))
    values, clean, corrupted = (
        {name: torch.cat([one[i][name] for one in parts], -1) for name in metrics} for i in range(3)
    )
    return Paths(
        cells,
        ("sender", "receiver"),
        values,
        clean,
        corrupted,
        direction=direction,
        method="direct" if freeze_mlps else "through MLPs",
        model=model.name,
        corruption="corrupted prompt",
    )


@dataclass(frozen=True, eq=False)
class _Job:
    """All paths for some of the pairs."""

    model: Model
    pairs: TokenPairs
    cells: Sequence[Path]
    metrics: dict[str, Metric]
    direction: Direction
    freeze_mlps: bool
    batch: int  # passages, or sender sets, at once
    meter: Meter

    def __call__(self, where: Bool[Tensor, "batch pos"]) -> tuple[dict[str, Tensor], ...]:
        noising = self.direction == "noising"
        ends = (self.pairs.clean, self.pairs.corrupted)
        sending = list(dict.fromkeys(path.sender for path in self.cells))
        with torch.no_grad():
            streams = Streams(self.model, *(ends if noising else ends[::-1]), sending, where)
            clean, corrupted = (streams.logits, streams.source_logits)[:: 1 if noising else -1]
            shape = (len(self.cells), len(self.pairs))
            values = {name: torch.empty(shape, dtype=torch.float64) for name in self.metrics}
            for first in range(0, len(sending), self.batch):
                for path, logits in self._runs(streams, sending[first : first + self.batch]):
                    for name, value in measured(self.metrics, logits, self.pairs, clean).items():
                        values[name][path] = value
                    self.meter.advance(len(self.pairs))
            unpatched = [measured(self.metrics, logits, self.pairs, clean) for logits in (clean, corrupted)]
        return values, *unpatched

    def _runs(self, streams: Streams, sets: Sequence[NodeSet]) -> Iterator[tuple[int, Tensor]]:
        """Number of a cell, and its logits `batch vocab`; every cell of these sender sets once."""
        ready: dict[tuple[int, str, int], list[tuple[int, Passage]]] = {}
        places = {one: place for place, one in enumerate(sets)}
        for number, path in enumerate(self.cells):
            if path.sender in places:
                passage = Passage(places[path.sender], path.receiver)
                ready.setdefault(_batch_key(self.model, path.receiver), []).append((number, passage))
        reading = Reading(streams, frozenset(n for group in ready.values() for _, p in group for n in p.receiver.nodes))
        needed = {last for last, _, _ in ready}
        for layer, stage in enumerate(streams.stages(sets, max(needed), self.freeze_mlps)):
            reading.take(stage)
            for key in [key for key in ready if key[0] == layer]:
                group = ready.pop(key)
                for first in range(0, len(group), self.batch):
                    numbers, passages = zip(*group[first : first + self.batch])
                    yield from zip(numbers, logits_of(streams, reading.found, passages))
            reading.keep({node for group in ready.values() for _, p in group for node in p.receiver.nodes})


def _batch_key(model: Model, receiver: NodeSet) -> tuple[int, str, int]:
    """Receivers with one key run in one batch: the layer after which all are recorded, their form, where runs begin."""
    if receiver.nodes[0].kind == "logits":
        return model.cfg.n_layers, "logits", model.cfg.n_layers
    layers = [int(node.layer or 0) for node in receiver.nodes]
    form = "mlp" if {node.kind for node in receiver.nodes} == {"mlp_in"} and len(layers) == 1 else "run"
    return max(layers), form, min(layers)


def _leads(model: Model, sender: NodeSet, receiver: NodeSet) -> bool:
    return min(node.depth(model) for node in sender.nodes) <= max(node.depth(model) for node in receiver.nodes)


def _chosen(pairs: TokenPairs, positions: Positions) -> Bool[Tensor, "batch pos"]:
    """The tokens at which senders are changed."""
    tokens = pairs.clean
    if positions is None:
        return tokens.mask
    listed = [positions] if isinstance(positions, int | str) else list(positions)
    wanted = torch.zeros_like(tokens.mask)
    for row in range(len(pairs)):
        for position in listed:
            wanted[row] |= tokens.mask[row] & (tokens.positions[row] == index_of(position, pairs, row))
    return wanted


def _rows_at_once(model: Model, pairs: TokenPairs, receivers: Sequence[NodeSet], memory: str | int) -> int:
    """Runs of one pair that fit the budget together: one block's tensors, the logits, and what receivers record."""
    c, length = model.cfg, pairs.clean.ids.shape[1]
    widths = {"mlp_in": c.d_model, "logits": c.d_model / length}
    recorded = sum(widths.get(node.kind, c.d_head) for node in {node for one in receivers for node in one.nodes})
    block = 12 * c.d_model + 4 * c.d_mlp + 4 * c.n_heads * c.d_head
    need = 4 * (length * (block + recorded) + 2 * c.d_vocab)
    return max(1, int(bytes_of(memory) // need))


def _by_layer(result: Paths, own: Sequence[int], numbers: Tensor, title: str, unit: str) -> "Figure":
    """Layers down, heads and the MLP across: one receiver, single senders."""
    nodes = [result.cells[i].sender.nodes[0] for i in own]
    heads = sorted({node.head for node in nodes if node.head is not None})
    columns: list[Any] = [*heads, *([None] if any(node.kind == "mlp_out" for node in nodes) else [])]
    layers: list[Any] = sorted({node.layer for node in nodes if node.layer is not None})
    rows = [*([None] if any(node.kind == "embed" for node in nodes) else []), *layers]
    columns = columns or [None]
    grid = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64)
    hover = [["" for _ in columns] for _ in rows]
    for i, node in zip(own, nodes):
        at = rows.index(node.layer), columns.index(node.head) if node.kind != "embed" else len(columns) - 1
        grid[at] = numbers[i]
        hover[at[0]][at[1]] = f"{result.cells[i]}<br>{unit} {numbers[i]:.3f}"
    x = ["MLP" if head is None else str(head) for head in columns]
    y = ["embed" if layer is None else str(layer) for layer in rows]
    return heatmap(grid, x, y, hover=hover, x_title="head", y_title="layer", title=title, unit=unit)
