"""SCR and TPP: real ablation token by token as the oracle, planted attributes, and sae-bench 0.6.0's rules as its code
was measured to follow them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from monosem.benchmarks import ALL, DICTIONARY, RANDOM, RAW, ScrConfig, TppConfig, raw_dimensions, scr, tpp
from monosem.benchmarks.labelled import clipped
from monosem.benchmarks.probes import fitted
from monosem.benchmarks.removal import (
    chosen,
    effects,
    saebench_ablated_means,
    saebench_chosen,
    saebench_scr,
    saebench_tpp_effects,
    without,
)
from monosem.benchmarks.scr import MEASURES, Readings, Texts, _scores, apart, occupation_texts, probes_of, readings
from monosem.benchmarks.sparse_probing import Binary, mean_codes
from monosem.benchmarks.tpp import _selectivity
from monosem.errors import BadInput
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

SIDES, HOWS = ("biased", "ablated 1"), ("ablated 1", "mean 1", "sae-bench 1")
PROMPTS = ["the cat sat on the mat", "the dog ran", "a dog and the cat ran on and on and on"]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


def identity(d=6):
    tensors = random_tensors(d=d, width=d)
    return raw_dimensions(tiny_dictionary("relu", tensors))


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_texts_without_latents_are_texts_whose_tokens_lost_them(model, kind):
    """x' = decode(codes with zeros) + (x - decode(codes)) at every token that counts, then the mean."""
    sae = tiny_dictionary(kind)
    measured = {DICTIONARY: sae, RAW: raw_dimensions(sae)}
    prompts, latents = clipped(model, PROMPTS, 64), torch.tensor([0, 3, 7, 8, 11])
    held = mean_codes(model, measured, prompts, batch_size=2)
    found = without(held[RAW].double(), held[DICTIONARY], sae.W_dec.detach().double(), latents)
    for ids, row in zip(prompts, found):
        run = model.run([ids], capture=sae.site)
        x = run[sae.site][0][sae.skipper(model).counted(run.tokens, {str(sae.site): run[sae.site]})[0]]
        codes = sae.encode(x)
        hit = torch.isin(codes.indices, latents)
        less = codes._replace(values=torch.where(hit, 0, codes.values))
        assert torch.allclose(row.float(), (sae.decode(less) + x - sae.decode(codes)).mean(0), atol=1e-4)


def test_effects_count_decoder_norms_and_are_clamped_after_the_product():
    codes = torch.tensor([[1.0, 1, 0, 2], [1, 1, 0, 2], [0, 0, 1, 2], [0, 0, 1, 2]])
    y = torch.tensor([1, 1, 0, 0])
    rows, along = torch.tensor([[1.0, 0], [-3, 0], [-2, 0], [1, 1]]), torch.tensor([1.0, 5]).double()
    assert effects(codes, y, rows, along).tolist() == [1, 0, 2, 0]  # latent 2: less of what pushes back
    assert chosen(effects(codes, y, rows, along), 3).tolist() == [2, 0]
    theirs = saebench_tpp_effects(codes, y, rows, along)
    assert theirs.tolist() == [1, -3, 0, 0]
    assert effects(codes, y, 2 * rows, along).tolist() == [2, 0, 4, 0]


def test_sae_bench_fills_up_with_latents_without_effect():
    effect = torch.tensor([0.0, -2, 0, 5, 0, 1])
    found = saebench_chosen(effect, 3).tolist()
    assert found[:2] == [3, 5]
    assert effect[found[2]] == 0
    assert len(saebench_chosen(effect, 10)) == 3
    assert chosen(effect, 10).tolist() == [3, 5]


def test_sae_bench_edits_padding():
    tensors = random_tensors(d=6, width=5)
    tensors = replace(tensors, W_enc=tensors.W_enc * 0, b_enc=torch.tensor([2.0, 0, 0, 0, 0]))
    sae = tiny_dictionary("relu", tensors)
    x = torch.randn(1, 7, 6)
    x[0, 4:] = 0
    found = saebench_ablated_means(x, sae, torch.tensor([0]))
    assert torch.allclose(found[0], (x.sum(1)[0] - 7 * 2 * sae.W_dec[0]) / 4, atol=1e-5)  # 7 times, of 4 tokens


def test_sae_benchs_score():
    assert saebench_scr(0.9, 0.6, 0.75) == pytest.approx(0.5)
    assert saebench_scr(0.9, 0.6, 1.0) > 1
    assert saebench_scr(0.6, 0.9, 0.7) == 0
    assert saebench_scr(0.6, 0.5995, 0.9) == 0


def planted(entangled, offset=0.0):
    """Mean activations with profession at dimension 0 and gender, louder, at dimension 1; or both mixed in both."""
    draw = torch.Generator().manual_seed(0)
    profession, gender = torch.tensor([0, 0, 1, 1]).repeat(150), torch.tensor([0, 1]).repeat(300)
    x = torch.randn(600, 6, generator=draw) * 0.5
    x[:, 0] += 1.2 * profession
    x[:, 1] += 2.5 * (gender - 0.5) + offset
    if entangled:
        x = x @ torch.linalg.qr(torch.randn(6, 6, generator=draw)).Q
    part = torch.arange(600) // 4 % 3
    return x, Texts([""] * 600, {"profession": profession, "gender": gender}, part)


