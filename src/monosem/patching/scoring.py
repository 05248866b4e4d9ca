"""Metrics of a patched run, by name, and the normalised score: the plain functions of `monosem.metrics` on pairs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import metrics
from ..data import TokenPairs
from ..errors import BadInput, check_name
from ..metrics import joint_log_probability

# metric(logits, pairs, clean logits) -> one number a row; logits after the last token, `batch vocab`
Metric = Callable[
    [Float[Tensor, "batch vocab"], TokenPairs, Float[Tensor, "batch vocab"]],
    Float[Tensor, "batch"],
]
MetricLike = str | Metric | Sequence[str | Metric] | Mapping[str, Metric]


def logit_diff(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """Logit of the right answer minus logit of the wrong one."""
    return metrics.logit_diff(logits, _single(pairs, "right", logits), _single(pairs, "wrong", logits))


def probability(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """Probability of the right answer."""
    return metrics.probability(logits, _single(pairs, "right", logits))


def log_probability(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """Log-probability of the right answer, in nats."""
    return -metrics.cross_entropy(logits, _single(pairs, "right", logits))


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


# what can be measured of answers of several tokens: which sides' log-probabilities count, as what; the wrong one's is
# subtracted
JOINT: dict[Metric, tuple[tuple[str, ...], Callable[[Tensor], Tensor]]] = {
    log_probability: (("right",), lambda joint: joint),
    probability: (("right",), torch.exp),
    log_odds: (("right", "wrong"), lambda joint: joint),
    probability_diff: (("right", "wrong"), torch.exp),
}

METRICS: dict[str, Metric] = {
    "logit_diff": logit_diff,
    "probability": probability,
    "log_probability": log_probability,
    "negative_kl": negative_kl,
    "log_odds": log_odds,
    "probability_diff": probability_diff,
}


def default_metric(pairs: TokenPairs) -> str:
    """What suits the answers: logit difference of single tokens, probability difference of sets, log odds of answers of
    several tokens, KL without any."""
    if pairs.joint:
        return "negative_kl" if None in (pairs.right_tokens, pairs.wrong_tokens) else "log_odds"
    if pairs.right is not None and pairs.wrong is not None:
        return "logit_diff"
    return "negative_kl" if any(side is None for side in pairs.answers) else "probability_diff"


def metrics_of(metric: MetricLike) -> dict[str, Metric]:
    """Names, functions, or several of them, as a table.

    Raises:
        UnknownName: no metric of that name. BadInput: none at all, or two of one name.
    """
    if isinstance(metric, Mapping):
        table = dict(metric)
    else:
        several: list[Any] = list(metric) if isinstance(metric, list | tuple) else [metric]
        table = dict(map(_named, several))
        if len(table) < len(several):
            raise BadInput("two of the metrics have one name; give them as {name: function}")
    if not table:
        raise BadInput(f"no metric given; there are {', '.join(METRICS)}, and functions of your own")
    return table


def one_metric(metric: MetricLike | None, pairs: TokenPairs) -> tuple[str, Metric]:
    """Name and function of an analysis' one metric; None: what suits the answers (`default_metric`).

    Raises:
        UnknownName: no metric of that name. BadInput: several.
    """
    table = metrics_of(default_metric(pairs) if metric is None else metric)
    if len(table) != 1:
        raise BadInput(f"this needs one metric, not {', '.join(table)}")
    return next(iter(table.items()))


def measured(
    metrics: Mapping[str, Metric], logits: Float[Tensor, "rows vocab"], pairs: TokenPairs, clean: Tensor
) -> dict[str, Float[Tensor, "rows"]]:
    """Every metric of rows that stand for `pairs`, in float64 on the CPU.

    Raises:
        BadInput: a metric that does not give one number for each row, such as their mean.
    """
    numbers = {}
    for name, metric in metrics.items():
        value = torch.as_tensor(metric(logits, pairs, clean)).detach()
        if value.shape != (len(logits),):
            raise BadInput(f"metric {name!r} gives shape {tuple(value.shape)} for {len(logits)} rows; one number a row")
        numbers[name] = value.double().cpu()
    return numbers


def check_answers(metrics: Mapping[str, Metric], pairs: TokenPairs) -> None:
    """Raises `BadInput` for a metric that answers of several tokens do not have, or whose answers are missing."""
    for name, metric in metrics.items() if pairs.joint else ():
        if metric is logit_diff:
            raise BadInput("these answers have several tokens, and no one logit: use log_odds, or log_probability")
        for side in JOINT[metric][0] if metric in JOINT else ():
            if getattr(pairs, f"{side}_tokens") is None:
                raise BadInput(
                    f"{name} needs {side} answers; give them to TokenPairs.of(..., {side}=[...], joint=True)"
                )


ONE_TOKEN = (
    "{what} reads the one token after the prompt, and these answers have several: "
    "sweep, trace, patch_sets and subspace measure their joint probability"
)


def refuse_joint(pairs: TokenPairs, what: str) -> None:
    """Raises `BadInput` for answers of several tokens, in an analysis that reads the next token alone."""
    if pairs.joint:
        raise BadInput(ONE_TOKEN.format(what=what))


def jointly_measured(
    metrics: Mapping[str, Metric],
    logits: Float[Tensor, "rows step vocab"],
    answer: Int[Tensor, "step"],
    side: str,
    pairs: TokenPairs,
    clean: Float[Tensor, "rows step vocab"],
) -> dict[str, Float[Tensor, "rows"]]:
    """What one side's answer adds to every metric, in float64 on the CPU: right minus wrong is the metric.

    A metric that is not of the answers, such as KL, is of the first step, and comes with the first side alone.
    """
    others = {name: metric for name, metric in metrics.items() if metric not in JOINT}
    numbers = measured(others, logits[:, 0], pairs, clean[:, 0])
    first = side == ("right" if pairs.right_tokens is not None else "wrong")
    numbers = {name: value if first else 0 * value for name, value in numbers.items()}
    joint = joint_log_probability(logits, answer.to(logits.device).expand(len(logits), -1)).detach().double().cpu()
    for name, metric in metrics.items():
        if metric in JOINT:
            sides, scaled = JOINT[metric]
            sign = 1.0 if side == "right" else -1.0
            numbers[name] = sign * scaled(joint) if side in sides else torch.zeros_like(joint)
    return numbers


def normalised(
    patched: Float[Tensor, "*cells"], clean: Float[Tensor, ""], corrupted: Float[Tensor, ""]
) -> Float[Tensor, "*cells"]:
    """(patched - corrupted) / (clean - corrupted) of dataset means: 0 = as corrupted, 1 = as clean; may leave 0..1.

    Ratio of means, not mean of ratios, which a pair with a small difference would dominate. NaN where clean and
    corrupted do not differ.
    """
    gap = clean - corrupted
    return torch.where(gap.abs() > 1e-8, (patched - corrupted) / gap, torch.full_like(patched, float("nan")))


def _named(one: str | Metric) -> tuple[str, Metric]:
    if not isinstance(one, str):
        if not callable(one):
            raise BadInput(f"a metric is one of {', '.join(METRICS)}, or a function, not {one!r:.40}")
        return getattr(one, "__name__", "metric"), one
    check_name("metric", one, METRICS)
    return one, METRICS[one]


def _single(pairs: TokenPairs, which: str, logits: Tensor) -> Tensor:
    """The one answer of each pair."""
    if getattr(pairs, f"{which}_set") is not None:
        raise BadInput(f"this metric needs one {which} answer a pair, these have sets: use log_odds, probability_diff")
    return _needed(getattr(pairs, which), which, logits)


def _needed(answers: Tensor | None, which: str, logits: Tensor) -> Tensor:
    if answers is None:
        raise BadInput(f"this metric needs {which} answers; give them to TokenPairs.of(..., {which}=[...])")
    return answers.to(logits.device)
