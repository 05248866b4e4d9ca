"""Latents of prompts: which tokens count, and one number a latent for each prompt."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..activations import counted_tokens
from ..dictionaries import Dictionary
from ..errors import BadInput, UnknownName
from ..models import Model, Run

Pool = Literal["max", "mean", "last"]


def prompt_runs(
    model: Model, dictionary: Dictionary, prompts: Any, *, batch_size: int = 32
) -> Iterator[tuple[Run, Bool[Tensor, "batch pos"]]]:
    """Runs of the prompts up to the dictionary's site, and which tokens count.

    Raises:
        BadInput: no prompts, an empty one, or one without a token that counts.
        Mismatch: a dictionary of another model.
    """
    dictionary.check(model)
    tokens = model.tokens(prompts)
    for start in range(0, len(tokens), batch_size):
        run = model.run(tokens[start : start + batch_size], capture=[dictionary.site], logits=False)
        counted = counted_tokens(model, run.tokens)
        empty = (~counted.any(1)).nonzero()
        if len(empty):
            prompt = model.text(run.tokens.rows()[int(empty[0])], special=True)
            raise BadInput(f"prompt {prompt!r} has no token that counts (the first token and special ones do not)")
        yield run, counted


def pooled(
    model: Model, dictionary: Dictionary, prompts: Any, pool: Pool = "max", *, batch_size: int = 32
) -> Float[Tensor, "prompts width"]:
    """One value a latent for each prompt, from its sparse codes, with its sign: the largest in magnitude, the mean, or
    the last token's."""
    if pool not in ("max", "mean", "last"):
        raise UnknownName(f"pool is 'max', 'mean' or 'last', not {pool!r}")
    parts = []
    for run, counted in prompt_runs(model, dictionary, prompts, batch_size=batch_size):
        if pool == "last":
            parts.append(dictionary.encode(run.last(dictionary.site)).dense().float().cpu())
            continue
        rows = counted.nonzero()[:, 0]
        codes = dictionary.encode(run[dictionary.site][counted])
        out = torch.zeros(len(run.tokens), dictionary.width, device=codes.values.device)
        place = (rows[:, None] * dictionary.width + codes.indices).flatten()
        values = codes.values.float().flatten()
        if pool == "mean":
            out.view(-1).scatter_reduce_(0, place, values, "sum")
            parts.append((out / counted.sum(1, keepdim=True)).cpu())
            continue
        highest, lowest = (out.view(-1).scatter_reduce(0, place, values, how) for how in ("amax", "amin"))
        parts.append(torch.where(highest >= -lowest, highest, lowest).view_as(out).cpu())
    return torch.cat(parts)
