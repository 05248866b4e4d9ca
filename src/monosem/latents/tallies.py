"""Running counts over a stream of sparse codes, for all latents at once: numbers, tokens, strongest examples."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .layout import EDGES

BINS = len(EDGES) - 1
SPARE = 3  # candidates kept for each example wanted: some fall to the rules on documents and duplicates
UNRANKED = 200_000  # candidates that come in before they are ranked
PAIRS = 4_000_000  # (latent, token) pairs held before the rarest are let go


@dataclass
class Firings:
    """The active places of some whole windows, sorted by (latent, window, position).

    Shapes are `n`: latent, index of the window, of the document, position in the window, token id, activation (signed;
    what is strong is large in magnitude), and a number that is the same where the text up to here is (`echoes`).
    """

    latent: Int[np.ndarray, "n"]
    window: Int[np.ndarray, "n"]
    document: Int[np.ndarray, "n"]
    position: Int[np.ndarray, "n"]
    token: Int[np.ndarray, "n"]
    value: Float[np.ndarray, "n"]
    echo: Int[np.ndarray, "n"]

    def __post_init__(self) -> None:
        order = np.lexsort((self.position, self.window, self.latent))
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name)[order])


class Numbers:
    """Count and sums of the first four powers of each latent's activations where it is active; maximum and histogram of
    their magnitudes."""

    def __init__(self, width: int):
        self.width = width
        self.count = np.zeros(width, dtype=np.int64)
        self.sums = np.zeros((4, width))
        self.maximum = np.zeros(width, dtype=np.float32)
        self.histogram = np.zeros((width, BINS), dtype=np.int64)

    def add(self, f: Firings) -> None:
        self.count += np.bincount(f.latent, minlength=self.width)
        value = f.value.astype(np.float64)
        power = np.ones_like(value)
        for sums in self.sums:
            power = power * value
            sums += np.bincount(f.latent, weights=power, minlength=self.width)
        np.maximum.at(self.maximum, f.latent, np.abs(f.value))
        bins = np.clip(np.searchsorted(EDGES, np.abs(value), side="right") - 1, 0, BINS - 1)
        self.histogram += np.bincount(f.latent * BINS + bins, minlength=self.width * BINS).reshape(self.width, BINS)

    def state(self) -> dict[str, np.ndarray]:
        return {"count": self.count, "sums": self.sums, "maximum": self.maximum, "histogram": self.histogram}

    def load(self, state: dict[str, np.ndarray]) -> None:
        for name in self.state():
            setattr(self, name, state[name])


class TokenTallies:
    """How often, and how strongly in all, each latent fires on each token; with each sign, where codes have signs.

    When there are more pairs than `PAIRS`, each latent keeps its strongest, so that on a large corpus the numbers of
    rare tokens are lower bounds.
    """

    def __init__(self, vocabulary: int, keep: int = 64):
        self.vocabulary, self.keep = vocabulary, keep
        self.key = np.zeros(0, dtype=np.int64)  # (latent * vocabulary + token) * 2 + (activation < 0), sorted
        self.count = np.zeros(0, dtype=np.int64)
        self.mass: np.ndarray = np.zeros(0)
        self._new: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._held = 0

    def add(self, f: Firings) -> None:
        keys = (f.latent * self.vocabulary + f.token) * 2 + (f.value < 0)
        key, inverse = np.unique(keys, return_inverse=True)
        mass = np.bincount(inverse, weights=f.value)
        self._new.append((key, np.bincount(inverse).astype(np.int64), mass))
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

    def top(self, n: int) -> dict[int, list[tuple[int, int, float]]]:
        """latent -> [(token, count, summed activation)], most activation (in magnitude) first."""
        self.merge()
        strongest: dict[int, list[tuple[int, int, float]]] = {}
        for i in self._strongest(n):
            latent, token = divmod(int(self.key[i]) // 2, self.vocabulary)
            strongest.setdefault(latent, []).append((token, int(self.count[i]), float(self.mass[i])))
        return strongest

    def _strongest(self, n: int) -> np.ndarray:
        """Indices of the n heaviest entries of each latent, latents in order, heaviest first."""
        latents = self.key // (2 * self.vocabulary)
        order = np.lexsort((-np.abs(self.mass), latents))
        return order[_rank_in_group(latents[order]) < n]

    def state(self) -> dict[str, np.ndarray]:
        self.merge()
        return {"signed_key": self.key, "token_count": self.count, "mass": self.mass}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.key, self.count, self.mass = state["signed_key"], state["token_count"], state["mass"]


class Candidates:
    """The strongest windows of each latent, with its activations around the strongest token of each.

    One candidate a window and a wording, a few a document: neither boilerplate nor one long document can crowd out the
    others. A place enters only if it beats the latent's weakest kept candidate, so that after the first batches few do;
    what enters is ranked when there is much of it.
    """

    def __init__(self, width: int, examples: int, per_document: int, left: int, right: int):
        self.width, self.limit, self.left, self.right = width, examples * SPARE, left, right
        self.per_document = per_document * SPARE
        self.floor = np.zeros(width, dtype=np.float32)
        self.held: dict[str, np.ndarray] = {
            "latent": np.zeros(0, dtype=np.int64),
            "window": np.zeros(0, dtype=np.int64),
            "document": np.zeros(0, dtype=np.int64),
            "position": np.zeros(0, dtype=np.int64),
            "value": np.zeros(0, dtype=np.float32),
            "echo": np.zeros(0, dtype=np.int64),
            "around": np.zeros((0, left + 1 + right), dtype=np.float16),
        }
        self._new: list[dict[str, np.ndarray]] = []

    def add(self, f: Firings) -> None:
        strength = np.abs(f.value)
        order = np.lexsort((f.position, -strength, f.window, f.latent))
        first = np.ones(len(order), dtype=bool)
        first[1:] = (np.diff(f.latent[order]) != 0) | (np.diff(f.window[order]) != 0)
        best = order[first]
        best = best[strength[best] > self.floor[f.latent[best]]]
        columns = {name: getattr(f, name)[best] for name in self.held if name != "around"}
        self._new.append({**columns, "around": self._around(f, best)})
        if sum(len(new["latent"]) for new in self._new) > max(len(self.held["latent"]) // 2, UNRANKED):
            self.rank()

    def rank(self) -> None:
        """Merge what is new and keep the strongest."""
        parts = [self.held, *self._new]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in self.held}
        self._new = []
        # strongest first, ties in the order of the corpus: the result does not depend on how the stream was cut
        order = np.lexsort((columns["window"], -np.abs(columns["value"]), columns["latent"]))
        order = order[_rank_within(columns["latent"][order], columns["echo"][order]) < 1]
        order = order[_rank_within(columns["latent"][order], columns["document"][order]) < self.per_document]
        kept = order[_rank_in_group(columns["latent"][order]) < self.limit]
        self.held = {name: column[kept] for name, column in columns.items()}
        full = np.bincount(self.held["latent"], minlength=self.width) >= self.limit
        lowest = np.full(self.width, np.inf, dtype=np.float32)
        np.minimum.at(lowest, self.held["latent"], np.abs(self.held["value"]))
        self.floor = np.where(full, lowest, 0).astype(np.float32)

    def _around(self, f: Firings, chosen: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m span"]:
        """Activations of the same latent at the neighbouring positions, 0 where it is silent."""
        span = 1 + int(f.position.max(initial=0)) + self.left + self.right
        windows = 1 + int(f.window.max(initial=0))
        key = (f.latent * windows + f.window) * span + f.position + self.left
        out = np.zeros((len(chosen), self.left + 1 + self.right), dtype=np.float16)
        largest = np.finfo(np.float16).max
        for at, offset in enumerate(range(-self.left, self.right + 1)):
            wanted = key[chosen] + offset
            place = np.searchsorted(key, wanted).clip(max=len(key) - 1) if len(key) else np.zeros(0, dtype=int)
            hit = key[place] == wanted
            out[hit, at] = f.value[place[hit]].clip(-largest, largest)
        return out

    def state(self) -> dict[str, np.ndarray]:
        self.rank()
        return {f"candidate_{name}": column for name, column in self.held.items()}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.held = {name: state[f"candidate_{name}"] for name in self.held}
        self.rank()


def _rank_in_group(groups: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """0, 1, 2, ... within each run of equal values."""
    index = np.arange(len(groups))
    starts = np.concatenate([[True], np.diff(groups) != 0]) if len(groups) else np.zeros(0, dtype=bool)
    return index - np.maximum.accumulate(np.where(starts, index, 0)) if len(groups) else index


def _rank_within(latent: Int[np.ndarray, "n"], label: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """How many earlier entries are of the same latent and have the same label."""
    together = np.lexsort((label, latent))  # stable
    new = (np.diff(latent[together]) != 0) | (np.diff(label[together]) != 0)
    rank = np.empty(len(latent), dtype=np.int64)
    rank[together] = _rank_in_group(np.concatenate([[0], np.cumsum(new)])) if len(latent) else 0
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
