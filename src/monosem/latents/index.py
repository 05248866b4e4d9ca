"""The index of a dictionary: one SQLite file that answers "what is this latent?" in milliseconds, without the model.

Written by `build_index`; what lies in the file stands in `layout`.
"""

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..dictionaries import Dictionary
from ..errors import BadFile, BadInput, Mismatch, MonosemError, UnknownName
from ..models import Model
from ..reading import parse_json
from ..results import Result
from .evidence import Band, Evidence, Example
from .explanations import Explanations, explanations_of
from .layout import READABLE, SAMPLES, Piece, band_of, bars_of, moments, quantile, share_below, unpack, unpack_logits
from .queries import ExampleText, by_texts, by_words
from .spelling import alone, readable

REBUILD = "make it again with `monosem latents index DICTIONARY --text PATH`"
QUANTILES = (0.1, 0.5, 0.9, 0.99)
# what a file that was changed was seen to bring about
_DAMAGE = (sqlite3.DatabaseError, zlib.error, ValueError, TypeError, AttributeError, ArithmeticError, LookupError)


def index_place(dictionary: Dictionary) -> Path | None:
    """Where the index beside a dictionary's files lies, or would."""
    return None if dictionary.folder is None else dictionary.folder / "index.sqlite"


def index_of(dictionary: Dictionary) -> "Index | None":
    """The index that lies beside the dictionary's files, if there is one.

    Raises:
        Mismatch: it is of other weights. BadFile: it is damaged.
    """
    path = index_place(dictionary)
    return Index(path, dictionary) if path is not None and path.exists() else None


def is_index(path: Path) -> bool:
    """Whether a file is an index, of whatever version and dictionary."""
    try:
        with contextlib.closing(_opened(path)) as connection:
            return connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() is not None
    except sqlite3.Error:
        return False


def _opened(path: Path) -> sqlite3.Connection:
    uri = f"file:{path.resolve().as_posix().replace('?', '%3f').replace('#', '%23')}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


