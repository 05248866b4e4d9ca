"""Places of a corpus that may become examples of a latent: the strongest, and some drawn evenly from every strength."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from jaxtyping import Float, Int

from .layout import BINS, bins_of
from .tallies import Firings, lots, rank_in_group, rank_within, starts

SPARE = 3  # candidates kept for each example wanted: some fall to the rules on documents and duplicates
UNRANKED = 200_000  # candidates that come in before they are ranked
_DTYPES = {"latent": "i8", "window": "i8", "document": "i8", "position": "i8", "value": "f4", "echo": "i8"}

Columns = dict[str, np.ndarray]


@dataclass
class Places:
    """Candidates with the latent's activations around each; what comes in is ranked when there is much of it.

    Attributes:
        width: of the dictionary. limit: kept of each group. left, right: how far the text around a place goes.
        held: columns as in `Firings`, and `around [n, left + 1 + right]`.
    """

    width: int
    limit: int
    left: int
    right: int

    def __post_init__(self) -> None:
        self.held: Columns = {name: np.zeros(0, dtype) for name, dtype in _DTYPES.items()}
        self.held["around"] = np.zeros((0, self.left + 1 + self.right), dtype=np.float16)
        self._new: list[Columns] = []

    def rank(self) -> None:
        """Merge what is new and keep the best."""
        raise NotImplementedError

    def _enter(self, f: Firings, places: Columns) -> None:
        self._new.append({**places, "around": self._around(f, places)})
        if sum(len(new["latent"]) for new in self._new) > max(len(self.held["latent"]) // 2, UNRANKED):
            self.rank()

    def _chosen(self, f: Firings, chosen: Int[np.ndarray, "m"]) -> Columns:
        return {name: getattr(f, name)[chosen] for name in _DTYPES}

    def _merged(self) -> Columns:
        parts, self._new = [self.held, *self._new], []
        return {name: np.concatenate([part[name] for part in parts]) for name in self.held}

    def _around(self, f: Firings, places: Columns) -> Float[np.ndarray, "m span"]:
        """Activations of each place's latent at the neighbouring positions, 0 where it is silent."""
        latest = max((int(p.max(initial=0)) for p in (f.position, places["position"])), default=0)
        span = 1 + latest + self.left + self.right
        windows = 1 + max(int(f.window.max(initial=0)), int(places["window"].max(initial=0)))
        key = (f.latent * windows + f.window) * span + f.position + self.left
        centre = (places["latent"] * windows + places["window"]) * span + places["position"] + self.left
        around = self.left + 1 + self.right
        out = np.zeros((len(centre), around), dtype=np.float16)
        largest = np.finfo(np.float16).max
        values = f.value.clip(-largest, largest).astype(np.float16)
        first = np.searchsorted(key, centre - self.left)
        rows = np.arange(len(centre))
        for step in range(around):  # at most so many firings of one latent lie around a place
            rows = rows[first[rows] + step < len(key)]
            offset = key[first[rows] + step] - centre[rows] + self.left
            rows, offset = rows[offset < around], offset[offset < around]
            if not len(rows):
                break
            out[rows, offset] = values[first[rows] + step]
        return out

    def state(self) -> Columns:
        self.rank()
        return {f"{self._prefix()}_{name}": column for name, column in self.held.items()}

    def load(self, state: Columns) -> None:
        self.held = {name: state[f"{self._prefix()}_{name}"] for name in self.held}
        self.rank()

    def _prefix(self) -> str:
        """Of its columns in a saved state."""
        return type(self).__name__


