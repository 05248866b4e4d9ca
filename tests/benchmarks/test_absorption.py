"""The absorption task on words whose activations are planted: an absorber is found, and a dictionary without is not."""

import importlib

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from monosem.benchmarks import ALL, DICTIONARY
from monosem.benchmarks.absorption import AbsorptionConfig, Split, main_latents, probes_of, split_rows
from monosem.dictionaries import DictionaryTensors
from monosem.errors import BadFile, BadInput
from tiny import tiny_model
from tiny_dictionaries import tiny_dictionary

task = importlib.import_module("monosem.benchmarks.absorption")
LETTERS, WORDS, D = "abcdef", 40, 32


def planted(absorb):
    """Words with a direction of their letter, some with one of their own; the dictionary reads the letters' directions
    and, of `absorb`, those words' own (which then silence the letter)."""
    draw = torch.Generator().manual_seed(0)
    letters = [letter for letter in LETTERS for _ in range(WORDS)]
    number = torch.tensor([LETTERS.index(one) for one in letters])
    special = torch.arange(len(letters)) % 3 == 0
    x = torch.zeros(len(letters), D)
    x[torch.arange(len(letters)), number] = 4.0
    x[special, 8 + number[special]] = 4.0  # every third word has what its own latent reads
    x += 0.05 * torch.randn(x.shape, generator=draw)
    eye = torch.eye(D)
    rows = torch.cat([eye[:6], (eye[:6] + eye[8:14]) / 2**0.5]) if absorb else torch.cat([eye[:6], eye[8:14]])
    W_enc = rows.T.clone()
    if absorb:
        W_enc[8:14, :6] = -4 * eye[:6, :6]
    tensors = DictionaryTensors(W_enc, torch.full((12,), -1.0), rows, torch.zeros(D))
    if absorb:
        tensors.W_enc[:, 6:] *= 2
        tensors.b_enc[6:] = -6.5
    return x, letters, tiny_dictionary("relu", tensors)


def spelled(x, letters):
    """The model knows the letters of three words in four."""
    knows = torch.arange(len(letters)) % 4 != 0
    return task.Spelled([f"{letter}word" for letter in letters], x, knows)


@pytest.mark.parametrize("absorb", [True, False])
def test_a_planted_absorber_is_found(absorb):
    x, letters, sae = planted(absorb)
    split, config = split_rows(letters, 0), AbsorptionConfig(most_latents=1)
    probes = probes_of(x, letters, split)
    assert all(one.f1 > 0.95 for one in probes)
    scores = task._scores(DICTIONARY, sae, spelled(x, letters), split, probes, config)
    found = {(one.data, one.measure): one.interval for one in scores}
    expected = 1 / 3 if absorb else 0  # every third word
    for measure in ("fraction", "full"):
        assert found[ALL, measure].value == pytest.approx(expected, abs=0.15), measure
        assert found[ALL, measure].low <= found[ALL, measure].value <= found[ALL, measure].high
    assert found[ALL, "latents"].value == 1
    assert 0.3 < found[ALL, "main_share"].value < 1.1
    assert found[ALL, "rebuilt_share"].value > found[ALL, "main_share"].value - 1e-6
    judged = len(task.judged_rows(probes[0], spelled(x, letters), split))
    assert found["a", "full"].high > 3.8 / (judged + 3.9)  # Wilson's: never certain


def test_the_task_compares_the_dictionary_with_its_baselines(monkeypatch):
    x, letters, sae = planted(True)
    monkeypatch.setattr(task, "spell", lambda *_: spelled(x, letters))
    scores = task.absorption(tiny_model("llama", name="tiny"), sae, AbsorptionConfig(most_latents=1), quiet=True)
    assert scores.headline[DICTIONARY].value == pytest.approx(1 / 3, abs=0.15)
    assert set(scores.headline) == {DICTIONARY, "random dictionary", "raw dimensions"}
    assert "180 of 240 words" in scores.notes[0]
    assert scores.config["letters"] == list(LETTERS)
    theirs = scores.table[scores.table["measure"].str.endswith("(sae-bench)")]
    assert set(theirs["measure"]) == {"fraction (sae-bench)", "full (sae-bench)"}


@pytest.mark.parametrize(("share", "sentence"), [(0.3, "hardly spells"), (0.0, "cannot spell")])
def test_the_report_says_that_a_model_does_not_spell(monkeypatch, share, sentence):
    x, letters, sae = planted(True)
    few = spelled(x, letters)
    few = few._replace(knows=torch.arange(len(letters)) % 10 < 10 * share)
    monkeypatch.setattr(task, "spell", lambda *_: few)
    scores = task.absorption(tiny_model("llama", name="tiny"), sae, AbsorptionConfig(most_latents=1), quiet=True)
    assert any(sentence in note for note in scores.notes)
    assert np.isnan(scores.headline[DICTIONARY].value) == (share == 0)
    assert set(scores.headline) == {DICTIONARY, "random dictionary", "raw dimensions"}


