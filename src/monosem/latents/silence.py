"""Places drawn from the whole corpus: for each latent, some of those at which it is silent."""

import zlib
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from .tallies import Firings, lots

NONE = np.iinfo(np.int64).max


@dataclass
class Silent:
    """n places, drawn evenly from all counted tokens, with every latent that is active in the text around each.

    A place's lot is a number made of the place itself (`tallies.lots`), so that the draw does not depend on how the
    stream was cut.
    """

    n: int
    left: int
    right: int
    held: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)  # (window, position) -> active latents

    def add(self, f: Firings) -> None:
        """Firings alone do not say which tokens were counted; see `consider`."""

    def consider(self, f: Firings, windows: Int[np.ndarray, "n"], positions: Int[np.ndarray, "n"]) -> None:
        """Counted tokens of whole windows, and the firings in them."""
        if not self.n:
            return
        lot = lots(windows, positions)
        floor = NONE if len(self.held) < self.n else self._lots().max()
        best = np.argsort(lot, kind="stable")[: self.n]
        best = best[lot[best] < floor]
        for i in best.tolist():
            window, position = int(windows[i]), int(positions[i])
            near = (f.window == window) & (f.position >= position - self.left) & (f.position <= position + self.right)
            self.held[window, position] = np.unique(f.latent[near])
        if len(best):
            places = [*self.held]
            for i in np.argsort(self._lots())[self.n :].tolist():
                del self.held[places[i]]

    def _lots(self) -> Int[np.ndarray, "places"]:
        return lots(*np.array([*self.held], dtype=np.int64).reshape(-1, 2).T)

    def state(self) -> dict[str, np.ndarray]:
        places = np.array([*self.held], dtype=np.int64).reshape(-1, 2)
        lengths = np.array([len(active) for active in self.held.values()], dtype=np.int64)
        active = np.concatenate([np.zeros(0, np.int64), *self.held.values()])
        return {"silent_places": places, "silent_lengths": lengths, "silent_active": active}

    def load(self, state: dict[str, np.ndarray]) -> None:
        parts = np.split(state["silent_active"], np.cumsum(state["silent_lengths"]))
        self.held = {(int(w), int(p)): part for (w, p), part in zip(state["silent_places"].tolist(), parts)}


def pack_latents(latents: Int[np.ndarray, "n"]) -> bytes:
    return zlib.compress(np.asarray(latents).astype("<u4").tobytes(), 9)


def unpack_latents(blob: bytes) -> Int[np.ndarray, "n"]:
    return np.frombuffer(zlib.decompress(blob), "<u4").astype(np.int64)
