"""Twenty-four ways in which hooks on native models go wrong, each with what monosem does about it.

The letters are those of the table in docs/sites-and-runs.md. Where a naive way is known to be wrong, the test shows it
(otherwise the model at hand would not have the trap), and that monosem's way equals an oracle of its own.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from anymodel import tiny_any
from monosem import edits
from monosem.errors import BadInput, SiteDidNotFire, UnknownName
from monosem.models import Model, TokenBatch, verify
from monosem.models.places.norms import Norm
from monosem.models.running.session import _hook
from tiny import model_of, tiny_hf, tiny_model

IDS = torch.randint(3, 100, (2, 10), generator=torch.Generator().manual_seed(8))
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def native(model: Model, **inputs: Any) -> Any:
    with torch.no_grad():
        return model.hf(**({"input_ids": IDS, "use_cache": False} | inputs))


def output_of(model: Model, module: nn.Module) -> Any:
    """What a module returns in a plain forward pass."""
    seen = []
    handle = module.register_forward_hook(lambda m, args, output: seen.append(output))
    native(model)
    handle.remove()
    return seen[0]


class ByKeyword(nn.Module):
    def forward(self, hidden_states: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return hidden_states * scale


def test_a_inputs_given_by_keyword_are_read_and_written():
    """Attention modules are called with keyword arguments only, blocks with positional ones."""
    module, seen = ByKeyword(), []
    handle = _hook(module, "in", 0, [lambda x: (seen.append(x), x + 1)[1]])
    x = torch.ones(2)
    for made in (module(x, 3.0), module(x, scale=3.0), module(hidden_states=x, scale=3.0)):
        torch.testing.assert_close(made, torch.full((2,), 6.0))
    handle.remove()
    assert len(seen) == 3


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_b_writing_resid_mid_changes_the_stream_and_not_only_what_the_mlp_reads(family):
    """The block saved its residual before the norm, so a hook there does not edit the stream."""
    model = model_of(family)
    shift = torch.randn(32, generator=torch.Generator().manual_seed(1))
    reader = model.branch("mlp", 1).norm_in or model.blocks[1].mlp
    handle = reader.register_forward_pre_hook(lambda m, args: (args[0] + shift, *args[1:]))
    naive = native(model).logits
    handle.remove()
    ours = model.run(IDS, edits=edits.add(("resid_mid.1", shift))).logits
    through = model.run(IDS, edits=edits.add(("attn_out.1", shift))).logits  # the same change by another way
    torch.testing.assert_close(ours, through, **CLOSE)
    assert (naive - ours).abs().max() > 0.05


def test_b_in_bf16_the_mlp_is_given_the_exact_value():
    """Subtracting and adding again may lose one unit in the last place; the norm reads the value itself."""
    model = Model(tiny_hf("llama").bfloat16(), None, "bf16")
    wanted = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    seen = []
    handle = model.branch("mlp", 1).norm_in.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    run = model.run(IDS, capture="resid_mid.1", edits=edits.patch("resid_mid.1", wanted))
    handle.remove()
    torch.testing.assert_close(run["resid_mid.1"], wanted, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt_neox", "phi", "gptj", "cohere", "stablelm_parallel"])
def test_c_parallel_blocks_have_no_resid_mid_and_a_shared_norm_is_one_site(family):
    """Both branches read resid_pre; a hook on a shared norm would edit both while seeming to edit one."""
    model = model_of(family)
    run = model.run(IDS, capture=["resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.1"])
    torch.testing.assert_close(run["resid_pre.1"] + run["attn_out.1"] + run["mlp_out.1"], run["resid_post.1"], **CLOSE)
    with pytest.raises(UnknownName, match="parallel"):
        model.run(IDS, capture="resid_mid.1")
    if family != "gpt_neox":  # NeoX has two norms
        with pytest.raises(UnknownName, match="attn and mlp through one norm; use ln1_scale"):
            model.run(IDS, capture="ln2_scale.1")


def test_d_conv1d_weights_are_stored_the_other_way_round():
    """GPT-2's Conv1D holds [in, out], Linear holds [out, in]; views are always [in, out]."""
    model = model_of("gpt2")
    weight = model.blocks[1].attn.c_attn.weight
    assert tuple(weight.shape) == (32, 96)
    expected = weight[:, 32:64].reshape(32, 4, 8).permute(1, 0, 2)
    torch.testing.assert_close(model.W_K[1], expected, rtol=0, atol=0)
    torch.testing.assert_close(model.W_in[1], model.blocks[1].mlp.c_fc.weight, rtol=0, atol=0)
    llama = model_of("llama")
    torch.testing.assert_close(llama.W_out[1], llama.blocks[1].mlp.down_proj.weight.T, rtol=0, atol=0)


