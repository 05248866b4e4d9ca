"""Making an index: one pass over a corpus for all latents of a dictionary."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..activations import ActivationBatch, ActivationShards, SkipRule, harvest
from ..data import TextSource, TokenStore, as_store
from ..dictionaries import Dictionary
from ..errors import BadInput, Mismatch
from ..files import check_writable, replacing
from ..jobs import claim, fingerprint, module_fingerprint
from ..models import Model, Site
from ..progress import Meter
from .config import IndexConfig
from .corpus_pass import CorpusPass
from .effects import CONVENTION, reaches_logits
from .index import Index, is_index
from .layout import SCHEMA
from .neurons import Neurons
from .token_sets import TokenSets
from .writing import write

WINDOWS = 16  # windows a batch when activations are read from shards
STATE = "state.npz"

# what of the config stands in the index
SETTINGS = {*("examples", "bands", "band_examples", "decile_examples", "uniform", "near", "silent", "pairs", "neurons")}
SETTINGS |= {"left", "right", "corpus", "leave_out"}

Batches = Iterator[tuple[ActivationBatch, int]]  # with each batch: windows done after it


def build_index(
    model: Model,
    dictionary: Dictionary,
    texts: TextSource,
    path: str | os.PathLike[str],
    config: IndexConfig | None = None,
    *,
    shards: ActivationShards | None = None,
    skip: SkipRule | None = None,
    quiet: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Index:
    """Index a dictionary over a corpus.

    For every latent: count, moments, maximum and histogram of its activations, windows and runs of tokens in which it
    fires; the tokens, tokens before, pairs of tokens and sets of tokens that it fires on; latents that fire with it;
    its strongest examples, and some drawn from a few intervals of its activations, from each tenth of its active
    tokens, from all of them, and of the tokens at which it is silent by the least: one a window, at most two a
    document, no two with the same token after the same eight (boilerplate would fill the list). Their context is
    `left` and `right` of the strongest token, cut at document borders. Special tokens, first positions and outliers do
    not count; how many they were is in the index (`Index.meta["skipped"]`).

    Interrupted, it goes on where it stopped when called again (`PATH.partial` keeps the state); the index is the same.

    Args:
        texts: a `TokenStore`, windows of token ids, or documents (then packed in memory).
        shards: activations of the same store, harvested earlier: no model pass is needed then.
        skip: which tokens do not count; by default what the dictionary was not trained on (`Dictionary.skip`).
        tell: hears how far it is after every batch; what it raises ends it.

    Raises:
        Mismatch: dictionary, model, store and shards do not belong together, or a partial index has other settings.
        BadInput: nothing to index, or as `check_target`. BadFile: the disk is full, or a damaged partial index.
    """
    dictionary.check(model)
    config, rule, target = config or IndexConfig(), skip or dictionary.skip, check_target(path)
    store = as_store(model, texts, config.context, tokens=None if isinstance(texts, TokenStore) else config.tokens)
    windows = len(store) if config.tokens is None else min(len(store), max(1, config.tokens // store.context))
    neurons = Neurons.of(model, dictionary) if config.neurons else None
    _check_shards(shards, {dictionary.site} | ({neurons.site} if neurons else set()), model, store)
    made_with = {
        "model": model.name,
        "site": str(dictionary.site),
        "dtype": str(model.dtype).removeprefix("torch."),
        "skip": str(rule) if shards is None else shards.config.skip,
        "weights": dictionary.fingerprint,
        "store": store.fingerprint,
        "windows": windows,
        "source": "model" if shards is None else "shards",
    }
    partial = target.with_name(target.name + ".partial")
    weights = {"model_weights": module_fingerprint(model.hf), "schema": SCHEMA}
    with claim(partial, config, work=STATE, made_with=made_with | weights), _removed_if_empty(partial):
        so_far = CorpusPass(dictionary, store, config, partial / STATE, TokenSets.of(model), neurons)
        source = _from_model(model, so_far, skip, windows) if shards is None else _from_shards(shards, so_far, windows)
        _read(so_far, source, windows, quiet, tell or (lambda line: None))
        with replacing(target) as temporary:
            write(temporary, so_far, model, made_with | _about(model, so_far, windows))
    shutil.rmtree(partial, ignore_errors=True)
    return Index(target, dictionary)


def check_target(path: str | os.PathLike[str]) -> Path:
    """Where an index can be written: nothing lies there, or an index or an empty file, which it replaces.

    Raises:
        BadInput: a place that cannot be written to, or another file.
    """
    target = check_writable(path)
    if target.exists() and not (target.is_file() and (target.stat().st_size == 0 or is_index(target))):
        raise BadInput(f"{target} is no latent index, and is not replaced by one; choose another place, or delete it")
    return target


def _read(so_far: CorpusPass, batches: Batches, windows: int, quiet: bool, tell: Callable[[str], None]) -> None:
    """Count all batches, saving now and then."""
    context, saved = so_far.store.context, so_far.window
    with Meter("index", windows * context, "tok", quiet, saved * context) as meter:
        for batch, done in batches:
            so_far.add(batch)
            meter.advance((done - so_far.window) * context)
            so_far.window = done
            if (done - saved) * context >= so_far.config.save_tokens and done < windows:
                so_far.save()
                saved = done
            tell(meter.line())
    if not so_far.tokens:
        raise BadInput("no token of this text counts (only special tokens and first positions); give more text")
    tell("writing the index")


def _about(model: Model, so_far: CorpusPass, windows: int) -> dict[str, Any]:
    """What the index says of its making, beside what decides it."""
    dictionary, config = so_far.dictionary, so_far.config
    skipped = {reason: count for reason, count in sorted(so_far.skipped.items()) if reason != "kept"}
    rest = windows * so_far.store.context - so_far.tokens - sum(skipped.values())
    place = f"{dictionary.site_out} is not in the stream" if dictionary.has_site_out else "where it writes is unknown"
    direct = CONVENTION if reaches_logits(model, dictionary) else f"none: {place}"
    return {
        **config.model_dump(include=SETTINGS),
        "settings": fingerprint(json.dumps(config.model_dump(include=SETTINGS - {"corpus"}), sort_keys=True)),
        "pairs_counted": so_far.pairs is not None,
        "tokens_let_go": bool(so_far.words.pruned),
        "neuron_site": "" if so_far.neurons is None else str(so_far.neurons.site),
        "context": so_far.store.context,
        "effects": direct,
        "skipped": skipped | ({"all reasons": rest} if rest else {}),
    }


@contextlib.contextmanager
def _removed_if_empty(partial: Path) -> Iterator[None]:
    """An indexing that fails before it has saved anything leaves nothing behind."""
    try:
        yield
    except BaseException:
        if not (partial / STATE).exists():
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_shards(shards: ActivationShards | None, sites: set[Site], model: Model, store: TokenStore) -> None:
    if shards is None:
        return
    if shards.config.windows != store.fingerprint:
        raise Mismatch("the shards were harvested from another token store; give the store that they were made from")
    if shards.config.model != model.name or not sites <= {*shards.sites}:
        held, needed = (", ".join(sorted(map(str, some))) for some in (shards.sites, sites))
        raise Mismatch(f"the shards hold {held} of {shards.config.model}, not {needed} of {model.name}")


def _from_model(model: Model, so_far: CorpusPass, skip: SkipRule | None, end: int) -> Batches:
    size = so_far.config.batch_size
    dictionary = so_far.dictionary
    thresholds = None if skip else dictionary.skipper(model).thresholds
    rule, sites = skip or dictionary.skip, [dictionary.site]
    source = harvest(model, so_far.store, sites, batch_size=size, skip=rule, thresholds=thresholds)
    if so_far.neurons is not None:  # outliers are told at the dictionary's site alone
        sites.append(so_far.neurons.site)
        source = harvest(model, so_far.store, sites, batch_size=size, skip=rule, thresholds=source.thresholds)
    source.skipper.counts.update(so_far.skipped)  # goes on counting
    so_far.skipped = source.skipper.counts
    for first in range(so_far.window, end, size):
        last = min(first + size, end)
        yield source.read(torch.arange(first, last)), last


def _from_shards(shards: ActivationShards, so_far: CorpusPass, end: int) -> Batches:
    """Stored rows, whole windows at a time; they lie in the order of their windows."""
    if not so_far.window and end == len(so_far.store):
        so_far.skipped.update(shards.skipped)  # counted by file, not by window
    every = shards.rows("windows", torch.arange(shards.tokens)).long()
    for first in range(so_far.window, end, WINDOWS):
        last = min(first + WINDOWS, end)
        low, high = torch.searchsorted(every, torch.tensor([first, last])).tolist()
        rows = torch.arange(low, high)
        x = {site: shards.rows(site, rows) for site in shards.sites}
        yield ActivationBatch(x, shards.rows("tokens", rows), every[rows], shards.rows("positions", rows)), last
