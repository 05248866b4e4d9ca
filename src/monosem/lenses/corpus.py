"""Prompts to fit or score a lens on: any texts, cut to one length, and refused by name when they are too short."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from ..errors import BadInput
from ..models import Model, TokenBatch


def prompts_of(model: Model, texts: Any, count: int | None, length: int, skipped: int) -> list[list[int]]:
    """Token ids of the first `count` texts (None: all), at most `length` of each.

    Args:
        texts: texts or lists of ids (any iterable), a tensor of ids, or a `TokenBatch`.
        skipped: a prompt must have more tokens than this.

    Raises:
        BadInput: fewer texts than asked for, or one that is too short (its number is named).
    """
    given = texts if isinstance(texts, str | Tensor | TokenBatch) else list(islice(texts, count))
    if not isinstance(given, str | Tensor | TokenBatch) and not given:
        raise BadInput("no texts were given")
    found = [row[:length] for row in _rows(model, given)][:count]
    if count is not None and len(found) < count:
        raise BadInput(f"{count} prompts were asked for, the texts give {len(found)}")
    for number, row in enumerate(found):
        if len(row) <= skipped:
            raise BadInput(
                f"prompt {number} has {len(row)} tokens and needs more than {skipped}: give longer texts, or skip fewer"
            )
    return found


def _rows(model: Model, given: Any) -> list[list[int]]:
    """Real ids of each text; texts may be longer than the model's context, because they are cut afterwards."""
    if isinstance(given, Tensor | TokenBatch):
        return model.tokens(given).rows()
    return model._rows(given)


def batches(model: Model, prompts: list[list[int]], rows: int) -> Iterator[TokenBatch]:
    """The prompts some rows at a time, on the model's device."""
    for start in range(0, len(prompts), rows):
        yield TokenBatch.of(prompts[start : start + rows], model.pad).to(model.device)
