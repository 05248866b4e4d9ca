"""TransformerLens's arguments: what they mean here, or why they are refused."""

import pytest
import torch

from monosem.errors import BadInput, UnknownName
from monosem.models import Model
from monosem.models.transformerlens.absent import ABSENT_FROM_CACHES, ABSENT_FROM_MODELS
from tiny import FAMILIES

IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(5))
ROWS = [[5, 9, 17], [7, 8, 20, 33, 4, 11]]


@pytest.fixture(scope="module")
def llama(tiny_model) -> Model:
    return tiny_model("llama")


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_from_a_layer_on_is_the_rest_of_the_whole_run(tiny_model, family):
    model = tiny_model(family)
    logits, whole = model.run_with_cache(IDS)
    for layer in (1, -1):
        stream = whole["resid_pre", layer]
        close(model(stream, start_at_layer=layer), logits)
        out, cache = model.run_with_cache(stream, start_at_layer=layer)
        close(out, logits)
        close(cache["resid_post", 2], whole["resid_post", 2])
        assert ("resid_pre", 0) not in cache
        assert "embed" not in cache
    close(model(whole["resid_pre", 1][0], start_at_layer=1), logits[:1])
    close(model(whole["resid_pre", 1], start_at_layer=1, stop_at_layer=2), whole["resid_pre", 2])


def test_a_run_from_a_layer_on_with_tokens_and_hooks(llama):
    _, whole = llama.run_with_cache(ROWS)
    stream, loss = whole["resid_pre", 1], llama(ROWS, return_type="loss")
    close(llama(stream, return_type="loss", start_at_layer=1, tokens=ROWS), loss)
    late = [("blocks.2.hook_mlp_out", lambda x, hook: torch.zeros_like(x))]
    expected = llama.run_with_hooks(ROWS, late, return_type="loss")
    close(llama.run_with_hooks(stream, late, return_type="loss", start_at_layer=1, tokens=ROWS), expected)
    for wrong, options in [
        (stream, {"start_at_layer": 1, "return_type": "loss"}),  # no tokens to predict
        (ROWS, {"start_at_layer": 1}),
        (stream[..., :5], {"start_at_layer": 1}),
        (stream, {"start_at_layer": 2, "stop_at_layer": 1}),
        (ROWS, {"tokens": ROWS}),
    ]:
        with pytest.raises(BadInput):
            llama(wrong, **options)
    with pytest.raises(UnknownName, match="3 layers"):
        llama(stream, start_at_layer=3)


def test_drawing_is_asked_for_as_in_transformerlens(llama):
    greedy = llama.generate("the cat", max_new_tokens=6, stop_at_eos=False)
    assert (
        llama.generate("the cat", max_new_tokens=6, stop_at_eos=False, do_sample=False, temperature=0.7).new
        == greedy.new
    )
    drawn = llama.generate("the cat", max_new_tokens=6, stop_at_eos=False, do_sample=True, seed=3)
    assert drawn.new == llama.generate("the cat", max_new_tokens=6, stop_at_eos=False, temperature=1.0, seed=3).new
    assert drawn.new != greedy.new
    with pytest.raises(BadInput, match="draws nothing"):
        llama.generate("the cat", do_sample=True, temperature=0.0)


@pytest.mark.parametrize(
    ("call", "fits", "refused"),
    [
        ("generate", {"verbose": False, "use_past_kv_cache": True, "freq_penalty": 0.0}, {"freq_penalty": 1.0}),
        ("generate", {"eos_token_id": None}, {"return_type": "str"}),
        ("run_with_cache", {"return_cache_object": True, "incl_bwd": False, "device": None}, {"incl_bwd": True}),
        ("run_with_cache", {"clear_contexts": True}, {"return_cache_object": False}),
        ("run_with_hooks", {"reset_hooks_end": True}, {"reset_hooks_end": False}),
        ("__call__", {"padding_side": None}, {"attention_mask": IDS}),
        ("to_tokens", {"move_to_device": True, "truncate": False}, {"padding_side": "left"}),
        ("to_str_tokens", {"padding_side": None}, {"padding_side": "left"}),
    ],
)
def test_arguments_of_transformerlens_are_followed_or_refused(llama, call, fits, refused):
    function = getattr(llama, call)
    function("the cat sat", **fits)
    (name,) = refused
    with pytest.raises(BadInput, match=f"TransformerLens's {name}="):
        function("the cat sat", **refused)
    with pytest.raises(TypeError):
        function("the cat sat", no_such_argument=1)


def test_absent_names_say_what_to_use(llama):
    cache = llama.run_with_cache(IDS)[1]
    for owner, reasons in ((llama, ABSENT_FROM_MODELS), (cache, ABSENT_FROM_CACHES)):
        for name in reasons:
            assert not hasattr(owner, name)
            with pytest.raises(UnknownName, match=f"TransformerLens's {name} is not here: "):
                getattr(owner, name)
        with pytest.raises(AttributeError):
            _ = owner.no_such_name


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_circuits_and_labels(tiny_model, family):
    model = tiny_model(family)
    assert model.all_head_labels == [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    for layer, head in ((0, 1), (2, 3)):
        close(model.OV[layer, head].AB, model.W_V[layer, head] @ model.W_O[layer, head])
        close(model.QK[layer, head].AB, model.W_Q[layer, head] @ model.W_K[layer, head].T)
    assert model.OV.shape == model.QK.shape == (3, 4, 32, 32)
    if family == "gpt2":
        assert model.W_E_pos.shape == (164, 32)
        torch.testing.assert_close(model.W_E_pos[100 + 7], model.hf.transformer.wpe.weight[7])
    else:
        with pytest.raises(UnknownName, match="learned positions"):
            _ = model.W_E_pos


def test_a_cache_moves(llama):
    logits, cache = llama.run_with_cache(IDS)
    assert cache.to("cpu") is cache
    torch.testing.assert_close(cache.logits, logits)
