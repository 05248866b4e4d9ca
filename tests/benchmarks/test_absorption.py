"""The absorption task on words whose activations are planted: an absorber is found, and a dictionary without is not."""

import importlib

import numpy as np
import pytest
import torch

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


def test_a_model_that_cannot_spell_is_told_so(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(a + b + c for a in "abcde" for b in "abcdef" for c in "xyzu"))
    model, sae = tiny_model("llama", name="tiny"), tiny_dictionary()
    config = AbsorptionConfig(words=str(path), words_per_letter=8)
    with pytest.raises(BadInput, match=r"of \d+ words"):
        task.absorption(model, sae, config, quiet=True)
    transcoder = tiny_dictionary("relu", site="mlp_in.1", site_out="mlp_out.1")
    with pytest.raises(BadInput, match="not a transcoder"):
        task.absorption(model, transcoder, config, quiet=True)


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
    prompt = task._prompt(words[0], words, 3, np.random.default_rng(0))
    assert prompt.count("\n") == 3
    assert prompt.endswith(f" {words[0]} has the first letter:")
    assert f" {words[0]} has" not in prompt.rsplit("\n", 1)[0]


def test_bad_input(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("one two three")
    with pytest.raises(BadInput, match="only 3 of 3 words"):
        task.drawn_words(Speller, AbsorptionConfig(words=str(path)))
    with pytest.raises(BadFile, match="list of words"):
        task.listed_words(str(tmp_path / "none.txt"))
    assert len(task.listed_words()) > 10_000
