"""Fits of many places at once against scikit-learn and slow formulas, one place after the other."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf, oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from monosem import covariance, logistic
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.probes import KINDS, Place, Probes, Rows, Whitening, descent, fit, linear

STRENGTHS = [1e3, 1e-3, 1.0]


def drawn(n=90, d=20, places=2, seed=0, gap=1.0, **more):
    draw = torch.Generator().manual_seed(seed)
    y = torch.rand(n, generator=draw) < 0.4
    scale = torch.rand(d, generator=draw) * 5 + 0.1
    x = torch.randn(places, n, d, generator=draw) * scale + 3 * torch.rand(d, generator=draw)
    x[:, :, 0] += gap * scale[0] * y
    return Rows(x.double(), y, **more)


def parts(**options):
    return drawn(seed=1, **options), drawn(seed=2, n=60, **{k: v for k, v in options.items() if k != "n"})


@pytest.mark.parametrize(("n", "d"), [(60, 150), (150, 20), (40, 40)])
def test_logistic_is_scikit_learns_at_every_place_and_strength(n, d):
    rows = drawn(n, d)
    made = linear.logistic(rows.x, rows.y, strengths=STRENGTHS)
    for C, parts in zip(STRENGTHS, made):
        for place in range(2):
            Z = (rows.x[place] - rows.x[place].mean(0)) / rows.x[place].std(0, unbiased=False)
            theirs = LogisticRegression(C=C, tol=1e-12, max_iter=50_000).fit(Z.numpy(), rows.y.numpy())
            ours = linear.score(parts, rows.x)[place].numpy()
            assert np.abs(ours - theirs.decision_function(Z.numpy())).max() < (2e-3 if C > 1 else 5e-5)


def test_both_forms_of_newton_agree_also_where_classes_can_be_separated():
    rows = drawn(60, 60, gap=8.0)
    wide = torch.cat([rows.x, torch.zeros_like(rows.x)], 2)  # more dimensions than rows: the dual
    W, b = logistic.logistic_paths(rows.x[:, :, :59], rows.y, [1e-6, 1.0])
    W_dual, b_dual = logistic.logistic_paths(wide[:, :, [*range(59), *range(60, 119)]], rows.y, [1e-6, 1.0])
    torch.testing.assert_close(W_dual[..., :59], W, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(b_dual, b, rtol=1e-6, atol=1e-9)
    for number, penalty in enumerate([1e-6, 1.0]):
        f = (rows.x[:, :, :59] @ W[number, ..., None])[..., 0] + b[number][:, None]
        pull = torch.where(rows.y, -(-f).sigmoid(), f.sigmoid())  # p - y; the scores are 40 with the weak penalty
        gradient = (rows.x[:, :, :59].mT @ pull[..., None])[..., 0] + penalty * W[number]
        assert gradient.abs().max() < 1e-7 * penalty * W[number].abs().max()


def test_places_in_one_step_or_apart_are_the_same_and_a_penalty_that_is_nothing_is_refused(monkeypatch):
    rows = drawn(40, 90, places=5)
    together = logistic.logistic_paths(rows.x, rows.y, [1e-3, 1.0, 10.0])
    monkeypatch.setitem(logistic.TOGETHER, "cpu", 2 * 40**2)
    monkeypatch.setattr(logistic, "SINGLE", 0.0)  # every factor in float64
    for one, other in zip(together, logistic.logistic_paths(rows.x, rows.y, [1e-3, 1.0, 10.0])):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    with pytest.raises(BadInput, match="choose a smaller C"):
        logistic.logistic_paths(torch.cat([rows.x] * 3, 1) * 1e4, torch.cat([rows.y] * 3), [1e-30])


def test_a_path_takes_few_factors_and_few_steps(monkeypatch):
    made, solved, own = [], [], logistic._solver

    def solver(A, penalty):
        made.append(penalty)
        solve = own(A, penalty)
        return lambda v: (solved.append(penalty), solve(v))[1]

    monkeypatch.setattr(logistic, "_solver", solver)
    rows = drawn(60, 150)
    Z, _, _ = linear.standardised(rows.x)
    logistic.logistic_paths(Z, rows.y, [10.0**k for k in range(4, -3, -1)])
    assert len(made) <= 10  # 14 where each penalty starts at the last one's end
    assert len(solved) <= 66  # 83 where each step is as long as the last Hessian says


@pytest.mark.parametrize(("n", "d"), [(12, 30), (60, 5)])
def test_rows_that_count_nothing_are_as_if_they_were_not_there(n, d):
    rows = drawn(n, d)
    counts = torch.ones(n)
    counts[:3] = 0
    W, b = logistic.logistic_paths(rows.x, rows.y, [1.0, 0.1], counts)
    without = logistic.logistic_paths(rows.x[:, 3:], rows.y[3:], [1.0, 0.1])
    torch.testing.assert_close((W, b), without, rtol=1e-6, atol=1e-8)
    rows.x[0, 5, 2] = torch.inf
    with pytest.raises(BadInput, match="NaN, infinity or numbers too large"):
        logistic.logistic_paths(rows.x, rows.y, [1.0])


def test_balanced_classes_are_scikit_learns():
    rows = drawn()
    (made,) = linear.logistic(rows.x, rows.y, strengths=[0.1], balanced=True)
    Z = (rows.x[1] - rows.x[1].mean(0)) / rows.x[1].std(0, unbiased=False)
    theirs = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-12, max_iter=9999).fit(Z.numpy(), rows.y.numpy())
    assert linear.score(made, rows.x)[1].numpy() == pytest.approx(theirs.decision_function(Z.numpy()), abs=1e-5)


@pytest.mark.parametrize("d", [20, 150])
def test_ridge_and_lda_are_scikit_learns(d):
    rows = drawn(d=d)
    X, y = rows.x[1].numpy(), rows.y.numpy()
    Z = (X - X.mean(0)) / X.std(0)
    for C, made in zip(STRENGTHS, linear.ridge(rows.x, rows.y, strengths=STRENGTHS)):
        assert linear.score(made, rows.x)[1].numpy() == pytest.approx(Ridge(alpha=1 / C).fit(Z, 2.0 * y - 1).predict(Z))
    own = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)
    # its covariance is the mean of the classes' own, by their shares, which is the pooled one; it shrinks each class
    residuals = np.concatenate([X[y] - X[y].mean(0), X[~y] - X[~y].mean(0)])
    S = residuals.T @ residuals / len(X)
    S = 0.7 * S + 0.3 * np.trace(S) / d * np.eye(d)
    delta = X[y].mean(0) - X[~y].mean(0)
    made = linear.lda(rows.x, rows.y, shrinkage=0.3)
    w = made["weights"][1].numpy()
    assert w == pytest.approx(np.linalg.solve(S, delta), rel=1e-6)
    middle = (X[y].mean(0) + X[~y].mean(0)) / 2
    assert made["bias"][1].item() == pytest.approx(-w @ middle + np.log(y.mean() / (1 - y.mean())))
    agree = np.corrcoef(linear.score(made, rows.x)[1].numpy(), own.fit(X, y).decision_function(X))[0, 1]
    assert agree > 0.95
    torch.testing.assert_close(made["pattern"][1], torch.tensor(delta))  # what is written is δ, not Σ⁻¹ δ


@pytest.mark.parametrize(("n", "d"), [(30, 80), (80, 30)])
@pytest.mark.parametrize(("name", "peer"), [("ledoit_wolf", ledoit_wolf), ("oas", oas)])
def test_shrinkage_from_products_of_rows_is_scikit_learns(n, d, name, peer):
    X = drawn(n, d).x
    centred = X - X.mean(1, keepdim=True)
    found = covariance.inverse(centred, name)
    S, rho = peer(X[1].numpy())
    assert found.rho[1].item() == pytest.approx(rho, abs=1e-10)
    z = drawn(15, d, seed=3).x
    dense = np.einsum("ij,jk,ik->i", z[1].numpy(), np.linalg.inv(S), z[1].numpy())
    assert found.squared(z)[1].numpy() == pytest.approx(dense, rel=1e-8)
    assert found.times(z[:, 0])[1].numpy() == pytest.approx(np.linalg.solve(S, z[1, 0].numpy()), rel=1e-7)


def test_a_covariance_does_not_grow_with_the_rows():
    X = drawn().x
    once, twice = (covariance.inverse(x - x.mean(1, keepdim=True), 0.1) for x in (X, torch.cat([X, X], 1)))
    torch.testing.assert_close(once.squared(X), twice.squared(X))


def test_without_shrinkage_too_few_rows_or_a_constant_dimension_are_refused():
    X = drawn(20, 30).x
    with pytest.raises(BadInput, match="the covariance of 20 rows in 30 dimensions has no inverse"):
        covariance.inverse(X, "none")
    X = drawn(50, 5).x - drawn(50, 5).x.mean(1, keepdim=True)
    X[..., 2] = 0
    with pytest.raises(BadInput, match="constant dimension"):
        covariance.inverse(X, "none")
    assert covariance.inverse(X, "ledoit_wolf").squared(X).isfinite().all()
    with pytest.raises(UnknownName, match="no shrinkage 'lw'"):
        covariance.inverse(X, "lw")
    with pytest.raises(BadInput, match="a number from 0 to 1, not 2"):
        covariance.inverse(X, 2)


def test_whitening_makes_the_covariance_the_identity():
    X = drawn(200, 8).x[0]
    white = Whitening.fit(X, shrinkage="none")(X)
    torch.testing.assert_close(white.T @ white / len(X), torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-8)
    few = Whitening.fit(X, shrinkage="none", components=3)
    torch.testing.assert_close(few(X), white[:, :3])
    assert 0 < few.kept < 1
    with pytest.raises(BadInput, match="components is a number from 1 to 8, not 9"):
        Whitening.fit(X, components=9)
    with pytest.raises(BadInput, match="do not vary along 8 axes"):
        Whitening.fit(X[:5], shrinkage="none")


# ---------------------------------------------------------------------- all kinds
CLOSED = [name for name, kind in KINDS.items() if not (kind.tokens or kind.joint) and name != "ccs"]


@pytest.mark.parametrize("kind", CLOSED)
def test_every_kind_finds_a_shift_and_its_file_scores_alike(kind, tmp_path):
    train, validation = parts(gap=3.0)
    found = fit(train, validation, kind=kind)
    held = drawn(seed=5, gap=3.0)
    areas = [roc_auc_score(held.y.numpy(), f.numpy()) for f in found.score(held)]
    assert min(areas) > 0.8
    again = Probes.load(found.save(tmp_path / "probe.safetensors"))
    torch.testing.assert_close(again.score(held), found.score(held), rtol=0, atol=0)
    assert (again.places, again.about, again.kind) == (found.places, found.about, kind)
    torch.testing.assert_close(found.at(1).score(held.at(1))[0], found.score(held)[1])
    assert found.about["validation_auroc"][1] == pytest.approx(
        roc_auc_score(validation.y.numpy(), found.score(validation)[1].numpy()), abs=1e-6
    )


def test_polynomials_and_products_find_what_no_line_can():
    def rows(seed):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 300, 4, generator=draw)
        return Rows(x, x[0, :, 0] * x[0, :, 1] > 0)

    held = rows(3)
    areas = {
        k: fit(rows(1), rows(2), kind=k).score(held)[0]
        for k in ("logistic", "polynomial", "bilinear", "mlp", "early_exit")
    }
    areas = {k: roc_auc_score(held.y.numpy(), f.numpy()) for k, f in areas.items()}
    assert areas["logistic"] < 0.7
    assert min(areas["polynomial"], areas["bilinear"]) > 0.9
    assert min(areas["mlp"], areas["early_exit"]) > areas["logistic"] + 0.1


def test_the_first_order_of_a_polynomial_is_the_logistic_probe():
    train, validation = parts()
    found, line = (fit(train, validation, kind=kind) for kind in ("polynomial", "logistic"))
    orders = descent.by_order(found.parts, validation.x)
    assert len(orders) == 3
    torch.testing.assert_close(orders[0], line.score(validation))
    torch.testing.assert_close(orders[-1], found.score(validation))


def test_exits_are_those_of_a_network_by_hand():
    train, validation = parts()
    found, line = (fit(train, validation, kind=kind) for kind in ("early_exit", "logistic"))
    p, x = {name: value.numpy() for name, value in found.parts.items()}, validation.x.numpy()
    said = descent.by_exit(found.parts, validation.x).numpy()
    assert said.shape == (3, 2, 60)
    assert np.abs(p["v1"]).max() > 0.02  # it has learnt
    for place in range(2):
        start = line.score(validation)[place].numpy()
        for row in (0, 7):
            h = (x[place, row] - p["mean"][place]) / p["scale"][place] / np.sqrt(x.shape[2])
            expected = [start[row]]
            for k in ("1", "2"):
                h = np.maximum(p["u" + k][place] @ h + p["c" + k][place], 0)
                expected.append(start[row] + p["v" + k][place] @ h)
            assert said[:, place, row] == pytest.approx(expected)
    with pytest.raises(BadInput, match="layers >= 1"):
        fit(train, validation, kind="early_exit", layers=0)


def test_the_strength_is_the_one_with_the_least_validation_loss():
    train, validation = parts(d=150)
    found = fit(train, validation)
    for place in range(2):
        losses = {}
        for C in linear.STRENGTHS:
            f = fit(train.at(place), validation.at(place), strengths=[C]).score(validation.at(place))[0]
            losses[C] = float(torch.nn.functional.binary_cross_entropy_with_logits(f, validation.y.double()))
        assert found.about["strength"][place] == min(losses, key=losses.get)


def test_a_probe_of_few_dimensions_uses_the_telling_ones():
    train, validation = parts(gap=3.0)
    weights = fit(train, validation, kind="sparse", k=1).parts["weights"]
    assert (weights != 0).nonzero().tolist() == [[0, 0], [1, 0]]


def test_consistency_needs_no_labels_but_pairs_in_mixed_order():
    draw = torch.Generator().manual_seed(0)
    truth = torch.rand(60, generator=draw) < 0.5
    x = torch.randn(120, 6, generator=draw) * 0.3
    x[::2, 0] += 2.0 * truth  # "it is so": true or not
    x[1::2, 0] += 2.0 * ~truth  # "it is not so"
    x[1::2, 1] += 5.0  # how the negation is written, which is louder than the truth
    y, groups = torch.stack([truth, ~truth], 1).flatten(), torch.arange(120) // 2
    rows = Rows(x[None], y, groups=groups)
    found = fit(rows.part(slice(0, 80)), rows.part(slice(80, None)), kind="ccs")
    area = roc_auc_score(y[80:].numpy(), found.score(rows.part(slice(80, None)))[0].numpy())
    assert area > 0.9
    order = torch.stack([torch.arange(120).reshape(-1, 2)[i][[0, 1] if truth[i] else [1, 0]] for i in range(60)])
    with pytest.raises(BadInput, match="the first row is of the same class in every pair"):
        fit(rows.part(order[:40].flatten()), rows.part(slice(80, None)), kind="ccs")
    with pytest.raises(BadInput, match="groups of two rows"):
        fit(*parts(), kind="ccs")


def test_the_pattern_is_how_states_move_with_the_score():
    train, validation = parts(n=400)
    found = fit(train, validation).at(1)
    X, f = train.x[1], found.score(train.at(1))[0]
    slope = torch.stack([torch.cov(torch.stack([X[:, i], f]), correction=0)[0, 1] for i in range(X.shape[1])])
    torch.testing.assert_close(found.direction("pattern").vector, slope.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.direction().vector, found.parts["weights"][0].float())
    assert found.direction().site == train.places[1].site
    with pytest.raises(BadInput, match="a direction is of one linear probe"):
        fit(train, validation).direction()
    with pytest.raises(BadInput, match="a direction is of one linear probe"):
        fit(train, validation, kind="mlp").at(0).direction()


# ---------------------------------------------------------------------- bad input
def test_bad_rows_are_refused_in_one_line():
    good = drawn(40, 5)
    bad = good.x.clone()
    bad[1, 7, 2] = torch.nan
    for make, message in [
        (lambda: Rows(bad, good.y), r"row 7 at resid_post.1@last holds NaN or infinity \(1 such rows\)"),
        (lambda: Rows(good.x, good.y[:5]), "40 rows have 5 labels"),
        (lambda: Rows(good.x, torch.arange(40)), "labels are one true or false"),
        (lambda: Rows(good.x[0, 0], good.y), "x is places × n × d"),
        (lambda: Rows(good.x, good.y, groups=["a"] * 3), "40 rows have 3 groups"),
        (lambda: fit(good, good), "groups leak: 40 groups are both in training"),
        (lambda: fit(good.part(good.y), drawn(seed=1, d=5)), "needs at least 2 rows of both classes"),
        (lambda: fit(good, drawn(9, 5, seed=1).relabelled(torch.zeros(9).bool())), "validation needs at least 1 rows"),
        (lambda: fit(good, drawn(seed=1, d=5), strengths=[0.0]), "strengths are numbers above 0"),
        (lambda: fit(good, drawn(seed=1, d=5), depth=3), "has no such option"),
        (lambda: fit(good, drawn(seed=1, d=5), kind="attention"), "reads every token of a text"),
        (lambda: fit(Rows(torch.ones(1, 9, 3), torch.arange(9) < 4), drawn(30, 3, 1)), "are the same in all 9"),
    ]:  # fmt: skip
        with pytest.raises(BadInput, match=message):
            make()
    with pytest.raises(UnknownName, match="no kind of probe 'logit'"):
        fit(good, drawn(seed=1, d=5), kind="logit")


def test_a_constant_dimension_has_no_weight():
    train, validation = parts()
    for rows in (train, validation):
        rows.x[:, :, 4] = 5.0
    found = fit(train, validation)
    assert (found.parts["weights"][:, 4] == 0).all()
    assert found.score(validation).isfinite().all()


def test_a_probe_is_for_its_own_places_and_model():
    train, validation = parts(model_name="one")
    found = fit(train, validation)
    with pytest.raises(Mismatch, match="was fitted on states of one, these are of two"):
        found.score(drawn(model_name="two"))
    with pytest.raises(Mismatch, match="was fitted on states of width 20"):
        found.score(drawn(d=7))
    elsewhere = drawn(places=1).places[0]
    with pytest.raises(Mismatch, match="resid_post.0@-2"):
        found.at(0).score(Rows(train.x[:1], train.y, (Place(elsewhere.sites, -2),)))


def test_files_that_are_no_probe(tmp_path):
    train, validation = parts()
    path = fit(train, validation).save(tmp_path / "p.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadFile):
        Probes.load(broken)
    fit(train, validation).at(0).direction().save(broken)
    with pytest.raises(BadFile, match="does not hold a probe"):
        Probes.load(broken)
    probe = fit(train, validation)
    probe.with_parts({}, weights=probe.parts["weights"] * torch.nan).save(broken)
    with pytest.raises(BadFile, match="not finite"):
        Probes.load(broken)
