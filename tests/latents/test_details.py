"""What an index holds beyond the strongest examples, against all activations found the slow way."""

import itertools
import math
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from monosem import latents
from monosem.activations import harvest
from monosem.dictionaries import Dictionary
from monosem.errors import BadInput
from monosem.latents import Index, IndexConfig, build_index
from monosem.latents.coactivation import MOST, Coactivation
from monosem.latents.tallies import Firings
from monosem.latents.token_sets import PREDICATES, TokenSets, hypergeometric_p, set_effects
from monosem.statistics import benjamini_hochberg
from tiny import model_of
from tiny_dictionaries import tiny_dictionary
from tiny_latents import MODEL, SAE, SITE, STORE, TOPK, WIDTH, of_first_schema

THRESHOLD = torch.full((WIDTH,), 0.4)
JUMP = Dictionary(replace(SAE.parts, kind="jumprelu", tensors=replace(SAE.tensors, threshold=THRESHOLD)))
CONFIG = IndexConfig(examples=5, left=4, right=2, decile_examples=2, uniform=6, near=4, silent=30, batch_size=3)


@pytest.fixture(scope="module", params=[TOPK, JUMP], ids=["topk", "jumprelu"])
def made(request, tmp_path_factory) -> tuple[Index, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(index, activations, pre-activations `[window, position, latent]` (NaN where not counted), ids)."""
    sae = request.param
    index = build_index(MODEL, sae, STORE, tmp_path_factory.mktemp("i") / "i.sqlite", CONFIG, quiet=True)
    ids = STORE[np.arange(len(STORE))]
    acts, pre = (torch.full((*ids.shape, WIDTH), torch.nan) for _ in range(2))
    for batch in harvest(MODEL, STORE, SITE):
        acts[batch.windows, batch.positions] = sae.encode(batch[SITE]).dense()
        pre[batch.windows, batch.positions] = sae.preactivations(batch[SITE])
    return index, acts, pre, ids


def busy(index: Index, least: int = 40) -> list[int]:
    found = index.table.query("count >= @least")["latent"].tolist()
    assert len(found) >= 3
    return found


def test_consistency_and_runs(made):
    index, acts, _, _ = made
    for latent in busy(index):
        on = (acts[..., latent].nan_to_num() > 0).numpy()
        row = index.table.iloc[latent]
        assert row["consistency"] == pytest.approx(on.sum() / on.any(1).sum())
        runs = [len(list(group)) for line in on for active, group in itertools.groupby(line) if active]
        assert row["run"] == pytest.approx(np.mean(runs))


def test_pairs_of_latents_are_exact(made):
    index, acts, _, _ = made
    x = acts[~acts[..., 0].isnan()].double().numpy()
    on = x > 0
    correlations = np.corrcoef(x.T)
    for latent in busy(index)[:6]:
        found = latents.coactive(index, latent)
        assert latent not in found["latent"].tolist()
        union = (on | on[:, [latent]]).sum(0)
        jaccard = (on & on[:, [latent]]).sum(0) / np.maximum(union, 1)
        jaccard[latent] = -1
        assert found["jaccard"].iloc[0] == pytest.approx(jaccard.max())
        assert found["jaccard"].tolist() == sorted(found["jaccard"], reverse=True)
        correlated = np.where((on & on[:, [latent]]).any(0), np.nan_to_num(correlations[latent], nan=-2), -3)
        correlated[latent] = -3
        assert found["pearson"].max() == pytest.approx(correlated.max(), abs=1e-5)
        for row in found.itertuples():
            i, j = on[:, latent], on[:, row.latent]
            assert row.both == (i & j).sum()
            assert row.jaccard == pytest.approx(jaccard[row.latent])
            assert row.given == pytest.approx((i & j).sum() / i.sum())
            assert row.given_other == pytest.approx((i & j).sum() / j.sum())
            assert row.pmi == pytest.approx(math.log2((i & j).mean() / (i.mean() * j.mean())))
            assert row.pearson == pytest.approx(correlations[latent, row.latent], abs=1e-5)


def test_neurons_correlate_as_numpy_says(made, tmp_path):
    index, acts, *_ = made
    config = CONFIG.model_copy(update={"neurons": 3})
    found = build_index(MODEL, index.dictionary, STORE, tmp_path / "i.sqlite", config, quiet=True)
    counted = ~acts[..., 0].isnan()
    x = acts[counted].double().numpy()
    run = MODEL.run(STORE[np.arange(len(STORE))], capture="mlp_post.1", logits=False)
    neurons = run["mlp_post.1"][counted].double().numpy()
    for latent in busy(index)[:4]:
        pearson = np.array([np.corrcoef(x[:, latent], one)[0, 1] for one in neurons.T])
        cosine = x[:, latent] @ neurons / np.linalg.norm(x[:, latent]) / np.linalg.norm(neurons, axis=0)
        best = np.argsort(-np.abs(pearson))[:3]
        rows = latents.page(found, latent).parts["correlated_neurons"]
        assert [row["neuron"] for row in rows] == best.tolist()
        assert [row["pearson"] for row in rows] == pytest.approx(pearson[best].tolist(), abs=1e-4)
        assert [row["cosine"] for row in rows] == pytest.approx(cosine[best].tolist(), abs=1e-4)
    assert found.meta["neuron_site"] == "mlp_post.1"
    assert found.meta["tokens"] == index.meta["tokens"]
    pd.testing.assert_frame_equal(found.table, index.table)
    with pytest.raises(BadInput, match="IndexConfig"):
        latents.correlated_neurons(index, 0)


def test_of_a_crowded_token_only_the_strongest_latents_are_paired():
    width = 300
    acts = np.abs(np.random.default_rng(0).normal(size=(5, width))).astype(np.float32)
    acts[1] *= np.arange(width) % 3 == 0
    row, latent = acts.nonzero()
    zeros = np.zeros(5, dtype=np.int64)
    names = ("window", "document", "token", "before", "echo")
    pairs = Coactivation(width)
    pairs.add(Firings.of((row, latent, acts[row, latent]), position=np.arange(5), **dict.fromkeys(names, zeros)))
    weakest = np.sort(acts, axis=1)[:, -MOST]
    kept = (acts * (acts >= weakest[:, None])).astype(float)
    for one in (0, 7, 299):
        both, product = (one[:, 0] for one in pairs.with_latents(np.array([one])))
        expected = ((kept > 0).T.astype(int) @ (kept > 0))[one], (kept.T @ kept)[one]
        others = np.arange(width) != one
        np.testing.assert_array_equal(both[others], expected[0][others])
        np.testing.assert_allclose(product[others], expected[1][others], rtol=1e-5)
    np.testing.assert_allclose(pairs.own, [(kept > 0).sum(0), kept.sum(0), (kept**2).sum(0)], rtol=1e-6)


def test_pairs_that_take_too_much_memory_are_left_out(tmp_path):
    config = IndexConfig(tokens=320, pair_memory=Coactivation.memory(WIDTH) / 2)
    index = build_index(MODEL, TOPK, STORE, tmp_path / "i.sqlite", config, quiet=True)
    assert index.meta["pairs_counted"] is False
    with pytest.raises(BadInput, match="pair_memory"):
        latents.coactive(index, 0)
    assert "coactive" in latents.page(index, 0).missing


def test_what_firings_have_in_common(made):
    index, acts, _, ids = made
    border, counted = STORE.packing.separator, ~acts[..., 0].isnan()
    before = torch.cat([torch.full((len(ids), 1), -1), ids[:, :-1]], 1)
    before[before == border] = -1
    whole = Counter(ids[counted].tolist())
    for latent in busy(index):
        on = acts[..., latent].nan_to_num() > 0
        tokens, previous = Counter(ids[on].tolist()), Counter(i for i in before[on].tolist() if i >= 0)
        found = latents.token_patterns(index, latent)
        n = sum(tokens.values())
        assert found["common"] == pytest.approx(max(tokens.values()) / n)
        assert found["entropy"] == pytest.approx(scipy.stats.entropy([*tokens.values()], base=2))
        assert not found["lower_bounds"]
        by_name = {MODEL.str_token(i): (count, (count / n) / (whole[i] / counted.sum())) for i, count in tokens.items()}
        for name, count, _, lift in found["tokens"]:
            assert (count, pytest.approx(lift)) == by_name[name]
        names = {MODEL.str_token(i): count for i, count in previous.items()}
        assert {name: count for name, count, *_ in found["before"]}.items() <= names.items()
        pairs = Counter((int(a), int(b)) for a, b in zip(before[on], ids[on]) if a >= 0)
        named = {tuple(map(MODEL.str_token, pair)): count for pair, count in pairs.items()}
        assert {(a, b): count for a, b, count, _ in found["bigrams"]}.items() <= named.items()


def test_sets_of_tokens_by_the_exact_test(made):
    index, acts, _, ids = made
    counted = ~acts[..., 0].isnan()
    special = set(MODEL.special_ids)
    for latent in busy(index)[:4]:
        on = acts[..., latent].nan_to_num() > 0
        table = latents.enrichment(index, latent).set_index("set")
        for name, row in table.iterrows():
            inside = torch.tensor([i not in special and PREDICATES[name](MODEL.str_token(i)) for i in range(100)])
            hits, whole = int(inside[ids[on]].sum()), int(inside[ids[counted]].sum())
            assert (row.hits, row.share) == (hits, pytest.approx(hits / int(on.sum())))
            null = scipy.stats.hypergeom(int(counted.sum()), whole, int(on.sum()))
            assert row.p == pytest.approx(min(1, 2 * min(null.cdf(hits), null.sf(hits - 1))), rel=1e-6, abs=1e-12)
        np.testing.assert_allclose(table["q"], scipy.stats.false_discovery_control(table["p"]))


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.9], [0.5], [], [0.2, 0.2, 0.2]])
def test_false_discovery_rates(p):
    expected = scipy.stats.false_discovery_control(p) if p else []
    np.testing.assert_allclose(benjamini_hochberg(np.array(p)), expected)


def test_a_draw_of_millions_has_a_p():
    assert hypergeometric_p(40_000, 100_000, 400_000, 1_000_000) == pytest.approx(1, abs=0.05)
    assert hypergeometric_p(41_000, 100_000, 400_000, 1_000_000) < 1e-8


def test_sets_that_a_row_promotes(tmp_path):
    """Against SciPy's Mann-Whitney test on the effects that the head's modules give."""
    model = model_of("llama")
    sae = tiny_dictionary(model_name="llama", site="resid_post.2")
    table = set_effects(model, sae, [4]).table.set_index("set")
    row = sae.W_dec[4][None, None]
    effects = (model.unembed(100 * row) - model.unembed(-100 * row))[0, 0].detach().double().numpy()
    sets = TokenSets.of(model)
    assert len(table) > 3
    for name, found in table.iterrows():
        inside = sets.members[sets.names.index(name)]
        test = scipy.stats.mannwhitneyu(effects[inside], effects[~inside], method="asymptotic", use_continuity=False)
        assert found.effect == pytest.approx(2 * test.statistic / (inside.sum() * (~inside).sum()) - 1, abs=1e-6)
        assert found.p == pytest.approx(test.pvalue, rel=1e-3)


def test_tenths_are_ranks_of_active_tokens(made):
    index, acts, _, _ = made
    for latent in busy(index):
        own = np.sort(acts[..., latent].nan_to_num().numpy().ravel())
        own = own[own > 0]
        found = latents.deciles(index, latent)
        assert [band.share for band in found] == [0.1] * 10
        assert sum(len(band.examples) for band in found) > 0
        slack = max(n for *_, n in index.evidence(latent).histogram) / len(own)  # a bin is all the histogram tells
        for place, band in enumerate(reversed(found)):
            assert len(band.examples) <= 2
            for example in band.examples:
                rank = np.searchsorted(own, example.maximum * 0.999) / len(own)
                assert place / 10 - slack <= rank <= (place + 1) / 10 + slack


def test_uniform_examples_are_drawn_evenly(made):
    index, acts, _, _ = made
    ranks = []
    for latent in busy(index):
        own = acts[..., latent].nan_to_num()
        own = own[own > 0].sort().values
        examples = latents.uniform(index, latent)
        assert 0 < len(examples) <= 6
        ranks += [float(torch.searchsorted(own, torch.tensor(e.maximum))) / len(own) for e in examples]
    assert abs(np.mean(ranks) - 0.5) < 4 * math.sqrt(1 / 12 / len(ranks))


def test_near_misses_are_silent_by_the_least(made):
    index, acts, pre, _ = made
    checked = 0
    for latent in range(WIDTH):
        silent = torch.where(acts[..., latent] == 0, pre[..., latent], -torch.inf)
        best = silent.amax(1).sort(descending=True).values
        found = latents.near_misses(index, latent)
        assert len(found) == 4
        assert found[0][1] == pytest.approx(float(best[0]), abs=1e-5)
        for example, value in found:
            assert example.activations[example.anchor] == 0
            near = (silent - value).abs() < 1e-5
            assert example.position in near.nonzero()[:, 1].tolist()
            checked += any(example.activations)
    assert checked  # neighbours of a silent token are shown as they are


def test_silent_places_are_silent_all_around(made):
    index, acts, _, ids = made
    rows = index.rows("SELECT COUNT(*) FROM silent")
    assert rows == [(30,)]
    for latent in busy(index)[:5]:
        for example in latents.silent(index, latent, n=3):
            assert not any(example.activations)
            start = example.position - example.anchor
            windows = [w for w in range(len(ids)) if ids[w, start : start + len(example.ids)].tolist() == example.ids]
            around = slice(start, start + len(example.ids))
            assert any(not (acts[w, around, latent].nan_to_num() > 0).any() for w in windows)


def test_words_are_found_at_once(made):
    index, *_ = made
    found = index.containing("king")
    assert found
    texts = {latent: " ".join("".join(e.tokens) for e in index.evidence(latent).examples) for latent in range(WIDTH)}
    assert set(found) == {latent for latent, text in texts.items() if "king" in text.split()}
    assert index.containing('ki"ng" OR *') == []
    with pytest.raises(BadInput, match="words"):
        index.containing("  ")


def test_an_index_of_the_first_schema_is_read_and_says_what_it_lacks(made, tmp_path):
    index, *_ = made
    path = tmp_path / "old.sqlite"
    shutil.copy(index.path, path)
    of_first_schema(path)
    old = Index(path, index.dictionary)
    latent = busy(index)[0]
    assert old.evidence(latent).as_text() == index.evidence(latent).as_text()
    assert "consistency" not in old.table
    page = latents.page(old, latent)
    for part in ("deciles", "near", "coactive", "enrichment", "patterns"):
        assert "earlier version (schema 1); make it again with `monosem latents index" in page.missing[part]
    assert page.parts["logits"]["promoted"]
    assert latents.check_index(old).ok


def test_a_page_has_every_part(made):
    index, *_ = made
    latent = busy(index)[0]
    page = latents.page(index, latent, model=MODEL).to_json()
    assert set(page["missing"]) == {"heads", "explanation", "correlated_neurons"}
    without = latents.page(index, latent).to_json()
    assert set(without["missing"]) == {"heads", "explanation", "correlated_neurons", "set_effects"}
    for key in ("moments", "histogram"):  # stored, and computed
        flat = [
            [*part["moments"].values(), *part["histogram"]["edges"], *part["histogram"]["counts"]]
            for part in (page["logits"], without["logits"])
        ]
        assert flat[0] == pytest.approx(flat[1], rel=1e-4, abs=1e-5), key
    assert sum(band["mass"] for band in page["intervals"]) == pytest.approx(1)
    on = index.evidence(latent)
    whole = sum(band["mass"] for band in page["intervals"] if band["low"] >= on.maximum / 5 * 0.99)
    assert 0 < whole <= 1


def test_everything_is_there_as_parquet(made, tmp_path):
    index, *_ = made
    files = latents.export_index(index, tmp_path)
    tables = {file.stem: pd.read_parquet(file) for file in files}
    pd.testing.assert_frame_equal(tables["latents"], index.table)
    latent = busy(index)[0]
    own = tables["examples"].query("latent == @latent and sample == 'examples'")
    assert [list(ids) for ids in own["ids"]] == [one.ids for one in index.evidence(latent).examples]
    assert ["".join(tokens) for tokens in own["tokens"]] == index.evidence(latent).table["text"].tolist()
    assert {*tables["examples"]["sample"]} == {"examples", "bands", "deciles", "uniform", "near"}
    pairs = tables["pairs"].query("latent == @latent").drop(columns="latent").rename(columns={"other": "latent"})
    pd.testing.assert_frame_equal(pairs.reset_index(drop=True), latents.coactive(index, latent))
