"""How an index lies in its SQLite file: tables, the bins of histograms, and packed examples.

Tables: `meta` (key, JSON value); `latent` (numbers, histogram, token lists); `examples` (the strongest, one compressed
blob a latent); `bands`, `deciles`, `uniform` (examples drawn from intervals of activation, from tenths of the active
tokens, from all of them), `near` (tokens at which it is silent by the least), likewise; `silent` (places drawn from the
whole corpus, with the latents that are active there); `coactive` (latents that fire with it); `neurons` (of the MLP,
that correlate with it; empty where they were not asked for); `token_set` (name, how many counted tokens are in it);
`document` (id, name); `token` (id, text, or bytes where they are not whole characters, and how often it was counted,
and stood before a counted one: the tokens that occur); `words` (full-text search in the examples).
"""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Numbers = Float[np.ndarray, "n"]

SCHEMA = 2
READABLE = (1, 2)  # 1: up to `bands`; what later schemas added is missing, and said to be
SAMPLES = ("examples", "bands", "deciles", "uniform", "near")  # tables of packed examples
DECILES = 10
EDGES = 2.0 ** np.linspace(-10, 14, 65)  # of the 64 histogram bins; values outside fall into the first or last
BINS = len(EDGES) - 1

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE latent (id INTEGER PRIMARY KEY, count INTEGER, s1 REAL, s2 REAL, s3 REAL, s4 REAL, maximum REAL,
                     histogram BLOB, tokens TEXT, promoted TEXT, suppressed TEXT, windows INTEGER, runs INTEGER,
                     common REAL, entropy REAL, entropy_before REAL, before TEXT, bigrams TEXT, sets BLOB, logits BLOB);
