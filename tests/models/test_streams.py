"""Hyper-connections: several residual streams side by side, an axis of resid_pre, resid_mid and resid_post."""

import pytest
import torch

from anymodel import tiny_any
from monosem import components, edits, patching
from monosem.data import TokenPairs
from monosem.errors import BadInput
from monosem.models import Model, Site, load_model, verify
from monosem.models.running.budget import estimate
from monosem.models.running.selection import Kept

IDS = torch.randint(3, 100, (2, 7), generator=torch.Generator().manual_seed(0))


def model_of(kind: str) -> Model:
    return Model(tiny_any(kind, **({"index_n_heads": 16} if kind == "hy_v4" else {})), None, kind)


@pytest.fixture(params=["hy_v4", "deepseek_v4"])
def model(request):
    return model_of(request.param)


def test_the_identities_hold(model):
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()
    assert any("mixed and spread over its streams" in identity for identity in result.table.identity)


@torch.no_grad()
def test_streams_are_mixed_and_branches_spread_over_them(model):
    run = model.run(IDS, [f"{name}.1" for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")])
    layer, n = model.blocks[1], model.config.hc_mult
    assert model.streams == n > 1
    assert run["resid_pre.1"].shape == run["resid_mid.1"].shape == (2, 7, n, 32)
    assert run["attn_out.1"].shape == (2, 7, 32)
    for before, module, out, after in (
        ("resid_pre.1", layer.attn_hc, "attn_out.1", "resid_mid.1"),
        ("resid_mid.1", layer.ffn_hc, "mlp_out.1", "resid_post.1"),
    ):
        streams = run[before]
        spread, *mixing, _ = module(streams)
        for one in range(n):
            mixed = streams[:, :, one]
            if mixing:
                mixed = sum(mixing[0][:, :, j, one, None] * streams[:, :, j] for j in range(n))
            expected = mixed + spread[:, :, one, None] * run[out]
            torch.testing.assert_close(run[after][:, :, one], expected, rtol=1e-4, atol=1e-5)


def test_a_branch_reads_one_stream_made_of_all(model):
    branch = model.branch("mlp", 1)
    run = model.run(IDS, [branch.reads, "mlp_input.1"])
    torch.testing.assert_close(branch.read(run[branch.reads]), run["mlp_input.1"])


def test_writing_all_streams_before_a_block_and_starting_there(model):
    shift = torch.randn(model.streams, 32, generator=torch.Generator().manual_seed(2))
    edited = model.run(IDS, ["resid_pre.2"], edits=edits.function("resid_pre.2", lambda x: x + shift))
    assert not torch.allclose(edited.logits, model.run(IDS).logits)
    started = model.run(IDS, start=("resid_pre.2", edited["resid_pre.2"]))
    torch.testing.assert_close(started.logits, edited.logits)
    with pytest.raises(BadInput, match=r"needs shape \(2, 7, 4, 32\)"):
        model.run(IDS, start=("resid_pre.2", torch.zeros(2, 7, 32)))
    last = model.run(IDS, [f"resid_post.{model.cfg.n_layers - 1}"])
    torch.testing.assert_close(model.unembed(last[f"resid_post.{model.cfg.n_layers - 1}"]), last.logits)


def test_what_has_no_meaning_says_so(model):
    with pytest.raises(BadInput, match="resid_mid.1 cannot be written: the block mixes its streams there"):
        model.run(IDS, edits=edits.function("resid_mid.1", lambda x: x * 2))
    with pytest.raises(
        BadInput, match="keeps 4 residual streams, .* does not add up to one; capture or patch branches"
    ):
        components.direct_attribution(model, IDS, tokens=[5, 9])
    with pytest.raises(BadInput, match="read-out takes `batch pos stream d_model`"):
        model.unembed(torch.zeros(2, 7, 32))
    other = IDS.clone()
    other[:, 2] = torch.tensor([50, 60])
    pairs = TokenPairs(model.tokens(IDS), model.tokens(other), torch.tensor([7, 8]), torch.tensor([9, 10]))
    with pytest.raises(BadInput, match="keeps 4 residual streams"):
        patching.paths(model, pairs, "embed", quiet=True)


def test_the_axis_of_streams_is_a_part_of_a_shape(model):
    assert model.site("resid_pre.1").shape == ("position", "stream", "d_model")
    assert model.site("attn_out.1").shape == ("position", "d_model")
    assert model.site("resid_pre.1") == Site("resid_pre", 1)
    run, other = (model.run(ids, ["resid_pre.1"]) for ids in (IDS, IDS.flip(1)))
    needed = estimate(model, model.tokens(IDS), [Site("resid_pre", 1)], Kept(), True).sites
    assert needed == {Site("resid_pre", 1): run["resid_pre.1"][0].nbytes}
    for value in (other, other["resid_pre.1"]):
        patched = model.run(IDS, ["resid_pre.1"], edits=edits.patch("resid_pre.1", value))
        torch.testing.assert_close(patched["resid_pre.1"], other["resid_pre.1"])
    one = edits.patch("resid_pre.1", other["resid_pre.1"][1, 3], axes="stream d_model")
    torch.testing.assert_close(
        model.run(IDS, ["resid_pre.1"], edits=one)["resid_pre.1"],
        other["resid_pre.1"][1, 3].expand(2, 7, -1, -1),
    )
    with pytest.raises(BadInput, match=r"has 3 along 'stream', not 4"):
        model.run(IDS, edits=edits.patch("resid_pre.1", torch.zeros(3, 32), axes="stream d_model"))


def test_a_gradient_between_branches_would_be_a_part_of_it(model):
    with pytest.raises(BadInput, match="a gradient at resid_mid.1 would leave out .* use resid_pre, or what a branch"):
        model.run(IDS, ["resid_mid.1"], grad=True)
    run = model.run(IDS, ["resid_pre.1", "attn_out.1"], grad=True)
    score = run.logits[:, -1, 7].sum()
    gradients = torch.autograd.grad(score, [run["resid_pre.1"], run["attn_out.1"]])
    step = torch.randn(gradients[1].shape, generator=torch.Generator().manual_seed(3))
    moved = [
        model.run(IDS, edits=edits.function("attn_out.1", lambda x, by=by: x + by * step)).logits[:, -1, 7].sum()
        for by in (1e-3, -1e-3)
    ]
    assert float((gradients[1] * step).sum()) == pytest.approx(float(moved[0] - moved[1]) / 2e-3, rel=2e-2, abs=1e-2)


@pytest.fixture(scope="module")
def gemma3n():
    return load_model(tiny_any("gemma3n_text"), quiet=True)


@torch.no_grad()
def test_alternating_updates_by_transformers_own_modules(gemma3n):
    """Gemma 3n: blocks hand on four streams with the streams first, and work on one that they predict."""
    result = verify(gemma3n)
    assert result.ok, result.table[~result.table.ok].to_string()
    identities = set(result.table.identity)
    assert {"resid_pre, predicted", "(active + attn_out + laurel_out) / √2"} <= identities
    seen, layer = {}, gemma3n.hf.model.layers[2]
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: seen.update(pre=args[0])),
        layer.register_forward_hook(lambda module, args, output: seen.update(post=output)),
        layer.input_layernorm.register_forward_pre_hook(lambda module, args: seen.update(active=args[0])),
        layer.pre_feedforward_layernorm.register_forward_pre_hook(lambda module, args: seen.update(mid=args[0])),
        layer.laurel.register_forward_hook(lambda module, args, output: seen.update(laurel=output)),
    ]
    native = gemma3n.hf(input_ids=IDS, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    run = gemma3n.run(IDS, [f"{name}.2" for name in ("resid_pre", "active", "laurel_out", "resid_mid", "resid_post")])
    torch.testing.assert_close(run.logits, native)
    for site, value in (
        ("resid_pre", seen["pre"].permute(1, 2, 0, 3)),
        ("resid_post", seen["post"].permute(1, 2, 0, 3)),
    ):
        torch.testing.assert_close(run[f"{site}.2"], value)
    for site, name in (("active", "active"), ("resid_mid", "mid"), ("laurel_out", "laurel")):
        torch.testing.assert_close(run[f"{site}.2"], seen[name])
    assert gemma3n.site("resid_pre.2").shape == ("position", "stream", "d_model")
    assert gemma3n.site("resid_mid.2").shape == ("position", "d_model")
    torch.testing.assert_close(gemma3n.unembed(gemma3n.run(IDS, "resid_post.3")["resid_post.3"]), native)


@torch.no_grad()
def test_alternating_streams_are_written_as_a_hook_writes_them(gemma3n):
    shift = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    edited = gemma3n.run(IDS, "resid_pre.2", edits=edits.function("resid_pre.2", lambda x: x + shift))
    handle = gemma3n.hf.model.layers[2].register_forward_pre_hook(
        lambda module, args: (args[0] + shift[:, None, None], *args[1:])
    )
    expected = gemma3n.hf(input_ids=IDS, use_cache=False).logits
    handle.remove()
    torch.testing.assert_close(edited.logits, expected)
    assert not torch.allclose(expected, gemma3n.run(IDS).logits)
    torch.testing.assert_close(gemma3n.run(IDS, start=("resid_pre.2", edited["resid_pre.2"])).logits, expected)
    half = gemma3n.run(IDS, edits=edits.scale("laurel_out.1", 0.5)).logits
    handle = gemma3n.hf.model.layers[1].laurel.register_forward_hook(lambda module, args, output: output / 2)
    torch.testing.assert_close(half, gemma3n.hf(input_ids=IDS, use_cache=False).logits)
    handle.remove()
    with pytest.raises(BadInput, match="active.2 cannot be written"):
        gemma3n.run(IDS, edits=edits.scale("active.2", 0.5))
    with pytest.raises(BadInput, match="keeps 4 residual streams"):
        components.direct_attribution(gemma3n, IDS, tokens=[5, 9])


def test_a_sweep_of_branches_equals_run_by_run(model):
    other = IDS.clone()
    other[:, 2] = torch.tensor([50, 60])
    pairs = TokenPairs(model.tokens(IDS), model.tokens(other), torch.tensor([7, 8]), torch.tensor([9, 10]))
    swept = patching.sweep(model, pairs, ["resid_pre", "attn_out"], over=("layer", "position"), quiet=True)
    clean = model.run(pairs.clean, [cell.place for cell in swept.cells])
    plain = model.run(pairs.corrupted, logits="last").logits
    for cell, effect in list(zip(swept.cells, swept.effect().tolist()))[::9]:
        at = cell.at[0]

        def put(x, place=cell.place, at=at):
            return torch.cat([x[:, :at], clean[place][:, at : at + 1], x[:, at + 1 :]], 1)

        logits = model.run(pairs.corrupted, edits=edits.function(cell.place, put), logits="last").logits
        change = [(one[[0, 1], [7, 8]] - one[[0, 1], [9, 10]]).mean() for one in (logits, plain)]
        assert effect == pytest.approx(float(change[0] - change[1]), abs=1e-4)
