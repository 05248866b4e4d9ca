"""The small statistics that steering reports need."""

import math
from collections.abc import Hashable, Sequence

import numpy as np

Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22:209); sensible at 0 and `trials` too.

    Returns:
        Lower and upper bound in [0, 1]; (0, 1) when nothing was tried.
    """
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # at 0 and at `trials` the bound is exactly 0 or 1; say so instead of 1e-17
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def bootstrap_mean(values: Sequence[float], seed: int = 0, rounds: int = 10_000) -> tuple[float, float, float]:
    """Mean and its percentile-bootstrap 95 % interval (Efron & Tibshirani 1993, ch. 13).

    Returns:
        Mean, lower, upper; NaN when there are no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return math.nan, math.nan, math.nan
    draws = np.random.default_rng(seed).integers(0, sample.size, size=(rounds, sample.size))
    means = sample[draws].mean(axis=1)
    return float(sample.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def rank_p(observed: float, null: Sequence[float]) -> float:
    """One-sided Monte-Carlo p: how often a control does at least as much, the observed one counted with them.

    (1 + #{null >= observed}) / (1 + #null), never 0 (Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39).
    """
    return (1 + sum(value >= observed for value in null)) / (1 + len(null))


def distinct(tokens: Sequence[Hashable], n: int = 2) -> float:
    """Distinct n-grams over all n-grams (Li et al. 2016, NAACL, "distinct-n"): 1 is no repetition, near 0 is a loop.

    NaN when there are fewer than `n` tokens.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan
