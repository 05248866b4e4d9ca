"""Disentanglement: what sae-bench 0.6.0's own code gave (`golden/saebench_ravel_unlearning.json`), and a planted
attribute subspace: a dictionary that has it exchanges one attribute alone, and one that mixes cannot."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from monosem.benchmarks.facts import Fact, Knowledge, Known, known_facts
from monosem.dictionaries import DictionaryTensors
from monosem.errors import BadFile, BadInput, UnknownName
from tiny import tiny_model
from tiny_dictionaries import tiny_dictionary

task = importlib.import_module("monosem.benchmarks.disentanglement")
HELD = json.loads((Path(__file__).parent / "golden" / "saebench_ravel_unlearning.json").read_text())


def test_saebench_counts_a_pair_of_equal_labels_as_isolation():
    held = {name: torch.tensor(HELD["scores"][name]) for name in ("logits", "source", "base")}
    found = task.saebench_scores(held["logits"].argmax(-1), held["source"], held["base"])
    assert list(found) == pytest.approx(HELD["scores"]["out"], abs=1e-6)
    assert task.saebench_scores(torch.tensor([1]), torch.tensor([1]), torch.tensor([1])) == (0.0, 1.0, 0, 1)


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_exchange_is_that_of_saebench(error, training):
    held = HELD["exchange"]
    W_enc, W_dec, b_enc, b_dec, logits = (
        torch.tensor(held[name]) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "mask")
    )
    tensors = DictionaryTensors(W_enc, b_enc - b_dec @ W_enc, W_dec, b_dec)  # it subtracts b_dec before encoding
    sae = tiny_dictionary("relu", tensors)
    resid, at = torch.tensor(held["resid"]), torch.tensor(held["positions"])
    mask = torch.sigmoid(logits / held["temperature"]) if training else (logits > 0).float()
    new = task.exchanged(sae, resid[torch.arange(3), at], torch.tensor(held["source"]), mask, error=error)
    expected = torch.tensor(held["out"][f"training={training} error={error}"])
    assert torch.allclose(new, expected[torch.arange(3), at], atol=1e-6)


def test_nothing_exchanged_is_nothing_changed():
    sae, x = tiny_dictionary(), torch.randn(4, 32)
    assert torch.allclose(task.exchanged(sae, x, torch.randn(4, 32), torch.zeros(24)), x, atol=1e-5)
    whole = task.exchanged(sae, x, 2 * x, torch.ones(24), error=False)
    assert torch.allclose(whole, sae(2 * x), atol=1e-5)


COUNTRIES, LANGUAGES, D = 5, 5, 32


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


def planted_facts():
    """Entities with a country in dimensions 0-4 and a language in 8-12; answers are tokens 10.. and 20.."""
    draw = np.random.default_rng(0)
    facts, answers = [], {}
    for number in range(40):
        country, language = int(draw.integers(COUNTRIES)), int(draw.integers(LANGUAGES))
        state = torch.zeros(2, D)
        state[1, country] = state[1, 8 + language] = 3.0
        for attribute, answer in (("Country", 10 + country), ("Language", 20 + language)):
            key = (f"e{number}", attribute, f"{attribute} of %s")
            answers[key] = answer
            facts.append(Fact(*key, [1, 2], 1, answer, state))
    counts = {"Country": 40, "Language": 40}
    return Known(facts, answers, counts, counts)


def reads_off(pairs, value):
    """Stands in for the rest of the model: says the attribute that the base asks for, as the state has it."""
    logits = torch.full((len(pairs), 40), -9.0)
    for row, pair in enumerate(pairs):
        first, token = (0, 10) if pair.base.attribute == "Country" else (8, 20)
        logits[row, token : token + 5] = 0
        logits = logits.index_put(
            (torch.tensor([row] * 5), torch.arange(token, token + 5)), value[row, first : first + 5]
        )
    return logits


@pytest.mark.parametrize("mixed", [False, True])
def test_a_planted_attribute_is_exchanged_alone(model, monkeypatch, mixed):
    """Latents that are single dimensions can be told apart; latents that each add a country and a language cannot."""
    rows = torch.zeros(10, D)
    for i in range(5):
        rows[i, i] = rows[5 + i, 8 + i] = 1.0
        if mixed:
            rows[i, 8 + i] = 1.0
            rows[5 + i, i] = -1.0
    W_dec = rows / rows.norm(dim=1, keepdim=True)
    sae = tiny_dictionary("abstopk", DictionaryTensors(W_dec.T, torch.zeros(10), W_dec, torch.zeros(D)), k=10)

    def said(model, dictionary, pairs, mask, *, error, grad=False):
        x = torch.stack([pair.base.state[1] for pair in pairs])
        source = torch.stack([pair.source.state[1] for pair in pairs])
        return reads_off(pairs, task.exchanged(dictionary, x, source, mask, error=error))

    monkeypatch.setattr(task, "said", said)
    config = task.DisentanglementConfig(attributes=("Country", "Language"), pairs=48, test_pairs=40, epochs=4)
    usable = {name: task.drawn_pairs(planted_facts(), name, config) for name in config.attributes}
    scores = {(one.data, one.measure): one.interval for one in task._scores(model, "x", sae, usable, config, True)}
    if mixed:
        assert scores["all", "disentangle"].value < 0.85
    else:
        assert scores["all", "cause"].value == scores["all", "isolation"].value == 1
        assert scores["Country", "share of latents"].value == 0.5
        assert scores["Country", "cause"].low == pytest.approx(1 - 3.84 / (40 + 3.84), abs=0.01)  # Wilson


def test_pairs_differ_and_test_entities_are_new():
    config = task.DisentanglementConfig(attributes=("Country", "Language"), pairs=30, test_pairs=30)
    train, test = task.drawn_pairs(planted_facts(), "Country", config)
    assert len(train.cause) == len(test.isolation) == 30
    names = [{one.entity for part in both for pair in part for one in pair[:2]} for both in (train, test)]
    assert not names[0] & names[1]
    for pair in train.cause:
        assert pair.base.attribute == pair.source.attribute == "Country"
        assert pair.target == pair.source.answer != pair.base.answer
    for pair in train.isolation:
        assert (pair.base.attribute, pair.source.attribute) == ("Language", "Country")
        assert pair.target == pair.base.answer
        assert pair.base.state[1, 8:13].tolist() != pair.source.state[1, 8:13].tolist()


def test_the_rest_of_the_model_says_what_the_whole_model_says(model):
    """With a mask of zeros the logits are the model's own; gradients reach the mask; other sites take the long way."""
    texts = ["Paris is in", "the city of Rome lies in the country of"]
    for site in ("resid_post.1", "resid_pre.1", "resid_post.0"):
        sae = tiny_dictionary(site=site)
        run = model.run(texts, capture=[site], logits="last")
        facts = [
            Fact("e", "a", "f", ids, 1, 0, run[site][row, : len(ids)]) for row, ids in enumerate(run.tokens.rows())
        ]
        pairs = [task.Pair(facts[0], facts[1], 5), task.Pair(facts[1], facts[0], 7)]
        same = task.said(model, sae, pairs, torch.zeros(24), error=True)
        assert torch.allclose(same, run.logits.flatten(0, -2), atol=1e-4), site
        mask = torch.full((24,), 0.5, requires_grad=True)
        (gradient,) = torch.autograd.grad(
            task.said(model, sae, pairs, mask, error=False, grad=True).square().sum(), mask
        )
        assert gradient.abs().sum() > 0


def test_only_what_the_model_knows_is_kept(model):
    """The oracle is the model's own next token, prompt by prompt."""
    knowledge = Knowledge({"Paris": {"a": "France, Spain"}, "Rome": {"a": "Italy"}}, {"a": ["%s is in", "so %s :"]})
    known = known_facts(model, model.site("resid_post.1"), knowledge, entities=2, forms=2, batch_size=3, quiet=True)
    assert known.tried["a"] == len(known.answers) > 0
    said = {key: int(model.run(key[2] % key[0]).logits[0, -1].argmax()) for key in known.answers}
    assert known.known["a"] == sum(said[key] == answer for key, answer in known.answers.items()) == len(known.facts)
    for (name, _, form), answer in known.answers.items():
        text = form % name
        value = " France" if name == "Paris" else " Italy"
        assert model.encoded(text + value)[len(model.encoded(text))] == answer


def test_knowledge_of_files(tmp_path):
    bundled = Knowledge.read(None, "city", ["Country", "Language"])
    assert bundled.values["Paris"] == {"Country": "France", "Language": "French"}
    assert all("%s" in text for texts in bundled.prompts.values() for text in texts)
    with pytest.raises(UnknownName, match="Country"):
        Knowledge.read(None, "city", ["Countri"])
    (tmp_path / "ravel_city_entity_attributes.json").write_text('{"Paris": {"Country": "France"}}')
    (tmp_path / "ravel_city_attribute_to_prompts.json").write_text('{"Country": ["%s is in"], "Language": ["%s"]}')
    assert Knowledge.read(str(tmp_path), "city", ["Country"]).prompts == {"Country": ["%s is in"]}
    with pytest.raises(BadFile, match="not RAVEL's"):
        Knowledge.read(str(tmp_path), "city", ["Country", "Language"])
    with pytest.raises(BadFile):
        Knowledge.read(str(tmp_path), "verb", ["Country"])


def test_a_model_that_knows_nothing_is_told_so(model):
    config = task.DisentanglementConfig(entities=10, prompts=1)
    with pytest.raises(BadInput, match="knows too little"):
        task.disentanglement(model, tiny_dictionary(), config, quiet=True)
    transcoder = tiny_dictionary("relu", site="mlp_in.1", site_out="mlp_out.1")
    with pytest.raises(BadInput, match="not a transcoder"):
        task.disentanglement(model, transcoder, config, quiet=True)
