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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from ...data import TokenPairs
from ...models import Model
from ...statistics import Interval, Share, bootstrap_ratio
from ..cells import Cell
from ..scoring import Metric, MetricLike, one_metric
from .sets import CellSet, Joint, patch_sets


@dataclass(frozen=True)
class Evidence:
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


def answered(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """1 where the right answer is likelier than the wrong one; without answers, where the clean top token stays."""
    if any(side is None for side in pairs.answers):
        return (logits.argmax(-1) == clean.argmax(-1)).double()
    return (pairs.advantage(logits) > 0).double()


def evidence(
    model: Model,
    pairs: TokenPairs,
    sets: Sequence[CellSet],
    metric: MetricLike | None = None,
    *,
    seed: int = 0,
    memory: str | int = "2GB",
    quiet: bool = False,
) -> list[Evidence]:
    """Sufficiency, necessity and the probabilities of each set, from two patched runs a pair.

    Args:
        metric: one metric; default: what suits the answers (`default_metric`).
        seed: of the bootstrap over pairs.

    Raises:
        BadInput, UnknownName: as `patch_sets`.
    """
    name, function = one_metric(metric, pairs)
    table: dict[str, Metric] = {name: function, "answered": answered}
    options: dict[str, Any] = {"memory": memory, "quiet": quiet}
    restored = patch_sets(model, pairs, sets, table, "denoising", label="restore sets", **options)
    corrupted = patch_sets(model, pairs, sets, table, "noising", label="corrupt sets", **options)
    return [_evidence(i, name, restored, corrupted, seed) for i in range(len(restored.sets))]


def sufficiency(
    model: Model, pairs: TokenPairs, cells: CellSet, metric: MetricLike | None = None, **options: Any
) -> Interval:
    """The share of clean minus corrupted that comes back when only `cells` are restored; options as `evidence`."""
    return evidence(model, pairs, [cells], metric, **options)[0].sufficiency


def necessity(
    model: Model, pairs: TokenPairs, cells: CellSet, metric: MetricLike | None = None, **options: Any
) -> Interval:
    """The share of clean minus corrupted that is lost when only `cells` are corrupted; options as `evidence`."""
    return evidence(model, pairs, [cells], metric, **options)[0].necessity


def _evidence(i: int, metric: str, restored: Joint, corrupted: Joint, seed: int) -> Evidence:
    clean, other = restored.clean, restored.corrupted
    right_clean, right_other = clean["answered"] > 0.5, other["answered"] > 0.5
    repaired, broken = restored.values["answered"][i] > 0.5, corrupted.values["answered"][i] < 0.5
    pn, ps = _share(broken, right_clean), _share(repaired, ~right_other)
    gap = clean[metric] - other[metric]
    return Evidence(
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
