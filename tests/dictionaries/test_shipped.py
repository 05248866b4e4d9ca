"""The dictionaries that monosem ships, on the real model and on text written for this test."""

import json
import re

import pytest
import torch

from monosem import edits, latents, metrics
from monosem.dictionaries import load_dictionary, shipped_dictionaries, shipped_dictionary_folder

NAME = "smollm2/resid_post.15"
ALL = shipped_dictionaries()
TEXT = [
    "The harbour was quiet that morning. Two fishermen were mending a net on the wall, and neither of them spoke. "
    "When the ferry came round the point, the older one put down his needle, looked at the sky, and said that it "
    "would rain before noon. The other laughed, because he had said the same thing every day since the beginning "
    "of spring.",
    "A compiler reads the source of a program and writes the same program in another language, usually one that a "
    "machine can run at once. The first part of its work is to find out what the words are; the second is to find "
    "out how they belong together; the rest is a long list of small improvements.",
    "Glaciers move slowly, but they do move. Snow that falls on the upper part is pressed into ice by the snow of "
    "later years, and the ice flows downhill under its own weight, carrying stones that scratch the rock below "
    "it.",
]


@pytest.fixture(scope="module")
def sae():
    return load_dictionary(NAME)


@pytest.fixture(scope="module")
def read(smollm2, sae):
    """Activations of the counted tokens, and the run that they come from."""
    run = smollm2.run(TEXT, capture=sae.site)
    return run, run[sae.site][sae.skipper(smollm2).counted(run.tokens, {str(sae.site): run[sae.site]})]


def test_it_is_listed_and_belongs_to_the_model(smollm2, sae):
    assert NAME in ALL
    sae.check(smollm2)
    assert str(sae.site) == "resid_post.15"
    assert sae.width == 8192
    sizes = [path.stat().st_size for name in ALL for path in shipped_dictionary_folder(name).iterdir()]
    assert sum(sizes) < 45 * 2**20


def test_an_early_and_a_late_layer_and_skip_transcoders_are_there():
    loaded = [load_dictionary(name) for name in ALL]
    assert {str(one.site) for one in loaded if not one.transcoder} == {f"resid_post.{n}" for n in (5, 15, 25)}
    assert {(str(one.site), str(one.site_out)) for one in loaded if one.W_skip is not None} == {
        ("mlp_input.10", "mlp_out.10"),
        ("mlp_input.20", "mlp_out.20"),
    }


@pytest.mark.parametrize("name", ALL)
def test_each_rebuilds_what_it_writes(smollm2, name):
    """Far better than the mean of what it is to rebuild, and than with the codes of other tokens."""
    one = load_dictionary(name)
    one.check(smollm2)
    run = smollm2.run(TEXT, capture=[one.site, one.site_out], logits=False)
    counted = one.skipper(smollm2).counted(run.tokens, {str(one.site): run[one.site]})
    x, y = run[one.site][counted], run[one.site_out][counted]
    codes = one.encode(x)

    def fve(codes):
        return float(1 - (y - one.decode(codes, like=x)).square().sum() / (y - y.mean(0)).square().sum())

    said = [held["fve"] for held in one.card["held_out"].values()]
    assert min(said) - 0.1 < fve(codes) < max(said) + 0.1  # other text, so not the same number
    assert fve(codes) > 0.55
    assert fve(codes) > fve(codes._replace(indices=codes.indices.roll(1, 0))) + 0.1
    assert 20 < codes.l0().float().mean() < 60


@pytest.mark.parametrize("name", ALL)
def test_each_comes_with_an_index_and_explanations(name):
    one = load_dictionary(name)
    index, explained = latents.index_of(one), latents.explanations_of(one)
    assert index is not None
    assert explained is not None
    assert len(explained.all) == 50
    assert len(set(explained.table["label"])) > 45
    assert (index.densities > 0).float().mean() > 0.97
    assert all(index.evidence(latent).explanation.label for latent in explained.all)
    assert 0.7 < explained.table["score"].mean() < 0.95  # far above guessing, and not flattered
    assert not re.search(
        "/(man|fortunes)/", " ".join(name for (name,) in index.rows("SELECT name FROM document"))
    )  # of licences that forbid it


def test_saelens_reads_what_convert_writes_from_it(sae, tmp_path):
    """Its weights are 8-bit integers, which no other tool knows; converted, they are SAELens' JumpReLU in float32."""
    sae.save(tmp_path / "sae", "saelens")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["dtype"], cfg["d_sae"]) == ("jumprelu", "float32", 8192)
    again = load_dictionary(tmp_path / "sae")
    torch.testing.assert_close(again.W_dec, sae.W_dec)
    torch.testing.assert_close(again.threshold, sae.threshold)


def test_it_reconstructs_text_that_it_never_saw(sae, read):
    _, x = read
    codes = sae.encode(x)
    rebuilt = sae.decode(codes)
    fve = 1 - (x - rebuilt).square().sum() / (x - x.mean(0)).square().sum()
    assert fve > 0.75
    assert codes.l0().float().mean() < 50
    shuffled = sae.decode(codes._replace(indices=codes.indices.roll(1, 0)))
    assert (x - shuffled).square().sum() > (x - rebuilt).square().sum() * 3


