"""Operations along directions, beside slow formulas in NumPy, token by token."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from monosem import edits
from monosem.directions import Direction
from monosem.errors import BadInput, EditDidNotFire
from tiny import tiny_model

MODEL = tiny_model("llama")
SITE = "resid_post.1"
IDS = torch.randint(3, 100, (3, 7), generator=torch.Generator().manual_seed(5))
DRAW = torch.Generator().manual_seed(1)
V = torch.randn(32, generator=DRAW) * 3  # no unit vector
OTHER = torch.randn(32, generator=DRAW)
X = MODEL.run(IDS, capture=SITE)[SITE]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def activation(edit, x=IDS) -> torch.Tensor:
    return MODEL.run(x, capture=SITE, edits=edit)[SITE]


def token_by_token(f) -> torch.Tensor:
    rows = [[f(np.asarray(token, dtype=np.float64)) for token in row] for row in X.double().numpy()]
    return torch.tensor(np.array(rows), dtype=torch.float32)


v, w = V.double().numpy(), OTHER.double().numpy()
unit = v / np.sqrt((v * v).sum())
WANTED = {
    "ablate": (edits.ablate((SITE, V)), lambda x: x - unit * (unit @ x)),
    "ablate half": (edits.ablate((SITE, V), 0.5), lambda x: x - 0.5 * unit * (unit @ x)),
    "scale along": (edits.scale_along((SITE, V), 3.0), lambda x: x + 2 * unit * (unit @ x)),
    "reflect": (edits.reflect((SITE, V)), lambda x: (np.eye(32) - 2 * np.outer(unit, unit)) @ x),
    "set to": (edits.set_to((SITE, V), 2.5), lambda x: x + (2.5 - unit @ x) * unit),
    "floor": (edits.floor((SITE, V), 0.3), lambda x: x + (max(0.3, unit @ x) - unit @ x) * unit),
    "ceiling": (edits.ceiling((SITE, V), 0.3), lambda x: x + (min(0.3, unit @ x) - unit @ x) * unit),
    "push": (edits.push((SITE, V), 2.0), lambda x: x + 2 * np.sign(unit @ x) * unit),
    "add by cosine": (
        edits.add_by_cosine((SITE, V), 4.0),
        lambda x: x + 4 * max(0.0, (unit @ x) / np.sqrt(x @ x)) * unit,
    ),
    "affine": (
        edits.affine((SITE, V), OTHER, 0.7),
        lambda x: x - unit * (unit @ x) + unit * (unit @ w) + 0.7 * v,
    ),
    "transport": (edits.transport(SITE, V, OTHER, 0.4), lambda x: 0.6 * x + 0.4 * (v * x + w)),
}


@pytest.mark.parametrize("name", WANTED)
def test_every_operation_is_its_formula(name):
    edit, formula = WANTED[name]
    assert not torch.allclose(activation(edit), X, **CLOSE)
    torch.testing.assert_close(activation(edit), token_by_token(formula), **CLOSE)


@pytest.mark.parametrize("name", ["ablate", "scale along", "set to", "floor", "ceiling", "push", "add by cosine"])
def test_a_direction_counts_by_its_direction_alone(name):
    make = getattr(edits, name.replace(" ", "_"))
    torch.testing.assert_close(activation(make((SITE, V), 0.6)), activation(make((SITE, V * 100), 0.6)), **CLOSE)


def test_what_changes_nothing_is_the_identity():
    """Also an ablation of amount 0, which elsewhere is NaN."""
    for edit in (
        edits.ablate((SITE, V), 0.0),
        edits.scale_along((SITE, V), 1.0),
        edits.push((SITE, V), 0.0),
        edits.add_by_cosine((SITE, V), 0.0),
        edits.transport(SITE, V, OTHER, 0.0),
        edits.floor((SITE, V), -1e4),
        edits.ceiling((SITE, V), 1e4),
        edits.slerp((SITE, V), 0.0),
        edits.rotate((SITE, V), OTHER, 0.0, mode="by"),
    ):
        torch.testing.assert_close(activation(edit), X, rtol=1e-5, atol=1e-5)
    assert torch.equal(activation(edits.ablate((SITE, V), 0.0)), X)


def test_several_directions_are_removed_together():
    """Directions that are not orthogonal: one after the other would leave a part of the first."""
    span = np.stack([v, w + 0.5 * v])
    onto = np.linalg.pinv(span) @ span  # the projector on their span
    wanted = token_by_token(lambda x: x - onto @ x)
    as_list = edits.ablate([(SITE, V), (SITE, OTHER + 0.5 * V)])
    as_matrix = edits.ablate((SITE, torch.stack([V, OTHER + 0.5 * V])), axes="direction d_model")
    for edit in (as_list, as_matrix):
        torch.testing.assert_close(activation(edit), wanted, **CLOSE)
        torch.testing.assert_close(activation([edit, edit]), wanted, **CLOSE)
    one_by_one = activation([edits.ablate((SITE, V)), edits.ablate((SITE, OTHER + 0.5 * V))])
    assert not torch.allclose(one_by_one, wanted, **CLOSE)


def test_directions_that_no_operation_can_take():
    with pytest.raises(BadInput, match="one is a sum of the others"):
        edits.ablate([(SITE, V), (SITE, 2 * V)])
    with pytest.raises(BadInput, match="belong to one site"):
        edits.ablate([(SITE, V), ("resid_post.0", OTHER)])
    with pytest.raises(BadInput, match="acts along one direction"):
        edits.floor([(SITE, V), (SITE, OTHER)], 1.0)
    with pytest.raises(BadInput, match="zeros has no direction"):
        edits.set_to((SITE, torch.zeros(32)), 1.0)
    with pytest.raises(BadInput, match="span|sum of the others"):
        edits.rotate((SITE, V), 3 * V, 20.0)
    with pytest.raises(BadInput, match="finite in float32"):
        edits.floor((SITE, V), float("nan"))
    with pytest.raises(BadInput, match="16 entries"):
        activation(edits.ablate([(SITE, V[:16]), (SITE, OTHER[:16])]))


def test_amounts_by_row():
    found = activation(edits.set_to((SITE, V), [1.0, 2.0, -3.0]))
    torch.testing.assert_close(found @ torch.tensor(unit).float(), torch.tensor([[1.0], [2.0], [-3.0]]).expand(3, 7))


# ---------------------------------------------------------------------- turning
def plane() -> tuple[np.ndarray, np.ndarray]:
    second = w - unit * (unit @ w)
    return unit, second / np.sqrt(second @ second)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 200.0, -45.0])
@pytest.mark.parametrize("mode", ["to", "by"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_rotation_within_a_plane(degrees, mode, adaptive):
    first, second = plane()

    def formula(x):
        a, b = first @ x, second @ x
        if adaptive and a <= 0:
            return x
        angle = math.radians(degrees) + (math.atan2(b, a) if mode == "by" else 0.0)
        size = math.hypot(a, b)
        return x - a * first - b * second + size * (math.cos(angle) * first + math.sin(angle) * second)

    found = activation(edits.rotate((SITE, V), OTHER, degrees, mode=mode, adaptive=adaptive))
    torch.testing.assert_close(found, token_by_token(formula), **CLOSE)
    torch.testing.assert_close(found.norm(dim=-1), X.norm(dim=-1), **CLOSE)


@pytest.mark.parametrize("degrees", [20.0, 179.0, -25.0])
def test_slerp_turns_by_an_angle_and_no_further(degrees):
    found = activation(edits.slerp((SITE, V), degrees)).double()
    target = torch.tensor(unit)
    torch.testing.assert_close(found.norm(dim=-1), X.double().norm(dim=-1), **CLOSE)
    before = torch.rad2deg(torch.arccos((X.double() @ target) / X.double().norm(dim=-1)))
    after = torch.rad2deg(torch.arccos(((found @ target) / found.norm(dim=-1)).clamp(-1, 1)))
    torch.testing.assert_close(after, (before - degrees).clamp(0.0, 180.0), rtol=0, atol=0.1)
    both = torch.stack([X.double().flatten(0, 1), target.expand(21, 32), found.flatten(0, 1)], 1)
    assert float(torch.linalg.svdvals(both)[:, 2].max()) < 1e-4 * float(X.norm(dim=-1).max())  # within their plane


def test_an_opposite_activation_stays_with_a_warning():
    opposite = edits.patch(SITE, -2.0 * V).at(positions=0)
    with pytest.warns(edits.Opposite, match="exactly opposite"):
        found = activation([opposite, edits.slerp((SITE, V), 30.0)])
    torch.testing.assert_close(found[:, 0], (-2.0 * V).expand(3, 32), **CLOSE)
    with warnings.catch_warnings():  # not where the edit is narrowed to other tokens
        warnings.simplefilter("error")
        activation([opposite, edits.slerp((SITE, V), 30.0).at(positions=[1, 2])])


@pytest.mark.parametrize("when", ["always", "if_grew"])
def test_the_norm_is_kept_by_each_token(when):
    plain = edits.add((SITE, V), 2.0)
    new, old = activation(plain), X.norm(dim=-1, keepdim=True)
    sizes = new.norm(dim=-1, keepdim=True)
    assert bool((sizes > old).any())
    shrunk = activation([edits.ceiling((SITE, V), 0.0)]).norm(dim=-1, keepdim=True)
    assert bool((shrunk < old - 1e-3).any())
    wanted = new / sizes * (old if when == "always" else torch.minimum(old, sizes))
    torch.testing.assert_close(activation(edits.keep_norm(plain, when)), wanted, **CLOSE)
    capped = activation(edits.keep_norm(edits.ceiling((SITE, V), 0.0), when)).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(capped, old if when == "always" else shrunk, **CLOSE)


def test_norms_are_kept_of_vectors_alone(tiny_dictionary):
    sae = tiny_dictionary("relu", site=SITE, model_name="llama")
    for edit in (edits.clamp(sae, 1, 2.0), edits.splice(sae), edits.scale("pattern.1", 0.5)):
        with pytest.raises(BadInput, match="keep_norm takes an edit of vectors"):
            edits.keep_norm(edit)


# ---------------------------------------------------------------------- erasing
def test_an_eraser_takes_away_what_tells_two_classes_apart():
    """The closed form for two classes: the means meet, the mean of all stays, and a second time changes nothing."""
    draw = np.random.default_rng(0)
    y = np.arange(400) % 2
    data = draw.normal(size=(400, 32)) @ draw.normal(size=(32, 32)) + np.outer(y, draw.normal(size=32)) * 2
    delta, mean = data[y == 1].mean(0) - data[y == 0].mean(0), data.mean(0)
    solved = np.linalg.solve(np.cov(data.T), delta)
    read, write = torch.tensor(solved / (delta @ solved)), torch.tensor(delta)
    edit = edits.erase(SITE, read, write, torch.tensor(mean))
    found = activation([edits.patch(SITE, torch.tensor(data[:3]).float(), axes="batch d_model"), edit])[:, 0]
    wanted = data - np.outer((data - mean) @ solved, delta) / (delta @ solved)
    torch.testing.assert_close(found, torch.tensor(wanted[:3]).float(), **CLOSE)
    assert np.abs(wanted[y == 1].mean(0) - wanted[y == 0].mean(0)).max() < 1e-8
    assert np.abs(wanted.mean(0) - mean).max() < 1e-8
    torch.testing.assert_close(activation([edit, edit]), activation(edit), **CLOSE)


def test_an_eraser_that_does_not_erase_is_refused():
    with pytest.raises(BadInput, match="must be 1"):
        edits.erase(SITE, V, V, OTHER)
    with pytest.raises(BadInput, match=r"\[k, d\]"):
        edits.erase(SITE, V, OTHER[:5], OTHER)


# ---------------------------------------------------------------------- which tokens
READING = {
    "ablate": lambda d: edits.ablate(d),
    "scale along": lambda d: edits.scale_along(d, 3.0),
    "reflect": lambda d: edits.reflect(d),
    "set to": lambda d: edits.set_to(d, 2.5),
    "affine": lambda d: edits.affine(d, OTHER),
    "rotate": lambda d: edits.rotate(d, OTHER, 30.0),
    "slerp": lambda d: edits.slerp(d, 30.0),
}


@pytest.mark.parametrize("name", READING)
def test_a_direction_is_left_alone_where_it_was_not_fitted(name):
    """The first token, special ones (BOS is 0) and outliers in norm; a pair of site and vector names no rule."""
    ids = torch.cat([IDS, torch.zeros(3, 1, dtype=torch.long), IDS[:, :2]], 1)
    far = edits.scale("resid_pre.1", 1000.0).at(positions=3)
    clean = MODEL.run(ids, capture=SITE)[SITE]
    edit = READING[name](Direction(V, MODEL.site(SITE), "llama"))
    stay = torch.isin(torch.arange(10), torch.tensor([0, 7]))
    found = activation(edit, ids)
    assert torch.equal(found[:, stay], clean[:, stay])
    assert bool((found != clean).any(-1)[:, ~stay].all())
    everywhere = activation(edit.at(everywhere=True), ids)
    torch.testing.assert_close(everywhere, activation(READING[name]((SITE, V)), ids), **CLOSE)
    assert bool((everywhere != clean).any(-1).all())
    assert torch.equal(activation([far, edit], ids)[:, 3], activation(far, ids)[:, 3])
    assert not torch.equal(activation([far, edit], ids)[:, 4], activation(far, ids)[:, 4])
    with pytest.raises(EditDidNotFire, match="its direction was not fitted on"):
        activation(edit.at(positions=0))


def test_an_addition_acts_on_every_token():
    direction = Direction(V, MODEL.site(SITE), "llama")
    torch.testing.assert_close(activation(edits.add(direction, 2.0)), X + 2 * V, **CLOSE)


def test_directions_that_bring_more_than_a_vector():
    """A subspace is ablated as a whole; an eraser brings what it reads and keeps."""
    span = torch.linalg.qr(torch.stack([V, OTHER]).T).Q.T
    several = SimpleNamespace(site=MODEL.site(SITE), vector=V, basis=span)
    wanted = token_by_token(lambda x: x - np.asarray(span.double().T @ span.double()) @ x)
    torch.testing.assert_close(activation(edits.ablate(several)), wanted, **CLOSE)
    leace = SimpleNamespace(site=MODEL.site(SITE), vector=V, read=OTHER, centre=OTHER)
    scaled = OTHER / (OTHER @ V)
    torch.testing.assert_close(
        activation(edits.erase(leace)), activation(edits.erase(SITE, scaled, V, OTHER)), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(BadInput, match="with read and centre"):
        edits.erase(SimpleNamespace(site=MODEL.site(SITE), vector=V))


def test_operations_of_heads_act_in_each_head():
    by_heads = torch.randn(8, generator=DRAW)
    found = MODEL.run(IDS, capture="z.1", edits=edits.set_to(("z.1", by_heads), 1.5))["z.1"]
    torch.testing.assert_close(found @ (by_heads / by_heads.norm()), torch.full((3, 7, 4), 1.5), **CLOSE)


@pytest.mark.parametrize("name", WANTED)
def test_generation_equals_whole_passes(name):
    edit = WANTED[name][0]
    rows = [IDS[0, :3].tolist(), IDS[1].tolist()]
    made = MODEL.generate(rows, edits=edit, max_new_tokens=5, stop_at_eos=False)
    for row, whole in zip(rows, made.ids.rows()):
        for _ in range(5):
            row = [*row, int(MODEL.run([row], edits=edit).logits[0, -1].argmax())]
        assert whole == row


# ---------------------------------------------------------------------- several sites
def test_the_same_operation_at_several_sites():
    given = edits.each(edits.add, {"resid_post.0": (V, 2.0), "resid_post.1": (OTHER, [1.0, 0.0, -1.0])})
    one_by_one = [edits.add(("resid_post.0", V), 2.0), edits.add(("resid_post.1", OTHER), [1.0, 0.0, -1.0])]
    assert torch.equal(MODEL.run(IDS, edits=given).logits, MODEL.run(IDS, edits=one_by_one).logits)


def test_kernels():
    assert edits.kernel(range(10), 4, 2) == {3: 0.5, 4: 1.0, 5: 0.5}
    assert edits.kernel([4, 5], 4.5, 1.0, "gaussian") == pytest.approx(dict.fromkeys((4, 5), math.exp(-0.125)))
    with pytest.raises(BadInput, match="width above 0"):
        edits.kernel([4], 4, 0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "granite", "gpt_oss"])
def test_no_state_has_what_every_write_lacks(family, model_of):
    model = model_of(family)
    given = edits.ablate_writes(model, [V, OTHER])
    streams = [f"resid_post.{layer}" for layer in range(3)]
    run, plain = model.run(IDS, capture=streams, edits=given), model.run(IDS, capture=streams)
    span = torch.linalg.qr(torch.stack([V, OTHER]).T).Q
    for site in streams:
        size = plain[site].norm(dim=-1).max()
        assert float((plain[site] @ span).abs().max()) > 0.05 * size
        assert float((run[site] @ span).abs().max()) < 1e-5 * size
