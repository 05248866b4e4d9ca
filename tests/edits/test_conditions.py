"""Conditions by row: the oracle runs every row alone, unpadded and without a cache, and decides with an `if`."""

import pytest
import torch

from monosem import edits
from monosem.directions import Direction
from monosem.errors import BadInput
from tiny import tiny_model

MODEL = tiny_model("llama")
DRAW = torch.Generator().manual_seed(3)
ROWS = [torch.randint(3, 100, (length,), generator=DRAW).tolist() for length in (3, 9, 5, 7, 4, 6)]
READ, SITE, STEPS = "resid_mid.0", "resid_post.1", 9
V, W = torch.randn(32, generator=DRAW), torch.randn(32, generator=DRAW)
UNIT = W / W.norm()
PLAIN = edits.add((SITE, V), 4.0)


def scores(row) -> torch.Tensor:
    return MODEL.run([row], capture=READ, logits=False)[READ][0] @ UNIT


def pooled(values: torch.Tensor, over: str) -> float:
    return float({"last": values[-1], "mean": values.mean(), "max": values.max()}[over])


def threshold(over: str) -> float:
    return float(torch.tensor([pooled(scores(row), over) for row in ROWS]).median()) + 1e-4


def by_hand(row: list[int], over: str, at: float, every: int | None) -> tuple[list[int], list[tuple[int, bool]]]:
    """Token after token in whole passes: what is written, and the decisions."""
    prompt, decisions, opened = len(row), [], []
    start = 0
    for step in range(STEPS):
        last = len(row) - 1
        if step == 0 or (every is not None and step % every == 0):
            decisions.append((last, pooled(scores(row)[start:], over) > at))
            start = len(row)
        opened = [decisions[0][1]] * prompt if step == 0 else [*opened, decisions[-1][1]]
        here = [position for position, one in enumerate(opened) if one]
        logits = MODEL.run([row], edits=[PLAIN.at(positions=here)] if here else []).logits
        row = [*row, int(logits[0, -1].argmax())]
    return row, decisions


@pytest.mark.parametrize("over", ["last", "mean", "max"])
@pytest.mark.parametrize("every", [None, 1, 3])
def test_a_row_in_a_batch_is_the_row_alone(over, every):
    at = threshold(over)
    gate = edits.condition((READ, W), above=at, over=over, every=every)
    made = MODEL.generate(ROWS, edits=PLAIN.when(gate), max_new_tokens=STEPS, stop_at_eos=False)
    log = list(gate.log)
    first = {one.row: one.open for one in log if one.token == len(ROWS[one.row]) - 1}
    assert len(set(first.values())) == 2  # some rows are edited, some are not
    for number, row in enumerate(ROWS):
        whole, decisions = by_hand(row, over, at, every)
        assert made.ids.rows()[number] == whole
        assert [(one.token, one.open) for one in log if one.row == number] == decisions
        alone = MODEL.generate([row], edits=PLAIN.when(gate), max_new_tokens=STEPS, stop_at_eos=False)
        assert alone.ids.rows()[0] == whole
    if every is not None:
        assert len({one.open for one in log if one.row == log[0].row}) + len({one.open for one in log}) > 2


def test_a_run_decides_at_each_rows_last_token():
    at = threshold("last")
    gate = edits.condition((READ, W), above=at)
    run = MODEL.run(ROWS, edits=PLAIN.when(gate))
    plain, edited = MODEL.run(ROWS).logits, MODEL.run(ROWS, edits=PLAIN).logits
    for number, row in enumerate(ROWS):
        wanted = edited if float(scores(row)[-1]) > at else plain
        torch.testing.assert_close(run.logits[number, : len(row)], wanted[number, : len(row)], rtol=1e-4, atol=1e-4)
    parts = MODEL.run(ROWS * 40, edits=PLAIN.when(gate), logits="last", memory="300KB")
    torch.testing.assert_close(parts.logits[:6], parts.logits[-6:], rtol=1e-4, atol=1e-4)
    assert len(gate.log) == 240
    assert sorted(one.row for one in gate.log) == list(range(240))


def test_what_a_score_may_be(tiny_dictionary):
    at = threshold("last")
    wanted = MODEL.run(ROWS, edits=PLAIN.when(edits.condition((READ, W), above=at))).logits

    class Probe:
        site = READ

        def __call__(self, x):
            return x @ UNIT - at

    class Direction:
        site, vector = edits.add((READ, W)).site, W * 7

    for gate in (
        edits.condition(Probe(), above=0.0),
        edits.condition((READ, Probe().__call__), above=0.0),
        edits.condition(Direction(), above=at),
        ~edits.condition((READ, W), below=at),
    ):
        torch.testing.assert_close(MODEL.run(ROWS, edits=PLAIN.when(gate)).logits, wanted)
    cosine = edits.condition((READ, W), above=0.05, measure="cosine")
    MODEL.run(ROWS, edits=PLAIN.when(cosine))
    for one in cosine.log:
        state = MODEL.run([ROWS[one.row]], capture=READ)[READ][0, -1]
        assert one.score == pytest.approx(float(torch.cosine_similarity(state, W, dim=0)), abs=1e-5)


