"""One pass over a corpus for all latents of a dictionary: what was counted so far, and how it is kept."""

import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..activations import ActivationBatch
from ..data import TokenStore
from ..dictionaries import Dictionary
from ..dictionaries.encoders import ENCODERS
from ..errors import BadFile, BadInput
from ..files import replacing
from ..reading import parse_json
from .candidates import Drawn, Near, Strongest
from .coactivation import Coactivation
from .config import IndexConfig
from .layout import DECILES, Piece, bands_of, deciles_of
from .neurons import Neurons
from .sampling import PER_DOCUMENT, Samples, chosen, cut, sampled
from .silence import Silent
from .tallies import Firings, Numbers, Placed, TokenTallies, echoes, lots
from .token_sets import SetTallies, TokenSets

SIGNED = ("abstopk", "absjump")  # kinds whose codes go by the magnitude of pre-activations
ECHO = 8  # two examples with the same token after the same 8 tokens are one
# which setting says how many examples a latent has of each table; of `bands` and `deciles`: how many a cell
EACH = {
    "examples": "examples",
    "bands": "band_examples",
    "deciles": "decile_examples",
    "uniform": "uniform",
    "near": "near",
}


def _placed(*columns: torch.Tensor) -> Placed:
    row, latent, value = columns
    return row.cpu().numpy(), latent.cpu().numpy(), value.float().cpu().numpy()


def _joined(parts: list[Placed]) -> Placed:
    return tuple(map(np.concatenate, zip(*parts)))  # type: ignore[return-value]


