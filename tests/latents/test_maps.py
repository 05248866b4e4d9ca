"""Maps against scikit-learn's components and neighbours; planted clusters are found, in one dictionary and in two."""

import numpy as np
import pytest
import torch

from monosem.errors import BadInput, Mismatch, MissingExtra, UnknownName
from monosem.latents import decoder_map
from monosem.latents.maps import nearest, principal
from tiny_dictionaries import with_rows

sklearn = pytest.importorskip("sklearn")
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.metrics import adjusted_rand_score  # noqa: E402
from sklearn.neighbors import NearestNeighbors  # noqa: E402

GROUPS, EACH, D = 5, 24, 16


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(seed=0):
    """Rows around five directions, of any length; the group of each."""
    truth = torch.arange(GROUPS).repeat_interleave(EACH)
    rows = draw(GROUPS, D, seed=7)[truth] + 0.35 * draw(GROUPS * EACH, D, seed=seed)
    return rows * draw(len(rows), 1, seed=seed + 1).exp(), truth


def test_places_are_the_principal_components_of_rows_of_length_one():
    rows, _ = planted()
    found = decoder_map(with_rows(rows, "a"), clusters=False)
    unit = (rows / rows.norm(dim=1, keepdim=True)).numpy().astype(np.float64)
    oracle = PCA(2, svd_solver="full").fit(unit)
    scores = oracle.transform(unit)
    for i, name in enumerate("xy"):
        assert abs(np.corrcoef(found.table[name], scores[:, i])[0, 1]) == pytest.approx(1, abs=1e-6)
        assert found.table[name].std(ddof=0) == pytest.approx(scores[:, i].std(), rel=1e-4)
    assert found.explained == pytest.approx(oracle.explained_variance_ratio_.tolist(), rel=1e-5)
    assert (found.table["cluster"] == -1).all()


def test_the_axes_do_not_turn_over():
    rows = draw(60, 6)
    one, _ = principal(rows, 2)
    other, _ = principal(rows[torch.randperm(60, generator=torch.Generator().manual_seed(1))], 2)
    assert np.allclose(np.sort(one, 0), np.sort(other, 0), atol=1e-4)


def test_neighbours_are_exact_and_begin_with_the_row_itself():
    rows, _ = planted()
    rows = rows / rows.norm(dim=1, keepdim=True)
    rows[3] = rows[50]  # the same row twice: each comes first of its own
    ids, distances = nearest(rows, 6)
    assert ids[:, 0].tolist() == list(range(len(rows)))
    oracle, _ = NearestNeighbors(n_neighbors=6, metric="cosine").fit(rows.numpy()).kneighbors(rows.numpy())
    assert np.allclose(np.sort(distances, 1), oracle, atol=1e-5)


def test_planted_groups_are_clusters_numbered_by_size():
    rows, truth = planted()
    rows = torch.cat([rows, rows[truth == 3] * 2])  # group 3 has twice as many
    truth = torch.cat([truth, truth[truth == 3]])
    found = decoder_map(with_rows(rows, "a"), smallest=8).table["cluster"].to_numpy()
    assert adjusted_rand_score(truth, found) > 0.9
    assert np.bincount(found[truth == 3] + 1).argmax() - 1 == 0


def test_rows_without_structure_are_in_hardly_any_cluster():
    found = decoder_map(with_rows(draw(300, D), "a"), smallest=8).table["cluster"]
    assert (found >= 0).mean() < 0.5


def test_latents_that_two_dictionaries_share_lie_together():
    rows, truth = planted()
    own = draw(40, D, seed=5)
    one, other = with_rows(rows, "a"), with_rows(torch.cat([own, rows * 3 + 0.01 * draw(*rows.shape, seed=6)]), "b")
    table = decoder_map([one, other], smallest=8).table
    a, b = (table[table["dictionary"] == name] for name in "ab")
    assert b["latent"].tolist() == list(range(len(own) + len(rows)))
    b = b.iloc[len(own) :]
    assert np.allclose(a[["x", "y"]], b[["x", "y"]], atol=0.02)
    assert (a["cluster"].to_numpy() == b["cluster"].to_numpy()).mean() > 0.9
    assert adjusted_rand_score(truth, a["cluster"]) > 0.8


def test_umap_keeps_planted_groups_apart_and_is_the_same_again():
    pytest.importorskip("umap")
    rows, truth = planted()
    heard = []
    one = with_rows(rows, "a")
    found = decoder_map([one, with_rows(rows.flip(0), "b")], "umap", smallest=8, tell=heard.append).table
    assert any("rounds" in words for words in heard)
    truth = torch.cat([truth, truth.flip(0)]).numpy()
    assert adjusted_rand_score(truth, found["cluster"]) > 0.9
    places = found[["x", "y"]].to_numpy()
    near = NearestNeighbors(n_neighbors=6).fit(places).kneighbors(places, return_distance=False)[:, 1:]
    assert (truth[near] == truth[:, None]).mean() > 0.95
    short = decoder_map(one, "umap", clusters=False, seed=3).table
    assert short.equals(decoder_map(one, "umap", clusters=False, seed=3).table)
    assert not np.allclose(short["x"], decoder_map(one, "umap", clusters=False, seed=4).table["x"])

    class Stop(Exception):
        pass

    def stop(words):
        if "rounds" in words:
            raise Stop

    with pytest.raises(Stop):
        decoder_map(one, "umap", tell=stop)


def test_a_row_of_zeros_is_nowhere():
    rows, _ = planted()
    rows[5] = 0
    table = decoder_map(with_rows(rows, "a")).table
    assert table.loc[5, ["x", "y"]].isna().all()
    assert table.loc[5, "cluster"] == -1
    assert table.drop(5).notna().all(axis=None)


def test_a_cluster_by_its_number():
    rows, _ = planted()
    found = decoder_map(with_rows(rows, "a"), smallest=8)
    assert set(found.cluster(0)["latent"]) == set(found.table[found.table["cluster"] == 0]["latent"])
    with pytest.raises(UnknownName, match="cluster"):
        found.cluster(999)


def test_what_has_no_map_is_said(monkeypatch):
    rows, _ = planted()
    one = with_rows(rows, "a")
    with pytest.raises(UnknownName, match="method"):
        decoder_map(one, "tsne")
    with pytest.raises(BadInput, match="called 'a'"):
        decoder_map([one, one])
    decoder_map([one, one], names=["a", "b"], clusters=False)
    with pytest.raises(Mismatch, match="a 16, b 8"):
        decoder_map([one, with_rows(draw(40, 8), "b")])
    with pytest.raises(BadInput, match="too few"):
        decoder_map(with_rows(draw(6, D), "a"))
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(MissingExtra, match=r"monosem\[maps\]"):
        decoder_map(one)
    assert decoder_map(one, clusters=False).table["x"].notna().all()