@pytest.mark.parametrize("over", ["mean", "max"])
def test_tokens_that_a_direction_was_not_fitted_on_do_not_count(over):
    gate = edits.condition(Direction(W, MODEL.site(READ), "llama"), above=0.0, over=over, every=2)
    MODEL.generate([*ROWS, [7]], edits=PLAIN.when(gate), max_new_tokens=3, stop_at_eos=False)
    first = {one.row: one for one in gate.log[: len(ROWS) + 1]}
    for number, row in enumerate(ROWS):
        assert first[number].score == pytest.approx(pooled(scores(row)[1:], over), abs=1e-4)
    assert not first[len(ROWS)].open  # of a single token nothing counts


def test_conditions_at_the_edits_own_site_see_what_came():
    """Also where another edit has acted before, and for edits of latents and in a dictionary that is spliced in."""
    at = float(torch.tensor([MODEL.run([row], capture=SITE)[SITE][0, -1] @ UNIT for row in ROWS]).median()) + 1e-4
    gate = edits.condition((SITE, W), above=at)
    MODEL.run(ROWS, edits=[edits.add((SITE, W), 50.0), PLAIN.when(gate)])
    assert {one.open for one in gate.log} == {True, False}


def test_edits_of_latents_by_a_condition(tiny_dictionary):
    sae = tiny_dictionary("relu", site=SITE, model_name="llama")
    at = threshold("last")
    gate = edits.condition((READ, W), above=at)
    clamp = edits.clamp(sae, 5, 9.0, everywhere=True)
    plain, edited = MODEL.run(ROWS).logits, MODEL.run(ROWS, edits=clamp).logits
    for given in (clamp.when(gate), [clamp.when(gate), edits.scale_latent(sae, 7, 1.0)]):
        found = MODEL.run(ROWS, edits=given).logits
        for number, row in enumerate(ROWS):
            wanted = edited if float(scores(row)[-1]) > at else plain
            last = len(row) - 1
            torch.testing.assert_close(found[number, last], wanted[number, last], rtol=1e-3, atol=1e-3)
    spliced = edits.splice(sae, everywhere=True)
    both, found = MODEL.run(ROWS, edits=spliced).logits, MODEL.run(ROWS, edits=spliced.when(gate)).logits
    for number, row in enumerate(ROWS):
        wanted = both if float(scores(row)[-1]) > at else plain
        torch.testing.assert_close(found[number, len(row) - 1], wanted[number, len(row) - 1], rtol=1e-3, atol=1e-3)


def test_conditions_are_joined():
    first, second = edits.condition((READ, W), above=threshold("last")), edits.condition((READ, V), above=0.0)
    opened = {}
    for gate in (first, second, first | second, first & second):
        run = MODEL.run(ROWS, capture=SITE, edits=edits.patch(SITE, 0.0).when(gate))
        opened[gate] = [bool((run[SITE][row, 0] == 0).all()) for row in range(len(ROWS))]
    one, other, either, both = opened.values()
    assert either == [a or b for a, b in zip(one, other)]
    assert both == [a and b for a, b in zip(one, other)]
    assert len({*zip(one, other)}) > 2
    with pytest.raises(BadInput, match="joined with another condition"):
        first | (lambda x, moment: x)


def test_several_edits_share_a_condition_and_arms_do_not_mix():
    from monosem import steering

    at = threshold("last")
    gate = edits.condition((READ, W), above=at)
    together = [PLAIN.when(gate), edits.add(("resid_post.2", V), 2.0).when(gate)]
    MODEL.run(ROWS, edits=together)
    assert len(gate.log) == len(ROWS)  # decided once
    closed = PLAIN.when(edits.condition((READ, W), above=1e6))
    arms = steering.outcomes(MODEL, ROWS, [(), PLAIN.when(gate), closed, together], max_new_tokens=4, quiet=True)
    for arm, given in zip(arms, ([], PLAIN.when(gate), closed, together)):
        assert arm.new == MODEL.generate(ROWS, edits=given, max_new_tokens=4).new
    assert arms[0].new == arms[2].new != arms[1].new


def test_conditions_that_cannot_be():
    with pytest.raises(BadInput, match="one threshold"):
        edits.condition((READ, W))
    with pytest.raises(BadInput, match="one threshold"):
        edits.condition((READ, W), above=1.0, below=2.0)
    with pytest.raises(BadInput, match="not computed before"):
        MODEL.run(ROWS, edits=PLAIN.when(edits.condition(("resid_post.2", W), above=0.0)))
    with pytest.raises(BadInput, match="one activation a token"):
        edits.condition(("pattern.1", W), above=0.0)
    with pytest.raises(BadInput, match="one number a token"):
        MODEL.run(ROWS, edits=PLAIN.when(edits.condition((READ, lambda x: x), above=0.0)))
    with pytest.raises(BadInput, match="not finite"):
        MODEL.run(ROWS, edits=PLAIN.when(edits.condition((READ, lambda x: x[..., 0] / 0), above=0.0)))
    made = MODEL.generate(ROWS, max_new_tokens=2)
    with pytest.raises(BadInput, match="depends on where the prompt ends"):
        MODEL.run(made, edits=PLAIN.when(edits.condition((READ, W), above=0.0)))
