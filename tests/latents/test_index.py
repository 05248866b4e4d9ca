"""The latent index against a brute-force computation over the same windows, and as a file that can be broken."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from monosem.activations import ActivationShards, SkipRule, harvest
from monosem.data import Document, TokenStore
from monosem.dictionaries import Dictionary
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.latents import Index, IndexConfig, build_index, index_of
from monosem.latents.layout import EDGES, pack, unpack
from monosem.latents.spelling import alone, byte_alphabet, readable, token_text
from monosem.latents.tallies import echoes
from monosem.models import Model
from tiny import tiny_hf
from tiny_dictionaries import random_tensors, tiny_dictionary
from tiny_latents import MODEL, SAE, SITE, STORE, TOPK, WIDTH, WORDS, dictionary, documents


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    path = tmp_path_factory.mktemp("index") / "index.sqlite"
    return build_index(MODEL, TOPK, STORE, path, IndexConfig(examples=5, left=4, right=2, corpus="made up"), quiet=True)


@pytest.fixture(scope="module")
def dense() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(activations [tokens, width], token ids, windows, positions) of every counted token, the slow way."""
    parts = [(TOPK.encode(b[SITE]).dense(), b.tokens, b.windows, b.positions) for b in harvest(MODEL, STORE, SITE)]
    return tuple(torch.cat(column) for column in zip(*parts))


def test_numbers_equal_brute_force(index, dense):
    acts = dense[0].double()
    active = acts > 0
    count = active.sum(0)
    table = index.table
    assert index.meta["tokens"] == len(acts)
    assert table["count"].tolist() == count.tolist()
    np.testing.assert_allclose(index.densities, count / len(acts), rtol=1e-6)
    np.testing.assert_allclose(index.maxima, acts.amax(0), rtol=1e-6)
    for latent in range(WIDTH):
        own = acts[:, latent][active[:, latent]].numpy()
        if len(own) < 3:
            continue
        row = table.iloc[latent]
        z = (own - own.mean()) / own.std()
        expected = [own.mean(), own.std(), (z**3).mean(), (z**4).mean()]
        np.testing.assert_allclose(
            row[["mean", "sd", "skew", "kurtosis"]].astype(float), expected, rtol=1e-4, atol=1e-6
        )
        evidence = index.evidence(latent)
        assert sum(n for *_, n in evidence.histogram) == len(own)
        *bars, (last, end, strongest) = evidence.histogram
        assert (end, (own >= last).sum()) == (own.max(), strongest)
        for low, high, n in bars:
            assert ((own >= low) & (own < high)).sum() == n
        for name, value in evidence.quantiles.items():
            q = float(name.split()[1])
            nearest = np.quantile(own, q, method="inverted_cdf")
            assert nearest / (EDGES[1] / EDGES[0]) <= value <= nearest * (EDGES[1] / EDGES[0]) * 1.001


def test_no_quantile_is_below_the_threshold(tmp_path):
    highest = torch.stack([SAE.encode(b[SITE]).dense().amax(0) for b in harvest(MODEL, STORE, SITE)]).amax(0)
    edge = torch.tensor(EDGES)[np.searchsorted(EDGES, highest.numpy()) - 1]  # of the bin in which all active ones lie
    threshold = torch.where(highest > 0, edge + 0.8 * (highest - edge), 1).float()
    sae = Dictionary(replace(SAE.parts, kind="jumprelu", tensors=replace(SAE.tensors, threshold=threshold)))
    made = build_index(MODEL, sae, STORE, tmp_path / "i.sqlite", quiet=True)
    found = [e for e in map(made.evidence, range(WIDTH)) if e.count]
    assert len(found) > 5
    for evidence in found:
        low, high = float(threshold[evidence.latent]), evidence.maximum
        assert all(low <= value <= high for value in evidence.quantiles.values())
        assert (evidence.histogram[0][0], evidence.histogram[-1][1]) == pytest.approx((low, high))


