"""Judges against each other: kappa as scikit-learn has it, majorities."""

import random

import pytest
from sklearn.metrics import cohen_kappa_score

from monosem import judges
from monosem.errors import BadInput
from monosem.judges import Verdict
from monosem.statistics import kappa, mcnemar


@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_that_of_scikit_learn(seed):
    draw = random.Random(seed)
    one = [draw.choice("abc") for _ in range(40)]
    other = [label if draw.random() < 0.7 else draw.choice("abcd") for label in one]
    found = kappa(one, other)
    assert found.value == pytest.approx(cohen_kappa_score(one, other))
    assert found.low < found.value < found.high


def test_kappa_where_nothing_varies():
    assert kappa("aaaa", "aaaa").value != kappa("aaaa", "aaaa").value  # NaN
    assert kappa("aabb", "aabb") == (1.0, 1.0, 1.0)
    with pytest.raises(BadInput, match="labels of the same things"):
        kappa("ab", "a")


def test_mcnemar_is_a_two_sided_sign_test():
    stats = pytest.importorskip("scipy.stats")
    for first, second in [(0, 0), (5, 0), (3, 9), (7, 7), (1, 20)]:
        wanted = 1.0 if first + second == 0 else stats.binomtest(first, first + second, 0.5).pvalue
        assert mcnemar(first, second) == pytest.approx(wanted)


def test_agreement_of_two_judges():
    rows = judges.labelled_responses()
    prompts, responses = ([row[name] for row in rows] for name in ("prompt", "response"))
    table = judges.agreement(["refusal", "arditi", "arditi-strict"], prompts, responses).table
    assert list(table["judge"] + ">" + table["other"]) == [
        "refusal>arditi",
        "refusal>arditi-strict",
        "arditi>arditi-strict",
    ]
    one, other = (
        [judges.judge(name)(p, r).label == "refusal" for p, r in zip(prompts, responses)]
        for name in ("refusal", "arditi")
    )
    assert table["kappa"][0] == pytest.approx(cohen_kappa_score(one, other))
    with pytest.raises(BadInput, match="two judges"):
        judges.agreement(["refusal"], prompts, responses)


def test_majority_goes_by_numbers_then_by_order():
    refusal, answer, empty = (Verdict(label, 0.0) for label in ("refusal", "answer", "empty"))
    assert judges.majority([answer, refusal, refusal]) == "refusal"
    assert judges.majority([empty, refusal]) == "empty"
    with pytest.raises(BadInput):
        judges.majority([])
