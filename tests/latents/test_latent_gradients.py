"""Derivatives of latents against finite differences; attention latents by head and source; weights against NumPy."""

import numpy as np
import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.latents import de_embedding, head_sources, latent_connections, latent_gradients, pullback
from tiny_circuits import wide
from tiny_dictionaries import random_tensors, tiny_dictionary

IDS, STEP = [7, 31, 9, 44, 15], 1e-5


def coder(kind="relu", site="resid_post.1", seed=7, **about):
    tensors = random_tensors(32, 24, seed, (0.3, 0.3), torch.float64)
    return tiny_dictionary(kind, tensors, site=site, model_name="", **about)


def slope(value):
    return (value(STEP) - value(-STEP)) / (2 * STEP)


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_tokens_to_latents(kind):
    model, sae = wide("gpt2"), coder(kind)
    found = latent_gradients(model, [IDS], sae, position=3)
    stream = model.run([IDS], capture="resid_pre.0")["resid_pre.0"]
    active = found.targets.node.str.split().str[1].astype(int)
    assert len(active) > 2

    def activation(latent, position, step):
        changed = stream.clone()
        changed[0, position] *= 1 + step
        run = model.run([IDS], capture=sae.site, start=("resid_pre.0", changed), logits=False)
        return float(sae.encode(run[sae.site]).dense()[0, 3, latent])

    for row, latent in enumerate(active[:4]):
        for position in range(4):
            expected = slope(lambda step, one=latent, at=position: activation(one, at, step))
            assert float(found.effects[row, position]) == pytest.approx(expected, abs=1e-6)
    assert float(found.effects[:, 4].abs().max()) == 0  # a later token
    assert found.effects.abs().max() > 1e-3
    assert {"target_node", "source_token", "gradient", "effect"} <= {*found.table}


