"""Whether an index file is what `build_index` makes: every rule of the builder, checked in the file alone.

A rule is a row of `FILE_RULES` (one answer for the file) or of `LATENT_RULES` (answers for each latent).
"""

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..activations import SkipRule
from ..dictionaries import Dictionary
from ..errors import BadInput
from ..models import Model
from ..reading import parse_json
from ..results import Tabled, analysis
from .coactivation import unpack_pairs
from .corpus_pass import ECHO, PER_DOCUMENT
from .effects import extreme_tokens, reaches_logits
from .index import Index
from .layout import EDGES, READABLE, SAMPLES, Piece, band_of, decile_of, unpack
from .writing import SHOWN_TOKENS

HALF = 2e-3  # relative error of what is kept in half precision
SAMPLED = 32  # latents whose promoted tokens are computed again
SAID = ("model", "site", "dtype", "skip", "weights", "store", "windows", "context", "source", "effects")
KEPT = ("corpus", "examples", "bands", "band_examples", "left", "right")
KEPT_LATER = ("decile_examples", "uniform", "near")  # since schema 2


@dataclass(frozen=True)
class Entry:
    """Everything in the file about one latent; `meta` and `threshold` (0 where there is none) beside it."""

    latent: int
    count: int
    sums: tuple[float, float, float, float]
    maximum: float
    bins: np.ndarray
    tokens: list[tuple[int, int, float]]
    promoted: list[tuple[int, float]]
    suppressed: list[tuple[int, float]]
    samples: dict[str, list[Piece]]  # by table
    pairs: tuple[int, np.ndarray, np.ndarray] | None  # (count, others, both)
    meta: dict[str, Any]
    threshold: float

    @property
    def examples(self) -> list[Piece]:
        return self.samples["examples"]

    @property
    def pieces(self) -> list[Piece]:
        """Of all tables in which the anchor is active."""
        return [piece for table, held in self.samples.items() if table != "near" for piece in held]


@dataclass(frozen=True)
class IndexCheck(Tabled):
    """`table`: rule, checked (what it was applied to), broken (how many break it), first (a latent that does)."""

    @property
    def broken(self) -> dict[str, int]:
        """rule -> how often it is broken."""
        bad = self.table[self.table["broken"] > 0]
        return dict(zip(bad["rule"], bad["broken"].tolist()))

    @property
    def ok(self) -> bool:
        return not self.broken


@dataclass
class _Count:
    checked: int = 0
    broken: int = 0
    first: int | None = None


@analysis
def check_index(index: Index, *, model: Model | None = None) -> IndexCheck:
    """Check an index against every rule of its builder.

    Args:
        index: opened with its dictionary.
        model: that it was made with; then promoted and suppressed tokens are computed again for some latents, and no
            special token may be active.

    Raises:
        BadInput: an index opened without its dictionary. BadFile: damaged. Mismatch: a dictionary of another model.
    """
    if index.dictionary is None:
        raise BadInput("an index is checked together with its dictionary; open it with Index(path, dictionary)")
    found = {rule: _Count() for rule in (*FILE_RULES, *LATENT_RULES)}

    def count(rule: str, answers: Iterable[bool], latent: int | None = None) -> None:
        row = found.setdefault(rule, _Count())
        for answer in answers:
            row.checked += 1
            if not answer:
                row.broken += 1
                row.first = latent if row.first is None else row.first

    with index.reading():
        for rule, check in FILE_RULES.items():
            count(rule, check(index, index.dictionary))
        for entry in entries(index, index.dictionary):
            for name, answers in LATENT_RULES.items():
                count(name, answers(entry), entry.latent)
            if model is not None:
                special = set(model.special_ids)
                count("special tokens are silent", (_silent(piece, special) for piece in entry.pieces), entry.latent)
        if model is not None:
            count("promoted and suppressed tokens are the model's", _effects(index, index.dictionary, model))
    rows = [(rule, row.checked, row.broken, row.first) for rule, row in found.items()]
    return IndexCheck(pd.DataFrame(rows, columns=["rule", "checked", "broken", "first"]).astype({"first": "Int64"}))


def entries(index: Index, dictionary: Dictionary) -> Iterator[Entry]:
    """What the file says of each latent, in their order."""
    meta = dict.fromkeys((*KEPT, *KEPT_LATER), sys.maxsize) | {"bands": 0} | index.meta
    blobs = {table: dict(index.rows(f"SELECT latent, blob FROM {table}")) for table in index.blobs}
    held_pairs = index.rows("SELECT latent, count, others FROM coactive") if "coactive" in index.tables else []
    pairs = {latent: rest for latent, *rest in held_pairs}
    for row in index.rows(
        "SELECT id, count, s1, s2, s3, s4, maximum, histogram, tokens, promoted, suppressed FROM latent ORDER BY id"
    ):
        latent, count, *sums, maximum, histogram, tokens, promoted, suppressed = row
        pieces = {table: unpack(held[latent]) if latent in held else [] for table, held in blobs.items()}
        paired = (pairs[latent][0], *unpack_pairs(pairs[latent][1])[:2]) if latent in pairs else None
        yield Entry(
            latent,
            count,
            tuple(sums),
            maximum,
            np.frombuffer(zlib.decompress(histogram), dtype="<u4"),
            parse_json(tokens),
            parse_json(promoted),
            parse_json(suppressed),
            {table: pieces.get(table, []) for table in SAMPLES},
            paired,
            meta,
            0.0 if dictionary.threshold is None else max(float(dictionary.threshold[latent]), 0.0),
        )


