"""Names of sites, and the sites that are computed (norms, per-head results, positions, routers) against native ones."""

import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, UnknownName
from monosem.models import Model, Site
from monosem.models.places.sites import IN_BLOCK, ONCE, sites_of
from tiny import FAMILIES, UNREGISTERED, is_parallel, model_of, tiny_hf

IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(6))
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
CENTRING = {  # LayerNorm, the others have RMSNorm
    *("gpt2", "gpt2_inverse_layer", "gpt_neo", "gptj", "gpt_neox", "gpt_neox_sequential", "phi", "olmo"),
    *("cohere", "cohere2", "starcoder2", "stablelm", "stablelm_parallel"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> Model:
    return model_of(request.param)


@pytest.mark.parametrize(
    ("spelling", "site"),
    [
        ("resid_post.15", Site("resid_post", 15)),
        ("blocks.15.hook_resid_post", Site("resid_post", 15)),
        (("resid_post", 15), Site("resid_post", 15)),
        ("blocks.3.attn.hook_pattern", Site("pattern", 3)),
        ("blocks.3.attn.hook_attn_scores", Site("scores", 3)),
        ("blocks.0.mlp.hook_pre_linear", Site("mlp_pre_linear", 0)),
        ("blocks.4.hook_in", Site("resid_pre", 4)),
        ("blocks.4.attn.o.hook_in", Site("z", 4)),
        ("hook_embed", Site("embed")),
        ("hook_pos_embed", Site("pos_embed")),
        ("blocks.3.attn.hook_result", Site("result", 3)),
        ("blocks.3.ln1.hook_scale", Site("ln1_scale", 3)),
        ("blocks.3.ln2.hook_normalized", Site("ln2_normalized", 3)),
        (("scale", 3, "ln2"), Site("ln2_scale", 3)),
        (("normalized",), Site("final_normalized")),
        ("ln_final.hook_scale", Site("final_scale")),
        ("blocks.1.mlp.hook_gate", Site("router_logits", 1)),
        ("blocks.1.attn.hook_out", Site("attn_raw", 1)),
        (("pre", 2), Site("mlp_pre", 2)),
        ("logits", Site("logits")),
    ],
)
def test_spellings(spelling, site):
    assert Site.parse(spelling) == site


@pytest.mark.parametrize("name", IN_BLOCK)
def test_every_site_survives_its_own_name_and_its_transformerlens_name(name):
    site = Site(name, 7)
    assert Site.parse(str(site)) == site
    assert Site.parse(site.hook_name) == site
    assert site.hook_name.startswith("blocks.7.")


@pytest.mark.parametrize("name", ONCE)
def test_sites_that_exist_once(name):
    assert Site.parse(name) == Site(name)
    assert Site.parse(Site(name).hook_name) == Site(name)


@pytest.mark.parametrize(
    ("bad", "hint"),
    [
        ("resid_pots.3", "did you mean 'resid_post'"),
        ("resid_post", "needs a layer"),
        ("logits.3", "exists once"),
        (15, "bare layer number"),
        ("", "unknown site"),
        ("nonsense", "known:"),
    ],
)
def test_unknown_sites_say_what_to_do(bad, hint):
    with pytest.raises(UnknownName) as error:
        Site.parse(bad)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pair_is_one_site_and_a_tuple_of_names_is_several():
    assert sites_of(("q", 3)) == [Site("q", 3)]
    assert sites_of(("q.3", "k.3")) == [Site("q", 3), Site("k", 3)]
    assert sites_of(()) == []
    with pytest.raises(UnknownName, match="bare layer number"):
        sites_of(3)


# ---------------------------------------------------------------------- values, against native modules
def native_call(model: Model, module: torch.nn.Module) -> tuple[torch.Tensor, object]:
    """What a module is given and returns in a plain forward pass."""
    seen = {}

    def hook(module, args, kwargs, output):
        seen["in"] = args[0] if args else kwargs["hidden_states"]
        seen["out"] = output

    handle = module.register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model.hf(IDS, use_cache=False)
    handle.remove()
    return seen["in"], seen["out"]


def by_hand(x: torch.Tensor, centring: bool, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and normalised value by the formulas of LayerNorm and RMSNorm."""
    x = x - x.mean(-1, keepdim=True) if centring else x
    scale = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scale, x / scale


def eps_of(module: torch.nn.Module) -> float:
    return next((getattr(module, n) for n in ("variance_epsilon", "eps") if hasattr(module, n)), 1e-5)


@pytest.mark.parametrize("which", ["ln1", "ln2", "final"])
def test_norm_scales_and_normalised_values_equal_the_formulas(model, which):
    if which == "final":
        module, names = model.part(model.family.final_norm), ["final_scale", "final_normalized"]
    else:
        branch = model.branch("attn" if which == "ln1" else "mlp", 1)
        module, names = branch.norm_in, [f"{which}_scale.1", f"{which}_normalized.1"]
        if module is None or (which == "ln2" and module is model.branch("attn", 1).norm_in):
            with pytest.raises(UnknownName, match="norm"):
                model.run(IDS, capture=names)
            return
    given, _ = native_call(model, module)
    scale, normalised = by_hand(given, model.name in CENTRING, eps_of(module))
    run = model.run(IDS, capture=names)
    torch.testing.assert_close(run[names[0]], scale, **CLOSE)
    torch.testing.assert_close(run[names[1]], normalised, **CLOSE)
    if which != "final":  # the same names as TransformerLens, and the same value made from the stream
        late = model.run(IDS, capture=["resid_pre.1", *([] if is_parallel(model) else ["resid_mid.1"])])
        torch.testing.assert_close(late["scale", 1, which], scale, **CLOSE)


def test_writing_a_norm_s_scale_divides_by_it(model):
    module = model.part(model.family.final_norm)
    given, _ = native_call(model, module)
    frozen = torch.full((*IDS.shape, 1), 2.5)
    found = model.run(IDS, capture="final_norm", edits=edits.patch("final_scale", frozen))["final_norm"]
    scale, normalised = by_hand(given, model.name in CENTRING, eps_of(module))
    gain_and_bias = model.run(IDS, capture="final_norm")["final_norm"]
    bias = torch.as_tensor(getattr(module, "bias", None) if getattr(module, "bias", None) is not None else 0.0)
    torch.testing.assert_close(found, (gain_and_bias - bias) * scale / frozen + bias, **CLOSE)
    both = [edits.patch("final_scale", frozen), edits.patch("final_normalized", normalised)]
    torch.testing.assert_close(model.run(IDS, edits=both).logits, model.run(IDS).logits, **CLOSE)


def test_results_sum_to_the_native_output_and_are_made_for_what_is_asked(model):
    attention = model.branch("attn", 1).module
    _, output = native_call(model, attention)
    output = output[0] if isinstance(output, tuple) else output
    run = model.run(IDS, capture=["result.1", "attn_raw.1"])
    torch.testing.assert_close(run["attn_raw.1"], output, **CLOSE)
    torch.testing.assert_close(run["result.1"].sum(2) + model.b_O[1], output, **CLOSE)
    part = model.run(IDS, capture="result.1", heads=[2], positions="last")["result.1"]
    torch.testing.assert_close(part, run["result.1"][:, -1:, 2:3], **CLOSE)
    without = model.run(IDS, edits=edits.function("result.1", lambda r: r * torch.tensor([1, 0, 1, 1])[:, None])).logits
    zeroed = model.run(IDS, edits=edits.function("z.1", lambda z: z * torch.tensor([1, 0, 1, 1])[:, None])).logits
    torch.testing.assert_close(without, zeroed, **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_position_embeddings(family):
    model = model_of(family)
    table = model.hf.transformer.wpe.weight
    run = model.run(IDS, capture=["pos_embed", "embed", "resid_pre.0"])
    torch.testing.assert_close(run["pos_embed"], table[:9].expand(2, -1, -1))
    zero = model.run(IDS, capture="resid_pre.0", edits=edits.scale("pos_embed", 0.0).at(rows=[1]))["resid_pre.0"]
    torch.testing.assert_close(zero[1], run["embed"][1])
    torch.testing.assert_close(zero[0], run["resid_pre.0"][0])
    with pytest.raises(UnknownName, match="no learned positions"):
        model_of("llama").run(IDS, capture="pos_embed")


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"])
def test_routers_are_read_and_their_weights_written(family):
    model = model_of(family)
    block = model.blocks[1].get_submodule("mlp")
    _, output = native_call(model, block.get_submodule(model.branch("mlp", 1).slot.mixer.parts["router"]))
    names = ["router_logits.1", "expert_weights.1", "expert_indices.1"]
    run = model.run(IDS, capture=[*names, "mlp_out.1"])
    for name, native in zip(names, output):
        torch.testing.assert_close(run[name].flatten(0, 1), native, rtol=0, atol=0)
    without = model.run(IDS, capture="mlp_out.1", edits=edits.scale("expert_weights.1", 0.0))["mlp_out.1"]
    given, _ = native_call(model, block)
    if family == "qwen2_moe":  # what remains is the shared expert
        shared = block.shared_expert_gate(given).sigmoid() * block.shared_expert(given)
        torch.testing.assert_close(without, shared, **CLOSE)
    else:
        torch.testing.assert_close(without, torch.zeros_like(without))
    for name in ("mlp_pre.1", "mlp_post.1"):
        with pytest.raises(UnknownName, match="mixture of experts"):
            model.run(IDS, capture=name)
    for name in ("router_logits.1", "expert_indices.1"):
        with pytest.raises(BadInput, match="write expert_weights"):
            model.run(IDS, edits=edits.scale(name, 2.0))
    with pytest.raises(UnknownName, match="no router"):
        model_of("llama").run(IDS, capture="router_logits.0")


def test_blocks_of_a_mixture_may_differ():
    """Qwen-MoE may have dense blocks among the mixtures: their neurons are there, those of the others are refused."""
    model = Model(tiny_hf("qwen3_moe", mlp_only_layers=[0]), None, "mixed")
    assert tuple(model.run(IDS, capture="mlp_post.0")["mlp_post.0"].shape) == (2, 9, 48)
    with pytest.raises(UnknownName, match="layer 1 of mixed is a mixture"):
        model.run(IDS, capture="mlp_post.1")
    with pytest.raises(UnknownName, match="layer 0 of mixed has no router"):
        model.run(IDS, capture="router_logits.0")


@pytest.mark.parametrize("family", UNREGISTERED)
@pytest.mark.parametrize("name", ["pattern.1", "scores.1", "rot_q.1", "rot_k.1"])
def test_off_the_attention_registry_only_what_is_inside_attention_is_refused(family, name):
    with pytest.raises(UnknownName, match="attention registry"):
        model_of(family).run(IDS, capture=name)