@pytest.mark.parametrize("early", [{}, {"kind": "topk", "k": 4, "token_norm": "layer_norm"}])
def test_latents_to_latents_and_logits(early):
    model, source, target = wide("gpt2"), coder(site="resid_post.0", seed=1, **early), coder(site="mlp_out.2")
    found = latent_gradients(model, [IDS], target, source)
    to_logits = latent_gradients(model, [IDS], "logits", source, tokens=5, wrong=9)
    flat = model.run([IDS], capture=source.site)[source.site]
    scale = source.token_scale(flat)
    factor = torch.ones(1, len(IDS), 1) if scale is None else scale

    def run(position, latent, step):
        delta = torch.zeros_like(flat)
        delta[0, position] = step * source.W_dec[latent] * factor[0, position]
        return model.run([IDS], capture=target.site, edits=edits.function(source.site, lambda x: x + delta))

    for column in range(0, len(found.sources), 5):
        node, position = found.sources.node[column], int(found.sources.position[column])
        latent = int(node.split()[1])
        wanted = [int(one.split()[1]) for one in found.targets.node]
        ends = [run(position, latent, sign * STEP) for sign in (1, -1)]
        codes = [target.encode(one[target.site]).dense()[0, -1, wanted] for one in ends]
        torch.testing.assert_close(found.gradients[:, column], (codes[0] - codes[1]) / (2 * STEP), rtol=0, atol=1e-6)
        gaps = [float(one.logits[0, -1, 5] - one.logits[0, -1, 9]) for one in ends]
        assert float(to_logits.gradients[0, column]) == pytest.approx((gaps[0] - gaps[1]) / (2 * STEP), abs=1e-6)
        active = float(source.encode(flat).dense()[0, position, latent])
        assert float(found.effects[0, column]) == pytest.approx(float(found.gradients[0, column]) * active)
    assert found.gradients.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "site"), [("gpt2", "z"), ("llama", "z"), ("llama", "attn_out"), ("gpt2", "attn_raw")]
)
def test_heads_and_sources_add_up_to_the_preactivation(family, site):
    model, sae = wide(family), coder(site=f"{site}.1")
    run = model.run([IDS], capture=["pattern.1", "v.1", sae.site])
    for latent, position in [(0, -1), (5, 2)]:
        found = head_sources(model, [IDS], sae, latent, position=position)
        at = position % len(IDS)
        pre = run[sae.site].flatten(2)[0, at] @ sae.W_enc[:, latent] + sae.b_enc[latent]
        assert float(found.values.sum()) + found.bias == pytest.approx(float(pre), abs=1e-10)
        assert found.preactivation == pytest.approx(float(pre), abs=1e-10)
        for head, source in [(0, 0), (3, at)]:
            group = run["pattern.1"].shape[1] // run["v.1"].shape[2]
            z = run["pattern.1"][0, head, at, source] * run["v.1"][0, source, head // group]
            read = sae.W_enc[:, latent]
            through = read.view(4, -1)[head] if site == "z" else model.W_O[1, head] @ read
            assert float(found.values[head, source]) == pytest.approx(float(z @ through), abs=1e-10)
    assert found.values.shape == (4, 3)
    assert len(found.top(4)) == 4
    assert found.plot().data


def test_a_norm_behind_attention_divides_by_its_size():
    model, sae = wide("gemma2"), coder(site="attn_out.1")
    found = head_sources(model, [IDS], sae, 3)
    assert float(found.values.sum()) + found.bias == pytest.approx(found.preactivation, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_alone_in_numpy(family):
    model = wide(family)
    target = coder(site="mlp_input.2", site_out="mlp_out.2", transcoder=True)
    source = coder(site="mlp_input.0", site_out="mlp_out.0", transcoder=True, seed=2)
    names = {"llama": ("post_attention_layernorm", "input_layernorm"), "gpt2": ("ln_2", "ln_1")}[family]
    gains = [getattr(model.blocks[layer], name).weight.numpy() for layer, name in zip((2, 1), names)]

    def centred(x):
        return x - x.mean() if family == "gpt2" else x

    near = centred(target.W_enc[:, 4].numpy() * gains[0])
    W_V, W_O = (np.asarray(W[1][2]) for W in (model.W_V, model.W_O))
    far = centred(gains[1] * (W_V @ (W_O @ near)))
    for heads, vector in [((), near), (((1, 2),), far)]:
        np.testing.assert_allclose(pullback(model, target, 4, heads).numpy(), vector, rtol=1e-4, atol=1e-5)
        tokens = de_embedding(model, target, 4, heads=heads)
        np.testing.assert_allclose(tokens.table.score, model.W_E.numpy() @ vector, rtol=1e-4, atol=1e-4)
        latents = latent_connections(model, target, 4, source, heads=heads)
        np.testing.assert_allclose(latents.table.score, source.W_dec.numpy() @ vector, rtol=1e-4, atol=1e-4)
        assert abs(latents.best.score) == pytest.approx(np.abs(source.W_dec.numpy() @ vector).max(), rel=1e-4)


def test_bad_input_is_refused():
    model, sae, late = wide("gpt2"), coder(), coder(site="resid_post.2")
    silent = coder()
    silent.b_enc[2] = -1e3
    gated = coder(site="z.1", token_norm="layer_norm")
    for wrong, error, says in [
        (lambda: latent_gradients(model, [IDS, IDS], sae), BadInput, "one prompt"),
        (lambda: latent_gradients(model, [IDS], sae, late), BadInput, "does not come before"),
        (lambda: latent_gradients(model, [IDS], sae, sae), BadInput, "does not come before"),
        (lambda: latent_gradients(model, [IDS], silent, latents=[2]), BadInput, "not active"),
        (lambda: latent_gradients(model, [IDS], "logit"), BadInput, "'logits'"),
        (lambda: latent_gradients(model, [IDS], sae, "token"), BadInput, "'tokens'"),
        (lambda: latent_gradients(model, [IDS], sae, position=9), BadInput, "outside"),
        (lambda: head_sources(model, [IDS], sae, 3), BadInput, "resid_post.1"),
        (lambda: head_sources(model, [IDS], gated, 3), BadInput, "normalises"),
        (lambda: head_sources(model, [IDS], coder(site="z.1"), 99), UnknownName, "no latent 99"),
        (lambda: pullback(model, coder(site="mlp_post.1"), 1), Mismatch, "mlp_post"),
        (lambda: pullback(model, coder(site="z.1"), 1), BadInput, "z.1"),
        (lambda: pullback(model, sae, 1, [(2, 0)]), BadInput, "before"),
        (lambda: de_embedding(model, sae, 1, heads=[(1, 9)]), BadInput, "heads 0 to 3"),
        (lambda: latent_connections(model, sae, 1, late), BadInput, "does not come before"),
        (lambda: latent_connections(model, late, 1, coder(site="z.0")), BadInput, "not added to the stream"),
    ]:
        with pytest.raises(error, match=says):
            wrong()