# --- the file -------------------------------------------------------------------------------------------------------


def _all_tokens(index: Index, dictionary: Dictionary) -> Iterator[bool]:
    meta = index.meta
    yield meta["tokens"] + sum(meta["skipped"].values()) == meta["windows"] * meta.get("context", 0)


def _named(index: Index, dictionary: Dictionary) -> Iterator[bool]:
    """Every token and document that an example or a list names has its text."""
    tokens = {i for (i,) in index.rows("SELECT id FROM token")}
    documents = {i for (i,) in index.rows("SELECT id FROM document")}
    for entry in entries(index, dictionary):
        used = {i for listed in (entry.tokens, entry.promoted, entry.suppressed) for i, *_ in listed}
        used.update(*(piece[0].tolist() for piece in entry.pieces))
        yield used <= tokens and {piece[3] for piece in entry.pieces} <= documents


FILE_RULES: dict[str, Callable[[Index, Dictionary], Iterable[bool]]] = {
    "it is of this schema": lambda index, sae: [index.meta.get("schema") in READABLE],
    "it says what it is made of": lambda index, sae: [bool(index.meta.get(key)) for key in SAID],
    "it says how much is kept": lambda index, sae: [key in index.meta for key in KEPT],
    "it is of these weights": lambda index, sae: [index.meta["weights"] == sae.fingerprint],
    "it is of this site": lambda index, sae: [index.meta["site"] == str(sae.site)],
    "it has every latent once": lambda index, sae: [
        [i for (i,) in index.rows("SELECT id FROM latent ORDER BY id")] == list(range(sae.width)),
        index.width == sae.width,
    ],
    "skipped tokens are counted by reason": lambda index, sae: [
        bool(index.meta.get("skipped")) and "all reasons" not in index.meta["skipped"]
    ],
    "counted and skipped tokens are all": _all_tokens,
    "tokens and documents have names": _named,
}


# --- each latent ----------------------------------------------------------------------------------------------------


def _moments(e: Entry) -> Iterator[bool]:
    """Sums of powers that some numbers up to the maximum have (Cauchy-Schwarz)."""
    s1, s2, s3, s4 = e.sums
    slack = 1 + 1e-6
    yield s1**2 <= s2 * max(e.count, 1) * slack
    yield s2**2 <= s4 * max(e.count, 1) * slack
    yield s3**2 <= s2 * s4 * slack
    yield s2 <= e.count * e.maximum**2 * slack


def _maximum(e: Entry) -> Iterator[bool]:
    yield (e.maximum > 0) == (e.count > 0)
    if e.count:
        top = int(e.bins.nonzero()[0][-1])
        yield (EDGES[top] <= e.maximum or top == 0) and (e.maximum < EDGES[top + 1] or top == len(EDGES) - 2)


def _tokens(e: Entry) -> Iterator[bool]:
    mass = [abs(total) for *_, total in e.tokens]
    yield mass == sorted(mass, reverse=True)
    yield len(e.tokens) <= SHOWN_TOKENS
    yield len({(i, total < 0) for i, _, total in e.tokens}) == len(e.tokens)
    yield bool(e.tokens) == (e.count > 0)
    yield sum(n for _, n, _ in e.tokens) <= e.count
    for _, n, total in e.tokens:
        yield n > 0 and abs(total) <= n * e.maximum + 0.01


def _effect_lists(e: Entry) -> Iterator[bool]:
    for listed, sign in ((e.promoted, -1), (e.suppressed, 1)):
        effects = [sign * value for _, value in listed]
        yield effects == sorted(effects)
        yield len(listed) <= SHOWN_TOKENS and len({i for i, _ in listed}) == len(listed)
    yield not (e.promoted and e.suppressed) or e.promoted[0][1] >= e.suppressed[0][1]


def _strengths(pieces: list[Piece]) -> list[float]:
    return [abs(float(values[anchor])) for _, values, anchor, *_ in pieces]


def _numbers(e: Entry) -> Iterator[bool]:
    yield len(e.examples) <= e.meta["examples"]
    yield bool(e.examples) == (e.count > 0)


def _order(e: Entry) -> Iterator[bool]:
    found = _strengths(e.examples)
    yield found == sorted(found, reverse=True)
    if found:
        yield abs(found[0] - min(e.maximum, 65504)) <= HALF * e.maximum
    for ids, values, anchor, *_ in e.examples:
        yield abs(values[anchor]) == np.abs(values).max() and len(ids) == len(values)


