"""How far a set of places is enough for an answer, and how far it is needed: definitions, counts and intervals.

With m the mean of a metric over pairs, and C the set of places:

- **sufficiency** = (m(corrupted run, C restored) - m(corrupted)) / (m(clean) - m(corrupted)): the share of the effect
  that comes back when only C has its clean activations.
- **necessity** = (m(clean) - m(clean run, C corrupted)) / (m(clean) - m(corrupted)): the share that is lost when only C
  has its corrupted activations.

Both are ratios of means; they may leave 0..1 (a set can overshoot, others can compensate). As probabilities over pairs,
with "right" for: the right answer is likelier than the wrong one (without answers: the clean run's top token stays):

- **PN**, probability of necessity: of the pairs that are right in the clean run, the share that is wrong once C is
  corrupted.
- **PS**, probability of sufficiency: of the pairs that are wrong in the corrupted run, the share that is right once C
  is restored.
- **PNS**, probability of necessity and sufficiency: max(0, PN + PS - 1) <= PNS <= min(PN, PS) (Fréchet's bounds, as in
  Tian and Pearl 2000). Where a pair is right in the clean and wrong in the corrupted run, both can be seen on it, so
  the share of such pairs in which C breaks the one and repairs the other is reported too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from jaxtyping import Bool
from torch import Tensor

from ...data import TokenPairs
from ...errors import require
from ...models import Model
from ...plots import BLUE, ORANGE, Figure, style
from ...results import Result, analysis
from ...statistics import Interval, Share, bootstrap_ratio
from ..cells import Cell
from ..scoring import Metric, MetricLike, one_metric, refuse_joint
from .sets import CellSet, Joint, patch_sets


@dataclass(frozen=True)
class SetEvidence:
    """What a set of places does to the answer; the definitions stand at the top of this module.

    Attributes:
        cells: the set. metric: what sufficiency and necessity are shares of.
        pns: (lower, upper) bound. both: of the pairs that are right clean and wrong corrupted, those in which the set
            breaks the one and repairs the other.
    """

    cells: tuple[Cell, ...]
    metric: str
    sufficiency: Interval
    necessity: Interval
    pn: Share
    ps: Share
    pns: tuple[float, float]
    both: Share

    @property
    def shares(self) -> dict[str, Share]:
        return {"pn": self.pn, "ps": self.ps, "both": self.both}


@dataclass(frozen=True, eq=False)
class CausalEvidence(Result):
    """The evidence for several sets, by their labels; `evidence["heads"]` and `evidence[0]` give one."""

    sets: Mapping[str, SetEvidence]
    ranked_by: ClassVar[str | None] = "sufficiency"

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, label: str | int) -> SetEvidence:
        return self.sets[label] if isinstance(label, str) else list(self.sets.values())[label]

    def __repr__(self) -> str:
        said = (
            f"{label}: sufficiency {one.sufficiency}, necessity {one.necessity}" for label, one in self.sets.items()
        )
        return f"CausalEvidence({'; '.join(said)})"

    @property
    def best(self) -> SetEvidence:
        """The set with the largest sufficiency."""
        return max(self.sets.values(), key=lambda one: one.sufficiency.value)

    @property
    def table(self) -> pd.DataFrame:
        """A row a set: size, sufficiency and necessity with intervals, PN, PS and the bounds of PNS."""
        rows = []
        for label, one in self.sets.items():
            row: dict[str, Any] = {"set": label, "cells": len(one.cells)}
            for name in ("sufficiency", "necessity"):
                row |= _bounded(name, getattr(one, name))
            for name, share in one.shares.items():
                row |= {f"{name}_count": share.count, f"{name}_of": share.of} | _bounded(name, share.interval)
            rows.append(row | {"pns_low": one.pns[0], "pns_high": one.pns[1]})
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """Sufficiency and necessity of every set, with intervals."""
        go = require("plotly.graph_objects", "plots")
        figure = go.Figure()
        for name, colour in (("sufficiency", BLUE), ("necessity", ORANGE)):
            intervals: list[Interval] = [getattr(one, name) for one in self.sets.values()]
            bars = {
                "symmetric": False,
                "array": [one.high - one.value for one in intervals],
                "arrayminus": [one.value - one.low for one in intervals],
            }
            heights = [one.value for one in intervals]
            figure.add_bar(x=list(self.sets), y=heights, error_y=bars, name=name, marker={"color": colour})
        return style(figure, "", "share of clean minus corrupted")


def _bounded(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def answered(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """1 where the right answer is likelier than the wrong one; without answers, where the clean top token stays."""
    if any(side is None for side in pairs.answers):
        return (logits.argmax(-1) == clean.argmax(-1)).double()
    return (pairs.advantage(logits) > 0).double()


@analysis
def causal_evidence(
    model: Model,
    pairs: TokenPairs,
    sets: Sequence[CellSet] | Mapping[str, CellSet],
    *,
    metric: MetricLike | None = None,
    seed: int = 0,
    memory: str | int = "2GB",
    quiet: bool = False,
) -> CausalEvidence:
    """Sufficiency, necessity and the probabilities of each set, from two patched runs a pair.

    Args:
        sets: the sets of cells, or `{label: cells}`; without labels they are "set 0", "set 1", ...
        metric: one metric; default: what suits the answers (`default_metric`).
        seed: of the bootstrap over pairs.

    Raises:
        BadInput, UnknownName: as `patch_sets`.
    """
    labelled = sets if isinstance(sets, Mapping) else {f"set {i}": one for i, one in enumerate(sets)}
    refuse_joint(pairs, "causal_evidence")
    name, function = one_metric(metric, pairs)
    table: dict[str, Metric] = {name: function, "answered": answered}
    cells = list(labelled.values())
    options: dict[str, Any] = {"memory": memory, "quiet": quiet}
    restored = patch_sets(model, pairs, cells, metric=table, direction="denoising", label="restore sets", **options)
    corrupted = patch_sets(model, pairs, cells, metric=table, direction="noising", label="corrupt sets", **options)
    return CausalEvidence({label: _evidence_of(i, name, restored, corrupted, seed) for i, label in enumerate(labelled)})


def sufficiency(
    model: Model, pairs: TokenPairs, cells: CellSet, *, metric: MetricLike | None = None, **options: Any
) -> Interval:
    """The share of clean minus corrupted that comes back when only `cells` are restored; options: `causal_evidence`."""
    return causal_evidence(model, pairs, [cells], metric=metric, **options)[0].sufficiency


def necessity(
    model: Model, pairs: TokenPairs, cells: CellSet, *, metric: MetricLike | None = None, **options: Any
) -> Interval:
    """The share of clean minus corrupted that is lost when only `cells` are corrupted; options: `causal_evidence`."""
    return causal_evidence(model, pairs, [cells], metric=metric, **options)[0].necessity


def _evidence_of(i: int, metric: str, restored: Joint, corrupted: Joint, seed: int) -> SetEvidence:
    clean, other = restored.clean, restored.corrupted
    right_clean, right_other = clean["answered"] > 0.5, other["answered"] > 0.5
    repaired, broken = restored.values["answered"][i] > 0.5, corrupted.values["answered"][i] < 0.5
    pn, ps = _share(broken, right_clean), _share(repaired, ~right_other)
    gap = clean[metric] - other[metric]
    return SetEvidence(
        cells=restored.sets[i],
        metric=metric,
        sufficiency=bootstrap_ratio(restored.values[metric][i] - other[metric], gap, seed=seed),
        necessity=bootstrap_ratio(clean[metric] - corrupted.values[metric][i], gap, seed=seed),
        pn=pn,
        ps=ps,
        pns=pns_bounds(pn.value, ps.value),
        both=_share(repaired & broken, right_clean & ~right_other),
    )


def pns_bounds(pn: float, ps: float) -> tuple[float, float]:
    """(max(0, PN + PS - 1), min(PN, PS)); NaN where either is unknown."""
    if pn != pn or ps != ps:
        return float("nan"), float("nan")
    return max(0.0, pn + ps - 1), min(pn, ps)


def _share(event: Bool[Tensor, "pairs"], among: Bool[Tensor, "pairs"]) -> Share:
    return Share(int((event & among).sum()), int(among.sum()))
