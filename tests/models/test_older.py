"""Decoders and encoders with older blocks, against transformers' own hidden states, attention patterns and modules."""

import pytest
import torch

from anymodel import tiny_any
from monosem import components, edits, lenses
from monosem.errors import UnknownName
from monosem.models import Model, load_model, verify

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
CAUSAL = {"is_decoder": True}
# model type -> what else its config says
TYPES: dict[str, tuple[str, dict[str, object]]] = {
    "opt": ("opt", {}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "bloom": ("bloom", {}),
    "falcon-7b": ("falcon", {"multi_query": True, "parallel_attn": True}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon2": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon-rw": ("falcon", {"multi_query": False, "parallel_attn": False, "alibi": True, "num_kv_heads": 4}),
    "mpt": ("mpt", {"attn_config": {"clip_qkv": 0.5}}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_bigcode-mha": ("gpt_bigcode", {"multi_query": False}),
    "codegen": ("codegen", {"n_head": 8}),
    "gpt_neox_japanese": ("gpt_neox_japanese", {}),
    "persimmon": ("persimmon", {}),
    "openai-gpt": ("openai-gpt", {}),
    "ctrl": ("ctrl", {}),
    "xglm": ("xglm", {"scale_embedding": True}),
    "biogpt": ("biogpt", {"scale_embedding": True}),
    "nanochat": ("nanochat", {"final_logit_softcapping": 3.0}),
    "bert": ("bert", CAUSAL),
    "roberta": ("roberta", CAUSAL),
    "xlm-roberta-xl": ("xlm-roberta-xl", CAUSAL),
    "roberta-prelayernorm": ("roberta-prelayernorm", CAUSAL),
    "electra": ("electra", CAUSAL | {"embedding_size": 16}),
    "rembert": ("rembert", CAUSAL | {"input_embedding_size": 16, "output_embedding_size": 24}),
    "megatron-bert": ("megatron-bert", CAUSAL),
    "bert-generation": ("bert-generation", CAUSAL),
    "big_bird": ("big_bird", CAUSAL | {"attention_type": "original_full"}),
    "git": ("git", {}),
    "modernbert-decoder": ("modernbert-decoder", {}),
    "bart": ("bart", {"scale_embedding": True}),
    "mbart": ("mbart", {}),
    "marian": ("marian", {}),
    "pegasus": ("pegasus", {}),
    "blenderbot-small": ("blenderbot-small", {}),
    "bigbird_pegasus": ("bigbird_pegasus", {}),
    "mvp": ("mvp", {}),
    "trocr": ("trocr", {}),
    "whisper": ("whisper", {}),
}


# not on transformers' attention registry
OFF = (
    *("bloom", "falcon-7b", "falcon-40b", "falcon2", "falcon-rw", "mpt", "gpt_neox_japanese", "openai-gpt", "xglm"),
    *("rembert", "megatron-bert", "big_bird", "git", "bigbird_pegasus", "mvp", "trocr"),
)


def model_of(name: str) -> Model:
    kind, changes = TYPES[name]
    return Model(tiny_any(kind, **changes), None, name)


@pytest.mark.parametrize("name", TYPES)
def test_identities(name):
    result = verify(model_of(name))
    assert result.ok, result.table[~result.table.ok].to_string()


@torch.no_grad()
@pytest.mark.parametrize("name", TYPES)
def test_streams_are_transformers_hidden_states(name):
    model = model_of(name)
    streams = [f"resid_pre.{layer}" for layer in model.layers()]
    run = model.run(IDS, [*streams, "final_norm"])
    hidden = model.hf(IDS, output_hidden_states=True, use_cache=False)
    states = hidden.hidden_states
    for layer, site in enumerate(streams):
        torch.testing.assert_close(run[site], states[layer], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run.logits, hidden.logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in TYPES if name not in OFF])
def test_patterns_are_transformers_attention_probabilities(name):
    model = model_of(name)
    run = model.run(IDS, "pattern.1")
    model.hf.set_attn_implementation("eager")
    native = model.hf(IDS, output_attentions=True, use_cache=False).attentions[1]
    torch.testing.assert_close(run["pattern.1"], native, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["falcon-7b", "falcon-40b", "falcon-rw", "bloom"])
def test_fused_projections_are_cut_as_the_module_cuts_them(name):
    model = model_of(name)
    attention = model.blocks[1].self_attention
    fused: list[torch.Tensor] = []
    handle = attention.query_key_value.register_forward_hook(lambda module, args, output: fused.append(output))
    run = model.run(IDS, ["q.1", "k.1", "v.1"])
    handle.remove()
    cut = attention._reshape if name == "bloom" else attention._split_heads
    for site, native in zip(("q.1", "k.1", "v.1"), cut(fused[0])):
        native = native.transpose(1, 2) if name == "bloom" else native
        repeats = native.shape[2] // run[site].shape[2]  # Falcon 40B repeats keys and values
        torch.testing.assert_close(run[site].repeat_interleave(repeats, 2), native)


@torch.no_grad()
def test_the_last_bias_of_gpt_neox_japanese_is_part_of_what_attention_adds():
    model = model_of("gpt_neox_japanese")
    run = model.run(IDS, [f"{name}.{layer}" for layer in (0, 3) for name in ("attn_raw", "attn_out")])
    assert torch.equal(run["attn_raw.0"], run["attn_out.0"])
    bias = model.blocks[3].attention.dense_bias
    assert float(bias.abs().max()) > 0
    torch.testing.assert_close(run["attn_out.3"], run["attn_raw.3"] + bias)
    doubled = model.run(IDS, "resid_mid.3", edits=edits.scale("attn_out.3", 2.0))["resid_mid.3"]
    expected = model.run(IDS, "resid_pre.3")["resid_pre.3"] + 2 * run["attn_out.3"]
    torch.testing.assert_close(doubled, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "bart", "openai-gpt", "opt-350m"])
def test_a_closing_norm_is_read_and_written(name):
    model = model_of(name)
    norm = model.blocks[1].get_submodule(model.branch("attn", 1).slot.closing)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = norm.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    run = model.run(IDS, ["resid_mid.1", "ln1_input.1", "ln1_scale.1", "ln1_output.1", "resid_pre.1", "attn_out.1"])
    handle.remove()
    (read, wrote), size = seen[0], seen[0][0].var(-1, unbiased=False, keepdim=True)
    torch.testing.assert_close(run["resid_mid.1"], wrote)
    torch.testing.assert_close(run["ln1_output.1"], wrote)
    torch.testing.assert_close(run["ln1_input.1"], read)
    torch.testing.assert_close(run["ln1_scale.1"], (size + norm.eps).sqrt())
    derived = model.run(IDS, ["resid_pre.1", "attn_out.1"])
    torch.testing.assert_close(derived["ln1_output.1"], wrote)
    # what is written goes on both ways: into the next branch and into the sum after it
    new = torch.randn(wrote.shape, generator=torch.Generator().manual_seed(1))
    edited = model.run(IDS, "resid_post.1", edits=edits.function("resid_mid.1", lambda _: new))["resid_post.1"]
    handle = norm.register_forward_hook(lambda module, args, output: new)
    native = model.run(IDS, "resid_post.1")["resid_post.1"]
    handle.remove()
    torch.testing.assert_close(edited, native)


@pytest.mark.parametrize("name", ["bert", "openai-gpt"])
def test_streams_behind_a_closing_norm_are_no_sums(name):
    model = model_of(name)
    with pytest.raises(UnknownName, match="puts the stream itself through a norm after attn_out.0"):
        components.direct_attribution(model, IDS, tokens=[5])
    assert [branch.name for branch in model.written_before("resid_pre.0")] == []


def test_logits_of_a_head_are_no_sum_of_what_was_written():
    with pytest.raises(UnknownName, match="has a head of its own"):
        components.direct_attribution(model_of("megatron-bert"), IDS, tokens=[5])
    found = components.direct_attribution(model_of("bloom"), IDS, tokens=[5, 5])
    assert found.table is not None


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "rembert", "opt-350m", "nanochat"])
def test_the_logit_lens_goes_through_the_head(name):
    model = model_of(name)
    run = model.run(IDS, ["resid_post.3", "resid_post.1"])
    torch.testing.assert_close(model.unembed(run["resid_post.3"]), run.logits, rtol=1e-4, atol=1e-4)
    read = lenses.logit(model, IDS, layers=[3])
    assert read is not None


