"""Where a probe says "positive", and how sure it is: thresholds by a target rate of false alarms, calibration, and a
cascade of probes that stops where one is sure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BadInput
from ..logistic import logistic_paths
from ..results import Result
from ..statistics import conformal_rank, conformal_threshold
from .fitting import areas_of
from .kinds import KINDS
from .probe import Probes
from .rows import Rows

MANY = 10**12  # rows, where none are known yet
CALIBRATION_PENALTY = 1e-3  # so that classes that can be separated get a finite slope


def with_threshold(probes: Probes, benign: Rows, *, target_fpr: float = 0.01) -> Probes:
    """The probe with the threshold that new benign rows pass with at most this probability.

    It is `statistics.conformal_threshold` of negative rows that the probe was not fitted on: for rows like these, the
    expected rate of false alarms is at most the target, whatever the distribution.

    Args:
        benign: its negative rows are used; held-out traffic of the kind that the probe will see. Rows by which a
            strength or a place was chosen are none: of 30 places, the best one's scores there are lower than on new
            rows. `held_out(parts.validation, 0.5)` keeps some back.

    Raises:
        BadInput: a target outside 0 to 1, too few negative rows to reach it, or texts that the probe has seen.
    """
    if seen := int(probes.seen(benign.texts).sum()):
        raise BadInput(
            f"the probe was fitted on or chosen by {seen} of these {len(benign)} texts, so that new ones would pass "
            "more often than the target: keep rows back from validation (monosem.probes.held_out), or give new ones"
        )
    scores = probes.score(benign)[:, ~benign.y]
    threshold = conformal_threshold(scores, target_fpr)
    about = {"target_fpr": target_fpr, "threshold_negatives": scores.shape[1]}
    return probes.with_seen(benign.texts).with_parts(about, threshold=threshold)


def check_target(target_fpr: float, n: int = MANY) -> None:
    """Raises `BadInput` for a rate of false alarms outside 0 to 1, or one that n negative rows cannot reach."""
    conformal_rank(n, target_fpr)


def calibrated(probes: Probes, rows: Rows) -> Probes:
    """The probe with a slope and a shift of its scores (Platt 1999) that make its probabilities true to these rows,
    which it must not have been fitted on.

    Raises:
        BadInput: rows of one class, or scores that go the wrong way.
    """
    rows.check_two_classes("a calibration")
    f = probes.score(rows)
    if bool((wrong := areas_of(f, rows.y) < 0.5).any()):
        place = probes.places[int(wrong.nonzero()[0])]
        raise BadInput(
            f"the scores at {place} are higher for negative rows: this probe says the opposite here; calibrate the "
            "probe of a place that works (.best, .at)"
        )
    spread = f.std(1, unbiased=False, keepdim=True).clamp(min=1e-300)
    (slope,), (shift,) = logistic_paths((f / spread)[..., None], rows.y, [CALIBRATION_PENALTY])
    return probes.with_parts({"calibration": rows.named}, calibration=torch.cat([slope / spread, shift[:, None]], 1))


# ---------------------------------------------------------------------- cascades
@dataclass(frozen=True)
class Cascade(Result):
    """`table`: for each stage, how many rows stop there, how many of them are said to be positive, its cost, and (with
    labels) its accuracy. `stage`, `positive`: of each row. `cost`: the mean over rows, by the first stage's."""

    stage: Int[Tensor, "n"] = field(repr=False)
    positive: Bool[Tensor, "n"] = field(repr=False)
    costs: tuple[float, ...]
    y: Bool[Tensor, "n"] | None = field(default=None, repr=False)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """A row pays for every stage up to the one where it stops."""
        return float(torch.tensor(self.costs).cumsum(0)[self.stage].mean()) / self.costs[0]

    @property
    def table(self) -> pd.DataFrame:
        rows = []
        for number, cost in enumerate(self.costs):
            here = self.stage == number
            right = None if self.y is None else (self.positive == self.y)[here].double()
            accuracy = float("nan") if right is None or not len(right) else float(right.mean())
            rows.append((number, int(here.sum()), int(self.positive[here].sum()), cost, accuracy))
        return pd.DataFrame(rows, columns=["stage", "rows", "positive", "cost", "accuracy"])


def cascade(
    probabilities: Sequence[Float[Tensor, "n"]] | Float[Tensor, "stages n"],
    *,
    tau: float = 0.2,
    costs: Sequence[float] | None = None,
    y: Bool[Tensor, "n"] | None = None,
) -> Cascade:
    """Ask one stage after the other; a row stops where its probability is not between tau and 1 - tau.

    Args:
        probabilities: of each stage, the cheapest first: `stages` of one probe, or several probes' own.
        costs: what a stage costs beside the ones before; default: 1 each.

    Raises:
        BadInput: no stages, other numbers of costs, a tau outside 0 to 0.5.
    """
    p = torch.stack([torch.as_tensor(one).double() for one in probabilities]) if len(probabilities) else torch.empty(0)
    prices = tuple(map(float, costs or [1.0] * len(p)))
    if p.ndim != 2 or len(prices) != len(p) or min(prices, default=0) <= 0 or not 0 <= tau <= 0.5:
        raise BadInput(
            f"a cascade needs probabilities stages × n, a cost above 0 for each stage and tau from 0 to 0.5; got "
            f"{list(p.shape)}, {len(prices)} costs and tau = {tau}"
        )
    sure = (p <= tau) | (p >= 1 - tau)
    sure[-1] = True
    stage = sure.long().argmax(0)
    positive = p[stage, torch.arange(p.shape[1])] > 0.5
    return Cascade(stage, positive, prices, y, {"tau": tau})


def stages(probe: Probes, rows: Rows) -> Float[Tensor, "stages n"]:
    """Probabilities of one probe at one place at each stage where a cascade may stop: a polynomial probe's terms up to
    each order, the exits of an early-exit probe. Raises `BadInput` for another kind or several places."""
    stages = KINDS[probe.kind].stages
    if stages is None or len(probe) != 1:
        names = " or ".join(name for name, kind in KINDS.items() if kind.stages)
        raise BadInput(f"stages are of a probe of kind {names} at one place: fit(..., kind='polynomial').best")
    probe.score(rows)  # checks them
    return stages(probe.parts, rows.x)[:, 0].sigmoid()
