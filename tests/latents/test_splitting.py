"""A planted family across three widths is found; random rows have no parents."""

import numpy as np
import pytest
import torch

from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.latents import splitting
from tiny_dictionaries import with_rows

D = 48


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def family():
    """8 latents; in the next dictionary 0 is split in three, 1 goes on, the rest is new; then one of three splits."""
    narrow = unit(draw(8, D))
    noise = unit(draw(40, D, seed=1))
    middle = torch.cat([narrow[[0, 0, 0]] + 0.5 * noise[:3], narrow[[1]], noise[10:22]])
    wide = torch.cat([unit(middle)[[0, 0]] + 0.4 * noise[24:26], middle[[3]], draw(29, D, seed=2)])
    return [with_rows(rows * 2, name) for name, rows in (("narrow", narrow), ("middle", middle), ("wide", wide))]


def test_parents_are_the_nearest_rows_and_the_tree_goes_through_all_widths():
    narrow, middle, wide = family()
    found = splitting([wide, narrow, middle], threshold=0.8)
    assert found.names == ("narrow", "middle", "wide")
    for own, above in ((middle, narrow), (wide, middle)):
        rows = found.table[found.table["dictionary"] == own.name]
        a, b = (one.W_dec.double().numpy() for one in (own, above))
        cosines = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
        assert rows["parent"].tolist() == cosines.argmax(1).tolist()
        assert np.allclose(rows["cosine"], cosines.max(1), atol=1e-6)
        assert rows["child"].tolist() == (cosines.max(1) >= 0.8).tolist()
    shares = found.shares.set_index("dictionary")
    assert shares.loc["middle", "share"] == pytest.approx(4 / 16)
    assert shares.loc["middle", "split"] == 1
    assert shares.loc["middle", "childless"] == 6
    assert shares.loc["wide", "share"] == pytest.approx(3 / 32)
    tree = found.family("wide", 1)
    assert (tree["dictionary"], tree["latent"], tree["cosine"], tree["asked"]) == ("narrow", 0, None, False)
    assert {child["latent"] for child in tree["children"]} == {0, 1, 2}
    first = next(child for child in tree["children"] if child["latent"] == 0)
    assert {(one["latent"], one["asked"]) for one in first["children"]} == {(0, False), (1, True)}
    assert found.family("wide", 20)["children"] == []
    assert found.splits(2)["latent"].tolist() == [0, 1]
    assert found.splits(1)["descendants"].tolist() == [5]


def test_random_rows_have_no_more_parents_than_the_null():
    narrow, wide = with_rows(draw(40, 12), "a"), with_rows(draw(400, 12, seed=9), "b")
    found = splitting([narrow, wide], threshold=0.6)
    (row,) = found.shares.to_dict("records")
    assert row["low"] < row["null_share"] + 0.05
    assert row["null_share"] == pytest.approx(row["share"], abs=0.08)
    assert 0.4 < (found.table["p"] < 0.5).mean() < 0.6  # p-values are uniform under the null
    assert found.table["p"].min() >= 1 / 401


def test_a_copy_is_beyond_the_null():
    rows = draw(60, D)
    found = splitting([with_rows(rows, "a"), with_rows(torch.cat([rows * 3, draw(40, D, seed=4)]), "b")])
    table = found.table
    assert table["child"].tolist() == [True] * 60 + [False] * 40
    assert (table["p"][:60] == 1 / 101).all()
    assert (table["p"][60:] > 0.011).mean() > 0.9
    assert found.shares["null_share"].item() == 0


def test_what_is_no_family_is_said():
    narrow, middle, _ = family()
    with pytest.raises(BadInput, match="two dictionaries or more"):
        splitting([narrow])
    with pytest.raises(BadInput, match="called 'narrow'"):
        splitting([narrow, narrow])
    assert splitting([narrow, narrow], names=["a", "b"]).table["cosine"].min() > 0.999
    with pytest.raises(BadInput, match="threshold"):
        splitting([narrow, middle], threshold=0)
    with pytest.raises(Mismatch, match="resid_post.1"):
        splitting([narrow, with_rows(draw(9, D), "other", site="resid_post.1")])
    found = splitting([narrow, middle])
    with pytest.raises(UnknownName):
        found.family("narrow", 8)
    with pytest.raises(UnknownName, match="dictionary"):
        found.family("wide", 0)
