"""The room's shape: baselines, the core task, scores that go into a file and come back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from monosem.benchmarks import (
    ALL,
    BENCHMARKS,
    DICTIONARY,
    RANDOM,
    RAW,
    WITHOUT,
    CoreConfig,
    Scores,
    arms,
    bundled_sets,
    core,
    fitted,
    labelled,
    mean_l0,
    random_dictionary,
    raw_dimensions,
)
from monosem.benchmarks.baselines import RIDGE
from monosem.benchmarks.core import texts_of
from monosem.data import as_store
from monosem.dictionaries import evaluate
from monosem.errors import BadFile
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

PROMPTS = [f"the cat sat on the mat number {i} and the dog ran" for i in range(6)]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_the_random_dictionary_has_the_shape_norms_and_l0_but_no_direction(model, kind):
    tensors = random_tensors(width=200)
    sae = tiny_dictionary(kind, replace(tensors, b_enc=tensors.b_enc - 10 * (kind == "relu")))
    l0 = mean_l0(model, sae, PROMPTS)
    other = random_dictionary(sae, l0, seed=1)
    assert (other.width, other.d_in, other.site) == (sae.width, sae.d_in, sae.site)
    for name, axis in (("W_dec", 1), ("W_enc", 0)):
        theirs, own = getattr(other, name), getattr(sae, name)
        assert torch.allclose(theirs.norm(dim=axis), own.norm(dim=axis), rtol=1e-5)
        assert torch.cosine_similarity(theirs, own, dim=axis).abs().mean() < 0.3
    assert mean_l0(model, other, PROMPTS) == pytest.approx(l0, abs=0.6)
    assert torch.equal(random_dictionary(sae, l0, seed=1).W_dec, other.W_dec)
    assert not torch.equal(random_dictionary(sae, l0, seed=2).W_dec, other.W_dec)


@pytest.mark.parametrize("site", ["resid_post.1", "z.1"])
def test_raw_dimensions_are_the_activation_itself(model, site):
    sae = tiny_dictionary(site=site)
    raw, x = raw_dimensions(sae), model.run(PROMPTS[0], capture=site)[site]
    assert torch.equal(raw.encode(x).dense(), x.flatten(2))
    assert torch.allclose(raw(x), x, atol=1e-6)


def test_a_transcoder_has_baselines_too(model):
    sae = tiny_dictionary("relu", site="mlp_in.1", site_out="mlp_out.1")
    made = arms(model, sae, PROMPTS, seed=0)
    assert list(made) == [DICTIONARY, RANDOM, RAW]
    x = model.run(PROMPTS[0], capture="mlp_in.1")["mlp_in.1"]
    assert made[RAW](x).abs().max() == 0
    assert made[RANDOM](x).isfinite().all()


def transcoder_with(skip: bool, **about):
    tensors = random_tensors(scales=(0.2, 0.1))
    if skip:
        tensors = replace(tensors, W_skip=0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(7)))
    return tiny_dictionary("relu", tensors, site="mlp_in.1", site_out="mlp_out.1", **about)


def counted_rows(model, transcoder, windows):
    """Input and output at the tokens that count: not the first, not special, no outlier."""
    run = model.run(windows, capture=["mlp_in.1", "mlp_out.1"])
    x, y = run["mlp_in.1"].double(), run["mlp_out.1"].double()
    keep = ~torch.isin(windows, torch.tensor(sorted(model.special_ids)))
    keep[:, 0] = False
    keep &= x.norm(dim=-1) <= next(iter(transcoder.skipper(model).thresholds.values()))
    return x[keep].numpy(), y[keep].numpy()


@pytest.mark.parametrize("skip", [True, False])
def test_a_transcoder_without_latents_and_the_best_linear_map_are_what_numpy_says(model, skip):
    transcoder = transcoder_with(skip, token_norm="layer_norm")  # which only its latents see
    windows = torch.randint(4, 100, (20, 24), generator=torch.Generator().manual_seed(1))
    x, y = counted_rows(model, transcoder, windows)
    made = fitted(model, transcoder, windows, batch_size=8)
    straight = x @ transcoder.W_skip.double().numpy().T if skip else np.zeros_like(y)
    fresh = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    constant = (y - straight).mean(0)
    alone = constant + (fresh.double() @ transcoder.W_skip.double().T).numpy() if skip else np.tile(constant, (5, 1))
    np.testing.assert_allclose(made[WITHOUT](fresh).numpy(), alone, atol=1e-5)
    assert made[WITHOUT].encode(fresh).l0().sum() == 0
    centred, out = x - x.mean(0), y - y.mean(0)
    penalty = RIDGE * (centred**2).sum(0).mean() * np.eye(32)
    W = np.linalg.solve(centred.T @ centred + penalty, centred.T @ out)
    np.testing.assert_allclose(
        made[RAW](fresh).numpy(), (fresh.double().numpy() - x.mean(0)) @ W + y.mean(0), rtol=1e-3, atol=1e-4
    )
    assert made[RAW].encode(fresh).dense().equal(fresh)


@pytest.mark.parametrize("skip", [True, False])
def test_core_measures_them_on_other_text_than_they_are_fitted_on(model, tmp_path, skip):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{word} {i}" for i in range(900) for word in ("the cat", "sat on", "a mat")))
    transcoder = transcoder_with(skip)
    config = CoreConfig(texts=(str(text),), tokens=1000, fit_tokens=1500, context=32, batch_size=4)
    scores = core(model, transcoder, config, quiet=True)
    store = as_store(model, [text.read_text()], 32)
    measured, after = store[:31], store[31:77]  # 1,000 and 1,500 tokens, in whole windows
    x, y = counted_rows(model, transcoder, measured)
    made = fitted(model, transcoder, after)
    held = scores.table.set_index(["arm", "measure"])["value"]
    for arm in (WITHOUT, RAW):
        rebuilt = made[arm](torch.tensor(x).float()).double().numpy()
        fve = 1 - ((y - rebuilt) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
        assert held[arm, "fve"] == pytest.approx(fve, abs=1e-4)
    assert held[RAW, "fve"] > held[WITHOUT, "fve"]  # of this model's MLP, which is nearly linear in places
    assert list(scores.headline) == [DICTIONARY, RANDOM, RAW, WITHOUT]
    assert "fitted on 1,472 tokens of the text after" in scores.notes[0]
    assert ("skip connection" in scores.notes[0]) == skip
    short = core(model, transcoder, CoreConfig(texts=(str(text),), tokens=100_000, context=32), quiet=True)
    assert list(short.headline) == [DICTIONARY, RANDOM]
    assert "No text is left" in short.notes[0]


def test_core_is_evaluate_with_baselines(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(PROMPTS * 60))
    sae = tiny_dictionary(tensors=random_tensors(scales=(0.2, 0.1)))
    config = CoreConfig(texts=(str(text),), tokens=2000, context=32, batch_size=4)
    scores = core(model, sae, config, quiet=True)
    assert set(scores.headline) == {DICTIONARY, RANDOM, RAW}
    assert scores.headline[RAW].value == pytest.approx(1)
    rows = scores.table.set_index(["arm", "measure"])
    assert rows.loc[(RAW, "ce_recovered"), "value"] == pytest.approx(1, abs=1e-4)
    alone = evaluate(model, sae, [text.read_text()], tokens=2000, context=32, batch_size=4, quiet=True)
    for name in ("fve", "l0", "ce_recovered", "kl", "mse"):
        row = rows.loc[(DICTIONARY, name)]
        assert row["value"] == pytest.approx(getattr(alone, name), rel=1e-6)
        assert row["low"] <= row["value"] <= row["high"]
    assert scores.plot().data


def test_the_first_texts_of_the_default_are_of_every_set(model):
    found = texts_of(model, CoreConfig(), quiet=True)
    names = bundled_sets()
    assert [one.id.split()[0] for one in found[: len(names)]] == names
    assert sum(len(one.text.splitlines()) for one in found[:6]) >= 60
    whole = {name: "\n".join(one.text for one in found if one.id.split()[0] == name) for name in names}
    assert whole == {name: "\n".join(labelled(name).texts) for name in names}


def test_intervals_of_evaluate_are_those_of_its_windows(model):
    """The oracle evaluates each window alone and draws these again, in numpy."""
    sae = tiny_dictionary(tensors=random_tensors(scales=(0.2, 0.1)))
    windows = torch.randint(4, 100, (24, 24), generator=torch.Generator().manual_seed(0))
    options = {"tokens": None, "batch_size": 4, "quiet": True}
    found = evaluate(model, sae, windows, **options)
    alone = [evaluate(model, sae, part, **options) for part in windows.split(1)]
    n = np.array([one.tokens for one in alone])
    drawn = np.random.default_rng(0).integers(0, len(n), (4000, len(n)))
    mse = np.array([one.mse for one in alone]) * n
    low, high = np.quantile(mse[drawn].sum(1) / n[drawn].sum(1), [0.025, 0.975])
    assert found.intervals["mse"].value == pytest.approx(found.mse)
    assert found.intervals["mse"][1:] == pytest.approx((low, high), rel=0.02)
    for name, interval in found.intervals.items():
        assert interval.value == pytest.approx(getattr(found, name)), name
    assert found.to_dict()["intervals"]["mse"] == list(found.intervals["mse"][1:])
    assert not np.isfinite(evaluate(model, sae, windows[:1], **options).intervals["fve"].low)


def test_scores_come_back_from_json(model, tmp_path):
    scores = core(model, tiny_dictionary(), CoreConfig(tokens=1500, context=32), quiet=True)
    again = Scores.from_dict(json.loads(json.dumps(scores.to_dict())))
    assert again.table.equals(scores.table)
    assert again.headline == scores.headline
    with pytest.raises(BadFile, match="not the scores"):
        Scores.from_dict({"rows": []})


def test_every_row_has_a_config_of_its_own_and_says_what_its_number_means():
    for name, task in BENCHMARKS.items():
        assert task.config().seed == 0, name
        assert len(task.meaning) > 40, name
        assert task.title, name
    assert ALL == "all"
