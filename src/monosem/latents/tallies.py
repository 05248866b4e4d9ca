"""Running counts over a stream of sparse codes, for all latents at once: numbers and tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

from .layout import BINS, bins_of

Placed = tuple[np.ndarray, np.ndarray, np.ndarray]  # number of the token in the batch, latent, value
PAIRS = 4_000_000  # (latent, token) pairs held before the rarest are let go


@dataclass
class Firings:
    """The active places of some whole windows, sorted by (latent, window, position); made by `of`.

    Shapes are `n`: latent, number of the token in the batch, index of the window, of the document, position in the
    window, token id, id of the token before it in its document (-1: none), activation (signed; what is strong is large
    in magnitude), and a number that is the same where the text up to here is (`echoes`).
    """

    latent: Int[np.ndarray, "n"]
    row: Int[np.ndarray, "n"]
    window: Int[np.ndarray, "n"]
    document: Int[np.ndarray, "n"]
    position: Int[np.ndarray, "n"]
    token: Int[np.ndarray, "n"]
    before: Int[np.ndarray, "n"]
    value: Float[np.ndarray, "n"]
    echo: Int[np.ndarray, "n"]

    @classmethod
    def of(cls, placed: Placed, **columns: Int[np.ndarray, "tokens"]) -> Self:
        """Of the tokens of some windows, in the order of windows and positions.

        Args:
            placed: number of the token, latent and activation, tokens in order. columns: what each token is.
        """
        row, latent, value = placed
        narrow = latent.astype(np.uint16) if latent.max(initial=0) < 2**16 else latent  # 16 bits are sorted at once
        order = np.argsort(narrow, kind="stable")
        row = row[order]
        return cls(latent[order], row, value=value[order], **{name: held[row] for name, held in columns.items()})

    @cached_property
    def bins(self) -> Int[np.ndarray, "n"]:
        """Of histograms (`layout.bins_of`)."""
        return bins_of(self.value.astype(np.float64))

    @cached_property
    def lot(self) -> Int[np.ndarray, "n"]:
        return lots(self.latent, self.window, self.position)

    @cached_property
    def first(self) -> Int[np.ndarray, "windows"]:
        """Where each latent and window begins."""
        return np.flatnonzero(starts(self.latent) | starts(self.window))


def lots(*place: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """A number from 0 to 2**63 for each place, as if drawn (the finaliser of SplitMix64 over its coordinates)."""
    mixed = np.zeros(len(place[0]), dtype=np.uint64)
    for coordinate in place:
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + coordinate.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(1)).astype(np.int64)


def starts(groups: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Whether a run of equal values begins."""
    begins = np.ones(len(groups), dtype=bool)
    np.not_equal(groups[1:], groups[:-1], out=begins[1:])
    return begins


class Numbers:
    """Count and sums of the first four powers of each latent's activations where it is active; maximum and histogram of
    their magnitudes; windows in which it fires, and runs of neighbouring tokens at which it does."""

    def __init__(self, width: int):
        self.width = width
        self.count = np.zeros(width, dtype=np.int64)
        self.sums = np.zeros((4, width))
        self.maximum = np.zeros(width, dtype=np.float32)
        self.histogram = np.zeros((width, BINS), dtype=np.int64)
        self.windows, self.runs = np.zeros(width, dtype=np.int64), np.zeros(width, dtype=np.int64)

    def add(self, f: Firings) -> None:
        self.count += np.bincount(f.latent, minlength=self.width)
        value = f.value.astype(np.float64)
        power = np.ones_like(value)
        for sums in self.sums:
            power = power * value
            sums += np.bincount(f.latent, weights=power, minlength=self.width)
        np.maximum.at(self.maximum, f.latent, np.abs(f.value))
        cells = np.bincount(f.latent * BINS + f.bins, minlength=self.width * BINS)
        self.histogram += cells.reshape(self.width, BINS)
        runs = starts(f.position - np.arange(len(f.position)))
        runs[f.first] = True
        self.windows += np.bincount(f.latent[f.first], minlength=self.width)
        self.runs += np.bincount(f.latent[runs], minlength=self.width)

    def state(self) -> dict[str, np.ndarray]:
        names = ("count", "sums", "maximum", "histogram", "windows", "runs")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, np.ndarray]) -> None:
        for name in self.state():
            setattr(self, name, state[name])


