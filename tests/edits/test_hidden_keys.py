"""Edits of scores and patterns: no later token moves an earlier one, and padding changes nothing, in every family that
has these sites (soft caps, sinks and sliding windows included)."""

import pytest
import torch

from monosem import edits
from monosem.errors import BadInput
from monosem.models import Model, TokenBatch
from tiny import FAMILIES, model_of, tiny_hf

INSIDE = [name for name in FAMILIES if name != "gpt_neo" and model_of(name).has("scores.1")]
ROW = [7, 11, 23, 5, 61, 8, 30, 44, 17, 92, 4]  # longer than the windows of 8
SHORT = ROW[:4]
LAYERS = (1, 2)


def centred(scores):
    return 2 * scores - scores.nanmean(-1, keepdim=True)


def sharpened(pattern):
    return pattern.square() / pattern.square().sum(-1, keepdim=True).clamp(min=1e-30)


def own(site):
    """What the site is in another run over as many tokens."""
    return lambda model: edits.patch(site, model.run([ROW[::-1], ROW[::-1][:4]], capture=site))


KINDS = {
    "uniform": lambda model, layer: edits.scale(f"scores.{layer}", 0.0),
    "turned": lambda model, layer: edits.scale(f"scores.{layer}", -2.0),
    "constant": lambda model, layer: edits.patch(f"scores.{layer}", 3.0),
    "moved": lambda model, layer: edits.add((f"scores.{layer}", torch.tensor(1.0)), -7.0),
    "centred": lambda model, layer: edits.function(f"scores.{layer}", centred),
    "another's scores": lambda model, layer: own(f"scores.{layer}")(model),
    "even pattern": lambda model, layer: edits.patch(f"pattern.{layer}", 0.1),
    "pattern and more": lambda model, layer: edits.add((f"pattern.{layer}", torch.tensor(0.2))),
    "sharp pattern": lambda model, layer: edits.function(f"pattern.{layer}", sharpened),
    "another's pattern": lambda model, layer: own(f"pattern.{layer}")(model),
}


