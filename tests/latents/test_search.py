"""Searching an index: by words against what evidence says, by texts against a dense formula."""

import math

import pytest
import torch

from monosem.errors import BadInput, Mismatch
from monosem.latents import Index, IndexConfig, build_index
from tiny import tiny_model
from tiny_latents import MODEL, SITE, STORE, TOPK, WIDTH


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    path = tmp_path_factory.mktemp("index") / "index.sqlite"
    return build_index(MODEL, TOPK, STORE, path, IndexConfig(examples=5, left=4, right=2), quiet=True)


def shares(index: Index, word: str) -> tuple[list[float], list[float]]:
    """Of each latent's activation over its examples: at tokens of the word, and in examples with the word."""
    on, near = [], []
    for latent in range(WIDTH):
        at = beside = whole = 0.0
        for example in index.evidence(latent).examples:
            words = [token.strip().lower() for token in example.tokens]  # a word is a token here
            mass = sum(map(abs, example.activations))
            whole += mass
            beside += mass * (word in words)
            at += sum(abs(v) for v, w in zip(example.activations, words) if w == word)
        on.append(at / whole if whole else 0.0)
        near.append(beside / whole if whole else 0.0)
    return on, near


@pytest.mark.parametrize("word", ["moon", "night", "three"])
def test_words_are_found_by_the_activation_at_and_near_them(index, word):
    found = index.search(word, n=WIDTH)
    on, near = shares(index, word)

    def surprise(values: list[float], latent: int) -> float:
        mean = sum(values) / WIDTH
        return values[latent] * math.log(values[latent] / mean) if values[latent] > mean else 0.0

    expected = {latent: surprise(on, latent) + surprise(near, latent) for latent in range(WIDTH)}
    assert set(found["latent"]) >= {latent for latent, score in expected.items() if score > 0}
    for row in found.itertuples():
        assert row.score == pytest.approx(expected[row.latent], abs=1e-3)
        assert (row.on, row.near) == pytest.approx((on[row.latent], near[row.latent]), abs=1e-3)
        assert ("fires on it" in row.matched) == (surprise(on, row.latent) > 1e-9)
        assert ("fires near it" in row.matched) == (surprise(near, row.latent) > 1e-9)
        assert ("promotes it" in row.matched) == (word in [t.strip() for t, _ in index.evidence(row.latent).promoted])
    assert found["score"].is_monotonic_decreasing


def test_a_promoted_word_is_no_reason_to_be_first(index):
    promoted = {t.strip(): latent for latent in range(WIDTH) for t, _ in index.evidence(latent).promoted}
    fired_on = {w.strip() for i in range(WIDTH) for e in index.evidence(i).examples for w in e.tokens}
    word = next(word for word in promoted if word in fired_on and len(word) > 2)
    found = index.search(word.upper(), n=WIDTH)  # the vocabulary is in lower case: spelling in capitals finds it, too
    only = found["matched"] == "promotes it"
    assert (found["score"][only] == 0).all()
    assert found["score"][~only].min() > 0
    unseen = next((word for word in promoted if word not in fired_on), None)
    if unseen is not None:
        assert set(index.search(unseen, n=WIDTH)["matched"]) == {"promotes it"}


def test_a_word_of_several_tokens_is_found(index):
    assert len(MODEL.tokens(["king"]).rows()[0]) > 2
    row = index.search("king", n=WIDTH).iloc[0]
    assert row.on > 0.1
    text = ["".join(e.tokens).split() for e in index.evidence(row.latent).examples]
    assert any("king" in words for words in text)
    assert "fires on it" in row.matched


def test_no_part_of_a_word_and_no_syntax(index):
    assert index.search("moo").empty
    assert list(index.search("moo").columns) == list(index.search("moon").columns)
    assert len(index.search('"; DROP TABLE latent; -- (.*', n=5)) <= 5
    assert len(index.search("moon king", n=WIDTH)) >= len(index.search("moon", n=WIDTH))
    with pytest.raises(BadInput, match="nothing to search"):
        index.search("  ")


def test_texts_are_encoded(index):
    texts = ["a good king of day", "the queen sat on moon", "b bad queen"]
    found = index.search(examples=texts, model=MODEL, n=WIDTH).set_index("latent")
    counts = index.table["count"]
    per_text = []
    for text in texts:
        acts = TOPK.encode(MODEL.run(text, capture=SITE)[SITE])[:2]
        dense = torch.zeros(acts[0].shape[1], WIDTH).scatter_add(1, acts[1][0], acts[0][0])
        per_text.append(dense[1:])  # the first token does not count
    for latent in range(WIDTH):
        own = [acts[:, latent] for acts in per_text]
        highest = max(float(index.maxima[latent]), *(float(acts.max()) for acts in own))
        texts_in = sum(bool((acts > 0).any()) for acts in own) / len(texts)
        density = max(counts[latent], 1) / index.meta["tokens"]
        mass = sum(float(acts.mean()) for acts in own) / len(texts)
        score = mass / highest * texts_in * -math.log(density) if highest else 0.0
        if score <= 0:
            assert latent not in found.index
            continue
        assert found["score"][latent] == pytest.approx(score, rel=1e-3)
        assert found["texts"][latent] == pytest.approx(texts_in)
        text, place = max(((t, p) for t, a in enumerate(own) for p in range(len(a))), key=lambda at: own[at[0]][at[1]])
        token = MODEL.run(texts[text]).str_tokens[0][place + 1]
        assert found["matched"][latent].startswith(f"{token!r} {float(own[text][place]):.1f}")
    assert found["score"].is_monotonic_decreasing
    one = index.search(texts[0], model=MODEL, n=WIDTH)
    alone = index.search(examples=texts[:1], model=MODEL, n=WIDTH)
    assert one.equals(alone)


def test_what_cannot_be_searched_for(index):
    for nothing in ({}, {"text": "a", "examples": ["a b"]}):
        with pytest.raises(BadInput, match="search for words"):
            index.search(**nothing)
    with pytest.raises(BadInput, match="open the index with it"):
        Index(index.path).search(examples=["a b c"], model=MODEL)
    with pytest.raises(Mismatch):
        index.search(examples=["a b c"], model=tiny_model("gpt2", name="other"))
