"""Gemma 4: keys of earlier layers, an input of its own for each layer, a factor at the end of each block."""

import warnings
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from anymodel import tiny_any
from monosem import components, edits, patching
from monosem.data import TokenPairs
from monosem.errors import BadInput, UnknownName
from monosem.models import Model, verify
from monosem.models.checking.verify import quick
from monosem.patching.paths.nodes import sender_kinds

IDS = torch.randint(3, 100, (2, 7), generator=torch.Generator().manual_seed(0))
TYPES = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
SHARING = {
    "num_hidden_layers": 5,
    "layer_types": TYPES,
    "num_kv_shared_layers": 2,
    "per_layer_config": {layer: {"head_dim": 12, "num_key_value_heads": 1} for layer in (1, 4)},
}
VARIANTS = {
    "keys of earlier layers": SHARING,
    "values that are keys": SHARING | {"attention_k_eq_v": True},
    "no layer inputs": SHARING
    | {"final_logit_softcapping": 3.0}
    | {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "experts": SHARING
    | {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "enable_moe_block": True, "num_experts": 6}
    | {"top_k_experts": 2, "moe_intermediate_size": 16},
}


def tiny(**changes: object) -> PreTrainedModel:
    hf = tiny_any("gemma4_text", **changes)
    draw = torch.Generator().manual_seed(3)
    for layer in hf.model.layers:
        layer.layer_scalar.copy_(0.5 + torch.rand(1, generator=draw))
    return hf


@pytest.fixture(params=list(VARIANTS))
def model(request):
    return Model(tiny(**VARIANTS[request.param]), None, request.param)


def test_the_identities_hold(model):
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()


def test_a_factor_that_is_left_out_fails(model):
    wrong = Model(model.hf, None, "wrong", family=replace(model.family, factor=None))
    table = quick(wrong).table
    assert list(table[~table.ok].site.unique()) == ["resid_post"]


@torch.no_grad()
def test_sites_are_what_the_native_modules_compute():
    model = Model(tiny(**SHARING), None, "gemma4")
    names = ("ple_input", "ple_pre", "per_layer_input", "ple_post", "ple_raw", "ple_out", "resid_mid2", "resid_post")
    run = model.run(IDS, [f"{name}.3" for name in names])
    text, layer = model.hf.model, model.hf.model.layers[3]
    inputs = text.project_per_layer_inputs(text.embed_tokens(IDS), text.get_per_layer_inputs(IDS))[:, :, 3]
    torch.testing.assert_close(run["per_layer_input.3"], inputs)
    torch.testing.assert_close(run["ple_pre.3"], layer.per_layer_input_gate(run["resid_mid2.3"]))
    torch.testing.assert_close(run["ple_post.3"], layer.act_fn(run["ple_pre.3"]) * inputs)
    torch.testing.assert_close(run["ple_out.3"], layer.post_per_layer_input_norm(run["ple_raw.3"]))
    torch.testing.assert_close(run["resid_post.3"], (run["resid_mid2.3"] + run["ple_out.3"]) * layer.layer_scalar)


@torch.no_grad()
def test_experts_beside_the_mlp():
    model = Model(tiny(**VARIANTS["experts"]), None, "gemma4")
    names = ("resid_mid", "mlp_input", "router_logits", "expert_weights", "expert_indices", "experts_out", "mlp_raw")
    run = model.run(IDS, [f"{name}.1" for name in (*names, "shared_post", "mlp_out")])
    layer, stream = model.blocks[1], run["resid_mid.1"]
    dense = layer.mlp(layer.pre_feedforward_layernorm(stream))
    _, weights, indices = layer.router(stream.flatten(0, 1))
    routed = layer.experts(layer.pre_feedforward_layernorm_2(stream.flatten(0, 1)), indices, weights).view_as(stream)
    torch.testing.assert_close(run["expert_indices.1"].flatten(0, 1), indices)
    torch.testing.assert_close(run["experts_out.1"], routed)
    torch.testing.assert_close(layer.mlp.down_proj(run["shared_post.1"]), dense)
    raw = layer.post_feedforward_layernorm_1(dense) + layer.post_feedforward_layernorm_2(routed)
    torch.testing.assert_close(run["mlp_raw.1"], raw)
    torch.testing.assert_close(run["mlp_out.1"], layer.post_feedforward_layernorm(raw))


def test_layers_that_reuse_keys_have_none_of_their_own():
    model = Model(tiny(**SHARING), None, "gemma4")
    run = model.run(IDS, [(name, layer) for name in ("rot_k", "values") for layer in range(5)])
    for name in ("rot_k", "values"):  # of the last layer of the same type that has its own
        torch.testing.assert_close(run[name, 3], run[name, 2])
        torch.testing.assert_close(run[name, 4], run[name, 1])
    assert run["rot_k.0"].shape == (2, 7, 2, 8)
    assert run["rot_k.1"].shape[-1] == 12
    with pytest.raises(UnknownName, match="k.3: .*from an earlier layer; rot_k and values .*it is in layers 0"):
        model.site("k.3")
    assert model.W_Q[0].shape == (4, 32, 8)
    assert model.W_Q[1].shape == (4, 32, 12)
    with pytest.raises(BadInput, match="W_Q: the layers differ in size"):
        model.W_Q.stacked()


def test_values_that_are_keys():
    model = Model(tiny(**VARIANTS["values that are keys"]), None, "gemma4")
    run = model.run(IDS, ["k.1", "values.1"])
    k = run["k.1"]
    torch.testing.assert_close(run["values.1"], k * (k.square().mean(-1, keepdim=True) + 1e-6).rsqrt())
    with pytest.raises(UnknownName, match="v.1: .*has no values of its own"):
        model.site("v.1")


@pytest.mark.parametrize("by", ["layer", "head"])
def test_direct_attribution_sums_to_the_logits(model, by):
    found = components.direct_attribution(model, IDS, tokens=[5, 9], by=by)
    torch.testing.assert_close(found.values.sum(-1), found.total, rtol=1e-4, atol=1e-4)
    logits = model.run(IDS).logits[:, -1]
    capped = model.config.final_logit_softcapping
    for row, token in enumerate((5, 9)):
        raw = torch.atanh(logits[row, token].double() / capped) * capped if capped else logits[row, token]
        torch.testing.assert_close(found.total[row].double().reshape(()), raw.double(), rtol=1e-3, atol=1e-3)


def test_transformerlens_stacks_sum_to_the_stream(model):
    _, cache = model.run_with_cache(IDS)
    torch.testing.assert_close(cache.decompose_resid(None).sum(0), cache["resid_post", 4], rtol=1e-4, atol=1e-4)
    if model.name == "experts":
        with pytest.raises(UnknownName, match="is a mixture of experts"):
            cache.get_full_resid_decomposition(None)
        return
    by_part = cache.get_full_resid_decomposition(None)
    torch.testing.assert_close(by_part.sum(0), cache["resid_post", 4], rtol=1e-4, atol=1e-4)


def test_paths_from_everything_are_the_whole_effect():
    model = Model(tiny(**SHARING), None, "gemma4")
    other = IDS.clone()
    other[:, 2] = torch.tensor([50, 60])
    pairs = TokenPairs(model.tokens(IDS), model.tokens(other), torch.tensor([7, 8]), torch.tensor([9, 10]))
    found = patching.paths(model, pairs, {"all": list(sender_kinds(model))}, quiet=True)
    assert found.shares().tolist() == pytest.approx([-1.0], abs=1e-3)


def test_a_sweep_equals_run_by_run(model):
    other = IDS.clone()
    other[:, 2] = torch.tensor([50, 60])
    pairs = TokenPairs(model.tokens(IDS), model.tokens(other), torch.tensor([7, 8]), torch.tensor([9, 10]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        swept = patching.sweep(model, pairs, ["resid_pre", "attn_out"], over=("layer", "position"), quiet=True)
    slow = [str(one.message) for one in said if "patching whole runs" in str(one.message)]
    assert len(slow) == (1 if model.carries else 0)
    clean = model.run(pairs.clean, [cell.place for cell in swept.cells])
    plain = model.run(pairs.corrupted, logits="last").logits
    for cell, effect in list(zip(swept.cells, swept.effect().tolist()))[::7]:
        at = cell.at[0]

        def put(x, place=cell.place, at=at):
            return torch.cat([x[:, :at], clean[place][:, at : at + 1], x[:, at + 1 :]], 1)

        logits = model.run(pairs.corrupted, edits=edits.function(cell.place, put), logits="last").logits
        change = [(one[[0, 1], [7, 8]] - one[[0, 1], [9, 10]]).mean() for one in (logits, plain)]
        assert effect == pytest.approx(float(change[0] - change[1]), abs=1e-4)


@pytest.mark.parametrize("site", ["values.4", "z.4", "per_layer_input.3", "resid_pre.4", "v.2"])
def test_edits_act_the_same_with_and_without_a_cache(site):
    """Layers that reuse keys are given all tokens of the prompt, where transformers' own generation leaves them out."""
    model = Model(tiny(**SHARING), None, "gemma4")
    change = edits.function(site, lambda x: x * 0.5 + 0.3)
    made = model.generate(IDS, max_new_tokens=4, edits=change, stop_at_eos=False)
    ids = IDS
    for _ in range(4):
        ids = torch.cat([ids, model.run(ids, edits=change).logits[:, -1:].argmax(-1)], dim=1)
    assert made.ids.ids.tolist() == ids.tolist()
