"""The kinds of probe, one row each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from ..errors import BadInput
from . import descent, joint, linear, pooling
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
        joint: whether it reads all places of the rows together, and is one probe.
        stages: of parts and states, `stages places n`: the scores at which a cascade may stop, the last one the whole.
    """

    about: str
    fit: Callable[..., list[Parts]]
    score: Callable[[Mapping[str, Tensor], Tensor, Tensor | None], Tensor]
    linear: bool = True
    graded: bool = False
    tokens: bool = False
    joint: bool = False
    stages: Callable[[Mapping[str, Tensor], Tensor], Tensor] | None = None


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
        return [function(train, validation, linear.chosen(made, _line, validation)[0], seed=seed, **own)]

    return fit


def _of_tokens(about: str, function: Callable[..., Parts], score: Callable[..., Tensor]) -> Kind:
    def fit(train: Rows, validation: Rows, strengths: Sequence[float], seed: int, **own: Any) -> list[Parts]:
        return [function(train, validation, seed=seed, **own)]

    return Kind(about, fit, score, False, tokens=True)


def _ccs(train: Rows, validation: Rows, strengths: Sequence[float], seed: int) -> list[Parts]:
    return [linear.ccs(train.x, train.y, pairs_of(train), seed=seed)]


KINDS: dict[str, Kind] = {
    "mass_mean": Kind("difference of class means", _closed(linear.mass_mean), _line),
    "lda": Kind("difference of means, whitened by the covariance within the classes", _closed(linear.lda), _line),
    "ridge": Kind("least squares", _graded(linear.ridge), _line, graded=True),
    "logistic": Kind("logistic regression", _graded(linear.logistic), _line, graded=True),
    "sparse": Kind("logistic regression on a few dimensions or latents", _graded(linear.sparse), _line, graded=True),
    "ccs": Kind("contrast-consistent search: pairs without labels", _ccs, _line),
    "polynomial": Kind(
        "powers of directions", _from_linear(descent.polynomial), descent.polynomial_score, False,
        stages=descent.by_order,
    ),
    "bilinear": Kind("products of directions", _from_linear(descent.bilinear), descent.bilinear_score, False),
    "mlp": Kind("one hidden layer", _from_linear(descent.mlp), descent.mlp_score, False),
    "early_exit": Kind(
        "hidden layers, each with an exit", _from_linear(descent.early_exit), descent.early_exit_score, False,
        stages=descent.by_exit,
    ),
    "joined": Kind("logistic regression on all places", _graded(linear.logistic), _line, graded=True, joint=True),
    "averaged": Kind("the mean of the places' logistic probes", joint.averaged, _line, joint=True),
    "stacked": Kind("logistic regression on the places' logistic probes", joint.stacked, _line, joint=True),
    "attention": _of_tokens("a softmax over tokens", pooling.attention, pooling.attention_score),
    "positional": _of_tokens("a softmax over tokens by place, too", pooling.positional, pooling.positional_score),
    "soft_attention": _of_tokens("a softmax over a hidden layer", pooling.soft_attention, pooling.soft_attention_score),
    "multimax": _of_tokens("the largest token of each head", pooling.multimax, pooling.multimax_score),
    "gated_bipolar": _of_tokens("gated extremes, up and down", pooling.gated_bipolar, pooling.gated_bipolar_score),
    "rolling": _of_tokens("the strongest window of tokens", pooling.rolling, pooling.rolling_score),
}  # fmt: skip


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