def test_examples_are_the_strongest_and_their_context_is_the_text(index, dense):
    acts, _, windows, positions = dense
    at = {(int(w), int(p)): i for i, (w, p) in enumerate(zip(windows, positions))}
    border = STORE.packing.separator
    for latent in range(WIDTH):
        examples = index.evidence(latent).examples
        best: dict[int, tuple[float, int]] = {}
        for (window, position), i in at.items():
            value = float(acts[i, latent])
            if value > best.get(window, (0.0, 0))[0]:
                best[window] = (value, position)
        ranked = sorted(((v, w, p) for w, (v, p) in best.items()), key=lambda r: (-r[0], r[1]))
        expected, used, seen = [], {}, set()
        for _, window, position in ranked:
            document = STORE.document(window, position)
            row = STORE[window].tolist()
            start = max([position - 4, 0, *(i + 1 for i in range(position) if row[i] == border)])
            end = min([position + 3, 32, *(i for i in range(position + 1, 32) if row[i] == border)])
            ids, wording = row[start:end], tuple(row[start : position + 1])  # with left=4, 4 tokens tell wordings apart
            if wording in seen:
                continue
            seen.add(wording)
            if len(expected) < 5 and used.get(document, 0) < 2:
                used[document] = used.get(document, 0) + 1
                around = [float(acts[at[window, j], latent]) if (window, j) in at else 0.0 for j in range(start, end)]
                expected.append(([MODEL.str_token(i) for i in ids], around, document, position))
        assert len(examples) == len(expected)
        for example, (tokens, around, document, position) in zip(examples, expected):
            assert example.tokens == tokens
            assert example.activations == pytest.approx(around, rel=2e-3, abs=1e-3)
            assert (example.document, example.position) == (document, position)
            assert example.maximum == max(example.activations)


def test_token_statistics_equal_brute_force(index, dense):
    acts, ids, _, _ = dense
    for latent in (0, 7, 21):
        found = {token: (n, mass) for token, n, mass in index.evidence(latent).tokens}
        for token in ids.unique().tolist():
            where = ids == token
            name = MODEL.str_token(token)
            if name in found:
                n = int((acts[where, latent] > 0).sum())
                assert found[name] == (n, pytest.approx(float(acts[where, latent].sum()), rel=1e-3, abs=0.02))


def test_promoted_tokens_and_texts_to_show(index):
    evidence = index.evidence(7)
    effect = (TOPK.W_dec[7] * MODEL.final_gain) @ MODEL.W_U
    effect = effect - effect.mean()
    assert [t for t, _ in evidence.promoted] == [MODEL.str_token(int(i)) for i in effect.topk(12).indices]
    assert evidence.suppressed[0][1] == pytest.approx(float(effect.min()), rel=1e-3)
    text = evidence.as_text().plain
    assert "latent 7 of tiny" in text
    assert repr(evidence) == f"<Evidence of {text.splitlines()[0]}>"
    assert evidence.examples[0].document in text
    assert "http" not in evidence.html.replace("http://www.w3.org", "")


def test_html_escapes_names_and_tokens():
    from monosem.latents import Evidence, Example

    hostile = "</script><script>alert(1)</script>"
    example = Example([hostile, "\n", "&"], [1.0, 0.5, 0.0], 0, "d", 3)
    shown = Evidence(0, hostile, 1, 0.1, 1.0, 1.0, 0.0, {}, [], [(hostile, 1, 1.0)], [example], [], []).html
    assert "<script>alert" not in shown
    assert "&lt;script&gt;alert" in shown


def test_packing_round_trip():
    rng = np.random.default_rng(0)
    pieces = []
    for n in (1, 33, 7):
        ids = rng.integers(0, 300_000, n).astype("<u4")
        values = rng.random(n).astype("<f2").astype(np.float32)
        pieces.append((ids, values, int(rng.integers(n)), int(rng.integers(10**6)), 9))
    for (a, b, *c), (d, e, *f) in zip(pieces, unpack(pack(pieces)), strict=True):
        assert np.array_equal(a, d)
        assert np.array_equal(b, e)
        assert c == f


def test_from_shards_equals_from_the_model(index, tmp_path):
    shards = ActivationShards.build(MODEL, STORE, SITE, tmp_path / "shards", shard_windows=7)
    again = build_index(
        MODEL, TOPK, STORE, tmp_path / "i.sqlite", IndexConfig(examples=5, left=4, right=2), shards=shards, quiet=True
    )
    # the shards were made in batches of another size: float32 noise, and at most one step of the half precision that
    # examples are kept in
    pd.testing.assert_frame_equal(again.table, index.table, rtol=1e-5)
    for latent in range(WIDTH):
        for one, other in zip(again.evidence(latent).examples, index.evidence(latent).examples, strict=True):
            assert one == replace(other, activations=pytest.approx(other.activations, rel=1e-3))
    other = TokenStore.build(MODEL, documents(seed=1), context=32)
    with pytest.raises(Mismatch, match="another token store"):
        build_index(MODEL, TOPK, other, tmp_path / "j.sqlite", shards=shards, quiet=True)


