"""TransformerLens's names mean its places: against plain hooks on native modules, and refused where there is none."""

import pytest
import torch

from monosem.errors import UnknownName
from monosem.models import Model, Site
from monosem.models.places.sites import ONCE
from monosem.models.transformerlens.names import ALIASES, REFUSED
from tiny import is_parallel

SOME = ["llama", "gpt2", "gpt_neox", "gemma2", "granite", "phi", "olmo2"]
IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=SOME)
def some(request, tiny_model) -> Model:
    return tiny_model(request.param)


def places(model: Model) -> dict[str, tuple[torch.nn.Module, str]]:
    """TransformerLens's 4.x name -> native module, and which side of it."""
    found = {
        "unembed.hook_out": (model.hf.get_output_embeddings(), "out"),
        "hook_unembed": (model.hf.get_output_embeddings(), "out"),
        "ln_final.hook_in": (model.part(model.family.final_norm), "in"),
        "ln_final.hook_out": (model.part(model.family.final_norm), "out"),
    }
    for name, norm in (("attn", "ln1"), ("mlp", "ln2")):
        branch = model.branch(name, 1)
        found[f"blocks.1.{name}.hook_in"] = (branch.module, "in")
        found[f"blocks.1.{name}.hook_out"] = (branch.module, "out")
        if branch.norm_in is not None and branch.slot.own_norm:
            found[f"blocks.1.{norm}.hook_in"] = (branch.norm_in, "in")
            found[f"blocks.1.{norm}.hook_out"] = (branch.norm_in, "out")
            if name == "mlp":
                found["blocks.1.hook_mlp_in"] = (branch.norm_in, "in")
    return found


def tilted(x: torch.Tensor) -> torch.Tensor:
    return x * torch.linspace(0.5, 1.5, x.shape[-1])


def native(model: Model, module, side: str, write: bool = False):
    """What a plain hook sees there, and the logits (with `write`: when it tilts the value)."""
    seen = {}

    def before(_, args, kwargs):
        whole = list(args) if args else [kwargs["hidden_states"]]
        seen["x"] = whole[0]
        if not write:
            return None
        new = tilted(whole[0])
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(_, args, out):
        seen["x"] = out[0] if isinstance(out, tuple) else out
        if not write:
            return None
        return (tilted(out[0]), *out[1:]) if isinstance(out, tuple) else tilted(out)

    if side == "in":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    with torch.no_grad():
        logits = model.hf(IDS, use_cache=False).logits
    handle.remove()
    return seen["x"], logits


def test_values_and_writes_at_the_names_of_4x(some):
    clean = some(IDS)
    for name, (module, side) in places(some).items():
        value, _ = native(some, module, side)
        _, cache = some.run_with_cache(IDS, names_filter=name)
        torch.testing.assert_close(cache[name], value, rtol=1e-5, atol=1e-5, msg=name)
        _, expected = native(some, module, side, write=True)
        found = some.run_with_hooks(IDS, fwd_hooks=[(name, lambda x, hook: tilted(x))])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=name)
        assert (found - clean).abs().max() > 1e-3, name


def test_what_a_default_cache_lacks_is_computed_from_it(some):
    _, cache = some.run_with_cache(IDS)
    for name, (module, side) in places(some).items():
        value, _ = native(some, module, side)
        torch.testing.assert_close(cache[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_mlp_in_and_gate_are_the_projections_of_that_name(tiny_model):
    for family, gated in (("llama", True), ("phi3", True), ("gpt2", False)):
        model = tiny_model(family)
        _, cache = model.run_with_cache(IDS)
        up, pre = cache["blocks.1.mlp.in.hook_out"], cache["blocks.1.mlp.hook_pre"]
        expected = cache["blocks.1.mlp.hook_in"] @ model.W_in[1] + model.b_in[1]
        torch.testing.assert_close(up, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(cache["blocks.1.mlp.gate.hook_out"], pre)
        assert torch.equal(up, pre) is not gated


def test_gemmas_logits_before_and_after_the_cap(tiny_model):
    model = tiny_model("gemma2")
    logits, cache = model.run_with_cache(IDS, names_filter=["unembed.hook_out", "logits"])
    raw = cache["unembed.hook_out"]
    assert (raw - logits).abs().max() > 0.1
    torch.testing.assert_close(3 * torch.tanh(raw / 3), cache["logits"])


def test_a_value_that_an_edit_changed_is_not_computed_from_what_came_before_the_edit(tiny_model):
    model = tiny_model("llama")
    halve = [("blocks.1.ln1.hook_scale", lambda x, hook: x / 2)]
    with model.hooks(fwd_hooks=halve):
        _, cache = model.run_with_cache(IDS)
        _, named = model.run_with_cache(IDS, names_filter="blocks.1.ln1.hook_scale")
    for name in ("ln1.hook_scale", "ln1.hook_out", "attn.hook_in"):
        with pytest.raises(UnknownName, match=r"an edit at ln1_scale\.1"):
            _ = cache[f"blocks.1.{name}"]
    clean = model.run_with_cache(IDS)[1]
    torch.testing.assert_close(named["ln1_scale", 1], clean["ln1_scale", 1] / 2)
    torch.testing.assert_close(cache["ln1_scale", 0], clean["ln1_scale", 0])
    torch.testing.assert_close(cache["attn_input", 0], clean["attn_input", 0])


def test_a_filter_that_is_a_function_sees_norms_and_4x_names(tiny_model):
    model = tiny_model("llama")
    _, cache = model.run_with_cache(IDS, names_filter=lambda name: name.endswith(("hook_pattern", "hook_scale")))
    kinds = {site.name for site in cache.activations}
    assert kinds == {"pattern", "ln1_scale", "ln2_scale", "final_scale"}
    _, cache = model.run_with_cache(IDS, names_filter=lambda name: name.endswith("mlp.hook_in"))
    assert list(cache) == [f"blocks.{layer}.mlp.hook_in" for layer in range(3)]
    _, cache = model.run_with_cache(IDS, names_filter=lambda name: name.endswith("attn.o.hook_in"))
    assert [site.name for site in cache.activations] == ["z"] * 3
    assert "blocks.1.attn.o.hook_in" in cache


def test_names_that_are_no_sites_say_what_to_use(some):
    for name in REFUSED:
        for spelled in (name, f"blocks.1.{name}"):
            with pytest.raises(UnknownName, match="is no site here"):
                some.run_with_cache(IDS, names_filter=spelled)
    if some.branch("mlp", 1).norm_in is None:
        with pytest.raises(UnknownName, match="mlp is given mlp_input"):
            some.run_with_cache(IDS, names_filter="blocks.1.hook_mlp_in")
    if is_parallel(some):
        with pytest.raises(UnknownName, match="parallel"):
            some.run_with_cache(IDS, names_filter="blocks.1.hook_resid_mid")


def test_no_name_is_both_a_site_and_refused():
    assert not set(ALIASES) & set(REFUSED)
    for alias, site in ALIASES.items():
        assert Site.parse(alias if site in ONCE else f"blocks.3.{alias}").name == site
