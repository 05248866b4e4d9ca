"""Models with a memory instead of attention, or beside it: sites, identities, edits, generation, padding."""

import sys
from contextlib import suppress
from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import DynamicCache

from anymodel import tiny_any
from monosem import components, edits, lenses
from monosem.errors import BadInput, MonosemError, UnknownName
from monosem.models import Model, load_model, state_of, verify
from monosem.models.checking.verify import quick
from monosem.models.places import calls
from monosem.models.places.table import BY_TYPE, REFUSED
from monosem.models.running.cache import cache_name
from tiny_dictionaries import random_tensors, tiny_dictionary

# type -> the first layer of each kind of its mixers
TYPES = {
    "qwen3_next": {"linear_attention": 0},
    "qwen3_5_text": {"linear_attention": 0},
    "qwen3_5_moe_text": {"linear_attention": 0},
    "olmo_hybrid": {"linear_attention": 0, "attention": 3},
    "kimi_linear": {"linear_attention": 0},
    "bailing_hybrid": {"linear_attention": 0},
    "lfm2": {"convolution": 0, "attention": 2},
    "lfm2_moe": {"convolution": 0, "attention": 2},
    "lfm3": {"convolution": 0},
    "mamba": {"state_space": 0},
    "falcon_mamba": {"state_space": 0},
    "mamba2": {"state_space": 0},
    "nemotron_h": {"state_space": 0, "attention": 2},
    "jamba": {"state_space": 1, "attention": 0},
    "bamba": {"state_space": 0, "attention": 2},
    "granitemoehybrid": {"state_space": 0, "attention": 1},
    "falcon_h1": {"state_space": 0, "attention": 0},
    "zamba2": {"state_space": 0},
    "recurrent_gemma": {"recurrent": 0, "attention": 2},
    "xlstm": {"recurrent": 0},
    "minimax": {"lightning_attention": 0, "attention": 1},
    "rwkv": {"time_mixing": 0},
}
CHANGES = {
    # transformers clamps time steps to this from below, but not of single tokens with a cache
    "zamba2": {"time_step_min": 1e-12},
    "nemotron_h": {"time_step_min": 1e-12},
    # multipliers that are 1 by default
    "falcon_h1": {
        "embedding_multiplier": 1.7,
        "lm_head_multiplier": 0.6,
        "attention_in_multiplier": 0.8,
        "attention_out_multiplier": 1.3,
        "key_multiplier": 0.7,
        "ssm_in_multiplier": 0.9,
        "ssm_out_multiplier": 1.4,
        "ssm_multipliers": [0.7, 1.2, 0.9, 1.1, 1.3],
        "mlp_multipliers": [0.8, 1.5],
    },
}
PREFIX = {"linear_attention": "linear", "state_space": "ssm", "convolution": "conv", "recurrent": "recurrent"}
PREFIX |= {"lightning_attention": "linear", "time_mixing": "recurrent"}
SWAPS = {  # two values of a function that a wrong table might exchange
    "qwen3_5_text": [("q", "k"), ("beta", "decay")],
    "kimi_linear": [("q", "k"), ("q", "v")],
    "mamba": [("B", "C")],
    "mamba2": [("B", "C")],
    "lfm2": [("preconv", "conv")],
    "rwkv": [("k", "v")],
}
PROMPT = [list(range(3, 15)), list(range(40, 52))]


@cache
def model_of(kind: str) -> Model:
    return Model(tiny_any(kind, **CHANGES.get(kind, {})), name=kind)


def memory_of(kind: str) -> tuple[str, int]:
    """The prefix of the sites of the type's first mixer with a memory, and its layer."""
    return next((PREFIX[name], layer) for name, layer in TYPES[kind].items() if name in PREFIX)


@pytest.mark.parametrize("kind", TYPES)
def test_identities(kind):
    result = verify(model_of(kind))
    assert result.ok, result.table[~result.table.ok].to_string()
    prefix, _ = memory_of(kind)
    assert f"{prefix}_z" in set(result.table.site)


