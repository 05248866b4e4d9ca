"""The dictionary that monosem ships, on the real model and on text written for this test."""

import json

import pytest
import torch

from monosem import edits, latents, metrics
from monosem.dictionaries import load_dictionary, shipped_dictionaries, shipped_dictionary_folder

NAME = "smollm2/resid_post.15"
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
    assert NAME in shipped_dictionaries()
    sae.check(smollm2)
    assert str(sae.site) == "resid_post.15"
    assert sae.width >= 4608
    size = sum(path.stat().st_size for path in shipped_dictionary_folder(NAME).iterdir())
    assert size < 45e6


def test_saelens_computes_with_it_in_float32():
    """Its weights are stored in bf16; SAELens converts them to the config's dtype, and computes in that."""
    cfg = json.loads((shipped_dictionary_folder(NAME) / "cfg.json").read_text())
    assert cfg["dtype"] == "float32"


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


def test_its_card_is_measured(sae):
    card = sae.card
    assert card["tokens_kept"] >= 5_000_000
    for text in ("wikitext2", "tinystories"):
        held = card["held_out"][text]
        assert {"l0", "fve", "ce_recovered", "dead_fraction"} <= set(held)
        assert held["skip_rule"] == {"special": True, "first": 1, "outlier": 10.0, "calibration": 16}
        assert held["as_saelens"]["skip_rule"] == held["skip_rule"] | {"first": 0, "outlier": None}
        assert held["as_saelens"]["fve"] < held["fve"] / 1.5  # the attention sink is in it
        for numbers in (held, held["as_saelens"]):
            for zero in ("zero", "zero_counted"):
                recovered = f"ce_recovered{zero.removeprefix('zero')}"
                share = metrics.recovered(numbers["ce_clean"], numbers[f"ce_{zero}"], numbers["ce_spliced"])
                assert share == pytest.approx(numbers[recovered], abs=1e-4)


def test_the_index_says_what_the_model_does(smollm2, sae):
    """Stored examples, run through the model again, fire the latent about as strongly at the stored token."""
    index = latents.index_of(sae)
    assert index is not None
    assert index.meta["tokens"] >= 1_000_000
    assert (index.densities > 0).float().mean() > 0.95
    agree = []
    for latent in range(100, 3100, 250):
        evidence = index.evidence(latent)
        assert len(evidence.examples) == 20
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
    assert metrics.kl(clean, steered).mean() > 0.5
    assert metrics.kl(clean, kept).max() < 1e-6
