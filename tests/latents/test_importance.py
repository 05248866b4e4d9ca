"""What latents do for an answer: exact ablation against hooks on the bare model, estimates against slow formulas and
identities."""

from dataclasses import replace

import pytest
import torch

from monosem import edits
from monosem.data import TokenPairs
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.latents import LATENT_METHODS, check_latents, exact_latents, latent_scores
from tiny import tiny_model
from tiny_circuits import logit_gap, random_pairs, wide
from tiny_dictionaries import random_tensors, tiny_dictionary

PLAIN = {"skip_rule": {"special": False, "first": 0, "outlier": None}}
WIDTH = 24


def coder(kind="relu", site="resid_post.1", skip=False, metadata=PLAIN, **about):
    """Float64; some latents are huge, one is never active, one writes nothing."""
    tensors = random_tensors(32, WIDTH, 7, (0.3, 0.3), torch.float64)
    tensors.W_dec[3] *= 30
    tensors.W_dec[4] = 0
    tensors.b_enc[5] = -1e3
    if skip:
        tensors = replace(tensors, W_skip=torch.randn(32, 32, dtype=torch.float64) * 0.2)
    return tiny_dictionary(kind, tensors, site=site, model_name="", metadata=metadata, **about)


PLACES = {
    "stream": {},
    "first layer": {"site": "resid_pre.0"},
    "topk": {"kind": "topk", "k": 4},
    "normalised": {"kind": "topk", "k": 4, "token_norm": "layer_norm"},
    "heads": {"site": "z.1"},
    "MLP": {"site": "mlp_out.2"},
    "transcoder": {"site": "ln2_output.1", "site_out": "mlp_out.1", "transcoder": True, "skip": True},
}


@pytest.mark.parametrize("place", PLACES)
def test_exact_scores_are_clamps_to_zero(place):
    model, sae = wide("llama"), coder(**PLACES[place])
    pairs = random_pairs(model, (6, 5))
    found = exact_latents(model, pairs, sae, metric=logit_gap, quiet=True)
    table = found.table.set_index("latent")["score"]
    with torch.no_grad():
        clean = model.run(pairs.clean, logits="last").logits
        for latent in (0, 3, 4, 5, 11, 20):
            off = model.run(pairs.clean, edits=edits.ablate_latent(sae, latent), logits="last").logits
            fell = float((logit_gap(clean, pairs, None) - logit_gap(off, pairs, None)).mean())
            assert table.get(latent, 0.0) == pytest.approx(fell, abs=2e-5 * max(1, abs(fell)))
    assert 5 not in table.index
    assert len(exact_latents(model, pairs, sae, [5], metric=logit_gap, quiet=True).table) == 0  # silent: no run at all
    assert table.abs().max() > 0.01


def test_at_one_token_it_is_a_hook_on_the_bare_model():
    model, sae, ids = tiny_model("gpt2"), coder(), [7, 31, 9, 44, 15]
    pairs = TokenPairs.of(model, [ids], [ids], right=[5], wrong=[9])
    found = exact_latents(model, pairs, sae, [0, 3, 8], by="token", quiet=True).table
    assert set(found.latent) <= {0, 3, 8}

    def logits(change=None):
        def hook(module, args, output):
            x = (output[0] if isinstance(output, tuple) else output).clone()
            if change is not None:
                position, latent = change
                active = (x[0, position].double() @ sae.W_enc[:, latent] + sae.b_enc[latent]).relu()
                x[0, position] -= (active * sae.W_dec[latent]).float()
            return (x, *output[1:]) if isinstance(output, tuple) else x

        handle = model.blocks[1].register_forward_hook(hook)
        try:
            return model.hf(torch.tensor([ids])).logits[0, -1].detach()
        finally:
            handle.remove()

    def gap(row):
        return float(row[5] - row[9])

    assert len(found) > 4
    for row in found.itertuples():
        assert row.score == pytest.approx(gap(logits()) - gap(logits((row.position, row.latent))), abs=1e-4)


