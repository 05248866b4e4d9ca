"""Statistics, one definition each: intervals, standard errors, correlations, AUROC, permutation tests.

Columns of a matrix are statistics of their own (latents, layers): one call serves all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import BadInput

__all__ = [
    "Interval",
    "Share",
    "auroc",
    "auroc_bounds",
    "auroc_interval",
    "benjamini_hochberg",
    "bootstrap_mean",
    "bootstrap_ratio",
    "clustered_error",
    "cohen",
    "conformal_threshold",
    "consistency",
    "correlation_interval",
    "finite",
    "kappa",
    "mcnemar",
    "pearson",
    "permutation_p",
    "rank_p",
    "spearman",
    "standard_error",
    "wilson",
]

Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal
PERCENTILES = (0.025, 0.975)  # of a bootstrap: its 95 % interval
EXACT = 12  # pairs up to which all exchanges of labels are gone through
CHUNK_ELEMENTS = 2**24  # elements of the largest temporary array (128 MB in float64)


def finite(value: float, what: str) -> float:
    """The number itself. Raises `BadInput` for NaN and infinity, which a table would show as nothing."""
    if not math.isfinite(value):
        raise BadInput(
            f"{what} is {value}, which is no effect: an edit or a layer left the numbers; give smaller values"
        )
    return value


class Interval(NamedTuple):
    """A number with its 95 % interval (NaN where there is too little to say)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Share:
    """`count` of `of`, with Wilson's 95 % interval."""

    count: int
    of: int

    @property
    def value(self) -> float:
        return self.interval.value

    @property
    def interval(self) -> Interval:
        return wilson(self.count, self.of)

    def __str__(self) -> str:
        return f"{self.count} of {self.of}"


def wilson(count: int, of: int) -> Interval:
    """A share with its Wilson score interval (Wilson 1927, J. Am. Stat. Assoc. 22:209), sound for few trials.

    At 0 of 0 the share is NaN and its interval 0 to 1: nothing was tried, so every share is possible.
    """
    if of == 0:
        return Interval(math.nan, 0.0, 1.0)
    share, scale = count / of, 1 + Z95**2 / of
    centre = (share + Z95**2 / (2 * of)) / scale
    half = Z95 / scale * math.sqrt(share * (1 - share) / of + Z95**2 / (4 * of**2))
    # at 0 and at `of` the bound is exactly 0 or 1; say so instead of 1e-17
    return Interval(share, 0.0 if count == 0 else centre - half, 1.0 if count == of else centre + half)


