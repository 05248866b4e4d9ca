"""Every method against what other packages give, closed forms, scikit-learn, and rotations and scales."""

import numpy as np
import pytest
import torch
from sklearn.covariance import oas
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from monosem.covariance import SHRINKAGES, Covariance
from monosem.directions import METHODS
from monosem.directions.methods import geometric_median, method
from monosem.directions.moments import Moments
from monosem.directions.sample import Sample
from monosem.errors import BadInput, UnknownName

POSITIVE = [[3.0, 1, 0], [4, 0, 1], [5, 1, 1], [6, 2, 0]]
NEGATIVE = [[1.0, 1, 0], [1, 0, 1], [3, 0, 1], [2, 3, 0]]

# what repeng 0.4.0, steering-vectors 0.12.2 and IBM activation-steering 52be602 give for these rows, and their names
PEERS = {
    "dim": [2.75, 0.0, 0.0],  # mean_aggregator
    "pca_pairs": [0.9979423880577087, -0.06411761045455933, 0.0],  # pca_center; pca_aggregator; IBM's pca_pairwise
    "svd": [0.9979423880577087, -0.06411761045455933, 0.0],
    "pca_global": [0.9915028810501099, 0.12998859584331512, 0.0050041284412145615],  # IBM's pca_center
    "logistic_pairs": [0.9957197904586792, 0.09242357313632965, 0.0],  # logistic_aggregator
}
CENTRED = [0.7695090770721436, -0.6386358141899109, 0.0]  # pca_diff of repeng and IBM

# concept-erasure 0.2.4 in float64
X = torch.tensor([[3.0, 1, 0], [4, 0, 1], [5, 1, 1], [1, 1, 0], [1, 0, 1], [3, 0, 2]]).double()
ERASED = {
    "leace": [  # shrinkage=False
        [2.058139534883722, 0.8654485049833889, 0.13455149501661134],
        [2.616279069767444, -0.19767441860465088, 1.197674418604651],
        [3.8255813953488373, 0.8322259136212625, 1.1677740863787378],
        [1.9186046511627899, 1.1312292358803986, -0.13122923588039875],
        [2.4069767441860455, 0.20099667774086366, 0.7990033222591361],
        [4.174418604651161, 0.1677740863787373, 1.8322259136212624],
    ],
    "orthogonal": [  # method="orth"
        [2.656862745098039, 0.9509803921568627, 0.049019607843137254],
        [2.9705882352941178, -0.1470588235294118, 1.1470588235294117],
        [2.8725490196078423, 0.6960784313725488, 1.3039215686274512],
        [2.57843137254902, 1.2254901960784315, -0.2254901960784315],
        [2.852941176470589, 0.26470588235294135, 0.7352941176470587],
        [3.0686274509803924, 0.00980392156862748, 1.9901960784313726],
    ],
}


def two_classes(n=40, d=12, seed=0, gap=1.0, scales=True):
    """Rows of two classes with unequal variances and a mean far from zero, float64."""
    draw = torch.Generator().manual_seed(seed)
    shape = torch.randn(d, d, generator=draw).double() if scales else torch.eye(d).double()
    common, delta = 5 * torch.randn(d, generator=draw).double(), torch.randn(d, generator=draw).double()
    up, down = (torch.randn(n, d, generator=draw).double() @ shape + common for _ in range(2))
    return up + gap * delta, down, delta


def unit(x):
    return x / x.norm()


def erased(found, x):
    return x - ((x - found.centre) @ found.read)[:, None] * found.vector


