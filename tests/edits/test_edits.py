"""Edits on latents: error term kept, no-op is identity, per row, with a cache; dense re-implementations as oracles."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosem import edits, metrics
from monosem.dictionaries import Dictionary
from monosem.errors import BadInput, EditDidNotFire, UnknownName
from monosem.models import Model, Site, TokenBatch
from tiny import tiny_hf, tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

IDS = torch.randint(3, 100, (3, 9), generator=torch.Generator().manual_seed(5))
MODEL = tiny_model("llama")
SITE = "resid_post.1"
WIDTH = 48


def dictionary(kind: str = "relu", **options) -> Dictionary:
    return tiny_dictionary(kind, random_tensors(32, WIDTH, 0, (1 / 6, 1 / 4)), **{"model_name": "llama", **options})


KINDS = {
    "relu": dictionary(),
    "topk": dictionary("topk", k=7),
    "layer_norm": dictionary("topk", k=7, token_norm="layer_norm"),
}


@pytest.fixture(params=KINDS)
def sae(request) -> Dictionary:
    return KINDS[request.param]


def activation(edit) -> torch.Tensor:
    return MODEL.run(IDS, capture=SITE, edits=edit)[SITE]


X = MODEL.run(IDS, capture=SITE)[SITE]


def test_clamp_is_x_plus_difference_times_row(sae):
    """The oracle decodes densely: decode(f') + (x - decode(f))."""
    codes = sae.encode(X)
    latent = int(codes.dense().sum((0, 1)).argmax())
    dense = codes.dense()
    changed = dense.clone()
    changed[..., latent] = 2.5
    scale = sae.token_scale(X)
    oracle = X + (changed - dense) @ sae.W_dec * (1 if scale is None else scale)
    torch.testing.assert_close(activation(edits.clamp(sae, latent, 2.5, everywhere=True)), oracle, rtol=1e-4, atol=1e-4)


def test_scale_add_and_ablate_are_clamps_to_other_values(sae):
    latent = int(sae.encode(X).dense().sum((0, 1)).argmax())
    f = sae.encode(X).dense()[..., latent]
    row = sae.W_dec[latent] * (1 if sae.token_scale(X) is None else sae.token_scale(X))
    for edit, target in [
        (edits.scale_latent(sae, latent, 3.0, everywhere=True), 3 * f),
        (edits.add_latent(sae, latent, 1.5, everywhere=True), f + 1.5),
        (edits.ablate_latent(sae, latent, everywhere=True), 0 * f),
    ]:
        torch.testing.assert_close(activation(edit), X + (target - f)[..., None] * row, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(latent=st.integers(0, WIDTH - 1), kind=st.sampled_from(list(KINDS)))
def test_a_no_op_is_the_identity(latent, kind):
    sae = KINDS[kind]
    torch.testing.assert_close(activation(edits.scale_latent(sae, latent, 1.0)), X, rtol=0, atol=0)
    own = float(sae.latent_activations(X[:1, -1:], torch.tensor([latent]))[0, 0, 0])
    edit = edits.clamp(sae, latent, own).at(positions="last", rows=[0])
    torch.testing.assert_close(activation(edit), X, rtol=0, atol=1e-5)


def test_each_row_has_its_own_latent_and_value(sae):
    latents, values = torch.tensor([3, 11, 40]), torch.tensor([2.0, -1.0, 5.0])
    together = MODEL.run(IDS, edits=edits.clamp(sae, latents, values)).logits
    for row in range(3):
        alone = MODEL.run(IDS[row : row + 1], edits=edits.clamp(sae, int(latents[row]), float(values[row]))).logits
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


def test_clamps_in_generation_equal_full_passes(sae):
    rows = [IDS[0, :3].tolist(), IDS[1].tolist()]
    made = MODEL.generate(rows, edits=edits.clamp(sae, [5, 9], [9.0, 4.0]), max_new_tokens=8, stop_at_eos=False)
    for row, latent, value, whole in zip(rows, (5, 9), (9.0, 4.0), made.ids.rows()):
        for _ in range(8):
            logits = MODEL.run([row], edits=edits.clamp(sae, latent, value)).logits
            row = [*row, int(logits[0, -1].argmax())]
        assert whole == row


def test_a_latent_may_come_from_a_table(sae):
    one, other = (MODEL.run(IDS, edits=edits.clamp(sae, latent, 3.0)).logits for latent in (5, np.int64(5)))
    assert torch.equal(one, other)
    assert edits.clamp(sae, np.int64(5), 3.0).label == "clamp 5 to 3"


def test_splice_is_the_reconstruction(sae):
    torch.testing.assert_close(activation(edits.splice(sae, everywhere=True)), sae(X), rtol=1e-5, atol=1e-5)


def test_padding_is_never_edited(sae):
    batch = TokenBatch.of([IDS[0, :4].tolist(), IDS[1].tolist()], pad=2, side="left")
    clean = MODEL.run(batch, capture=SITE)[SITE]
    edited = MODEL.run(batch, capture=SITE, edits=edits.add((SITE, torch.ones(32)), 5.0))[SITE]
    assert torch.equal(edited[~batch.mask], clean[~batch.mask])
    assert not torch.equal(edited[batch.mask], clean[batch.mask])


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (0, [0]),
        (-1, [8]),
        ("last", [8]),
        ([1, -2], [1, 7]),
        (slice(2, 5), [2, 3, 4]),
        (slice(-2, None), [7, 8]),
        (slice(None, -7), [0, 1]),
    ],
)
def test_positions(positions, expected):
    changed = activation(edits.scale(SITE, 0.0).at(positions=positions))
    zero = (changed == 0).all(-1)
    assert zero[1].nonzero()[:, 0].tolist() == expected