def test_e_fused_projections_are_split_as_the_model_splits_them():
    """NeoX interleaves q, k, v by head; Phi-3 stacks [q | k | v] with fewer kv heads, and [gate | up]."""
    neox = model_of("gpt_neox")
    fused = output_of(neox, neox.blocks[1].attention.query_key_value)
    q, k, v = fused.view(2, 10, 4, 24).chunk(3, dim=-1)  # as transformers does it
    run = neox.run(IDS, capture=["q.1", "k.1", "v.1"])
    for name, part in (("q.1", q), ("k.1", k), ("v.1", v)):
        torch.testing.assert_close(run[name], part, rtol=0, atol=0)
    assert (fused[..., :32].view(2, 10, 4, 8) - q).abs().max() > 0.1
    phi = model_of("phi3")
    fused = output_of(phi, phi.blocks[1].self_attn.qkv_proj)
    run = phi.run(IDS, capture=["q.1", "k.1", "v.1", "mlp_pre.1", "mlp_pre_linear.1", "mlp_post.1"])
    for name, part in (("q.1", fused[..., :32]), ("k.1", fused[..., 32:48]), ("v.1", fused[..., 48:])):
        torch.testing.assert_close(run[name].flatten(-2), part, rtol=0, atol=0)
    made = torch.nn.functional.silu(run["mlp_pre.1"]) * run["mlp_pre_linear.1"]
    torch.testing.assert_close(made, run["mlp_post.1"], **CLOSE)


def test_f_kv_heads_are_fewer_and_each_serves_neighbouring_query_heads():
    """Head h reads kv head h // (H / K): repeat each, not the whole row of heads."""
    model = model_of("llama")
    run = model.run(IDS, capture=["k.1", "v.1", "rot_k.1", "pattern.1", "z.1"])
    assert run["k.1"].shape[2] == run["v.1"].shape[2] == run["rot_k.1"].shape[2] == 2
    right = torch.einsum("bhqk,bkhd->bqhd", run["pattern.1"], run["v.1"].repeat_interleave(2, dim=2))
    wrong = torch.einsum("bhqk,bkhd->bqhd", run["pattern.1"], run["v.1"].repeat(1, 1, 2, 1))
    torch.testing.assert_close(right, run["z.1"], **CLOSE)
    assert (wrong - run["z.1"]).abs().max() > 0.1
    torch.testing.assert_close(model.W_V[1, 1], model.W_V[1, 0], rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_g_head_dim_is_not_always_d_model_by_heads(family):
    cfg = model_of(family).cfg
    assert cfg.d_head == 12 != cfg.d_model // cfg.n_heads
    assert model_of(family).run(IDS, capture="z.1")["z.1"].shape[2:] == (4, 12)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "olmo2", "cohere", "phi", "stablelm_parallel"])