@pytest.mark.parametrize("other", ["zero", "corrupted"])
@pytest.mark.parametrize("place", ["stream", "normalised", "heads", "transcoder"])
def test_attribution_is_the_slope_of_exact_changes(place, other):
    """Central differences of runs in which a share of the node's change is made."""
    model, sae = wide("llama"), coder(**PLACES[place])
    pairs = random_pairs(model, (6,))
    found = latent_scores(model, pairs, sae, "attribution", metric=logit_gap, other=other, quiet=True)
    x = model.run(pairs.clean, capture=[sae.site, sae.site_out])
    there = model.run(pairs.corrupted, capture=[sae.site, sae.site_out])

    def written(run):
        flat = run[sae.site].flatten(2)
        scale = sae.token_scale(flat)
        return sae.encode(flat).dense() * (1 if scale is None else scale)

    changes = (written(there) if other == "corrupted" else 0) - written(x)
    for latent in (0, 3, 11):
        step = 1e-4

        def run(sign, latent=latent, step=step):
            delta = sign * step * changes[..., latent, None] * sae.W_dec[latent]
            edit = edits.function(sae.site_out, lambda x: x + delta.reshape(x.shape))
            return float(logit_gap(model.run(pairs.clean, edits=edit, logits="last").logits, pairs, None))

        slope = -(run(1) - run(-1)) / (2 * step)
        # the model's RMS norms round to float32
        assert float(found.values[0, latent]) == pytest.approx(slope, abs=2e-3 + 2e-3 * abs(slope))
    assert found.values.abs().max() > 0.01


@pytest.mark.parametrize("place", ["stream", "normalised", "transcoder", "heads"])
@pytest.mark.parametrize("other", ["zero", "corrupted"])
def test_integrated_gradients_add_up(place, other):
    """All latents and the error: the metric of the clean run less the metric where the site has its other value."""
    model, sae = wide("llama"), coder(**PLACES[place])
    pairs = random_pairs(model, (6, 5))
    found = latent_scores(model, pairs, sae, "integrated", metric=logit_gap, other=other, steps=300, quiet=True)
    read, there = (model.run(side, capture=[sae.site, sae.site_out]) for side in (pairs.clean, pairs.corrupted))
    value = there[sae.site_out]
    if other == "zero":
        value = sae.b_dec.expand_as(value.flatten(2)).reshape(value.shape)
        value = value if sae.W_skip is None else value + read[sae.site] @ sae.W_skip.T
    put = model.run(pairs.clean, edits=edits.function(sae.site_out, lambda x: value), logits="last").logits
    clean = model.run(pairs.clean, logits="last").logits
    gap = float((logit_gap(clean, pairs, None) - logit_gap(put, pairs, None)).mean())
    assert float(found.values.sum()) == pytest.approx(gap, abs=5e-3 * max(abs(gap), 0.1))


@pytest.mark.parametrize(("family", "place"), [("llama", "stream"), ("gemma2", "MLP"), ("gpt2", "heads")])
def test_direct_attribution_is_the_final_norm_with_its_size_held(family, place):
    model, sae = wide(family), coder(**PLACES[place])
    pairs = random_pairs(model, (6, 4))
    found = latent_scores(model, pairs, sae, "direct", quiet=True)
    end = f"resid_post.{model.cfg.n_layers - 1}"
    run = model.run(pairs.clean, capture=[sae.site, end])
    codes, norm = sae.encode(run[sae.site].flatten(2)).dense(), model.final_norm
    total = torch.zeros(WIDTH, dtype=torch.float64)
    for row, length in enumerate(pairs.clean.lengths.tolist()):
        stream = run[end][row, length - 1].double()
        stream = stream - stream.mean() if norm.centres else stream
        size = (stream.square().mean() + norm.eps).sqrt()
        for latent in range(WIDTH):
            wrote = codes[row, length - 1, latent] * sae.W_dec[latent]
            if place == "heads":
                wrote = wrote @ model.W_O[1].flatten(0, 1).double()
            wrote = wrote - wrote.mean() if norm.centres else wrote
            normed = wrote / size * norm.gain.double()
            total[latent] += normed @ (model.W_U[:, 5] - model.W_U[:, 9]).double() / 2
    torch.testing.assert_close(found.values[0, :-1], total, rtol=1e-4, atol=1e-6)
    assert total.abs().max() > 1e-3


