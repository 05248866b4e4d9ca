"""What analyses of a corpus take: a token store, windows of token ids, or documents; and corpora from files."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from ..errors import BadInput
from .packing import Counter, TokenStore, limited
from .tally import MOST_SKIPPED
from .text import Document, interleaved, texts

CHUNK = 65_536  # windows that are counted at once
TextSource = TokenStore | Int[Tensor, "n context"] | Iterable[Document | str]


def as_store(
    model: Any,
    source: TextSource,
    context: int,
    *,
    tokens: int | None = None,
    counted: Counter | None = None,
    apart: bool = False,
) -> TokenStore:
    """A text source as a token store; documents are packed in memory into windows of `context`.

    Args:
        tokens: at most so many, in whole windows; None for all.
        counted: how many tokens of each window count towards `tokens`; None: all.
        apart: no window has tokens of two documents, as in `TokenStore.build`.

    Raises:
        BadInput: a bare string, too little text, windows longer than the model's context, tokens below 1, windows that
            were packed without `apart` where it is asked for.
        Mismatch: a store of another model's tokenizer.
    """
    if tokens is not None and tokens < 1:
        raise BadInput(f"tokens must be at least 1, not {tokens}")
    if isinstance(source, str):
        raise BadInput(
            "a single string is not a corpus; give a list of texts, monosem.data.texts(path), or a TokenStore"
        )
    if hasattr(source, "keys") or hasattr(source, "mask"):  # what a tokenizer returned, a TokenBatch
        batch = model.tokens(source)
        if batch.padded:
            raise BadInput("windows of a corpus have no padding; give the texts themselves, or rows of one length")
        source = batch.ids
    if not isinstance(source, TokenStore | Tensor | np.ndarray):
        return TokenStore.build(model, source, context, tokens=tokens, counted=counted, apart=apart)
    store = source if isinstance(source, TokenStore) else TokenStore.of(source)
    store.check(model)
    if apart and not store.packing.apart:
        raise BadInput(
            "these windows may hold two documents each: give documents, or TokenStore.build(..., apart=True)"
        )
    if store.context > model.cfg.n_ctx:
        raise BadInput(f"windows of {store.context} tokens are longer than the model's context {model.cfg.n_ctx}")
    if tokens is None:
        return store
    chunks = (store.windows[start : start + CHUNK] for start in range(0, len(store), CHUNK))
    return TokenStore.of(store[: sum(map(len, limited(chunks, tokens, counted)))])


def corpus(
    model: Any,
    paths: Sequence[str | os.PathLike[str]],
    *,
    seed: int = 0,
    field: str | None = None,
    most_skipped: float = MOST_SKIPPED,
    quiet: bool = False,
) -> Iterable[Document]:
    """Documents of several paths, mixed and shuffled; conversations in the model's chat format where it has one.

    Args:
        field, most_skipped, quiet: as in `texts`.

    Raises:
        BadFile, BadInput: as `texts`.
    """
    chat = model if getattr(model.tokenizer, "chat_template", None) else None
    return interleaved(
        [texts(path, field=field, chat=chat, most_skipped=most_skipped, quiet=quiet) for path in paths], seed=seed
    )
