"""The kinds of probe, one row each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import BadInput
from . import descent, linear
from .rows import Rows

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """How a kind of probe is fitted and read.

    Attributes:
        about: what it is, in words.
        fit: of training rows, validation rows, strengths, seed, and options of its own; one set of parts for each
            strength, or a single one where the kind has none.
        score: of parts, states and mask: `places n`.
        linear: whether its parts are weights and a bias.
        graded: whether it is fitted at several strengths, of which validation rows choose.
        tokens: whether it reads every token of a text.
    """

    about: str
    fit: Callable[..., list[Parts]]
    score: Callable[[Mapping[str, Tensor], Tensor, Tensor | None], Tensor]
    linear: bool = True
    graded: bool = False
    tokens: bool = False


def _line(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    return linear.score(dict(parts), x)


def _closed(function: Callable[..., Parts]) -> Callable[..., list[Parts]]:
    return lambda train, validation, strengths, seed, **own: [function(train.x, train.y, **own)]


def _graded(function: Callable[..., list[Parts]]) -> Callable[..., list[Parts]]:
    return lambda train, validation, strengths, seed, **own: function(train.x, train.y, strengths=strengths, **own)


def _from_linear(function: Callable[..., Parts]) -> Callable[..., list[Parts]]:
    """Starts from the logistic probe of the strength that validation rows choose."""

    def fit(train: Rows, validation: Rows, strengths: Sequence[float], seed: int, **own: Any) -> list[Parts]:
        made = linear.logistic(train.x, train.y, strengths=strengths)
        return [function(train, validation, chosen(made, _line, validation)[0], seed=seed, **own)]

    return fit


def _of_tokens(function: Callable[..., Parts]) -> Callable[..., list[Parts]]:
    return lambda train, validation, strengths, seed, **own: [function(train, validation, seed=seed, **own)]


def _ccs(train: Rows, validation: Rows, strengths: Sequence[float], seed: int) -> list[Parts]:
    return [linear.ccs(train.x, train.y, pairs_of(train), seed=seed)]


KINDS: dict[str, Kind] = {
    "mass_mean": Kind("difference of class means", _closed(linear.mass_mean), _line),
    "lda": Kind("difference of means, whitened by the covariance within the classes", _closed(linear.lda), _line),
    "ridge": Kind("least squares", _graded(linear.ridge), _line, graded=True),
    "logistic": Kind("logistic regression", _graded(linear.logistic), _line, graded=True),
    "sparse": Kind("logistic regression on a few dimensions or latents", _graded(linear.sparse), _line, graded=True),
    "ccs": Kind("contrast-consistent search: pairs without labels", _ccs, _line),
    "polynomial": Kind("powers of directions", _from_linear(descent.polynomial), descent.polynomial_score, False),
    "bilinear": Kind("products of directions", _from_linear(descent.bilinear), descent.bilinear_score, False),
    "mlp": Kind("one hidden layer", _from_linear(descent.mlp), descent.mlp_score, False),
    "attention": Kind(
        "a softmax over tokens", _of_tokens(descent.attention), descent.attention_score, False, tokens=True
    ),
    "multimax": Kind(
        "the largest token of each head", _of_tokens(descent.multimax), descent.multimax_score, False, tokens=True
    ),
    "rolling": Kind(
        "the strongest window of tokens", _of_tokens(descent.rolling), descent.rolling_score, False, tokens=True
    ),
}  # fmt: skip


def chosen(made: list[Parts], score: Callable[..., Tensor], validation: Rows) -> tuple[Parts, Int[Tensor, "places"]]:
    """Of the parts of several strengths, for each place those with the least validation log loss, and which they are;
    of equal ones, the first."""
    if len(made) == 1:
        return made[0], torch.zeros(len(validation.x), dtype=torch.long)
    target = validation.y.to(validation.x.device).double()
    mask = None if validation.mask is None else validation.mask.to(validation.x.device)
    losses = []
    for parts in made:
        f = score(parts, validation.x, mask)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(f, target.expand_as(f), reduction="none")
        losses.append(loss.mean(1))
    best, rows = torch.stack(losses).argmin(0), torch.arange(len(validation.x))
    return {name: torch.stack([parts[name] for parts in made])[best, rows] for name in made[0]}, best.cpu()


def pairs_of(rows: Rows) -> Int[Tensor, "pairs 2"]:
    """The two rows of each group, in their order: a statement and its negation.

    Raises:
        BadInput: a group of another size, or the label always stands in the same place: each side is normalised by its
            own mean, which would take the label away.
    """
    groups = rows.groups
    order = groups.argsort(stable=True)
    sizes = groups.unique(return_counts=True)[1]
    if not bool((sizes == 2).all()):
        raise BadInput("ccs needs groups of two rows: a statement and its negation; name the pairs with groups=")
    pairs = order.reshape(-1, 2)
    first, second = rows.y[pairs].T
    if bool((first == second).any()):
        raise BadInput("ccs needs one positive and one negative row in every group")
    if bool(first.all()) or not bool(first.any()):
        raise BadInput(
            "the first row is of the same class in every pair, and ccs normalises each side by its own mean, which "
            "would take the label away: order the rows of a pair by their form, not by their label"
        )
    return pairs