class Index(Result):
    """An opened index (read-only, also from a read-only folder); `config` is what `meta` says of its making.

    Opened with its dictionary, quantiles are never below the latent's threshold.

    Raises:
        BadFile: missing, damaged, or made by another version. Mismatch: made with other weights than `dictionary`'s.
    """

    ranked_by: ClassVar[str | None] = "density"

    def __init__(self, path: str | os.PathLike[str], dictionary: Dictionary | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise BadFile(f"no index {self.path}; make one with `monosem latents index`")
        self.connection = _opened(self.path)
        with self.reading():
            rows = self.rows("SELECT key, value FROM meta")
            self.meta: dict[str, Any] = {key: parse_json(value) for key, value in rows}
        self.config = self.meta
        self.dictionary = dictionary
        self._threshold = None if dictionary is None else dictionary.threshold
        if self.meta.get("schema") not in READABLE:
            raise BadFile(f"{self.path} was made by another version of monosem; {REBUILD}")
        if dictionary is not None and self.meta["weights"] != dictionary.fingerprint:
            raise Mismatch(
                f"{self.path} was made with other weights than {dictionary.name or 'this dictionary'} has; {REBUILD}"
            )

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """What an SQL query gives (tables: `layout.TABLES`)."""
        return self.connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """What a damaged file brings about, from SQLite down to a number in a blob, is one error."""
        try:
            yield
        except MonosemError:
            raise
        except _DAMAGE as error:
            raise BadFile(f"{self.path} is not a latent index or is damaged ({error}); make it again") from error

    @cached_property
    def tables(self) -> set[str]:
        """The tables that it has: fewer where an earlier version made it (`meta["schema"]`)."""
        return {name for (name,) in self.rows("SELECT name FROM sqlite_master")}

    @property
    def blobs(self) -> list[str]:
        """The tables of packed examples that it has."""
        return [name for name in SAMPLES if name in self.tables]

    @property
    def width(self) -> int:
        return int(self.meta["width"])

    @property
    def table(self) -> pd.DataFrame:
        """One row a latent: count, density, maximum (of magnitudes), and moments of its activations where active.

        They are mean, sd, skew and kurtosis; kurtosis is Pearson's, 3 for a normal distribution (not the excess).

        An index of this version says more: consistency (firings a window in which it fires), run (mean length of its
        runs of neighbouring tokens), common (share of the most common token it fires on), entropy and entropy_before
        (of the tokens it fires on, and of the tokens before these; in bits), and logit_sd, logit_skew, logit_kurtosis
        (of its direct effects on all tokens).
        """
        return self._table

    @cached_property
    def _table(self) -> pd.DataFrame:
        columns = ["latent", "count", "s1", "s2", "s3", "s4", "maximum"]
        with self.reading():
            rows = self.rows("SELECT id, count, s1, s2, s3, s4, maximum FROM latent ORDER BY id")
            numbers = dict.fromkeys(columns[:2], int) | dict.fromkeys(columns[2:], float)
            raw = pd.DataFrame(rows, columns=columns).astype(numbers)
            if raw["latent"].tolist() != list(range(self.width)):
                raise ValueError(f"{len(raw)} of {self.width} latents")
        density = raw["count"] / self.meta["tokens"]
        about = {"latent": raw["latent"], "count": raw["count"], "density": density, "maximum": raw["maximum"]}
        found = about | moments(*(raw[name].to_numpy(float) for name in ("count", "s1", "s2", "s3", "s4")))
        return pd.DataFrame(
            found | (self._more(raw["count"].where(raw["count"] > 0)) if self.meta["schema"] > 1 else {})
        )

    def _more(self, count: pd.Series) -> dict[str, Any]:
        """Columns of later schemas."""
        columns = ["windows", "runs", "common", "entropy", "entropy_before", "logits"]
        with self.reading():
            rows = pd.DataFrame(self.rows(f"SELECT {', '.join(columns)} FROM latent ORDER BY id"), columns=columns)
            numbers = rows[columns[:-1]].astype(float)
            effects = [[np.nan] * 3 if blob is None else unpack_logits(blob)[0] for blob in rows["logits"]]
        logits = dict(zip(("logit_sd", "logit_skew", "logit_kurtosis"), np.array(effects).reshape(-1, 3).T))
        rates = {"consistency": count / numbers["windows"], "run": count / numbers["runs"]}
        return rates | {name: numbers[name] for name in columns[2:-1]} | logits

    def moments_of_all(self, latent: int) -> dict[str, float]:
        """mean, sd, skew and kurtosis of a latent over all counted tokens; where it is silent it is 0."""
        with self.reading():
            (sums,) = self.rows("SELECT s1, s2, s3, s4 FROM latent WHERE id = ?", (latent,))
            found = moments(*np.array([[self.meta["tokens"], *sums]], dtype=float).T)
        return {name: float(column[0]) for name, column in found.items()}

    @cached_property
    def densities(self) -> Float[Tensor, "width"]:
        """Share of counted tokens at which each latent is active."""
        return torch.tensor(self.table["density"].to_numpy(copy=True), dtype=torch.float32)

    @cached_property
    def maxima(self) -> Float[Tensor, "width"]:
        """The largest activation of each latent, in magnitude; 0 where it never fired."""
        return torch.tensor(self.table["maximum"].to_numpy(copy=True), dtype=torch.float32)

    @cached_property
    def signs(self) -> Float[Tensor, "width"]:
        """1, or -1 for latents whose activations are negative on the whole (only where codes have signs: abstopk).

        k times a latent's maximum, in the direction in which it fires, is `k * signs[i] * maxima[i]`.
        """
        return torch.where(torch.tensor(self.table["mean"].to_numpy(copy=True)) < 0, -1.0, 1.0)

    @cached_property
    def explanations(self) -> Explanations | None:
        """Labels of its latents, where its dictionary comes with explanations."""
        return None if self.dictionary is None else explanations_of(self.dictionary)

    def evidence(self, latent: int) -> Evidence:
        """Everything the index holds about a latent. Raises `UnknownName` outside 0..width-1, `BadFile` if damaged."""
        number = self.checked(latent)
        with self.reading():
            return self._evidence(number)

    def checked(self, latent: int) -> int:
        """A latent's number. Raises `UnknownName` outside 0..width-1."""
        number = int(latent)
        if not 0 <= number < self.width:
            raise UnknownName(f"no latent {latent}: {self.meta['dictionary']} has latents 0 to {self.width - 1}")
        return number

    def _evidence(self, latent: int) -> Evidence:
        ((count, s1, s2, maximum, histogram, tokens, promoted, suppressed),) = self.rows(
            "SELECT count, s1, s2, maximum, histogram, tokens, promoted, suppressed FROM latent WHERE id = ?", (latent,)
        )
        bins = np.frombuffer(zlib.decompress(histogram), dtype="<u4")
        mean = s1 / count if count else 0.0
        lowest = 0.0 if self._threshold is None else float(self._threshold[latent])
        return Evidence(
            latent=latent,
            dictionary=self.meta["dictionary"],
            count=count,
            density=count / self.meta["tokens"],
            maximum=maximum,
            mean=mean,
            sd=max(s2 / count - mean**2, 0.0) ** 0.5 if count else 0.0,
            quantiles={f"quantile {q:g}": quantile(bins, q, maximum, lowest) for q in QUANTILES} if count else {},
            histogram=bars_of(bins, maximum, lowest),
            tokens=[(self.token(i), n, total) for i, n, total in parse_json(tokens)],
            examples=self.examples(latent),
            promoted=[(self.token(i), value) for i, value in parse_json(promoted)],
            suppressed=[(self.token(i), value) for i, value in parse_json(suppressed)],
            provenance={
                key: self.meta[key] for key in ("model", "site", "tokens", "corpus", "skip") if key in self.meta
            },
            bands=self._bands(latent, bins, maximum),
            explanation=None if self.explanations is None else self.explanations.all.get(latent),
        )

    def search(
        self,
        text: str | None = None,
        *,
        examples: Sequence[str] | None = None,
        model: Model | None = None,
        n: int = 20,
    ) -> pd.DataFrame:
        """At most n latents by what they fire on, best match first: by words, or by texts that are encoded.

        `search("French")` looks for words in the stored examples (of several, each counts). Column `on` is the share of
        a latent's activation over its examples that lies at the word, `near` the share in examples that have it
        anywhere; score is the sum of share × ln(share / its mean over all latents) of both. Latents that only promote
        the word come last.

        `search(examples=["def f(x):", ...])` and `search("def f(x):", model=model)` find latents that fire on such
        texts: score is the mean share of the latent's maximum × the share of texts in which it fires × ln(1 / density).

        What was left out of the texts is in the table's `attrs["tokens"]`, as `config["tokens"]` of other results.

        Column `matched` says what was found: `fires on it`, `fires near it`, `promotes it`, or the tokens of the texts
        at which the latent is strongest. `fires_on` and `promotes` are what the index says of the latent.

        Args:
            text: words; with a `model`, a text to encode. examples: texts that have in common what is looked for.
            model: that the dictionary is of; by default loaded by the name that the index holds, where texts are given.

        Raises:
            BadInput: nothing or both to search for; an index without its dictionary. BadFile: damaged.
        """
        from ..models import load_model

        if (text is None) == (examples is None):
            raise BadInput("search for words (text), or for texts like some (examples)")
        if text is not None and model is None:
            with self.reading():
                promoted = [row[0] for row in self.rows("SELECT promoted FROM latent ORDER BY id")]
                found = by_words(text, self._example_text, promoted, self._vocabulary).head(n)
        else:
            if self.dictionary is None:
                raise BadInput("texts are encoded with the dictionary; open the index with it: Index(path, dictionary)")
            texts = [text] if text is not None else list(examples or [])
            counts = np.maximum(self.table["count"].to_numpy(), 1)  # a latent that never fired is a rare one
            lm = load_model(self.meta["model"]) if model is None else model
            densities = counts / self.meta["tokens"]
            found = by_texts(lm, self.dictionary, texts, self.maxima.numpy(), densities, n)
        words = self.words_of(found["latent"].tolist()).values()
        for column in ("fires_on", "promotes"):
            found[column] = [" ".join(map(str.strip, own[column])) for own in words]
        whole = found.merge(self.table[["latent", "density", "maximum"]], on="latent", how="left")
        whole.attrs = found.attrs
        return whole

    def words_of(self, latents: Sequence[int]) -> dict[int, dict[str, list[str]]]:
        """Latent -> the tokens that it `fires_on` and `promotes`, strongest first. Raises `BadFile` if damaged."""
        query = "SELECT tokens, promoted FROM latent WHERE id = ?"
        with self.reading():
            return {
                latent: {
                    name: [self.token(entry[0]) for entry in parse_json(listed)]
                    for name, listed in zip(("fires_on", "promotes"), self.rows(query, (latent,))[0])
                }
                for latent in map(int, latents)
            }

    def containing(self, text: str, n: int = 100) -> list[int]:
        """Latents whose strongest examples have all of these words, the best match (BM25) first; quick, for a search as
        you type. Raises `BadInput` for no words, or an index without full-text search."""
        words = text.split()
        if not words or "words" not in self.tables:
            raise BadInput("give words to look for" if not words else f"this index has no full-text search; {REBUILD}")
        asked = " ".join('"' + word.replace('"', '""') + '"' for word in words)
        with self.reading():
            return [
                i for (i,) in self.rows("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?", (asked, n))
            ]

    @cached_property
    def _example_text(self) -> ExampleText:
        return ExampleText.read(self.rows("SELECT latent, blob FROM examples"), self._vocabulary)

    def token(self, token: int) -> str:
        """The text of a token that occurs in it."""
        return alone(self._vocabulary.get(token, f"<{token}>"))

    @cached_property
    def _vocabulary(self) -> dict[int, str | bytes]:
        return dict(self.rows("SELECT id, text FROM token"))

    @cached_property
    def seen(self) -> dict[int, tuple[int, int]]:
        """Of each token that occurs in it, how often it was counted, and stood before a counted one."""
        return {i: (counted, before) for i, counted, before in self.rows("SELECT id, counted, before FROM token")}

    @cached_property
    def paired(self) -> dict[int, tuple[int, float, float]]:
        """Of each latent the count, sum and sum of squares that belong to the counts of pairs."""
        return {i: (count, s1, s2) for i, count, s1, s2 in self.rows("SELECT latent, count, s1, s2 FROM coactive")}

    @cached_property
    def _documents(self) -> dict[int, str]:
        return dict(self.rows("SELECT id, name FROM document"))

    def examples(self, latent: int, table: str = "examples") -> list[Example]:
        """The examples of one of its `blobs`."""
        rows = self.rows(f"SELECT blob FROM {table} WHERE latent = ?", (latent,))
        return [self.example(piece) for piece in unpack(rows[0][0])] if rows else []

    def example(self, piece: Piece) -> Example:
        """A packed example as text."""
        ids, values, anchor, document, position = piece
        tokens = readable(self._vocabulary.get(i, f"<{i}>") for i in ids.tolist())
        return Example(tokens, values.tolist(), anchor, self._documents.get(document, "?"), position, ids.tolist())

    def _bands(self, latent: int, bins: np.ndarray, maximum: float) -> list[Band]:
        n = self.meta.get("bands", 0)
        if not n or not bins.any():
            return []
        inside: dict[int, list[Example]] = {}
        for example in self.examples(latent, "bands"):
            inside.setdefault(band_of(example.maximum, maximum, n), []).append(example)
        edges = [maximum * i / n for i in range(n + 1)]
        below = [0.0, *(share_below(bins, edge) for edge in edges[1:-1]), 1.0]
        return [
            Band(edges[i], edges[i + 1], below[i + 1] - below[i], inside.get(i, []))
            for i in reversed(range(n))
            if below[i + 1] > below[i] or i in inside
        ]