class CorpusPass:
    """The state of an indexing pass.

    Attributes:
        window: windows done. tokens: tokens counted. skipped: tokens left out, by reason.
        seen: how often each token was counted, and how often it stood before a counted one.
        numbers, words, before, bigrams, sets, pairs, neurons: what is tallied of every latent (`pairs` is None where it
            would take more than `pair_memory`, `neurons` where they were not asked for). strongest, bands, uniform,
            near, silent: places that may become examples.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        store: TokenStore,
        config: IndexConfig,
        state: Path,
        sets: TokenSets,
        neurons: Neurons | None = None,
    ):
        self.dictionary, self.store, self.config, self.state = dictionary, store, config, state
        self.window = 0
        self.tokens = 0
        self.skipped: Counter[str] = Counter()
        width, vocabulary = dictionary.width, sets.members.shape[1]
        self.seen = np.zeros((2, vocabulary), dtype=np.int64)
        self.numbers = Numbers(width)
        self.words = TokenTallies("words", vocabulary, lambda f: f.token)
        self.before = TokenTallies("before", vocabulary, lambda f: f.before)
        self.bigrams = TokenTallies(
            "bigrams", vocabulary**2, lambda f: np.where(f.before < 0, -1, f.before * vocabulary + f.token)
        )
        self.sets = SetTallies(width, sets)
        counted = config.pairs and width > 1 and Coactivation.memory(width) <= config.pair_memory
        self.pairs = Coactivation(width) if counted else None
        self.neurons = neurons
        self.echo = min(ECHO, config.left)
        around = config.left, config.right
        self.strongest = Strongest.of(width, config.examples, PER_DOCUMENT, *around)
        self.drawn = Drawn.of("drawn", width, max(config.band_examples, config.decile_examples), *around)
        self.uniform = Drawn.of("uniform", width, config.uniform, *around, bins=1)
        self.near = Near.of(width, config.near, PER_DOCUMENT, *around)
        self.silent = Silent(config.silent, *around)
        tallied = (self.numbers, self.words, self.before, self.bigrams, self.sets)
        drawn = (self.strongest, self.drawn, self.uniform, self.near, self.silent)
        asked = [part for part in (self.pairs, self.neurons) if part is not None]
        self.parts = (*tallied, *asked, *drawn)
        self.left_out = self._matching(config.leave_out)
        if state.exists():
            self._resume()

    def add(self, batch: ActivationBatch) -> None:
        """Count the kept tokens of some whole windows."""
        batch = self._without_left_out(batch)
        if not len(batch):
            return
        placed, near = self._codes(batch)
        windows, positions, tokens = (
            column.cpu().numpy().astype(np.int64) for column in (batch.windows, batch.positions, batch.tokens)
        )
        documents = self._documents(windows, positions)
        read, inverse = np.unique(windows, return_inverse=True)
        lines = np.asarray(self.store.windows[read]).astype(np.int64)
        before = self._before(lines)[inverse, positions]
        wording = echoes(lines, self.store.packing.separator, self.echo)[inverse, positions]
        firings = Firings.of(
            placed,
            window=windows,
            document=documents,
            position=positions,
            token=tokens,
            before=before,
            echo=wording,
        )
        self.tokens += len(batch)
        self.seen[0] += np.bincount(tokens, minlength=self.seen.shape[1])
        self.seen[1] += np.bincount(before[before >= 0], minlength=self.seen.shape[1])
        for part in self.parts:
            part.add(firings)
        self.silent.consider(firings, windows, positions)
        if self.neurons is not None:
            self.neurons.consider(firings, batch[self.neurons.site])
        if near is not None:
            at, latent, level = near
            places = {"latent": latent, "window": windows[at], "document": documents[at], "position": positions[at]}
            self.near.consider(firings, {**places, "value": level, "echo": wording[at]})

    def _codes(self, batch: ActivationBatch) -> tuple[Placed, Placed | None]:
        """(token, latent, activation) where codes are not 0; and of each window and latent the silent token with its
        highest pre-activation, where the kind of dictionary has pre-activations."""
        x, dictionary = batch[self.dictionary.site], self.dictionary
        if not self.config.near or ENCODERS[dictionary.kind].find is not None:
            codes = dictionary.encode(x)
            rows, places = (codes.values != 0).nonzero(as_tuple=True)
            return _placed(rows, codes.indices[rows, places], codes.values[rows, places]), None
        firing, near, first = [], [], 0
        for length in torch.unique_consecutive(batch.windows, return_counts=True)[1].tolist():
            pre = dictionary.preactivations(x[first : first + length])
            rows, latents, values = dictionary.firings(pre)
            firing.append(_placed(rows + first, latents, values))
            level = pre.abs() if dictionary.kind in SIGNED else pre
            level[rows, latents] = -torch.inf
            close = torch.from_numpy(self.near.floor).to(level.device) < level.amax(0)
            highest, at = level[:, close].max(0)
            near.append(_placed(at + first, close.nonzero()[:, 0], highest))
            first += length
        return _joined(firing), _joined(near)

    def _before(self, lines: np.ndarray) -> np.ndarray:
        """The token before each one in its document; -1 where there is none."""
        before = np.concatenate([np.full((len(lines), 1), -1), lines[:, :-1]], axis=1)
        return np.where(before == self.store.packing.separator, -1, before)

    def _matching(self, pattern: str) -> np.ndarray:
        """Numbers of the documents that are left out."""
        if not pattern:
            return np.zeros(0, dtype=np.int64)
        ids = self.store.packing.documents
        if not ids:
            raise BadInput("leave_out goes by the ids of documents, and these windows were given as token ids")
        return np.array([number for number, name in enumerate(ids) if re.search(pattern, name)], dtype=np.int64)

    def _without_left_out(self, batch: ActivationBatch) -> ActivationBatch:
        if not len(self.left_out):
            return batch
        documents = self._documents(batch.windows.cpu().numpy(), batch.positions.cpu().numpy())
        kept = torch.from_numpy(~np.isin(documents, self.left_out)).to(batch.tokens.device)
        self.skipped["left out"] += int((~kept).sum())
        x = {site: values[kept] for site, values in batch.activations.items()}
        return ActivationBatch(x, batch.tokens[kept], batch.windows[kept], batch.positions[kept])

    def save(self) -> None:
        state: dict[str, Any] = {"window": self.window, "tokens": self.tokens, "seen": self.seen}
        state["skipped"] = json.dumps(self.skipped)
        for part in self.parts:
            state |= part.state()
        with replacing(self.state) as temporary, open(temporary, "wb") as file:
            np.savez(file, **state)

    def _resume(self) -> None:
        try:
            with np.load(self.state, allow_pickle=False) as held:
                state = dict(held)
            self.window, self.tokens, self.seen = int(state["window"]), int(state["tokens"]), state["seen"]
            self.skipped = Counter(parse_json(str(state["skipped"])))
            for part in self.parts:
                part.load(state)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BadFile(f"{self.state} is damaged ({error}); delete it to start anew") from error

    def samples(self, table: str) -> Samples:
        """The examples of one table (`layout.SAMPLES`)."""
        config = self.config
        held = {"examples": self.strongest, "near": self.near, "uniform": self.uniform}.get(table, self.drawn)
        held.rank()
        columns = held.held
        latent, value = columns["latent"], columns["around"][:, config.left].astype(float)  # as they are kept
        cell, cells, each = np.zeros(len(latent), dtype=np.int64), 1, getattr(config, EACH[table])
        if table == "bands":
            cell, cells = bands_of(value, self.numbers.maximum[latent], config.bands), config.bands
        elif table == "deciles":
            cell, cells = deciles_of(self.numbers.histogram, latent, value), DECILES
        order = np.arange(len(latent))  # as they rank
        if isinstance(held, Drawn):
            order = np.lexsort((lots(latent, columns["window"], columns["position"]), -cell, latent))
        ordered = {name: columns[name][order] for name in ("latent", "window", "echo", "document")}
        rows = order[chosen(ordered, cell[order], each, each * cells)]
        return sampled(self.store, columns, rows, config.left)

    def places(self) -> Iterator[tuple[Piece, np.ndarray]]:
        """Places drawn from all counted tokens, with the latents that are active around each."""
        drawn = sorted(self.silent.held.items())
        windows, positions = np.array([place for place, _ in drawn], dtype=np.int64).reshape(-1, 2).T
        shown, ids = cut(self.store, windows, positions, self.config.left, self.config.right)
        documents = self._documents(windows, positions)
        for i, (_, active) in enumerate(drawn):
            text, anchor = ids[i, shown[i]], int(shown[i, : self.config.left].sum())
            yield (text, np.zeros(len(text)), anchor, int(documents[i]), int(positions[i])), active

    def _documents(self, windows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        packing = self.store.packing
        if not packing.documents:
            return windows
        at = windows * packing.content + np.maximum(0, positions - len(packing.prefix))
        return np.searchsorted(packing.starts, at, side="right") - 1
