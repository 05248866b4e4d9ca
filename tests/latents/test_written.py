"""The table of all latents against each number computed alone."""

import numpy as np
import pytest
import scipy.stats
import torch

from monosem import latents
from monosem.errors import Mismatch
from monosem.latents import token_sets
from monosem.latents.token_sets import LargeSets, large_sets
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

MODEL, SAE = tiny_model("llama"), tiny_dictionary(tensors=random_tensors(width=300), model_name="llama")


def test_every_row_is_what_each_analysis_says_alone():
    heard = []
    table = latents.written(MODEL, SAE, tokens=4, tell=heard.append).table
    assert table["latent"].tolist() == list(range(300))
    assert heard[-1] == "300 of 300 latents"
    assert len(heard) == 2
    (effects,) = latents.logit_effects(MODEL, SAE, torch.tensor([270]))
    row, values = table.iloc[270], effects[0].double().numpy()
    order = np.argsort(-values)
    assert row["promotes"] == [MODEL.str_token(int(i)) for i in order[:4]]
    assert row["suppresses"] == [MODEL.str_token(int(i)) for i in order[::-1][:4]]
    assert row["sd"] == pytest.approx(values.std(), rel=1e-4)
    assert row["skew"] == pytest.approx(scipy.stats.skew(values), abs=1e-4)
    assert row["kurtosis"] == pytest.approx(scipy.stats.kurtosis(values, fisher=False), rel=1e-4)
    alone = latents.written(MODEL, SAE, [270], tokens=4).table.iloc[0]
    assert alone["promotes"] == row["promotes"]


def test_a_set_is_tested_as_mann_and_whitney_do():
    members = torch.zeros(2, 200, dtype=torch.float64)
    members[0, :30] = 1
    members[1, 50:60] = 1
    sets = LargeSets(("first", "second"), members)
    draw = torch.Generator().manual_seed(0)
    effects = torch.randn(3, 200, generator=draw)
    effects[1, 50:60] -= 2
    effect, p = sets.effects(effects)
    for i in range(3):
        for j in range(2):
            inside = members[j].bool()
            oracle = scipy.stats.mannwhitneyu(
                effects[i, inside], effects[i, ~inside], use_continuity=False, method="asymptotic"
            )
            auc = oracle.statistic / (inside.sum() * (~inside).sum()).item()
            assert float(effect[i, j]) == pytest.approx(2 * auc - 1, abs=1e-6)
            assert float(p[i, j]) == pytest.approx(oracle.pvalue, rel=1e-4)
    name, strongest, q, unusual = sets.strongest(effect, p)[1]
    assert name == "second"
    assert strongest < -0.5
    assert q < 0.001
    assert np.isnan(unusual)


def test_a_set_that_all_latents_raise_is_nobody_s_strongest():
    members = torch.zeros(2, 200, dtype=torch.float64)
    members[0, :10] = 1
    members[1, 50:80] = 1
    effects = torch.randn(60, 200, generator=torch.Generator().manual_seed(1))
    effects[:30, :10] += 3  # a small set that half of the latents raise, and half lower
    effects[30:, :10] -= 3
    effects[7, 50:80] += 1.5
    sets = LargeSets(("common", "rare"), members)
    effect, p = sets.effects(effects)
    name, value, q, unusual = sets.strongest(effect, p)[7]
    assert abs(float(effect[7, 0])) > value  # by the effect alone it would be the common one
    assert (name, value) == ("rare", pytest.approx(float(effect[7, 1])))
    column = effect[:, 1].numpy()
    assert unusual == pytest.approx((column[7] - column.mean()) / column.std(ddof=1))
    assert q < 1e-6


def test_a_model_with_sets_names_the_strongest(monkeypatch):
    monkeypatch.setattr(token_sets, "SMALLEST", 1)  # the tiny tokenizer has no set of five tokens
    assert large_sets(MODEL).names
    table = latents.written(MODEL, SAE, [5, 6]).table
    for row in table.itertuples():
        first = latents.set_effects(MODEL, SAE, [row.latent]).table.iloc[0]
        assert (row.set, row.effect, row.q) == (first["set"], pytest.approx(first["effect"]), pytest.approx(first["q"]))


def test_a_dictionary_of_another_model_is_said():
    with pytest.raises(Mismatch):
        latents.written(MODEL, tiny_dictionary(tensors=random_tensors(d=16), model_name="llama"))
