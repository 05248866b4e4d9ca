"""Distances against NumPy, scikit-learn and the numbers of pytorch-ood 0.4.0 (golden), and their invariances."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.probes import DISTANCES, Distances, LayerEnsemble, Rows, Whitening, distances, energy, fit, ood, unsure

# a toy, its right values (covariances divided by n), and what pytorch-ood 0.4.0 gave
X = [[0, 0], [2, 0], [0, 1], [2, 1], [10, 10], [12, 10], [10, 12], [12, 13]]
Y = [0, 0, 0, 0, 1, 1, 1, 1]
QUERY = [[1, 0.5], [5, 5], [11, 11], [20, -5], [1, 10]]
NEAREST = [0.0, 32.786885245901644, 0.06557377049180328, 397.7377049180328, 94.68852459016394]
RELATIVE = [-0.9798679867986806, 32.73374993237029, -0.8984526321484615, 35.51790293783466, 46.05189092679758]
PEER_NEAREST = [0.0, 2.049180030822754, 0.00409835996106267, 24.85860252380371, 5.918032169342041]
PEER_RELATIVE = [-0.12248338013887405, 4.0917181968688965, -0.11230660229921341, 4.439754486083984, 5.756488800048828]


def toy(x=X, y=Y, **more):
    return Rows(torch.tensor(x, dtype=torch.float64)[None], torch.tensor(y) == 1, **more)


def query(x=QUERY):
    return torch.tensor(x, dtype=torch.float64)[None]


def drawn(n=120, d=6, classes=3, places=2, seed=0, shift=0.0, **more):
    draw = torch.Generator().manual_seed(seed)
    c = torch.arange(n) % classes
    means = torch.randn(classes, d, generator=torch.Generator().manual_seed(99)) * 3
    x = torch.randn(places, n, d, generator=draw) * torch.linspace(0.3, 2, d) + means[c] + shift
    return Rows(x.double(), c == 0, classes=c, **more)


def test_the_toy_and_what_pytorch_ood_makes_of_it():
    nearest, relative = (
        Distances.fit(toy(), kind, shrinkage="none").score(query())[0] for kind in ("mahalanobis", "relative")
    )
    assert nearest.tolist() == pytest.approx(NEAREST, abs=1e-9)
    assert relative.tolist() == pytest.approx(RELATIVE, abs=1e-9)
    assert (nearest / (2 * len(X))).tolist() == pytest.approx(PEER_NEAREST, abs=1e-5)  # its covariance is a sum
    assert (relative / len(X)).tolist() == pytest.approx(PEER_RELATIVE, rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.01, 0.001])
@pytest.mark.parametrize("copies", [1, 2])
def test_neither_more_rows_nor_other_units_change_a_distance(scale, copies):
    rows = toy((np.array(X * copies) * scale).tolist(), Y * copies)
    for kind, right in {"mahalanobis": NEAREST, "relative": RELATIVE}.items():
        found = Distances.fit(rows, kind, shrinkage="none").score(query() * scale)[0]
        assert found.tolist() == pytest.approx(right, abs=1e-8)


@pytest.mark.parametrize(("n", "d"), [(120, 6), (40, 90)])
@pytest.mark.parametrize("kind", ["mahalanobis", "relative", "mahalanobis++"])
def test_distances_are_numpys_dense_ones_with_either_form_of_the_inverse(n, d, kind):
    rows, fresh = drawn(n, d), drawn(20, d, seed=5)
    x, q, c = rows.x[1].numpy(), fresh.x[1].numpy(), rows.classes.numpy()
    if kind.endswith("++"):
        x, q = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (x, q))
    means = np.stack([x[c == i].mean(0) for i in range(3)])

    def squared(residuals, centres):
        S = ledoit_wolf(residuals, assume_centered=True)[0]
        return np.min([np.einsum("ij,jk,ik->i", q - m, np.linalg.inv(S), q - m) for m in centres], 0)

    expected = squared(x - means[c], means)
    if kind == "relative":
        expected = expected - squared(x - x.mean(0), [x.mean(0)])
    assert Distances.fit(rows, kind).score(fresh)[1].numpy() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_mahalanobis_is_euclid_after_whitening():
    rows, fresh = drawn(classes=1), drawn(20, classes=1, seed=5)
    white = Whitening.fit(rows.x[0], shrinkage="ledoit_wolf")
    expected = white(fresh.x[0]).square().sum(1)
    torch.testing.assert_close(Distances.fit(rows, "marginal").score(fresh)[0], expected)


def test_relative_of_one_class_is_zero_and_refused():
    rows, fresh = drawn(classes=1), drawn(20, classes=1, seed=5)
    parts = distances.relative(rows.x, torch.zeros(120).long())
    assert distances.relative_score(parts, fresh.x).abs().max() < 1e-9
    with pytest.raises(BadInput, match="'relative' of one class is 0 for every state"):
        Distances.fit(rows.with_classes(["a"] * 120), "relative")


def test_the_scale_of_a_state_does_not_count_on_the_sphere():
    rows, fresh = drawn(), drawn(20, seed=5)
    factor = torch.rand(2, 20, 1, generator=torch.Generator().manual_seed(1)).double() * 9 + 0.1
    for kind in ("mahalanobis++", "relative++", "knn", "cosine"):
        made = Distances.fit(rows, kind)
        torch.testing.assert_close(made.score(fresh.x * factor), made.score(fresh.x))
    made = Distances.fit(rows, "mahalanobis")
    assert (made.score(fresh.x * factor) - made.score(fresh.x)).abs().max() > 1


def test_baselines_are_scikit_learns():
    rows, fresh = drawn(), drawn(20, seed=5)
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (rows.x[1].numpy(), fresh.x[1].numpy())]
    expected = NearestNeighbors(n_neighbors=4).fit(unit[0]).kneighbors(unit[1])[0][:, -1]
    assert Distances.fit(rows, "knn", k=4).score(fresh)[1].numpy() == pytest.approx(expected, abs=1e-7)
    x, c = rows.x[1].numpy(), rows.classes.numpy()
    means = np.stack([x[c == i].mean(0) for i in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert Distances.fit(rows, "cosine").score(fresh)[1].numpy() == pytest.approx(1 - (unit[1] @ means.T).max(1))
    z = fresh.x[1].numpy() - x.mean(0)
    values, axes = np.linalg.eigh(np.cov(x.T))
    rest = z @ axes[:, np.argsort(-values)[2:]]
    found = Distances.fit(rows, "residual", components=2).score(fresh)[1].numpy()
    assert found == pytest.approx((rest**2).sum(1))
    logits = torch.randn(5, 9)
    assert energy(logits).numpy() == pytest.approx(-np.log(np.exp(logits.double().numpy()).sum(1)))
    assert unsure(logits).numpy() == pytest.approx(
        1 - np.exp(logits.double().numpy()).max(1) / np.exp(-energy(logits).numpy())
    )


def test_p_values_are_ranks_among_held_out_rows_and_uniform():
    made = Distances.fit(drawn(300), "mahalanobis")
    with pytest.raises(BadInput, match="held-out rows"):
        made.p_values(drawn(20, seed=5))
    made = made.against(drawn(199, seed=7))
    fresh = drawn(2000, seed=5)
    held, f = made.score(drawn(199, seed=7))[1], made.score(fresh)[1]
    expected = [(1 + int((held >= one).sum())) / 200 for one in f[:20]]
    assert made.p_values(fresh)[1, :20].tolist() == pytest.approx(expected)
    for how in ("each", "mean", "max"):
        p = made.p_values(fresh, how=how).flatten()
        for level in (0.05, 0.2, 0.5):
            assert float((p <= level).double().mean()) == pytest.approx(level, abs=0.07)
    far = made.p_values(drawn(50, seed=5, shift=15.0), how="mean")
    assert float(far.max()) == pytest.approx(1 / 200)


def test_places_together_are_standardised_scores():
    made = Distances.fit(drawn(), "mahalanobis").against(drawn(seed=7))
    fresh = drawn(20, seed=5)
    held, f = made.score(drawn(seed=7)), made.score(fresh)
    z = (f - held.mean(1, keepdim=True)) / held.std(1, keepdim=True)
    torch.testing.assert_close(made.combined(fresh), z.mean(0))
    torch.testing.assert_close(made.combined(fresh, how="max"), z.amax(0))
    with pytest.raises(UnknownName, match="no way to combine places 'min'"):
        made.combined(fresh, how="min")


@pytest.mark.parametrize("kind", DISTANCES)
def test_files_score_alike(kind, tmp_path):
    made = Distances.fit(drawn(), kind, **({"components": 3} if kind == "residual" else {})).against(drawn(seed=7))
    again = Distances.load(made.save(tmp_path / "d.safetensors"))
    fresh = drawn(20, seed=5)
    assert torch.equal(again.score(fresh), made.score(fresh))
    assert torch.equal(again.p_values(fresh), made.p_values(fresh))
    assert (again.kind, again.places, again.about) == (made.kind, made.places, made.about)
    (tmp_path / "other.safetensors").write_bytes((tmp_path / "d.safetensors").read_bytes()[:-30])
    with pytest.raises(BadFile):
        Distances.load(tmp_path / "other.safetensors")
    with pytest.raises(Mismatch, match="this distance was fitted on states of width 6"):
        made.score(drawn(d=5))


def test_detecting_with_the_whitened_direction_and_writing_with_the_difference():
    """Correlated noise: δ itself detects badly; moving along Σ⁻¹ δ leaves where the classes lie, moving along δ not."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(2000) % 2 == 0
    loud = torch.randn(2000, generator=draw) * 5
    x = torch.stack([loud + 0.5 * y, loud + torch.randn(2000, generator=draw) * 0.1], 1)[None].double()
    rows = Rows(x, y)
    train, held = rows.part(slice(0, 1000)), rows.part(slice(1000, None))
    probe = fit(train, held, kind="lda", shrinkage="none").at(0)
    read, write = probe.direction("read"), probe.direction("pattern")
    delta = train.x[0][train.y].mean(0) - train.x[0][~train.y].mean(0)
    torch.testing.assert_close(write.vector, delta.float())

    def area(v):
        return roc_auc_score(held.y.numpy(), (held.x[0] @ v.double()).numpy())

    assert area(read.vector) > 0.99
    assert area(write.vector) < 0.6
    negative, positive = train.x[0][~train.y], train.x[0][train.y]
    moved = {
        name: negative + one.vector.double() * delta.norm() / one.vector.norm()
        for name, one in (("r", read), ("w", write))
    }
    spread = torch.linalg.inv(torch.cov(positive.T))
    off = {
        name: float(((m.mean(0) - positive.mean(0)) @ spread @ (m.mean(0) - positive.mean(0))).abs())
        for name, m in moved.items()
    }
    assert off["w"] < 0.1 * off["r"]


