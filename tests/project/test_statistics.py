"""Statistics against scipy, scikit-learn, exact enumeration and their defining equations."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from monosem.statistics import (
    Share,
    auroc,
    auroc_bounds,
    auroc_interval,
    bootstrap_mean,
    bootstrap_ratio,
    clustered_error,
    consistency,
    pearson,
    permutation_p,
    rank_p,
    spearman,
    standard_error,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 12), (12, 12), (3, 12), (7, 10), (1, 1)])
def test_wilson_bounds_solve_its_defining_equation(k, n):
    """Wilson's bounds are the rates p at which |k/n - p| is z standard errors of p."""
    for bound in wilson(k, n)[1:]:
        assert abs(k / n - bound) == pytest.approx(1.959963984540054 * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


def test_wilson_of_nothing():
    nothing = wilson(0, 0)
    assert math.isnan(nothing.value)
    assert nothing[1:] == (0, 1)
    assert math.isnan(Share(0, 0).value)


def test_bootstrap_covers_the_normal_interval():
    values = np.random.default_rng(1).normal(2, 1, 400).tolist()
    mean, low, high = bootstrap_mean(values)
    assert mean == pytest.approx(np.mean(values))
    half = 1.96 * np.std(values) / 20
    assert (low, high) == (pytest.approx(mean - half, abs=0.01), pytest.approx(mean + half, abs=0.01))
    assert all(math.isnan(x) for x in bootstrap_mean([]))


def test_rank_p_counts_the_observed():
    assert rank_p(5, [1, 2, 3]) == 0.25
    assert rank_p(2, [1, 2, 3]) == 0.75
    assert rank_p(1.0, [0.0] * 19) == 0.05


@given(st.integers(0, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_wilson_is_scipys(count: int, of: int) -> None:
    count = min(count, of)
    expected = binomtest(count, of).proportion_ci(method="wilson")
    found = wilson(count, of)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_ratio_is_one_of_means_and_its_interval_widens_with_the_spread() -> None:
    whole = torch.tensor([1.0, 3.0, 2.0, 2.0]).double()
    exact = bootstrap_ratio(whole / 2, whole)
    assert (exact.value, exact.low, exact.high) == pytest.approx((0.5, 0.5, 0.5))
    spread = bootstrap_ratio(torch.tensor([0.0, 3.0, 0.0, 1.0]).double(), whole)
    assert spread.value == pytest.approx(0.5)
    assert spread.low < 0.2
    assert spread.high > 0.7
    assert math.isnan(bootstrap_ratio(whole[:1], whole[:1]).low)


@pytest.mark.parametrize(("ours", "scipys"), [(pearson, stats.pearsonr), (spearman, stats.spearmanr)])
def test_correlations_are_scipys_with_ties(
    ours: Callable[..., float], scipys: Callable[..., tuple[float, float]]
) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 6, (40,), generator=rng).double()
    y = x + torch.randint(0, 9, (40,), generator=rng)
    assert ours(x, y) == pytest.approx(float(scipys(x.numpy(), y.numpy())[0]), abs=1e-12)
    assert math.isnan(ours(torch.ones(5), torch.arange(5)))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_auroc_equals_scikit_learn_with_ties(n, m, seed):
    rng = torch.Generator().manual_seed(seed)
    positive = torch.randint(0, 4, (n, 7), generator=rng).float()
    negative = torch.randint(0, 4, (m, 7), generator=rng).float()
    labels = [1] * n + [0] * m
    expected = [roc_auc_score(labels, torch.cat([positive[:, j], negative[:, j]]).numpy()) for j in range(7)]
    assert auroc(positive, negative).tolist() == pytest.approx(expected, abs=1e-6)
    assert auroc(negative, positive).tolist() == pytest.approx([1 - e for e in expected], abs=1e-6)


def test_permutations_are_chunked_without_a_change(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 300, generator=rng), torch.randn(6, 300, generator=rng)
    whole = permutation_p(a, b, False, 100)
    monkeypatch.setattr("monosem.statistics.CHUNK_ELEMENTS", 100 * 17)
    for one, other in zip(permutation_p(a, b, False, 100), whole):
        assert torch.equal(one, other)


@pytest.mark.parametrize("paired", [True, False])
def test_permutation_p_against_the_exact_distribution(paired):
    """All relabellings can be enumerated for 4 + 4 prompts: the sampled p is near the share of those as large."""
    rng = torch.Generator().manual_seed(3)
    positive = torch.randn(4, 3, generator=rng) + torch.tensor([0.0, 1.0, 3.0])
    negative = torch.randn(4, 3, generator=rng)
    together = torch.cat([positive, negative])
    observed = positive.mean(0) - negative.mean(0)
    values = []
    if paired:
        for signs in itertools.product([1, -1], repeat=4):
            values.append((torch.tensor(signs)[:, None] * (positive - negative)).mean(0))
    else:
        for chosen in itertools.combinations(range(8), 4):
            rest = [i for i in range(8) if i not in chosen]
            values.append(together[list(chosen)].mean(0) - together[rest].mean(0))
    exact = (torch.stack(values) >= observed - 1e-6).float().mean(0)
    p, family = permutation_p(positive, negative, paired, permutations=4000)
    assert p.tolist() == pytest.approx(exact.tolist(), abs=1e-6 if paired else 0.03)
    assert (family >= p - 0.03).all()


@pytest.mark.parametrize("pairs", [1, 5, 12])
def test_p_of_few_pairs_reaches_its_floor_exactly(pairs):
    """A drawn p lies on either side of 2 ** -pairs by luck, and then a report does not say that it is at its floor."""
    for seed in range(4):
        rng = torch.Generator().manual_seed(seed)
        up, down = torch.rand(pairs, 1, generator=rng) + 2, torch.rand(pairs, 1, generator=rng)
        p, family = permutation_p(up, down, True, permutations=2000, seed=seed)
        assert p.tolist() == family.tolist() == [2.0**-pairs]


def test_family_p_controls_for_many_latents():
    rng = torch.Generator().manual_seed(0)
    hits, single = 0, 0
    for seed in range(30):
        a, b = torch.randn(10, 200, generator=rng), torch.randn(10, 200, generator=rng)
        p, family = permutation_p(a, b, False, permutations=200, seed=seed)
        single += int((p < 0.05).any())
        hits += int((family < 0.05).any())
    assert single == 30  # looking at 200 latents always finds "significant" ones
    assert hits <= 6  # corrected, in about 5 % of the experiments


def test_family_p_measures_each_latent_by_its_own_spread():
    """A latent of small numbers that tells perfectly apart is not drowned by noise of large ones."""
    rng = torch.Generator().manual_seed(2)
    up, down = torch.randn(12, 50, generator=rng) * 100, torch.randn(12, 50, generator=rng) * 100
    up[:, 7], down[:, 7] = 0.02, 0.01
    p, family = permutation_p(up, down, False, permutations=500)
    assert float(p[7]) == pytest.approx(1 / 501)
    assert float(family[7]) < 0.02


def test_consistency():
    positive, negative = torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor([[0.0], [3.0], [0.0]])
    assert float(consistency(positive, negative, paired=True)) == pytest.approx(1 / 3)
    assert float(consistency(positive, negative, paired=False)) == pytest.approx(2 / 3 - 1 / 3)


def test_interval_of_an_auroc_is_honest_at_the_ceiling():
    ones = auroc_interval(torch.arange(12.0) + 100, torch.arange(12.0))
    assert (ones.value, ones.high) == (1.0, 1.0)
    assert 0.75 < ones.low < 0.9
    few = auroc_interval(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]))
    assert few.low < 0.5  # 2 pairs cannot exclude chance
    for n in (1, 5, 40):  # one value against one: the share "above" of one trial, as Wilson has it
        assert float(auroc_bounds(torch.tensor(1.0), n, n)[0]) >= wilson(1, 1).low - 1e-6
    assert float(auroc_bounds(torch.tensor(1.0), 1, 1)[0]) == pytest.approx(wilson(1, 1).low, abs=1e-6)