@pytest.mark.parametrize("name", PEERS)
def test_other_packages_give_the_same(name):
    found = METHODS[name].find(Sample.of(POSITIVE, NEGATIVE)).vector
    expected = torch.tensor(PEERS[name]).double()
    found, expected = (found, expected) if name == "dim" else (unit(found), unit(expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ERASED)
def test_erasure_is_that_of_concept_erasure(name):
    found = METHODS[name].find(Sample.of(X[:3], X[3:]))
    torch.testing.assert_close(erased(found, X), torch.tensor(ERASED[name]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [4, 40])
def test_oas_is_scikit_learns(n):
    rows = torch.randn(n, 9, generator=torch.Generator().manual_seed(n)).double()
    covariance, shrinkage = oas(rows.numpy())
    moments = Moments.of(rows)
    ours = Covariance.of(moments.root, n)
    assert ours.shrinkage == pytest.approx(shrinkage)
    got = torch.stack([ours @ row for row in torch.eye(9).double()])
    torch.testing.assert_close(got, torch.from_numpy(covariance))
    vector = rows[0]
    torch.testing.assert_close(ours.solve(vector), torch.from_numpy(np.linalg.solve(covariance, vector.numpy())))


def test_lda_without_shrinkage_is_scikit_learns(monkeypatch):
    up, down, _ = two_classes(200)
    monkeypatch.setitem(SHRINKAGES, "oas", lambda traces: torch.zeros_like(traces.trace))
    read = METHODS["lda"].find(Sample.of(up, down)).read
    y = np.r_[np.ones(200), np.zeros(200)]
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(torch.cat([up, down]).numpy(), y).coef_[0]
    torch.testing.assert_close(unit(read), unit(torch.from_numpy(theirs)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n", [8, 60])
def test_logistic_regression_is_scikit_learns(n):
    up, down, _ = two_classes(n, gap=0.4)
    rows, y = torch.cat([up, down]), np.r_[np.ones(n), np.zeros(n)]
    scale = rows.std(0, unbiased=False)
    model = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000).fit(((rows - rows.mean(0)) / scale).numpy(), y)
    read = METHODS["logistic"].find(Sample.of(up, down)).read
    torch.testing.assert_close(unit(read), unit(torch.from_numpy(model.coef_[0]) / scale), rtol=1e-4, atol=1e-6)


def test_the_pattern_of_a_logistic_regression_is_covariance_times_weights():
    up, down, _ = two_classes(60)
    found = METHODS["logistic"].find(Sample.of(up, down))
    pattern = torch.cov(torch.cat([up, down]).T, correction=0) @ found.read
    torch.testing.assert_close(unit(found.vector), unit(pattern))


def test_the_geometric_median_has_the_least_distance_and_survives_a_wild_row():
    rows = torch.randn(21, 5, generator=torch.Generator().manual_seed(3)).double()
    point = geometric_median(rows)
    cost = (rows - point).norm(dim=1).sum()
    for shift in 1e-3 * torch.randn(50, 5, generator=torch.Generator().manual_seed(4)).double():
        assert (rows - point - shift).norm(dim=1).sum() > cost
    wild = torch.cat([rows[:-1], torch.full((1, 5), 1e6).double()])
    assert (geometric_median(wild) - point).norm() < 1
    assert torch.equal(geometric_median(rows[:1]), rows[0])


def test_a_median_direction_ignores_one_wild_prompt():
    up, down, delta = two_classes(41, scales=False, gap=3.0)
    up[0] = 1e5
    cosines = {
        name: float(unit(METHODS[name].find(Sample.of(up, down)).vector) @ unit(delta)) for name in ("median", "dim")
    }
    assert cosines["median"] > 0.9
    assert cosines["dim"] < 0.5


def test_projected_has_nothing_along_the_negative_mean():
    up, down, _ = two_classes()
    found = METHODS["projected"].find(Sample.of(up, down)).vector
    assert abs(float(unit(found) @ unit(down.mean(0)))) < 1e-12
    delta = up.mean(0) - down.mean(0)
    assert float(torch.linalg.matrix_rank(torch.stack([found, delta, down.mean(0)]), rtol=1e-9)) == 2


def test_mean_centred_is_the_distance_from_the_background():
    up, down, _ = two_classes()
    background = torch.randn(7, 12).double()
    found = METHODS["mean_centred"].find(Sample.of(up, down, background=background)).vector
    torch.testing.assert_close(found, up.mean(0) - background.mean(0))


def test_pca_of_uncentred_differences_finds_what_centring_takes_out():
    draw = torch.Generator().manual_seed(5)
    delta = torch.randn(64, generator=draw).double()
    down = torch.randn(100, 64, generator=draw).double()
    up = down + delta + torch.randn(100, 64, generator=draw).double()
    found = METHODS["pca_pairs"].find(Sample.of(up, down)).vector
    centred = torch.from_numpy(PCA(1).fit((up - down).numpy()).components_[0])
    assert unit(found) @ unit(delta) > 0.95
    assert abs(centred @ unit(delta)) < 0.4
    torch.testing.assert_close(
        unit(found) @ unit(up.mean(0) - down.mean(0)), torch.tensor(1.0).double(), atol=0.05, rtol=0
    )
    with pytest.raises(UnknownName, match="pca_pairs"):
        method("pca_diff")
    with pytest.raises(UnknownName, match="IBM"):
        method("pca_center")
    with pytest.raises(UnknownName, match="'dim'"):
        method("dims")


def test_pca_global_and_repe_are_scikit_learns():
    up, down, _ = two_classes()
    first = torch.from_numpy(PCA(1).fit(torch.cat([up, down]).numpy()).components_[0])
    assert abs(unit(METHODS["pca_global"].find(Sample.of(up, down)).vector) @ first) == pytest.approx(1)
    signs = torch.randint(0, 2, (40, 1), generator=torch.Generator().manual_seed(9)) * 2 - 1
    axes = torch.from_numpy(PCA(2).fit((signs * (up - down)).float().double().numpy()).components_)
    basis = METHODS["repe"].find(Sample.of(up, down, k=2, seed=9)).basis
    torch.testing.assert_close(torch.linalg.svdvals(basis @ axes.T), torch.ones(2).double(), atol=1e-5, rtol=0)


def test_svd_gives_the_subspace_of_differences():
    up, down, _ = two_classes(30)
    found = METHODS["svd"].find(Sample.of(up, down, k=3))
    axes = torch.linalg.svd(up - down, full_matrices=False).Vh[:3]
    torch.testing.assert_close(torch.linalg.svdvals(found.basis @ axes.T), torch.ones(3).double())
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(3).double())


def test_lat_finds_the_concept_where_it_dominates_without_labels():
    up, down, delta = two_classes(100, gap=8.0, scales=False)
    found = METHODS["lat"].find(Sample.of(up, down)).vector
    assert unit(found) @ unit(delta) > 0.9


@pytest.mark.parametrize("name", [name for name in METHODS if name != "mean_centred"])
def test_exchanged_classes_turn_a_direction_around(name):
    up, down, _ = two_classes(40, gap=3.0)
    there, back = (METHODS[name].find(Sample.of(*sides, seed=2)).vector for sides in ((up, down), (down, up)))
    if name not in ("projected", "lat"):  # these depend on which class is the negative one, or on the order drawn
        torch.testing.assert_close(there, -back, rtol=1e-3, atol=1e-4)
    assert there @ (up.mean(0) - down.mean(0)) > 0
    assert back @ (up.mean(0) - down.mean(0)) < 0


@pytest.mark.parametrize("name", ["pca_pairs", "svd", "pca_global", "repe", "lat", "logistic_pairs"])
def test_a_vector_added_once_moves_one_mean_to_the_other_along_itself(name):
    up, down, _ = two_classes(40, gap=3.0)
    vector = METHODS[name].find(Sample.of(up, down)).vector
    gap = (up.mean(0) - down.mean(0)) @ unit(vector)
    torch.testing.assert_close(vector.norm(), gap)


def test_the_sign_is_the_means_where_most_pairs_say_otherwise():
    down = torch.zeros(3, 3).double()
    up = torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [-5, 0, 0]]).double()
    found = unit(METHODS["pca_pairs"].find(Sample.of(up, down)).vector)
    expected = torch.tensor([-0.9999932050704956, -0.0037050005048513412, 0.0]).double()  # steering-vectors
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- erasure
@pytest.mark.parametrize("name", ["leace", "leace_shrunk", "orthogonal"])
@pytest.mark.parametrize("n", [6, 200])
def test_erased_rows_have_no_gap_and_the_same_mean(name, n):
    up, down, _ = two_classes(n)
    found = METHODS[name].find(Sample.of(up, down))
    after, rows = erased(found, torch.cat([up, down])), torch.cat([up, down])
    assert (after[:n].mean(0) - after[n:].mean(0)).norm() < 1e-8
    torch.testing.assert_close(after.mean(0), rows.mean(0))