def both_ways(x, made, config):
    held, measured = {RAW: x, DICTIONARY: x}, {DICTIONARY: identity()}
    probes = {name: probes_of(x.double(), made, name) for name in ("profession", "gender")}
    return {name: readings(held, DICTIONARY, measured, made, one, config) for name, one in probes.items()}


def found_of(x, made):
    """(data, measure) -> interval, of one latent ablated."""
    config = ScrConfig(ns=(1,), draws=50)
    return {(one.data, one.measure): one.interval for one in _scores(DICTIONARY, 1, both_ways(x, made, config), config)}


@pytest.mark.parametrize(("entangled", "low", "high"), [(False, 0.65, 1.2), (True, -1.5, 0.7)])
def test_a_latent_of_its_own_brings_back_what_the_bias_cost(entangled, low, high):
    x, made = planted(entangled)
    right = both_ways(x, made, ScrConfig(ns=(1,), draws=50))["profession"]
    assert right.right("clean").mean() > right.right("biased").mean() + 0.1
    found = found_of(x, made)
    for measure in ("scr (accuracy)", "scr"):
        interval = found["profession", measure]
        assert low < interval.value < high, measure
        assert interval.low <= interval.value <= interval.high


def test_scr_is_what_the_probe_loses_of_the_unwanted_less_what_it_loses_of_the_wanted():
    """A slow formula from the classes' means; where every latent is one of both, nothing is selective."""
    x, made = planted(entangled=True)
    right = both_ways(x, made, ScrConfig(ns=(1,), draws=50))
    found = found_of(x, made)
    for name, one in right.items():
        left = []
        for label in (one.unwanted, one.wanted):
            gaps = [one.scores[how][label == 1].mean() - one.scores[how][label == 0].mean() for how in SIDES]
            left.append(gaps[1] / gaps[0])
        expected = dict(zip(MEASURES, (left[1] - left[0], 1 - left[0], 1 - left[1])))
        for measure, value in expected.items():
            assert found[name, measure].value == pytest.approx(value), measure
    assert found[ALL, "scr"].value == pytest.approx(np.mean([found[name, "scr"].value for name in right]))


def test_scr_has_no_floor():
    """Where one attribute is ten times as plain, half of it may go before a row changes sides: accuracy says 0."""
    wanted, unwanted = np.tile([0, 0, 1, 1], 30), np.tile([0, 1], 60)
    before, after = (a * (1 - 2 * unwanted) + (wanted - 0.5) for a in (10.0, 5.0))
    one = Readings({"clean": wanted - 0.5, "biased": before, **dict.fromkeys(HOWS, after)}, wanted, unwanted)
    scores = _scores(DICTIONARY, 1, {"profession": one, "gender": one}, ScrConfig(ns=(1,), draws=50))
    found = {(score.data, score.measure): score.interval.value for score in scores}
    assert found["gender", "scr (accuracy)"] == 0
    assert found["gender", "scr"] == pytest.approx(0.5)
    assert found[ALL, "unwanted removed"] == pytest.approx(0.5)
    assert found[ALL, "wanted removed"] == pytest.approx(0)
    unbiased = one._replace(scores=one.scores | {"biased": wanted - 0.5})
    scores = _scores(DICTIONARY, 1, {"profession": unbiased}, ScrConfig(ns=(1,), draws=50))
    assert all(np.isnan(score.interval.value) for score in scores if score.measure in MEASURES[:2])


def test_means_of_draws_are_those_of_the_rows_drawn():
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=8), np.tile([0, 1], 4)
    rows = rng.integers(0, 4, 4)
    drawn = np.concatenate([[2 * row, 2 * row + 1] for row in rows])
    times = np.bincount(rows, minlength=4).repeat(2)[None].astype(float)
    expected = score[drawn][label[drawn] == 1].mean() - score[drawn][label[drawn] == 0].mean()
    assert apart(score, label, times)[0] == pytest.approx(expected)


def test_a_latent_that_is_always_active_is_better_set_to_its_mean():
    """Ablated to 0 it shifts every score of the probe by the same amount, so that one class gets all texts; "scr" takes
    no notice."""
    found = found_of(*planted(False, offset=3.0))
    assert found["profession", "scr (accuracy, set to mean)"].value > 0.65
    assert found["profession", "scr (accuracy)"].value < 0.5
    assert found["profession", "scr"].value > 0.65


