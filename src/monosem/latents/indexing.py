"""Making an index: one pass over a corpus for all latents of a dictionary."""

import contextlib
import json
import os
import shutil
import sqlite3
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from ..activations import ActivationBatch, ActivationShards, SkipRule, harvest
from ..data import TokenStore
from ..dictionaries import Dictionary
from ..errors import BadFile, BadInput, Mismatch
from ..files import replacing
from ..jobs import JobConfig, claim
from ..models import Model
from ..progress import Meter
from .effects import CONVENTION, extreme_tokens, reaches_logits
from .index import SCHEMA, Index, pack
from .spelling import alone, token_text
from .tallies import Candidates, Firings, Numbers, TokenTallies, echoes

PER_DOCUMENT = 2
ECHO = 8  # two examples with the same token after the same 8 tokens are one
SHOWN_TOKENS = 12  # of the tokens that a latent fires on, promotes, suppresses
SEARCHED_TOKENS = 48  # of the tokens that a latent fires on
WINDOWS = 16  # windows a batch when activations are read from shards
STATE = "state.npz"


class IndexConfig(JobConfig):
    """What an index is made of; kept in the index, too."""

    job: ClassVar[str] = "latent index"

    model: str = Field(description="name of the model")
    site: str = Field(description="where the dictionary reads")
    dtype: str = Field(description="dtype that the model ran in")
    skip: str = Field(description="which tokens are left out")
    weights: str = Field(description="fingerprint of the dictionary")
    store: str = Field(description="fingerprint of the token store")
    windows: int = Field(gt=0, description="windows that are read")
    examples: int = Field(description="examples kept for each latent")
    left: int = Field(description="tokens shown before the strongest one")
    right: int = Field(description="tokens shown after it")
    source: str = Field(description="where activations come from: model or shards")


