"""Writing an index: all tables in one transaction."""

import itertools
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dictionaries import Dictionary
from ..models import Model
from .corpus_pass import CorpusPass
from .effects import logit_effects, logit_histograms, logit_moments, reaches_logits
from .layout import SAMPLES, SCHEMA, TABLES, WORDS, pack, pack_logits, packed
from .sampling import Samples
from .silence import pack_latents
from .spelling import readable, token_text

SHOWN_TOKENS = 12  # of the tokens that a latent fires on, promotes, suppresses


Row = tuple[Any, ...]
_written = json.JSONEncoder(separators=(",", ":")).encode


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

    def insert(table: str, rows: Iterable[Row]) -> None:
        rows = iter(rows)
        if first := next(rows, None):
            values = ",".join("?" * len(first))
            connection.executemany(f"INSERT INTO {table} VALUES ({values})", itertools.chain([first], rows))

    try:
        connection.executescript(TABLES)
        insert("meta", [(key, json.dumps(value)) for key, value in meta.items()])
        occurring = Occurring(set(), set())
        strongest = counted.samples("examples")
        for table in SAMPLES:
            insert(table, _examples(table, strongest if table == "examples" else counted.samples(table), occurring))
        insert("silent", _silent(counted, occurring))
        insert("latent", _latents(counted, model, occurring))
        sets, seen = counted.sets.sets, counted.seen
        members = enumerate(zip(sets.names, sets.members))
        insert("token_set", ((i, name, int(seen[0][member].sum())) for i, (name, member) in members))
        insert("coactive", _pairs(counted))
        if counted.neurons is not None:
            kept = counted.neurons.kept(counted.numbers, counted.tokens, counted.config.neurons)
            insert("neurons", enumerate(map(json.dumps, kept)))
        names = counted.store.packing.documents
        insert("document", ((d, names[d] if names else f"window {d}") for d in sorted(occurring.documents)))
        texts = {i: token_text(model, i) for i in sorted(occurring.tokens)}
        insert("token", ((i, text, int(seen[0, i]), int(seen[1, i])) for i, text in texts.items()))
        if _searchable(connection):
            connection.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", _words(strongest, texts))
        connection.commit()
        connection.execute("VACUUM")
    finally:
        connection.close()


def _searchable(connection: sqlite3.Connection) -> bool:
    """Make the table of words; False where this SQLite has no full-text search."""
    try:
        connection.execute(WORDS)
    except sqlite3.OperationalError as error:
        if "no such module" not in str(error):
            raise
        return False
    return True


@dataclass(frozen=True)
class Occurring:
    """Documents and tokens that occur in what was written so far."""

    documents: set[int]
    tokens: set[int]

    def add(self, documents: Iterable[int], tokens: Iterable[int]) -> None:
        self.documents.update(documents)
        self.tokens.update(tokens)


def _examples(table: str, found: Samples, occurring: Occurring) -> Iterator[Row]:
    occurring.add(np.unique(found.head[:, 2]).tolist(), np.unique(found.ids).tolist())
    for latent, own, text in found.by_latent():
        blob = packed(found.head[own], found.ids[text], found.activations[text])
        # what activations do not say: how near a silent token was
        yield (latent, blob) if table != "near" else (latent, blob, json.dumps(found.value[own].tolist()))


def _silent(counted: CorpusPass, occurring: Occurring) -> Iterator[Row]:
    for number, (piece, active) in enumerate(counted.places()):
        occurring.add([piece[3]], piece[0].tolist())
        yield number, pack([piece]), pack_latents(active)


def _latents(counted: CorpusPass, model: Model, occurring: Occurring) -> Iterator[Row]:
    numbers, vocabulary = counted.numbers, counted.seen.shape[1]
    lists = [tallies.top(SHOWN_TOKENS) for tallies in (counted.words, counted.before, counted.bigrams)]
    (common, entropy), (_, entropy_before) = (
        tallies.spread(numbers.count) for tallies in (counted.words, counted.before)
    )
    shares = np.stack([common, entropy, entropy_before], axis=1).tolist()
    for latent, (promoted, suppressed, logits) in enumerate(_effects(model, counted.dictionary)):
        fires, before, pairs = (_rounded(one.get(latent, [])) for one in lists)
        bigrams = [(code // vocabulary, code % vocabulary, n, total) for code, n, total in pairs]
        listed = (promoted, suppressed, fires, before, bigrams, [one[1:] for one in bigrams])
        occurring.add([], (one[0] for some in listed for one in some))
        yield (
            latent,
            int(numbers.count[latent]),
            *numbers.sums[:, latent].tolist(),
            float(numbers.maximum[latent]),
            zlib.compress(numbers.histogram[latent].astype("<u4").tobytes(), 9),
            *map(_written, (fires, promoted, suppressed)),
            int(numbers.windows[latent]),
            int(numbers.runs[latent]),
            *shares[latent],
            *map(_written, (before, bigrams)),
            zlib.compress(counted.sets.count[latent].astype("<u4").tobytes(), 9),
            logits,
        )


def _rounded(listed: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    return [(code, count, round(total, 2)) for code, count, total in listed]


def _pairs(counted: CorpusPass) -> Iterator[Row]:
    if (pairs := counted.pairs) is None:
        return
    own = zip(pairs.own[0].astype(int).tolist(), *pairs.own[1:].tolist())
    for latent, (sums, blob) in enumerate(zip(own, pairs.kept(counted.config.pairs, counted.tokens))):
        yield (latent, *sums, blob)


def _words(found: Samples, texts: Mapping[int, str | bytes]) -> Iterator[Row]:
    """The texts of each latent's strongest examples, a line each."""
    pieces = [texts[i] for i in found.ids.tolist()]
    ends = np.cumsum(found.head[:, 0], dtype=np.int64).tolist()
    for latent, own, text in found.by_latent():
        cuts = itertools.pairwise([text.start, *ends[own]])
        yield latent, "\n".join("".join(readable(pieces[start:end])) for start, end in cuts)


TokenEffects = list[tuple[int, float]]  # (token id, effect)


def _effects(model: Model, dictionary: Dictionary) -> Iterator[tuple[TokenEffects, TokenEffects, bytes | None]]:
    """(promoted, suppressed, packed statistics) of every latent; empty where there is no direct path to the logits."""
    if not reaches_logits(model, dictionary):
        yield from [([], [], None)] * dictionary.width
        return
    for chunk in logit_effects(model, dictionary):
        ends, counts = logit_histograms(chunk)
        numbers = torch.cat([logit_moments(chunk).T, ends], dim=1).cpu().numpy()
        up, down = (chunk.topk(min(SHOWN_TOKENS, chunk.shape[1]), largest=largest) for largest in (True, False))
        sides = [
            [[(i, round(v, 4)) for i, v in zip(*row)] for row in zip(side.indices.tolist(), side.values.tolist())]
            for side in (up, down)
        ]
        yield from zip(*sides, map(pack_logits, numbers, counts.cpu().numpy()))
