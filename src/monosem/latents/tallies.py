"""Running counts over a stream of sparse codes, for all latents at once: numbers and tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .layout import BINS, bins_of

PAIRS = 4_000_000  # (latent, token) pairs held before the rarest are let go


@dataclass
class Firings:
    """The active places of some whole windows, sorted by (latent, window, position).

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

    def __post_init__(self) -> None:
        order = np.lexsort((self.position, self.window, self.latent))
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name)[order])


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
        cells = np.bincount(f.latent * BINS + bins_of(value), minlength=self.width * BINS)
        self.histogram += cells.reshape(self.width, BINS)
        together = (np.diff(f.latent) == 0) & (np.diff(f.window) == 0)
        first = np.concatenate([np.ones(min(len(f.latent), 1), bool), ~together])
        starts = first | np.concatenate([np.zeros(min(len(f.latent), 1), bool), np.diff(f.position) != 1])
        self.windows += np.bincount(f.latent[first], minlength=self.width)
        self.runs += np.bincount(f.latent[starts], minlength=self.width)

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
        key, inverse = np.unique(keys, return_inverse=True)
        mass = np.bincount(inverse, weights=f.value[kept], minlength=len(key))
        self._new.append((key, np.bincount(inverse, minlength=len(key)).astype(np.int64), mass))
        self._held += len(key)
        if self._held > PAIRS // 2:
            self.merge()

    def merge(self) -> None:
        columns = list(zip((self.key, self.count, self.mass), *self._new))
        keys, counts, masses = (np.concatenate(column) for column in columns)
        self.key, inverse = np.unique(keys, return_inverse=True)
        self.count = np.bincount(inverse, weights=counts).astype(np.int64)
        self.mass = np.bincount(inverse, weights=masses)
        self._new, self._held = [], 0
        if len(self.key) > PAIRS:
            kept = np.sort(self._strongest(self.keep))
            self.key, self.count, self.mass = self.key[kept], self.count[kept], self.mass[kept]
            self.pruned = np.array(True)

    def top(self, n: int) -> dict[int, list[tuple[int, int, float]]]:
        """latent -> [(token, count, summed activation)], most activation (in magnitude) first."""
        self.merge()
        strongest: dict[int, list[tuple[int, int, float]]] = {}
        for i in self._strongest(n):
            latent, token = divmod(int(self.key[i]) // 2, self.size)
            strongest.setdefault(latent, []).append((token, int(self.count[i]), float(self.mass[i])))
        return strongest

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
        codes, inverse = np.unique(self.key // 2, return_inverse=True)  # both signs together
        latent, counts = codes // self.size, np.bincount(inverse, weights=self.count, minlength=len(codes))
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


def rank_in_group(groups: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """0, 1, 2, ... within each run of equal values."""
    index = np.arange(len(groups))
    starts = np.concatenate([[True], np.diff(groups) != 0]) if len(groups) else np.zeros(0, dtype=bool)
    return index - np.maximum.accumulate(np.where(starts, index, 0)) if len(groups) else index


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