def test_h_q_is_before_the_qk_norm_and_rot_q_after_norm_and_rotation(family):
    """Norms act on a head, on all heads at once, or head by head; a rotation keeps each head's length."""
    model = model_of(family)
    attention = model.blocks[1].self_attn
    run = model.run(IDS, capture=["q.1", "rot_q.1"])
    torch.testing.assert_close(run["q.1"].flatten(-2), output_of(model, attention.q_proj), rtol=0, atol=0)
    norm = getattr(attention, "q_norm", None) or attention.q_layernorm
    normed = output_of(model, norm)
    if normed.ndim == 4 and normed.shape[1] == 4:  # some models have put the heads first by then
        normed = normed.transpose(1, 2)
    lengths = normed.reshape(2, 10, 4, 8 if family != "gemma3_text" else 12).norm(dim=-1)
    torch.testing.assert_close(run["rot_q.1"].norm(dim=-1), lengths, **CLOSE)
    assert (run["rot_q.1"] - run["q.1"]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("family", "scaling"),
    [("granite", 0.4), ("gemma3_text", 10**-0.5), ("gpt2_inverse_layer", 8**-0.5 / 2), ("llama", 8**-0.5)],
)
def test_i_scores_use_the_model_s_own_scaling(family, scaling):
    """Granite's multiplier, Gemma's query_pre_attn_scalar, GPT-2's division by layer: not always d_head^-0.5."""
    model = model_of(family)
    run = model.run(IDS, capture=["rot_q.1", "rot_k.1", "scores.1"])
    k = run["rot_k.1"].repeat_interleave(4 // model.cfg.n_kv_heads, dim=2)
    expected = torch.einsum("bqhd,bkhd->bhqk", run["rot_q.1"], k) * scaling
    seen = torch.ones(10, 10).tril().bool()
    torch.testing.assert_close(run["scores.1"][..., seen], expected[..., seen], **CLOSE)


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere", "cohere2"])
def test_j_what_follows_the_unembedding_is_part_of_every_read_out(family):
    """Soft cap, division, scale: they live in the causal LM's forward, after lm_head."""
    model = model_of(family)
    last = model.run(IDS, capture="resid_post.2")["resid_post.2"]
    torch.testing.assert_close(model.unembed(last), native(model).logits, **CLOSE)
    raw = model.hf.get_output_embeddings()(model.hf.model.norm(last))
    assert (raw - native(model).logits).abs().max() > 0.1
    torch.testing.assert_close(model.logit_transform(raw), native(model).logits, **CLOSE)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_k_models_that_sdpa_refuses_stay_explicit_in_every_layer(family):
    """Soft caps and sinks: asking one layer for its pattern must not send the others through SDPA."""
    model = model_of(family)
    assert model.hf.config._attn_implementation == "eager"
    torch.testing.assert_close(model.run(IDS, capture="pattern.1").logits, native(model).logits, rtol=0, atol=0)
    assert model.hf.config._attn_implementation == "eager"


def test_k_a_sink_takes_a_share_and_rows_sum_to_less_than_one():
    pattern = model_of("gpt_oss").run(IDS, capture="pattern.1")["pattern.1"]
    assert pattern.sum(-1).max() < 1


def test_l_the_last_hidden_state_of_transformers_is_after_the_final_norm():
    model = model_of("llama")
    states = native(model, output_hidden_states=True).hidden_states
    run = model.run(IDS, capture=["resid_pre.1", "resid_post.2", "final_norm"])
    torch.testing.assert_close(run["resid_pre.1"], states[1], rtol=0, atol=0)
    torch.testing.assert_close(run["final_norm"], states[-1], rtol=0, atol=0)
    assert (run["resid_post.2"] - states[-1]).abs().max() > 0.1
    torch.testing.assert_close(model.hf.model.norm(run["resid_post.2"]), states[-1], rtol=0, atol=0)


def test_m_patterns_are_there_although_sdpa_returns_none():
    """transformers answers output_attentions with an empty tuple under SDPA."""
    model = model_of("llama")
    assert model.hf.config._attn_implementation == "sdpa"
    assert not native(model, output_attentions=True).attentions
    pattern = model.run(IDS, capture="pattern.1")["pattern.1"]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 4, 10), **CLOSE)
    model.hf.set_attn_implementation("eager")
    expected = native(model, output_attentions=True).attentions[1]
    model.hf.set_attn_implementation("sdpa")
    torch.testing.assert_close(pattern, expected, **CLOSE)


