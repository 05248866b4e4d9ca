"""What other packages make of small cases (golden numbers), and the traps that they show, beside what is done here."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from monosem import edits
from monosem.covariance import Covariance
from monosem.directions import METHODS, Direction
from monosem.directions.methods import Found
from monosem.directions.sample import Sample
from monosem.errors import BadInput, UnknownName
from tiny_latents import MODEL, NEGATIVE, POSITIVE, SITE

UP = torch.tensor([[3.0, 1, 0], [4, 0, 1], [5, 1, 1], [6, 2, 0]]).double()
DOWN = torch.tensor([[1.0, 1, 0], [1, 0, 1], [3, 0, 1], [2, 3, 0]]).double()
CENTRED = torch.tensor([0.7695090770721436, -0.6386358141899109, 0.0]).double()  # pca_diff of repeng 0.4.0 and of IBM
UNCENTRED = torch.tensor([0.9979423880577087, -0.06411761045455933, 0.0]).double()  # repeng's pca_center
GLOBAL = torch.tensor([0.9915028810501099, 0.12998859584331512, 0.0050041284412145615]).double()  # IBM's pca_center

ROWS = torch.tensor([[3.0, 1, 0], [4, 0, 1], [5, 1, 1], [1, 1, 0], [1, 0, 1], [3, 0, 2]]).double()
SHRUNK = 0.03706562696252877  # one entry of concept-erasure 0.2.4's shrunken covariance of these rows
BY_DEFAULT = [
    [2.430753271683309, 0.9186790388119014, 0.08132096118809866],
    [3.079459147677969, -0.13150583604600427, 1.1315058360460044],
    [2.9897875806387217, 0.7128267972341035, 1.2871732027658969],
    [2.2685768026846445, 1.1812252575263775, -0.18122525752637772],
    [2.836194444179972, 0.26231349202570997, 0.7376865079742898],
    [3.3952287531353846, 0.05646125044791199, 1.943538749552088],
]
NOT_AFFINE = [
    [1.3488372093023255, 0.7641196013289037, 0.23588039867109667],
    [1.9069767441860477, -0.299003322259136, 1.2990033222591366],
    [3.116279069767442, 0.7308970099667774, 1.269102990033223],
    [1.209302325581394, 1.0299003322259135, -0.029900332225913456],
    [1.6976744186046497, 0.09966777408637852, 0.9003322259136213],
    [3.465116279069765, 0.06644518272425216, 1.9335548172757477],
]


def unit(x):
    return x / x.norm()


# ---------------------------------------------------------------------- principal components
def test_centred_differences_point_across_the_mean_difference():
    delta = UP.mean(0) - DOWN.mean(0)
    axis = torch.from_numpy(PCA(1).fit((UP - DOWN).numpy()).components_[0])
    assert abs(axis @ CENTRED) == pytest.approx(1, abs=1e-6)
    found = METHODS["pca_pairs"].find(Sample.of(UP, DOWN)).vector
    assert unit(found) @ UNCENTRED == pytest.approx(1, abs=1e-6)
    assert unit(found) @ unit(delta) > 0.99 > 0.8 > abs(CENTRED @ unit(delta))
    with pytest.raises(UnknownName, match="points across the mean difference"):
        Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE, method="pca_diff")


def test_one_pair_and_equal_differences_are_no_basis_vector():
    """repeng's pca_diff gives [1, 0, 0] for one pair with the difference (1, 2, 2)."""
    wanted = torch.tensor([1.0, 2, 2]).double() / 3
    one = Sample.of([[1.0, 2, 2]], [[0.0, 0, 0]])
    equal = Sample.of(DOWN + torch.tensor([1.0, 2, 2]), DOWN)
    for sample in (one, equal):
        for name in ("dim", "pca_pairs", "svd"):
            torch.testing.assert_close(unit(METHODS[name].find(sample).vector), wanted)
    with pytest.raises(BadInput, match="do not vary enough"):
        METHODS["repe"].find(one)


