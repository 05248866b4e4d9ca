"""Architectures without a row: known families taken off the table, unlisted ones of transformers, and refusals."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from monosem.errors import BadInput, UnknownName
from monosem.models import InferredFamily, Model, load_model, native, verify
from monosem.models.checking.infer import infer
from monosem.models.places.sites import ROUTER
from monosem.models.places.table import BY_TYPE, family_of
from tiny import _LLAMA, FAMILIES, changed, randomise, tiny_hf

# where a type's row covers several configs, inference finds the one at hand
DIFFERENT = {
    "gpt_neox": {"mlp.parallel": True},
    "gpt_neox_sequential": {"mlp.parallel": False},
    "stablelm": {"mlp.parallel": False},
    "stablelm_parallel": {"mlp.parallel": True, "mlp.before": "input_layernorm"},
    "gemma3_text": {"logit_steps": ()},
}
# the module one level up returns the same: another way to write the same row
DIFFERENT["gpt_neo"] = {"attn.path": "attn", "attn.out": "attention.out_proj"}
DIFFERENT["gpt_neo"] |= {f"attn.{name}": f"attention.{name}_proj" for name in "qkv"}


def present(row: Any, hf: Any) -> Any:
    """The row with the mixers alone that some block has."""
    blocks = native.language_model(hf).get_submodule(row.layers)
    branches = [
        replace(one, mixers=tuple(mixer for mixer in one.mixers if any(mixer.is_in(block) for block in blocks)))
        for one in row.branches
    ]
    return replace(row, branches=tuple(branches))


def quietly(hf: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferredFamily)
        return infer(hf)


@pytest.mark.parametrize("family", FAMILIES)
def test_inference_finds_the_row_of_every_known_family(family):
    hf = tiny_hf(family)
    row = family_of(hf.config)
    found = quietly(hf)
    expected = changed(replace(row, name=found.name, model_types=found.model_types), DIFFERENT.get(family, {}))
    if not getattr(hf.config, "clip_qkv", None):
        found, expected = (changed(one, {"attn.clip": None}) for one in (found, expected))
    assert found == present(expected, hf)


def unlisted(kind: str, **overrides: Any) -> Any:
    config = AutoConfig.for_model(kind, **(_LLAMA | overrides))
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(hf, 0)
    return hf.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["arcee", "exaone4", "seed_oss", "helium", "apertus", "ministral", "granitemoe"])
def test_unlisted_architectures_are_inferred_verified_and_announced(kind):
    hf = unlisted(kind)
    with pytest.raises(UnknownName, match=f"no family row for model type '{kind}'.*load_model.*family="):
        Model(hf)
    with pytest.warns(InferredFamily, match="inferred"):
        model = load_model(hf, quiet=True)
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()


def test_multipliers_are_found_in_an_unlisted_architecture():
    """An architecture like Granite under a name that nobody knows."""
    hf = tiny_hf("granite")
    found = quietly(hf)
    assert (found.embed_scale, found.branches[0].scale) == ("embedding_multiplier", "residual_multiplier")
    assert found.logit_steps == (("divide", "logits_scaling"),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loudness", [1e-3, 1.0])
def test_a_soft_cap_is_found_however_small_the_logits_are(dtype, loudness):
    """Near zero a cap does nothing, and any large number of the config would fit."""
    hf = unlisted("vaultgemma", final_logit_softcapping=26.1, head_dim=16, query_pre_attn_scalar=256)
    hf.lm_head.weight.data.mul_(loudness)
    assert quietly(hf.to(dtype)).logit_steps == (("soft_cap", "final_logit_softcapping"),)


def test_a_step_that_small_logits_hide_is_not_missed():
    hf = unlisted("vaultgemma", final_logit_softcapping=26.1, head_dim=16)
    hf.lm_head.weight.data.mul_(1e-6)
    assert quietly(hf).logit_steps == (("soft_cap", "final_logit_softcapping"),)


def test_a_constant_is_the_nearest_number_and_two_that_fit_alike_are_refused():
    hf = tiny_hf("granite")
    right = hf.config.residual_multiplier
    hf.config.first_scale = right * 1.004  # asked first, and within a percent
    assert quietly(hf).branches[0].scale == "residual_multiplier"
    hf.config.first_scale, hf.config.other_scale = right * (1 + 1e-12), right * (1 - 1e-12)
    with pytest.raises(UnknownName, match=r"which number of the config .* fit alike"):
        infer(hf)


def test_a_branch_whose_inside_fits_no_kind_is_read_as_a_whole(monkeypatch):
    monkeypatch.delitem(BY_TYPE, "diffllama")
    hf = unlisted("diffllama")  # two softmaxes subtracted: z is not pattern times values
    with pytest.warns(InferredFamily, match="Less was read.*pattern · v = z"):
        model = load_model(hf, quiet=True)
    assert [branch.kind for branch in model.branches(1)] == ["other", "mlp"]
    with pytest.raises(UnknownName, match=r"pattern.1: layer 1 .* without what is inside its attn; use attn_input"):
        model.site("pattern.1")
    seen: list[torch.Tensor] = []
    handle = hf.model.layers[1].self_attn.register_forward_hook(lambda m, args, output: seen.append(output[0]))
    run = model.run([[3, 5, 7, 9]], capture=["mixer_out.1", "attn_out.1", "mlp_post.1"])
    handle.remove()
    assert torch.equal(run["mixer_out.1"], seen[0])
    assert torch.equal(run["attn_out.1"], seen[0])


HYBRID: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_experts": 0,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
}


def test_layers_of_different_kinds_are_found_layer_by_layer():
    model = Model(hf := unlisted("olmo_hybrid", **HYBRID), family=quietly(hf))
    assert [model.branches(layer)[0].name for layer in model.layers()] == ["linear", "attn", "linear", "attn"]
    assert model.layers_with("z") == [1, 3]
    assert model.layers_with("mixer_out") == [0, 1, 2, 3]
    run = model.run([[3, 5, 7, 9]], capture=[f"{name}.{n}" for n in range(4) for name in ("resid_pre", "resid_post")])
    states = hf(input_ids=torch.tensor([[3, 5, 7, 9]]), output_hidden_states=True).hidden_states
    for layer in range(4):  # as transformers gives them, which has the last one after the final norm
        torch.testing.assert_close(run[f"resid_pre.{layer}"], states[layer])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("doge", r"does not add up to its stream.*resid_pre"),  # the residual is multiplied by learned weights
    ],
)
def test_what_does_not_fit_is_refused_with_what_failed_and_how_to_go_on(kind, reason):
    with pytest.raises(UnknownName, match=reason) as error:
        infer(unlisted(kind))  # the table has a reason of its own
    assert "docs/your-model.md" in str(error.value)
    assert kind in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_of_ones_own(monkeypatch):
    hf = tiny_hf("gemma2")
    row = replace(family_of(hf.config), name="mine")
    monkeypatch.setattr(native, "family_of", lambda config: pytest.fail("the table is not asked"))
    assert Model(hf, family=row).family.name == "mine"


@pytest.mark.parametrize(
    ("factor", "says"), [(0.0, "degenerate: its logits run from 0 to 0"), (1e16, "the logits of row 0 are NaN")]
)
def test_a_model_whose_numbers_say_nothing_is_not_verified(factor: float, says: str) -> None:
    hf = tiny_hf("llama")
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(factor)
    with pytest.raises(BadInput, match=says):
        verify(load_model(hf, quiet=True))


BALANCED = ["glm4_moe", "dots1", "exaone_moe", "ernie4_5_moe", "minimax_m2", "solar_open", "hy_v3", "kolibri1"]


@pytest.mark.parametrize("sparse", [[1, 2], [0, 2], [0]])
def test_experts_behind_a_dense_layer_are_found(sparse):
    kinds = ["sparse" if layer in sparse else "dense" for layer in range(3)]
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
    hf = unlisted("exaone_moe", **sizes, mlp_layer_types=kinds, head_dim=8)
    model = Model(hf, family=quietly(hf))
    assert [branch.layer for branch in model.branches() if branch.kind == "mixture"] == sparse
    assert [layer for layer in model.layers() if not model.has(("mlp_post", layer))] == sparse
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()


@pytest.mark.parametrize("kind", BALANCED)
def test_routers_with_a_balancing_bias_or_groups_are_read(kind):
    """A bias for the choice alone, and groups: the chosen experts are not those with the largest logits."""
    numbers = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8)
    numbers |= dict.fromkeys(("num_experts_per_tok", "moe_k", "n_group"), 2) | {"moe_intermediate_size": 16}
    numbers |= dict.fromkeys(("topk_group", "n_shared_experts", "moe_num_shared_experts"), 1) | {"head_dim": 8}
    first = {"first_k_dense_replace": 0, "moe_layer_start_index": 0, "mlp_layer_types": ["sparse"] * 3}
    hf = unlisted(kind, **numbers, **first)
    for name, values in [*hf.named_buffers(), *hf.named_parameters()]:
        if "correction" in name:
            values.data.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(0)))
    model = Model(hf, family=quietly(hf))
    logits, _, chosen = (model.run([[5, 6, 7, 8]], capture=f"{site}.1")[f"{site}.1"] for site in ROUTER)
    assert not torch.equal(chosen.sort(-1).values, logits.topk(2).indices.sort(-1).values)
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()


def test_a_router_with_its_outputs_exchanged_is_not_read():
    """Weights of other experts than the chosen ones."""
    hf = tiny_hf("mixtral")
    for block in hf.model.layers:
        block.mlp.gate.register_forward_hook(lambda module, args, out: (out[0], out[1].flip(-1), out[2]))
        block.mlp.gate.register_forward_hook(lambda module, args, out: (out[0].flip(-1), *out[1:]))
    result = verify(Model(hf))
    assert not result.ok


def test_a_model_that_mixes_the_rows_of_a_batch_is_refused(monkeypatch):
    hf = unlisted("seed_oss")
    feed = hf.model.layers[0].mlp
    native = feed.forward
    monkeypatch.setattr(feed, "forward", lambda x: (out := native(x)) + out.mean(0, keepdim=True))
    with pytest.raises(UnknownName, match="a text gives other logits beside a longer one"):
        quietly(hf)
