"""One pass over a corpus for all latents of a dictionary: what was counted so far, and how it is kept."""

import bisect
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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
from .candidates import Columns, Drawn, Near, Strongest
from .coactivation import Coactivation
from .config import IndexConfig
from .layout import Piece, bands_of, deciles_of
from .neurons import Neurons
from .silence import Silent
from .tallies import Firings, Numbers, Placed, TokenTallies, echoes, lots
from .token_sets import SetTallies, TokenSets

PER_DOCUMENT = 2
SIGNED = ("abstopk", "absjump")  # kinds whose codes go by the magnitude of pre-activations
ECHO = 8  # two examples with the same token after the same 8 tokens are one


@dataclass
class _Used:
    """What examples of a latent are from."""

    windows: set[int] = field(default_factory=set)
    echoes: set[int] = field(default_factory=set)
    documents: Counter[int] = field(default_factory=Counter)


def _placed(*columns: torch.Tensor) -> Placed:
    row, latent, value = columns
    return row.cpu().numpy(), latent.cpu().numpy(), value.float().cpu().numpy()


def _joined(parts: list[Placed]) -> Placed:
    return tuple(map(np.concatenate, zip(*parts)))  # type: ignore[return-value]


def _by_latent(columns: Columns) -> Iterator[tuple[int, np.ndarray]]:
    """Each latent with the indices of its places, in their order."""
    latents = columns["latent"]
    for group in np.split(np.arange(len(latents)), np.flatnonzero(np.diff(latents)) + 1):
        if len(group):
            yield int(latents[group[0]]), group


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
        self._borders: dict[int, list[int]] = {}  # of documents in a window, and its ends
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

    def samples(self, table: str) -> Iterator[tuple[int, list[Piece], list[float]]]:
        """latent -> its examples of one table (`layout.SAMPLES`), after the rules on documents and duplicates, and the
        value of each place."""
        held = {"examples": self.strongest, "near": self.near, "uniform": self.uniform}.get(table, self.drawn)
        held.rank()
        columns = held.held | {"lot": lots(*(held.held[name] for name in ("latent", "window", "position")))}
        for latent, group in _by_latent(columns):
            found = self._sample(table, latent, columns, group)
            if found:
                yield latent, [piece for _, piece in found], [float(columns["value"][i]) for i, _ in found]

    def _sample(self, table: str, latent: int, columns: Columns, group: np.ndarray) -> list[tuple[int, Piece]]:
        config = self.config
        if table in ("examples", "near"):
            return self._pieces(columns, group, config.examples if table == "examples" else config.near)
        order = group[np.argsort(columns["lot"][group])]
        if table == "uniform":
            return self._pieces(columns, order, config.uniform)
        maximum, bins = float(self.numbers.maximum[latent]), self.numbers.histogram[latent]
        inside: dict[int, list[int]] = {}
        values = columns["around"][order, config.left].astype(float)  # as they are kept
        cells = bands_of(values, maximum, config.bands) if table == "bands" else deciles_of(bins, values)
        for i, cell in zip(order.tolist(), cells.tolist()):
            inside.setdefault(cell, []).append(i)
        used, each = _Used(), config.band_examples if table == "bands" else config.decile_examples
        return [one for cell in sorted(inside, reverse=True) for one in self._pieces(columns, inside[cell], each, used)]

    def places(self) -> Iterator[tuple[Piece, np.ndarray]]:
        """Places drawn from all counted tokens, with the latents that are active around each."""
        for (window, position), active in sorted(self.silent.held.items()):
            ids, start, end = self._cut(window, position)
            document = int(self._documents(np.array([window]), np.array([position]))[0])
            yield (ids, np.zeros(end - start, dtype=np.float32), position - start, document, position), active

    def _pieces(
        self, columns: Columns, order: Iterable[int], n: int, used: "_Used | None" = None
    ) -> list[tuple[int, Piece]]:
        """At most n places (row and piece): of one window, or with one wording, one; of one document a few."""
        used = used or _Used()
        kept: list[tuple[int, Piece]] = []
        for i in order:
            if len(kept) >= n:
                break
            window, echo, document = (int(columns[name][i]) for name in ("window", "echo", "document"))
            if window in used.windows or echo in used.echoes or used.documents[document] >= PER_DOCUMENT:
                continue
            used.windows.add(window)
            used.echoes.add(echo)
            used.documents[document] += 1
            kept.append((int(i), (*self._piece(columns, i), document, int(columns["position"][i]))))
        return kept

    def _piece(self, columns: dict[str, np.ndarray], i: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Token ids and activations around a candidate, cut at the window's and the document's borders."""
        position, around = int(columns["position"][i]), columns["around"][i].astype(np.float32)
        ids, start, end = self._cut(int(columns["window"][i]), position)
        shift = self.config.left - position
        return ids, around[start + shift : end + shift], position - start

    def _cut(self, window: int, position: int) -> tuple[np.ndarray, int, int]:
        """Token ids around a place, and their first and last position (that one excluded)."""
        row = np.asarray(self.store.windows[window])
        if window not in self._borders:
            self._borders[window] = [-1, *np.flatnonzero(row == self.store.packing.separator).tolist(), len(row)]
        borders = self._borders[window]
        before, after = bisect.bisect_left(borders, position) - 1, bisect.bisect_right(borders, position)
        start = max(position - self.config.left, borders[before] + 1)
        end = min(position + self.config.right + 1, borders[after])
        return row[start:end].astype("<u4"), start, end

    def _documents(self, windows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        packing = self.store.packing
        if not packing.documents:
            return windows
        at = windows * packing.content + np.maximum(0, positions - len(packing.prefix))
        return np.searchsorted(packing.starts, at, side="right") - 1
