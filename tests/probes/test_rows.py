"""States of texts against runs of one text, and splits that keep groups together."""

import random
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosem.directions import Mean, Regex
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.probes import Place, Rows, folds, near_duplicates, read_rows, split
from monosem.probes.splits import check_apart
from tiny_latents import MODEL, SAE

TEXTS = [f"{a} {w} {b}" for w in ("good", "bad") for a in "abcd" for b in ("the cat", "e f", "sun moon day king")]
LABELS = [text[2] == "g" for text in TEXTS]


def test_states_are_those_of_each_text_alone():
    rows = read_rows(MODEL, TEXTS, LABELS, ["resid_post.1", "z.0"][:1], positions=["last", "mean", -2, 1], batch_size=5)
    assert rows.lengths.unique().numel() > 1
    site = MODEL.site("resid_post.1")
    for i in (0, 7, 23):
        x = MODEL.run([TEXTS[i]], capture=site)[site][0]
        for position, expected in {"last": x[-1], "mean": x[1:].mean(0), -2: x[-2], 1: x[1]}.items():
            found = rows.at(Place((site,), position)).x[0, i]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    every = read_rows(MODEL, TEXTS, LABELS, site, positions="all", batch_size=5)
    x = MODEL.run([TEXTS[7]], capture=site)[site][0]
    torch.testing.assert_close(every.x[0, 7][: len(x)], x, rtol=1e-4, atol=1e-5)
    assert every.mask[7].tolist() == [False, *[True] * (len(x) - 1), *[False] * (every.mask.shape[1] - len(x))]


def test_positions_are_those_of_directions():
    texts = [f"the {word} sat on a mat" for word in ("cat", "dog", "king")]
    at = ["regex:sat", ~Regex("sat") & Mean(), -1]
    rows = read_rows(MODEL, texts, [1, 0, 0], ["resid_post.0", "resid_post.1"], positions=at, batch_size=2)
    assert [str(place) for place in rows.places][:3] == [f"resid_post.0@{one}" for one in ("regex:sat", at[1], "last")]
    x = MODEL.run(texts[1], capture="resid_post.1")["resid_post.1"][0]
    where = [MODEL.str_token(token) for token in MODEL.tokens(texts[1]).ids[0].tolist()].index(" sat")
    others = [i for i in range(1, len(x)) if i != where]
    for place, expected in zip(rows.places[3:], (x[where], x[others].mean(0), x[-1])):
        torch.testing.assert_close(rows.at(place).x[0, 1], expected, rtol=1e-4, atol=1e-5)
        assert Place.parse(place.written()) == place
    with pytest.raises(BadInput, match="has no token that counts at resid_post.0 at regex:queen"):
        read_rows(MODEL, texts, [1, 0, 0], "resid_post.0", positions="regex:queen")


def test_a_name_stands_for_every_layer_and_sites_with_heads_are_flat():
    rows = read_rows(MODEL, TEXTS, LABELS, "resid_post")
    assert [str(one) for one in rows.places] == [f"resid_post.{i}@last" for i in range(MODEL.cfg.n_layers)]
    z = read_rows(MODEL, TEXTS, LABELS, "z.0")
    assert z.x.shape == (1, 24, MODEL.cfg.n_heads * MODEL.cfg.d_head)
    joined = rows.joined()
    assert joined.x.shape == (1, 24, MODEL.cfg.n_layers * MODEL.cfg.d_model)
    torch.testing.assert_close(joined.x[0, 3, : MODEL.cfg.d_model], rows.x[0, 3])
    assert Place.parse(joined.places[0].written()) == joined.places[0]
    with pytest.raises(BadInput, match="needs a probe of one site"):
        _ = joined.places[0].site


def test_latents_of_a_dictionary_are_states_too():
    rows = read_rows(MODEL, TEXTS, LABELS, SAE.latents)
    assert rows.x.shape == (1, 24, SAE.width)
    x = MODEL.run([TEXTS[4]], capture=SAE.site).last(SAE.site)
    torch.testing.assert_close(rows.x[0, 4], SAE.encode(x).dense()[0], rtol=1e-3, atol=1e-4)


def test_a_suffix_is_read_after_each_text():
    rows = read_rows(MODEL, TEXTS[:4], LABELS[:3] + [False], "resid_post.1", suffix=" one two")
    x = MODEL.run([TEXTS[2] + " one two"], capture="resid_post.1")["resid_post.1"][0, -1]
    torch.testing.assert_close(rows.x[0, 2], x, rtol=1e-4, atol=1e-5)
    assert rows.texts[2] == TEXTS[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "give a list of texts"),
        ({"labels": [1]}, "one label a text; got 24 and 1"),
        ({"positions": []}, "positions are given once each"),
        ({"positions": ["all", "last"]}, "'all' alone"),
        ({"positions": -9}, "so no token -9"),
        ({"sites": ["resid_post.0", "resid_post.0"]}, "each once"),
    ],
)
def test_reading_refuses(arguments, message):
    given = {"texts": TEXTS, "labels": LABELS, "sites": "resid_post.0"} | arguments
    with pytest.raises(BadInput, match=message):
        read_rows(MODEL, **given)
    with pytest.raises(UnknownName):
        read_rows(MODEL, TEXTS, LABELS, "resid_past")


