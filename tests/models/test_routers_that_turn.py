"""Routers in bf16: rounding turns a choice, and `verify` compares the passes up to there and says so."""

import pytest
import torch

from anymodel import tiny_any
from monosem.models import Model, verify
from monosem.models.checking.checks import Checks
from monosem.models.checking.routers import Choices

IDS = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", [0, 2])
def test_what_rounding_turns_is_left_out_and_said(seed: int) -> None:
    model = Model(tiny_any("kimi_linear", seed=seed).to(torch.bfloat16))
    found = verify(model)
    assert found.ok, found.table.query("not ok").to_string()
    assert "rounding turned a router's choice" in found.note
    exact = verify(Model(tiny_any("kimi_linear", seed=seed)))
    assert exact.ok
    assert exact.note == ""


def test_tokens_before_the_first_other_expert_are_compared() -> None:
    model = Model(tiny_any("qwen3_moe").to(torch.bfloat16))
    choices = Choices(model)
    ids = torch.stack([IDS[0], IDS[0]])
    other = ids.clone()
    other[1, 5:] = IDS[1, 5:]
    one, two = (choices.of(lambda ids=ids: model.hf(input_ids=ids, use_cache=False).logits) for ids in (ids, other))
    kept = choices.alike(one, two)
    assert kept is not None
    assert kept[0].all()
    assert kept[1, :5].all()
    assert not kept[1, -1]
    assert (kept[1].int().diff() <= 0).all()  # and none after it
    assert choices.left_out == int((~kept).sum())
    assert choices.compared == 24


def test_a_wrong_number_before_it_is_still_found() -> None:
    model = Model(tiny_any("qwen3_moe").to(torch.bfloat16))
    c = Checks(model, model.tokens(IDS))
    wrong = c.choices.of(lambda: 1.5 * model.hf(input_ids=IDS, use_cache=False).logits)
    c.add("logits", "half too large", wrong, c.native)
    assert not c.rows[-1]["ok"]