def test_layers_have_weights_by_scikit_learns_regression_on_log_scores():
    made = Distances.fit(drawn(), "mahalanobis").against(drawn(60, seed=7))
    few, fresh = drawn(7, seed=4, shift=1.0), drawn(30, seed=5, shift=0.5)
    held, above, new = (np.log(made.score(rows).numpy()) for rows in (drawn(60, seed=7), few, fresh))
    middle, spread = held.mean(1, keepdims=True), held.std(1, ddof=1, keepdims=True)
    z = [((one - middle) / spread).T for one in (held, above, new)]
    theirs = LogisticRegression(C=0.5, class_weight="balanced", tol=1e-10, max_iter=1000)
    theirs.fit(np.concatenate(z[:2]), np.arange(67) >= 60)
    ours = LayerEnsemble.fit(made, few, penalty=2.0)
    assert ours(fresh).numpy() == pytest.approx(theirs.decision_function(z[2]), abs=1e-4)
    assert made.combined(fresh, log=True).numpy() == pytest.approx(z[2].mean(1))
    together = z[0].mean(1)
    wanted = [(1 + int((together >= one).sum())) / 61 for one in z[2].mean(1)]
    assert made.p_values(fresh, how="mean", log=True).tolist() == pytest.approx(wanted)
    table = ood({"e": ours}, drawn(50, seed=9), {"far": fresh}).table
    usual = ours(drawn(50, seed=9)).numpy()
    area = roc_auc_score(np.arange(80) >= 50, np.concatenate([usual, ours(fresh).numpy()]))
    assert table["auroc"].tolist() == pytest.approx([area])


