"""Unlearning-style selectivity: what sae-bench 0.6.0's own code gave (`golden/saebench_ravel_unlearning.json`), and
planted latents of one text."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from monosem import edits
from monosem.benchmarks.forgetting import (
    best_setting,
    saebench_score,
    saebench_turned_over,
    top_latents,
    turned_over,
)
from monosem.dictionaries import DictionaryTensors
from monosem.errors import BadInput, UnknownName
from monosem.models import TokenBatch
from tiny import tiny_model
from tiny_dictionaries import tiny_dictionary

task = importlib.import_module("monosem.benchmarks.selectivity")
HELD = json.loads((Path(__file__).parent / "golden" / "saebench_ravel_unlearning.json").read_text())


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


def test_top_latents_are_those_of_saebench_but_for_the_order_of_equal_ones():
    forget, retain = (np.array(HELD["top"][name]) for name in ("forget", "retain"))
    for most, expected in HELD["top"]["out"].items():
        theirs, ours = (top_latents(forget, retain, float(most), variant=name) for name in ("saebench", "monosem"))
        assert sorted(theirs) == sorted(ours) == sorted(expected)
        assert forget[theirs].tolist() == forget[ours].tolist() == forget[expected].tolist()
    assert top_latents(forget, retain, 0.01).tolist() == [0, 1, 2, 7, 5]  # equal ones by their number
    assert len(top_latents(forget, retain, 0.0)) == 0
    with pytest.raises(UnknownName):
        top_latents(forget, retain, 0.01, variant="sae")


def test_the_clamp_is_that_of_saebench():
    held = HELD["exchange"]
    W_enc, W_dec, b_enc, b_dec, resid = (
        torch.tensor(held[name]) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "resid")
    )
    sae = tiny_dictionary("relu", DictionaryTensors(W_enc, b_enc - b_dec @ W_enc, W_dec, b_dec))
    for case, expected in HELD["clamp"].items():
        latents, multiplier = case.rsplit(" ", 1)
        new = saebench_turned_over(sae, resid, json.loads(latents), float(multiplier))
        assert torch.allclose(new, resid if expected is None else torch.tensor(expected), atol=2e-5), case


def test_saebench_scores():
    for one in HELD["scores_unlearning"]:
        assert saebench_score(one["wmdp"], one["side"]) == pytest.approx(one["score"], abs=1e-9)


def test_the_best_setting():
    assert best_setting([0.1, 0.5, 0.5, 0.9], [1.0, 0.99, 1.0, 0.98], 0.99) == 1
    assert best_setting([0.0, -0.1], [1.0, 1.0], 0.99) is None
    assert best_setting([0.9], [0.5], 0.99) is None


def test_turning_over_is_a_clamp_where_a_latent_is_active(model):
    """The oracle is `edits.clamp`, one latent at a time, at the tokens where it is active."""
    sae = tiny_dictionary()
    x = model.run("the cat sat on the mat and slept", capture=[sae.site])[sae.site]
    codes = sae.encode(x)
    counted = torch.ones(x.shape[:2], dtype=torch.bool)
    counted[:, 2] = False
    latents = codes.indices[0, 1, :2].tolist()
    new = turned_over(sae, x, codes, latents, torch.tensor([3.0, 5.0]), counted)
    expected = x.clone()
    for latent, value in zip(latents, (-3.0, -5.0)):
        run = model.run(
            "the cat sat on the mat and slept",
            capture=[sae.site],
            edits=edits.clamp(sae, latent, value, everywhere=True),
        )
        there = (codes.of(latent)[..., 0] != 0) & counted
        expected += torch.where(there[..., None], run[sae.site] - x, 0.0)
    assert torch.allclose(new, expected, atol=1e-4)
    assert torch.equal(turned_over(sae, x, codes, [], torch.tensor([]), counted), x)


def planted(draw):
    """Windows of two texts: one has what latent 0 reads at every second token, both have what latent 1 reads."""
    made = {}
    for name in (task.FORGET, task.RETAIN):
        x = 0.1 * torch.randn(16, 10, 32, generator=draw)
        x[..., 1] += 2
        if name == task.FORGET:
            x[:, ::2, 0] += 4
        ones = torch.ones(16, 10, dtype=torch.bool)
        made[name] = task.Windows(torch.zeros(16, 10, dtype=torch.long), x, ones, ones[:, 1:])
    return made


@pytest.mark.parametrize("shared", [False, True])
def test_a_latent_of_one_text_is_turned_over_and_the_rest_stays(model, monkeypatch, shared):
    """The stand-in for the rest of the model is wrong where a direction was turned over, or the shared one is gone.
    A dictionary whose only latent fires on both texts forgets nothing."""
    windows = planted(torch.Generator().manual_seed(0))
    rows = torch.eye(32)[:2]
    if shared:
        rows = torch.tensor([[1.0, 1.0]] * 2) @ rows / 2**0.5
    sae = tiny_dictionary("relu", DictionaryTensors(rows.T, torch.tensor([-1.0, -1.0]), rows, torch.zeros(32)))

    def rerun(model, tokens, site, value):
        wrong = (value[..., 0] < -1) | (value[..., 1] < 1)
        return torch.nn.functional.one_hot(wrong.long(), 2).float()

    monkeypatch.setattr(task, "rerun", rerun)
    config = task.SelectivityConfig(multipliers=(0.0, 1.0))
    settings = task._candidates(sae, windows, config)
    found = {one.measure: one.interval for one in task._scores(model, "x", sae, windows, settings, config, True)}
    assert found["retained"].value == 1
    if shared:
        assert settings == []
        assert (found["forgotten"].value, found["latents"].value) == (0, 0)
    else:
        assert [one.latents for one in settings] == [[0], [0]]
        assert float(settings[1].values[0]) == pytest.approx(3, abs=0.1)  # 4 less the bias
        assert found["forgotten"].value == pytest.approx(5 / 9)  # tokens 0, 2, 4, 6 and 8 of nine with a next one
        assert found["multiplier"].value == 1
        assert found["forgotten"].low <= found["forgotten"].value <= found["forgotten"].high


def test_the_whole_task_on_a_tiny_model(model, monkeypatch):
    """Texts are taken to go on as the model says, so that it is right everywhere; with nothing turned over all stay."""

    def read(*args):
        held = task_read(*args)
        said = torch.cat([model.run(TokenBatch.whole(ids[None])).logits.argmax(-1) for ids in held.ids])
        ids = torch.cat([held.ids[:, :1], said[:, :-1]], 1)
        return task.Windows(ids, held.x, held.counted, held.counted[:, :-1])

    task_read = task.read
    monkeypatch.setattr(task, "read", read)
    config = task.SelectivityConfig(tokens=1200, context=32, latents=(1, 4), multipliers=(0.0, 4.0), most_retained=0.3)
    scores = task.selectivity(model, tiny_dictionary(), config, quiet=True)
    rows = scores.table.set_index(["arm", "measure"])["value"]
    assert rows["raw dimensions", "forgotten"] == 0
    assert rows["raw dimensions", "retained"] == 1
    assert 0 <= rows["dictionary", "forgotten"] <= 1
    assert any("raw dimensions: no latent" in note for note in scores.notes)


def test_right_tokens_are_those_that_the_model_says(model):
    config = task.SelectivityConfig(tokens=600, context=32)
    windows = task.read(model, tiny_dictionary(), "forget", task.texts("facts"), config, True)
    run = model.run(TokenBatch.whole(windows.ids[:2]))
    right = run.logits[:, :-1].argmax(-1) == windows.ids[:2, 1:]
    assert torch.equal(windows.right[:2], right & windows.counted[:2, :-1])
    assert not windows.counted[:, 0].any()  # the first of a window, by the default rule
    with pytest.raises(BadInput, match="predicts nothing rightly"):
        task.selectivity(model, tiny_dictionary(), config, quiet=True)


def test_texts_and_bad_input(model):
    assert set(task.texts("languages=french")) < set(task.texts("languages"))
    with pytest.raises(UnknownName, match="french"):
        task.texts("languages=frensh")
    with pytest.raises(BadInput, match="windows of 64 tokens"):
        task.read(model, tiny_dictionary(), "forget", ["short"] * 30, task.SelectivityConfig(), True)
    transcoder = tiny_dictionary("relu", site="mlp_in.1", site_out="mlp_out.1")
    with pytest.raises(BadInput, match="not a transcoder"):
        task.selectivity(model, transcoder, quiet=True)
