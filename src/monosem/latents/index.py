"""The index of a dictionary: one SQLite file that answers "what is this latent?" in milliseconds, without the model.

Written by `build_index`; what lies in the file stands in `layout`.
"""

import contextlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
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
from ..results import Result
from .evidence import Evidence, Example
from .layout import EDGES, SCHEMA, quantile, unpack
from .spelling import alone, readable

SHOWN_WORDS = 12  # of the words that a latent found by a search fires on
QUANTILES = (0.1, 0.5, 0.9, 0.99)


def index_of(dictionary: Dictionary) -> "Index | None":
    """The index that lies beside the dictionary's files, if there is one.

    Raises:
        Mismatch: it is of other weights. BadFile: it is damaged.
    """
    path = None if dictionary.folder is None else dictionary.folder / "index.sqlite"
    return Index(path, dictionary) if path is not None and path.exists() else None


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
        uri = f"file:{self.path.resolve().as_posix().replace('?', '%3f').replace('#', '%23')}?mode=ro&immutable=1"
        self.connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        with self._reading():
            rows = self._rows("SELECT key, value FROM meta")
            self.meta: dict[str, Any] = {key: json.loads(value) for key, value in rows}
        self.config = self.meta
        self._threshold = None if dictionary is None else dictionary.threshold
        if self.meta.get("schema") != SCHEMA:
            raise BadFile(f"{self.path} was made by another version of monosem; make it again")
        if dictionary is not None and self.meta["weights"] != dictionary.fingerprint:
            raise Mismatch(
                f"{self.path} was made with other weights than {dictionary.name or 'this dictionary'} has; "
                "make it again with `monosem latents index`"
            )

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        return self.connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What a damaged file brings about, from SQLite down to a number in a blob, is one error."""
        try:
            yield
        except MonosemError:
            raise
        except (sqlite3.DatabaseError, zlib.error, ValueError, TypeError, ArithmeticError, LookupError) as error:
            raise BadFile(f"{self.path} is not a latent index or is damaged ({error}); make it again") from error

    @property
    def width(self) -> int:
        return int(self.meta["width"])

    @property
    def table(self) -> pd.DataFrame:
        """One row a latent: count, density, maximum (of magnitudes), and moments of its activations where active.

        They are mean, sd, skew and kurtosis; kurtosis is Pearson's, 3 for a normal distribution (not the excess).
        """
        return self._table

    @cached_property
    def _table(self) -> pd.DataFrame:
        columns = ["latent", "count", "s1", "s2", "s3", "s4", "maximum"]
        with self._reading():
            rows = self._rows("SELECT id, count, s1, s2, s3, s4, maximum FROM latent ORDER BY id")
            raw = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[2:], float))
            if raw["latent"].tolist() != list(range(self.width)):
                raise ValueError(f"{len(raw)} of {self.width} latents")
        n = raw["count"].where(raw["count"] > 0)
        m1, m2, m3, m4 = (raw[f"s{i}"] / n for i in (1, 2, 3, 4))
        variance = (m2 - m1**2).clip(lower=0)
        sd = variance**0.5
        safe = sd.where(sd > 1e-6 * m1.abs())
        return pd.DataFrame(
            {
                "latent": raw["latent"],
                "count": raw["count"],
                "density": raw["count"] / self.meta["tokens"],
                "maximum": raw["maximum"],
                "mean": m1,
                "sd": sd,
                "skew": (m3 - 3 * m1 * m2 + 2 * m1**3) / safe**3,
                "kurtosis": (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / safe**4,
            }
        )

    @cached_property
    def densities(self) -> Float[Tensor, "width"]:
        """Share of counted tokens at which each latent is active."""
        return torch.tensor(self.table["density"].to_numpy(copy=True), dtype=torch.float32)

    @cached_property
    def maxima(self) -> Float[Tensor, "width"]:
        """The largest activation of each latent, in magnitude; 0 where it never fired."""
        return torch.tensor(self.table["maximum"].to_numpy(copy=True), dtype=torch.float32)

    def evidence(self, latent: int) -> Evidence:
        """Everything the index holds about a latent. Raises `UnknownName` outside 0..width-1, `BadFile` if damaged."""
        number = int(latent)
        if not 0 <= number < self.width:
            raise UnknownName(f"no latent {latent}: {self.meta['dictionary']} has latents 0 to {self.width - 1}")
        with self._reading():
            return self._evidence(number)

    def _evidence(self, latent: int) -> Evidence:
        ((count, s1, s2, maximum, histogram, tokens, promoted, suppressed),) = self._rows(
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
            histogram=[(float(EDGES[i]), float(EDGES[i + 1]), int(bins[i])) for i in bins.nonzero()[0]],
            tokens=[(self._token(i), n, total) for i, n, total in json.loads(tokens)],
            examples=self._examples(latent),
            promoted=[(self._token(i), value) for i, value in json.loads(promoted)],
            suppressed=[(self._token(i), value) for i, value in json.loads(suppressed)],
            provenance={
                key: self.meta[key] for key in ("model", "site", "tokens", "corpus", "skip") if key in self.meta
            },
        )

    def search(self, text: str, *, n: int = 20) -> pd.DataFrame:
        """At most n latents by the words that they fire on or promote, best match first.

        Raises:
            BadInput: nothing to search for. BadFile: damaged.
        """
        words = [word.replace('"', "") for word in text.split()]
        query = " OR ".join(f'"{word}"' for word in words if word)
        if not query:
            raise BadInput("nothing to search for; give a word")
        match = "SELECT rowid, fires, promotes FROM search WHERE search MATCH ?"
        with self._reading():
            hits = self._rows(f"{match} ORDER BY bm25(search, 2.0, 1.0) LIMIT ?", (query, n))
        shown = [(latent, *(" ".join(text.split()[:SHOWN_WORDS]) for text in texts)) for latent, *texts in hits]
        table = pd.DataFrame(shown, columns=["latent", "fires_on", "promotes"])
        return table.merge(self.table[["latent", "density", "maximum"]], on="latent", how="left")

    def _token(self, token: int) -> str:
        return alone(self._vocabulary.get(token, f"<{token}>"))

    @cached_property
    def _vocabulary(self) -> dict[int, str | bytes]:
        return dict(self._rows("SELECT id, text FROM token"))

    @cached_property
    def _documents(self) -> dict[int, str]:
        return dict(self._rows("SELECT id, name FROM document"))

    def _examples(self, latent: int) -> list[Example]:
        rows = self._rows("SELECT blob FROM examples WHERE latent = ?", (latent,))
        if not rows:
            return []
        return [
            Example(
                readable(self._vocabulary.get(i, f"<{i}>") for i in ids.tolist()),
                values.tolist(),
                anchor,
                self._documents.get(document, "?"),
                position,
            )
            for ids, values, anchor, document, position in unpack(rows[0][0])
        ]
