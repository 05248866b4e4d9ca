"""The spine on every family: tiny models with random gains and biases, native Hugging Face as the oracle."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from monosem import edits
from monosem.errors import BadInput, UnknownName
from monosem.models import PER_LAYER, Model, Site, TokenBatch, load_model, verify
from monosem.models.places.sites import ATTENTION, GLOBAL_ON_REQUEST, ON_REQUEST, READ_ONLY
from tiny import FAMILIES, UNREGISTERED, changed, model_of, tiny_hf

IDS = torch.randint(3, 100, (3, 11), generator=torch.Generator().manual_seed(5))
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> Model:
    return model_of(request.param)


@pytest.fixture
def llama() -> Model:
    return model_of("llama")


def offered(model: Model, names=(*PER_LAYER, *ON_REQUEST, *GLOBAL_ON_REQUEST)) -> list[Site]:
    """What the model has of these sites; of those with layers, layer 1."""
    found = []
    for name in names:
        try:
            found.append(model.site(name if name in GLOBAL_ON_REQUEST else (name, 1)))
        except UnknownName:
            continue
    return found


def hooks_of(model: Model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def test_identities(model):
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()
    expected = {"logits", "resid_post", "z", "q"}
    expected |= set() if model.name in UNREGISTERED else {"pattern"}
    expected |= {"expert_indices"} if model.name in MIXTURES else {"mlp_post"}
    assert set(result.table.site) >= expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_identities_in_other_dtypes(dtype):
    """Parts of a float64 model of transformers compute in float32, so its identities hold to float32.

    Streams are added up in the model's order and dtype, so that no dtype's rounding is left.
    """
    result = verify(Model(tiny_hf("llama").to(dtype), None, "llama"))
    assert result.ok, result.table[~result.table.ok].to_string()
    assert (result.table.error[result.table.identity.str.startswith("resid_pre + ")] == 0).all()


@pytest.mark.parametrize(
    ("family", "change", "identity"),
    [
        ("gemma2", {"attn.after": None, "mlp.before": "post_attention_layernorm"}, "resid_pre + attn_out + mlp_out"),
        ("glm4", {"mlp.after": None}, "resid_pre + attn_out + mlp_out"),
        ("granite", {"attn.scale": None, "mlp.scale": None}, "resid_pre + attn_out + mlp_out"),
        ("granite", {"embed_scale": None}, "resid_pre.0 = embed (+ positions)"),
        ("gpt2", {"positions": None}, "resid_pre.0 = embed (+ positions)"),
        ("cohere", {"logit_steps": ()}, "read-out of the last = logits"),
        ("gpt2", {"attn.fused": "interleaved"}, "pattern · v = z"),
        ("gpt_neox", {"attn.fused": "stacked"}, "pattern · v = z"),
        ("llama", {"attn.k": "v_proj", "attn.v": "k_proj"}, "pattern · v = z"),
        ("phi", {"attn.q": "k_proj", "attn.k": "q_proj"}, "the first token's q moves no later z"),
        ("gpt_neo", {"attn.q": "k_proj", "attn.k": "q_proj"}, "the first token's q moves no later z"),
        ("gpt_neo", {"attn.k": "v_proj", "attn.v": "k_proj"}, "the first token sees itself alone: v = z"),
        ("olmo", {"attn.clip": None}, "ln1(resid_pre) W_Q + b_Q"),
        ("llama", {"attn.before": "post_attention_layernorm"}, "ln1(resid_pre) W_Q + b_Q"),
        ("llama", {"mlp.pre": "up_proj", "mlp.pre_linear": "gate_proj"}, "mlp_post linear in it"),
        ("phi3", {"mlp.pre_linear": None}, "one neuron each"),
    ],
)
def test_verify_finds_a_wrong_family_row(family, change, identity):
    right = model_of(family)
    result = verify(Model(right.hf, None, "wrong", family=changed(right.family, change)))
    assert not result.ok
    assert not result.table.set_index("identity").loc[identity].ok


def native_logits(model: Model, attention: str) -> torch.Tensor:
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation(attention)
    with torch.no_grad():
        logits = model.hf(IDS, use_cache=False).logits
    model.hf.set_attn_implementation(before)
    return logits


def test_logits_equal_native_ones_bit_for_bit(model):
    sites = [Site(s.name, layer) for s in offered(model, PER_LAYER) for layer in range(3)]
    if model.name in UNREGISTERED:
        return torch.testing.assert_close(
            model.run(IDS, sites).logits, model.hf(IDS, use_cache=False).logits, rtol=0, atol=0
        )
    explicit = model.run(IDS, capture=sites).logits
    torch.testing.assert_close(explicit, native_logits(model, "eager"), rtol=0, atol=0)
    if model.hf.config._attn_implementation == "sdpa":
        streams = [site for site in sites if site.name not in ATTENTION]
        torch.testing.assert_close(model.run(IDS, streams).logits, native_logits(model, "sdpa"), rtol=0, atol=0)


def test_captured_values_match_the_documented_shapes(model):
    cfg = model.cfg
    sites = offered(model)
    run = model.run(IDS, capture=sites)
    heads = {"q": cfg.n_heads, "rot_q": cfg.n_heads, "z": cfg.n_heads}
    heads |= dict.fromkeys(("k", "v", "rot_k", "values"), cfg.n_kv_heads)
    last = {"ln1_scale": 1, "ln2_scale": 1, "final_scale": 1, "router_logits": 4}
    last |= {"expert_weights": 2, "expert_indices": 2}
    last |= dict.fromkeys(("shared_pre", "shared_pre_linear", "shared_post"), 24)
    for site in sites:
        expected = (3, 11, cfg.d_model)
        if site.name in heads:
            expected = (3, 11, heads[site.name], cfg.d_head)
        elif site.name in ("scores", "pattern"):
            expected = (3, cfg.n_heads, 11, 11)
        elif site.name.startswith("mlp_p") or site.name == "mlp_up":
            expected = (3, 11, cfg.d_mlp)
        elif site.name == "logits_raw":
            expected = (3, 11, cfg.d_vocab)
        elif site.name == "result":
            expected = (3, 11, cfg.n_heads, cfg.d_model)
        elif site.name in last:
            expected = (3, 11, last[site.name])
        elif site.name == "expert_post":
            expected = (3, 11, 2, model.blocks[1].mlp.experts.down_proj.shape[1 if model.name == "gpt_oss" else 2])
        elif site.name == "expert_out":
            expected = (3, 11, 2, cfg.d_model)
        assert tuple(run[site].shape) == expected, site


def tilt(x: torch.Tensor) -> torch.Tensor:
    """Not one factor for all: qk-norms and post-norms undo that."""
    first = torch.linspace(0.6, 1.4, x.shape[1]).view(-1, *[1] * (x.ndim - 2))
    return x * first * torch.linspace(0.5, 1.5, x.shape[-1])


def test_every_site_can_be_written_and_the_write_has_an_effect(model):
    base = model.run(IDS).logits
    for site in offered(model):
        if site.name in READ_ONLY:
            with pytest.raises(BadInput, match="expert_weights"):
                model.run(IDS, edits=edits.scale(site, 2.0))
            continue
        changed = model.run(IDS, edits=edits.function(site, tilt)).logits
        assert (changed - base).abs().max() > 1e-3, site
    assert hooks_of(model) == 0


def test_own_values_of_sites_on_request_written_back_change_nothing(model):
    sites = [site for site in offered(model, (*ON_REQUEST, *GLOBAL_ON_REQUEST)) if site.name not in READ_ONLY]
    written = model.run(IDS, edits=[edits.function(site, torch.clone) for site in sites]).logits
    torch.testing.assert_close(written, model.run(IDS).logits, **TOLERANCE)


def test_pattern_edit_equals_removing_a_key(model):
    """Zeroing one key's column and renormalising is attention without that key: the oracle masks it in the scores."""
    if model.name in UNREGISTERED or model.name == "gpt_oss":
        return  # no pattern to write; rows that a sink keeps below one
    site = Site("pattern", 1)

    def drop(p):
        p = p.clone()
        p[..., 2] = 0
        return p / p.sum(-1, keepdim=True).clamp(min=1e-9)

    def mask(s):
        s = s.clone()
        s[..., 2] = torch.finfo(s.dtype).min
        return s

    columns = slice(3, None)  # rows before it would have nothing left
    ours = model.run(IDS, edits=edits.function(site, drop).at(columns)).logits
    oracle = model.run(IDS, edits=edits.function(("scores", 1), mask).at(columns)).logits
    torch.testing.assert_close(ours, oracle, **TOLERANCE)


