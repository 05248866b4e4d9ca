"""The whole job of making a dictionary: model, text, activations, training, evaluation, card."""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from ... import __version__
from ...activations import ActivationShards, ActivationStream, ShardStream, SkipRule, TokenStream, harvest
from ...activations.second import validated
from ...data import Document, TextSource, TokenStore, as_store, corpus
from ...errors import BadInput
from ...files import write_json
from ...models import Model
from ...progress import say
from ..dictionary import Dictionary
from ..formats.saelens import CARD
from ..several import SeveralSites
from .config import AnyConfig, SeveralConfig, TrainConfig, sites_of
from .held_out import held_out
from .outcome import FOLDER
from .rows import DecoderRows
from .sites import of_second
from .starts import start_of
from .step import Record
from .trainer import trained_on

AnyStream = ActivationStream | ShardStream | TokenStream

OFTEN = 4  # times that a text is read above which the user is told
SPARE = 1.03  # tokens of text that count, for each token to train on: outliers are known only when they are read


def train(
    config: TrainConfig,
    *,
    folder: str | os.PathLike[str],
    model: Model | None = None,
    second_model: Model | None = None,
    texts: TextSource | None = None,
    trust_remote_code: bool = False,
    resume: bool = True,
    quiet: bool = False,
    on_step: Callable[[Record], None] | None = None,
) -> Dictionary | SeveralSites:
    """Make the dictionary of a config: `folder/dictionary`, beside config.yaml, metrics.jsonl and checkpoints.

    Interrupted (also killed), the same call goes on where it stopped, with the same result. A token is read once, where
    the text has as many as are trained on.

    Args:
        model, second_model, texts: already loaded ones, instead of those that the config names.
        trust_remote_code: as in `load_model`; a config cannot allow it.
        resume: False refuses a folder that already holds a run.
        on_step: called with each record that goes to metrics.jsonl.

    Raises:
        BadInput: no text, an unusable folder or setting, NaN in a batch or the loss, a result that is none (as
            `train_on`).
        UnknownName: no such model or site.
        Mismatch: the folder holds a run with other settings; every setting that differs is named.
        Interrupted: (a KeyboardInterrupt) stopped by the user, after saving.
    """
    given = None if on_step is None else lambda name, record: on_step(record)
    options: dict[str, Any] = {"model": model, "second_model": second_model, "texts": texts}
    options["trust_remote_code"] = trust_remote_code
    return train_each(config, folder=folder, resume=resume, quiet=quiet, on_step=given, **options)[""]


def train_several(
    config: SeveralConfig,
    *,
    folder: str | os.PathLike[str],
    model: Model | None = None,
    second_model: Model | None = None,
    texts: TextSource | None = None,
    trust_remote_code: bool = False,
    resume: bool = True,
    quiet: bool = False,
    on_step: Callable[[str, Record], None] | None = None,
) -> dict[str, Dictionary | SeveralSites]:
    """Make several dictionaries from one pass of the model: `train` for each, in `folder/NAME`.

    Interrupted, the same call goes on where it stopped, with the same results.

    Raises:
        As `train`.
    """
    options: dict[str, Any] = {"model": model, "second_model": second_model, "texts": texts}
    options["trust_remote_code"] = trust_remote_code
    return train_each(config, folder=folder, resume=resume, quiet=quiet, on_step=on_step, **options)


def train_each(
    config: AnyConfig,
    *,
    folder: str | os.PathLike[str],
    model: Model | None = None,
    second_model: Model | None = None,
    texts: TextSource | None = None,
    trust_remote_code: bool = False,
    resume: bool = True,
    quiet: bool = False,
    on_step: Callable[[str, Record], None] | None = None,
) -> dict[str, Dictionary | SeveralSites]:
    """`train` or `train_several`, as the config says; the only name is "" for a run of one dictionary."""
    home = Path(folder)
    for one in config.each.values():
        start_of(one)
    if config.meta_of is not None:
        return trained_on(DecoderRows.of(config), config, home, resume, quiet, on_step)
    _check_sizes(config)
    _check_models(config)
    model = model or _loaded(config, config.model, trust_remote_code, quiet)
    if config.second_model is not None:
        second_model = second_model or _loaded(config, config.second_model, trust_remote_code, quiet)
    for site in sites_of(config):
        validated(model, second_model, site)  # before the text is read
    for path in config.held_out:  # missing text is no surprise after hours of training
        _documents(config, model, [path], quiet)
    store = _store(config, model, texts, quiet)
    _say_how_often(config, store, quiet)
    stream = _SOURCES["tokens" if config.end_to_end else config.source](config, model, second_model, store, home, quiet)
    trained = trained_on(stream, config, home, resume, quiet, on_step)
    for name, dictionary in trained.items():
        one = config.each[name]
        dictionary.card = {**dictionary.card, **_card(one, store, stream)}
        if config.held_out:
            dictionary.card["held_out"] = {
                path: held_out(one, model, second_model, dictionary, _documents(one, model, [path], quiet), quiet)
                for path in one.held_out
            }
        write_json(home / name / FOLDER / CARD, dictionary.card)
    return trained