def test_letters_that_no_probe_finds_are_told(monkeypatch):
    x, letters, sae = planted(True)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(task, "spell", lambda *_: spelled(noise, letters))
    scores = task.absorption(tiny_model("llama", name="tiny"), sae, AbsorptionConfig(least_f1=0.9), quiet=True)
    assert "No probe finds a first letter" in scores.notes[-1]
    assert np.isnan(scores.headline[DICTIONARY].value)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_threshold_is_the_best_of_all(seed):
    """F1 of scikit-learn at every threshold is the oracle; equal scores are on one side."""
    rng = np.random.default_rng(seed)
    y = rng.random(60) < 0.15
    scores = (rng.normal(size=60) + y).round(1)
    threshold, reached = task.best_threshold(torch.tensor(scores), torch.tensor(y))
    assert reached == pytest.approx(f1_score(y, scores > threshold))
    assert reached == pytest.approx(max(f1_score(y, scores >= at) for at in scores))
    lower = [at for at in np.unique(scores) if f1_score(y, scores >= at) >= reached - 1e-12]
    assert threshold < lower[0]


def test_each_word_is_asked_for_once_and_read_where_it_stands(monkeypatch):
    """What is read at a word, and what the model says of it, are those of the prompt cut after that word's question."""
    model, words = tiny_model("llama", name="tiny"), ["cat", "dog", "mat", "sat", "ran", "sea", "tree"]
    config, sae = AbsorptionConfig(examples=1, questions=2, batch_size=2), tiny_dictionary()
    monkeypatch.setattr(task, "QUESTION", " on")  # the tiny model's context is short
    prompts = task.prompts_of(model, words, config)
    assert sorted(number for prompt in prompts for number in prompt.words) == list(range(len(words)))
    monkeypatch.setattr(task, "drawn_words", lambda *_: words)
    found = task.spell(model, sae, config, quiet=True)
    assert found.words == words
    after = model.bare(task.QUESTION)
    for prompt in prompts:
        for number, place in zip(prompt.words, prompt.at):
            word = model.bare(f" {words[number]}")
            assert prompt.ids[place : place + len(word)] == word
            cut = prompt.ids[: place + len(word) + len(after)]
            assert cut[-len(after) :] == after
            run = model.run([cut], capture=[sae.site], logits="last")
            torch.testing.assert_close(found.x[number], run[sae.site][0, place], atol=1e-5, rtol=1e-4)
            said = model.text([int(run.logits.flatten(0, -2)[0].argmax())]).strip().lower()
            assert bool(found.knows[number]) == (said == words[number][0])
            assert place >= len(model.prefix) + 1 + len(after)  # an example before


def test_a_transcoder_is_refused():
    transcoder = tiny_dictionary("relu", site="mlp_in.1", site_out="mlp_out.1")
    with pytest.raises(BadInput, match="not a transcoder"):
        task.absorption(tiny_model("llama", name="tiny"), transcoder, quiet=True)


def test_main_latents_are_those_that_separate_in_units_of_their_spread():
    """A latent ten times as loud that says nothing is not taken, and one more is only taken where F1 jumps."""
    draw = torch.Generator().manual_seed(1)
    y = torch.arange(200) % 4 == 0
    half = torch.rand(200, generator=draw) < 0.5
    acts = torch.stack([y & half, y & ~half, torch.rand(200, generator=draw) * 40 + y * 2], 1).float()
    rows = torch.arange(200)
    split = Split(rows[:100], rows[100:150], rows[150:])
    assert sorted(main_latents(acts, y, split, AbsorptionConfig())) == [0, 1]
    assert main_latents(acts, y, split, AbsorptionConfig(jump=1.0)) in ([0], [1])


def test_the_split_keeps_letters_and_rows_apart():
    letters = list("aaaaaaaabbbbbbbbbbbb")
    split = split_rows(letters, 0)
    assert sorted(torch.cat(split).tolist()) == list(range(20))
    assert [letters[i] for i in split.test.tolist()].count("a") == 2
    assert torch.equal(split_rows(letters, 0).test, split.test)


def test_nothing_is_chosen_on_test_words():
    """Letters, penalty and main latents stay the same whatever the test rows are."""
    x, letters, sae = planted(True)
    split = split_rows(letters, 0)
    other = x.clone()
    other[split.test] = other[split.test].flip(0)
    first, second = probes_of(x, letters, split), probes_of(other, letters, split)
    assert all(torch.equal(one.direction, two.direction) and one.f1 == two.f1 for one, two in zip(first, second))
    is_a, config = torch.tensor([one == "a" for one in letters]), AbsorptionConfig()
    one, two = (main_latents(sae.encode(rows).dense(), is_a, split, config) for rows in (x, other))
    assert one == two


class Speller:
    """A stand-in that has one token a word."""

    name = "speller"

    @staticmethod
    def bare(text):
        return [1] if len(text) < 8 else [1, 2]


def test_words_are_drawn_alike_and_are_one_token(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join([a + b + c + "x" for a in "abc" for b in "abcdefg" for c in "abcdef"] + ["Abc", "zz"]))
    config = AbsorptionConfig(words=str(path), words_per_letter=30)
    words = task.drawn_words(Speller, config)
    assert words == task.drawn_words(Speller, config)
    assert {letter: [w[0] for w in words].count(letter) for letter in "abcz"} == {"a": 30, "b": 30, "c": 30, "z": 0}
    assert task.drawn_words(Speller, AbsorptionConfig(words=str(path), words_per_letter=30, seed=1)) != words


def test_bad_input(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("one two three")
    with pytest.raises(BadInput, match="only 3 of 3 words"):
        task.drawn_words(Speller, AbsorptionConfig(words=str(path)))
    with pytest.raises(BadFile, match="list of words"):
        task.listed_words(str(tmp_path / "none.txt"))
    assert len(task.listed_words()) > 10_000