def test_resid_mid_edit_equals_a_hand_written_block(model):
    mlp = model.branch("mlp", 1)
    if mlp.reads.name == "resid_pre":
        with pytest.raises(UnknownName, match="parallel"):
            model.run(IDS, capture="resid_mid.1")
        return
    shift = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    edited = model.run(IDS, capture=["resid_mid.1", "resid_post.1"], edits=edits.add(("resid_mid.1", shift)))
    clean = model.run(IDS, capture=["resid_mid.1"])
    mid = clean["resid_mid.1"] + shift
    torch.testing.assert_close(edited["resid_mid.1"], mid, **TOLERANCE)
    out = mlp.module(mlp.norm_in(mid) if mlp.norm_in else mid)
    out = out[0] if isinstance(out, tuple) else out
    out = mlp.norm_out(out) if mlp.norm_out else out
    torch.testing.assert_close(edited["resid_post.1"], mid + out * mlp.scale, **TOLERANCE)


def test_other_prompts_residual_gives_its_logits(model):
    run = model.run(IDS, capture="resid_post.1")
    order = [2, 0, 1]
    swapped = model.run(IDS, edits=edits.patch("resid_post.1", run["resid_post.1"][order])).logits
    torch.testing.assert_close(swapped, run.logits[order], **TOLERANCE)