def _cuts(e: Entry) -> Iterator[bool]:
    """As far as `left` and `right` go, or to a border: of the window on the left, of a document on either side."""
    for ids, _, anchor, _, position in e.pieces:
        yield 0 <= anchor <= min(e.meta["left"], position) and len(ids) - anchor - 1 <= e.meta["right"]


def _first_positions(e: Entry) -> Iterator[bool]:
    """The skip rule's first positions are silent."""
    first = SkipRule.parse(str(e.meta["skip"])).first
    for _, values, anchor, _, position in e.pieces:
        yield position >= first and not values[: max(0, first - (position - anchor))].any()


def _thresholds(e: Entry) -> Iterator[bool]:
    yield not e.count or e.maximum > e.threshold
    for _, values, *_ in e.pieces:
        active = np.abs(values[values != 0])
        yield bool((active >= e.threshold * (1 - HALF)).all()) and bool((active <= e.maximum * (1 + HALF)).all())


def _documents(e: Entry) -> Iterator[bool]:
    for pieces in e.samples.values():
        used: dict[int, int] = {}
        for *_, document, _ in pieces:
            used[document] = used.get(document, 0) + 1
            yield used[document] <= PER_DOCUMENT


def _duplicates(e: Entry) -> Iterator[bool]:
    """No two with the same token after the same eight."""
    span = min(ECHO, e.meta["left"])
    for pieces in e.samples.values():
        seen: set[bytes] = set()
        for ids, _, anchor, *_ in pieces:
            wording = ids[max(0, anchor - span) : anchor + 1].tobytes()
            yield wording not in seen
            seen.add(wording)


def _bands(e: Entry) -> Iterator[bool]:
    if not e.meta.get("bands"):
        return
    found = [band_of(value, e.maximum, e.meta["bands"]) for value in _strengths(e.samples["bands"])]
    yield found == sorted(found, reverse=True)
    yield bool(found) == (e.count > 0)
    for band in set(found):
        yield found.count(band) <= e.meta["band_examples"]


def _deciles(e: Entry) -> Iterator[bool]:
    if not e.samples["deciles"]:
        return
    found = [decile_of(e.bins, value) for value in _strengths(e.samples["deciles"])]
    yield found == sorted(found, reverse=True)
    for decile in set(found):
        yield found.count(decile) <= e.meta["decile_examples"]


def _near(e: Entry) -> Iterator[bool]:
    yield len(e.samples["near"]) <= e.meta["near"] and len(e.samples["uniform"]) <= e.meta["uniform"]
    for _, values, anchor, *_ in e.samples["near"]:
        yield values[anchor] == 0


def _pairs(e: Entry) -> Iterator[bool]:
    if e.pairs is not None:
        count, others, both = e.pairs
        yield count <= e.count and e.latent not in others and len({*others.tolist()}) == len(others)
        yield bool(((both > 0) & (both <= count)).all())


LATENT_RULES: dict[str, Callable[[Entry], Iterable[bool]]] = {
    "histograms add up to the count": lambda e: [int(e.bins.sum()) == e.count <= e.meta["tokens"]],
    "moments are possible": _moments,
    "the maximum is in the last bin": _maximum,
    "tokens: the most activation first, each once": _tokens,
    "promoted and suppressed tokens are in order": _effect_lists,
    "examples: not too many, and some where it fires": _numbers,
    "examples: the strongest first, from the maximum down": _order,
    "examples are cut around the token": _cuts,
    "first positions are silent": _first_positions,
    "activations lie between threshold and maximum": _thresholds,
    "at most two examples of a document": _documents,
    "no two examples with the same wording": _duplicates,
    "examples by interval": _bands,
    "examples by tenth": _deciles,
    "near misses are silent": _near,
    "pairs are possible": _pairs,
}


# --- with the model -------------------------------------------------------------------------------------------------


def _silent(piece: Piece, special: set[int]) -> bool:
    ids, values, *_ = piece
    return not any(value and i in special for i, value in zip(ids.tolist(), values.tolist()))


def _effects(index: Index, dictionary: Dictionary, model: Model) -> Iterator[bool]:
    """The effects of the listed tokens, and that none is larger, for some latents spread over the dictionary."""
    listed = {i: row for i, *row in index.rows("SELECT id, promoted, suppressed FROM latent")}
    if not reaches_logits(model, dictionary):
        yield all(parse_json(column) == [] for row in listed.values() for column in row)
        return
    some = torch.linspace(0, dictionary.width - 1, min(SAMPLED, dictionary.width)).long().unique()
    _, up, _, down = extreme_tokens(model, dictionary, some, n=SHOWN_TOKENS)
    for latent, *sides in zip(some.tolist(), up.tolist(), down.tolist()):
        for column, expected in zip(listed.get(latent, ("[]", "[]")), sides):
            effects = [value for _, value in parse_json(column)]
            yield len(effects) == len(expected) and np.allclose(effects, expected, rtol=0.02, atol=1e-3)