def test_tokens_add_up_to_the_latent():
    model, sae = wide("gpt2"), coder()
    pairs = random_pairs(model, (6, 6))
    for method in LATENT_METHODS:
        whole, apart = (latent_scores(model, pairs, sae, method, by=by, quiet=True) for by in ("latent", "token"))
        torch.testing.assert_close(apart.values.sum(0, keepdim=True), whole.values)
        assert {"position", "token"} <= {*apart.table}
    ones = [latent_scores(model, pairs[[i]], sae, quiet=True).values for i in range(2)]
    torch.testing.assert_close(latent_scores(model, pairs, sae, quiet=True).values, sum(ones) / 2)


def test_tokens_that_a_dictionary_was_not_trained_on_stay():
    model, sae = wide("llama"), coder(metadata={"skip_rule": {"special": True, "first": 2, "outlier": None}})
    pairs = random_pairs(model, (5,))
    for found in (
        latent_scores(model, pairs, sae, by="token", quiet=True),
        exact_latents(model, pairs, sae, by="token", quiet=True),
    ):
        assert not bool(found.present[:2].any())
        assert bool(found.present[2:].any())


def test_the_check_sets_estimates_beside_exact_scores(tmp_path):
    model, sae = wide("llama"), coder()
    pairs = random_pairs(model, (6, 5))
    check = check_latents(model, pairs, sae, LATENT_METHODS, n=12, metric="logit_diff", quiet=True)
    assert len(check.table) == 12
    assert repr(check).startswith("LatentCheck(12 nodes against exact scores; direct: Pearson")
    assert int((~check.drawn).sum()) == 6
    exact = exact_latents(model, pairs, sae, quiet=True)
    torch.testing.assert_close(check.truth, exact.values.flatten()[check.index], rtol=1e-5, atol=1e-6)
    for method in LATENT_METHODS:
        torch.testing.assert_close(
            check.given[method], latent_scores(model, pairs, sae, method, quiet=True).values.flatten()[check.index]
        )
    rows = check.summary.set_index(["method", "nodes"])
    assert rows.loc[("attribution", "all"), "n"] == 12
    x, y = check.truth, check.given["integrated"]
    assert rows.loc[("integrated", "all"), "pearson"] == pytest.approx(float(torch.corrcoef(torch.stack([x, y]))[0, 1]))
    assert "latent" in check.save(tmp_path / "check.html").read_text(encoding="utf-8")


def test_bad_input_is_refused():
    model, sae = wide("llama"), coder()
    pairs, ragged = random_pairs(model, (5,)), random_pairs(model, (5, 4))
    for wrong, error, says in [
        (lambda: latent_scores(model, pairs, sae, "guess"), UnknownName, "guess"),
        (lambda: latent_scores(model, pairs, sae, other="mean"), UnknownName, "mean"),
        (lambda: latent_scores(model, pairs, sae, rule="end"), UnknownName, "end"),
        (lambda: latent_scores(model, pairs, sae, steps=0), BadInput, "steps"),
        (lambda: latent_scores(model, ragged, sae, by="token"), BadInput, "one length"),
        (lambda: latent_scores(model, pairs, sae, "direct", metric="negative_kl"), BadInput, "logit difference"),
        (lambda: latent_scores(model, pairs, coder(site="q.1"), "direct"), BadInput, "not in the stream"),
        (lambda: latent_scores(model, pairs, coder(site="resid_post.77")), Mismatch, "resid_post.77"),
        (lambda: exact_latents(model, pairs, sae, [99]), BadInput, "0 to 23"),
        (lambda: exact_latents(model, pairs, sae, []), BadInput, "no latent"),
        (lambda: check_latents(model, pairs, sae, n=1), BadInput, "n of 2"),
    ]:
        with pytest.raises(error, match=says):
            wrong()
