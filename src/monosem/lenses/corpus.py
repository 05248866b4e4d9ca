"""Prompts to fit or score a lens on: any texts, cut to one length, and refused by name when they are too short."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from ..errors import BadInput
from ..jobs import module_fingerprint
from ..models import Model, TokenBatch
from ..models.tokens import read, texts_of


def prompts_of(model: Model, texts: Any, n: int | None, length: int, skipped: int) -> list[list[int]]:
    """Token ids of the first `n` texts (None: all), at most `length` of each.

    Args:
        texts: prompts as for `Model.run`, also longer than the model's context, or an iterator of them.
        skipped: a prompt must have more tokens than this.

    Raises:
        BadInput: fewer texts than asked for, or one that is too short (its number is named).
    """
    if isinstance(texts, Iterator):
        texts = list(islice(texts, n))
    elif (listed := texts_of(texts)) is not None:
        texts = listed[:n]
    rows = [row[:length] for row in read(model, texts).rows()][:n]
    if n is not None and len(rows) < n:
        raise BadInput(f"{n} prompts were asked for, the texts give {len(rows)}")
    for number, row in enumerate(rows):
        if len(row) <= skipped:
            raise BadInput(
                f"prompt {number} has {len(row)} tokens and needs more than {skipped}: give longer texts, or skip fewer"
            )
    return rows


def traits(model: Model) -> dict[str, str]:
    """What a lens depends on in its model, for the record of the job that fits it."""
    return {"model": model.name, "model_weights": module_fingerprint(model.hf), "dtype": str(model.dtype)}


def batches(model: Model, prompts: list[list[int]], batch_size: int) -> Iterator[TokenBatch]:
    """The prompts, `batch_size` at a time, on the model's device."""
    for start in range(0, len(prompts), batch_size):
        yield TokenBatch.of(prompts[start : start + batch_size], model.pad).to(model.device)
