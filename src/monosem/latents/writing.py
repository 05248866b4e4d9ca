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
from .effects import extreme_tokens, reaches_logits
from .layout import SCHEMA, TABLES, pack
from .spelling import token_text

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
        names = counted.store.packing.documents
        connection.executemany(
            "INSERT INTO document VALUES (?, ?)", [(d, names[d] if names else f"window {d}") for d in sorted(documents)]
        )
        connection.executemany("INSERT INTO token VALUES (?, ?)", [(i, token_text(model, i)) for i in sorted(shown)])
        connection.commit()
        connection.execute("VACUUM")
    finally:
        connection.close()


def _write_examples(connection: sqlite3.Connection, counted: CorpusPass) -> tuple[set[int], set[int]]:
    """Gives the documents and the tokens that occur in the examples."""
    documents: set[int] = set()
    tokens: set[int] = set()
    for table, found in (("examples", counted.examples()), ("bands", counted.bands())):
        for latent, pieces in found:
            connection.execute(f"INSERT INTO {table} VALUES (?, ?)", (latent, pack(pieces)))
            tokens.update(*(piece[0].tolist() for piece in pieces))
            documents.update(piece[3] for piece in pieces)
    return documents, tokens


def _write_latents(connection: sqlite3.Connection, counted: CorpusPass, model: Model) -> set[int]:
    """Gives the tokens that occur in the lists of latents."""
    effects, words = _effects(model, counted.dictionary), counted.words.top(SHOWN_TOKENS)
    numbers = counted.numbers
    tokens: set[int] = set()
    for latent in range(counted.dictionary.width):
        promoted, suppressed = effects[latent]
        fires = [(i, n, round(total, 2)) for i, n, total in words.get(latent, [])]
        tokens.update(entry[0] for entry in (*promoted, *suppressed))
        tokens.update(entry[0] for entry in fires)
        row: tuple[Any, ...] = (
            latent,
            int(numbers.count[latent]),
            *(float(s) for s in numbers.sums[:, latent]),
            float(numbers.maximum[latent]),
            zlib.compress(numbers.histogram[latent].astype("<u4").tobytes(), 9),
            *(json.dumps(listed, separators=(",", ":")) for listed in (fires, promoted, suppressed)),
        )
        connection.execute("INSERT INTO latent VALUES (?,?,?,?,?,?,?,?,?,?,?)", row)
    return tokens


TokenEffects = list[tuple[int, float]]  # (token id, effect)


def _effects(model: Model, dictionary: Dictionary) -> list[tuple[TokenEffects, TokenEffects]]:
    """(promoted, suppressed) of every latent; empty where its site has no direct path to the logits."""
    if not reaches_logits(model, dictionary):
        return [([], [])] * dictionary.width
    up, up_values, down, down_values = (column.tolist() for column in extreme_tokens(model, dictionary, n=SHOWN_TOKENS))
    sides = zip(up, up_values, down, down_values)
    return [
        ([(i, round(v, 4)) for i, v in zip(a, b)], [(i, round(v, 4)) for i, v in zip(c, d)]) for a, b, c, d in sides
    ]