@pytest.mark.parametrize("entangled", [False, True])
def test_only_the_probe_of_the_class_suffers(entangled):
    draw = torch.Generator().manual_seed(0)
    label = torch.arange(600) % 3
    x = torch.randn(600, 6, generator=draw) * 0.3
    x[torch.arange(600), label] += 2
    if entangled:
        x = x @ torch.linalg.qr(torch.randn(6, 6, generator=draw)).Q
    tasks = []
    for one in range(3):
        own, other = (torch.where(label == one)[0], torch.where(label != one)[0][torch.randperm(400, generator=draw)])
        parts = [torch.cat([own[a:b], other[a:b]]) for a, b in ((0, 80), (80, 120), (120, 200))]
        tasks.append(Binary(str(one), *parts, (label == one).long()))
    held, measured, config = {RAW: x, DICTIONARY: x}, {DICTIONARY: identity()}, TppConfig(ns=(1,), draws=50)
    probes = [fitted(x[t.train], t.positive[t.train], x[t.validation], t.positive[t.validation]) for t in tasks]
    found = _selectivity(held, DICTIONARY, measured, tasks, probes, config)
    value, draws = found["tpp", 1]
    assert np.quantile(draws, 0.01) <= value <= np.quantile(draws, 0.99)
    if entangled:
        assert value < 0.25
    else:
        assert value > 0.3


def test_nothing_of_scr_is_chosen_on_test_rows():
    """With other labels on the test rows, probes, latents and so the scores of every row stay the same."""
    x, made = planted(True)
    test = made.part == 2
    other = {name: torch.where(test, 1 - label, label) for name, label in made.labels.items()}
    config = ScrConfig(ns=(1, 3), draws=50)
    first, second = both_ways(x, made, config), both_ways(x, made._replace(labels=other), config)
    for name, one in first.items():
        assert one.scores.keys() == second[name].scores.keys()
        for how, scores in one.scores.items():
            assert np.array_equal(scores, second[name].scores[how]), how
        assert not np.array_equal(one.wanted, second[name].wanted)


def test_nothing_of_tpp_is_chosen_on_test_rows():
    """With all labels of test rows turned over, what was right is wrong: each score is the negative of what it was."""
    draw, config = torch.Generator().manual_seed(0), TppConfig(ns=(1, 2), draws=20)
    label = torch.arange(300) % 3
    x = torch.randn(300, 6, generator=draw)
    x[torch.arange(300), label] += 2.5
    values = []
    for turned in (False, True):
        tasks, shuffle = [], torch.Generator().manual_seed(1)
        for one in range(3):
            rows = [torch.where(label == one)[0], torch.where(label != one)[0][torch.randperm(200, generator=shuffle)]]
            parts = [torch.cat([part[a:b] for part in rows]) for a, b in ((0, 40), (40, 60), (60, 100))]
            positive = (label == one).long()
            positive[parts[2]] = 1 - positive[parts[2]] if turned else positive[parts[2]]
            tasks.append(Binary(str(one), *parts, positive))
        # rows of one task's test may be another's training: each task has labels of its own
        probes = [fitted(x[t.train], t.positive[t.train], x[t.validation], t.positive[t.validation]) for t in tasks]
        held, measured = {RAW: x, DICTIONARY: x}, {DICTIONARY: identity()}
        values.append(_selectivity(held, DICTIONARY, measured, tasks, probes, config))
    for key, (value, _) in values[0].items():
        assert value == pytest.approx(-values[1][key][0]), key
    assert values[0]["tpp", 1][0] > 0.05


def test_texts_of_occupations_are_balanced_and_no_occupation_is_in_two_parts():
    made = occupation_texts(ScrConfig(sentences=200))
    assert len(made.texts) == 400
    assert made.labels["gender"].double().mean() == 0.5
    assert all(150 < int((made.labels["profession"] == one).sum()) < 250 for one in (0, 1))
    assert {int(one) for one in made.part} == {0, 1, 2}
    for he, she in zip(made.texts[::2], made.texts[1::2]):
        assert he != she
    assert torch.equal(made.part[::2], made.part[1::2])


def test_both_tasks_run_with_their_baselines(model):
    sae = tiny_dictionary(tensors=random_tensors(width=48))
    config = TppConfig(sets=("emotions",), ns=(2,), most=130, draws=20, context=40)
    found = tpp(model, sae, config, quiet=True)
    assert set(found.headline) == {DICTIONARY, RANDOM, RAW}
    assert "tpp (latents as sae-bench)" in set(found.table["measure"])
    found = scr(model, sae, ScrConfig(ns=(2, 5), sentences=80, draws=20, context=40), quiet=True)
    assert set(found.table[found.table["data"] == ALL]["arm"]) == {DICTIONARY, RANDOM, RAW}
    assert "of accuracy" in found.notes[0]


@pytest.mark.parametrize("task", [scr, tpp])
def test_dictionaries_that_it_is_not_defined_for_are_refused(model, task):
    with pytest.raises(BadInput, match="reads and writes at one site, not a transcoder"):
        task(model, tiny_dictionary("relu", site="mlp_in.1", site_out="mlp_out.1"))
    with pytest.raises(BadInput, match="normalises each token"):
        task(model, tiny_dictionary(token_norm="layer_norm"))
