"""Attention with gates, norms, sinks and scaled values, against the native modules called by hand."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from anymodel import tiny_any
from monosem import edits
from monosem.errors import UnknownName
from monosem.models import Model, verify

IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))


def model_of(kind: str, **changes: object) -> Model:
    return Model(tiny_any(kind, **changes), None, kind)


def failing(model: Model) -> list[str]:
    table = verify(model).table
    return list(table[~table.ok].identity)


@pytest.mark.parametrize("kind", ["afmoe", "laguna", "bitnet", "mimo_v2_flash"])
def test_the_identities_hold(kind):
    assert failing(model_of(kind)) == []


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "gate", "function"), [("afmoe", "gate_proj", torch.sigmoid), ("laguna", "g_proj", F.softplus)]
)
def test_gates(kind, gate, function):
    model = model_of(kind)
    names = ("attn_input", "attn_gate", "values", "pattern", "mixed", "z")
    run = model.run(IDS, [f"{name}.1" for name in names])
    native = model.blocks[1].self_attn
    raw = getattr(native, gate)(run["attn_input.1"]).unflatten(-1, (4, -1))
    torch.testing.assert_close(run["attn_gate.1"], raw)
    values = native.v_proj(run["attn_input.1"]).view(2, 9, 2, 8)
    torch.testing.assert_close(run["values.1"], values)
    mixed = torch.einsum("bhqk,bkhd->bqhd", run["pattern.1"], values.repeat_interleave(2, 2))
    torch.testing.assert_close(run["mixed.1"], mixed)
    torch.testing.assert_close(run["z.1"], mixed * function(raw))
    opened = model.run(IDS, ["z.1", "mixed.1"], edits=edits.function("attn_gate.1", lambda x: x * 0))
    torch.testing.assert_close(opened["z.1"], opened["mixed.1"] * function(torch.zeros(())))
    shut = model.run(IDS, ["z.1"], edits=edits.function("mixed.1", lambda x: x * 0))
    assert shut["z.1"].abs().max() == 0


@torch.no_grad()
def test_a_norm_between_mixing_and_output_projection():
    model = model_of("bitnet")
    run = model.run(IDS, ["mixed.1", "z.1", "mlp_gated.1", "mlp_post.1", "mlp_pre.1", "mlp_pre_linear.1"])
    native = model.blocks[1]
    torch.testing.assert_close(run["z.1"].flatten(2), native.self_attn.attn_sub_norm(run["mixed.1"].flatten(2)))
    torch.testing.assert_close(run["mlp_gated.1"], native.mlp.act_fn(run["mlp_pre.1"]) * run["mlp_pre_linear.1"])
    torch.testing.assert_close(run["mlp_post.1"], native.mlp.ffn_sub_norm(run["mlp_gated.1"]))


@torch.no_grad()
def test_layers_with_other_heads_and_sinks():
    """MiMo-V2-Flash: values are narrower than keys and scaled, window layers have more kv heads, and sinks."""
    model = model_of("mimo_v2_flash", v_head_dim=6, attention_value_scale=0.7)
    assert failing(model) == []
    kinds = model.config.layer_types
    for layer, kind in enumerate(kinds):
        run = model.run(IDS, [(name, layer) for name in ("k", "v", "values", "pattern", "z")])
        n_kv = 4 if kind == "sliding_attention" else 2
        assert run["k", layer].shape == (2, 9, n_kv, 8)
        assert run["v", layer].shape == (2, 9, n_kv, 6)
        torch.testing.assert_close(run["values", layer], run["v", layer] * 0.7)
        whole = torch.allclose(run["pattern", layer].sum(-1), torch.ones(()))
        assert whole == (kind == "full_attention")
    assert set(kinds) == {"sliding_attention", "full_attention"}


def test_a_site_that_a_layer_lacks_says_what_to_use():
    with pytest.raises(UnknownName, match="mixed.1: layer 1 of llama has nothing between .*use z"):
        model_of("llama").site("mixed.1")
    with pytest.raises(UnknownName, match="mlp_gated.0: .*has no norm inside its mlp; use mlp_post"):
        model_of("llama").site("mlp_gated.0")
    with pytest.raises(UnknownName, match=r"router_logits.0: .*has no router.*; it is in layers 1"):
        model_of("deepseek_v3").site("router_logits.0")


def test_a_wrong_gate_or_norm_fails():
    right = model_of("laguna")
    row, other = right.family.branches
    wrong = replace(row, mixers=(replace(row.mixers[0], gate="sigmoid"),))
    result = verify(Model(right.hf, None, "wrong", family=replace(right.family, branches=(wrong, other))))
    assert list(result.table[~result.table.ok].identity) == ["mixed, through its gate = z"]