@torch.no_grad()
@pytest.mark.parametrize("name", TYPES)
def test_embeddings(name):
    """What a site says is what native modules returned."""
    model = model_of(name)
    names = [site for site in ("embed", "pos_embed", "type_embed", "embed_norm") if model.has(site)]
    run = model.run(IDS, [*names, "resid_pre.0"])
    torch.testing.assert_close(model.W_E[IDS], run["embed"])
    if model.family.positions is not None:
        summed = run["embed"] + model.W_pos[: IDS.shape[1]]
        summed = summed + run["type_embed"] if "type_embed" in names else summed
        if not model.entry:
            torch.testing.assert_close(summed, run["resid_pre.0"])
    if "embed_norm" in names:
        off = model.run(IDS, "resid_pre.0", edits=edits.scale("embed_norm", 0.0))["resid_pre.0"]
        assert float((off - off[0, 0]).abs().max()) < 1e-6  # nothing of the tokens is left


@torch.no_grad()
@pytest.mark.parametrize("name", ["bart", "mbart", "trocr", "roberta", "opt", "ctrl", "openai-gpt", "bloom"])
def test_generation_of_padded_prompts(name):
    model = model_of(name)
    prompts = [IDS[0, :4].tolist(), IDS[1].tolist()]
    made = model.generate(prompts, max_new_tokens=5, stop_at_eos=False)
    for prompt, new in zip(prompts, made.new):
        ids = list(prompt)
        for _ in range(5):
            ids.append(int(model.hf(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert new == ids[len(prompt) :]


@pytest.mark.parametrize("name", OFF)
def test_what_is_not_on_the_registry_has_no_patterns(name):
    with pytest.raises(UnknownName, match="not on transformers' attention registry; use q, k, v, z"):
        model_of(name).site("pattern.1")


def test_what_is_no_place_says_why():
    with pytest.raises(UnknownName, match="computed positions, which no module returns"):
        model_of("ctrl").site("pos_embed")
    with pytest.raises(UnknownName, match=r"has no final norm; what its last block writes is resid_post.3"):
        model_of("bert").site("final_scale")
    with pytest.raises(UnknownName, match="no token types"):
        model_of("opt").site("type_embed")
    with pytest.raises(UnknownName, match="no norm between the embedding and the first block"):
        model_of("opt").site("embed_norm")


def test_dbrx_norms_of_both_branches_in_one_module():
    model = Model(tiny_any("dbrx"))
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()
    run = model.run(IDS, capture=["resid_mid.1", "pattern.1", "mlp_out.1"])
    states = model.hf(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(run["resid_mid.1"] + run["mlp_out.1"], states[2], rtol=1e-5, atol=1e-5)
    with pytest.raises(UnknownName, match="mlp_post"):
        model.site("mlp_post.1")


def test_bloom_that_goes_on_from_a_norm(monkeypatch):
    """Of this size none was released; the config has the switch, and the sums do not hold with it."""
    hf = tiny_any("bloom", apply_residual_connection_post_layernorm=True)
    with pytest.raises(UnknownName, match="with apply_residual_connection_post_layernorm are not read: its blocks go"):
        load_model(hf, quiet=True)
    monkeypatch.setattr("monosem.models.places.table.ASKED", {})
    with pytest.raises(UnknownName, match="not as its family row says: identity 'resid_pre . attn_out' at resid_mid"):
        load_model(hf, quiet=True)
    failed = verify(Model(hf)).table.query("not ok")
    assert {"resid_mid", "resid_post"} <= set(failed.site)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("afmoe", "mup_enabled"),
        ("big_bird", "rescale_embeddings"),
        *((kind, "scale_embedding") for kind in ("pegasus", "marian", "mvp", "blenderbot-small", "mbart")),
    ],
)
@pytest.mark.parametrize("on", [True, False])
def test_an_embedding_that_a_config_scales(kind, asked, on):
    """As real checkpoints of AFMoE and Pegasus do; the sum is what transformers gives to the first block."""
    model = load_model(tiny_any(kind, **{asked: on}), quiet=True)
    seen = []
    hook = model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    native = model.hf(input_ids=IDS, use_cache=False).logits
    hook.remove()
    run = model.run(IDS, ["embed", "resid_pre.0"])
    torch.testing.assert_close(run["resid_pre.0"], seen[0])
    torch.testing.assert_close(run.logits, native)
    torch.testing.assert_close(model.W_E[IDS], run["embed"])
    assert verify(model).ok


def test_what_a_row_does_not_know_is_found_at_load(monkeypatch):
    monkeypatch.setattr("monosem.models.places.table.ASKED", {})
    hf = tiny_any("ernie", use_task_id=True)
    with pytest.raises(
        UnknownName, match=r"not as its family row says: identity 'resid_pre.0 = embed .* rare\?"
    ) as error:
        load_model(hf, quiet=True)
    assert "\n" not in str(error.value)
