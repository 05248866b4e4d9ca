"""Blocks before the first edit see each prompt once, however many arms there are, and nothing else changes."""

import pytest
import torch

from monosem import edits
from monosem.activations import median_norms
from monosem.models.running import prompt_rows
from monosem.steering import outcomes
from tiny import FAMILIES, tiny_model

PROMPTS = ["the cat sat on the mat and", "a dog", "she was very happy"]
ARMS, LAYER = 4, 2


def made(model):
    arms = [edits.scale(f"resid_pre.{LAYER}", 1 + 0.2 * number) for number in range(ARMS)]
    return outcomes(model, PROMPTS, arms, max_new_tokens=5, read=f"resid_post.{LAYER}", quiet=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_pass_sees_a_prompt_once(family, monkeypatch):
    model = tiny_model(family, dtype=torch.float64)
    median_norms(model, [model.site(f"resid_post.{LAYER}")])  # which continuations' means need, measured once
    assert not model.looks_ahead  # measured once, too
    inner: list[int] = []
    counted = [module for module in model.blocks[0].modules() if isinstance(module, torch.nn.Linear)][:1]
    handles = [module.register_forward_hook(lambda _, args, out: inner.append(out.numel())) for module in counted]
    shared = made(model)
    with_sharing = list(inner)
    inner.clear()
    monkeypatch.setattr(prompt_rows, "KEYS_AND_VALUES", ())
    apart = made(model)
    for handle in handles:
        handle.remove()
    assert not counted or with_sharing[0] * ARMS == inner[0]
    for one, other in zip(shared, apart):
        assert one.new == other.new
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-5)
        assert one.perplexities == pytest.approx(other.perplexities, rel=1e-5, nan_ok=True)


def test_blocks_have_their_own_forward_back():
    model = tiny_model("llama")
    made(model)
    assert not any("forward" in block.__dict__ for block in model.blocks)


def test_as_many_columns_as_rows_are_not_shared():
    model = tiny_model("llama")
    assert not model.looks_ahead  # measured once
    prompts = ["the cat sat on"] * 2  # the tiny tokenizer makes 4 tokens of them
    columns = model.tokens(prompts).ids.shape[1]
    arms = [edits.scale("resid_pre.2", 1.0 + number) for number in range(columns // 2)]
    rows = []
    handle = model.blocks[0].mlp.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    outcomes(model, prompts, arms, max_new_tokens=2, quiet=True)
    handle.remove()
    assert columns % 2 == 0
    assert rows[0] == columns