def test_an_ensemble_refuses_what_it_has_seen_and_signed_logs():
    held = drawn(60, seed=7, texts=[f"h{i}" for i in range(60)])
    few = drawn(6, seed=4, shift=1.0, texts=[f"f{i}" for i in range(6)])
    made = Distances.fit(drawn(), "relative").against(held)
    ours = LayerEnsemble.fit(made, few)
    assert not ours.log  # relative scores may be negative
    with pytest.raises(BadInput, match="texts of far are among the usual ones of e, or gave its weights"):
        ood({"e": ours}, drawn(50, seed=9), {"far": few})
    for make, message in [
        (lambda: LayerEnsemble.fit(made, few, log=True), "have no log"),
        (lambda: LayerEnsemble.fit(made, held), "60 of the unusual examples are usual texts"),
        (lambda: LayerEnsemble.fit(made, few, penalty=0.0), "a penalty above 0"),
        (lambda: LayerEnsemble.fit(Distances.fit(drawn()), few), "held-out rows"),
    ]:
        with pytest.raises(BadInput, match=message):
            make()


# ---------------------------------------------------------------------- evaluation
def test_near_and_far_with_lengths_alike():
    usual = drawn(400, lengths=torch.arange(400) % 20 + 5)
    held = drawn(300, seed=3, lengths=torch.arange(300) % 20 + 5)
    far = drawn(100, seed=4, shift=4.0, lengths=torch.arange(100) % 20 + 5)
    long = drawn(100, seed=6, lengths=torch.full((100,), 60))
    detectors = {"m": Distances.fit(usual).against(drawn(100, seed=9)), "length": lambda rows: rows.lengths}
    found = ood(detectors, held, {"near": long, "far": far})
    table = found.table.set_index(["detector", "place", "against"])
    assert set(table.index.get_level_values(1)) == {
        "resid_post.0@last",
        "resid_post.1@last",
        "together",
        "together, log",
        "-",
    }
    row = table.loc[("m", "resid_post.1@last", "far")]
    below, above = (detectors["m"].score(rows)[1].numpy() for rows in (held, far))
    f, y = np.concatenate([below, above]), np.arange(400) >= 300
    assert row["auroc"] == pytest.approx(roc_auc_score(y, f))
    assert row["ap_unusual"] == pytest.approx(average_precision_score(y, f))
    assert row["ap_usual"] == pytest.approx(average_precision_score(~y, -f))
    assert row["auroc"] > 0.95
    assert row["auroc_lengths_alike"] > 0.9
    assert table.loc[("length", "-", "near"), "auroc"] == 1.0  # a length tells long texts apart
    assert np.isnan(table.loc[("length", "-", "near"), "auroc_lengths_alike"])
    assert abs(table.loc[("length", "-", "far"), "auroc_lengths_alike"] - 0.5) < 0.1
    assert abs(table.loc[("m", "together", "near"), "found_at_5"] - 0.05) < 0.1
    assert len(found.plot().data) == 4
    with pytest.raises(BadInput, match="at least one detector"):
        ood({}, held, {"far": far})


def test_bad_input_is_refused():
    rows = drawn()
    for make, message in [
        (lambda: Distances.fit(drawn(20, 30), shrinkage="none"), "has no inverse"),
        (lambda: Distances.fit(rows.with_classes([*range(119), 0])), "a class has one row alone"),
        (lambda: Distances.fit(rows, depth=3), "has no such option"),
        (lambda: Distances.fit(rows, "knn", k=500), "k is a number from 1 to the 120 rows, not 500"),
        (lambda: Distances.fit(rows, "residual"), "components is a number from 1 to 5"),
    ]:
        with pytest.raises(BadInput, match=message):
            make()
    with pytest.raises(UnknownName, match="no kind of distance 'mahalonobis'; did you mean 'mahalanobis"):
        Distances.fit(rows, "mahalonobis")