def test_nothing_linear_tells_erased_classes_apart():
    up, down, _ = two_classes(300)
    found = METHODS["leace"].find(Sample.of(up, down))
    rows, y = torch.cat([up, down]), np.r_[np.ones(300), np.zeros(300)]
    before, after = (
        LogisticRegression(max_iter=5000).fit(x.numpy(), y).score(x.numpy(), y) for x in (rows, erased(found, rows))
    )
    assert before > 0.65
    assert after < 0.52


def test_leace_changes_rows_least():
    """Among linear erasures: any other read vector that closes the gap changes more."""
    up, down, _ = two_classes(100)
    found, rows = METHODS["leace"].find(Sample.of(up, down)), torch.cat([up, down])
    least = (erased(found, rows) - rows).square().sum()
    for shift in torch.randn(20, 12, generator=torch.Generator().manual_seed(1)).double():
        shift = shift - (shift @ found.vector) / (found.vector @ found.vector) * found.vector
        other = found._replace(read=found.read + 0.1 * found.read.norm() * unit(shift))
        assert (erased(other, rows) - rows).square().sum() > least


def test_a_rare_label_and_small_units_are_erased_too():
    """concept-erasure's tolerance of .01 in the label's units leaves 5 positives of 20,000 as they were."""
    draw = torch.Generator().manual_seed(0)
    down = torch.randn(20_000, 4, generator=draw).double()
    up = torch.randn(5, 4, generator=draw).double() + torch.tensor([3.0, 0, 0, 0]).double()
    for scale in (1.0, 1e-6):
        found = METHODS["leace"].find(Sample.of(scale * up, scale * down, paired=False))
        after = erased(found, scale * torch.cat([up, down]))
        assert (after[:5].mean(0) - after[5:].mean(0)).norm() < 1e-12