def _check_models(config: AnyConfig) -> None:
    if config.second_model is not None and not of_second(sites_of(config)):
        raise BadInput(
            f"second_model is {config.second_model}, but no site is of it: write second: before one, such as "
            "resid_post.15,second:resid_post.15"
        )


def _loaded(config: AnyConfig, name: str, trust_remote_code: bool, quiet: bool) -> Model:
    from ...models import load_model

    device = None if config.device == "auto" else config.device
    options: dict[str, Any] = {"device": device, "dtype": config.dtype, "trust_remote_code": trust_remote_code}
    return load_model(name, **options, quiet=quiet)


def _check_sizes(config: AnyConfig) -> None:
    """Before the model is loaded: whether the buffer can hold what goes through it."""
    needed = config.batch_tokens + config.batch_size * config.context
    if config.source == "stream" and not config.end_to_end and config.buffer_tokens < needed:
        raise BadInput(
            f"buffer_tokens is {config.buffer_tokens:,}, but the buffer must hold a batch and a forward pass: "
            f"{needed:,} (batch_tokens + batch_size · context)"
        )


def _store(config: AnyConfig, model: Model, texts: TextSource | None, quiet: bool) -> TokenStore:
    """The text as windows. Several texts are mixed, so that cutting them keeps the mixture."""
    limit = int(config.steps * config.batch_tokens * SPARE) + config.context
    first, special = SkipRule().first, sorted(model.special_ids)

    def counted(windows: Int[np.ndarray, "n context"]) -> Int[np.ndarray, "n"]:
        return np.count_nonzero(~np.isin(windows[:, first:], special), axis=1)

    how: dict[str, Any] = {"tokens": limit, "counted": counted, "apart": config.apart}
    if texts is not None:
        return as_store(model, texts, config.context, **how)
    if not config.texts:
        raise BadInput("no text to train on: give --text PATH or texts: in the config")
    documents = _documents(config, model, config.texts, quiet, config.seed)
    return TokenStore.build(model, documents, config.context, **how, quiet=quiet)


def _say_how_often(config: AnyConfig, store: TokenStore, quiet: bool) -> None:
    """A log of repeated text looks better than the dictionary is (docs/training.md), so the user hears of it before."""
    times = config.steps * config.batch_tokens / store.tokens
    if times > OFTEN:
        say(
            f"the text has {store.tokens:,} tokens, each of which is read about {times:.0f} times: give more text, or "
            "fewer tokens, and trust the FVE on held-out text alone",
            quiet,
        )


def _documents(config: AnyConfig, model: Model, paths: list[str], quiet: bool, seed: int = 0) -> Iterable[Document]:
    options: dict[str, Any] = {"field": config.field, "most_skipped": config.most_skipped, "quiet": quiet}
    return corpus(model, paths, seed=seed, **options)


def _streamed(
    config: AnyConfig, model: Model, second: Model | None, store: TokenStore, home: Path, quiet: bool
) -> ActivationStream:
    return ActivationStream(
        harvest(model, store, sites_of(config), batch_size=config.batch_size, second=second),
        config.batch_tokens,
        config.buffer_tokens,
        seed=config.seed,
        dtype=torch.float32,
        epochs=2 * math.ceil(config.tokens / store.tokens),  # more than enough: skipped tokens do not count
        tokens=config.steps * config.batch_tokens,
    )


def _from_shards(
    config: AnyConfig, model: Model, second: Model | None, store: TokenStore, home: Path, quiet: bool
) -> ShardStream:
    options: dict[str, Any] = {"batch_size": config.batch_size, "second": second, "quiet": quiet}
    shards = ActivationShards.build(model, store, sites_of(config), home / "activations", **options)
    return shards.stream(
        batch_tokens=config.batch_tokens,
        seed=config.seed,
        epochs=math.ceil(config.steps * config.batch_tokens / shards.tokens),
        device=model.device,
    )


def _windows(
    config: AnyConfig, model: Model, second: Model | None, store: TokenStore, home: Path, quiet: bool
) -> TokenStream:
    """End to end."""
    windows = config.batch_tokens // store.context
    source = harvest(model, store, sites_of(config), batch_size=config.batch_size)
    return TokenStream(source, windows, config.seed, epochs=math.ceil(config.steps * windows / len(store)))


_SOURCES: dict[str, Callable[..., AnyStream]] = {"stream": _streamed, "shards": _from_shards, "tokens": _windows}


def _card(config: TrainConfig, store: TokenStore, stream: AnyStream) -> dict[str, Any]:
    left_out = {reason: count for reason, count in stream.skipped.items() if reason != "kept"}
    return {
        "model": config.model,
        "site": config.site,
        **({} if config.site_out is None else {"site_out": config.site_out}),
        **({} if config.second_model is None else {"second_model": config.second_model}),
        "seed": config.seed,
        "training": config.model_dump(mode="json"),
        "data": config.texts,
        "corpus_tokens": store.tokens,
        "tokens_read": sum(count for reason, count in stream.skipped.items() if reason != "remainder"),
        "tokens_left_out": left_out,
        "monosem": __version__,
        "torch": torch.__version__,
    }
