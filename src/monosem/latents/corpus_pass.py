"""One pass over a corpus for all latents of a dictionary: what was counted so far, and how it is kept."""

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
from ..errors import BadFile, BadInput
from ..files import replacing
from ..reading import parse_json
from .candidates import Columns, Drawn, Strongest, lots
from .config import IndexConfig
from .layout import Piece, band_of
from .tallies import Firings, Numbers, TokenTallies, echoes

PER_DOCUMENT = 2
ECHO = 8  # two examples with the same token after the same 8 tokens are one


@dataclass
class _Used:
    """What examples of a latent are from."""

    windows: set[int] = field(default_factory=set)
    echoes: set[int] = field(default_factory=set)
    documents: Counter[int] = field(default_factory=Counter)


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
        numbers, words, strongest, drawn: what is tallied of every latent.
    """

    def __init__(self, dictionary: Dictionary, store: TokenStore, config: IndexConfig, state: Path, vocabulary: int):
        self.dictionary, self.store, self.config, self.state = dictionary, store, config, state
        self.window = 0
        self.tokens = 0
        self.skipped: Counter[str] = Counter()
        self.numbers = Numbers(dictionary.width)
        self.words = TokenTallies(vocabulary)
        self.echo = min(ECHO, config.left)
        around = config.left, config.right
        self.strongest = Strongest.of(dictionary.width, config.examples, PER_DOCUMENT, *around)
        self.drawn = Drawn.of(dictionary.width, config.band_examples, *around)
        self.parts = (self.numbers, self.words, self.strongest, self.drawn)
        self.left_out = self._matching(config.leave_out)
        if state.exists():
            self._resume()

    def add(self, batch: ActivationBatch) -> None:
        """Count the kept tokens of some whole windows."""
        batch = self._without_left_out(batch)
        codes = self.dictionary.encode(batch[self.dictionary.site])
        rows, places = (codes.values != 0).nonzero(as_tuple=True)
        whole = (codes.indices[rows, places], batch.windows[rows], batch.positions[rows], batch.tokens[rows])
        latents, windows, positions, tokens = (column.cpu().numpy().astype(np.int64) for column in whole)
        values = codes.values[rows, places].float().cpu().numpy()
        documents = self._documents(windows, positions)
        read, inverse = np.unique(windows, return_inverse=True)
        wording = echoes(np.asarray(self.store.windows[read]), self.store.packing.separator, self.echo)
        firings = Firings(latents, windows, documents, positions, tokens, values, wording[inverse, positions])
        self.tokens += len(batch)
        for part in self.parts:
            part.add(firings)

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
        state: dict[str, Any] = {"window": self.window, "tokens": self.tokens}
        state["skipped"] = json.dumps(self.skipped)
        for part in self.parts:
            state |= part.state()
        with replacing(self.state) as temporary, open(temporary, "wb") as file:
            np.savez(file, **state)

    def _resume(self) -> None:
        try:
            with np.load(self.state, allow_pickle=False) as held:
                state = dict(held)
            self.window, self.tokens = int(state["window"]), int(state["tokens"])
            self.skipped = Counter(parse_json(str(state["skipped"])))
            for part in self.parts:
                part.load(state)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BadFile(f"{self.state} is damaged ({error}); delete it to start anew") from error

    def examples(self) -> Iterator[tuple[int, list[Piece]]]:
        """latent -> its examples, strongest first, after the rules on documents and duplicates."""
        self.strongest.rank()
        columns = self.strongest.held
        for latent, group in _by_latent(columns):
            yield latent, self._pieces(columns, group, self.config.examples)

    def bands(self) -> Iterator[tuple[int, list[Piece]]]:
        """latent -> examples drawn from each interval of its activations, the strongest interval first."""
        self.drawn.rank()
        columns, each = self.drawn.held, self.config.band_examples
        lot = lots(columns["latent"], columns["window"], columns["position"])
        for latent, group in _by_latent(columns):
            maximum = float(self.numbers.maximum[latent])
            inside: dict[int, list[int]] = {}
            for i in group[np.argsort(lot[group])].tolist():
                value = float(columns["around"][i, self.config.left])  # as it is kept
                inside.setdefault(band_of(value, maximum, self.config.bands), []).append(i)
            used = _Used()
            pieces = [self._pieces(columns, inside[band], each, used) for band in sorted(inside, reverse=True)]
            if any(pieces):
                yield latent, [piece for some in pieces for piece in some]

    def _pieces(self, columns: Columns, order: Iterable[int], n: int, used: "_Used | None" = None) -> list[Piece]:
        """At most n places: of one window, or with one wording, one; of one document a few."""
        used = used or _Used()
        kept: list[Piece] = []
        for i in order:
            if len(kept) >= n:
                break
            window, echo, document = (int(columns[name][i]) for name in ("window", "echo", "document"))
            if window in used.windows or echo in used.echoes or used.documents[document] >= PER_DOCUMENT:
                continue
            used.windows.add(window)
            used.echoes.add(echo)
            used.documents[document] += 1
            kept.append((*self._piece(columns, i), document, int(columns["position"][i])))
        return kept

    def _piece(self, columns: dict[str, np.ndarray], i: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Token ids and activations around a candidate, cut at the window's and the document's borders."""
        left, right = self.config.left, self.config.right
        position = int(columns["position"][i])
        row = np.asarray(self.store.windows[int(columns["window"][i])])
        borders = np.flatnonzero(row == self.store.packing.separator)
        start = max(position - left, 0, int(borders[borders < position].max(initial=-1)) + 1)
        end = min(position + right + 1, len(row), int(borders[borders > position].min(initial=len(row))))
        around = columns["around"][i].astype(np.float32)
        return row[start:end].astype("<u4"), around[start - position + left : end - position + left], position - start

    def _documents(self, windows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        packing = self.store.packing
        if not packing.documents:
            return windows
        at = windows * packing.content + np.maximum(0, positions - len(packing.prefix))
        return np.searchsorted(packing.starts, at, side="right") - 1
