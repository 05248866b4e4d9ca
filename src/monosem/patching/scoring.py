"""Metrics of a patched run, by name, and the normalised score: the plain functions of `monosem.metrics` on pairs."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .. import metrics
from ..data import TokenPairs
from ..errors import BadInput, UnknownName, did_you_mean

# metric(logits, pairs, clean logits) -> one number a row; logits are those after the last token, `batch vocab`
Metric = Callable[
    [Float[Tensor, "batch vocab"], TokenPairs, Float[Tensor, "batch vocab"]],
    Float[Tensor, "batch"],
]
MetricLike = str | Metric | Sequence[str] | Mapping[str, Metric]


def logit_diff(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """logit of the right answer minus that of the wrong one."""
    return metrics.logit_diff(logits, _needed(pairs.right, "right", logits), _needed(pairs.wrong, "wrong", logits))


def probability(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """Probability of the right answer."""
    return metrics.probability(logits, _needed(pairs.right, "right", logits))


def log_probability(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """Log-probability of the right answer, in nats."""
    return -metrics.cross_entropy(logits, _needed(pairs.right, "right", logits))


def negative_kl(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """-KL(clean‖patched) over the whole vocabulary, in nats: 0 when the patch restores the clean prediction."""
    return -metrics.kl(clean, logits)


def log_odds(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """log P(right answers) - log P(wrong answers), in nats; each side may be a set of tokens."""
    return pairs.advantage(logits)


def probability_diff(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """P(right answers) - P(wrong answers), summed over sets: greater-than's measure (Hanna et al. 2023), -1 to 1."""
    right, wrong = (_needed(side, name, logits) for side, name in zip(pairs.answers, ("right", "wrong")))
    return metrics.set_log_probability(logits, right).exp() - metrics.set_log_probability(logits, wrong).exp()


METRICS: dict[str, Metric] = {
    "logit_diff": logit_diff,
    "probability": probability,
    "log_probability": log_probability,
    "negative_kl": negative_kl,
    "log_odds": log_odds,
    "probability_diff": probability_diff,
}


def default_metric(pairs: TokenPairs) -> str:
    """What suits the answers: logit difference of single tokens, probability difference of sets, KL without any."""
    if pairs.right is not None and pairs.wrong is not None:
        return "logit_diff"
    return "negative_kl" if any(side is None for side in pairs.answers) else "probability_diff"


def metrics_of(given: MetricLike) -> dict[str, Metric]:
    """Names, functions, or several of them, as a table.

    Raises:
        UnknownName: no metric of that name.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if callable(given):
        return {getattr(given, "__name__", "metric"): given}
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in METRICS:
            near = did_you_mean(name, METRICS)
            raise UnknownName(f"unknown metric {name!r}{near or '; known: ' + ', '.join(METRICS)}")
    return {name: METRICS[name] for name in names}


def normalised(
    patched: Float[Tensor, "*cells"], clean: Float[Tensor, ""], corrupted: Float[Tensor, ""]
) -> Float[Tensor, "*cells"]:
    """(patched - corrupted) / (clean - corrupted) of dataset means: 0 = as corrupted, 1 = as clean; may leave 0..1.

    Ratio of means, not mean of ratios, which a pair with a small difference would dominate. NaN where clean and
    corrupted do not differ.
    """
    gap = clean - corrupted
    return torch.where(gap.abs() > 1e-8, (patched - corrupted) / gap, torch.full_like(patched, float("nan")))


def _needed(answers: Tensor | None, which: str, logits: Tensor) -> Tensor:
    if answers is None:
        raise BadInput(f"this metric needs {which} answers; give them to TokenPairs.of(..., {which}=[...])")
    return answers.to(logits.device)