def test_start_late_equals_the_full_run(model):
    run = model.run(IDS, capture=["resid_pre.2"])
    late = model.run(IDS, start=("resid_pre.2", run["resid_pre.2"]), capture="resid_post.2")
    torch.testing.assert_close(late.logits, run.logits, rtol=0, atol=1e-5)
    assert all("forward" not in block.__dict__ for block in model.blocks)
    with pytest.raises(BadInput, match="shape"):
        model.run(IDS, start=("resid_pre.2", run["resid_pre.2"][:, :4]))


def test_stops_after_the_last_wanted_site(llama):
    ran = []
    handles = [b.register_forward_hook(lambda m, a, o, i=i: ran.append(i)) for i, b in enumerate(llama.blocks)]
    run = llama.run(IDS, capture=["resid_post.0", "q.1"], logits=False)
    for handle in handles:
        handle.remove()
    assert ran == [0]
    assert run.logits is None
    full = llama.run(IDS, capture=["q.1"])
    torch.testing.assert_close(run["q.1"], full["q.1"], rtol=0, atol=0)


def test_last_only_logits(model):
    batch = TokenBatch.of([IDS[0, :4].tolist(), IDS[1].tolist()], pad=2)
    full = model.run(batch).logits
    last = model.run(batch, logits="last").logits
    torch.testing.assert_close(last, torch.stack([full[0, 3], full[1, 10]]), **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_changes_a_result(model, side):
    rows = [IDS[0, :3].tolist(), IDS[1].tolist(), IDS[2, :7].tolist()]
    batch = TokenBatch.of(rows, pad=2, side=side)
    sites = offered(model)
    edit = edits.scale("resid_post.0", 1.5).at("last")
    together = model.run(batch, capture=sites, edits=edit)
    for number, row in enumerate(rows):
        alone = model.run([row], capture=sites, edits=edit)
        real = batch.mask[number]
        torch.testing.assert_close(together.logits[number, real], alone.logits[0], **TOLERANCE)
        for site in sites:
            value = together[site][number]
            value = value[:, real][:, :, real] if site.query_axis == 2 else value[real]
            noise = 1e-5 * max(1.0, float(alone[site].abs().max()))  # a value near zero is a sum of large ones
            torch.testing.assert_close(value, alone[site][0], rtol=1e-4, atol=noise)


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "gpt2", "gpt_neox", "gemma2", "phi3", "olmo", "granite", "cohere", "gptj"]
)
def test_gradients_reach_every_captured_site_and_match_finite_differences(family):
    model = model_of(family)
    sites = [s for s in offered(model) if s.name != "scores"]
    run = model.run(IDS[:1], capture=sites, grad=True)
    metric = run.logits[0, -1, 7]
    gradients = torch.autograd.grad(metric, [run[s] for s in sites])
    for site, gradient in zip(sites, gradients):
        step = gradient / gradient.norm() * 2e-2

        def moved(sign, site=site, step=step):
            edit = edits.function(site, lambda x: x + sign * step)
            return float(model.run(IDS[:1], edits=edit).logits[0, -1, 7])

        slope = (moved(1) - moved(-1)) / 4e-2
        assert slope == pytest.approx(float(gradient.norm()), rel=0.05, abs=1e-3), site


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2", "granite", "glm4", "phi", "gpt_oss"])
def test_gradients_of_a_site_alone_are_those_of_a_run_whose_graph_begins_at_the_embedding(family):
    """Where nothing before a site is on the graph, every reader of it must be, such as both of resid_mid."""
    model = model_of(family)
    others = ("embed", "pos_embed", "router_logits", "expert_indices")
    sites = [site for site in offered(model) if site.layer in (1, None) and site.name not in others]
    run = model.run(IDS[:1], capture=["embed", *sites], grad=True)
    for site, whole in zip(sites, torch.autograd.grad(run.logits[0, -1, 7], [run[site] for site in sites])):
        one = model.run(IDS[:1], capture=[site], grad=True)
        (alone,) = torch.autograd.grad(one.logits[0, -1, 7], one[site])
        torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5, msg=str(site))
        torch.testing.assert_close(one.logits, run.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("site", ["ln1_scale.1", "final_scale", "ln1_normalized.1", "final_normalized"])
def test_gradients_of_a_norms_sites_one_by_one_behind_another_site(family, site):
    model = model_of(family)
    run = model.run(IDS[:1], capture=["resid_pre.0", site], grad=True)
    (gradient,) = torch.autograd.grad(run.logits[0, -1, 7], run[site])

    def moved(size):
        return float(
            model.run(IDS[:1], edits=edits.function(site, lambda x: x + size * gradient.sign())).logits[0, -1, 7]
        )

    assert float(gradient.abs().sum()) == pytest.approx((moved(1e-2) - moved(-1e-2)) / 2e-2, rel=0.05)


def test_hooks_are_gone_after_an_exception_and_contexts_nest(llama):
    def explode(x):
        raise ZeroDivisionError

    before = llama.hf.config._attn_implementation
    base = llama.run(IDS).logits
    with pytest.raises(ZeroDivisionError):
        llama.run(IDS, capture="pattern.0", edits=edits.function("z.1", explode))
    assert hooks_of(llama) == 0
    assert llama.hf.config._attn_implementation == before
    assert torch.equal(llama.run(IDS).logits, base)
    one, two = edits.scale("resid_post.0", 0.5), edits.scale("resid_post.0", 0.4)
    with llama.editing(one), llama.editing(two):
        both = llama.run(IDS).logits
    torch.testing.assert_close(both, llama.run(IDS, edits=[one, two]).logits)
    assert torch.equal(llama.run(IDS).logits, base)


def test_two_models_at_once():
    a, b = model_of("llama"), model_of("qwen2")
    with a.editing(edits.scale("resid_post.0", 0.0)):
        torch.testing.assert_close(b.run(IDS, capture="pattern.1").logits, b.run(IDS).logits, **TOLERANCE)


def test_unknown_sites_and_missing_captures(llama):
    with pytest.raises(UnknownName, match="layers 0 to 2"):
        llama.run(IDS, capture="resid_post.3")
    with pytest.raises(UnknownName, match="not gated"):
        model_of("gpt2").run(IDS, capture="mlp_pre_linear.0")
    with pytest.raises(UnknownName, match="was not captured"):
        llama.run(IDS, capture="resid_post.0")["resid_post.1"]


def test_bad_prompts(llama):
    for bad, hint in [
        ("", "empty"),
        ([], "no prompts"),
        (["a", ""], "prompt 1 is empty"),
        (torch.full((1, 65), 5), "context of 64"),
        (torch.full((1, 3), 100), "outside the vocabulary"),
        (torch.zeros(1, 3), "integer"),
    ]:
        with pytest.raises(BadInput, match=hint):
            llama.run(bad)
    with pytest.raises(BadInput, match="no tokenizer"):
        Model(tiny_hf("llama"), None, "bare").run("text")
    with pytest.raises(BadInput, match="nothing to run for"):
        llama.run(IDS, logits=False)


def test_sizes_follow_the_model(tiny_model):
    model = tiny_model("llama")
    model.hf.resize_token_embeddings(110)
    assert model.cfg.d_vocab == model.cfg.d_vocab_out == 110
    logits = model.run([[105, 3, 7]]).logits
    torch.testing.assert_close(logits, model.hf(input_ids=torch.tensor([[105, 3, 7]])).logits)
    assert model.W_E.shape == (110, 32)
    assert model.W_U.shape == (32, 110)
    with pytest.raises(BadInput, match="vocabulary of 110"):
        model.run([[110]])


def test_the_activation_function_is_named_whatever_the_config_calls_it():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    layout = {"alibi": True, "multi_query": False, "parallel_attn": False, "new_decoder_architecture": False}
    config = AutoConfig.for_model("falcon", **sizes, **layout, ffn_hidden_size=48, bias=True)
    hf = AutoModelForCausalLM.from_config(config)
    assert load_model(hf, quiet=True).cfg.act_fn == config.activation == "gelu"
    assert {kind: model_of(kind).cfg.act_fn for kind in ("gemma2", "gpt2", "llama")} == {
        "gemma2": "gelu_pytorch_tanh",
        "gpt2": "gelu_new",
        "llama": "silu",
    }