def test_bounds_of_an_auroc_solve_their_equation():
    """|observed - bound| = 1.96 standard errors at the bound (Hanley & McNeil's, with the mean of both sizes)."""
    n, m = 9, 15
    for value in (0.2, 0.5, 0.83, 0.97):
        low, high = (float(x) for x in auroc_bounds(torch.tensor(value, dtype=torch.float64), n, m))
        assert low < value < high
        for bound in (low, high):
            q1, q2 = bound / (2 - bound), 2 * bound**2 / (1 + bound)
            size = (n + m) / 2 - 1
            variance = bound * (1 - bound) + size * (q1 - bound**2) + size * (q2 - bound**2)
            assert abs(value - bound) == pytest.approx(1.959964 * (variance / (n * m)) ** 0.5, rel=1e-4)
    mirrored = auroc_bounds(torch.tensor([0.2, 0.8]), n, m)
    assert mirrored[0].tolist() == pytest.approx((1 - mirrored[1].flip(0)).tolist(), abs=1e-6)


@pytest.mark.parametrize(("shift", "n"), [(1.0, 12), (2.3, 12), (2.3, 6)])
def test_interval_of_an_auroc_covers_the_truth(shift, n):
    """Normal values `shift` apart: the true area is Phi(shift / sqrt 2)."""
    draws, rng = 2000, torch.Generator().manual_seed(0)
    up, down = torch.randn(n, draws, generator=rng) + shift, torch.randn(n, draws, generator=rng)
    low, high = auroc_bounds(auroc(up, down), n, n)
    truth = 0.5 * (1 + math.erf(shift / 2))
    assert float(((low <= truth) & (truth <= high)).float().mean()) > 0.93


def test_errors_of_clusters_are_the_slow_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(2, 12, generator=draw, dtype=torch.float64)
    values[1, 3] = torch.nan
    cluster = torch.tensor([5, 5, 5, 5, 2, 2, 2, 7, 7, 7, 7, 7])
    for row, found in zip(values, clustered_error(values, cluster)):
        known = [(float(x), int(c)) for x, c in zip(row, cluster) if x == x]
        mean = sum(x for x, _ in known) / len(known)
        sums = [sum(x - mean for x, c in known if c == wanted) for wanted in (2, 5, 7)]
        assert float(found) == pytest.approx((3 / 2 * sum(s * s for s in sums)) ** 0.5 / len(known))
    alone = clustered_error(values[:1], torch.arange(12))
    torch.testing.assert_close(alone, standard_error(values[:1]))
    assert bool(clustered_error(values, torch.zeros(12, dtype=torch.long)).isnan().all())
