"""How an index lies in its SQLite file: tables, the bins of histograms, and packed examples.

Tables: `meta` (key, JSON value); `latent` (numbers, histogram, token lists); `examples` (the strongest, one compressed
blob a latent); `bands` (examples drawn from intervals of activation, likewise); `document` (id, name); `token` (id, and
text, or bytes where they are not whole characters: the tokens that occur).
"""

import math
import zlib

import numpy as np
import pandas as pd

SCHEMA = 1
EDGES = 2.0 ** np.linspace(-10, 14, 65)  # of the 64 histogram bins; values outside fall into the first or last
BINS = len(EDGES) - 1

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE latent (id INTEGER PRIMARY KEY, count INTEGER, s1 REAL, s2 REAL, s3 REAL, s4 REAL, maximum REAL,
                     histogram BLOB, tokens TEXT, promoted TEXT, suppressed TEXT);
CREATE TABLE examples (latent INTEGER PRIMARY KEY, blob BLOB);
CREATE TABLE bands (latent INTEGER PRIMARY KEY, blob BLOB);
CREATE TABLE document (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE token (id INTEGER PRIMARY KEY, text TEXT);
"""


Piece = tuple[np.ndarray, np.ndarray, int, int, int]  # token ids, activations, anchor, document, position


def pack(pieces: list[Piece]) -> bytes:
    """All examples of a latent, compressed: n, n × (length, anchor, document, position), token ids, activations."""
    head = np.array(
        [[len(ids), anchor, document, position] for ids, _, anchor, document, position in pieces], dtype="<u4"
    )
    ids = np.concatenate([piece[0] for piece in pieces]).astype("<u4")
    values = np.concatenate([piece[1] for piece in pieces]).astype("<f2")
    body = np.array([len(pieces)], dtype="<u4").tobytes() + head.tobytes() + _planes(ids) + _planes(values.view("<u2"))
    return zlib.compress(body, 9)


def unpack(blob: bytes) -> list[Piece]:
    head, ids, values = unpacked(blob)
    cuts = np.cumsum(head[:-1, 0])
    return [
        (i, v, int(anchor), int(document), int(position))
        for i, v, (_, anchor, document, position) in zip(np.split(ids, cuts), np.split(values, cuts), head)
    ]


def unpacked(blob: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`[examples, 4]` (length, anchor, document, position); token ids and activations of all examples, one after the
    other."""
    body = zlib.decompress(blob)
    n = int(np.frombuffer(body, "<u4", 1)[0])
    head = np.frombuffer(body, "<u4", 4 * n, 4).reshape(n, 4)
    total, start = int(head[:, 0].sum()), 4 + 16 * n
    ids = _unplanes(body[start : start + 4 * total], "<u4")
    return head, ids, _unplanes(body[start + 4 * total :], "<u2").view("<f2").astype(np.float32)


def _planes(values: np.ndarray) -> bytes:
    """All first bytes, then all second bytes, ...: high bytes repeat, so that zlib finds them."""
    return values.view(np.uint8).reshape(len(values), -1).T.tobytes()


def _unplanes(raw: bytes, dtype: str) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    return np.frombuffer(np.frombuffer(raw, np.uint8).reshape(size, -1).T.tobytes(), dtype)


def bins_of(values: np.ndarray) -> np.ndarray:
    """The histogram bin of each activation, by magnitude."""
    return np.clip(np.searchsorted(EDGES, np.abs(values), side="right") - 1, 0, BINS - 1)


def band_of(value: float, maximum: float, bands: int) -> int:
    """Which of so many intervals of equal width, from 0 to the maximum, holds a magnitude (its upper end included)."""
    return min(max(math.ceil(abs(value) / maximum * bands) - 1, 0), bands - 1)


def share_below(bins: np.ndarray, value: float) -> float:
    """Share of active tokens with a magnitude below a value, interpolated inside its bin, logarithmically."""
    at = int(bins_of(np.array(value)))
    inside = math.log(max(value, EDGES[at]) / EDGES[at]) / math.log(EDGES[at + 1] / EDGES[at])
    return float((bins[:at].sum() + min(inside, 1.0) * int(bins[at])) / bins.sum())


def quantile(bins: np.ndarray, q: float, maximum: float, lowest: float = 0.0) -> float:
    """Interpolated inside its bin, logarithmically; never above the maximum, nor below what an active latent has."""
    total = np.cumsum(bins)
    at = int(np.searchsorted(total, q * total[-1]))
    before = total[at - 1] if at else 0
    share = (q * total[-1] - before) / max(int(bins[at]), 1)
    return float(min(max(EDGES[at] * (EDGES[at + 1] / EDGES[at]) ** share, lowest), maximum))


def moments(n: pd.Series, s1: pd.Series, s2: pd.Series, s3: pd.Series, s4: pd.Series) -> dict[str, pd.Series]:
    """mean, sd, skew E[z^3] and kurtosis E[z^4] (3 for a normal distribution) of n values with these sums of powers.

    NaN where n is, and skew and kurtosis also where all values are the same.
    """
    m1, m2, m3, m4 = s1 / n, s2 / n, s3 / n, s4 / n
    sd = (m2 - m1**2).clip(lower=0) ** 0.5
    safe = sd.where(sd > 1e-6 * m1.abs())
    skew = (m3 - 3 * m1 * m2 + 2 * m1**3) / safe**3
    return {"mean": m1, "sd": sd, "skew": skew, "kurtosis": (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / safe**4}
