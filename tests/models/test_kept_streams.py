"""Blocks that change the stream itself before a branch is added to it: MiniMax, Doge, Beam; and RWKV's first norm.

What is compared with are the blocks' own modules, and their formulas written out.
"""

import math
from functools import cache

import pytest
import torch

from anymodel import tiny_any
from monosem import components, edits
from monosem.data import TokenPairs
from monosem.errors import UnknownName
from monosem.models import Model, load_model, state_of
from monosem.patching import sweep

IDS = [[11, 42, 7, 93, 28, 60, 35], [5, 77, 31, 14, 88, 9, 52]]
LAYER = 2


@cache
def model_of(kind: str) -> Model:
    return Model(tiny_any(kind), name=kind)


def minimax(block, middle):
    normed = block.post_attention_layernorm(middle)
    return normed * block.mlp_alpha_factor + block.mlp(normed) * block.mlp_beta_factor


def doge(block, middle):
    return block.post_attention_residual * middle + block.mlp(block.post_attention_layernorm(middle))


def beam(block, middle):
    n = 2 * (LAYER + 1) + 1
    written = block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(middle)))
    return written / math.sqrt(n) + middle * math.sqrt((n - 1) / n)


@pytest.mark.parametrize("after", [minimax, doge, beam])
def test_a_stream_written_in_the_middle_goes_on_as_the_block_says(after):
    model = model_of(after.__name__)
    value = torch.randn(2, len(IDS[0]), model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    run = model.run(IDS, capture=f"resid_post.{LAYER}", edits=edits.function(f"resid_mid.{LAYER}", lambda x: value))
    with torch.no_grad():
        expected = after(model.blocks[LAYER], value)
    torch.testing.assert_close(run[f"resid_post.{LAYER}"], expected, rtol=1e-4, atol=1e-5)
    started = model.run(IDS, start=(f"resid_pre.{LAYER + 1}", expected)).logits
    torch.testing.assert_close(run.logits, started, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["minimax", "doge", "beam"])
def test_what_takes_the_stream_for_a_sum_refuses(kind):
    model = model_of(kind)
    with pytest.raises(
        UnknownName, match=f"{kind} puts the stream itself through a norm or a scale before attn_out.0|linear_out.0"
    ):
        components.direct_attribution(model, IDS, 11, by="layer")


@pytest.mark.parametrize("kind", ["minimax", "doge", "beam", "rwkv"])
@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "mixer_out"])
@pytest.mark.filterwarnings("ignore")  # a fall back to whole runs
def test_sweeps_are_whole_runs(kind, site):
    model = model_of(kind)
    pairs = TokenPairs.of(model, [IDS[0]], [[11, 42, 8, 93, 29, 60, 35]], [11], [12])
    fast, slow = (sweep(model, pairs, site, method=method, quiet=True).table for method in ("growing", "naive"))
    torch.testing.assert_close(torch.tensor(fast.effect), torch.tensor(slow.effect), rtol=2e-3, atol=2e-3)
    assert slow.effect.abs().max() > 0.02


def test_gradients_of_a_stream_in_the_middle():
    model = model_of("doge")
    site = f"resid_mid.{LAYER}"
    run = model.run(IDS, capture=site, grad=True)
    (gradient,) = torch.autograd.grad(run.logits[:, -1, 7].sum(), run[site])
    step = 0.01 * gradient / gradient.norm()
    up, down = (model.run(IDS, edits=edits.function(site, lambda x, s=s: x + s * step)).logits for s in (1, -1))
    torch.testing.assert_close((up - down)[:, -1, 7].sum() / 2, (gradient * step).sum(), rtol=2e-2, atol=1e-6)


def test_rwkv_begins_behind_its_first_norm():
    model = model_of("rwkv")
    run = model.run(IDS, capture=["embed", "resid_pre.0", "resid_post.3"])
    torch.testing.assert_close(run["resid_pre.0"], model.blocks[0].pre_ln(run["embed"]))
    started = model.run(IDS, start=("resid_pre.0", run["resid_pre.0"])).logits
    torch.testing.assert_close(started, run.logits, rtol=1e-4, atol=1e-5)
    attributed = components.direct_attribution(model, IDS, 11, by="layer").values.sum(-1)[:, -1]
    torch.testing.assert_close(attributed, run.logits[:, -1, 11], rtol=1e-4, atol=1e-4)


def test_rwkv_is_loaded_without_the_halving(tmp_path):
    hf = tiny_any("rwkv", rescale_every=2)
    plain = tiny_any("rwkv", rescale_every=0)
    hf.save_pretrained(tmp_path)  # before a pass, which changes its weights
    with pytest.raises(UnknownName, match="load it with rescale_every=0"):
        load_model(hf)
    model = load_model(tmp_path, quiet=True)
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor(IDS)).logits
        halved = hf(input_ids=torch.tensor(IDS)).logits
    torch.testing.assert_close(model.run(IDS).logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(halved, logits, rtol=1e-2, atol=1e-2)  # the final norm's eps alone tells them apart


@pytest.mark.parametrize("kind", ["minimax", "rwkv"])
def test_state_is_what_the_native_cache_keeps(kind):
    model = model_of(kind)
    found = state_of(model, IDS, 0, [3, -1])
    for n, length in enumerate((4, len(IDS[0]))):
        with torch.no_grad():
            made = model.hf(input_ids=torch.tensor(IDS)[:, :length], use_cache=True)
        if kind == "minimax":
            expected = made.cache.get_linear_cache(0)
        else:
            expected = torch.stack([part[:, :, 0] for part in made.state[2:]], -1)
        torch.testing.assert_close(found[:, n], expected, rtol=1e-4, atol=1e-5)


def test_doge_with_experts_says_why():
    with pytest.raises(UnknownName, match="'doge' with is_moe are not read: its router mixes the tokens of a batch"):
        load_model(tiny_any("doge", is_moe=True))
