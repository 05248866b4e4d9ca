"""Examples of all latents side by side: chosen among candidates, and cut out of the text."""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..data import TokenStore
from .tallies import starts

PER_DOCUMENT = 2
Cut = tuple[Bool[np.ndarray, "n span"], Int[np.ndarray, "n span"]]  # what is shown around each place, and token ids


@dataclass(frozen=True)
class Samples:
    """Examples of many latents, in the order of latents; a latent's own in the order in which they are shown.

    Attributes:
        latent, value: of each example; its activation (of a token at which the latent is silent: its pre-activation).
        head: length, anchor, document and position of each, as in a packed blob (`layout.packed`).
        ids, activations: of all examples, one after the other.
    """

    latent: Int[np.ndarray, "n"]
    value: Float[np.ndarray, "n"]
    head: Int[np.ndarray, "n 4"]
    ids: Int[np.ndarray, "tokens"]
    activations: Float[np.ndarray, "tokens"]

    def by_latent(self) -> list[tuple[int, slice, slice]]:
        """Each latent that has examples, with where they lie, and where their tokens do."""
        first = np.flatnonzero(starts(self.latent)) if len(self.latent) else np.zeros(0, dtype=int)
        places = [*first.tolist(), len(self.latent)]
        tokens = np.concatenate([[0], np.cumsum(self.head[:, 0], dtype=np.int64)])[places].tolist()
        some = itertools.pairwise(places), itertools.pairwise(tokens)
        return [(f, slice(*own), slice(*text)) for f, own, text in zip(self.latent[first].tolist(), *some)]


def chosen(
    columns: dict[str, Int[np.ndarray, "n"]], cell: Int[np.ndarray, "n"], each: int, most: int
) -> Int[np.ndarray, "kept"]:
    """Indices of the candidates that become examples.

    Each latent's candidates are gone through in their order. One is taken unless an earlier one was of its window or
    has its wording, `PER_DOCUMENT` were of its document, or `each` of its cell.

    Args:
        columns: latent (sorted), window, echo and document of each candidate. most: examples of a latent.
    """
    latents = columns["latent"]
    if not len(latents) or not most:
        return np.zeros(0, dtype=np.int64)
    first = np.flatnonzero(starts(latents))
    sizes = np.diff(first, append=len(latents))
    kept, held = np.full((len(first), most), -1), np.zeros(len(first), dtype=np.int64)
    going = np.arange(len(first))
    for turn in range(int(sizes.max())):  # the next candidate of every latent that has one
        going = going[(sizes[going] > turn) & (held[going] < most)]
        if not len(going):
            break
        own = first[going] + turn
        earlier = kept[going]

        def alike(column: Int[np.ndarray, "n"]) -> Int[np.ndarray, "going"]:
            """How many of the examples that a latent has are like its candidate."""
            return ((column[earlier] == column[own, None]) & (earlier >= 0)).sum(1)  # noqa: B023 (used in this turn)

        taken = (alike(columns["window"]) == 0) & (alike(columns["echo"]) == 0)
        taken &= (alike(columns["document"]) < PER_DOCUMENT) & (alike(cell) < each)
        kept[going[taken], held[going[taken]]] = own[taken]
        held[going[taken]] += 1
    found: Int[np.ndarray, "kept"] = kept[kept >= 0]
    return found


def cut(store: TokenStore, window: Int[np.ndarray, "n"], position: Int[np.ndarray, "n"], left: int, right: int) -> Cut:
    """The text around places, as far as `left` and `right`, the document and the window reach."""
    at = position[:, None] + np.arange(-left, right + 1)
    ids = np.asarray(store.windows[window[:, None], at.clip(0, store.context - 1)]).astype(np.int64)
    border = np.ones((len(at), left + right + 3), dtype=bool)  # one more on either side, where the text ends at last
    border[:, 1:-1] = (at < 0) | (at >= store.context) | (ids == store.packing.separator)
    start = left - border[:, left::-1].argmax(1)
    end = left + 1 + border[:, left + 2 :].argmax(1)
    steps = np.arange(left + 1 + right)
    return (steps >= start[:, None]) & (steps < end[:, None]), ids


def sampled(store: TokenStore, columns: dict[str, np.ndarray], rows: Int[np.ndarray, "n"], left: int) -> Samples:
    """The text and activations around some candidates (`candidates.Places`)."""
    around = columns["around"][rows].astype(np.float32)
    window, position = columns["window"][rows], columns["position"][rows]
    shown, ids = cut(store, window, position, left, around.shape[1] - left - 1)
    anchor = shown[:, :left].sum(1)
    head = np.stack([shown.sum(1), anchor, columns["document"][rows], position], axis=1)
    return Samples(columns["latent"][rows], columns["value"][rows], head, ids[shown], around[shown])
