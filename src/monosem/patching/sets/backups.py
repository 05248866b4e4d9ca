"""Backup heads: heads that matter more once what mattered is taken out (Wang et al. 2022; McGrath et al. 2023).

The need for head h is how much the metric falls when h alone gets its corrupted activations in the clean run. With a
set A corrupted as well, it is how much the metric falls from the run with A corrupted to that with A and h corrupted.
A head whose need grows by a threshold, and then reaches it, has stood in for A, which an ablation of A alone hides.

All heads are ranked by a first-order estimate of that growth (two gradients a pair); the exact runs are made for the
best of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...data import TokenPairs
from ...models import Model, Site
from ...progress import Meter
from ..cells import Cell, Position, check_cell
from ..corruptions import Prompt
from ..scoring import Metric, MetricLike, one_metric
from ..trial import Trial, Writes, trials
from .sets import CellSet, patch_sets

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class Backup:
    """What heads add before and after a set is corrupted, as shares of clean minus corrupted.

    Attributes:
        heads: the heads that were measured exactly. without, given: the need for each in the clean run, and with the
            set corrupted, `heads`.
        estimated: first-order growth of every head of the model, `layer head`.
        threshold: growth from which a head counts as backup.
    """

    heads: Sequence[Cell]
    without: Float[Tensor, "heads"]
    given: Float[Tensor, "heads"]
    estimated: Float[Tensor, "layer head"]
    threshold: float

    @property
    def growth(self) -> Float[Tensor, "heads"]:
        return self.given - self.without

    @property
    def found(self) -> list[Cell]:
        """Heads whose need grows by the threshold at least, and then reaches it; most first."""
        order = self.growth.argsort(descending=True).tolist()
        return [self.heads[i] for i in order if min(self.growth[i], self.given[i]) >= self.threshold]

    @property
    def table(self) -> pd.DataFrame:
        """A row a measured head: need without and with the set corrupted, growth, and whether it counts as backup."""
        found = set(self.found)
        rows = [
            {
                "layer": cell.layer,
                "head": cell.head,
                "need": before,
                "need_after": after,
                "growth": after - before,
                "backup": cell in found,
            }
            for cell, before, after in zip(self.heads, self.without.tolist(), self.given.tolist())
        ]
        frame = pd.DataFrame(rows, columns=["layer", "head", "need", "need_after", "growth", "backup"])
        return frame.sort_values("growth", ascending=False, ignore_index=True)

    def plot(self) -> "Figure":
        """Need before against need after; backup heads lie above the diagonal."""
        from ...errors import require
        from ...plots import BLUE, GREY, style

        go = require("plotly.graph_objects", "plots")
        found = set(self.found)
        figure = go.Figure()
        for name, colour, is_backup in (("measured heads", GREY, False), ("backup", BLUE, True)):
            rows = [i for i, cell in enumerate(self.heads) if (cell in found) == is_backup]
            figure.add_scatter(
                x=self.without[rows].tolist(),
                y=self.given[rows].tolist(),
                text=[f"{self.heads[i].layer}.{self.heads[i].head}" for i in rows],
                mode="markers+text",
                textposition="top center",
                name=name,
                marker={"color": colour, "size": 9},
                hovertemplate="head %{text}<br>before %{x:.3f}, after %{y:.3f}<extra></extra>",
            )
        ends = [
            float(torch.stack([self.without, self.given]).min()),
            float(torch.stack([self.without, self.given]).max()),
        ]
        figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dot"}, name="unchanged")
        return style(figure, "need in the clean run", "need once the set is corrupted")


def backup(
    model: Model,
    pairs: TokenPairs,
    cells: CellSet,
    metric: MetricLike | None = None,
    *,
    positions: Sequence[Position] | None = None,
    threshold: float = 0.05,
    candidates: int | None = 20,
    memory: str | int = "2GB",
    quiet: bool = False,
) -> Backup:
    """Corrupt `cells` in the clean run and see which heads outside it then matter more.

    Args:
        cells: what was found to matter (heads, whole branches).
        positions: where heads are corrupted; default: every position.
        threshold: growth, as a share of clean minus corrupted, from which a head counts.
        candidates: heads to measure exactly, the best by the first-order estimate; None measures all.

    Raises:
        BadInput, UnknownName: as `patch_sets`.
    """
    name, function = one_metric(metric, pairs)
    at = None if positions is None else tuple(positions)
    for cell in cells:
        check_cell(model, cell)
    estimated = _estimates(model, pairs, cells, function, at, quiet)
    taken = {(cell.layer, cell.head) for cell in cells if cell.site == "z" and cell.head is not None}
    taken |= {(cell.layer, head) for cell in cells if cell.site == "attn_out" for head in range(model.cfg.n_heads)}
    order = estimated.flatten().argsort(descending=True).tolist()
    places = [(i // model.cfg.n_heads, i % model.cfg.n_heads) for i in order]
    heads = [Cell("z", layer, at, head=head) for layer, head in places if (layer, head) not in taken][:candidates]
    sets = [(), *((head,) for head in heads), tuple(cells), *((*cells, head) for head in heads)]
    ran = patch_sets(model, pairs, sets, {name: function}, "noising", memory=memory, quiet=quiet, label="backup heads")
    gap = ran.clean[name].mean() - ran.corrupted[name].mean()
    value = ran.values[name].mean(1) / gap
    n = len(heads)
    return Backup(heads, value[0] - value[1 : n + 1], value[n + 1] - value[n + 2 :], estimated, threshold)


def _estimates(
    model: Model, pairs: TokenPairs, cells: CellSet, metric: Metric, at: tuple[Position, ...] | None, quiet: bool
) -> Float[Tensor, "layer head"]:
    """First-order growth of every head's need, as a share of clean minus corrupted.

    The need is estimated as (base - corrupted) z · gradient, in the clean run and in the run with `cells` corrupted.
    """
    layers = range(model.cfg.n_layers)
    sites = [Site("z", layer) for layer in layers]
    captured = list(dict.fromkeys([*sites, *(cell.place for cell in cells)]))
    total = torch.zeros(len(layers), model.cfg.n_heads, dtype=torch.float64)
    gap = 0.0
    other = Prompt().sides(model, pairs, captured)
    probes = [Cell("z", layer, at) for layer in layers]
    with Meter("estimate backup", total=len(pairs), unit="pair", quiet=quiet) as meter:
        for row in range(len(pairs)):
            (trial,) = trials(model, pairs, row, other(row), "noising", captured, None)
            writes = [Writes(cell.place, [(0, cell.index(trial.pairs, 0), trial.value(cell))]) for cell in cells]
            total += _needs(trial, writes, probes, metric) - _needs(trial, [], probes, metric)
            ends = (
                metric(logits, trial.pairs, trial.clean_logits) for logits in (trial.clean_logits, trial.other_logits)
            )
            gap += float(next(ends)) - float(next(ends))
            meter.advance()
    return total / gap


def _needs(
    trial: Trial, edits: Sequence[Writes], probes: Sequence[Cell], metric: Metric
) -> Float[Tensor, "layer head"]:
    sites = [cell.place for cell in probes]
    run = trial.model.run(trial.base.tokens, capture=sites, edits=edits, logits="last", grad=True)
    assert run.logits is not None
    value = metric(run.logits, trial.pairs, trial.clean_logits).sum()
    slopes = torch.autograd.grad(value, [run[site] for site in sites], allow_unused=True)
    rows = []
    for cell, slope in zip(probes, slopes):
        x, source = run[cell.place].detach()[0], trial.source[cell.place]
        product = torch.zeros_like(x) if slope is None else (x - source) * slope[0]
        rows.append(product[cell.index(trial.pairs, 0)].sum((0, -1)))
    return torch.stack(rows).double().cpu()