def build_index(
    dictionary: Dictionary,
    model: Model,
    store: TokenStore,
    path: str | os.PathLike[str],
    *,
    tokens: int | None = None,
    examples: int = 20,
    left: int = 24,
    right: int = 8,
    corpus: str = "",
    shards: ActivationShards | None = None,
    skip: SkipRule | None = None,
    batch_size: int = 16,
    save_tokens: int = 250_000,
    quiet: bool = False,
) -> Index:
    """Index a dictionary over the windows of a token store.

    For every latent: count, moments, maximum and histogram of its activations, the tokens that it fires on, and its
    strongest examples: one a window, at most two a document, no two with the same token after the same eight
    (boilerplate would fill the list). Their context is `left` and `right` of the strongest token, cut at document
    borders. Special tokens, first positions and outliers do not count; how many they were is in the index
    (`Index.meta["skipped"]`).

    Interrupted, it goes on where it stopped when called again (`PATH.partial` keeps the state), and gives the same
    index.

    Args:
        tokens: read about so many tokens of the store (whole windows); None for all.
        corpus: what the text is, with its licence; kept in the index.
        shards: activations of the same store, harvested earlier: no model pass is needed then.

    Raises:
        Mismatch: dictionary, model, store and shards do not belong together, or a partial index has other settings.
        BadInput: nothing to index, or an unwritable folder. BadFile: the disk is full, or a damaged partial index.
    """
    dictionary.check(model)
    target = Path(path)
    windows = len(store) if tokens is None else min(len(store), max(1, tokens // store.context))
    if shards is not None:
        _check_shards(shards, dictionary, model, store)
    rule = skip or SkipRule()
    config = IndexConfig(
        model=model.name,
        site=str(dictionary.site),
        dtype=str(model.dtype).removeprefix("torch."),
        skip=str(rule) if shards is None else shards.config.skip,
        weights=dictionary.fingerprint,
        store=store.fingerprint,
        windows=windows,
        examples=examples,
        left=left,
        right=right,
        source="shards" if shards is not None else "model",
    )
    partial = target.with_name(target.name + ".partial")
    with claim(partial, config, work=STATE), _removed_if_empty(partial):
        build = _Build(dictionary, store, config.model_dump(), partial / STATE, model.cfg.d_vocab)
        build.resume()
        if shards is None:
            source = harvest(model, store, dictionary.site, batch_size=batch_size, skip=rule)
            source.skipper.counts.update(build.skipped)  # goes on counting
            build.skipped = source.skipper.counts
            batches = _from_model(source, build.window, windows)
        else:
            build.skipped.clear()
            build.skipped.update(shards.skipped if windows == len(store) else {})  # counted by file, not by window
            batches = _from_shards(shards, build.window, windows)
        with Meter("index", windows * store.context, "tok", quiet, build.window * store.context) as meter:
            saved = build.window
            for batch, done in batches:
                build.add(batch)
                meter.advance((done - build.window) * store.context)
                build.window = done
                if (done - saved) * store.context >= save_tokens and done < windows:
                    build.save()
                    saved = done
        if not build.tokens:
            raise BadInput("no token of this text counts (only special tokens and first positions); give more text")
        meta = {
            "corpus": corpus,
            "effects": CONVENTION
            if reaches_logits(model, dictionary)
            else f"none: {dictionary.site_out} is not in the stream",
            "skipped": {reason: n for reason, n in sorted(build.skipped.items()) if reason != "kept"}
            or {"all reasons": windows * store.context - build.tokens},
        }
        with replacing(target) as temporary:
            _write(temporary, build, model, {**config.model_dump(), **meta})
    shutil.rmtree(partial, ignore_errors=True)
    return Index(target, dictionary)


class _Build:
    """The state of an indexing pass."""

    def __init__(
        self, dictionary: Dictionary, store: TokenStore, settings: dict[str, Any], partial: Path, vocabulary: int
    ):
        self.dictionary, self.store, self.settings, self.partial = dictionary, store, settings, partial
        self.window = 0  # windows done
        self.tokens = 0  # tokens counted
        self.skipped: Counter[str] = Counter()  # tokens left out, by reason
        self.numbers = Numbers(dictionary.width)
        self.words = TokenTallies(vocabulary)
        self.echo = min(ECHO, settings["left"])
        sizes = (settings["examples"], PER_DOCUMENT, settings["left"], settings["right"])
        self.candidates = Candidates(dictionary.width, *sizes)
        self.parts = (self.numbers, self.words, self.candidates)

    def add(self, batch: ActivationBatch) -> None:
        codes = self.dictionary.encode(batch[self.dictionary.site])
        rows, places = (codes.values > 0).nonzero(as_tuple=True)
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
        with replacing(self.partial) as temporary, open(temporary, "wb") as file:
            np.savez(file, **state)

    def resume(self) -> None:
        if not self.partial.exists():
            return
        try:
            with np.load(self.partial, allow_pickle=False) as held:
                state = dict(held)
            self.window, self.tokens = int(state["window"]), int(state["tokens"])
            self.skipped = Counter(json.loads(str(state["skipped"])))
            for part in self.parts:
                part.load(state)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BadFile(f"{self.partial} is damaged ({error}); delete it to start anew") from error

    def examples(self) -> Iterator[tuple[int, list[tuple[np.ndarray, np.ndarray, int, int, int]]]]:
        """latent -> its examples, strongest first, after the rules on documents and duplicates."""
        self.candidates.rank()
        columns = self.candidates.held
        cuts = np.flatnonzero(np.diff(columns["latent"])) + 1
        for group in np.split(np.arange(len(columns["latent"])), cuts):
            kept: list[tuple[np.ndarray, np.ndarray, int, int, int]] = []
            used: dict[int, int] = {}
            for i in group:
                document = int(columns["document"][i])
                if used.get(document, 0) >= PER_DOCUMENT or len(kept) >= self.settings["examples"]:
                    continue
                ids, values, anchor = self._piece(columns, i)
                used[document] = used.get(document, 0) + 1
                kept.append((ids, values, anchor, document, int(columns["position"][i])))
            if kept:
                yield int(columns["latent"][group[0]]), kept

    def _piece(self, columns: dict[str, np.ndarray], i: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Token ids and activations around a candidate, cut at the window's and the document's borders."""
        left, right = self.settings["left"], self.settings["right"]
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


@contextlib.contextmanager
def _removed_if_empty(partial: Path) -> Iterator[None]:
    """An indexing that fails before it has saved anything leaves nothing behind."""
    try:
        yield
    except BaseException:
        if not (partial / STATE).exists():
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_shards(shards: ActivationShards, dictionary: Dictionary, model: Model, store: TokenStore) -> None:
    if shards.config.windows != store.fingerprint:
        raise Mismatch("the shards were harvested from another token store; give the store that they were made from")
    if shards.config.model != model.name or dictionary.site not in shards.sites:
        held = ", ".join(map(str, shards.sites))
        raise Mismatch(f"the shards hold {held} of {shards.config.model}, not {dictionary.site} of {model.name}")


def _from_model(source: Any, start: int, end: int) -> Iterator[tuple[ActivationBatch, int]]:
    for first in range(start, end, source.batch_size):
        last = min(first + source.batch_size, end)
        yield source.read(torch.arange(first, last)), last


def _from_shards(shards: ActivationShards, start: int, end: int) -> Iterator[tuple[ActivationBatch, int]]:
    """Stored rows, whole windows at a time; they lie in the order of their windows."""
    every = shards.rows("windows", torch.arange(shards.tokens)).long()
    for first in range(start, end, WINDOWS):
        last = min(first + WINDOWS, end)
        low, high = torch.searchsorted(every, torch.tensor([first, last])).tolist()
        rows = torch.arange(low, high)
        x = {site: shards.rows(site, rows) for site in shards.sites}
        yield ActivationBatch(x, shards.rows("tokens", rows), every[rows], shards.rows("positions", rows)), last


_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE latent (id INTEGER PRIMARY KEY, count INTEGER, s1 REAL, s2 REAL, s3 REAL, s4 REAL, maximum REAL,
                     histogram BLOB, tokens TEXT, promoted TEXT, suppressed TEXT);
CREATE TABLE examples (latent INTEGER PRIMARY KEY, blob BLOB);
CREATE TABLE document (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE token (id INTEGER PRIMARY KEY, text TEXT);
CREATE VIRTUAL TABLE search USING fts5 (fires, promotes);
"""


def _write(path: Path, build: _Build, model: Model, settings: dict[str, Any]) -> None:
    """All tables in one transaction, at a temporary place that is renamed by the caller."""
    path.unlink()
    connection = sqlite3.connect(path)
    used: set[int] = set()
    documents: set[int] = set()
    width = build.dictionary.width
    effects = _effects(model, build.dictionary)
    words = build.words.top(SEARCHED_TOKENS)
    numbers = build.numbers
    try:
        connection.executescript(_TABLES)
        meta = {
            **settings,
            "schema": SCHEMA,
            "dictionary": build.dictionary.name,
            "width": width,
            "tokens": build.tokens,
        }
        connection.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in meta.items()])
        for latent, pieces in build.examples():
            connection.execute("INSERT INTO examples VALUES (?, ?)", (latent, pack(pieces)))
            used.update(*(piece[0].tolist() for piece in pieces))
            documents.update(piece[3] for piece in pieces)
        for latent in range(width):
            promoted, suppressed = effects[latent]
            found = words.get(latent, [])
            fires = [(i, n, round(total, 2)) for i, n, total in found[:SHOWN_TOKENS]]
            used.update(entry[0] for entry in (*promoted, *suppressed))
            used.update(entry[0] for entry in fires)
            row: tuple[Any, ...] = (
                latent,
                int(numbers.count[latent]),
                *(float(s) for s in numbers.sums[:, latent]),
                float(numbers.maximum[latent]),
                zlib.compress(numbers.histogram[latent].astype("<u4").tobytes(), 9),
                *(json.dumps(listed, separators=(",", ":")) for listed in (fires, promoted, suppressed)),
            )
            connection.execute("INSERT INTO latent VALUES (?,?,?,?,?,?,?,?,?,?,?)", row)
            texts = [" ".join(alone(token_text(model, i)).strip() for i, *_ in listed) for listed in (found, promoted)]
            connection.execute("INSERT INTO search (rowid, fires, promotes) VALUES (?, ?, ?)", (latent, *texts))
        names = build.store.packing.documents
        connection.executemany(
            "INSERT INTO document VALUES (?, ?)", [(d, names[d] if names else f"window {d}") for d in sorted(documents)]
        )
        connection.executemany("INSERT INTO token VALUES (?, ?)", [(i, token_text(model, i)) for i in sorted(used)])
        connection.commit()
        connection.execute("VACUUM")
    finally:
        connection.close()


TokenEffects = list[tuple[int, float]]  # (token id, effect)


def _effects(model: Model, dictionary: Dictionary) -> list[tuple[TokenEffects, TokenEffects]]:
    """(promoted, suppressed) of every latent; empty where its site has no direct path to the logits."""
    if not reaches_logits(model, dictionary):
        return [([], [])] * dictionary.width
    up, up_values, down, down_values = (column.tolist() for column in extreme_tokens(model, dictionary, SHOWN_TOKENS))
    sides = zip(up, up_values, down, down_values)
    return [
        ([(i, round(v, 4)) for i, v in zip(a, b)], [(i, round(v, 4)) for i, v in zip(c, d)]) for a, b, c, d in sides
    ]