def test_gates_and_rows():
    vector = torch.ones(32)
    gate = lambda x, moment: x[..., 0] > 0  # noqa: E731
    edited = activation(edits.add((SITE, vector), 2.0).when(gate))
    torch.testing.assert_close(edited, torch.where((X[..., :1] > 0), X + 2, X))
    rows = activation(edits.add((SITE, vector), 2.0).at(rows=[1]))
    torch.testing.assert_close(rows[1], X[1] + 2)
    assert torch.equal(rows[[0, 2]], X[[0, 2]])
    assert torch.equal(activation(edits.add((SITE, vector), 2.0).at(rows=[-2])), rows)
    with pytest.raises(BadInput, match="rows 0 to 2, not 9"):
        activation(edits.add((SITE, vector)).at(rows=[1, 9]))
    MODEL.run(IDS, edits=edits.add((SITE, vector)).when(lambda x, m: torch.zeros_like(m.mask)))  # closed, not missed


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("site", ["z.1", "q.1", "k.1", "v.1", "rot_k.1", "result.1", "pattern.1", "scores.1"])
def test_heads(family, site):
    """One head written by hand, and positions and rows given one after the other."""
    model = Model(tiny_hf(family), None, family)
    head, narrow = 1, edits.scale(site, 0.25).at(rows=[0, 2]).at(positions=[2, -1]).at(heads=1)

    def by_hand(x):
        x = x.clone()
        for row in (0, 2):
            for position in (2, x.shape[2 if site in ("pattern.1", "scores.1") else 1] - 1):
                where = (row, head, position) if site in ("pattern.1", "scores.1") else (row, position, head)
                x[where] *= 0.25
        return x

    found = model.run(IDS, capture=site, edits=narrow)
    expected = model.run(IDS, capture=site, edits=edits.function(site, by_hand))
    torch.testing.assert_close(found[site], expected[site], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert (found.logits - model.run(IDS).logits).abs().max() > 1e-5
    several = model.run(IDS, edits=edits.scale(site, 0.25).at(heads=range(model.cfg.n_heads)[:2])).logits
    one_by_one = [edits.scale(site, 0.25).at(heads=[h]) for h in (0, 1)]
    torch.testing.assert_close(several, model.run(IDS, edits=one_by_one).logits, rtol=1e-4, atol=1e-5)


def test_heads_that_are_not_there():
    with pytest.raises(BadInput, match="z.1 has heads 0 to 3, not 4"):
        MODEL.run(IDS, edits=edits.scale("z.1", 0.0).at(heads=4))
    with pytest.raises(BadInput, match="no heads"):
        edits.scale(SITE, 0.0).at(heads=0)


def test_ablating_a_direction_removes_it_and_is_idempotent():
    vector = torch.randn(32, generator=torch.Generator().manual_seed(3))
    once = activation(edits.ablate((SITE, vector)))
    assert (once @ vector).abs().max() < 1e-4 * vector.norm()
    twice = activation([edits.ablate((SITE, vector)), edits.ablate((SITE, vector * 7))])
    torch.testing.assert_close(once, twice, rtol=1e-5, atol=1e-5)


def test_edits_apply_in_order_and_in_float32_for_bf16_models():
    shift = edits.add((SITE, torch.ones(32)), 1.0)
    torch.testing.assert_close(activation([shift, edits.scale(SITE, 2.0)]), (X + 1) * 2)
    torch.testing.assert_close(activation([edits.scale(SITE, 2.0), shift]), X * 2 + 1)
    half = Model(tiny_hf("llama").to(torch.bfloat16), None, "llama")
    assert half.run(IDS, capture=SITE, edits=shift)[SITE].dtype == torch.bfloat16


def test_patching_with_a_scalar_a_vector_and_another_run():
    other = activation(edits.scale(SITE, 3.0))
    assert torch.equal(activation(edits.patch(SITE, 0.0)), torch.zeros_like(X))
    assert torch.equal(activation(edits.patch(SITE, other[0, 0])), other[0, 0].expand_as(X))
    assert torch.equal(activation(edits.patch(SITE, other)), other)
    with pytest.raises(BadInput, match="has 5 along 'd_model', not 32"):
        activation(edits.patch(SITE, torch.zeros(5)))


def test_bad_latents_values_and_dictionaries():
    sae = KINDS["relu"]
    with pytest.raises(UnknownName, match="latents 0 to 47"):
        edits.clamp(sae, 48, 1.0)
    with pytest.raises(BadInput, match="2 latents for 3 rows"):
        activation(edits.clamp(sae, [1, 2], 1.0))
    with pytest.raises(BadInput, match="2 values for 3 rows"):
        activation(edits.clamp(sae, 1, [1.0, 2.0]))
    with pytest.raises(EditDidNotFire, match="clamp 1 to 2"):
        activation(edits.clamp(sae, 1, 2.0).at(positions=40))
    with pytest.raises(BadInput, match="scope"):
        edits.clamp(sae, 1, 1.0).at(scope="sometimes")
    with pytest.raises(BadInput, match="returned shape"):
        activation(edits.function(SITE, lambda x: x[..., :3]))
    backwards = dictionary(site="mlp_out.1", site_out="mlp_out.0")
    with pytest.raises(BadInput, match=r"mlp_out\.1, which the transcoder reads, is not computed before"):
        activation(edits.clamp(backwards, 1, 1.0))


# ---------------------------------------------------------------------- metrics


def test_metrics_against_their_formulas():
    generator = torch.Generator().manual_seed(1)
    p, q = torch.randn(2, 5, 7, generator=generator)
    target = torch.arange(5)
    reference = torch.nn.functional.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(metrics.kl(p, q), reference)
    torch.testing.assert_close(metrics.kl(p, p), torch.zeros(5))
    p[:, 0], q[:, 0] = -torch.inf, -torch.inf  # a token that no one may choose
    torch.testing.assert_close(metrics.kl(p, q), metrics.kl(p[:, 1:], q[:, 1:]))
    assert metrics.kl(q, torch.zeros_like(q)).isfinite().all()
    assert metrics.kl(torch.zeros_like(q), q).isposinf().all()
    torch.testing.assert_close(
        metrics.cross_entropy(p, target), torch.nn.functional.cross_entropy(p, target, reduction="none")
    )
    torch.testing.assert_close(metrics.probability(p, target), p.softmax(-1).gather(-1, target[:, None])[:, 0])
    expected = p[range(5), range(5)] - p[range(5), range(1, 6)]
    torch.testing.assert_close(metrics.logit_diff(p, target, target + 1), expected)
    assert metrics.recovered(base=2.0, zero=10.0, edited=4.0) == pytest.approx(0.75)


def test_continuation_perplexity_counts_only_the_continuation():
    rows = [IDS[0, :5].tolist(), IDS[1].tolist()]
    batch = TokenBatch.of(rows, pad=2)
    found = metrics.continuation_perplexity(MODEL, batch, torch.tensor([3, 4]))
    for row, start, value in zip(rows, (3, 4), found):
        logits = MODEL.run([row]).logits[0]
        losses = metrics.cross_entropy(logits[start - 1 : -1], torch.tensor(row[start:]))
        assert float(value) == pytest.approx(float(losses.mean().exp()), rel=1e-4)


@pytest.mark.parametrize(
    "gate",
    [
        lambda x, moment: x.norm(dim=(1, 2)) > 0,  # one a row: with as many rows as tokens it was taken for columns
        lambda x, moment: x.norm(dim=-1, keepdim=True) > 0,
        lambda x, moment: x.norm(dim=-1),
        lambda x, moment: True,
    ],
)
def test_a_gate_says_yes_or_no_for_each_token(gate):
    with pytest.raises(BadInput, match="one boolean a token"):
        MODEL.run([[5, 6, 7]] * 3, edits=edits.scale("resid_post.1", 0.0).when(gate))


def test_a_function_may_write_into_the_activation_that_it_is_given():
    """What the edit is not narrowed to stays, and so does what was captured of the same tensor before."""

    def write(x, moment):
        x[:, 1:] *= 2
        return x

    site = Site("resid_pre", 2)
    edit = edits.Edit(site, write, "in place").at(rows=[1], positions=[0, -1])
    found = MODEL.run(IDS, edits=edit, capture=["resid_post.1", site])
    expected = MODEL.run(IDS, edits=edits.scale(site, 2.0).at(rows=[1], positions=-1), capture=["resid_post.1", site])
    for one in ("resid_post.1", site):
        torch.testing.assert_close(found[one], expected[one])
    torch.testing.assert_close(found.logits, expected.logits)
