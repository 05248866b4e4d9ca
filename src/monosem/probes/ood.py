"""How well distances tell unusual texts from usual ones: near and far, and with lengths alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..plots import Figure, by_layer, lines
from ..results import Tabled, analysis
from ..statistics import auroc_interval
from . import measures
from .distances import Distances
from .ensemble import LayerEnsemble
from .rows import Rows

Scorer = Distances | Callable[[Rows], Float[Tensor, "n"]]
LENGTH_BINS = 8
USUAL = 0.05  # of usual texts, the share that may be called unusual


@dataclass(frozen=True)
class Ood(Tabled):
    """`table`: for each detector, place and kind of unusual text: AUROC with its interval, the same with lengths alike
    (NaN where no lengths are shared), average precision of either side, the share of usual texts that is called unusual
    where 95 % of the unusual ones are, and how many of these a threshold from usual texts alone (5 %) finds."""

    ranked_by: ClassVar[str | None] = "auroc"

    def plot(self) -> Figure:
        places = list(dict.fromkeys(self.rows["place"]))
        curves: dict[str, Any] = {}
        for (detector, against), part in self.rows.groupby(["detector", "against"], sort=False):
            by_place = part.set_index("place")["auroc"].reindex(places)
            curves[f"{detector}, {against}"] = (by_place.to_numpy(), None)
        x, title = by_layer(places)
        return lines(curves, x, x_title=title, y_title="AUROC")


@analysis
def ood(detectors: Mapping[str, Scorer], usual: Rows, unusual: Mapping[str, Rows], *, seed: int = 0) -> Ood:
    """Detectors side by side on held-out usual rows and on each kind of unusual ones ("near", "far").

    Args:
        detectors: distances, with a row of the table for each place (where they have held-out scores also "together",
            and of log scores "together, log"); a `LayerEnsemble`; or a function that gives each row a score.

    Raises:
        BadInput: nothing to compare, fewer than two rows on a side, or usual texts that a distance has seen. Mismatch:
            as `Distances.score`.
    """
    if not detectors or not unusual or min(len(usual), *(len(rows) for rows in unusual.values())) < 2:
        raise BadInput("give at least one detector, and two rows or more of usual texts and of each unusual kind")
    table = []
    for name, detector in detectors.items():
        if isinstance(detector, Distances | LayerEnsemble) and (seen := int(detector.seen(usual.texts).sum())):
            raise BadInput(
                f"{name} was fitted on {seen} of the {len(usual)} usual texts, which lie nearer than new ones: give "
                "usual texts that it has not seen"
            )
        below = _scores(detector, usual)
        for against, rows in unusual.items():
            if isinstance(detector, LayerEnsemble) and (seen := int(detector.seen(rows.texts).sum())):
                raise BadInput(
                    f"{seen} texts of {against} are among the usual ones of {name}, or gave its weights: give others"
                )
            if both := len({*usual.texts} & {*rows.texts}):
                raise BadInput(f"{both} texts of {against} are among the usual ones: a text is one or the other")
            above = _scores(detector, rows)
            kept = _alike(usual.lengths, rows.lengths, seed)
            table += [(name, place, against, *_numbers(f, above[place], kept)) for place, f in below.items()]
    columns = ["detector", "place", "against", "auroc", "low", "high", "auroc_lengths_alike", "ap_unusual", "ap_usual"]
    frame = pd.DataFrame(table, columns=[*columns, "fpr_at_95", "found_at_5"])
    return Ood(frame, {"usual": len(usual), "unusual": {name: len(rows) for name, rows in unusual.items()}})


def _scores(detector: Scorer, rows: Rows) -> dict[str, Float[Tensor, "n"]]:
    if not isinstance(detector, Distances):
        return {"-": torch.as_tensor(detector(rows)).double()}
    found = dict(zip(map(str, detector.places), detector.score(rows)))
    if detector.held is not None and len(detector.places) > 1:
        found["together"] = detector.combined(rows)
        if not detector.signed:
            found["together, log"] = detector.combined(rows, log=True)
    return found


def _numbers(below: Tensor, above: Tensor, kept: tuple[Tensor, Tensor] | None) -> list[float]:
    f, y = torch.cat([below, above]).numpy(), np.arange(len(below) + len(above)) >= len(below)
    area = auroc_interval(above, below)
    same = float("nan") if kept is None else auroc_interval(above[kept[1]], below[kept[0]]).value
    edge = below.quantile(1 - USUAL, interpolation="higher")
    numbers = [*area, same, measures.average_precision(f, y), measures.average_precision(-f, ~y)]
    return [*numbers, measures.false_alarms_at(0.95)(f, y), float((above > edge).double().mean())]


def _alike(one: Tensor | None, other: Tensor | None, seed: int) -> tuple[Tensor, Tensor] | None:
    """As many rows of both sides in every range of lengths."""
    if one is None or other is None:
        return None
    draw = torch.Generator().manual_seed(seed)
    both = torch.cat([one, other]).double()
    edges = both.quantile(torch.linspace(0, 1, LENGTH_BINS + 1, dtype=torch.float64))[1:-1]
    places = [torch.bucketize(side.double(), edges) for side in (one, other)]
    chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for i in range(LENGTH_BINS):
        rows = [(place == i).nonzero()[:, 0] for place in places]
        n = min(map(len, rows))
        for side, found in zip(chosen, rows):
            side.append(found[torch.randperm(len(found), generator=draw)[:n]])
    left, right = (torch.cat(side) for side in chosen)
    return (left, right) if len(left) > 1 else None
