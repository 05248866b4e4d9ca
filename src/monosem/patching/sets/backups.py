"""Backup heads: heads that matter more once what mattered is taken out (Wang et al. 2022; McGrath et al. 2023).

The need for head h is how much the metric falls when h alone gets its corrupted activations in the clean run. With a
set A corrupted as well, it is how much the metric falls from the run with A corrupted to that with A and h corrupted.
A head whose need grows by a threshold, and then reaches it, has stood in for A, which an ablation of A alone hides.

All heads are ranked by a first-order estimate of that growth (two gradients a pair); the exact runs are made for the
best of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...data import TokenPairs
from ...errors import BadInput, require
from ...models import Branch, Model
from ...plots import BLUE, GREY, Figure, style
from ...results import Result, analysis
from ..cells import Cell, Position, SpanPositions, check_cell, listed, places_of
from ..scoring import Metric, MetricLike, one_metric, refuse_joint
from ..trials import Trial, Writes, patching_experiment, writes_of
from .sets import CellSet, patch_sets


@dataclass(frozen=True, eq=False)
class Backup(Result):
    """What heads add before and after a set is corrupted, as shares of clean minus corrupted.

    Attributes:
        heads: the heads that were measured exactly.
        need, need_after: the need for each in the clean run, and with the set corrupted, `heads`.
        estimated: first-order growth of every head of the model, `layer head` (of the layers that have heads).
        threshold: growth from which a head counts as backup.
    """

    heads: Sequence[Cell]
    need: Float[Tensor, "heads"]
    need_after: Float[Tensor, "heads"]
    estimated: Float[Tensor, "layer head"]
    threshold: float
    ranked_by: ClassVar[str | None] = "growth"

    @property
    def growth(self) -> Float[Tensor, "heads"]:
        return self.need_after - self.need

    @property
    def backups(self) -> list[Cell]:
        """Heads whose need grows by the threshold at least, and then reaches it; most first."""
        order = self.growth.argsort(descending=True).tolist()
        return [self.heads[i] for i in order if min(self.growth[i], self.need_after[i]) >= self.threshold]

    @property
    def best(self) -> Cell:
        """The head whose need grows most, whether or not it counts as backup."""
        return self.heads[int(self.growth.argmax())]

    @property
    def table(self) -> pd.DataFrame:
        """A row a measured head: need without and with the set corrupted, growth, and whether it counts as backup."""
        backups = set(self.backups)
        frame = pd.DataFrame(
            {
                "layer": [cell.layer for cell in self.heads],
                "head": [cell.head for cell in self.heads],
                "need": self.need.numpy(),
                "need_after": self.need_after.numpy(),
                "growth": self.growth.numpy(),
                "backup": [cell in backups for cell in self.heads],
            }
        )
        return frame.sort_values("growth", ascending=False, ignore_index=True)

    def plot(self) -> Figure:
        """Need before against need after; backup heads lie above the diagonal."""
        return picture(self.table)


def picture(table: pd.DataFrame) -> Figure:
    """`Backup.plot`, from the table alone."""
    go = require("plotly.graph_objects", "plots")
    figure = go.Figure()
    for name, colour, is_backup in (("measured heads", GREY, False), ("backup", BLUE, True)):
        rows = table[table["backup"] == is_backup]
        figure.add_scatter(
            x=rows["need"].tolist(),
            y=rows["need_after"].tolist(),
            text=(rows["layer"].astype(str) + "." + rows["head"].astype(str)).tolist(),
            mode="markers+text",
            textposition="top center",
            name=name,
            marker={"color": colour, "size": 9},
            hovertemplate="head %{text}<br>before %{x:.3f}, after %{y:.3f}<extra></extra>",
        )
    needs = table[["need", "need_after"]]
    ends = [float(needs.min().min()), float(needs.max().max())]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dot"}, name="unchanged")
    return style(figure, "need in the clean run", "need once the set is corrupted")


@analysis
def backup(
    model: Model,
    pairs: TokenPairs,
    cells: CellSet,
    *,
    metric: MetricLike | None = None,
    positions: SpanPositions | None = None,
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
    refuse_joint(pairs, "backup")
    if not head_branches(model):
        raise BadInput(f"backup heads are heads that attend, and {model.name} has none")
    name, function = one_metric(metric, pairs)
    at = None if positions is None else tuple(listed(pairs, positions))
    for cell in cells:
        check_cell(model, cell)
    estimated = _estimates(model, pairs, cells, {name: function}, at, quiet)
    branches = head_branches(model)
    whole = {cell.place for cell in cells if cell.head is None}
    taken = {(cell.place, cell.head) for cell in cells}
    heads = []
    for i in estimated.flatten().argsort(descending=True).tolist():
        branch, head = branches[i // model.cfg.n_heads], i % model.cfg.n_heads
        site = branch.site("z")
        if branch.out not in whole and (site, head) not in taken:
            heads.append(Cell(site.name, branch.layer, at, head=head))
    heads = heads[:candidates]
    sets = [(), *((head,) for head in heads), tuple(cells), *((*cells, head) for head in heads)]
    runs = patch_sets(
        model, pairs, sets, metric={name: function}, direction="noising", memory=memory, quiet=quiet,
        label="backup heads",
    )  # fmt: skip
    left = runs.scores()
    n = len(heads)
    return Backup(heads, left[0] - left[1 : n + 1], left[n + 1] - left[n + 2 :], estimated, threshold)


def head_branches(model: Model) -> list[Branch]:
    """Every branch that attends, in order: heads of a memory are no backup of heads that attend."""
    return [one for one in model.branches() if one.units == "head" and one.slot.mixer.row.attends]


def _estimates(
    model: Model,
    pairs: TokenPairs,
    cells: CellSet,
    metric: dict[str, Metric],
    at: tuple[Position, ...] | None,
    quiet: bool,
) -> Float[Tensor, "layer head"]:
    """First-order growth of every head's need, as a share of clean minus corrupted.

    The need is estimated as (base - corrupted) z · gradient, in the clean run and in the run with `cells` corrupted.
    """
    probes = [Cell(branch.site("z").name, branch.layer, at) for branch in head_branches(model)]
    ((name, function),) = metric.items()

    def growth(trial: Trial) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        after = _needs(trial, writes_of(trial, [cells]), probes, function)
        yield slice(None), {name: (after - _needs(trial, [], probes, function)).flatten()}

    experiment = patching_experiment(model, pairs, places_of([*probes, *cells]), metric, "noising")
    columns = {"head": range(len(probes) * model.cfg.n_heads)}
    grown = experiment.run(growth, columns, label="estimate backup", unit="head", quiet=quiet)
    return (grown.mean() / grown.gap().mean()).unflatten(0, (len(probes), -1))


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