CHILD = """
    import sys
    sys.path[:0] = {tests!r}
    import torch
    from test_index import MODEL, STORE, TOPK
    from monosem.latents import IndexConfig, build_index
    from monosem.latents.corpus_pass import CorpusPass
    add, n = CorpusPass.add, [0]
    def slow(self, batch):
        add(self, batch)
        n[0] += 1
        if n[0] == 4:
            print("four", flush=True)
            sys.stdin.read()
    CorpusPass.add = slow
    config = IndexConfig(examples=5, left=4, right=2, corpus="made up", batch_size=4, save_tokens=100)
    build_index(MODEL, TOPK, STORE, {path!r}, config, quiet=True)
"""


def test_killed_and_resumed_gives_the_same_index(index, tmp_path):
    path = tmp_path / "index.sqlite"
    code = textwrap.dedent(CHILD).format(tests=[str(p) for p in Path(__file__).parents[:2]], path=str(path))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"four\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    partial = tmp_path / "index.sqlite.partial"
    assert partial.exists()
    assert not path.exists()
    with pytest.raises(Mismatch, match="other settings"):
        build_index(MODEL, TOPK, STORE, path, IndexConfig(examples=3), quiet=True)
    config = IndexConfig(examples=5, left=4, right=2, corpus="made up", batch_size=4)
    again = build_index(MODEL, TOPK, STORE, path, config, quiet=True)
    assert not partial.exists()
    assert again.meta == index.meta
    np.testing.assert_allclose(again.table.to_numpy(), index.table.to_numpy(), rtol=1e-5)
    for latent in range(WIDTH):
        a, b = again.evidence(latent), index.evidence(latent)
        assert [(e.tokens, e.document) for e in a.examples] == [(e.tokens, e.document) for e in b.examples]
        assert [(t, n) for t, n, _ in a.tokens] == [(t, n) for t, n, _ in b.tokens]


def test_a_token_limit_reads_so_many_windows(tmp_path):
    some = build_index(
        MODEL, SAE, STORE, tmp_path / "i.sqlite", IndexConfig(tokens=96), quiet=True, skip=SkipRule(outlier=None)
    )
    assert some.meta["windows"] == 3
    assert some.meta["tokens"] <= 96


def read_all(path: Path) -> None:
    found = Index(path)
    assert len(found.table) == WIDTH
    for latent in range(WIDTH):
        found.evidence(latent)