class TokenTallies:
    """How often, and how strongly in all, each latent fires on each token (or on what `code` makes of each firing, -1
    being nothing); with each sign, where codes have signs.

    When there are more pairs than `PAIRS`, each latent keeps its strongest, so that on a large corpus the numbers of
    rare tokens are lower bounds.

    Attributes:
        name: of its part in a saved state. size: codes are below it. pruned: whether rare ones were let go.
    """

    def __init__(self, name: str, size: int, code: Callable[[Firings], Int[np.ndarray, "n"]], keep: int = 64):
        self.name, self.size, self.code, self.keep = name, size, code, keep
        self.key = np.zeros(0, dtype=np.int64)  # (latent * size + code) * 2 + (activation < 0), sorted
        self.count = np.zeros(0, dtype=np.int64)
        self.mass: np.ndarray = np.zeros(0)
        self.pruned = np.array(False)
        self._new: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._held = 0

    def add(self, f: Firings) -> None:
        code = self.code(f)
        kept = code >= 0
        keys = ((f.latent * self.size + code) * 2 + (f.value < 0))[kept]
        order = np.argsort(keys)
        self._new.append(_summed(keys[order], np.ones(len(keys), dtype=np.int64), f.value[kept][order]))
        self._held += len(self._new[-1][0])
        if self._held > PAIRS // 2:
            self.merge()

    def merge(self) -> None:
        columns = list(zip((self.key, self.count, self.mass), *self._new))
        keys, counts, masses = (np.concatenate(column) for column in columns)
        order = np.argsort(keys, kind="stable")  # which merges what is sorted already
        self.key, self.count, self.mass = _summed(keys[order], counts[order], masses[order])
        self._new, self._held = [], 0
        if len(self.key) > PAIRS:
            kept = np.sort(self._strongest(self.keep))
            self.key, self.count, self.mass = self.key[kept], self.count[kept], self.mass[kept]
            self.pruned = np.array(True)

    def top(self, n: int) -> dict[int, list[tuple[int, int, float]]]:
        """latent -> [(token, count, summed activation)], most activation (in magnitude) first."""
        self.merge()
        rows = self._strongest(n)
        latents, codes = np.divmod(self.key[rows] // 2, self.size)
        listed = list(zip(codes.tolist(), self.count[rows].tolist(), self.mass[rows].tolist()))
        first = np.flatnonzero(starts(latents)) if len(rows) else rows
        cuts = [*first.tolist(), len(rows)]
        return {f: listed[start:end] for f, start, end in zip(latents[first].tolist(), cuts, cuts[1:])}

    def _strongest(self, n: int) -> np.ndarray:
        """Indices of the n heaviest entries of each latent, latents in order, heaviest first."""
        latents = self.key // (2 * self.size)
        order = np.lexsort((-np.abs(self.mass), latents))
        return order[rank_in_group(latents[order]) < n]

    def spread(self, totals: Int[np.ndarray, "width"]) -> tuple[Float[np.ndarray, "width"], Float[np.ndarray, "width"]]:
        """(share of the most common code, entropy in bits) of each latent's firings, of which there are `totals`.

        What was let go counts as one code, so that the entropy then is a lower bound. NaN where there is no firing.
        """
        self.merge()
        codes, counts, _ = _summed(self.key // 2, self.count, self.mass)  # both signs together
        latent = codes // self.size
        width = len(totals)
        rest = totals - np.bincount(latent, weights=counts, minlength=width)
        most = np.zeros(width)
        np.maximum.at(most, latent, counts)
        surprise = np.bincount(latent, weights=counts * np.log2(counts), minlength=width)
        surprise += rest * np.log2(np.maximum(rest, 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return most / totals, np.maximum(np.log2(totals) - surprise / totals, 0)

    def state(self) -> dict[str, np.ndarray]:
        self.merge()
        columns = {"key": self.key, "count": self.count, "mass": self.mass, "pruned": self.pruned}
        return {f"{self.name}_{name}": column for name, column in columns.items()}

    def load(self, state: dict[str, np.ndarray]) -> None:
        for name in ("key", "count", "mass", "pruned"):
            setattr(self, name, state[f"{self.name}_{name}"])


def _summed(
    keys: Int[np.ndarray, "n"], counts: Int[np.ndarray, "n"], masses: Float[np.ndarray, "n"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted keys each once, with the sums of what belongs to each."""
    if not len(keys):
        return keys, counts, masses.astype(np.float64)
    first = np.flatnonzero(starts(keys))
    return keys[first], np.add.reduceat(counts, first), np.add.reduceat(masses, first, dtype=np.float64)


def rank_in_group(groups: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """0, 1, 2, ... within each run of equal values."""
    index = np.arange(len(groups))
    return index - np.maximum.accumulate(np.where(starts(groups), index, 0))


def rank_within(latent: Int[np.ndarray, "n"], label: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """How many earlier entries are of the same latent and have the same label."""
    together = np.lexsort((label, latent))  # stable
    new = (np.diff(latent[together]) != 0) | (np.diff(label[together]) != 0)
    rank = np.empty(len(latent), dtype=np.int64)
    rank[together] = rank_in_group(np.concatenate([[0], np.cumsum(new)])) if len(latent) else 0
    return rank


def echoes(rows: Int[np.ndarray, "n context"], border: int, span: int) -> Int[np.ndarray, "n context"]:
    """For every position a number made of its token and the `span` tokens before it in its document and window: equal
    where these are equal (a polynomial hash in 64 bits)."""
    rows = rows.astype(np.int64)
    out = np.zeros(rows.shape, dtype=np.uint64)
    inside = np.ones(rows.shape, dtype=bool)
    shifted = rows
    for back in range(span + 1):
        if back:
            shifted = np.concatenate([np.full((len(rows), 1), border), shifted[:, :-1]], axis=1)
            inside &= shifted != border
        out = out * np.uint64(0x9E3779B97F4A7C15) + np.where(inside, shifted + 1, 0).astype(np.uint64)
    return out.view(np.int64)