def test_pca_center_is_two_vectors_and_the_error_says_both_formulas():
    pairs, every = (METHODS[name].find(Sample.of(UP, DOWN)).vector for name in ("pca_pairs", "pca_global"))
    assert unit(pairs) @ UNCENTRED == pytest.approx(1, abs=1e-6)
    assert unit(every) @ GLOBAL == pytest.approx(1, abs=1e-6)
    with pytest.raises(UnknownName, match=r"each pair centred.*'pca_pairs'.*all rows.*'pca_global'"):
        Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE, method="pca_center")


@pytest.mark.parametrize(("name", "share"), [("pca_pairs", 0.9465284943580627), ("pca_global", 0.7038702964782715)])
def test_shares_of_variance_are_those_of_ibm(name, share):
    sample = Sample.of(UP, DOWN)
    root = sample.differences.uncentred if name == "pca_pairs" else sample.total.root
    squares = torch.linalg.svdvals(root).square()
    assert float(squares[0] / squares.sum()) == pytest.approx(share, abs=1e-6)


# ---------------------------------------------------------------------- erasure
def erased(found, x, centre):
    return x - ((x - centre) @ found.read)[:, None] * found.vector


def test_the_default_of_concept_erasure_is_ours_with_its_own_weight():
    """Its weight of the identity has no bounds; here it is from 0 to 1, and either closes the gap on these rows."""
    sample = Sample.of(ROWS[:3], ROWS[3:])
    total, n = sample.total, len(ROWS)
    kept = SHRUNK / float(np.cov(ROWS.numpy().T, bias=True)[0, 1])
    read = Covariance.of(total.root, n, 1 - kept).solve(sample.delta)
    found = Found(sample.delta, read / (sample.delta @ read))
    torch.testing.assert_close(erased(found, ROWS, total.mean), torch.tensor(BY_DEFAULT).double(), rtol=0, atol=1e-6)


def test_an_erasure_that_is_not_affine_has_a_mean_of_zeros():
    found = METHODS["leace"].find(Sample.of(ROWS[:3], ROWS[3:]))
    torch.testing.assert_close(erased(found, ROWS, 0.0), torch.tensor(NOT_AFFINE).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 0.01, 1.0, 1e4])
@pytest.mark.parametrize("name", ["leace", "leace_shrunk", "orthogonal"])
def test_neither_units_nor_rarity_leave_anything(name, scale):
    draw = torch.Generator().manual_seed(0)
    down, up = (torch.randn(n, 4, generator=draw).double() for n in (2000, 3))
    up = up + torch.tensor([3.0, 0, 0, 0])
    found = METHODS[name].find(Sample.of(scale * up, scale * down, paired=False))
    after = erased(found, scale * torch.cat([up, down]), found.centre)
    assert (after[:3].mean(0) - after[3:].mean(0)).norm() < 1e-10 * scale


# ---------------------------------------------------------------------- steering with a cache
@pytest.mark.parametrize("positions", [slice(1, None), slice(4, None)])
def test_positions_count_in_the_row_also_with_a_cache(positions):
    """Positions that count inside a chunk would be 0 at every step, so that nothing that is generated is steered."""
    found = Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE)
    edit = edits.add(found, 3.0).at(positions=positions)
    prompt = MODEL.tokens("the cat sat").ids[0].tolist()
    made = MODEL.generate([prompt], edits=edit, max_new_tokens=6, stop_at_eos=False).ids.rows()[0]
    row = list(prompt)
    for _ in range(6):
        steered = list(range(len(row)))[positions]
        whole = [edits.add(found, 3.0).at(positions=steered)] if steered else []
        row.append(int(MODEL.run([row], edits=whole).logits[0, -1].argmax()))
    assert made == row
    prompt_alone = edits.add(found, 3.0).at(positions=positions, scope="prompt") if positions.start == 1 else ()
    assert MODEL.generate([prompt], edits=prompt_alone, max_new_tokens=6, stop_at_eos=False).ids.rows()[0] != row
