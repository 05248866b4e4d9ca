"""Examples drawn from intervals of activation, against all active tokens found the slow way."""

import itertools
import math

import numpy as np
import pytest
import torch

from monosem.activations import harvest
from monosem.data import TokenStore
from monosem.latents import Index, IndexConfig, build_index
from tiny_latents import MODEL, SAE, SITE, WIDTH, dictionary

IDS = torch.randint(4, 60, (300, 16), generator=torch.Generator().manual_seed(0))
STORE = TokenStore.of(IDS)
LEFT, RIGHT, BANDS, EACH = 4, 2, 4, 3


def built(folder, sae=SAE, **config) -> Index:
    options = IndexConfig(
        **{"examples": 5, "left": LEFT, "right": RIGHT, "bands": BANDS, "band_examples": EACH} | config
    )
    return build_index(MODEL, sae, STORE, folder / "i.sqlite", options, quiet=True)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return built(tmp_path_factory.mktemp("bands"))


@pytest.fixture(scope="module")
def dense() -> torch.Tensor:
    """`[window, position, latent]`, 0 at tokens that do not count."""
    out = torch.zeros(*IDS.shape, WIDTH)
    for batch in harvest(MODEL, STORE, SITE):
        out[batch.windows, batch.positions] = SAE.encode(batch[SITE]).dense()
    return out


def test_an_example_lies_in_its_interval_and_is_what_the_model_does(index, dense):
    assert (dense > 0).any((0, 1)).sum() > 10
    for latent in range(WIDTH):
        acts, evidence = dense[..., latent], index.evidence(latent)
        edges = [evidence.maximum * i / BANDS for i in range(BANDS + 1)]
        found = {round(band.low, 3): band for band in evidence.bands}
        lows = [band.low for band in evidence.bands]
        assert lows == sorted(lows, reverse=True)
        for low, high in itertools.pairwise(edges):
            inside = int(((acts > low) & (acts <= high)).sum())
            band = found.get(round(low, 3))
            if band is None:
                assert inside == 0
                continue
            assert (band.low, band.high) == pytest.approx((low, high))
            assert len(band.examples) == min(EACH, inside) or inside > len(band.examples) > 0 or inside == 0
            for example in band.examples:
                window = int(example.document.removeprefix("window "))
                start = max(example.position - LEFT, 0)
                end = example.position + RIGHT + 1
                ids = IDS[window, start:end]
                assert example.tokens == [MODEL.str_token(int(i)) for i in ids]
                assert example.activations == pytest.approx(acts[window, start:end].tolist(), rel=2e-3, abs=1e-3)
                assert low * 0.999 <= example.maximum <= high * 1.001
                assert example.anchor == example.position - start


def test_shares_are_those_of_the_histogram(index, dense):
    for latent in range(WIDTH):
        evidence, acts = index.evidence(latent), dense[..., latent]
        own = acts[acts > 0].numpy()
        if not len(own):
            assert evidence.bands == []
            continue
        assert sum(band.share for band in evidence.bands) == pytest.approx(1)
        for band in evidence.bands:
            exact = ((own > band.low) & (own <= band.high)).mean()
            borders = [(low, high, n) for low, high, n in evidence.histogram]
            slack = sum(n for low, high, n in borders if low <= band.low < high or low <= band.high < high) / len(own)
            assert abs(band.share - exact) <= slack + 1e-6


def test_the_draw_is_even(tmp_path, dense):
    """Over all latents, the ranks of drawn tokens in their interval have the mean and the spread of an even draw."""
    index = built(tmp_path, bands=1, band_examples=1)
    places = []
    for latent in range(WIDTH):
        acts = dense[..., latent]
        own = acts[acts > 0].sort().values
        if len(own) >= 30:
            (example,) = index.evidence(latent).bands[0].examples
            places.append(float(torch.searchsorted(own, torch.tensor(example.maximum))) / len(own))
    n = len(places)
    assert n >= 15
    assert abs(np.mean(places) - 0.5) < 3 * math.sqrt(1 / 12 / n)
    assert np.std(places) > 0.15  # not the strongest of each, nor the weakest


def test_at_most_one_a_window_and_two_a_document(index):
    for latent in range(WIDTH):
        documents = [example.document for band in index.evidence(latent).bands for example in band.examples]
        assert len(documents) == len(set(documents))  # a window is a document here


def test_negative_codes_are_drawn_by_magnitude(tmp_path):
    signed = built(tmp_path, dictionary("abstopk", k=6))
    bands = [band for latent in range(WIDTH) for band in signed.evidence(latent).bands]
    shown = [(band, example.maximum) for band in bands for example in band.examples]
    assert any(value < 0 for _, value in shown)
    assert all(band.low * 0.999 <= abs(value) <= band.high * 1.001 for band, value in shown)


def test_they_are_shown_by_interval(index):
    latent = int(index.top(1, by="count")["latent"].iloc[0])
    evidence = index.evidence(latent)
    weakest = evidence.bands[-1]
    line = f"{weakest.low:.1f} to {weakest.high:.1f} ({weakest.share:.1%} of its active tokens)"
    assert line in evidence.as_text().plain
    assert weakest.examples[0].document in evidence.as_text().plain
    assert line not in evidence.as_text(examples=0).plain


def test_the_draw_does_not_depend_on_how_the_stream_was_cut(index, tmp_path):
    again = built(tmp_path, batch_size=3)
    for latent in range(WIDTH):
        for one, other in zip(index.evidence(latent).bands, again.evidence(latent).bands, strict=True):
            places = [[(e.document, e.position) for e in band.examples] for band in (one, other)]
            assert places[0] == places[1]
