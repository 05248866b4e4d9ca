"""What the writing of an index does for all latents at once, against loops over latents."""

from collections import Counter

import numpy as np
import torch

from monosem.data import TokenStore
from monosem.latents.coactivation import Coactivation, measures, unpack_pairs
from monosem.latents.effects import logit_histograms
from monosem.latents.sampling import chosen, cut
from monosem.latents.tallies import Firings


def one_by_one(columns: dict[str, np.ndarray], cell: np.ndarray, each: int, most: int) -> list[int]:
    kept: list[int] = []
    for latent in np.unique(columns["latent"]):
        own: list[int] = []
        for i in np.flatnonzero(columns["latent"] == latent):
            of = {name: Counter(columns[name][own].tolist()) for name in ("window", "echo", "document")}
            window, echo, document = (of[name][int(columns[name][i])] for name in of)
            full = len(own) == most or Counter(cell[own].tolist())[int(cell[i])] == each
            if not (window or echo or document > 1 or full):
                own.append(int(i))
        kept += own
    return kept


def test_examples_are_chosen_by_the_rules_in_their_order():
    rng = np.random.default_rng(0)
    for each, cells in ((20, 1), (2, 5), (1, 10), (0, 1)):
        latent = np.sort(rng.integers(0, 12, 300))
        columns = {name: rng.integers(-9, 9, 300) for name in ("window", "echo", "document")} | {"latent": latent}
        cell = rng.integers(0, cells, 300)
        found = chosen(columns, cell, each, each * cells).tolist()
        assert found == one_by_one(columns, cell, each, each * cells)
        assert bool(found) == bool(each)


def test_texts_are_cut_at_borders_of_documents_and_windows():
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 6, (40, 12))
    store = TokenStore.of(ids)
    border = store.packing.separator = 3
    window, position = rng.integers(0, 40, 200), rng.integers(0, 12, 200)
    for left, right in ((4, 2), (0, 3), (20, 0)):
        shown, found = cut(store, window, position, left, right)
        for row, (w, p) in enumerate(zip(window, position)):
            start, end = p, p + 1
            while start > max(0, p - left) and ids[w, start - 1] != border:
                start -= 1
            while end < min(12, p + right + 1) and ids[w, end] != border:
                end += 1
            assert found[row, shown[row]].tolist() == ids[w, start:end].tolist()
            assert shown[row, :left].sum() == p - start


def test_partners_are_the_first_of_equal_ones():
    width, tokens = 70, 40
    acts = (np.random.default_rng(2).random((tokens, width)) < 0.15).astype(np.float32)  # many ties
    row, latent = acts.nonzero()
    zeros, names = np.zeros(tokens, dtype=np.int64), ("window", "document", "token", "before", "echo")
    pairs = Coactivation(width)
    placed = row, latent, acts[row, latent]
    pairs.add(Firings.of(placed, position=np.arange(tokens), **dict.fromkeys(names, zeros)))
    for one, blob in enumerate(pairs.kept(3, tokens)):
        both = (acts[:, [one]] * acts).sum(0).astype(int)
        others = np.flatnonzero(both * (np.arange(width) != one))
        found = measures(pairs.own[:, [one]], pairs.own[:, others], both[others], both[others], tokens)
        best = {i for by in ("jaccard", "pearson") for i in others[np.argsort(-found[by], kind="stable")[:3]].tolist()}
        assert unpack_pairs(blob)[0].tolist() == sorted(best)


def test_histograms_of_effects_are_torchs():
    effects = torch.randn(11, 500, generator=torch.Generator().manual_seed(3))
    ends, counts = logit_histograms(effects, 7)
    assert torch.equal(ends, torch.stack([effects.amin(1), effects.amax(1)], 1))
    assert torch.equal(counts, torch.stack([torch.histc(row, 7, row.min(), row.max()) for row in effects]).long())
    assert logit_histograms(torch.ones(1, 9), 3)[1].tolist() == [[9, 0, 0]]