CREATE TABLE examples (latent INTEGER PRIMARY KEY, blob BLOB);
CREATE TABLE bands (latent INTEGER PRIMARY KEY, blob BLOB);
CREATE TABLE deciles (latent INTEGER PRIMARY KEY, blob BLOB);
CREATE TABLE uniform (latent INTEGER PRIMARY KEY, blob BLOB);
CREATE TABLE near (latent INTEGER PRIMARY KEY, blob BLOB, before TEXT);
CREATE TABLE silent (id INTEGER PRIMARY KEY, blob BLOB, active BLOB);
CREATE TABLE coactive (latent INTEGER PRIMARY KEY, count INTEGER, s1 REAL, s2 REAL, others BLOB);
CREATE TABLE neurons (latent INTEGER PRIMARY KEY, listed TEXT);
CREATE TABLE token_set (id INTEGER PRIMARY KEY, name TEXT, counted INTEGER);
CREATE TABLE document (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE token (id INTEGER PRIMARY KEY, text TEXT, counted INTEGER, before INTEGER);
"""
WORDS = "CREATE VIRTUAL TABLE words USING fts5(text, content='')"  # a row a latent: the texts of its examples


Piece = tuple[np.ndarray, np.ndarray, int, int, int]  # token ids, activations, anchor, document, position


def pack(pieces: list[Piece]) -> bytes:
    """All examples of a latent, compressed."""
    head = [[len(ids), anchor, document, position] for ids, _, anchor, document, position in pieces]
    ids, values = (np.concatenate([piece[i] for piece in pieces]) for i in (0, 1))
    return packed(np.array(head), ids, values)


def packed(head: Int[np.ndarray, "n 4"], ids: Int[np.ndarray, "tokens"], values: Float[np.ndarray, "tokens"]) -> bytes:
    """n, n × (length, anchor, document, position), token ids, activations; what `unpacked` reads."""
    n = np.array([len(head)], dtype="<u4").tobytes()
    body = _planes(ids.astype("<u4")) + _planes(values.astype("<f2").view("<u2"))
    return zlib.compress(n + head.astype("<u4").tobytes() + body, 6)  # 9 takes twice as long for 0.1 %


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


def pack_logits(numbers: Float[np.ndarray, "5"], counts: Int[np.ndarray, "bins"]) -> bytes:
    """Statistics of a latent's direct effects: sd, skew, kurtosis, the histogram's ends; and its counts."""
    return zlib.compress(numbers.astype("<f4").tobytes() + counts.astype("<u4").tobytes(), 9)


def unpack_logits(blob: bytes) -> tuple[list[float], list[float], list[int]]:
    """((sd, skew, kurtosis), edges, counts)."""
    body = zlib.decompress(blob)
    *moments, low, high = np.frombuffer(body, "<f4", 5).tolist()
    counts = np.frombuffer(body, "<u4", -1, 20).tolist()
    return moments, np.linspace(low, high, len(counts) + 1).tolist(), counts


def _planes(values: np.ndarray) -> bytes:
    """All first bytes, then all second bytes, ...: high bytes repeat, so that zlib finds them."""
    return values.view(np.uint8).reshape(len(values), -1).T.tobytes()


def _unplanes(raw: bytes, dtype: str) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    return np.frombuffer(np.frombuffer(raw, np.uint8).reshape(size, -1).T.tobytes(), dtype)


def bins_of(values: np.ndarray) -> np.ndarray:
    """The histogram bin of each activation, by magnitude."""
    return np.clip(np.searchsorted(EDGES, np.abs(values), side="right") - 1, 0, BINS - 1)


def bands_of(
    values: Float[np.ndarray, "n"], maximum: float | Float[np.ndarray, "n"], bands: int
) -> Int[np.ndarray, "n"]:
    """Which of so many intervals of equal width, from 0 to the maximum, holds each magnitude (upper ends included)."""
    return np.clip(np.ceil(np.abs(values) / maximum * bands).astype(int) - 1, 0, bands - 1)


def band_of(value: float, maximum: float, bands: int) -> int:
    return int(bands_of(np.array([value]), maximum, bands)[0])


def deciles_of(
    bins: Int[np.ndarray, "latents cells"], latent: Int[np.ndarray, "n"], values: Float[np.ndarray, "n"]
) -> Int[np.ndarray, "n"]:
    """Which tenth of a latent's active tokens, from the weakest (0), holds each magnitude, as histograms tell."""
    return np.minimum((shares_below(bins, latent, np.abs(values)) * DECILES).astype(int), DECILES - 1)


def decile_of(bins: Int[np.ndarray, "cells"], value: float) -> int:
    return int(deciles_of(bins[None], np.array([0]), np.array([value]))[0])


def shares_below(
    bins: Int[np.ndarray, "latents cells"], latent: Int[np.ndarray, "n"], values: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """Share of a latent's active tokens with a magnitude below each value, interpolated inside its bin,
    logarithmically."""
    at = bins_of(values)
    inside = np.log(np.maximum(values, EDGES[at]) / EDGES[at]) / np.log(EDGES[at + 1] / EDGES[at])
    up_to = np.cumsum(bins, axis=1, dtype=np.int64)
    own = bins[latent, at]
    below = up_to[latent, at] - own
    shares: np.ndarray = (below + np.minimum(inside, 1.0) * own) / up_to[latent, -1]
    return shares


def share_below(bins: Int[np.ndarray, "cells"], value: float) -> float:
    return float(shares_below(bins[None], np.array([0]), np.array([value]))[0])


def bars_of(bins: Int[np.ndarray, "cells"], maximum: float, lowest: float = 0.0) -> list[tuple[float, float, int]]:
    """(low, high, count) of the bins that are not empty; the first begins no lower than what an active latent has, and
    the last ends at the maximum."""
    bars = [(float(EDGES[i]), float(EDGES[i + 1]), int(bins[i])) for i in bins.nonzero()[0]]
    if bars:
        low, high, count = bars[0]
        bars[0] = (max(low, min(lowest, high)), high, count)
        low, _, count = bars[-1]
        bars[-1] = (min(low, maximum), maximum, count)
    return bars


def bars_around(centres: Sequence[float]) -> list[tuple[float, float]]:
    """(low, high) of the bars of `bars_of` with these centres: of their bins, but the first may begin inside its bin,
    and the last may end there."""
    found = []
    for centre, at in zip(centres, bins_of(np.array(centres))):
        low, high = float(EDGES[at]), float(EDGES[at + 1])
        end = 2 * centre - low
        found.append((low, end) if end <= high * (1 + 1e-9) else (2 * centre - high, high))
    return found


def quantile(bins: np.ndarray, q: float, maximum: float, lowest: float = 0.0) -> float:
    """Interpolated inside its bin, logarithmically; never above the maximum, nor below what an active latent has."""
    total = np.cumsum(bins)
    at = int(np.searchsorted(total, q * total[-1]))
    before = total[at - 1] if at else 0
    share = (q * total[-1] - before) / max(int(bins[at]), 1)
    return float(min(max(EDGES[at] * (EDGES[at + 1] / EDGES[at]) ** share, lowest), maximum))


def moments(n: Numbers, s1: Numbers, s2: Numbers, s3: Numbers, s4: Numbers) -> dict[str, Numbers]:
    """mean, sd, skew E[z^3] and kurtosis E[z^4] (3 for a normal distribution) of n values with these sums of powers.

    NaN where n is 0, and skew and kurtosis also where all values are the same.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        m1, m2, m3, m4 = (np.where(n > 0, s / n, np.nan) for s in (s1, s2, s3, s4))
        sd = np.sqrt(np.maximum(m2 - m1**2, 0))
        safe = np.where(sd > 1e-6 * np.abs(m1), sd, np.nan)
        skew = (m3 - 3 * m1 * m2 + 2 * m1**3) / safe**3
        kurtosis = (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / safe**4
    return {"mean": m1, "sd": sd, "skew": skew, "kurtosis": kurtosis}