def test_few_rows_are_erased_where_unbounded_shrinkage_erases_nothing():
    x = torch.tensor([[2.0, 0], [0, -1], [0, -3], [1, 2], [-3, 2], [1, 2]]).double()  # concept-erasure: unchanged
    for name in ("leace", "leace_shrunk"):
        after = erased(METHODS[name].find(Sample.of(x[:3], x[3:])), x)
        assert (after[:3].mean(0) - after[3:].mean(0)).norm() < 1e-12
    plain = erased(METHODS["leace"].find(Sample.of(x[:3], x[3:])), x)[0]
    torch.testing.assert_close(
        plain, torch.tensor([1.7622666087711678, 0.7924446374294403]).double(), atol=1e-6, rtol=0
    )


# ---------------------------------------------------------------------- moments
def test_moments_of_parts_are_those_of_the_whole_and_stay_small():
    rows = 100 + torch.randn(3, 500, 8, generator=torch.Generator().manual_seed(0)).double()
    parts = [Moments.of(part) for part in rows.split([1, 7, 300, 192], dim=1)]
    total = sum(parts[1:], start=parts[0])
    assert total.root.shape[-2] <= 16
    assert total.n == 500
    torch.testing.assert_close(total.mean, rows.mean(1))
    centred = rows - rows.mean(1, keepdim=True)
    torch.testing.assert_close(total.root.mT @ total.root, centred.mT @ centred)
    torch.testing.assert_close(total.uncentred.mT @ total.uncentred, rows.mT @ rows)


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize("name", ["repe", "lat"])
def test_equal_differences_have_no_principal_component(name):
    down = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double() if name == "repe" else torch.zeros(5, 3)
    )
    with pytest.raises(BadInput, match="do not vary enough|same mean|has no sign"):
        METHODS[name].find(Sample.of(torch.zeros(1, 3) + 1, torch.zeros(1, 3)))
    if name == "repe":
        equal = METHODS["pca_pairs"].find(Sample.of(down + torch.tensor([1.0, 2, 2]), down)).vector
        torch.testing.assert_close(equal, torch.tensor([1.0, 2, 2]).double())


def test_one_pair_is_its_difference_where_nothing_is_centred():
    found = METHODS["pca_pairs"].find(Sample.of([[1.0, 2, 2]], [[0.0, 0, 0]])).vector
    torch.testing.assert_close(unit(found), torch.tensor([1.0, 2, 2]).double() / 3)


def test_bad_rows_are_refused():
    with pytest.raises(BadInput, match="not finite"):
        Sample.of([[float("nan"), 1.0]], [[0.0, 1.0]])
    with pytest.raises(BadInput, match="as many of each"):
        Sample.of(POSITIVE, NEGATIVE[:2])
    with pytest.raises(BadInput, match=r"\[n, d\]"):
        Sample.of([], NEGATIVE, paired=False)
    for name in ("dim", "lda", "leace", "logistic", "median", "pca_global"):
        with pytest.raises(BadInput, match=r"same mean|same median|no direction"):
            METHODS[name].find(Sample.of(POSITIVE, POSITIVE))
    with pytest.raises(BadInput, match="no covariance"):
        METHODS["lda"].find(Sample.of([[1.0, 1], [1, 1]], [[0.0, 1], [0, 1]]))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "mean_centred"])
def test_a_constant_dimension_is_no_part_of_any_direction(name):
    up, down, _ = two_classes(40, gap=3.0)
    up[:, 4] = down[:, 4] = 2.0
    found = METHODS[name].find(Sample.of(up, down))
    if name != "projected":  # the negative mean has something there
        assert abs(float(unit(found.vector)[4])) < 1e-9
    if found.read is not None:
        assert abs(float(unit(found.read)[4])) < 1e-9
