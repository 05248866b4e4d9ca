"""What is measured of a lens's distribution of tokens, cell by cell; every number has its definition here.

A *cell* is one real token of the batch, seen at one layer; padding has no cells.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import check_name

LARGEST_JS = 0.6931471  # log 2, rounded down: float32's own rounding would pass the bound


class Distribution:
    """Token distributions of some cells, in float32; computed when they are first asked for."""

    def __init__(self, logits: Float[Tensor, "part vocab"]):
        self.logits = logits.float()

    @cached_property
    def log(self) -> Float[Tensor, "part vocab"]:
        return self.logits.log_softmax(-1)

    @cached_property
    def probability(self) -> Float[Tensor, "part vocab"]:
        return self.log.exp()

    @cached_property
    def entropy(self) -> Float[Tensor, "part"]:
        return -torch.linalg.vecdot(self.probability, self.log)


@dataclass
class View:
    """What a measure sees: the lens's distribution q of some cells, the reference p (the model's own), which cells."""

    lens: Distribution
    reference: Distribution
    part: slice


Measure = Callable[[View], Float[Tensor, "part"]]


def entropy(view: View) -> Tensor:
    """H(q) = -Σ q log q, in nats."""
    return view.lens.entropy


def cross_entropy(view: View) -> Tensor:
    """H(p, q) = -Σ p log q, in nats: what it costs to code the model's prediction with the lens's."""
    return -torch.linalg.vecdot(view.reference.probability, view.lens.log)


def kl(view: View) -> Tensor:
    """KL(p‖q) = Σ p (log p - log q), in nats: what the lens lacks of the model's prediction."""
    # the difference first, so that equal distributions give exactly 0
    return torch.linalg.vecdot(view.reference.probability, view.reference.log - view.lens.log).clamp_min(0.0)


def js(view: View) -> Tensor:
    """Jensen-Shannon divergence ½ KL(p‖m) + ½ KL(q‖m), m = ½(p + q), in nats: symmetric, between 0 and log 2."""
    # in place, for new arrays of this size cost more than the arithmetic
    mixture = (view.lens.probability + view.reference.probability).mul_(0.5)
    mixed = -torch.linalg.vecdot(mixture, mixture.clamp_min(torch.finfo(torch.float32).tiny).log_())
    return (mixed - 0.5 * (view.lens.entropy + view.reference.entropy)).clamp(0.0, LARGEST_JS)


def tv(view: View) -> Tensor:
    """Total variation ½ Σ |p - q|: the largest difference in probability that any set of tokens has; 0 to 1."""
    return (0.5 * (view.lens.probability - view.reference.probability).abs_().sum(-1)).clamp_max(1.0)


def logsumexp(view: View) -> Tensor:
    """log Σ exp(logit), in nats: what turns the lens's logits into log-probabilities."""
    return view.lens.logits.amax(-1) - view.lens.log.amax(-1)


def agreement(view: View) -> Tensor:
    """1 where lens and model have the same likeliest token, else 0."""
    return (view.lens.logits.argmax(-1) == view.reference.logits.argmax(-1)).float()


MEASURES: dict[str, Measure] = {
    "entropy": entropy,
    "kl": kl,
    "cross_entropy": cross_entropy,
    "js": js,
    "tv": tv,
    "logsumexp": logsumexp,
}
LESS_IS_BETTER = frozenset({"entropy", "kl", "cross_entropy", "js", "tv", "rank"})  # surer, or nearer to the model
UNITS = dict.fromkeys(MEASURES, "nats") | {"tv": ""}


def log_probability(ids: Int[Tensor, "cell"]) -> Measure:
    """log q of one token a cell, in nats; NaN where the id is negative (there is no such token)."""

    def measure(view: View) -> Tensor:
        tokens = ids[view.part].to(view.lens.log.device)
        values = view.lens.log.gather(-1, tokens.clamp_min(0)[:, None])[:, 0]
        return values.masked_fill(tokens < 0, float("nan"))

    return measure


def rank(ids: Int[Tensor, "cell"]) -> Measure:
    """Place of one token a cell among all tokens: 1 is the likeliest, ties share the better place; NaN where the id is
    negative."""
    of_token = log_probability(ids)

    def measure(view: View) -> Tensor:
        value = of_token(view)
        better = (view.lens.log > value[:, None]).sum(-1, dtype=torch.int32)
        return better.add(1).float().masked_fill(value.isnan(), float("nan"))

    return measure


def log_mass(ids: Int[Tensor, "token"] | Int[Tensor, "cell token"]) -> Measure:
    """log of the probability that a set of tokens has together, in nats; -inf for an empty set.

    Args:
        ids: one set for all cells, or one set for each cell, filled up with -1.
    """

    def measure(view: View) -> Tensor:
        tokens = (ids if ids.ndim == 1 else ids[view.part]).to(view.lens.log.device)
        if tokens.ndim == 1:
            return view.lens.log[:, tokens].logsumexp(-1)
        values = view.lens.log.gather(-1, tokens.clamp_min(0))
        return values.masked_fill(tokens < 0, -torch.inf).logsumexp(-1)

    return measure


def renyi(order: float) -> Measure:
    """Rényi entropy log Σ qᵃ / (1 - a) of order a, in nats: 1 is Shannon's, inf is -log max q, 0 is log vocabulary."""
    if order == 1:
        return entropy
    if order == float("inf"):
        return lambda view: -view.lens.log.amax(-1)
    return lambda view: (order * view.lens.log).logsumexp(-1) / (1 - order)


def measures_of(names: Iterable[str]) -> dict[str, Measure]:
    """The measures of these names. Raises `UnknownName` for a name that is not in `MEASURES`."""
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        check_name("measure", name, MEASURES)
    return {name: MEASURES[name] for name in names}