def test_damage_and_mismatch(index, tmp_path):
    with pytest.raises(UnknownName, match="latents 0 to 39"):
        index.evidence(40)
    with pytest.raises(Mismatch, match="other weights"):
        Index(index.path, SAE)
    with pytest.raises(BadFile, match="no index"):
        Index(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database at all" * 100)
    with pytest.raises(BadFile, match="damaged"):
        Index(tmp_path / "text.sqlite")
    whole = index.path.read_bytes()
    (tmp_path / "cut.sqlite").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(BadFile):
        read_all(tmp_path / "cut.sqlite")
    shutil.copy(index.path, tmp_path / "old.sqlite")
    with sqlite3.connect(tmp_path / "old.sqlite") as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    with pytest.raises(BadFile, match="another version"):
        Index(tmp_path / "old.sqlite")
    with pytest.raises(Mismatch):
        build_index(MODEL, dictionary(model_name="other"), STORE, tmp_path / "x.sqlite")


def test_the_index_beside_a_dictionary_is_found(tmp_path):
    from monosem.dictionaries import load_dictionary

    SAE.save(tmp_path / "sae")
    loaded = load_dictionary(tmp_path / "sae")
    assert index_of(loaded) is None
    build_index(MODEL, loaded, STORE, tmp_path / "sae" / "index.sqlite", quiet=True)
    found = index_of(load_dictionary(tmp_path / "sae"))
    assert found is not None
    assert found.width == WIDTH
    assert index_of(SAE) is None


def test_every_token_is_counted_or_skipped(index):
    assert index.meta["tokens"] + sum(index.meta["skipped"].values()) == STORE.tokens
    assert index.meta["skipped"]["first"] == len(STORE)
    assert index.meta["skipped"]["special"] > 0


def test_one_long_document_does_not_crowd_out_the_others(tmp_path):
    """The long one has more of the strongest windows of every latent than there are candidates."""
    rng = np.random.default_rng(2)
    long = Document("long", " ".join(rng.choice(WORDS, 2500)))
    store = TokenStore.build(MODEL, [long, *documents(12)], context=32)
    found = build_index(MODEL, TOPK, store, tmp_path / "i.sqlite", IndexConfig(examples=5), quiet=True)
    widely = [i for i in range(WIDTH) if found.table["count"][i] > 300]
    assert widely
    for latent in widely:
        names = [example.document for example in found.evidence(latent).examples]
        assert len(names) == 5
        assert names.count("long") <= 2


def test_a_site_off_the_stream_has_no_promoted_tokens(tmp_path):
    inside = tiny_dictionary("relu", random_tensors(48, WIDTH, seed=0), site="mlp_post.1", model_name="llama")
    found = build_index(MODEL, inside, STORE, tmp_path / "i.sqlite", IndexConfig(tokens=320), quiet=True)
    assert found.evidence(3).promoted == found.evidence(3).suppressed == []
    assert "not in the stream" in found.meta["effects"]
    assert found.evidence(3).examples


def test_damage_inside_the_file(index, tmp_path):
    """Bytes changed at random either do no harm or give a clear error."""
    rng = np.random.default_rng(0)
    whole = index.path.read_bytes()
    path = tmp_path / "flipped.sqlite"
    refused = 0
    for _ in range(40):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 20):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            read_all(path)
        except BadFile:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("table", "column"), [("token", "text"), ("latent", "tokens"), ("latent", "s1"), ("examples", "blob")]
)
def test_values_that_are_missing_inside_the_file(index, tmp_path, table, column):
    path = tmp_path / "nulls.sqlite"
    shutil.copy(index.path, path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE {table} SET {column} = NULL")
    with pytest.raises(BadFile, match="make it again"):
        read_all(path)


@pytest.fixture
def partial(tmp_path, monkeypatch):
    """An index that was interrupted when everything was read."""
    path = tmp_path / "i.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr("monosem.latents.indexing.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_index(MODEL, TOPK, STORE, path, IndexConfig(batch_size=4, save_tokens=100), quiet=True)
    return path


def test_damaged_partial_index(partial):
    (partial.parent / "i.sqlite.partial" / "state.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(BadFile, match="delete it to start anew"):
        build_index(MODEL, TOPK, STORE, partial, quiet=True)


def test_a_partial_index_with_another_skip_rule_is_refused(partial):
    with pytest.raises(Mismatch, match=r"other settings \(skip: .*special=True.*, now .*\)"):
        build_index(MODEL, TOPK, STORE, partial, IndexConfig(batch_size=4), skip=SkipRule(special=False), quiet=True)


def test_an_index_that_fails_before_it_saves_leaves_nothing(tmp_path):
    with pytest.raises(BadInput, match="no token of this text counts"):
        build_index(MODEL, TOPK, STORE, tmp_path / "i.sqlite", skip=SkipRule(first=64, outlier=None), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_before_the_pass(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        build_index(MODEL, TOPK, STORE, tmp_path / "file" / "i.sqlite", quiet=True)


def test_what_is_no_index_is_not_replaced(tmp_path):
    other = tmp_path / "notes.sqlite"
    with contextlib.closing(sqlite3.connect(other)) as notes:
        notes.execute("CREATE TABLE meta (key, value)")
    before = other.read_bytes()
    (tmp_path / "folder").mkdir()
    for path, says in ((other, "no latent index"), (tmp_path / "folder", "it is a folder")):
        with pytest.raises(BadInput, match=says):
            build_index(MODEL, TOPK, STORE, path, quiet=True)
    assert other.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"notes.sqlite", "folder"}


def test_a_disk_that_is_full_while_words_are_written_loses_nothing(index, tmp_path, monkeypatch):
    class Full(sqlite3.Connection):
        def executemany(self, query, rows):
            words = "INTO words" in query
            # SQLite stops at the first step and rolls back all, as on a full disk; what comes after has room
            self.set_progress_handler((lambda: 1) if words else None, 1)
            try:
                return super().executemany(query, rows)
            finally:
                self.set_progress_handler(None, 1)

    path = tmp_path / "i.sqlite"
    shutil.copy(index.path, path)
    before, connect = path.read_bytes(), sqlite3.connect
    config = IndexConfig(examples=5, left=4, right=2, corpus="made up", batch_size=4, save_tokens=100)
    with monkeypatch.context() as full:
        full.setattr(sqlite3, "connect", lambda *place, **how: connect(*place, **{"factory": Full} | how))
        with pytest.raises(BadFile, match="cannot write") as refused:
            build_index(MODEL, TOPK, STORE, path, config, quiet=True)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before
    assert (tmp_path / "i.sqlite.partial" / "state.npz").exists()
    again = build_index(MODEL, TOPK, STORE, path, config, quiet=True)
    assert again.rows("SELECT count(*) FROM words") == index.rows("SELECT count(*) FROM words")


def test_boilerplate_is_shown_once(tmp_path):
    """The same opening in every document is one example, however often it is the strongest."""
    rng = np.random.default_rng(4)
    opening = "we they you were it not very happy child house tree sea"
    many = [Document(str(i), f"{opening} {' '.join(rng.choice(WORDS, 24))}") for i in range(60)]
    store = TokenStore.build(MODEL, many, context=32)
    found = build_index(MODEL, TOPK, store, tmp_path / "i.sqlite", IndexConfig(examples=5, left=12), quiet=True)
    frequent = [i for i in range(WIDTH) if found.table["count"][i] > 400]
    assert frequent
    for latent in frequent:
        examples = found.evidence(latent).examples
        assert len(examples) == 5
        wordings = {tuple(e.tokens[max(0, e.anchor - 8) : e.anchor + 1]) for e in examples}
        assert len(wordings) == 5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(0, 4))
def test_echoes_tell_wordings_apart(row, span):
    """Against tuples: the token and up to `span` tokens before it, back to the last border (token 0)."""
    found = echoes(np.array([row]), border=0, span=span)[0]
    wordings = []
    for at in range(len(row)):
        start = max(0, at - span)
        borders = [i + 1 for i in range(start, at) if row[i] == 0]
        wordings.append(tuple(row[max([start, *borders]) : at + 1]))
    for i, one in enumerate(wordings):
        for j, other in enumerate(wordings):
            assert (found[i] == found[j]) == (one == other)


# ---------------------------------------------------------------------- bytes


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=12), st.randoms(use_true_random=False))
def test_characters_spread_over_tokens_are_readable(text, random):
    raw = text.encode(errors="ignore")
    cuts = sorted(random.sample(range(len(raw) + 1), min(len(raw), random.randint(0, 6))))
    tokens = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)])]
    shown = readable(tokens)
    assert len(shown) == len(tokens)
    assert "".join(shown) == raw.decode()


