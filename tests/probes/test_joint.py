"""Probes of several places together, against scikit-learn place by place."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from monosem.errors import BadInput, Mismatch
from monosem.probes import Parts, Probes, Rows, calibrated, fit, folds, measure, survey

C = 0.1


def drawn(seed, n=150, groups=30, gap=1.0):
    """Three places of which two know something each, on different scales, and one nothing."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.rand(n, generator=draw) < 0.45
    x = torch.randn(3, n, 6, generator=draw).double()
    x[0, :, 1] += gap * y
    x[2, :, 4] += gap * y
    x[2] = 40 * x[2] + 7
    return Rows(x, y, groups=[f"{seed} {i % groups}" for i in range(n)])


def logistic(x, y):
    scale = StandardScaler().fit(x)
    made = LogisticRegression(C=C, tol=1e-10, max_iter=9999).fit(scale.transform(x), y)
    return lambda new: made.decision_function(scale.transform(new))


TRAIN, VALIDATION, HELD = drawn(0), drawn(1, 60), drawn(2)
Y = TRAIN.y.numpy()


def test_an_averaged_probe_is_the_mean_of_scikit_learns_log_odds():
    found = fit(TRAIN, VALIDATION, kind="averaged", strengths=[C])
    each = [logistic(x.numpy(), Y)(held.numpy()) for x, held in zip(TRAIN.x, HELD.x)]
    assert found.score(HELD)[0].numpy() == pytest.approx(np.mean(each, 0), abs=1e-5)


def test_a_joined_probe_is_scikit_learns_on_all_numbers():
    found = fit(TRAIN, VALIDATION, kind="joined", strengths=[C])
    together, held = (np.concatenate(list(rows.x.numpy()), 1) for rows in (TRAIN, HELD))
    assert found.score(HELD)[0].numpy() == pytest.approx(logistic(together, Y)(held), abs=1e-5)


def test_a_stacked_probe_weighs_log_odds_of_rows_that_were_left_out():
    found = fit(TRAIN, VALIDATION, kind="stacked", strengths=[C])
    parts, labels = [], []
    for part, rest in folds(TRAIN, 5):
        parts.append(np.stack([logistic(x.numpy(), part.y.numpy())(out.numpy()) for x, out in zip(part.x, rest.x)], 1))
        labels.append(rest.y.numpy())
    top = logistic(np.concatenate(parts), np.concatenate(labels))
    each = np.stack([logistic(x.numpy(), Y)(held.numpy()) for x, held in zip(TRAIN.x, HELD.x)], 1)
    assert found.score(HELD)[0].numpy() == pytest.approx(top(each), abs=1e-4)


@pytest.mark.parametrize("kind", ["joined", "averaged", "stacked"])
def test_places_together_know_more_than_the_best_alone(kind, tmp_path):
    found = fit(TRAIN, VALIDATION, kind=kind)
    alone = fit(TRAIN, VALIDATION).best
    areas = {"all": found.score(HELD), "one": alone.score(HELD.at(alone.places[0]))}
    areas = {name: roc_auc_score(HELD.y.numpy(), f[0].numpy()) for name, f in areas.items()}
    assert areas["all"] > areas["one"] + 0.03
    assert str(found.places[0]) == "resid_post.0…resid_post.2@last"
    assert measure(found, HELD).value("auroc").value == pytest.approx(areas["all"])
    again = Probes.load(found.save(tmp_path / "probe.safetensors"))
    torch.testing.assert_close(again.score(HELD.joined()), found.score(HELD), rtol=0, atol=0)
    assert calibrated(found, VALIDATION).parts["calibration"].shape == (1, 2)
    rows = survey(Parts(TRAIN, VALIDATION, HELD), kinds=["logistic", kind]).table
    assert rows["kind"].tolist() == ["logistic"] * 3 + [kind]
    with pytest.raises(Mismatch, match="was fitted on states of width 18"):
        found.score(HELD.at(0))


def test_stacking_needs_groups_to_leave_out():
    with pytest.raises(BadInput, match="two groups or more of each class"):
        fit(drawn(3, groups=1), VALIDATION, kind="stacked")
