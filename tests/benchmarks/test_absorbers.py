"""Planted words: every third is absorbed by a latent of its letter's own, which the table names."""

import importlib

import pytest
from test_absorption import LETTERS, planted, spelled

from monosem.benchmarks import AbsorptionConfig, absorbers, absorption
from monosem.errors import BadInput
from tiny import tiny_model
from tiny_dictionaries import tiny_dictionary

module = importlib.import_module("monosem.benchmarks.absorbers")
task = importlib.import_module("monosem.benchmarks.absorption")
CONFIG = AbsorptionConfig(most_latents=1)


@pytest.fixture
def words(monkeypatch):
    def use(absorb):
        x, letters, sae = planted(absorb)
        for place in (module, task):
            monkeypatch.setattr(place, "spell", lambda *rest, **more: spelled(x, letters))
        sae.model_name = "llama"
        return tiny_model("llama"), sae

    return use


def test_the_latents_that_absorb_are_named(words):
    model, sae = words(True)
    found = absorbers(model, sae, CONFIG, quiet=True)
    assert found.letters["letter"].tolist() == list(LETTERS)
    assert [main for (main,) in found.letters["main"]] == list(range(6))
    full = found.table[found.table["full"]]
    assert 0.15 < len(full) / len(found.table) < 0.5  # every third word
    for row in full.itertuples():
        assert row.latents == [6 + LETTERS.index(row.letter)]
        assert row.shares == [pytest.approx(row.taken)]
        assert row.taken >= 0.4
        assert row.main <= 0
    rest = found.table[found.table["fraction"] == 0]
    assert all(one == [] for one in rest["latents"])
    table = found.latents
    assert set(table["latent"]) == {6 + LETTERS.index(letter) for letter in full["letter"]}
    assert sum(map(len, table["words"])) == len(full)


def test_its_means_are_those_of_the_benchmark(words):
    model, sae = words(True)
    found = absorbers(model, sae, CONFIG, quiet=True)
    scores = absorption(model, sae, CONFIG, quiet=True).table
    own = scores[scores["arm"] == scores["arm"].iloc[0]].set_index(["data", "measure"])
    for row in found.letters.itertuples():
        assert own.loc[(row.letter, "fraction"), "value"] == pytest.approx(row.fraction)
        assert own.loc[(row.letter, "full"), "value"] == pytest.approx(row.full)


def test_a_dictionary_without_absorbers_has_none(words):
    model, sae = words(False)
    found = absorbers(model, sae, CONFIG, quiet=True)
    assert found.table["full"].sum() == 0
    assert len(found.latents) == 0 or found.latents["share"].max() < 1


def test_a_transcoder_is_refused(words):
    model, _ = words(True)
    with pytest.raises(BadInput, match="transcoder"):
        absorbers(model, tiny_dictionary("relu", site="mlp_input.0", site_out="mlp_out.0", model_name="llama"))