@pytest.mark.parametrize("rms", [True, False])
def test_falcon_with_and_without_its_norm(rms):
    model = Model(tiny_any("falcon_h1", mamba_rms_norm=rms, **CHANGES["falcon_h1"]))
    result = quick(model)
    assert result.ok, result.table[~result.table.ok].to_string()
    site = "mlp_post.1"  # what neurons write is multiplied after their projection
    run = model.run(PROMPT, capture=[site, "mlp_out.1"], logits=False)
    branch = model.branch("mlp", 1)
    torch.testing.assert_close(branch.parts(run[site]).sum(-2) + branch.bias(), run["mlp_out.1"], rtol=1e-4, atol=1e-5)


def test_a_mixer_that_is_given_more_than_the_stream():
    with pytest.raises(UnknownName, match="ssm_input.1"):
        model_of("zamba2").run(PROMPT, capture="ssm_input.1")


@pytest.mark.parametrize(("kind", "pair"), [(kind, pair) for kind, pairs in SWAPS.items() for pair in pairs])
def test_exchanged_values_fail(kind, pair, monkeypatch):
    for name, spots in calls.FUNCTIONS.items():
        if set(pair) <= spots.keys():
            changed = spots | {pair[0]: spots[pair[1]], pair[1]: spots[pair[0]]}
            monkeypatch.setitem(calls.FUNCTIONS, name, changed)
    with suppress(RuntimeError, MonosemError):  # shapes that do not fit
        assert not quick(model_of(kind)).ok


def test_a_wrong_gate_fails():
    row = BY_TYPE["olmo_hybrid"]
    linear, *others = row.branches
    mixer = replace(linear.mixers[0], parts=linear.mixers[0].parts | {"gate": "v_proj"})  # as wide as the gate
    wrong = replace(row, branches=(replace(linear, mixers=(mixer,)), *others))
    failed = quick(Model(tiny_any("olmo_hybrid"), family=wrong)).table.query("not ok")
    assert set(failed.site) == {"linear_gate"}