def test_splicing_it_in_costs_little_beside_zero_ablation(smollm2, sae, read):
    run, _ = read
    counted = sae.skipper(smollm2).counted(run.tokens, {str(sae.site): run[sae.site]})
    loss = {}
    spliced = edits.splice(sae).when(lambda x, moment: counted)
    for name, edit in {"spliced": spliced, "zero": edits.scale(sae.site, 0.0)}.items():
        edited = smollm2.run(run.tokens, edits=edit)
        loss[name] = float(metrics.next_token_loss(edited.logits, run.tokens).nanmean())
    clean = float(metrics.next_token_loss(run.logits, run.tokens).nanmean())
    assert metrics.recovered(clean, loss["zero"], loss["spliced"]) > 0.9


def test_outliers_inside_a_prompt_do_not_count_and_are_not_edited(smollm2, sae):
    """The bracket of "open(" is as large as a first token."""
    prompts = ["open(n, y)", "The file is open"]
    run = smollm2.run(prompts, capture=sae.site)
    x = run[sae.site]
    norms = x.norm(dim=-1)
    assert norms[0, 1] > 10_000
    usual = run.tokens.mask & (norms < 1000)
    assert not usual[:, 0].any()
    assert torch.equal(sae.skipper(smollm2).counted(run.tokens, {str(sae.site): x}), usual)
    kl = {
        everywhere: metrics.kl(run.logits, smollm2.run(prompts, edits=edits.splice(sae, everywhere=everywhere)).logits)
        for everywhere in (False, True)
    }
    assert kl[False][usual].mean() < 0.6 < 2 < kl[True][usual].mean()
    edited = smollm2.run(prompts, capture=sae.site, edits=edits.clamp(sae, 4077, 40.0))[sae.site]
    assert torch.equal(((edited - x).norm(dim=-1) > 1) & run.tokens.mask, usual)
    shown = latents.top(smollm2, sae, prompts)
    assert set(zip(shown.table["prompt"], shown.table["position"])) == set(map(tuple, usual.nonzero().tolist()))
    assert shown.config["tokens"]["left_out"] == {"first": 2, "outlier": int((~usual & run.tokens.mask)[:, 1:].sum())}


@pytest.mark.parametrize("name", ALL)
def test_each_card_is_measured(name):
    card = load_dictionary(name).card
    assert card["tokens_kept"] >= 2_000_000
    for text in ("wikitext2", "tinystories"):
        held = card["held_out"][text]
        assert {"l0", "fve", "ce_recovered", "dead_fraction", "intervals"} <= set(held)
        assert held["skip_rule"] == {"special": True, "first": 1, "outlier": 10.0, "calibration": 16}
        for zero in ("zero", "zero_counted"):
            share = metrics.recovered(held["ce_clean"], held[f"ce_{zero}"], held["ce_spliced"])
            rounded = 2e-4 / (held[f"ce_{zero}"] - held["ce_clean"])  # four digits are kept
            assert share == pytest.approx(held[f"ce_recovered{zero.removeprefix('zero')}"], abs=rounded + 1e-4)
    plain, with_sink = card["held_out"]["wikitext2"], card["held_out"]["wikitext2"]["as_saelens"]
    assert with_sink["skip_rule"] == plain["skip_rule"] | {"first": 0, "outlier": None}
    lost = plain["lost_by_8_bits"]
    assert lost["fve"] < 0.002
    assert lost["ce_recovered"] < 0.002


def test_the_index_says_what_the_model_does(smollm2, sae):
    """Stored examples, run through the model again, fire the latent about as strongly at the stored token."""
    index = latents.index_of(sae)
    assert index is not None
    assert index.meta["tokens"] >= 1_000_000
    assert (index.densities > 0).float().mean() > 0.95
    agree = []
    for latent in range(100, 3100, 250):
        evidence = index.evidence(latent)
        assert len(evidence.examples) == 7
        example = max(evidence.examples[:5], key=lambda e: e.anchor)  # the longest context before the token
        ids = smollm2.tokenizer("".join(example.tokens), add_special_tokens=False).input_ids
        tokens = [smollm2.str_token(i) for i in ids]
        if tokens != example.tokens:
            continue  # a multi-byte character was cut at the border of the context
        x = smollm2.run([ids], capture=sae.site, logits=False)[sae.site]
        value = float(sae.latent_activations(x, [latent])[0, example.anchor, 0])
        agree.append(abs(value - example.maximum) / example.maximum)
    assert len(agree) >= 8
    assert torch.tensor(agree).median() < 0.2


def test_a_concept_is_found_and_steers(smollm2, sae):
    """French against English: a latent that tells unseen pairs apart, and that makes the model write French."""
    from monosem.studies import StudyConfig

    concept = StudyConfig.load("french")
    found = latents.contrast(smollm2, sae, concept.positive, concept.negative, permutations=200)
    first = found.table.iloc[0]
    assert first.held_out_auroc > 0.85
    assert first.p_family < 0.05
    index = latents.index_of(sae)
    best = max(found.top(4)["latent"], key=lambda latent: float(sae.decoder_rows(latent).norm() * index.maxima[latent]))
    prompts = concept.control[:4]
    clean = smollm2.run(prompts, logits="last").logits
    steered = smollm2.run(prompts, edits=edits.clamp(sae, best, float(index.maxima[best])), logits="last").logits
    kept = smollm2.run(prompts, edits=edits.scale_latent(sae, best, 1.0), logits="last").logits
    assert metrics.kl(clean, steered).mean() > 0.3
    assert metrics.kl(clean, kept).max() < 1e-6
