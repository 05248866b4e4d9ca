"""Probes: scikit-learn as an oracle of ours, and what sae-bench 0.6.0 and sae-probes 0.4.2 gave for the same rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from monosem.benchmarks.probes import (
    f1,
    fitted,
    logistic,
    ranked,
    sae_probes_order,
    sae_probes_probe,
    sae_probes_split,
    saebench_probe,
)
from monosem.errors import BadInput

GOLDEN = Path(__file__).parent / "golden"


def rows(n=120, k=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    return torch.randn(n, k, generator=draw, dtype=torch.float64) * torch.tensor([1.0, 20, 0.1, 1, 1]) + y[:, None], y


@pytest.mark.parametrize("strength", [10.0, 0.1, 1e-3])
@pytest.mark.parametrize("columns", [5, 300])
def test_our_probe_is_scikit_learns_on_standardised_columns(strength, columns):
    X, y = rows()
    X = torch.cat([X, torch.randn(len(X), columns, generator=torch.Generator().manual_seed(2))], 1)[:, :columns]
    Z = (X - X.mean(0)) / X.std(0, unbiased=False)
    other = LogisticRegression(C=1 / (strength * len(X)), tol=1e-12, max_iter=10_000).fit(Z.numpy(), y.numpy())
    own = logistic(X, y, strength)
    assert np.allclose(own.weights, other.coef_[0], atol=1e-5)
    assert own.bias == pytest.approx(other.intercept_[0], abs=1e-5)
    assert np.allclose(own.score(X), other.decision_function(Z.numpy()), atol=1e-5)


def test_a_probe_of_classes_that_can_be_separated_is_finite():
    y = torch.arange(40) % 2
    probe = logistic(y[:, None] * 3.0, y, 1e-4)
    assert probe.weights.isfinite().all()
    assert ((probe.score(y[:, None] * 3.0) > 0) == y).all()
    with pytest.raises(BadInput, match="both classes"):
        logistic(torch.ones(5, 1), torch.ones(5).long(), 1.0)


def test_the_strength_is_chosen_on_validation_rows_and_ties_go_to_the_strongest():
    X, y = rows()
    X_noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(1)).double()
    assert fitted(X, y, X_noise, torch.arange(60) % 2).strength >= 1  # validation says that nothing is to be learnt
    constant = torch.zeros(120, 2)
    assert fitted(constant, y, constant[:60], y[:60]).strength == 100
    assert fitted(X, y, X[:60], y[:60]).strength < 1


def test_latents_are_ranked_free_of_scale():
    X, y = rows(k=5)
    order = ranked(X, y).tolist()
    for scale in ([1.0, 1, 1, 1, 1], [1e-3, 1e4, 1, 50, 7]):
        assert ranked(X * torch.tensor(scale), y).tolist() == order
    assert order[0] == 2  # the shift of 1 is ten of its standard deviations
    dead = torch.cat([X, torch.zeros(len(X), 1), y[:, None] * 1e-3], 1)
    assert ranked(dead, y)[[0, -1]].tolist() == [6, 5]


@pytest.fixture(scope="module")
def saebench():
    held = json.loads((GOLDEN / "saebench_sparse_probing.json").read_text())
    tensors = [torch.tensor(held[name]) for name in ("X_train", "y_train", "X_test", "y_test")]
    return held, tensors


@pytest.mark.parametrize("k", [1, 2, 5])
def test_saebench_numbers(saebench, k):
    held, (X, y, X_test, y_test) = saebench
    expected, found = held["by_k"][str(k)], saebench_probe(X, y, X_test, y_test, k)
    assert found.latents == expected["latents"]
    assert found.numbers["test_accuracy"] == pytest.approx(expected["test_accuracy"], abs=1e-9)
    assert np.allclose(found.classifier.coef_, expected["coef"], atol=2e-4)


def test_saebench_takes_a_loud_latent_that_says_nothing_and_ours_does_not(saebench):
    _, (X, y, X_test, y_test) = saebench
    assert saebench_probe(X, y, X_test, y_test, 1).latents == [7]
    best = int(ranked(X, y)[0])
    assert best != 7
    accuracy = ((fitted(X[:, [best]], y, X[:, [best]], y).score(X_test[:, [best]]) > 0) == y_test).double().mean()
    assert accuracy > saebench_probe(X, y, X_test, y_test, 1).numbers["test_accuracy"] + 0.05


@pytest.fixture(scope="module")
def probes():
    return json.loads((GOLDEN / "saeprobes.json").read_text())


def test_sae_probes_order_and_split(probes):
    X, y = torch.tensor(probes["X"]), torch.tensor(probes["y"])
    assert sae_probes_order(X, y).tolist() == probes["order_mean_normalised"]
    assert sae_probes_order(X, y, normalised=False).tolist() == probes["order_none"]
    split = probes["split"]
    train, test = sae_probes_split(np.array(split["y"]), split["num_train"], split["num_test"], split["seed"])
    assert (train.tolist(), test.tolist()) == (split["train"], split["test"])


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_sae_probes_numbers(probes, penalty):
    X, y, X_test, y_test = (np.array(probes[name]) for name in ("Xa", "ya", "Xb", "yb"))
    expected, found = probes["find_best_reg"][penalty], sae_probes_probe(X, y, X_test, y_test, penalty=penalty)
    assert expected["C"] == found.classifier.C
    assert np.allclose(found.classifier.coef_, expected["coef"], atol=2e-4)
    for name, value in expected["metrics"].items():
        assert found.numbers[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("n", [3, 10, 60])
def test_sae_probes_with_few_rows(n):
    X, y = (part.numpy() for part in rows(n))
    found = sae_probes_probe(X, y, *(part.numpy() for part in rows(40, seed=1)))
    assert 0 <= found.numbers["test_acc"] <= 1
    if n == 3:
        assert found.classifier.C == 1


@pytest.mark.parametrize("strength", [0.0001, 0.01, 1.0])
def test_balanced_classes_are_scikit_learns(strength):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 5)) * [1, 3, 0.2, 1, 1]
    y = X @ [1, -0.5, 2, 0, 0] + rng.normal(size=120) > 1.5
    probe = logistic(torch.tensor(X), torch.tensor(y), strength, balanced=True)
    Z = (X - X.mean(0)) / X.std(0)
    theirs = LogisticRegression(C=1 / strength / 120, class_weight="balanced", tol=1e-10, max_iter=10_000).fit(Z, y)
    assert probe.weights.numpy() == pytest.approx(theirs.coef_[0], abs=1e-5)
    assert probe.bias == pytest.approx(theirs.intercept_[0], abs=1e-5)
    assert f1(probe.score(torch.tensor(X)) > 0, torch.tensor(y)) == pytest.approx(f1_score(y, theirs.predict(Z)))
    assert f1(torch.zeros(3).bool(), torch.zeros(3).bool()) == 0