# ---------------------------------------------------------------------- splits
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=30, max_size=80), st.integers(0, 10))
def test_no_group_is_in_two_parts_and_no_row_is_lost(rows, seed):
    groups, y = zip(*rows)
    made = Rows(torch.arange(len(rows)).double()[None, :, None], torch.tensor(y), groups=groups)
    try:
        parts = split(made, seed=seed)
    except BadInput:
        assert min(len({g for g, label in rows if label is wanted}) for wanted in (True, False)) < 6
        return
    seen = torch.cat([part.x.flatten() for part in parts])
    assert seen.sort().values.tolist() == list(range(len(rows)))
    names = [{groups[int(i)] for i in part.x.flatten()} for part in parts]
    assert sum(map(len, names)) == len(set.union(*names))
    assert all(min(part.named.values()) > 0 for part in parts)


def test_shares_are_about_as_asked():
    made = Rows(torch.randn(1, 400, 2), torch.arange(400) % 4 == 0)
    sizes = [len(part) for part in split(made)]
    assert sizes == [pytest.approx(n, abs=4) for n in (200, 80, 120)]
    assert [len(a) for a in split(made)] == sizes
    assert not torch.equal(split(made, seed=1).test.x, split(made, seed=2).test.x)


def test_folds_hold_every_row_out_once():
    made = Rows(torch.arange(60).double()[None, :, None], torch.arange(60) % 2 == 0, groups=torch.arange(60) // 4)
    pairs = folds(made, 5)
    assert torch.cat([held.x.flatten() for _, held in pairs]).sort().values.tolist() == list(range(60))
    for train, held in pairs:
        check_apart(train, held)
    with pytest.raises(BadInput, match="folds need"):
        folds(made, 40)


def test_groups_and_texts_that_leak_are_refused():
    rows = read_rows(MODEL, TEXTS, LABELS, "resid_post.1", groups=[text[0] for text in TEXTS])
    other = read_rows(MODEL, TEXTS[:2], LABELS[:2], "resid_post.1", groups=["a", "z"])
    with pytest.raises(BadInput, match="groups leak: 1 groups, such as 'a',"):
        check_apart(rows, other)
    named = read_rows(MODEL, TEXTS[:2], LABELS[:2], "resid_post.1", groups=["y", "z"])
    with pytest.raises(BadInput, match="texts leak: 2 texts"):
        check_apart(rows, named)
    few = Rows(torch.randn(1, 20, 2), torch.arange(20) < 10, groups=["x", "y"] * 10)
    with pytest.raises(BadInput, match="of 2 groups, and groups are kept together"):
        split(few)
    with pytest.raises(BadInput, match="shares are three numbers"):
        split(few, (0.5, 0.5, 0.5))


def test_texts_that_begin_alike_are_one_group():
    long = "the same beginning of a text that goes on for quite a while "
    found = near_duplicates([long + "here", "other", long.upper() + "- there", "third"], [1, 2, 3, 2])
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert found[0] != found[1]


def test_near_duplicates_share_half_of_their_runs_of_words():
    """Against every pair compared by hand; the texts are cut, put together and changed at random."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefgh", k=draw.randint(1, 12))) for _ in range(40)]
    texts += [f"{draw.choice('xyz')} {text}" for text in texts[:20]] + [texts[20] + "!", texts[21].upper()]

    def runs(text):
        words = text.lower().rstrip("!").split()
        return {tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}

    groups = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        one, other = runs(texts[i]), runs(texts[j])
        if 2 * len(one & other) >= len(one | other):
            groups = [groups[i] if group == groups[j] else group for group in groups]
    found = near_duplicates(texts)
    assert 1 < len({*found}) < len(texts)
    assert [[a == b for b in found] for a in found] == [[a == b for b in groups] for a in groups]
    cities = [f"The city of {name} is in Russia." for name in ("Omsk", "Perm", "Tomsk")]
    assert len({*near_duplicates(cities)}) == 3
    copied = "It was " + (long := "a slow film that never finds out what it wants to say") + ", they wrote"
    assert len({*near_duplicates([long, copied])}) == 1


def test_one_place_by_number_name_or_place():
    rows = Rows(torch.randn(2, 4, 3), torch.tensor([1, 0, 1, 0]))
    assert torch.equal(rows.at(1).x, rows.at("resid_post.1").x)
    with pytest.raises(BadInput, match="is 0 of the places"):
        rows.at("resid_post.7")
    with pytest.raises((Mismatch, BadInput)):
        Rows(torch.randn(2, 4, 3), torch.tensor([1, 0, 1, 0]), places=(rows.places[0],))