class Strongest(Places):
    """The strongest windows of each latent, at the strongest token of each.

    One candidate a window and a wording, a few a document: neither boilerplate nor one long document can crowd out the
    others. A place enters only if it beats the latent's weakest kept candidate, so that after the first batches few do.
    """

    per_document: int
    floor: Float[np.ndarray, "width"]
    lowest: ClassVar[float] = 0.0  # what a candidate has to be above, while there is room

    @classmethod
    def of(cls, width: int, examples: int, per_document: int, left: int, right: int) -> Self:
        made = cls(width, examples * SPARE, left, right)
        made.per_document, made.floor = per_document * SPARE, np.full(width, cls.lowest, dtype=np.float32)
        return made

    def strength(self, values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """What ranks candidates."""
        return np.abs(values)

    def add(self, f: Firings) -> None:
        if not len(f.first):
            return
        strength = self.strength(f.value)
        highest = np.maximum.reduceat(strength, f.first)
        better = np.repeat(
            np.where(highest > self.floor[f.latent[f.first]], highest, np.inf), np.diff(f.first, append=len(strength))
        )
        best = np.flatnonzero(strength == better)
        best = best[starts(f.latent[best]) | starts(f.window[best])]  # of equal ones the first
        self._enter(f, self._chosen(f, best))

    def rank(self) -> None:
        columns = self._merged()
        # strongest first, ties in the order of the corpus: the result does not depend on how the stream was cut
        order = np.lexsort((columns["window"], -self.strength(columns["value"]), columns["latent"]))
        order = order[rank_within(columns["latent"][order], columns["echo"][order]) < 1]
        order = order[rank_within(columns["latent"][order], columns["document"][order]) < self.per_document]
        kept = order[rank_in_group(columns["latent"][order]) < self.limit]
        self.held = {name: column[kept] for name, column in columns.items()}
        full = np.bincount(self.held["latent"], minlength=self.width) >= self.limit
        lowest = np.full(self.width, np.inf, dtype=np.float32)
        np.minimum.at(lowest, self.held["latent"], self.strength(self.held["value"]))
        self.floor = np.where(full, lowest, self.lowest).astype(np.float32)


class Near(Strongest):
    """Tokens at which a latent is silent, by the least: of each window the one with its highest pre-activation.

    What fires it almost, and does not, says where its meaning ends. `value` is the pre-activation (where codes have
    signs, its magnitude).
    """

    lowest: ClassVar[float] = -np.inf

    def strength(self, values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        return values

    def add(self, f: Firings) -> None:
        """The firings alone do not tell; see `consider`."""

    def consider(self, f: Firings, places: Columns) -> None:
        """Places of the same windows: columns as in `held`, at most one a latent and window."""
        better = places["value"] > self.floor[places["latent"]]
        self._enter(f, {name: column[better] for name, column in places.items()})


class Drawn(Places):
    """Of each latent and each bin of its histogram (or with `bins` 1, of each latent) a few places, drawn evenly.

    A place's lot is a number made of the place itself; the smallest lots are kept. So the draw depends neither on how
    the stream was cut nor on a state, and the smallest lots of several bins together are a draw from these bins.
    """

    name: str
    bins: int
    ceiling: Int[np.ndarray, "cells"]

    @classmethod
    def of(cls, name: str, width: int, each: int, left: int, right: int, bins: int = BINS) -> Self:
        made = cls(width, each * SPARE, left, right)
        made.name, made.bins = name, bins
        made.ceiling = np.full(width * bins, np.iinfo(np.int64).max)
        return made

    def add(self, f: Firings) -> None:
        cell, lot = f.latent * self.bins + (f.bins if self.bins > 1 else 0), f.lot
        chosen = np.flatnonzero(lot < self.ceiling[cell])
        order = chosen[np.lexsort((lot[chosen], cell[chosen]))]
        self._enter(f, self._chosen(f, order[rank_in_group(cell[order]) < self.limit]))

    def rank(self) -> None:
        columns = self._merged()
        lot = lots(columns["latent"], columns["window"], columns["position"])
        cell = self._cells(columns["latent"], columns["value"])
        order = np.lexsort((lot, cell))
        kept = order[rank_in_group(cell[order]) < self.limit]
        self.held = {name: column[kept] for name, column in columns.items()}
        full = np.bincount(cell[kept], minlength=len(self.ceiling)) >= self.limit
        highest = np.zeros_like(self.ceiling)
        np.maximum.at(highest, cell[kept], lot[kept])
        self.ceiling = np.where(full, highest, np.iinfo(np.int64).max)

    def _cells(self, latent: Int[np.ndarray, "n"], value: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        return latent * self.bins + (bins_of(value) if self.bins > 1 else 0)

    def _prefix(self) -> str:
        return self.name
