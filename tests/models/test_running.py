"""What a pass leaves behind, also after an error; what lies before a start; what may not disturb a pass on its way."""

import warnings

import pytest
import torch
import transformers
from transformers import Cache

from monosem import edits
from monosem.errors import BadInput, EditDidNotFire, MonosemError
from monosem.models import Model, TokenBatch
from monosem.models.running.cache import cache_name
from tiny import model_of, tiny_model

IDS = torch.randint(3, 100, (3, 11), generator=torch.Generator().manual_seed(5))
ROWS = [IDS[0, :4].tolist(), IDS[1].tolist(), IDS[2, :7].tolist()]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", params=["llama", "gpt2", "gptj", "gemma2", "mixtral"])
def model(request) -> Model:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny_model("llama")


def native(model: Model, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(ids, use_cache=False).logits


def traces(model: Model) -> list[str]:
    """Everything that a pass might have left on the modules."""
    found = [path for path, m in model.hf.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    return found + [path for path, m in model.hf.named_modules() if "forward" in vars(m)]


def explode(x):
    raise ZeroDivisionError


# ---------------------------------------------------------------------- after an error
@pytest.mark.parametrize("logits", [True, "last"])
def test_nothing_stays_on_the_modules_after_an_error(model, logits):
    stream = model.run(IDS, capture="resid_pre.1")["resid_pre.1"]
    implementation, expected = model.hf.config._attn_implementation, native(model)
    wrong = [
        ({"edits": edits.function("resid_post.2", explode)}, ZeroDivisionError),
        ({"edits": edits.function("final_scale", explode), "capture": "z.1"}, ZeroDivisionError),
        ({"edits": edits.scale("z.1", 0.0).at(positions=50)}, EditDidNotFire),
        ({"start": ("resid_pre.1", stream[:, :4])}, BadInput),  # refused when the pass is being set up
        ({"start": ("resid_post.1", stream)}, BadInput),
        ({"start": ("resid_pre.1", stream), "edits": edits.function("mlp_out.2", explode)}, ZeroDivisionError),
    ]
    if model.branch("mlp", 1).kind == "mixture":
        wrong.append(({"edits": edits.scale("router_logits.1", 2.0)}, BadInput))
    for arguments, error in wrong:
        with pytest.raises(error):
            model.run(IDS, logits=logits, **arguments)
        assert traces(model) == [], arguments
        assert model.hf.config._attn_implementation == implementation
        torch.testing.assert_close(native(model), expected, rtol=0, atol=0)
    with pytest.raises(ZeroDivisionError):
        model.generate(ROWS, edits=edits.function("mlp_out.2", explode))
    with pytest.raises(ZeroDivisionError):
        model.run_with_hooks(IDS, fwd_hooks=[("blocks.2.hook_mlp_out", lambda x, hook: explode(x))], stop_at_layer=3)
    assert traces(model) == []


def test_a_run_inside_another_models_run(llama):
    """One model's edit runs another model, both with explicit attention; each keeps its own hooks and captures."""
    other = tiny_model("gemma2", seed=3, name="other")
    inner = []

    def look(x):
        inner.append(other.run(IDS, capture=["pattern.1", "resid_post.1"]))
        return x

    run = llama.run(IDS, capture=["pattern.2", "resid_post.1"], edits=edits.function("resid_pre.1", look))
    alone, inside = (m.run(IDS, capture=["pattern.2", "pattern.1", "resid_post.1"]) for m in (llama, other))
    for found, expected, sites in (
        (run, alone, ["pattern.2", "resid_post.1"]),
        (inner[0], inside, ["pattern.1", "resid_post.1"]),
    ):
        for site in sites:
            torch.testing.assert_close(found[site], expected[site], **CLOSE)
    torch.testing.assert_close(inner[0].logits, native(other), **CLOSE)
    assert traces(llama) == traces(other) == []


def test_a_run_inside_a_run_of_the_same_model_is_refused(model):
    """The outer pass's hooks would act in the inner one: edits without end, or captures of another prompt."""
    for inner in (lambda: model.run(IDS[:1]), lambda: model.generate(ROWS), lambda: model(IDS, stop_at_layer=1)):
        with pytest.raises(BadInput, match="while .* is running"):
            model.run(IDS, capture="resid_post.0", edits=edits.function("resid_post.1", lambda x, inner=inner: inner()))
        torch.testing.assert_close(model.run(IDS).logits, native(model), **CLOSE)
    assert traces(model) == []


def test_contexts_may_end_in_any_order(llama):
    one, two = edits.scale("resid_post.0", 0.5), edits.scale("z.1", 0.4)
    first, second, third = llama.editing(one), llama.editing(two), llama.editing(one, two)
    for context in (first, second, third):
        context.__enter__()
    first.__exit__(None, None, None)
    third.__exit__(None, None, None)
    assert llama.ambient_edits == [two]
    second.__exit__(None, None, None)
    assert llama.ambient_edits == []
    torch.testing.assert_close(llama.run(IDS).logits, native(llama), **CLOSE)


def test_reading_out_inside_a_run_disturbs_nothing(model):
    """A logit lens in a hook goes through modules that have hooks of this very pass."""
    seen = []

    def look(x):
        seen.append(model.unembed(x))
        return x

    sites = ["resid_post.1", "final_norm", "final_scale"]
    run = model.run(IDS, capture=sites, edits=edits.function("resid_post.1", look), logits="last")
    plain = model.run(IDS, capture=sites, logits="last")
    torch.testing.assert_close(run.logits, plain.logits, rtol=0, atol=0)
    for site in sites:
        torch.testing.assert_close(run[site], plain[site], rtol=0, atol=0)
    torch.testing.assert_close(seen[0], model.unembed(run["resid_post.1"]), rtol=0, atol=0)
    assert seen[0].shape == (3, 11, 100)


# ---------------------------------------------------------------------- before a start
def test_what_lies_before_a_start_is_refused(llama):
    start = ("resid_pre.2", llama.run(IDS, capture="resid_pre.2")["resid_pre.2"])
    for site in ("resid_post.1", "resid_pre.1", "attn_out.0", "pattern.1", "ln1_scale.0"):
        with pytest.raises(BadInput, match=r"before the start at resid_pre\.2"):
            llama.run(IDS, capture=site, start=start)
        if site != "pattern.1":
            with pytest.raises(BadInput, match=r"before the start at resid_pre\.2"):
                llama.run(IDS, edits=edits.scale(site, 0.0), start=start)
    with pytest.raises(BadInput, match=r"embed lies before the start"):
        llama.run(IDS, edits=edits.scale("embed", 0.0), start=start)
    run = llama.run(IDS, capture=["embed", "resid_pre.2", "pattern.2"], start=start)
    whole = llama.run(IDS, capture=["embed", "pattern.2"])
    for site in ("embed", "pattern.2"):
        torch.testing.assert_close(run[site], whole[site], **CLOSE)


def test_edits_around_a_late_start_act_from_there_on(llama):
    """Those before it are part of the given stream, or not: the caller's choice."""
    stream = llama.run(IDS, capture="resid_pre.2")["resid_pre.2"]
    early, late = edits.scale("attn_out.0", 0.3), edits.scale("mlp_out.2", 0.5)
    expected = llama.run(IDS, edits=late).logits
    with llama.editing(early, late):
        found = llama.run(IDS, start=("resid_pre.2", stream)).logits
        with_both = llama.run(IDS, capture="resid_pre.2")
        again = llama.run(IDS, start=("resid_pre.2", with_both["resid_pre.2"])).logits
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(again, with_both.logits, **CLOSE)


def test_an_edit_around_a_run_that_starts_at_it_is_refused(llama):
    """The stream of a run inside `editing` has the edit already; hooks act on it, as in TransformerLens."""
    doubled = edits.scale("resid_pre.2", 2.0)
    with llama.editing(doubled):
        stream = llama.run(IDS, capture="resid_pre.2")["resid_pre.2"]
        with pytest.raises(BadInput, match="may have it already"):
            llama.run(IDS, start=("resid_pre.2", stream))
    found = llama.run_with_hooks(
        stream / 2, fwd_hooks=[("blocks.2.hook_resid_pre", lambda x, hook: x * 2)], start_at_layer=2
    )
    torch.testing.assert_close(found, llama.run(IDS, edits=doubled).logits, **CLOSE)


@pytest.mark.parametrize("site", ["attn_out.0", "resid_pre.1", "resid_pre.2", "embed"])
def test_sets_are_patched_under_edits_of_earlier_layers(llama, site):
    from monosem.data import TokenPairs
    from monosem.patching import Cell, patch_sets

    pairs = TokenPairs.of(llama, [ROWS[1]], [[9, *ROWS[1][1:]]], [11], [12])
    half = edits.scale(site, 1.5)
    value = llama.run(pairs.clean, capture="mlp_out.2", edits=half)["mlp_out.2"]
    logits = llama.run(pairs.corrupted, edits=[half, edits.patch("mlp_out.2", value)]).logits[0, -1]
    with llama.editing(half):
        found = patch_sets(llama, pairs, [[Cell("mlp_out", 2)]], quiet=True)
    assert float(found.values["logit_diff"]) == pytest.approx(float(logits[11] - logits[12]), abs=1e-4)


@pytest.mark.parametrize("site", ["resid_pre.1", "resid_pre.2"])
def test_one_activation_is_patched_under_edits(llama, site):
    from monosem.patching.transformerlens import get_act_patch_attn_out

    around = edits.scale(site, 1.5)
    clean, corrupted = IDS[:1], IDS[1:2]

    def metric(logits):
        return logits[0, -1, 11] - logits[0, -1, 12]

    with llama.editing(around):
        cache = llama.run_with_cache(clean)[1]
        found = get_act_patch_attn_out(llama, corrupted, cache, metric)
    for layer in range(3):
        at = ("attn_out", layer)
        write = edits.patch(at, cache[at][0, 3]).at(positions=3)
        truth = metric(llama.run(corrupted, edits=[around, write]).logits)
        torch.testing.assert_close(found[layer, 3], truth, **CLOSE)


# ---------------------------------------------------------------------- parts
def test_kept_heads_of_results_that_are_written(llama):
    whole = llama.run(IDS, capture="result.1", edits=edits.scale("result.1", 0.5))["result.1"]
    part = llama.run(IDS, capture="result.1", edits=edits.scale("result.1", 0.5), heads=[2, 0], positions=[1, -1])
    torch.testing.assert_close(part["result.1"], whole[:, [1, -1]][:, :, [2, 0]], rtol=0, atol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_patching_the_logits_of_the_last_token_takes_each_rows_own(llama, side):
    batch = TokenBatch.of(ROWS, 2, side)
    value = torch.randn(3, 11, 100, generator=torch.Generator().manual_seed(1))
    whole = llama.run(batch, edits=edits.patch("logits", value, tokens=batch)).logits
    found = llama.run(batch, edits=edits.patch("logits", value, tokens=batch), logits="last").logits
    torch.testing.assert_close(found, whole[torch.arange(3), batch.last], rtol=0, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_captured_logits_are_those_of_the_positions_asked_for(model, side):
    rows = [[5, 6, 7, 8, 9], [10, 11, 12]]
    batch, ends = model.tokens(rows, padding=side), torch.stack([model.run([row]).logits[0, -1] for row in rows])
    for positions in (0, -2, [0, -1], slice(0, 2)):
        with pytest.raises(BadInput, match="leave out logits='last'"):
            model.run(batch, capture=["logits", "resid_post.1"], logits="last", positions=positions)
    for positions in (None, "last", -1):
        run = model.run(batch, capture="logits", logits="last", positions=positions)
        torch.testing.assert_close(run.last("logits"), ends, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(run["logits"][:, -1], ends, rtol=1e-4, atol=1e-4)
    early = model.run(batch, capture="logits", positions=-2)["logits"][:, 0]
    torch.testing.assert_close(
        early, torch.stack([model.run([row]).logits[0, -2] for row in rows]), rtol=1e-4, atol=1e-4
    )


def test_a_backward_hook_where_no_gradient_is_kept_is_refused(llama):
    with llama.hooks(bwd_hooks=[("blocks.1.hook_resid_post", lambda grad, hook: None)]):
        with pytest.raises(BadInput, match="grad=True"):
            llama.run(IDS)
        with pytest.raises(BadInput, match="grad=True"):
            llama.generate(ROWS)
        assert llama.run(IDS, grad=True).logits.requires_grad
    assert traces(llama) == []


# ---------------------------------------------------------------------- stop_at_layer
def test_edits_inside_a_run_that_stops_at_a_layer(model):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(2))
    early, late = edits.add(("mlp_out.0", vector), 2.0), edits.scale("z.2", 0.0)
    expected = model.run(IDS, capture="resid_pre.2", edits=early)["resid_pre.2"]
    plain = model.run(IDS, capture="resid_pre.2")["resid_pre.2"]
    calls = []
    handle = model.blocks[2].register_forward_hook(lambda *_: calls.append(1))
    try:
        with model.editing(early):
            torch.testing.assert_close(model(IDS, stop_at_layer=2), expected, **CLOSE)
        assert not calls  # layers from there on do not run
        hook = ("blocks.2.attn.hook_z", lambda z, hook: z * 0)
        torch.testing.assert_close(model.run_with_hooks(IDS, fwd_hooks=[hook], stop_at_layer=2), plain, **CLOSE)
        assert not calls
        with model.editing(late):  # an edit must fire: the pass goes as far as that, and no hook stays
            torch.testing.assert_close(model(IDS, stop_at_layer=2), plain, **CLOSE)
    finally:
        handle.remove()
    assert (expected - plain).abs().max() > 0.1
    assert traces(model) == []


class _Cached(torch.nn.Module):
    def forward(self, hidden_states, past: Cache | None = None, use_cache=True, cache_position=None): ...


class _Written(torch.nn.Module):
    def forward(self, hidden_states, memory: "transformers.Cache | None" = None, use_cache=True): ...


class _Bare(torch.nn.Module):
    def forward(self, hidden_states, use_cache=True, layer_past=None): ...


@pytest.mark.parametrize(
    ("module", "name"),
    [(_Cached(), "past"), (_Written(), "memory"), (_Bare(), "layer_past"), (torch.nn.Linear(1, 1), None)],
)
def test_the_cache_is_found_by_the_type_of_its_parameter(module, name):
    assert cache_name(module) == name


def test_every_family_names_its_cache_as_transformers_does(model):
    """A forward that takes the cache under the name that we found fills it."""
    for module in (model.hf, *model.blocks):
        assert cache_name(module) in ("past_key_values", "layer_past", "cache")
    past = transformers.DynamicCache(config=model.hf.config)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        model.hf(torch.tensor([[3, 4, 5]]), use_cache=True, **{cache_name(model.hf): past})
    assert past.get_seq_length() == 3


def test_generation_and_late_starts_warn_of_nothing(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate([[3, 4, 5]], max_new_tokens=2)
        run = model.run([[3, 4, 5]], "resid_pre.1")
        late = model.run([[3, 4, 5]], start=("resid_pre.1", run["resid_pre.1"]))
    torch.testing.assert_close(late.logits, run.logits)


# ---------------------------------------------------------------------- options of a run that are none
@pytest.mark.parametrize(
    "options",
    [
        {"capture": None},
        {"capture": torch.tensor(1)},
        {"logits": "first"},
        {"logits": None},
        {"start": 5},
        {"start": ("resid_pre.1",)},
        {"start": ("resid_pre.1", 5)},
        {"start": ("resid_pre.1", torch.full((1, 3, 32), torch.nan))},
        {"start": ("resid_pre.1", torch.zeros(1, 3, 32, device="meta"))},
        {"heads": [], "capture": "z.1"},
        {"memory": float("nan")},
        {"memory": []},
        {"memory": True},
    ],
    ids=repr,
)
def test_options_of_a_run_that_cannot_be_are_refused(options):
    with pytest.raises(MonosemError) as caught:
        model_of("llama").run([[5, 6, 7]], **options)
    assert "\n" not in str(caught.value)


def test_prompts_without_order_numbers_or_whole_characters_are_refused():
    model = model_of("llama")
    for bad in ({5, 6}, {"a"}, torch.tensor([[1, 2]], device="meta"), "a\ud800b"):
        with pytest.raises(BadInput):
            model.run(bad)
    with pytest.raises(BadInput, match="padding="):
        model.tokens([[5, 6]], padding="middle")
    with pytest.raises(BadInput, match="position -5 is not one of them"):
        model.run([[5, 6, 7]], capture="z.1", positions=-5)