def standard_error(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Standard error of the mean over the last axis; NaN for a single value."""
    n = values.shape[-1]
    return values.std(-1) / n**0.5 if n > 1 else torch.full_like(values[..., 0], torch.nan)


# ---------------------------------------------------------------------- bootstrap
def clustered_error(values: Float[Tensor, "*batch n"], cluster: Int[Tensor, "n"]) -> Float[Tensor, "*batch"]:
    """Standard error of the mean over the last axis, its NaN left out, where values of one cluster (tokens of one text)
    may depend on each other: √(G / (G - 1) Σ_g (Σ_{i in g} (x_i - mean))²) / n, G clusters (Liang and Zeger 1986, of a
    mean). With a value a cluster it is `standard_error`; NaN for a single cluster."""
    known = values.isfinite()
    n = known.sum(-1)
    residuals = torch.where(known, values - values.nanmean(-1, keepdim=True), 0.0)
    _, index = cluster.to(values.device).unique(return_inverse=True)
    groups = int(index.max()) + 1
    if groups < 2:
        return torch.full_like(values[..., 0], torch.nan)
    sums = torch.zeros(*values.shape[:-1], groups, dtype=values.dtype, device=values.device)
    sums.index_add_(-1, index, residuals)
    return (groups / (groups - 1) * sums.square().sum(-1)).sqrt() / n


def bootstrap_mean(values: Sequence[float], *, seed: int = 0, draws: int = 10_000) -> Interval:
    """The mean with its percentile-bootstrap interval (Efron & Tibshirani 1993, ch. 13); NaN without values."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return Interval(math.nan, math.nan, math.nan)
    chosen = np.random.default_rng(seed).integers(0, sample.size, size=(draws, sample.size))
    low, high = np.quantile(sample[chosen].mean(axis=1), PERCENTILES)
    return Interval(float(sample.mean()), float(low), float(high))


def bootstrap_ratio(
    part: Float[Tensor, "n"], whole: Float[Tensor, "n"], *, seed: int = 0, draws: int = 2000
) -> Interval:
    """mean(part) / mean(whole), resampling both together; the interval is NaN for a single value."""
    value = float(part.mean() / whole.mean())
    if len(part) < 2:
        return Interval(value, math.nan, math.nan)
    rows = torch.randint(0, len(part), (draws, len(part)), generator=torch.Generator().manual_seed(seed))
    low, high = _percentiles(part[rows].mean(1) / whole[rows].mean(1))
    return Interval(value, low, high)


def _percentiles(drawn: Float[Tensor, "draws"]) -> tuple[float, float]:
    low, high = drawn.quantile(torch.tensor(PERCENTILES, dtype=drawn.dtype)).tolist()
    return low, high


# ---------------------------------------------------------------------- correlation
def pearson(x: Float[Tensor, "n"], y: Float[Tensor, "n"]) -> float:
    """Linear correlation; NaN where either side is constant."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return float((x @ y) / (x.norm() * y.norm()))


def spearman(x: Float[Tensor, "n"], y: Float[Tensor, "n"]) -> float:
    """Correlation of the ranks; ties share their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def correlation_interval(
    x: Sequence[Float[Tensor, "_"]], y: Sequence[Float[Tensor, "_"]], *, z: float = Z95
) -> Interval:
    """Correlation of ranks within groups (strata), taken together: each group's ranks less their mean, over its size.

    The interval is Fisher's, with Bonett & Wright's factor for ranks (2000, Psychometrika 65:23), `z` standard errors
    on each side. NaN, with the interval -1 to 1, where a side is constant in every group, or with under 6 values.
    """
    sides = [torch.cat([(_ranks(g) - (len(g) - 1) / 2) / len(g) for g in groups]) for groups in (x, y)]
    free = len(sides[0]) - 2 - len(x)  # 3 in one group, and one more for each further mean
    value = pearson(*sides)
    if math.isnan(value) or free < 3:
        return Interval(value, -1.0, 1.0)
    middle, half = math.atanh(max(min(value, 1 - 1e-12), 1e-12 - 1)), z * math.sqrt((1 + value**2 / 2) / free)
    return Interval(value, math.tanh(middle - half), math.tanh(middle + half))


def _ranks(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    _, place, count = torch.unique(x, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]


# ---------------------------------------------------------------------- two groups
def conformal_threshold(scores: Float[Tensor, "*batch n"], rate: float, what: str = "rows") -> Float[Tensor, "*batch"]:
    """What a new score of the same kind exceeds with at most this probability: the ⌈(n + 1)(1 - rate)⌉-th smallest of n
    held-out scores (split conformal; Vovk et al. 2005), whatever their distribution.

    Raises:
        BadInput: a rate outside 0 to 1, or too few scores to reach it (`what` names them).
    """
    return scores.sort(-1).values[..., conformal_rank(scores.shape[-1], rate, what) - 1]


def conformal_rank(n: int, rate: float, what: str = "rows") -> int:
    """⌈(n + 1)(1 - rate)⌉; errors as `conformal_threshold`."""
    if not 0 < rate < 1:
        raise BadInput(f"target_fpr is a share between 0 and 1, such as 0.01, not {rate}")
    rank = math.ceil((n + 1) * (1 - rate) - 1e-9)
    if rank > n:
        raise BadInput(
            f"a false positive rate of {rate:g} needs at least {math.ceil(1 / rate - 1 - 1e-9)} negative {what}, and "
            f"there are {n}: give more of them, or a higher rate"
        )
    return rank


def rank_p(observed: float, null: Sequence[float]) -> float:
    """One-sided Monte-Carlo p: how often a control does at least as much, the observed value counted with the controls.

    (1 + #{null >= observed}) / (1 + #null), never 0 (Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39).
    """
    return (1 + sum(value >= observed for value in null)) / (1 + len(null))


def auroc(positive: Float[Tensor, "n latents"], negative: Float[Tensor, "m latents"]) -> Float[Tensor, "latents"]:
    """Probability that a random positive is above a random negative, ties counting half (Mann-Whitney U / nm)."""
    ranked = negative.T.contiguous().sort().values
    values = positive.T.contiguous()
    below = torch.searchsorted(ranked, values)  # negatives below each positive; `right` counts those that tie as well
    below_or_equal = torch.searchsorted(ranked, values, right=True)
    return ((below + below_or_equal).double().mean(1) / (2 * len(negative))).float()


def auroc_interval(positive: Float[Tensor, "n"], negative: Float[Tensor, "m"]) -> Interval:
    """The AUROC of one statistic with the interval of `auroc_bounds`."""
    area = auroc(positive[:, None], negative[:, None])
    low, high = auroc_bounds(area, len(positive), len(negative))
    return Interval(float(area), float(low), float(high))


def auroc_bounds(area: Float[Tensor, "*any"], n: int, m: int) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """95 % interval of AUROCs from `n` positive and `m` negative values: Newcombe 2006, Stat. Med. 25:559, method 5.

    The areas from which the observed one is less than 1.96 of their own standard errors away (Hanley & McNeil 1982,
    with the mean of both sample sizes for each). It says something at 0 and 1 as well, where a bootstrap is certain:
    1.00 is [0.83, 1.00] from 12 and 12 values, [0.39, 1.00] from 2 and 2. It is cautious for values in pairs that go up
    and down together.
    """
    area, inner = area.double(), (n + m) / 2 - 1

    def beyond(other: Tensor) -> Tensor:
        """Whether the observed area is further than 1.96 standard errors from `other`."""
        spread = 1 + inner * ((1 - other) / (2 - other) + other / (1 + other))
        return (area - other).abs() > Z95 * (other * (1 - other) * spread / (n * m)).clamp_min(0).sqrt()

    bounds = []
    for end in (0.0, 1.0):
        out, within = torch.full_like(area, end), area.clone()
        for _ in range(60):
            middle = (out + within) / 2
            far = beyond(middle)
            out, within = torch.where(far, middle, out), torch.where(far, within, middle)
        bounds.append(torch.where(area == end, end, (out + within) / 2).float())
    return bounds[0], bounds[1]


def kappa(one: Sequence[object], other: Sequence[object], *, seed: int = 0, draws: int = 2000) -> Interval:
    """Cohen's kappa of two lists of labels of the same things, with its percentile-bootstrap interval (Cohen 1960).

    (observed - expected) / (1 - expected) agreement, expected from how often each side gives each label; NaN where
    both sides give one label only, for then they cannot disagree.
    """
    if len(one) != len(other) or not len(one):
        raise BadInput(f"kappa compares labels of the same things: {len(one)} and {len(other)} are given")
    number = {label: i for i, label in enumerate(dict.fromkeys([*one, *other]))}
    a, b = (np.array([number[label] for label in side]) for side in (one, other))

    def value(rows: np.ndarray) -> np.ndarray:
        x, y = a[rows], b[rows]
        expected = sum((x == label).mean(-1) * (y == label).mean(-1) for label in range(len(number)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return ((x == y).mean(-1) - expected) / (1 - expected)

    drawn = value(np.random.default_rng(seed).integers(0, len(a), size=(draws, len(a))))
    known = drawn[np.isfinite(drawn)]
    low, high = np.quantile(known, PERCENTILES) if known.size else (math.nan, math.nan)
    whole = float(value(np.arange(len(a))))
    return Interval(whole if math.isfinite(whole) else math.nan, float(low), float(high))


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p of paired changes (McNemar 1947): `first` things changed one way and `second` the other way,
    each like a fair coin if nothing is going on. 1 where none did."""
    n, least = first + second, min(first, second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(least + 1)) / 2**n)


def benjamini_hochberg(p: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """q-values: the lowest false discovery rate at which each is a discovery (Benjamini & Hochberg 1995)."""
    order = np.argsort(p, kind="stable")[::-1]
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1))
    return np.minimum(q, 1.0)


def consistency(
    positive: Float[Tensor, "n latents"], negative: Float[Tensor, "m latents"], paired: bool
) -> Float[Tensor, "latents"]:
    """Share of pairs in which the positive is above its partner; unpaired: of positives above the negatives' mean."""
    other = negative if paired else negative.mean(0, keepdim=True)
    return (positive > other).float().mean(0)


def cohen(positive: Float[Tensor, "n latents"], negative: Float[Tensor, "m latents"]) -> Float[Tensor, "latents"]:
    """Difference of means over the pooled standard deviation (Cohen 1988); 0 where nothing differs, infinite where
    both sides are constant and differ."""
    n, m = len(positive), len(negative)
    up, down = positive.double(), negative.double()
    squares = (up - up.mean(0)).square().sum(0) + (down - down.mean(0)).square().sum(0)
    gap = up.mean(0) - down.mean(0)
    return torch.where(gap == 0, 0.0, gap / (squares / max(n + m - 2, 1)).sqrt()).float()


def permutation_p(
    positive: Float[Tensor, "n latents"],
    negative: Float[Tensor, "m latents"],
    paired: bool,
    permutations: int = 1000,
    seed: int = 0,
) -> tuple[Float[Tensor, "latents"], Float[Tensor, "latents"]]:
    """One-sided p that positives are higher: for each latent alone, and corrected for having looked at all of them.

    Labels are exchanged within pairs, or (unpaired) among all prompts. The statistic is the difference of means. The
    second p compares each latent's difference, in standard deviations of its own null, with the largest such value over
    all latents in each permutation (max-statistic of Westfall & Young). Both are (1 + hits) / (1 + permutations), so
    they are never 0. Of up to `EXACT` pairs all exchanges are gone through (to exchange nothing is one), and both are
    the exact share of hits, at least 2 ** -pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    n, m = len(positive), len(negative)
    together = torch.cat([positive, negative]).double()
    means = torch.cat([torch.full((n,), 1 / n), torch.full((m,), -1 / m)]).double()  # times all: a difference of means
    exact = paired and n <= EXACT
    if exact:
        signs = 1 - 2.0 * torch.cartesian_prod(*[torch.arange(2)] * n).reshape(-1, n).double()
        weights = means * torch.cat([signs, signs], 1)
    else:
        weights = torch.stack([_relabelled(means, paired, generator) for _ in range(permutations)])
    observed = means @ together
    width = max(1, CHUNK_ELEMENTS // max(len(weights), 1))
    null = [weights @ part for part in together.split(width, dim=1)]
    spread = torch.cat([part.std(0) for part in null]).clamp_min(1e-12)
    edge = 1e-9 * together.abs().amax(0)  # a tie with the observed value is a hit, whatever the order of summation
    hits = torch.cat([(part >= (o - e)).sum(0) for part, o, e in zip(null, observed.split(width), edge.split(width))])
    highest = torch.stack([(part / s).amax(1) for part, s in zip(null, spread.split(width))]).amax(0)
    z = (observed - edge) / spread
    family_hits = len(highest) - torch.searchsorted(highest.sort().values, z)
    beside = 0 if exact else 1  # what was observed is among all exchanges, but not among drawn ones
    return tuple(((beside + one) / (beside + len(weights))).float() for one in (hits, family_hits))  # type: ignore[return-value]


def _relabelled(means: Float[Tensor, "prompts"], paired: bool, generator: torch.Generator) -> Float[Tensor, "prompts"]:
    """The weights of a difference of means after one exchange of labels."""
    if not paired:
        return means[torch.randperm(len(means), generator=generator)]
    sign = torch.randint(0, 2, (len(means) // 2,), generator=generator).double() * 2 - 1
    return means * torch.cat([sign, sign])
