"""What a probe is worth on held-out rows: how it ranks, what it finds at few false alarms, whether its probabilities
are true; each number with an interval over groups drawn again."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..plots import Figure, lines
from ..results import Tabled, analysis
from ..statistics import PERCENTILES, Interval, auroc_interval
from .probe import Probes
from .rows import Rows

BINS = 15  # of equal mass
Array = np.ndarray
Measure = Callable[[Array, Array], float]  # of scores and labels


# ---------------------------------------------------------------------- how it ranks
def _curve(f: Array, y: Array) -> tuple[Array, Array]:
    """False and true positive rates at every threshold, the strictest first, from (0, 0) to (1, 1)."""
    order = np.argsort(-f, kind="stable")
    f, y = f[order], y[order]
    last = np.append(f[1:] != f[:-1], True)  # equal scores pass a threshold together
    rates = [np.append(0, np.cumsum(one)[last]) / max(one.sum(), 1) for one in (~y, y)]
    return rates[0], rates[1]


def _under(x: Array, y: Array) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)


def area(f: Array, y: Array) -> float:
    """AUROC, ties counting half."""
    return _under(*_curve(f, y))


def partial_area(f: Array, y: Array, most: float = 0.05) -> float:
    """AUROC up to a false positive rate, stretched so that chance is 0.5 and perfect 1 (McClish 1989)."""
    fpr, tpr = _curve(f, y)
    inside = fpr <= most
    x = np.append(fpr[inside], most)
    part = _under(x, np.append(tpr[inside], np.interp(most, fpr, tpr)))
    return 0.5 * (1 + (part - most**2 / 2) / (most - most**2 / 2))


def average_precision(f: Array, y: Array) -> float:
    """Σ (recall_i - recall_(i-1)) precision_i over thresholds: precision and recall, not interpolated."""
    fpr, tpr = _curve(f, y)
    hits, alarms = tpr * y.sum(), fpr * (~y).sum()
    precision = hits[1:] / np.maximum(hits + alarms, 1)[1:]
    return float((np.diff(tpr) * precision).sum())


def recall_at(most: float) -> Measure:
    """The largest true positive rate of a threshold whose false positive rate is at most this."""
    return lambda f, y: float((curve := _curve(f, y))[1][curve[0] <= most + 1e-12].max())


def false_alarms_at(least: float) -> Measure:
    """The smallest false positive rate of a threshold whose true positive rate is at least this."""
    return lambda f, y: float((curve := _curve(f, y))[0][curve[1] >= least - 1e-12].min())


# ---------------------------------------------------------------------- decisions and probabilities
def balanced_accuracy(said: Array, y: Array) -> float:
    return float((said[y].mean() + (~said)[~y].mean()) / 2)


def precision_at(share: float) -> Measure:
    """Precision if a share of all rows were positive, from the rates here."""

    def precision(said: Array, y: Array) -> float:
        hits, alarms = share * said[y].mean(), (1 - share) * said[~y].mean()
        return float(hits / (hits + alarms)) if hits + alarms > 0 else float("nan")

    return precision


def brier(p: Array, y: Array) -> float:
    return float(np.square(p - y).mean())


def log_loss(p: Array, y: Array) -> float:
    right = np.where(y, p, 1 - p)
    return float(-np.log(np.clip(right, 1e-15, 1)).mean())


def bins(p: Array, y: Array) -> list[tuple[float, float, int]]:
    """Mean probability, share of positives and number of rows of `BINS` bins of equal mass, the least sure first."""
    order = np.argsort(p, kind="stable")
    return [(float(p[i].mean()), float(y[i].mean()), len(i)) for i in np.array_split(order, BINS) if len(i)]


def calibration_error(p: Array, y: Array) -> float:
    """ECE: the mean |probability - share of positives| over bins of equal mass."""
    return sum(n * abs(said - is_so) for said, is_so, n in bins(p, y)) / len(p)


def largest_calibration_error(p: Array, y: Array) -> float:
    """MCE: the largest of these."""
    return max(abs(said - is_so) for said, is_so, _ in bins(p, y))


RANKING: dict[str, Measure] = {
    "auroc": area,
    "partial auroc (FPR <= 5 %)": partial_area,
    "average precision": average_precision,
    "recall at FPR 0.1 %": recall_at(0.001),
    "recall at FPR 1 %": recall_at(0.01),
    "recall at FPR 5 %": recall_at(0.05),
    "FPR at recall 95 %": false_alarms_at(0.95),
}
# measures of a small share of one class (False: the negatives), and that share: below it there must be a row at least
SHARES = {
    "partial auroc (FPR <= 5 %)": (False, 0.05),
    "recall at FPR 0.1 %": (False, 0.001),
    "recall at FPR 1 %": (False, 0.01),
    "recall at FPR 5 %": (False, 0.05),
    "FPR at recall 95 %": (True, 0.05),
}
DECISIONS: dict[str, Measure] = {
    "balanced accuracy": balanced_accuracy,
    "recall": lambda said, y: float(said[y].mean()),
    "FPR": lambda said, y: float(said[~y].mean()),
}
PROBABILITIES: dict[str, Measure] = {
    "Brier score": brier,
    "log loss": log_loss,
    "ECE": calibration_error,
    "MCE": largest_calibration_error,
}


@dataclass(frozen=True)
class Measures(Tabled):
    """`table`: a row for each place and measure, with its 95 % interval (groups drawn again). `plot`: the reliability
    curve of each place."""

    curves: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict, repr=False)

    def value(self, measure: str, place: str | None = None) -> Interval:
        """One number with its interval. Raises `BadInput` where it is not measured, or of several places."""
        found = self.rows[self.rows["measure"] == measure]
        found = found if place is None else found[found["place"] == place]
        if len(found) != 1:
            raise BadInput(
                f"{len(found)} rows are of {measure!r}; there are {', '.join(self.rows['measure'].unique())}"
            )
        return Interval(*(float(found[name].iloc[0]) for name in ("value", "low", "high")))

    def plot(self) -> Figure:
        said = {name: ([is_so for _, is_so, _ in curve], None) for name, curve in self.curves.items()}
        x = [round(p, 3) for p, _, _ in next(iter(self.curves.values()))]
        return lines(said, x, x_title="probability", y_title="share of positives")


@analysis
def measure(
    probes: Probes, rows: Rows, *, draws: int = 300, prevalence: float | None = None, seed: int = 0
) -> Measures:
    """Every measure of every place on rows that the probe has not seen.

    Ranking goes by scores, decisions by the probe's threshold (0 where none was set), probabilities by the calibrated
    log-odds. Where a class has too few rows for the share that a measure is of (0.1 % of 18 negatives), it is NaN, and
    `config["left_out"]` says how many are needed: as many as a threshold for that share needs (`with_threshold`).

    Args:
        draws: of the bootstrap: groups are drawn again, with all their rows.
        prevalence: the share of positives where the probe is to be used, for its precision there.

    Raises:
        BadInput: rows of one class, fewer than 20 draws, a prevalence outside 0 to 1. Mismatch: as `Probes.score`.
    """
    rows.check_two_classes("measuring")
    if draws < 20 or not (prevalence is None or 0 < prevalence < 1):
        raise BadInput(f"draws is 20 or more and prevalence between 0 and 1, not {draws} and {prevalence}")
    y, given = rows.y.numpy(), (probes.score(rows), probes.fires(rows), probes.probability(rows))
    decisions = DECISIONS | ({} if prevalence is None else {f"precision at {prevalence:.2%}": precision_at(prevalence)})
    chosen = drawn_groups(rows, draws, seed)
    left_out, table, curves = too_few(y), [], {}
    for number, place in enumerate(map(str, probes.places)):
        for values, measures in zip(given, (RANKING, decisions, PROBABILITIES)):
            f = values[number].numpy()
            for name, function in measures.items():
                if name in left_out:
                    table.append((place, name, np.nan, np.nan, np.nan))
                    continue
                low, high = np.nanquantile([function(f[i], y[i]) for i in chosen], PERCENTILES)
                table.append((place, name, function(f, y), float(low), float(high)))
        curves[place] = bins(given[2][number].numpy(), y)
    frame = pd.DataFrame(table, columns=["place", "measure", "value", "low", "high"])
    about = {"rows": rows.named, "groups": len(rows.group_keys), "left_out": left_out}
    return Measures(frame, about, curves)


def too_few(y: Array) -> dict[str, str]:
    """The measures that these labels are too few for, and why."""
    found = {}
    for name, (positive, share) in SHARES.items():
        n, fewest = int((y == positive).sum()), math.ceil(1 / share - 1 - 1e-9)
        if n < fewest:
            found[name] = f"needs at least {fewest} {'positive' if positive else 'negative'} rows, and there are {n}"
    return found


def drawn_groups(rows: Rows, draws: int, seed: int) -> list[Array]:
    """Rows of as many groups as there are, drawn with replacement; draws with one class alone are drawn anew."""
    rng, y = np.random.default_rng(seed), rows.y.numpy()
    order = np.argsort(rows.groups.numpy(), kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(rows.groups.numpy()[order])) + 1)
    made: list[Array] = []
    for _ in range(100 * draws):
        chosen = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        if 0 < y[chosen].sum() < len(chosen):
            made.append(chosen)
        if len(made) == draws:
            return made
    raise BadInput(f"{len(members)} groups cannot be drawn again with both classes: give more groups")


def area_by_group(f: Float[Tensor, "n"], rows: Rows, *, draws: int = 300, seed: int = 0) -> Interval:
    """AUROC of scores of rows, with the wider of two 95 % intervals at each end: `statistics.auroc_interval`, which
    takes rows as independent and says something at 1.00 too, and groups drawn again, which are what is independent."""
    whole, y = auroc_interval(f[rows.y], f[~rows.y]), rows.y.numpy()
    if len(rows.group_keys) == len(rows):
        return whole
    values = f.double().numpy()
    low, high = np.quantile([area(values[i], y[i]) for i in drawn_groups(rows, draws, seed)], PERCENTILES)
    return Interval(whole.value, min(whole.low, float(low)), max(whole.high, float(high)))
