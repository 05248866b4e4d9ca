"""Probes of many places together: one linear probe on their states one after the other, put together from the logistic
probes of each place."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from . import linear
from .linear import Parts
from .rows import Place, Rows
from .splits import folds

FOLDS = 5


def averaged(train: Rows, validation: Rows, strengths: Sequence[float], seed: int) -> list[Parts]:
    """The mean of the log-odds of the places' own logistic probes, each at the strength that validation rows choose."""
    each, _ = _of_each(_apart(train), _apart(validation), strengths)
    return [_together(each, torch.full_like(each["bias"], 1 / len(each["bias"])), 0.0)]


def stacked(train: Rows, validation: Rows, strengths: Sequence[float], seed: int) -> list[Parts]:
    """Logistic regression on the log-odds of the places' own logistic probes (stacking, Wolpert 1992, Neural Networks
    5:241): a place has the weight that it deserves beside the others.

    Training rows are scored by probes of the other folds, groups kept together, for a probe that has seen a row is sure
    of it; the strengths are those that validation rows choose.
    """
    rows, held = _apart(train), _apart(validation)
    each, best = _of_each(rows, held, strengths)
    k = min(FOLDS, *(len(rows.groups[rows.y == label].unique()) for label in (True, False)))
    if k < 2:
        raise BadInput(
            "a stacked probe needs two groups or more of each class to fit on: give finer groups or averaged"
        )
    scores, labels, places = list[Tensor](), list[Tensor](), torch.arange(len(best))
    for part, rest in folds(rows, k, seed=seed):
        made = linear.logistic(part.x, part.y, strengths=strengths)
        parts = {name: torch.stack([one[name] for one in made])[best, places] for name in made[0]}
        scores.append(linear.score(parts, rest.x))
        labels.append(rest.y)
    level = linear.logistic(torch.cat(scores, 1).T[None], torch.cat(labels), strengths=strengths)
    top, _ = linear.chosen(level, _line, Rows(linear.score(each, held.x).T[None], held.y))
    return [_together(each, top["weights"][0], top["bias"][0])]


def _line(parts: Parts, x: Tensor, mask: Tensor | None) -> Tensor:
    return linear.score(parts, x)


def _apart(rows: Rows) -> Rows:
    """The places that were joined, each alone."""
    (place,) = rows.places
    x = rows.x[0].unflatten(-1, (len(place.sites), -1)).movedim(-2, 0)
    return replace(rows, x=x, places=tuple(Place((site,), f"{place.position}") for site in place.sites))


def _of_each(train: Rows, validation: Rows, strengths: Sequence[float]) -> tuple[Parts, Tensor]:
    made = linear.logistic(train.x, train.y, strengths=strengths)
    return linear.chosen(made, _line, validation)


def _together(each: Parts, share: Float[Tensor, "places"], bias: Tensor | float) -> Parts:
    """Σ_l share_l (w_lᵀ x_l + b_l) + bias as one line."""
    whole = (share * each["bias"]).sum() + bias
    return {"weights": (share[:, None] * each["weights"]).flatten()[None], "bias": whole[None]}