def test_n_our_attention_comes_with_a_mask_function():
    """Without one, transformers passes no mask at all and attention sees the future."""
    assert "monosem" in ALL_MASK_ATTENTION_FUNCTIONS
    pattern = model_of("llama").run(IDS, capture="pattern.1")["pattern.1"]
    assert torch.equal(pattern.triu(1), torch.zeros_like(pattern))
    assert (pattern.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_o_positions_follow_the_mask():
    """transformers counts positions from the left edge, padding included: wrong for learned positions."""
    model = model_of("gpt2")
    row = IDS[0, :5]
    alone = native(model, input_ids=row[None]).logits[0]
    padded = torch.cat([torch.full((3,), 2), row])[None]
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    naive = native(model, input_ids=padded, attention_mask=mask).logits[0, 3:]
    ours = model.run(TokenBatch.of([row.tolist(), IDS[1, :8].tolist()], pad=2, side="left")).logits[0, 3:]
    torch.testing.assert_close(ours, alone, **CLOSE)
    assert (naive - alone).abs().max() > 0.05


def test_o_a_token_that_is_the_padding_id_is_not_masked():
    """In GPT-2 the ids of padding, BOS and EOS are one; the mask comes from the prompt's length, never from ids."""
    model, row = model_of("gpt2"), [5, 2, 2, 7, 2]
    batch = TokenBatch.of([row, [3] * 8], pad=2)
    expected = native(model, input_ids=torch.tensor([row])).logits[0]
    torch.testing.assert_close(model.run(batch).logits[0, :5], expected, **CLOSE)


def test_p_analysis_passes_build_no_cache():
    model, seen = model_of("llama"), []
    handle = model.hf.model.register_forward_pre_hook(lambda m, a, kw: seen.append(kw), with_kwargs=True)
    assert model.hf.config.use_cache
    model.run(IDS, capture="resid_post.1")
    handle.remove()
    assert seen[0]["use_cache"] is False
    assert seen[0].get("past_key_values") is None


def test_q_edits_in_generation_know_their_position_in_the_whole_text():
    """With a cache, modules see the prompt once and then one token at a time."""
    model, row = model_of("llama"), IDS[0, :4].tolist()
    vector = torch.randn(32, generator=torch.Generator().manual_seed(3))
    edit = edits.add(("resid_post.1", vector), 4.0).at(positions=[1, 5])  # one in the prompt, one not yet there
    made = model.generate([row], edits=edit, max_new_tokens=6, stop_at_eos=False).ids.rows()[0]
    text = list(row)
    for _ in range(6):
        now = edit if len(text) > 5 else edit.at(positions=[1])
        text.append(int(model.run([text], edits=now).logits[0, -1].argmax()))
    assert made == text


@pytest.mark.parametrize("where", ["model", "module", "forward"])
def test_r_compiled_models_are_refused(where):
    """A hook added after torch.compile never fires, and nothing says so."""
    hf = tiny_hf("llama")
    if where == "model":
        hf.compile(backend="eager")
    elif where == "module":
        hf.model.layers[1].mlp.compile(backend="eager")
    else:
        hf.model.layers[1].forward = torch.compile(hf.model.layers[1].forward, backend="eager")
    with pytest.raises(BadInput, match=r"torch\.compile"):
        Model(hf)


@pytest.mark.parametrize("family", ["llama_tied", "gemma", "gpt2"])
def test_s_weights_are_never_rewritten_and_tied_ones_stay_tied(family):
    """Folding a norm into W_U would corrupt a tied W_E."""
    model = tiny_model(family)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    verify(model)
    _ = model.W_U, model.W_E, model.final_gain, model.W_O[1]
    for name, value in model.hf.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.hf.get_input_embeddings().weight is model.hf.get_output_embeddings().weight
    assert model.W_U.data_ptr() == model.hf.get_output_embeddings().weight.data_ptr()


@pytest.mark.parametrize(
    ("family", "gain", "bias"),
    [
        ("llama", lambda m: m.weight, None),
        ("gemma2", lambda m: 1 + m.weight, None),
        ("olmo", lambda m: torch.ones(32), None),
        ("cohere", lambda m: m.weight, None),
        ("gpt2", lambda m: m.weight, lambda m: m.bias),
    ],
)
def test_t_norms_are_read_by_what_they_do(family, gain, bias):
    """Gain w or 1 + w or none, epsilon under three names, some with a bias."""
    model = model_of(family)
    module = model.part(model.family.final_norm)
    norm = Norm.of(module, 32)
    torch.testing.assert_close(norm.gain, gain(module), **CLOSE)
    torch.testing.assert_close(norm.bias, bias(module) if bias else torch.zeros(32), **CLOSE)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)) * 1e-2  # small: the epsilon counts
    torch.testing.assert_close(norm.frozen(x, norm.scale(x)) + norm.bias, module(x), **CLOSE)


