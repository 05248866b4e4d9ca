"""What TransformerLens users type, against native hooks and the names and shapes that TransformerLens documents."""

from functools import partial

import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, UnknownName
from monosem.models import Model, get_act_name
from tiny import FAMILIES, is_parallel

# grouped queries; fused; interleaved and parallel; blocks that return tuples; post-norms; multipliers
SOME = ["llama", "gpt2", "gpt_neox", "gptj", "gemma2", "granite"]
IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tiny_model) -> Model:
    return tiny_model(request.param)


@pytest.fixture(params=SOME)
def some(request, tiny_model) -> Model:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def cache(model):
    return model.run_with_cache(IDS)[1]


@pytest.fixture(scope="module")
def llama(tiny_model) -> Model:
    return tiny_model("llama")


def hooks_of(model: Model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def native(model: Model, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(ids, use_cache=False).logits


def before_cap(model: Model, ids=IDS) -> torch.Tensor:
    """The native logits, multipliers included; before a soft cap, by a plain hook on the unembedding."""
    seen = {}
    handle = model.hf.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.update(out=out))
    logits = native(model, ids)
    handle.remove()
    return seen["out"] if getattr(model.config, "final_logit_softcapping", None) else logits


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# ---------------------------------------------------------------------- run_with_cache
def test_cache_of_everything_has_the_documented_names_and_shapes(llama):
    logits, cache = llama.run_with_cache(IDS)
    close(logits, native(llama))
    stream, heads, kv, square, neurons = (2, 9, 32), (2, 9, 4, 8), (2, 9, 2, 8), (2, 4, 9, 9), (2, 9, 48)
    expected = {
        "hook_embed": stream,
        "blocks.1.hook_resid_pre": stream,
        "blocks.1.attn.hook_q": heads,
        "blocks.1.attn.hook_k": kv,
        "blocks.1.attn.hook_v": kv,
        "blocks.1.attn.hook_rot_q": heads,
        "blocks.1.attn.hook_rot_k": kv,
        "blocks.1.attn.hook_attn_scores": square,
        "blocks.1.attn.hook_pattern": square,
        "blocks.1.attn.hook_z": heads,
        "blocks.1.hook_attn_out": stream,
        "blocks.1.hook_resid_mid": stream,
        "blocks.1.mlp.hook_pre": neurons,
        "blocks.1.mlp.hook_pre_linear": neurons,
        "blocks.1.mlp.hook_post": neurons,
        "blocks.1.hook_mlp_out": stream,
        "blocks.1.hook_resid_post": stream,
    }
    for name, shape in expected.items():
        assert name in cache
        assert tuple(cache[name].shape) == shape, name
    assert set(expected) <= set(cache.keys())
    assert list(cache) == list(cache.keys())
    assert dict(cache.items())["hook_embed"] is cache["embed"]
    assert len(cache) == len(list(cache.values()))
    # computed when they are asked for
    assert tuple(cache["result", 1].shape) == (2, 9, 4, 32)
    assert tuple(cache["blocks.1.ln1.hook_scale"].shape) == (2, 9, 1)
    assert tuple(cache["normalized", 1, "ln2"].shape) == stream
    assert tuple(cache["ln_final.hook_normalized"].shape) == stream


@pytest.mark.parametrize(
    ("short", "name"),
    [
        (("resid_post", 1), "blocks.1.hook_resid_post"),
        (("q", 1, "attn"), "blocks.1.attn.hook_q"),
        (("attn", 1), "blocks.1.attn.hook_pattern"),
        (("attn_scores", 1), "blocks.1.attn.hook_attn_scores"),
        (("pre", 1, "mlp"), "blocks.1.mlp.hook_pre"),
        (("post", 1), "blocks.1.mlp.hook_post"),
        ("embed", "hook_embed"),
        (("resid_pre", -2), "blocks.1.hook_resid_pre"),
    ],
)
def test_short_names(llama, short, name):
    _, cache = llama.run_with_cache(IDS)
    assert cache[short] is cache[name]
    if isinstance(short, tuple) and short[1] > 0:
        assert get_act_name(*short) == name


def test_act_names():
    assert get_act_name("scale", 4, "ln2") == "blocks.4.ln2.hook_scale"
    assert get_act_name("normalized") == "ln_final.hook_normalized"
    assert get_act_name("pattern", 3) == "blocks.3.attn.hook_pattern"
    assert get_act_name("embed") == "hook_embed"


def test_names_filter(llama):
    one = "blocks.2.hook_resid_post"
    for names in (one, [one], lambda name: name == one, ("resid_post", 2)):
        _, cache = llama.run_with_cache(IDS, names_filter=names)
        assert list(cache.keys()) == [one]
    _, cache = llama.run_with_cache(IDS, names_filter=lambda name: name.endswith("pattern"))
    assert len(cache) == 3
    with pytest.raises(UnknownName, match="chose no activation"):
        llama.run_with_cache(IDS, names_filter=lambda name: "nothing" in name)
    with pytest.raises(UnknownName, match="did you mean"):
        llama.run_with_cache(IDS, names_filter="blocks.2.hook_resid_pots")
    with pytest.raises(UnknownName, match="was not captured"):
        _ = cache["resid_post", 1]


def test_return_types(llama):
    logits = native(llama)
    with torch.no_grad():
        loss = llama.hf(IDS, labels=IDS).loss
    close(llama(IDS), logits)
    torch.testing.assert_close(llama(IDS, return_type="loss"), loss)
    both = llama(IDS, return_type="both")
    close(both.logits, logits)
    torch.testing.assert_close(both.loss, loss)
    assert llama(IDS, return_type=None) is None
    per_token = llama(IDS, return_type="loss", loss_per_token=True)
    assert tuple(per_token.shape) == (2, 8)
    torch.testing.assert_close(per_token.mean(), loss)
    with pytest.raises(BadInput, match="'loss'"):
        llama(IDS, return_type="los")
    with pytest.raises(BadInput, match="two tokens"):
        llama(IDS[:, :1], return_type="loss")


def test_the_loss_of_padded_texts_is_that_of_their_real_tokens(llama):
    texts = ["the cat sat on the mat", "a dog ran"]
    alone = [llama(text, return_type="loss") for text in texts]
    lengths = [len(llama.to_str_tokens(text)) - 1 for text in texts]
    expected = sum(loss * n for loss, n in zip(alone, lengths)) / sum(lengths)
    torch.testing.assert_close(llama(texts, return_type="loss"), expected)


def test_stop_at_layer_gives_the_stream_there(some):
    with torch.no_grad():
        states = some.hf(IDS, use_cache=False, output_hidden_states=True).hidden_states
    for layer in (1, 2, -1):
        stream, cache = some.run_with_cache(IDS, stop_at_layer=layer, names_filter=lambda name: "resid" in name)
        close(stream, states[layer if layer >= 0 else 3 + layer])
        assert ("resid_post", 0) in cache
        assert ("resid_pre", 2) not in cache
    end = some(IDS, stop_at_layer=3)
    close(some.unembed(end), native(some))
    with pytest.raises(UnknownName, match="3 layers"):
        some(IDS, stop_at_layer=4)


def test_batch_dimension_and_positions(llama):
    _, whole = llama.run_with_cache(IDS[:1])
    _, cache = llama.run_with_cache(IDS[:1], remove_batch_dim=True)
    for name, value in cache.items():
        assert torch.equal(value, whole[name][0]), name
    assert torch.equal(cache["scale", 1, "ln1"], whole["scale", 1, "ln1"][0])
    with pytest.raises(BadInput, match="over one prompt"):
        llama.run_with_cache(IDS, remove_batch_dim=True)

    _, whole = llama.run_with_cache(IDS)
    _, last = llama.run_with_cache(IDS, pos_slice=-1)
    _, some = llama.run_with_cache(IDS, pos_slice=slice(2, 5))
    for name, value in whole.items():
        axis = 2 if name.endswith(("pattern", "attn_scores")) else 1
        torch.testing.assert_close(last[name], value.narrow(axis, -1, 1), rtol=0, atol=0)
        torch.testing.assert_close(some[name], value.narrow(axis, 2, 3), rtol=0, atol=0)


def test_a_cache_over_the_budget_is_refused_and_says_what_is_large(llama):
    long = torch.randint(3, 100, (16, 60))
    with pytest.raises(BadInput, match=r"attn_scores|scores\.\d|logits") as error:
        llama.run_with_cache(long, memory="1MB")
    assert "names_filter" in str(error.value)
    llama.run_with_cache(long, names_filter="blocks.0.hook_resid_pre", memory="1MB")


# ---------------------------------------------------------------------- hooks
def test_zero_ablation_of_a_head_equals_a_native_hook(some):
    def ablate(z, hook, head):
        assert hook.name == "blocks.1.attn.hook_z"
        assert hook.layer() == 1
        z[:, :, head] = 0.0
        return z

    out = some.blocks[1].get_submodule(some.branch("attn", 1).slot.mixer.at("out"))
    width = some.cfg.d_head

    def zero(module, args):
        x = args[0].clone()
        x[..., 2 * width : 3 * width] = 0.0
        return (x,)

    handle = out.register_forward_pre_hook(zero)
    expected = native(some)
    handle.remove()
    found = some.run_with_hooks(IDS, fwd_hooks=[(get_act_name("z", 1), partial(ablate, head=2))])
    close(found, expected)
    assert (found - native(some)).abs().max() > 1e-3
    assert hooks_of(some) == 0


def test_writing_in_place_without_returning_counts_and_reading_does_not(llama):
    seen = []

    def zero(value, hook):
        value[:] = 0.0

    def read(value, hook):
        seen.append(value)

    changed = llama.run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_mlp_out", zero), ("blocks.1.hook_mlp_out", read)])
    assert (changed - native(llama)).abs().max() > 1e-3
    assert float(seen[0].abs().max()) == 0.0
    close(llama.run_with_hooks(IDS, fwd_hooks=[(lambda name: True, lambda value, hook: None)]), native(llama))


def test_filters_order_and_context(llama):
    calls = []

    def note(value, hook):
        hook.ctx["times"] = hook.ctx.get("times", 0) + 1
        calls.append((hook.name, hook.ctx["times"]))

    with llama.hooks(fwd_hooks=[(lambda name: name.endswith("hook_pattern"), note)]) as same:
        assert same is llama
        llama(IDS)
        llama.run_with_cache(IDS, names_filter="hook_embed")
    assert [name for name, _ in calls[:3]] == [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    assert [times for _, times in calls] == [1] * 3 + [2] * 3
    llama(IDS)
    assert len(calls) == 6
    assert llama.ambient_edits == []


def test_nothing_stays_after_an_error(llama):
    def fail(value, hook):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        llama.run_with_hooks(IDS, fwd_hooks=[("blocks.1.attn.hook_pattern", fail)])
    assert hooks_of(llama) == 0
    assert llama.ambient_edits == []
    assert llama.hf.config._attn_implementation != "monosem"
    close(llama(IDS), native(llama))
    with pytest.raises(BadInput, match=r"returned shape \(2, 9\)"):
        llama.run_with_hooks(IDS, fwd_hooks=[("hook_embed", lambda value, hook: value[..., 0])])
    with pytest.raises(UnknownName):
        llama.run_with_hooks(IDS, fwd_hooks=[("blocks.9.hook_mlp_out", fail)])
    with pytest.raises(UnknownName, match="run_with_hooks"):
        llama.add_hook("hook_embed", fail)
    llama.reset_hooks()
    llama.set_use_attn_result(True)
    assert hooks_of(llama) == 0


def test_hooks_act_in_generation(llama):
    def away(value, hook):
        return torch.zeros_like(value)

    with llama.hooks(fwd_hooks=[("blocks.2.hook_mlp_out", away)]):
        made = llama.generate("the cat sat", max_new_tokens=4, stop_at_eos=False)
        expected = llama(made.ids)[0, -5:-1].argmax(-1)
    assert made.new[0] == expected.tolist()
    assert made.new != llama.generate("the cat sat", max_new_tokens=4, stop_at_eos=False).new


def test_backward_hooks_see_the_gradient(llama):
    seen = {}
    names = ["blocks.1.hook_resid_post", "blocks.2.attn.hook_z"]
    with llama.hooks(bwd_hooks=[(name, lambda grad, hook: seen.update({hook.name: grad.clone()})) for name in names]):
        llama(IDS)[:, -1, 5].sum().backward()
    run = llama.run(IDS, capture=names, grad=True)
    expected = torch.autograd.grad(run.logits[:, -1, 5].sum(), [run[name] for name in names])
    for name, gradient in zip(names, expected):
        torch.testing.assert_close(seen[name], gradient)
    assert all(p.grad is None for p in llama.hf.parameters())


@pytest.mark.parametrize("returned", [lambda grad: grad * 0, lambda grad: (grad * 0,)])
def test_backward_hooks_may_return_another_gradient(llama, returned):
    """Bare, or in a tuple as torch's own hooks of modules do; against a branch that is cut off the graph."""
    seen = {}
    hooks = [
        ("blocks.1.hook_attn_out", lambda grad, hook: returned(grad)),
        ("blocks.1.hook_resid_pre", lambda grad, hook: seen.update(grad=grad.clone())),
    ]
    with llama.hooks(bwd_hooks=hooks):
        llama(IDS)[:, -1, 5].sum().backward()
    cut = edits.function("attn_out.1", lambda x: x.detach())
    run = llama.run(IDS, capture="resid_pre.1", edits=cut, grad=True)
    (expected,) = torch.autograd.grad(run.logits[:, -1, 5].sum(), run["resid_pre.1"])
    torch.testing.assert_close(seen["grad"], expected)
    for bad in (lambda grad, hook: grad[0], lambda grad, hook: 1.0):
        with llama.hooks(bwd_hooks=[("blocks.1.hook_attn_out", bad)]):
            loss = llama(IDS)[:, -1, 5].sum()
        with pytest.raises(BadInput, match="for a gradient of shape"):
            loss.backward()


# ---------------------------------------------------------------------- tokens
def test_tokens(llama):
    ids = llama.to_tokens("the cat sat")
    assert ids.shape == (1, 3)  # this tokenizer adds nothing, so nothing is added
    assert llama.to_str_tokens("the cat sat") == [" the", " cat", " sat"] == llama.to_str_tokens(ids)
    assert llama.to_str_tokens(ids[0]) == [" the", " cat", " sat"]
    assert llama.to_str_tokens(["the cat", "a"]) == [[" the", " cat"], [" a"]]
    with_bos = llama.to_tokens("the cat sat", prepend_bos=True)
    assert with_bos.tolist() == [[0, *ids[0].tolist()]]
    assert llama.to_tokens("<s>the cat sat", prepend_bos=True)[0].tolist().count(0) == 1
    assert llama.to_tokens("<s>the cat", prepend_bos=False)[0].tolist().count(0) == 0
    close(llama("the cat sat", prepend_bos=True), native(llama, with_bos))
    padded = llama.to_tokens(["the cat sat", "a dog"])
    assert padded.shape == (2, 3)
    assert llama.to_string(ids[0]) == "the cat sat"
    assert llama.to_string(ids) == ["the cat sat"]
    cat = llama.to_single_token(" cat")
    assert llama.to_single_str_token(cat) == " cat" == llama.to_string(cat) or llama.to_string(cat) == "cat"
    with pytest.raises(BadInput, match="2 tokens"):
        llama.to_single_token("the cat")
    assert llama.get_token_position(" cat", "the cat sat") == 1
    assert llama.get_token_position(" the", "the cat the dog", mode="last") == 2
    assert llama.get_token_position(" the", "the cat the dog", prepend_bos=True) == 1
    with pytest.raises(BadInput, match="not among"):
        llama.get_token_position(" dog", "the cat sat")
    torch.testing.assert_close(llama.tokens_to_residual_directions(" cat"), llama.hf.lm_head.weight[cat])
    assert llama.tokens_to_residual_directions(IDS).shape == (2, 9, 32)


def test_cfg_names(model):
    cfg, config = model.cfg, model.hf.config
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_vocab, cfg.n_ctx) == (3, 32, 4, 100, 64)
    assert cfg.n_key_value_heads == cfg.n_kv_heads
    assert cfg.d_vocab_out == 100
    assert cfg.model_name == config.model_type
    assert cfg.act_fn in ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh")
    assert (cfg.device, cfg.dtype) == (model.device, torch.float32)
    assert cfg.n_params == sum(p.numel() for p in model.hf.parameters())


# ---------------------------------------------------------------------- the cache as the stream taken apart
def test_streams_and_their_parts_add_up(model, cache):
    final = cache["resid_post", -1]
    for layer, whole in ((None, final), (-1, final), (1, cache["resid_pre", 1])):
        parts, labels = cache.decompose_resid(layer=layer, return_labels=True)
        close(parts.sum(0), whole)
        assert len(labels) == len(parts)
    assert labels[-1] == "0_mlp_out"
    streams, labels = cache.accumulated_resid(incl_mid=not is_parallel(model), return_labels=True)
    assert labels[0] == "0_pre"
    assert labels[-1] == "final_post"
    torch.testing.assert_close(streams[-1], final)
    torch.testing.assert_close(streams[labels.index("2_pre")], cache["resid_pre", 2])
    heads, labels = cache.stack_head_results(incl_remainder=True, return_labels=True)
    assert labels[:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]
    assert labels[-1] == "remainder"
    close(heads.sum(0), final)
    for pos_slice in (-1, slice(2, 4), [0, 3]):
        part = cache.stack_head_results(pos_slice=pos_slice)
        close(part, heads[:-1][:, :, pos_slice])
        close(cache.decompose_resid(pos_slice=pos_slice).sum(0), final[:, pos_slice])
    assert cache.stack_head_results(layer=0).shape == (0, 2, 9, 32)


def test_heads_and_neurons_are_what_the_branch_writes(model, cache):
    """Ablating a head natively changes the (raw) attention output by its result; neurons of all rows give the MLP."""
    out = model.blocks[1].get_submodule(model.branch("attn", 1).slot.mixer.at("out"))
    bias = torch.zeros(32) if out.bias is None else out.bias
    seen = {}
    handle = out.register_forward_hook(lambda m, a, output: seen.update(out=output))
    native(model)
    handle.remove()
    close(cache["result", 1].sum(-2) + bias, seen["out"])
    heads = cache.stack_head_results()[4:8].sum(0)
    if model.branch("attn", 1).norm_out is None:
        close(heads + model.branch("attn", 1).scale * bias, cache["attn_out", 1])
    if ("mlp_post", 1) not in cache:
        for results in (cache.stack_neuron_results, cache.get_neuron_results):
            with pytest.raises(UnknownName, match="mixture of experts"):
                results(1)
        return
    neurons, labels = cache.stack_neuron_results(layer=2, return_labels=True, neuron_slice=slice(3, 6), pos_slice=-1)
    assert labels == [f"L{layer}N{n}" for layer in (0, 1) for n in (3, 4, 5)]
    whole = cache.stack_neuron_results(layer=2, pos_slice=-1)
    close(neurons, torch.cat([whole[3:6], whole[51:54]]))
    if model.branch("mlp", 1).norm_out is None:
        close(whole[48:].sum(0) + model.branch("mlp", 1).scale * model.b_out[1], cache["mlp_out", 1][:, -1])
    one = cache.get_neuron_results(1, neuron_slice=[4], pos_slice=-1)
    close(one[:, 0], whole[48 + 4])


def test_norms_of_the_cache_are_the_models_own(model, cache):
    seen = {}
    final = model.part(model.family.final_norm)
    modules = {("final", None): final}
    for which, name in (("ln1", "attn"), ("ln2", "mlp")):
        module = model.branch(name, 1).norm_in
        if module is not None and (which == "ln1" or module is not model.branch("attn", 1).norm_in):
            modules[which, 1] = module
    handles = [
        m.register_forward_hook(partial(lambda key, m, a, out: seen.update({key: out}), k)) for k, m in modules.items()
    ]
    native(model)
    for handle in handles:
        handle.remove()
    from monosem.models import Norm

    for (which, layer), module in modules.items():
        norm = Norm.of(module, 32)
        normalized = cache["ln_final.hook_normalized"] if layer is None else cache["normalized", layer, which]
        close(normalized * norm.gain + norm.bias, seen[which, layer])
    stack = cache.apply_ln_to_stack(cache.accumulated_resid())
    close(stack[-1] + Norm.of(final, 32).bias, seen["final", None])


def test_logit_attributions_sum_to_the_logit_before_the_cap(model, cache):
    norm = model.part(model.family.final_norm)
    bias = getattr(norm, "bias", None)
    bias = torch.zeros(32) if bias is None else bias
    expected = before_cap(model)
    answers, wrong = torch.tensor([7, 8]), torch.tensor([9, 10])
    attrs = cache.logit_attrs(cache.decompose_resid(), answers, wrong)
    rows = torch.arange(2)
    difference = expected[rows, :, answers] - expected[rows, :, wrong]
    no_part = (bias @ model.W_U + model.b_U) * getattr(model.config, "logit_scale", 1.0)  # Granite has no biases
    close(attrs.sum(0) + (no_part[answers] - no_part[wrong])[:, None], difference)
    last = cache.logit_attrs(cache.stack_head_results(incl_remainder=True, pos_slice=-1), 7, pos_slice=-1)
    close(last.sum(0) + no_part[7], expected[:, -1, 7])
    with pytest.raises(BadInput, match="differ in shape"):
        cache.logit_attrs(cache.decompose_resid(), answers, 3)


@pytest.mark.smollm2
def test_the_main_demo_on_a_real_model(smollm2):
    """The first cells of TransformerLens's demo and exploratory analysis, with the import changed."""
    prompt = "After John and Mary went to the store, John gave a bottle of milk to"
    tokens = smollm2.to_tokens(prompt)
    logits, cache = smollm2.run_with_cache(tokens, remove_batch_dim=True)
    mary, john = smollm2.to_single_token(" Mary"), smollm2.to_single_token(" John")
    assert logits[0, -1, mary] > logits[0, -1, john]
    stack, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    attrs = cache.logit_attrs(stack, " Mary", " John", pos_slice=-1)
    torch.testing.assert_close(attrs.sum(), logits[0, -1, mary] - logits[0, -1, john], rtol=1e-3, atol=1e-3)
    assert labels[0] == "embed"
    assert cache["pattern", 0].shape == (9, tokens.shape[1], tokens.shape[1])
