"""One pass over a corpus for all latents of a dictionary: what was counted so far, and how it is kept."""

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..activations import ActivationBatch
from ..data import TokenStore
from ..dictionaries import Dictionary
from ..errors import BadFile
from ..files import replacing
from .config import IndexConfig
from .layout import Piece
from .tallies import Candidates, Firings, Numbers, TokenTallies, echoes

PER_DOCUMENT = 2
ECHO = 8  # two examples with the same token after the same 8 tokens are one


class CorpusPass:
    """The state of an indexing pass.

    Attributes:
        window: windows done. tokens: tokens counted. skipped: tokens left out, by reason.
        numbers, words, candidates: what is tallied of every latent.
    """

    def __init__(self, dictionary: Dictionary, store: TokenStore, config: IndexConfig, state: Path, vocabulary: int):
        self.dictionary, self.store, self.config, self.state = dictionary, store, config, state
        self.window = 0
        self.tokens = 0
        self.skipped: Counter[str] = Counter()
        self.numbers = Numbers(dictionary.width)
        self.words = TokenTallies(vocabulary)
        self.echo = min(ECHO, config.left)
        self.candidates = Candidates(dictionary.width, config.examples, PER_DOCUMENT, config.left, config.right)
        self.parts = (self.numbers, self.words, self.candidates)
        if state.exists():
            self._resume()

    def add(self, batch: ActivationBatch) -> None:
        """Count the kept tokens of some whole windows."""
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
            self.skipped = Counter(json.loads(str(state["skipped"])))
            for part in self.parts:
                part.load(state)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BadFile(f"{self.state} is damaged ({error}); delete it to start anew") from error

    def examples(self) -> Iterator[tuple[int, list[Piece]]]:
        """latent -> its examples, strongest first, after the rules on documents and duplicates."""
        self.candidates.rank()
        columns = self.candidates.held
        cuts = np.flatnonzero(np.diff(columns["latent"])) + 1
        for group in np.split(np.arange(len(columns["latent"])), cuts):
            kept: list[Piece] = []
            used: dict[int, int] = {}
            for i in group:
                document = int(columns["document"][i])
                if used.get(document, 0) >= PER_DOCUMENT or len(kept) >= self.config.examples:
                    continue
                ids, values, anchor = self._piece(columns, i)
                used[document] = used.get(document, 0) + 1
                kept.append((ids, values, anchor, document, int(columns["position"][i])))
            if kept:
                yield int(columns["latent"][group[0]]), kept

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