def test_a_broken_character_does_not_swallow_its_neighbour():
    assert readable([b"\xc3", " cat"]) == ["", "\ufffd cat"]
    assert readable(["a", b"\xf0\x9f"]) == ["a", "\ufffd"]
    assert alone(b"\xd9\x8a") == "⟨D9 8A⟩"


def test_tokens_of_a_byte_level_vocabulary():
    """One token a byte, spelled as the tokenizers library spells bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    model = Model(tiny_hf("llama", vocab_size=256), PreTrainedTokenizerFast(tokenizer_object=core), "bytes")
    assert set(byte_alphabet()) == set(alphabet)
    text = "né 😀\n"
    tokens = [token_text(model, i) for i in model.tokenizer(text).input_ids]
    assert tokens == ["n", b"\xc3", b"\xa9", " ", b"\xf0", b"\x9f", b"\x98", b"\x80", "\n"]
    assert readable(tokens) == ["n", "", "é", " ", "", "", "", "😀", "\n"]


def test_an_empty_token_shows_its_strength_at_the_character_it_begins():
    from monosem.latents import Example

    example = Example(["a", "", "é", "b"], [0.0, 3.0, 1.0, 0.5], 1, "d", 1)
    assert list(example.shown()) == [("a", 0.0), ("é", 3.0), ("b", 0.5)]
    assert example.maximum == 3.0


@pytest.mark.parametrize(("table", "column"), [("latent", "tokens"), ("latent", "promoted"), ("meta", "value")])
def test_values_that_are_nested_without_end(index, tmp_path, table, column):
    path = tmp_path / "nested.sqlite"
    shutil.copy(index.path, path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", ("[" * 100_000,))
    with pytest.raises(BadFile, match="make it again"):
        read_all(path)