@pytest.mark.parametrize("family", INSIDE)
@pytest.mark.parametrize("kind", KINDS)
def test_no_later_token_and_no_padding_moves_a_token(family, kind):
    model = model_of(family)
    given = [KINDS[kind](model, layer) for layer in LAYERS]
    close = {"rtol": 1e-4, "atol": 1e-5 * float(model.run([ROW]).logits.abs().max())}
    sites = [edit.site for edit in given]
    right = model.run(TokenBatch.of([ROW, SHORT], 2), capture=sites, edits=given)
    left = model.run(TokenBatch.of([ROW, SHORT], 2, "left"), edits=given).logits
    torch.testing.assert_close(right.logits[1, :4], left[1, -4:], **close)
    torch.testing.assert_close(right.logits[0], left[0], **close)
    if not kind.startswith("another's"):  # whose values are of these two rows
        alone = [model.run([row], edits=given).logits[0] for row in (ROW, SHORT)]
        torch.testing.assert_close(right.logits[0], alone[0], **close)
        torch.testing.assert_close(right.logits[1, :4], alone[1], **close)
        torch.testing.assert_close(alone[0][:4], alone[1], **close)  # the later tokens are not there at all
    if kind != "moved":  # which a softmax without sinks forgets
        assert (right.logits[0] - model.run([ROW]).logits[0]).abs().max() > 1e-4
    for site in sites:
        seen = right[site][0].isfinite() & (right[site][0] > torch.finfo(torch.float32).min)
        assert not bool((seen & (right[site][0] != 0)).triu(1).any()), site


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mistral"])
def test_scores_by_hand(family):
    """Uniform attention to the keys that each query may see, put together from the values."""
    model = model_of(family)
    window = {"gemma2": (8, None, 8), "mistral": (8, 8, 8), "gpt_oss": (8, None, 8)}.get(family, (None,) * 3)
    for layer in range(3):
        sites = [f"z.{layer}", f"v.{layer}", f"pattern.{layer}"]
        run = model.run([ROW], capture=sites, edits=edits.scale(f"scores.{layer}", 0.0))
        kinds = getattr(model.hf.config, "layer_types", None)
        width = window[layer] if kinds is None or kinds[layer] == "sliding_attention" else None
        mask = torch.ones(len(ROW), len(ROW)).tril()
        mask = mask if width is None else mask - mask.tril(-width)
        sinks = 0.0
        if family == "gpt_oss":
            sinks = model.blocks[layer].self_attn.sinks.exp()[:, None, None]
        pattern = mask / (mask.sum(-1, keepdim=True) + sinks)
        torch.testing.assert_close(run[sites[2]][0], pattern.expand(4, -1, -1), rtol=1e-4, atol=1e-6)
        values = run[sites[1]][0].repeat_interleave(4 // run[sites[1]].shape[2], 1)
        z = torch.einsum("hqk,khd->qhd", pattern.expand(4, -1, -1), values)
        torch.testing.assert_close(run[sites[0]][0], z, rtol=1e-4, atol=1e-5)


def test_arithmetic_that_reads_hidden_scores_is_refused():
    model = model_of("llama")
    for fn in (
        lambda s: s - s.mean(-1, keepdim=True),
        lambda s: s.softmax(-1),
        lambda s: s / s.std(-1, keepdim=True),
        lambda s: s.clamp(-5, 5).mean(-1, keepdim=True).expand_as(s),
        lambda s: s.flip(-1),
    ):
        with pytest.raises(BadInput, match=r"scores.1 makes nan of .* NaN: read around them"):
            model.run([ROW], edits=edits.function("scores.1", fn))

    def by_moment(s, moment):
        hidden = s.masked_fill(~moment.visible, 0)
        return s - hidden.sum(-1, keepdim=True) / moment.visible.sum(-1, keepdim=True)

    found = model.run([ROW], edits=edits.Edit(model.site("scores.1"), by_moment, "centred")).logits
    torch.testing.assert_close(found, model.run([ROW]).logits, rtol=1e-4, atol=1e-5)  # softmax ignores a shift


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_knocking_out_keys_and_all_of_them(family):
    model = model_of(family)

    def out(scores):
        scores[..., 2] = -torch.inf
        return scores

    kept = model.run([ROW], capture="pattern.1", edits=edits.function("scores.1", out).at(positions=slice(3, None)))
    assert not bool(kept["pattern.1"][:, :, 3:, 2].any())
    nothing = edits.patch("scores.1", -torch.inf).at(positions=4)
    if family == "gpt_oss":  # the sink takes all
        assert not bool(model.run([ROW], capture="pattern.1", edits=nothing)["pattern.1"][:, :, 4].any())
        return
    for rows in ([ROW], [ROW[:5]], [ROW[:5], ROW]):
        with pytest.raises(BadInput, match="leaves query 4 of row 0 no key to attend to"):
            model.run(rows, edits=nothing)


@pytest.mark.parametrize("site", ["blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern"])
def test_transformerlens_hooks_that_write_hidden_places(site):
    model = model_of("llama")
    seen = []

    def hook(value, hook):
        seen.append(value.clone())
        value *= 0
        value += 1
        return value

    def logits(rows):
        return model.run_with_hooks(rows, fwd_hooks=[(site, hook)])

    alone = logits([SHORT])
    torch.testing.assert_close(logits([ROW])[0, :4], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits([ROW, SHORT])[1, :4], alone[0], rtol=1e-4, atol=1e-5)
    assert float(seen[0][0, 0][0, 1]) == (-torch.inf if "scores" in site else 0)  # as in TransformerLens
    mean = [("blocks.1.attn.hook_attn_scores", lambda s, hook: s - s.mean(-1, keepdim=True))]
    with pytest.raises(BadInput, match="hook at blocks.1.attn.hook_attn_scores makes"):
        model.run_with_hooks([ROW], fwd_hooks=mean)


def test_a_gradient_through_edited_scores_is_finite():
    model = Model(tiny_hf("llama"), None, "llama")
    run = model.run([ROW], capture=["q.1", "scores.1"], edits=edits.function("scores.1", centred), grad=True)
    for grad in torch.autograd.grad(run.logits[0, -1, 5], [run["q.1"], run["scores.1"]]):
        assert bool(grad.isfinite().all())
        assert bool(grad.any())