# ---------------------------------------------------------------------- what is captured, against transformers itself
ARGUMENTS = {  # type -> (function, its arguments by our sites, dimension of positions)
    "qwen3_5_text": ("torch_chunk_gated_delta_rule", {"linear_q": "query", "linear_v": "value", "linear_beta": "beta"}),
    "kimi_linear": ("chunk_kimi_delta_attention", {"linear_k": "key", "linear_decay": "g"}),
    "mamba2": ("mamba2_chunk_scan", {"ssm_x": "hidden_states", "ssm_B": "B", "ssm_C": "C", "ssm_dt": "dt"}),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_captured_arguments_are_the_native_ones(kind, monkeypatch):
    model, (function, names) = model_of(kind), ARGUMENTS[kind]
    _, layer = memory_of(kind)
    run = model.run(PROMPT, capture=[f"{site}.{layer}" for site in names], logits=False)
    file = sys.modules[type(model.hf).__module__]
    native, seen = getattr(file, function), []

    def record(*args, **kwargs):
        order = ["query", "key", "value"] if "delta" in function else ["hidden_states", "dt", "A", "B", "C"]
        seen.append(dict(zip(order, args)) | kwargs)
        return native(*args, **kwargs)

    monkeypatch.setattr(file, function, record)
    with torch.no_grad():
        model.hf(input_ids=torch.tensor(PROMPT), use_cache=False)
    for site, argument in names.items():
        torch.testing.assert_close(run[f"{site}.{layer}"].flatten(2), seen[0][argument].flatten(2), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["qwen3_next", "kimi_linear", "mamba2", "mamba"])
def test_an_edit_inside_is_what_the_function_is_given(kind, monkeypatch):
    model = model_of(kind)
    prefix, layer = memory_of(kind)
    site = f"{prefix}_v.{layer}" if prefix == "linear" else f"{prefix}_x.{layer}"
    edited = model.run(PROMPT, edits=edits.scale(site, 0.5)).logits
    file = sys.modules[type(model.hf).__module__]
    name = next(n for n in ("torch_chunk_gated_delta_rule", "chunk_kimi_delta_attention", "mamba2_chunk_scan",
                            "mamba_selective_scan") if hasattr(file, n))  # fmt: skip
    native, count = getattr(file, name), []

    def halved(*args, **kwargs):
        place = 2 if prefix == "linear" else 0
        if not count:  # the first layer
            args = (*args[:place], args[place] / 2, *args[place + 1 :])
        count.append(1)
        return native(*args, **kwargs)

    monkeypatch.setattr(file, name, halved)
    with torch.no_grad():
        expected = model.hf(input_ids=torch.tensor(PROMPT), use_cache=False).logits
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3_next", "mamba2", "mamba"])
def test_a_head_written_out_is_a_head_less(kind):
    model = model_of(kind)
    prefix, layer = memory_of(kind)
    by_result = model.run(PROMPT, edits=edits.scale(f"{prefix}_result.{layer}", 0.0).at(heads=1)).logits
    by_z = model.run(PROMPT, edits=edits.scale(f"{prefix}_z.{layer}", 0.0).at(heads=1)).logits
    torch.testing.assert_close(by_result, by_z, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(by_z, model.run(PROMPT).logits, atol=1e-2)


def test_native_functions_are_back_after_a_pass():
    model = model_of("qwen3_next")
    file = sys.modules[type(model.hf).__module__]
    before = {name: getattr(file, name) for name in calls.FUNCTIONS if hasattr(file, name)}
    model.run(PROMPT, capture="linear_q.0")
    with pytest.raises(ZeroDivisionError):
        model.run(PROMPT, edits=edits.function("linear_q.0", lambda x: 1 / 0))
    model.run(PROMPT, capture="linear_q.0", logits=False)
    assert before == {name: getattr(file, name) for name in before}
    assert not calls._SHOWN


def test_gradients_reach_values_inside_functions():
    model = model_of("olmo_hybrid")
    run = model.run(PROMPT, capture="linear_v.1", grad=True)
    (gradient,) = torch.autograd.grad(run.logits[:, -1, 7].sum(), run["linear_v.1"])
    change = 0.01 * gradient / gradient.norm()
    moved = [
        model.run(PROMPT, edits=edits.function("linear_v.1", lambda x, s=s: x + s * change)).logits for s in (1, -1)
    ]
    slope = (moved[0] - moved[1])[:, -1, 7].sum() / 2
    torch.testing.assert_close(slope, (gradient * change).sum(), rtol=2e-2, atol=1e-6)


# ---------------------------------------------------------------------- generation and padding
@pytest.mark.parametrize(("kind", "site"), [
    ("qwen3_next", "linear_conv"), ("qwen3_next", "linear_k"), ("kimi_linear", "linear_decay"), ("mamba2", "ssm_B"),
    ("mamba2", "ssm_dt"), ("mamba", "ssm_x"), ("mamba", "ssm_C"), ("lfm2", "conv_conv"), ("lfm2", "conv_x"),
    ("xlstm", "recurrent_z"), ("minimax", "linear_v"), ("rwkv", "recurrent_k"), ("rwkv", "recurrent_mixed"),
])  # fmt: skip
def test_edits_act_while_tokens_are_generated(kind, site):
    model = model_of(kind)
    _, layer = memory_of(kind)
    edit = edits.scale(f"{site}.{layer}", -0.7)
    generation = model.generate(PROMPT, edits=edit, max_new_tokens=5, stop_at_eos=False, capture=f"{site}.{layer}")
    whole = model.run(generation.ids, edits=edit, capture=f"{site}.{layer}")
    best = whole.logits[:, 11:-1].argmax(-1)
    assert best.tolist() == generation.new
    torch.testing.assert_close(generation[f"{site}.{layer}"], whole[f"{site}.{layer}"], rtol=1e-3, atol=1e-4)


def test_what_a_cache_keeps_is_not_written():
    with pytest.raises(BadInput, match="write conv_conv"):
        model_of("lfm2").run(PROMPT, edits=edits.scale("conv_preconv.0", 2.0))


def test_a_memory_that_would_begin_with_padding():
    model = model_of("xlstm")
    with pytest.raises(BadInput, match="padded on the left"):
        model.generate([[3, 4, 5], [6, 7]], max_new_tokens=2)
    alone = [model.generate([row], max_new_tokens=3).new[0] for row in PROMPT]
    assert model.generate(PROMPT, max_new_tokens=3).new == alone


# ---------------------------------------------------------------------- layers of several kinds
def test_layers_of_a_kind():
    model = model_of("jamba")
    assert model.layers(kind="attention") == [0, 2]
    assert model.layers([1, -1], kind="state_space") == [1, 3]
    with pytest.raises(UnknownName, match="layer 1 of jamba.*; it is in layers 0, 2"):
        model.run(PROMPT, capture="z.1")
    with pytest.raises(UnknownName, match="no layer of jamba"):
        model.layers(kind="convolution")
    with pytest.raises(UnknownName, match="did you mean"):
        model.layers(kind="atention")


@pytest.mark.parametrize("kind", ["qwen3_next", "kimi_linear", "mamba", "mamba2", "falcon_h1"])
def test_state_is_what_the_native_cache_keeps(kind):
    model = model_of(kind)
    _, layer = memory_of(kind)
    found = state_of(model, PROMPT, layer, [4, -1])
    for n, length in enumerate((5, len(PROMPT[0]))):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model.hf(input_ids=torch.tensor(PROMPT)[:, :length], **{str(cache_name(model.hf)): cache})
        expected = cache.layers[layer].recurrent_states[0]
        torch.testing.assert_close(found[:, n].flatten(1), expected.flatten(1), rtol=1e-4, atol=1e-5)


def test_state_of_an_edited_run_and_its_size():
    model = model_of("mamba2")
    halved = state_of(model, PROMPT, 0, edits=edits.scale("ssm_x.0", 0.5))
    torch.testing.assert_close(halved, state_of(model, PROMPT, 0) / 2)
    with pytest.raises(BadInput, match=r"takes 49.2 KB, over memory=1 KB"):
        state_of(model, PROMPT, 0, slice(None), memory="1KB")
    with pytest.raises(BadInput, match="layer 3 of olmo_hybrid keeps no state.*layers 0 to 2 do"):
        state_of(model_of("olmo_hybrid"), PROMPT, 3)


# ---------------------------------------------------------------------- what stands on top
@pytest.mark.parametrize(
    "kind", ["olmo_hybrid", "falcon_h1", "mamba2", "jamba", "lfm2", "recurrent_gemma", "nemotron_h"]
)
@pytest.mark.parametrize("by", ["layer", "head"])
def test_direct_attribution_adds_up(kind, by):
    model = model_of(kind)
    parts = components.direct_attribution(model, [PROMPT[0]], 11, by=by)
    raw = model.run([PROMPT[0]], capture="logits_raw")["logits_raw"][0, -1, 11] * model.logit_slope
    torch.testing.assert_close(parts.values[0, -1].sum(), raw, rtol=1e-4, atol=1e-4)


def test_lenses_read_every_layer():
    model = model_of("jamba")
    table = lenses.logit(model, [PROMPT[0]]).table
    assert sorted(set(table.layer)) == [0, 1, 2, 3]


def test_detectors_go_over_the_layers_that_attend():
    model = model_of("olmo_hybrid")
    scores = components.head_scores(model, n=5, rows=2)
    assert scores["induction"].isnan().any(1).tolist() == [True, True, True, False]
    assert set(scores.table.layer) == {3}
    ids = torch.tensor([PROMPT[0]])
    pattern = model.run(ids, capture="pattern.3")["pattern.3"][0]
    found = components.detect_head(model, ids, "previous_token_head")[3]
    torch.testing.assert_close(found, pattern.diagonal(-1, 1, 2).sum(-1) / pattern.sum((1, 2)))
    pairs = components.composition_scores(model_of("bamba"), "V").scores
    assert bool(pairs.isnan().all())  # one layer attends: nothing to compose with


def test_heads_of_attention_and_of_a_state_space_are_told_apart():
    model = model_of("falcon_h1")
    parts = components.direct_attribution(model, [PROMPT[0]], 11, by="head")
    names = [str(part) for part in parts.parts]
    assert len(set(names)) == len(names)
    assert {"L1H3", "L1 ssm head 7"} <= set(names)
    run = model.run([PROMPT[0]], capture=["ssm_out.1", "resid_post.3"])
    wanted = [i for i, part in enumerate(parts.parts) if part.layer == 1 and part.kind.startswith("ssm")]
    direction = model.W_U[:, 11].float() * model.final_norm.gain * model.logit_slope
    size = model.final_norm.scale(run["resid_post.3"])[0, -1]
    expected = (run["ssm_out.1"][0, -1] / size) @ direction
    torch.testing.assert_close(parts.values[0, -1, wanted].sum(), expected, rtol=1e-4, atol=1e-5)
    assert parts.heads().shape == (4, 4)
    parts.plot()
    stacked, labels = model.run_with_cache(torch.tensor([PROMPT[0]]))[1].get_full_resid_decomposition(
        return_labels=True
    )
    assert len(set(labels)) == len(labels)
    assert {"L1H3", "L1_ssm_H7"} <= set(labels)
    torch.testing.assert_close(stacked.sum(0), run["resid_post.3"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lfm2", "recurrent_gemma", "rwkv"])
@pytest.mark.parametrize("expand_neurons", [True, False])
def test_what_has_neither_heads_nor_neurons_is_a_part_of_the_stream(kind, expand_neurons):
    """Convolutions and recurrent units; RWKV's MLP, whose output is gated."""
    _, cache = model_of(kind).run_with_cache(torch.tensor([PROMPT[0]]))
    stacked = cache.get_full_resid_decomposition(expand_neurons=expand_neurons)
    torch.testing.assert_close(stacked.sum(0), cache["resid_post.3"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["zaya", "dory", "cpmant", "prophetnet", "xlnet"])
def test_what_is_not_read_says_why(kind):
    with pytest.raises(UnknownName, match=REFUSED[kind][:30]):
        load_model(tiny_any(kind))


@pytest.mark.parametrize(("kind", "site", "width"), [
    ("qwen3_next", "linear_z.0", 32), ("mamba2", "ssm_z.1", 64), ("lfm2", "conv_z.0", 32), ("jamba", "ssm_out.1", 32),
])  # fmt: skip
def test_a_dictionary_at_a_memory_is_spliced_in(kind, site, width):
    model = model_of(kind)
    dictionary = tiny_dictionary("topk", random_tensors(width), site=site, model_name=kind)
    x = model.run(PROMPT, capture=site)[site]
    expected = dictionary(x).view_as(x)
    spliced = model.run(PROMPT, capture=site, edits=edits.splice(dictionary))[site]
    torch.testing.assert_close(spliced[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-5)  # not the first token


@pytest.mark.parametrize(("kind", "site"), [("jamba", "ssm_conv.1"), ("lfm2", "conv_conv.1")])
def test_gradients_inside_mixers_do_not_depend_on_what_else_is_captured(kind, site):
    model, ids = load_model(tiny_any(kind), quiet=True), [[11, 42, 7, 93]]
    runs = [model.run(ids, capture=sites, grad=True) for sites in ([site], ["resid_pre.0", site])]
    alone, beside = (torch.autograd.grad(run.logits[0, -1, 7], run[site])[0] for run in runs)
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-5)


def test_norms_with_a_gate_have_no_scale():
    model = load_model(tiny_any("axk2"), quiet=True)
    with pytest.raises(UnknownName, match="a gate in its norm.* use ln1_output"):
        model.run([[11, 42, 7]], capture="ln1_normalized.1")
