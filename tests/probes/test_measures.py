"""Measures against scikit-learn; thresholds, calibration, cascades and controls on data whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from monosem.errors import BadInput
from monosem.probes import (
    Parts,
    Rows,
    calibrated,
    cascade,
    control_task,
    fit,
    measure,
    measures,
    permutation_null,
    split,
    stages,
    survey,
    text_baselines,
    with_threshold,
)


def drawn(n=300, d=6, places=2, seed=0, gap=1.5, **more):
    draw = torch.Generator().manual_seed(seed)
    y = torch.rand(n, generator=draw) < 0.5
    x = torch.randn(places, n, d, generator=draw)
    x[:, :, 0] += gap * y
    return Rows(x, y, **more)


@pytest.fixture(scope="module")
def probe():
    return fit(drawn(seed=1), drawn(seed=2))


# ---------------------------------------------------------------------- measures
@pytest.mark.parametrize("ties", [False, True])
def test_rankings_are_scikit_learns(ties):
    rng = np.random.default_rng(0)
    y = rng.random(200) < 0.3
    f = rng.normal(size=200) + y
    f = f.round(0) if ties else f
    fpr, tpr, _ = metrics.roc_curve(y, f)
    assert measures.area(f, y) == pytest.approx(metrics.roc_auc_score(y, f))
    assert measures.partial_area(f, y) == pytest.approx(metrics.roc_auc_score(y, f, max_fpr=0.05))
    assert measures.average_precision(f, y) == pytest.approx(metrics.average_precision_score(y, f))
    for most in (0.01, 0.05, 0.3):
        assert measures.recall_at(most)(f, y) == pytest.approx(max(tpr[fpr <= most]))
    assert measures.false_alarms_at(0.95)(f, y) == pytest.approx(min(fpr[tpr >= 0.95]), abs=0.01)
    p, said = 1 / (1 + np.exp(-f)), f > 0.5
    assert measures.brier(p, y) == pytest.approx(metrics.brier_score_loss(y, p))
    assert measures.log_loss(p, y) == pytest.approx(metrics.log_loss(y, p))
    assert measures.balanced_accuracy(said, y) == pytest.approx(metrics.balanced_accuracy_score(y, said))
    if not ties:
        is_so, mean = calibration_curve(y[:195], p[:195], n_bins=15, strategy="quantile")
        found = measures.bins(p[:195], y[:195])
        assert [one[1] for one in found] == pytest.approx(list(is_so))
        assert [one[0] for one in found] == pytest.approx(list(mean))
        gaps = np.abs(is_so - mean)
        assert measures.calibration_error(p[:195], y[:195]) == pytest.approx(gaps.mean())
        assert measures.largest_calibration_error(p[:195], y[:195]) == pytest.approx(gaps.max())


def test_precision_at_a_prevalence_is_bayes():
    said, y = np.array([1, 1, 1, 0, 1, 0, 0, 0]) > 0, np.array([1, 1, 1, 1, 0, 0, 0, 0]) > 0
    assert measures.precision_at(0.01)(said, y) == pytest.approx(0.01 * 0.75 / (0.01 * 0.75 + 0.99 * 0.25))


def test_every_measure_of_every_place_with_its_interval(probe):
    rows = drawn(seed=3)
    found = measure(probe, rows, draws=60, prevalence=0.01)
    assert set(found.table["place"]) == {"resid_post.0@last", "resid_post.1@last"}
    said = found.table[found.table["measure"] != "recall at FPR 0.1 %"]
    assert not said["value"].isna().any()
    assert (said["low"] <= said["value"] + 1e-9).mean() > 0.9
    one = found.value("auroc", "resid_post.1@last")
    assert one.value == pytest.approx(metrics.roc_auc_score(rows.y.numpy(), probe.score(rows)[1].numpy()))
    assert one.low < one.value < one.high
    assert found.config["groups"] == 300
    assert len(found.plot().data) == 2
    with pytest.raises(BadInput, match="2 rows are of 'auroc'"):
        found.value("auroc")
    with pytest.raises(BadInput, match="measuring needs at least 2 rows of both classes"):
        measure(probe, rows.part(rows.y))


def test_a_share_of_too_few_rows_is_not_said(probe):
    """18 negatives have no recall at 0.1 % false alarms: it would be the recall at none of 18."""
    rows = drawn(300, seed=3)
    ups, downs = rows.y.nonzero()[:, 0], (~rows.y).nonzero()[:, 0]
    for n, silent in (
        (18, {"recall at FPR 0.1 %", "recall at FPR 1 %", "recall at FPR 5 %", "partial auroc (FPR <= 5 %)"}),
        (19, {"recall at FPR 0.1 %", "recall at FPR 1 %"}),
        (99, {"recall at FPR 0.1 %"}),
    ):
        found = measure(probe.at(0), rows.part(torch.cat([ups, downs[:n]])).at(0), draws=20)
        assert set(found.config["left_out"]) == silent
        assert set(found.table[found.table["value"].isna()]["measure"]) == silent
        assert found.config["left_out"]["recall at FPR 0.1 %"] == f"needs at least 999 negative rows, and there are {n}"
    few = measure(probe.at(0), rows.part(torch.cat([ups[:5], downs])).at(0), draws=20)
    assert "needs at least 19 positive rows" in few.config["left_out"]["FPR at recall 95 %"]


def test_rows_of_one_group_make_the_interval_as_wide_as_they_depend_on_each_other(probe):
    rows = drawn(60, seed=3)
    many = rows.part(torch.arange(60).repeat(10))
    once, copied = (measure(probe.at(0), one.at(0), draws=200).value("auroc") for one in (rows, many))
    alone = Rows(many.x, many.y)
    wrong = measure(probe.at(0), alone.at(0), draws=200).value("auroc")
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.25)
    assert wrong.high - wrong.low < 0.5 * (once.high - once.low)


# ---------------------------------------------------------------------- thresholds
@pytest.mark.parametrize("target", [0.01, 0.1])
def test_a_threshold_keeps_its_rate_of_false_alarms_on_new_rows(probe, target):
    made = with_threshold(probe, drawn(1000, seed=4, gap=0.0), target_fpr=target)
    fresh = drawn(20_000, seed=5)
    alarms = made.fires(fresh)[:, ~fresh.y].double().mean(1)
    # the rate of a threshold from n negative rows is a Beta variable: a generous interval of binomials of both
    n = made.about["threshold_negatives"]
    low, high = binom.ppf([1e-4, 1 - 1e-4], n, target) / n
    assert bool(((alarms >= low - 0.002) & (alarms <= high + 0.002)).all())


def test_over_many_draws_the_rate_is_at_most_the_target(probe):
    one = probe.at(0)
    rates = []
    for seed in range(60):
        made = with_threshold(one, drawn(60, places=1, seed=100 + seed), target_fpr=0.2)
        fresh = drawn(400, places=1, seed=9000 + seed)
        rates.append(float(made.fires(fresh)[0, ~fresh.y].double().mean()))
    assert np.mean(rates) == pytest.approx(0.19, abs=0.03)


def test_a_threshold_is_the_rank_of_the_negative_scores(probe):
    rows = drawn(30, seed=6)
    n = int((~rows.y).sum())
    f = probe.score(rows)[0][~rows.y].sort().values
    made = with_threshold(probe, rows, target_fpr=1 / (n + 1))
    assert made.threshold[0] == f[-1]
    with pytest.raises(BadInput, match=f"0.01 needs at least 99 negative rows, and there are {n}"):
        with_threshold(probe, rows)
    assert with_threshold(probe, drawn(99, gap=0).relabelled(torch.zeros(99).bool())).about["threshold_negatives"] == 99
    with pytest.raises(BadInput, match="target_fpr is a share"):
        with_threshold(probe, rows, target_fpr=1.0)


def test_calibration_is_a_logistic_regression_on_the_score(probe):
    rows = drawn(400, seed=7, gap=0.5)  # a harder place than in training: the probe is too sure
    made = calibrated(probe, rows)
    f = probe.score(rows)[1].numpy()[:, None]
    theirs = LogisticRegression(C=1e6, tol=1e-12).fit(f, rows.y.numpy())
    assert made.probability(rows)[1].numpy() == pytest.approx(theirs.predict_proba(f)[:, 1], abs=1e-3)
    before, after = (measure(one, drawn(400, seed=8, gap=0.5), draws=20) for one in (probe, made))
    place = "resid_post.1@last"
    assert after.value("ECE", place).value < before.value("ECE", place).value
    assert after.value("auroc", place) == before.value("auroc", place)
    with pytest.raises(BadInput, match="the scores at resid_post.0@last are higher for negative rows"):
        calibrated(probe, rows.relabelled(~rows.y))


def test_a_cascade_stops_where_a_stage_is_sure():
    p = torch.tensor([[0.9, 0.5, 0.05, 0.6], [0.1, 0.95, 0.9, 0.55]])
    found = cascade(p, tau=0.2, costs=[1, 9], y=torch.tensor([1, 1, 0, 0]) > 0)
    assert found.stage.tolist() == [0, 1, 0, 1]
    assert found.positive.tolist() == [True, True, False, True]
    assert found.cost == pytest.approx((1 + 10 + 1 + 10) / 4)
    assert found.table["accuracy"].tolist() == [1.0, 0.5]
    assert cascade(p, tau=0.0).stage.tolist() == [1] * 4
    assert cascade(p, tau=0.5).stage.tolist() == [0] * 4
    for bad in ({"tau": 0.6}, {"costs": [1]}):
        with pytest.raises(BadInput, match="a cascade needs"):
            cascade(p, **bad)
    train, validation = drawn(seed=1), drawn(seed=2)
    held = drawn(seed=3).at(0)
    for kind in ("polynomial", "early_exit"):
        made = fit(train, validation, kind=kind).at(0)
        said = cascade(stages(made, held), tau=0.1, y=held.y)
        assert said.table["rows"].sum() == 300
        assert torch.equal(cascade(stages(made, held), tau=0.0).positive, made.score(held)[0] > 0)
    with pytest.raises(BadInput, match="stages are of a probe of kind polynomial or early_exit at one place"):
        stages(fit(train, validation).at(0), held)


# ---------------------------------------------------------------------- controls
def test_selectivity_is_near_zero_for_types_learnt_by_heart_and_high_for_a_concept():
    draw = torch.Generator().manual_seed(0)
    types = torch.randint(0, 60, (900,), generator=draw)
    y = types % 2 == 0
    known_by_name = torch.nn.functional.one_hot(types, 60).double() + 0.01 * torch.randn(900, 60, generator=draw)
    concept = torch.randn(900, 3, generator=draw) * 0.3
    concept[:, 0] += 2.0 * y
    lookup, linear = (control_task(Rows(x[None], y), types, draws=3) for x in (known_by_name, concept))
    assert lookup.table["accuracy"][0] > 0.95
    assert abs(lookup.table["selectivity"][0]) < 0.05
    assert linear.table["selectivity"][0] > 0.3
    assert linear.config["types"] == 60
    with pytest.raises(BadInput, match="no type of the test rows is in training"):
        control_task(Rows(concept[None], y, groups=types), types)
    with pytest.raises(BadInput, match="900 rows have 3 types"):
        control_task(Rows(concept[None], y), [1, 2, 3])


def test_permuted_labels_show_what_many_places_find_in_nothing():
    nothing = drawn(90, 20, places=12, gap=0.0, seed=5)
    something = drawn(90, 20, places=12, gap=2.5, seed=5)
    empty, full = (permutation_null(split(one), kind="mass_mean", permutations=40) for one in (nothing, something))
    assert full.table["p_family"].min() < 0.05
    assert empty.table["p_family"].min() > 0.05
    assert float(empty.null.amax(1).mean()) > 0.6  # the best of twelve places, of nothing
    assert float(empty.null.mean()) == pytest.approx(0.5, abs=0.05)
    assert (empty.table["p_family"] >= empty.table["p"]).all()
    assert float(empty.memorised.mean()) > 0.6
    with pytest.raises(BadInput, match="permutations is 10 or more"):
        permutation_null(split(nothing), permutations=3)


def test_groups_with_one_label_are_permuted_whole():
    groups = torch.arange(120) // 6
    draw = torch.Generator().manual_seed(1)
    of_group = torch.randn(20, 4, generator=draw)[groups]
    rows = Rows((of_group + 0.1 * torch.randn(120, 4, generator=draw))[None], groups % 2 == 0, groups=groups)
    spread = permutation_null(split(rows), kind="mass_mean", permutations=60).null.std()
    apart = permutation_null(split(Rows(rows.x, rows.y)), kind="mass_mean", permutations=60).null.std()
    assert spread > 1.5 * apart  # a few groups are few trials


def texts_of(y, seed):
    """Two of three texts end with a word that tells the class; no text comes twice."""
    rng, made = np.random.default_rng(seed), []
    for i, positive in enumerate(y):
        word = (" good" if positive else " bad") if i % 3 else ""
        made.append(" ".join(rng.choice(["the", "cat", "sat", "so"], 8)) + word + f" {seed} {i}")
    return made


def test_baselines_see_words_and_lengths_alone():
    parts = [drawn(90, seed=seed, gap=0.0) for seed in (1, 2, 3)]
    told = Parts(*(Rows(one.x, one.y, texts=tuple(texts_of(one.y, seed))) for seed, one in enumerate(parts)))
    found = text_baselines(told)
    assert found["bag of words"].value > 0.75
    long = []
    for p, name in zip(parts, "abc"):
        lengths = torch.where(p.y, 9, 3)
        written = tuple(f"{name}{i} " * int(n) for i, n in enumerate(lengths))
        long.append(Rows(p.x, p.y, texts=written, lengths=lengths))
    long = Parts(*long)
    assert text_baselines(long)["length"].value > 0.99
    with pytest.raises(BadInput, match="no texts"):
        text_baselines(Parts(*parts))


def test_a_survey_chooses_by_validation_and_shows_the_test():
    parts = split(drawn(240, seed=3, gap=1.0))
    found = survey(parts, kinds=("mass_mean", "logistic"), permutations=10)
    table = found.table
    assert len(table) == 4
    assert table.groupby("kind")["chosen"].sum().tolist() == [1, 1]
    for kind, part in table.groupby("kind"):
        probes = fit(parts.train, parts.validation, kind=kind)
        assert part[part["chosen"]]["place"].item() == str(probes.best.places[0])
        y = parts.test.y.numpy()
        assert part["auroc"].tolist() == pytest.approx([metrics.roc_auc_score(y, f) for f in probes.score(parts.test)])
    assert (table["p_family"] <= 1).all()
    assert len(found.plot().data) == 2


def test_a_survey_knows_that_rows_of_a_group_are_no_new_rows():
    """Each test row eight times over, as one group: the interval is as wide as of the rows alone."""
    parts = split(drawn(200, seed=3, gap=0.7))
    alone = survey(parts, kinds=("mass_mean",)).table
    several = parts.test.part(torch.arange(len(parts.test)).repeat_interleave(8))
    grouped = survey(parts._replace(test=several), kinds=("mass_mean",)).table
    as_new = replace(several, groups=torch.arange(len(several)), group_names=())
    told = survey(parts._replace(test=as_new), kinds=("mass_mean",)).table
    width = [(table["high"] - table["low"]).mean() for table in (alone, grouped, told)]
    assert width[2] < 0.5 * width[0]
    assert width[1] > 0.7 * width[0]
