"""Comparisons with and without an edit, their statistics, and the choice of control latents."""

import math

import numpy as np
import pytest
import torch

from monosem import edits
from monosem.errors import BadInput
from monosem.steering import (
    compare,
    outcome,
    random_latents,
    summarise,
)
from monosem.steering.outcome import distinct
from tiny import tiny_model
from tiny_dictionaries import tiny_dictionary

PROMPTS = ["the cat sat on", "a dog", "she was very happy and"]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


@pytest.fixture(scope="module")
def sae():
    return tiny_dictionary()


def test_no_edit_changes_nothing(model):
    found = compare(model, PROMPTS, [], max_new_tokens=5)
    assert found.summary["changed"] == 0
    assert found.summary["kl"] == pytest.approx(0, abs=1e-6)
    assert all(row["baseline_text"] == row["edited_text"] for row in found.rows)
    assert found.summary["edited_perplexity"] == pytest.approx(found.summary["baseline_perplexity"])


def test_numbers_equal_a_hand_made_comparison(model, sae):
    edit = edits.clamp(sae, 5, 40.0)
    found = compare(model, PROMPTS, edit, max_new_tokens=6, batch_size=2)
    for row, prompt in zip(found.rows, PROMPTS):
        p = model.run(prompt).logits[0, -1].log_softmax(-1)
        q = model.run(prompt, edits=edit).logits[0, -1].log_softmax(-1)
        assert row["kl"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4, abs=1e-6)
        assert row["changed"] == bool(p.argmax() != q.argmax())
        assert row["edited_token"] == model.str_token(int(q.argmax()))
        assert row["edited_probability"] == pytest.approx(float(q.max().exp()), rel=1e-4)
        assert row["top_after"][0][0] == row["edited_token"]
        made = model.generate(prompt, edits=edit, max_new_tokens=6)
        assert row["edited_text"] == made.texts[0]
        whole = made.ids.ids[0]
        start = len(whole) - len(made.new[0])
        logits = model.run(whole[None]).logits[0].log_softmax(-1)  # the unedited model reads the edited text
        loss = -logits[range(start - 1, len(whole) - 1), whole[start:]].mean()
        assert row["edited_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_rows_with_their_own_latent_and_value_equal_single_runs(model, sae):
    latents, values = torch.tensor([1, 7, 13]), torch.tensor([30.0, -15.0, 8.0])

    def rowwise(rows):
        return [edits.clamp(sae, latents[list(rows)], values[list(rows)])]

    together = compare(model, PROMPTS, rowwise, max_new_tokens=4, batch_size=2)
    for i, prompt in enumerate(PROMPTS):
        alone = compare(model, [prompt], edits.clamp(sae, int(latents[i]), float(values[i])), max_new_tokens=4)
        assert together.rows[i]["kl"] == pytest.approx(alone.rows[0]["kl"], rel=1e-3, abs=1e-5)
        assert together.rows[i]["edited_text"] == alone.rows[0]["edited_text"]


def test_prompt_and_continuation_joined_are_the_whole_text(model):
    found = outcome(model, PROMPTS, max_new_tokens=3)
    for prompt, text, new in zip(PROMPTS, found.texts, found.new):
        ids = model.tokens(prompt).rows()[0] + new
        assert prompt + text == model.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_shared_baseline_gives_the_same_and_another_is_refused(model, sae):
    baseline = outcome(model, PROMPTS, max_new_tokens=3)
    edit = edits.clamp(sae, 2, 25.0)
    shared = compare(model, PROMPTS, edit, max_new_tokens=3, baseline=baseline)
    assert shared.rows == compare(model, PROMPTS, edit, max_new_tokens=3).rows
    with pytest.raises(BadInput, match="other prompts"):
        compare(model, PROMPTS[:2], edit, baseline=baseline)
    other = tiny_model("llama", name="other")
    for asked, options in ((model, {"max_new_tokens": 4}), (model, {"temperature": 1.0}), (other, {})):
        with pytest.raises(BadInput, match="the baseline was made with"):
            compare(asked, PROMPTS, edit, baseline=baseline, **({"max_new_tokens": 3} | options))


def test_without_continuations(model, sae):
    found = compare(model, PROMPTS, edits.clamp(sae, 2, 25.0), max_new_tokens=0)
    assert [row["edited_text"] for row in found.rows] == [""] * 3
    assert found.summary["kl"] > 0
    assert math.isnan(found.summary["edited_perplexity"])


@pytest.mark.parametrize("prompts", [[], ["a dog", ""]])
def test_empty_prompts(model, prompts):
    with pytest.raises(BadInput):
        compare(model, prompts, [])


def test_comparison_saves_and_shows(model, sae, tmp_path):
    found = compare(model, PROMPTS, edits.clamp(sae, 2, 25.0), max_new_tokens=2)
    found.save(tmp_path / "c.json")
    assert (tmp_path / "c.json").stat().st_size > 100
    assert len(found.table) == 3
    assert found.top_tokens(0)["before"]["probability"].is_monotonic_decreasing


def test_distinct_finds_loops():
    assert distinct([1, 2, 3, 4]) == 1
    assert distinct([1, 2] * 10) == pytest.approx(2 / 19)
    assert math.isnan(distinct([1]))


def test_random_latents_are_alike():
    activity = torch.logspace(-5, -1, 200)
    drawn = random_latents(activity, latent=100, n=10, exclude=[101, 102], seed=4)
    assert len(set(drawn)) == 10
    assert not {100, 101, 102} & set(drawn)
    assert all(abs(i - 100) <= 12 for i in drawn)  # the 20 nearest in logarithm
    assert drawn == random_latents(activity, latent=100, n=10, exclude=[101, 102], seed=4)
    assert drawn != random_latents(activity, latent=100, n=10, exclude=[101, 102], seed=5)


def test_random_latents_are_alike_in_every_measure():
    """Near in one measure and far in the other is farther than middling in both."""
    activity, maxima = torch.tensor([1.0, 1.0, 2.0, 2.0, 0.0, 1.0]), torch.tensor([5.0, 500.0, 5.0, 8.0, 5.0, 0.0])
    assert sorted(random_latents(torch.stack([activity, maxima]), latent=0, n=2, exclude=[1])) == [2, 3]
    silent = torch.tensor([0.0, 1.0, 2.0, 2.0, 0.0, 1.0])  # nothing to be alike in: the other measure decides
    assert sorted(random_latents(torch.stack([silent, maxima]), latent=0, n=2, exclude=[1, 5])) != [1, 5]


def test_random_latents_avoid_the_silent_and_widen_when_few_are_near():
    activity = torch.tensor([0.5, 0.0, 1e-4, 2e-4, 3e-4, 0.0])
    assert sorted(random_latents(activity, latent=0, n=3)) == [2, 3, 4]
    assert sorted(random_latents(activity, latent=0, n=3, exclude=[2])) in ([1, 3, 4], [3, 4, 5])
    with pytest.raises(BadInput, match="ask for fewer"):
        random_latents(activity, latent=0, n=6)


def test_summary_of_a_subset_is_that_of_the_subset(model, sae):
    edit = edits.clamp(sae, 5, 40.0)
    whole = compare(model, PROMPTS, edit, max_new_tokens=3)
    assert summarise(whole.rows[1:])["kl"] == pytest.approx(np.mean([row["kl"] for row in whole.rows[1:]]))
