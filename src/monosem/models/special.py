"""Which tokens of a tokenizer are special, as it says now: tokens may be added to it while a model is in use."""

from functools import lru_cache
from typing import Any


def special_ids_of(tokenizer: Any) -> frozenset[int]:
    """Ids of the named special tokens (BOS, EOS, ...) and of all that were added as special ones."""
    if tokenizer is None:
        return frozenset()
    return frozenset(tokenizer.all_special_ids) | _added(tokenizer, len(tokenizer))


@lru_cache(maxsize=64)
def _added(tokenizer: Any, size: int) -> frozenset[int]:
    """Reading them takes milliseconds where there are thousands; `size` tells when there are others."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(i for i, token in added.items() if token.special)
