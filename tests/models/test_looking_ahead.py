"""Models whose attention goes in both directions: runs of whole texts, and nothing that goes on from a part of one."""

import pytest
import torch

from anymodel import tiny_any
from monosem.errors import BadInput, SiteDidNotFire, UnknownName
from monosem.models import Model, load_model, verify
from monosem.patching.paths.suffix_runs import Prefix
from tiny import model_of, tiny_hf, tiny_model

IDS = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(0))


def test_a_model_that_looks_ahead_is_run_and_verified_but_continues_nothing():
    model = tiny_model("gemma3_text", use_bidirectional_attention=True)
    native = model.hf(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(model.run(IDS).logits, native, rtol=1e-5, atol=1e-5)
    other = IDS.clone()
    other[:, -1] = 5
    assert (model.run(other).logits[:, 0] - native[:, 0]).abs().max() > 0.01
    assert verify(model).ok
    with pytest.raises(BadInput, match="attends in both directions, .* cannot continue a text"):
        model.generate(IDS, max_new_tokens=2)
    assert Prefix.of(model, model.tokens(IDS), 6).column == 0  # the prefix would be another one for another rest


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mixtral", "gpt_neo"])
def test_models_that_continue_texts_do_not_look_ahead(family):
    assert not model_of(family).looks_ahead
    assert not Model(tiny_hf(family).to(torch.bfloat16)).looks_ahead


def test_a_pass_that_misses_a_site_says_what_it_went_past():
    model = tiny_model("llama")
    attention = model.blocks[1].self_attn
    attention.forward = lambda hidden_states, **kwargs: (attention.o_proj(torch.zeros_like(hidden_states)), None)
    with pytest.raises(SiteDidNotFire, match=r"pattern\.1 .*LlamaAttention has no softmax attention of"):
        model.run(IDS, capture="pattern.1")
    with pytest.raises(SiteDidNotFire, match=r"q\.1 .*goes past its module Linear"):
        model.run(IDS, capture="q.1")


def test_several_streams_are_named_and_not_a_missing_norm():
    with pytest.raises(UnknownName, match="carries several streams in one long vector"):
        load_model(tiny_any("qwen4_exp_text"), quiet=True)


def test_llama_4_is_not_padded_on_the_left_where_its_scales_count_columns():
    model = load_model(tiny_any("llama4_text", floor_scale=8), quiet=True)
    rows = [list(range(3, 7)), list(range(3, 9))]
    alone = model.run([rows[0]], logits="last").logits
    padded = model.run(model.tokens(rows, padding="left"), logits="last").logits
    torch.testing.assert_close(padded[:1], alone, rtol=1e-4, atol=1e-4)  # fewer columns than `floor_scale`
    longer = [rows[0], list(range(3, 13))]
    right = model.run(model.tokens(longer), logits="last").logits
    torch.testing.assert_close(right[:1], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match="padded on the left"):
        model.run(model.tokens(longer, padding="left"))