@pytest.mark.parametrize(
    ("family", "site"), [("gpt_neo", "resid_post.1"), ("gpt_oss", "mlp_out.1"), ("llama", "attn_out.1")]
)
def test_u_modules_that_return_tuples_are_unwrapped_and_wrapped_again(family, site):
    """Blocks of GPT-Neo, MLPs of GPT-OSS and all attention modules return more than their tensor."""
    model = model_of(family)
    module = {"resid_post.1": model.blocks[1], "mlp_out.1": None, "attn_out.1": None}[site]
    module = module or model.blocks[1].get_submodule("mlp" if site == "mlp_out.1" else "self_attn")
    output = output_of(model, module)
    assert isinstance(output, tuple)
    torch.testing.assert_close(model.run(IDS, capture=site)[site], output[0], rtol=0, atol=0)
    later = model.run(IDS, capture="resid_post.2", edits=edits.scale(site, 1.0)).logits
    torch.testing.assert_close(later, native(model).logits, **CLOSE)


def test_v_models_are_in_eval_mode_and_keep_no_graph_unless_asked():
    hf = tiny_hf("llama").train().requires_grad_(True)
    hf.gradient_checkpointing_enable()
    model = Model(hf)
    assert not hf.training
    assert not any(p.requires_grad for p in hf.parameters())
    run = model.run(IDS, capture="resid_post.1")
    assert not run.logits.requires_grad
    assert not run["resid_post.1"].requires_grad
    assert model.run(IDS, capture="resid_post.1", grad=True).logits.requires_grad


def test_w_a_forward_that_goes_past_a_module_is_noticed():
    """Replacement kernels may compute a whole MLP at once: what lies inside is then refused, not silently missing."""
    model = Model(tiny_hf("llama"))
    mlp = model.blocks[1].mlp
    inside = (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    mlp.forward = lambda x: (nn.functional.silu(x @ inside[0].T) * (x @ inside[1].T)) @ inside[2].T
    torch.testing.assert_close(model.run(IDS, capture="mlp_out.1").logits, native(model_of("llama")).logits, **CLOSE)
    with pytest.raises(SiteDidNotFire, match=r"mlp_post\.1"):
        model.run(IDS, capture=["mlp_out.1", "mlp_post.1"])


def test_x_gated_attention_read_as_plain_fails_the_identity():
    """A gate between attention and the output projection: the projection's input is not pattern times values."""
    model = Model(tiny_any("laguna"), None, "laguna")
    attention, experts = model.family.branches
    parts = {name: path for name, path in attention.mixers[0].parts.items() if name != "gate"}
    plain = replace(attention, mixers=(replace(attention.mixers[0], parts=parts),))
    result = verify(Model(model.hf, None, "x", family=replace(model.family, branches=(plain, experts))))
    assert list(result.table[~result.table.ok].identity) == ["pattern · v = z"]
