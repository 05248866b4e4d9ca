"""Writing an index: all tables in one transaction."""

import json
import sqlite3
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..dictionaries import Dictionary
from ..models import Model
from .corpus_pass import CorpusPass
from .effects import logit_effects, logit_histogram, logit_moments, reaches_logits
from .layout import SAMPLES, SCHEMA, TABLES, WORDS, pack, pack_logits, unpack
from .silence import pack_latents
from .spelling import readable, token_text

SHOWN_TOKENS = 12  # of the tokens that a latent fires on, promotes, suppresses


def write(path: Path, counted: CorpusPass, model: Model, about: Mapping[str, Any]) -> None:
    """Write an index at a temporary place, which the caller renames.

    Args:
        about: what `meta` says of the making, beside the schema, the dictionary, its width and the counted tokens.
    """
    path.unlink()
    connection = sqlite3.connect(path)
    dictionary = counted.dictionary
    numbers = {"schema": SCHEMA, "dictionary": dictionary.name, "width": dictionary.width, "tokens": counted.tokens}
    meta = {**about, **numbers}
    try:
        connection.executescript(TABLES)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in meta.items()])
        documents, shown = _write_examples(connection, counted)
        shown |= _write_latents(connection, counted, model)
        _write_pairs(connection, counted)
        if counted.neurons is not None:
            kept = counted.neurons.kept(counted.numbers, counted.tokens, counted.config.neurons)
            connection.executemany("INSERT INTO neurons VALUES (?, ?)", enumerate(map(json.dumps, kept)))
        names, seen = counted.store.packing.documents, counted.seen
        connection.executemany(
            "INSERT INTO document VALUES (?, ?)", [(d, names[d] if names else f"window {d}") for d in sorted(documents)]
        )
        texts = {i: token_text(model, i) for i in sorted(shown)}
        connection.executemany(
            "INSERT INTO token VALUES (?, ?, ?, ?)",
            [(i, text, int(seen[0, i]), int(seen[1, i])) for i, text in texts.items()],
        )
        _write_words(connection, texts)
        connection.commit()
        connection.execute("VACUUM")
    finally:
        connection.close()


def _write_examples(connection: sqlite3.Connection, counted: CorpusPass) -> tuple[set[int], set[int]]:
    """Gives the documents and the tokens that occur in the examples."""
    documents: set[int] = set()
    tokens: set[int] = set()
    for table in SAMPLES:
        for latent, pieces, values in counted.samples(table):
            # what activations do not say: how near a silent token was
            row = (latent, pack(pieces)) if table != "near" else (latent, pack(pieces), json.dumps(values))
            connection.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
            tokens.update(*(piece[0].tolist() for piece in pieces))
            documents.update(piece[3] for piece in pieces)
    for number, (piece, active) in enumerate(counted.places()):
        connection.execute("INSERT INTO silent VALUES (?, ?, ?)", (number, pack([piece]), pack_latents(active)))
        tokens.update(piece[0].tolist())
        documents.add(piece[3])
    return documents, tokens


def _write_latents(connection: sqlite3.Connection, counted: CorpusPass, model: Model) -> set[int]:
    """Gives the tokens that occur in the lists of latents."""
    numbers, vocabulary = counted.numbers, counted.seen.shape[1]
    effects = _effects(model, counted.dictionary)
    lists = [tallies.top(SHOWN_TOKENS) for tallies in (counted.words, counted.before, counted.bigrams)]
    (common, entropy), (_, entropy_before) = (
        tallies.spread(numbers.count) for tallies in (counted.words, counted.before)
    )
    tokens: set[int] = set()
    for latent in range(counted.dictionary.width):
        promoted, suppressed, logits = effects[latent]
        fires, before, pairs = (_rounded(one.get(latent, [])) for one in lists)
        bigrams = [(code // vocabulary, code % vocabulary, n, total) for code, n, total in pairs]
        tokens.update(token for token, _ in (*promoted, *suppressed))
        tokens.update(token for token, _, _ in (*fires, *before))
        tokens.update(token for first, second, *_ in bigrams for token in (first, second))
        row: tuple[Any, ...] = (
            latent,
            int(numbers.count[latent]),
            *(float(s) for s in numbers.sums[:, latent]),
            float(numbers.maximum[latent]),
            zlib.compress(numbers.histogram[latent].astype("<u4").tobytes(), 9),
            *(json.dumps(listed, separators=(",", ":")) for listed in (fires, promoted, suppressed)),
            int(numbers.windows[latent]),
            int(numbers.runs[latent]),
            *(float(one[latent]) for one in (common, entropy, entropy_before)),
            *(json.dumps(listed, separators=(",", ":")) for listed in (before, bigrams)),
            zlib.compress(counted.sets.count[latent].astype("<u4").tobytes(), 9),
            logits,
        )
        connection.execute(f"INSERT INTO latent VALUES ({','.join('?' * len(row))})", row)
    sets, seen = counted.sets.sets, counted.seen[0]
    rows = [(i, name, int(seen[member].sum())) for i, (name, member) in enumerate(zip(sets.names, sets.members))]
    connection.executemany("INSERT INTO token_set VALUES (?, ?, ?)", rows)
    return tokens


def _rounded(listed: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    return [(code, count, round(total, 2)) for code, count, total in listed]


def _write_pairs(connection: sqlite3.Connection, counted: CorpusPass) -> None:
    if (pairs := counted.pairs) is None:
        return
    for latent in range(counted.dictionary.width):
        count, s1, s2 = pairs.own[:, latent].tolist()
        blob = pairs.kept(latent, counted.config.pairs, counted.tokens)
        connection.execute("INSERT INTO coactive VALUES (?, ?, ?, ?, ?)", (latent, int(count), s1, s2, blob))


def _write_words(connection: sqlite3.Connection, texts: Mapping[int, str | bytes]) -> None:
    """The texts of each latent's strongest examples, where this SQLite can search in text."""
    try:
        connection.execute(WORDS)
    except sqlite3.OperationalError:  # built without FTS5
        return
    for latent, blob in connection.execute("SELECT latent, blob FROM examples").fetchall():
        body = "\n".join("".join(readable(texts[i] for i in piece[0].tolist())) for piece in unpack(blob))
        connection.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (latent, body))


TokenEffects = list[tuple[int, float]]  # (token id, effect)


def _effects(model: Model, dictionary: Dictionary) -> list[tuple[TokenEffects, TokenEffects, bytes | None]]:
    """(promoted, suppressed, packed statistics) of every latent; empty where there is no direct path to the logits."""
    if not reaches_logits(model, dictionary):
        return [([], [], None)] * dictionary.width
    found: list[tuple[TokenEffects, TokenEffects, bytes | None]] = []
    for chunk in logit_effects(model, dictionary):
        moments = logit_moments(chunk).T.cpu().numpy()
        up, down = (chunk.topk(min(SHOWN_TOKENS, chunk.shape[1]), largest=largest) for largest in (True, False))
        sides = [
            [[(i, round(v, 4)) for i, v in zip(*row)] for row in zip(side.indices.tolist(), side.values.tolist())]
            for side in (up, down)
        ]
        for row, (promoted, suppressed), three in zip(chunk.cpu(), zip(*sides), moments):
            edges, counts = logit_histogram(row)
            found.append((promoted, suppressed, pack_logits(three, edges, counts)))
    return found
