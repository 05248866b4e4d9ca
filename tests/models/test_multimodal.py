"""Multimodal models are read at their language model, and run as a whole on text: their own logits are the oracle."""

import pytest
import torch

from monosem import edits
from monosem.data import TokenPairs
from monosem.errors import BadInput
from monosem.models import Model, load_model, verify
from monosem.patching import sweep
from tiny import tiny_tokenizer
from tiny_multimodal import MULTIMODAL, tiny_multimodal

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=MULTIMODAL)
def model(request: pytest.FixtureRequest) -> Model:
    return load_model(tiny_multimodal(request.param), tokenizer=tiny_tokenizer(), quiet=True)


def native(model: Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def test_logits_sizes_and_greedy_tokens_are_those_of_the_whole_model(model: Model) -> None:
    text = model.hf.config.text_config
    sizes = (model.cfg.n_layers, model.cfg.d_model, model.cfg.n_heads, model.cfg.d_vocab, model.cfg.n_ctx)
    assert sizes == (text.num_hidden_layers, text.hidden_size, text.num_attention_heads, 100, 64)
    run = model.run(IDS, capture=["resid_post.2", "pattern.1", "z.0"])
    torch.testing.assert_close(run.logits, native(model, IDS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.unembed(run["resid_post.2"]), run.logits, rtol=1e-5, atol=1e-5)
    ids = IDS
    for _ in range(4):
        ids = torch.cat([ids, native(model, ids)[:, -1:].argmax(-1)], 1)
    assert model.generate(IDS, max_new_tokens=4, stop_at_eos=False).new == ids[:, 9:].tolist()


def test_the_identities_hold(model: Model) -> None:
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()


def test_padding_edits_and_the_parts_left_alone(model: Model) -> None:
    short = IDS[:1, :5]
    padded = model.run([IDS[1].tolist(), short[0].tolist()], logits="last").logits
    torch.testing.assert_close(padded[1], native(model, short)[0, -1], rtol=1e-5, atol=1e-5)  # type: ignore[index]
    off = model.run(IDS, edits=edits.scale("attn_out.1", 0.0)).logits
    block = model.blocks[1].self_attn.o_proj
    before = block.weight.clone()
    block.weight.data.zero_()
    try:
        torch.testing.assert_close(off, native(model, IDS), rtol=1e-5, atol=1e-5)
    finally:
        block.weight.data.copy_(before)


def test_the_attention_function_is_restored_where_it_was(model: Model) -> None:
    before = [getattr(m.config, "_attn_implementation", None) for m in model.hf.modules() if hasattr(m, "config")]
    model.run(IDS, capture="pattern.0")
    after = [getattr(m.config, "_attn_implementation", None) for m in model.hf.modules() if hasattr(m, "config")]
    assert before == after


def test_sweeps_equal_whole_runs() -> None:
    model = load_model(tiny_multimodal("gemma3"), quiet=True)
    pairs = TokenPairs.of(model, [[7, 21, 33, 40, 52]], [[7, 21, 34, 40, 55]], [11], [12])
    slow, fast = (sweep(model, pairs, "resid_pre", method=way, quiet=True) for way in ("naive", "growing"))
    torch.testing.assert_close(fast.mean(), slow.mean(), rtol=1e-4, atol=1e-4)


def test_a_picture_that_was_seen_before_does_not_move_the_positions() -> None:
    """Qwen-VL keeps the shift of the last picture, for the tokens after it."""
    hf = tiny_multimodal("qwen2_vl")
    model = load_model(hf, quiet=True)
    expected = model.generate(IDS, max_new_tokens=3, stop_at_eos=False)
    hf.model.rope_deltas = torch.tensor([[-7], [-7]])
    found = model.generate(IDS, max_new_tokens=3, stop_at_eos=False, capture="resid_post.2")
    assert found.new == expected.new
    again = model.run(found.ids, capture="resid_post.2")["resid_post.2"]
    torch.testing.assert_close(found.run["resid_post.2"], again, rtol=1e-4, atol=1e-4)


def test_what_reads_a_prompt_in_both_directions_is_run_and_continues_nothing() -> None:
    model = load_model(tiny_multimodal("paligemma"), quiet=True)
    torch.testing.assert_close(model.run(IDS).logits, native(model, IDS), rtol=1e-5, atol=1e-5)
    with pytest.raises(BadInput, match="attends in both directions"):
        model.generate(IDS, max_new_tokens=1)
