"""Prompts to fit or score a lens on: any texts, cut to one length, and refused by name when they are too short."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from ..errors import BadInput
from ..models import Model, TokenBatch


def prompts_of(model: Model, texts: Any, n: int | None, length: int, skipped: int) -> list[list[int]]:
    """Token ids of the first `n` texts (None: all), at most `length` of each.

    Args:
        texts: texts or lists of ids (any iterable), a tensor of ids, or a `TokenBatch`.
        skipped: a prompt must have more tokens than this.

    Raises:
        BadInput: fewer texts than asked for, or one that is too short (its number is named).
    """
    taken = texts if isinstance(texts, str | Tensor | TokenBatch) else list(islice(texts, n))
    if isinstance(taken, list) and not taken:
        raise BadInput("no texts were given")
    prompts = [row[:length] for row in _rows(model, taken)][:n]
    if n is not None and len(prompts) < n:
        raise BadInput(f"{n} prompts were asked for, the texts give {len(prompts)}")
    for number, row in enumerate(prompts):
        if len(row) <= skipped:
            raise BadInput(
                f"prompt {number} has {len(row)} tokens and needs more than {skipped}: give longer texts, or skip fewer"
            )
    return prompts


def _rows(model: Model, texts: Any) -> list[list[int]]:
    """Real ids of each text; texts may be longer than the model's context, because they are cut afterwards."""
    if isinstance(texts, Tensor | TokenBatch):
        return model.tokens(texts).rows()
    return model._rows(texts)


def batches(model: Model, prompts: list[list[int]], batch_size: int) -> Iterator[TokenBatch]:
    """The prompts, `batch_size` at a time, on the model's device."""
    for start in range(0, len(prompts), batch_size):
        yield TokenBatch.of(prompts[start : start + batch_size], model.pad).to(model.device)
