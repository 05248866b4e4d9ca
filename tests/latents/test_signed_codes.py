"""Codes with signs (AbsTopK): a latent is active where its code is not 0, what is strong is large in magnitude, both
signs are shown. Which sign a latent has is a convention of its weights, so nothing may depend on it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from monosem import edits, latents
from monosem.data import TokenStore
from monosem.dictionaries import Dictionary, evaluate
from monosem.latents.layout import EDGES
from monosem.latents.pooling import pooled
from tiny_latents import MODEL, NEGATIVE, POSITIVE, SITE, WIDTH, dictionary

SIGNED = dictionary("abstopk", k=6)
IDS = torch.randint(4, 60, (48, 16), generator=torch.Generator().manual_seed(0))
STORE = TokenStore.of(IDS)


def turned(sae: Dictionary, sign: torch.Tensor) -> Dictionary:
    """The same function with some latents turned around."""
    t = sae.tensors
    tensors = replace(t, W_enc=t.W_enc * sign, b_enc=t.b_enc * sign, W_dec=t.W_dec * sign[:, None])
    return Dictionary(replace(sae.parts, tensors=tensors))


SIGN = torch.where(torch.arange(WIDTH) % 3 == 0, -1.0, 1.0)
TURNED = turned(SIGNED, SIGN)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> latents.Index:
    path = tmp_path_factory.mktemp("signed") / "index.sqlite"
    config = latents.IndexConfig(examples=4, left=3, right=2)
    return latents.build_index(MODEL, SIGNED, STORE, path, config, quiet=True)


@pytest.fixture(scope="module")
def dense() -> torch.Tensor:
    """Codes of every counted token (all but the first of a window), `[window, position, latent]`."""
    x = MODEL.run(IDS, capture=SITE)[SITE]
    return SIGNED.encode(x).dense()[:, 1:].double()


def test_the_index_counts_both_signs(index, dense):
    flat = dense.flatten(0, 1)
    active = flat != 0
    assert (flat < 0).any()
    density = active.double().mean(0)
    np.testing.assert_allclose(index.densities, density, rtol=1e-6)
    np.testing.assert_allclose(evaluate(MODEL, SIGNED, IDS, tokens=None, quiet=True).density, density, rtol=1e-6)
    np.testing.assert_allclose(index.maxima, flat.abs().amax(0), rtol=1e-6)
    for latent in range(WIDTH):
        own = flat[:, latent][active[:, latent]].numpy()
        if len(own) < 3:
            continue
        z = (own - own.mean()) / own.std()
        expected = [own.mean(), own.std(), (z**3).mean(), (z**4).mean()]
        row = index.table.iloc[latent][["mean", "sd", "skew", "kurtosis"]].astype(float)
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-5)
        evidence = index.evidence(latent)
        assert evidence.histogram[-1][1] == pytest.approx(np.abs(own).max(), rel=1e-6)
        for low, high, n in evidence.histogram[:-1]:
            assert ((np.abs(own) >= low) & (np.abs(own) < high)).sum() == n
        assert evidence.quantiles["quantile 0.99"] <= np.abs(own).max() * EDGES[1] / EDGES[0]


def test_tokens_and_examples_show_both_signs(index, dense):
    ids = IDS[:, 1:]
    words = [piece.replace("▁", " ") for piece in MODEL.tokenizer.convert_ids_to_tokens(list(range(60)))]
    for latent in range(WIDTH):
        acts, sums, counts = dense[..., latent], Counter(), Counter()
        for row, place in (acts != 0).nonzero().tolist():
            key = (words[int(ids[row, place])], bool(acts[row, place] < 0))
            sums[key] += float(acts[row, place])
            counts[key] += 1
        evidence = index.evidence(latent)
        shown = {(token, total < 0): (count, total) for token, count, total in evidence.tokens}
        assert len(shown) == min(12, len(sums))
        for key, (count, total) in shown.items():
            assert count == counts[key]
            assert total == pytest.approx(sums[key], abs=0.01)
        weights = [abs(total) for *_, total in evidence.tokens]
        assert weights == sorted(weights, reverse=True)
        if not evidence.examples:
            assert not (acts != 0).any()
            continue
        strongest = float(acts.flatten()[acts.abs().argmax()])
        assert evidence.examples[0].maximum == pytest.approx(strongest, rel=1e-3)
        assert float(evidence.top(1)["maximum"].iloc[0]) == pytest.approx(strongest, rel=1e-3)
        assert all(abs(e.maximum) == max(map(abs, e.activations)) for e in evidence.examples)
    both = next(e for e in map(index.evidence, range(WIDTH)) if any(x.maximum < 0 for x in e.examples))
    assert "red" in str(both.as_text().spans)
    if any(total < 0 for *_, total in both.tokens[:10]):
        assert "(−)" in both.as_text().plain


def test_turning_latents_around_changes_no_index(index, tmp_path):
    config = latents.IndexConfig(examples=4, left=3, right=2)
    other = latents.build_index(MODEL, TURNED, STORE, tmp_path / "i.sqlite", config, quiet=True)
    same = ["count", "density", "maximum", "sd", "kurtosis"]
    pd.testing.assert_frame_equal(index.table[same], other.table[same], rtol=1e-3)
    for latent in range(WIDTH):
        mine, its = index.evidence(latent), other.evidence(latent)
        assert [(e.document, e.position) for e in mine.examples] == [(e.document, e.position) for e in its.examples]
        assert its.quantiles == pytest.approx(mine.quantiles, rel=1e-3)


def test_a_dose_follows_the_sign_of_its_latent(index, dense, tmp_path):
    """k times the maximum, in the latent's own direction, moves the stream the same way whatever its sign is."""
    mass = dense.flatten(0, 1).sum(0)
    assert index.signs.tolist() == [-1.0 if total < 0 else 1.0 for total in mass]
    assert (index.signs < 0).any()
    other = latents.build_index(MODEL, TURNED, STORE, tmp_path / "i.sqlite", quiet=True)
    for latent in index.top(6, by="count")["latent"].tolist():
        runs = []
        for sae, held in ((SIGNED, index), (TURNED, other)):
            dose = 2 * float(held.signs[latent] * held.maxima[latent])
            runs.append(MODEL.run("a good b", edits=edits.clamp(sae, latent, dose)).logits)
        torch.testing.assert_close(runs[0], runs[1], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(runs[0], MODEL.run("a good b").logits, atol=1e-3)


def test_top_and_pooling(index):
    prompts = ["a good b", "c bad d e", "king queen"]
    found = latents.top(MODEL, SIGNED, prompts, n=3, index=index)
    assert (found.table["value"] < 0).any()
    assert found.top(1)["value"].abs().iloc[0] == found.table["value"].abs().max()
    pools = {pool: pooled(MODEL, SIGNED, prompts, pool) for pool in ("max", "mean", "last")}
    for number, prompt in enumerate(prompts):
        codes = SIGNED.encode(MODEL.run(prompt, capture=SITE)[SITE])[:2]
        acts = torch.zeros(codes[0].shape[1], WIDTH)
        for position, (values, indices) in enumerate(zip(codes[0][0], codes[1][0])):
            acts[position, indices] = values
        counted = acts[1:]
        strongest = counted.gather(0, counted.abs().argmax(0, keepdim=True))[0]
        for pool, expected in (("max", strongest), ("mean", counted.mean(0)), ("last", acts[-1])):
            torch.testing.assert_close(pools[pool][number], expected, atol=1e-5, rtol=1e-4)
        own = found.table[(found.table["prompt"] == number) & (found.table["last"])]
        order = acts[-1].abs().argsort(descending=True)[:3]
        assert own["latent"].tolist() == order.tolist()
        np.testing.assert_allclose(own["value"], acts[-1][order], rtol=1e-4)
        np.testing.assert_allclose(own["of_maximum"], acts[-1][order] / index.maxima[order], rtol=1e-4)


def test_contrast_does_not_depend_on_the_sign_of_a_latent():
    one, other = (latents.contrast(MODEL, sae, POSITIVE, NEGATIVE, permutations=50) for sae in (SIGNED, TURNED))
    numbers = [column for column in one.table.columns if column not in ("sign", "latent")]
    ordered = [result.table.sort_values("latent").reset_index(drop=True) for result in (one, other)]
    pd.testing.assert_frame_equal(ordered[0][numbers], ordered[1][numbers], rtol=1e-3, atol=1e-4)
    assert one.best == other.best
    signs = [dict(zip(table["latent"], table["sign"])) for table in ordered]
    assert signs[1] == {latent: sign * int(SIGN[latent]) for latent, sign in signs[0].items()}
    assert -1 in signs[0].values()
    assert "sign" not in latents.contrast(MODEL, dictionary("topk", k=6), POSITIVE, NEGATIVE, permutations=10).table
