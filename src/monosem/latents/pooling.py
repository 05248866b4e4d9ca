"""Latents of prompts: which tokens count, and one number a latent for each prompt."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..activations import Skipper
from ..dictionaries import Dictionary
from ..errors import BadInput, UnknownName
from ..models import Model, Run
from ..models.running.run import refuse_rows

Pool = Literal["max", "mean", "last"]
UNCOUNTED = "the first of their prompt, special, or outliers in norm"


def prompt_runs(
    model: Model, dictionary: Dictionary, prompts: Any, *, batch_size: int = 32, skipper: Skipper | None = None
) -> Iterator[tuple[Run, Bool[Tensor, "batch pos"]]]:
    """Runs of the prompts up to the dictionary's site, and which tokens count: those that it was trained on.

    Args:
        skipper: `dictionary.skipper(model)`, to have its counts as well.

    Raises:
        BadInput: no prompts, an empty one, or one without a token that counts; edits of `model.editing(...)` that name
            rows.
        Mismatch: a dictionary of another model.
    """
    dictionary.check(model)
    refuse_rows(model, "pooling")
    tokens, skipper = model.tokens(prompts), skipper or dictionary.skipper(model)
    for start in range(0, len(tokens), batch_size):
        run = model.run(tokens[start : start + batch_size], capture=[dictionary.site], logits=False)
        counted = skipper.counted(run.tokens, {str(dictionary.site): run[dictionary.site]})
        empty = (~counted.any(1)).nonzero()
        if len(empty):
            prompt = model.text(run.tokens.rows()[int(empty[0])], special=True)
            raise BadInput(f"prompt {prompt!r} has no token that counts: all are {UNCOUNTED}")
        yield run, counted


def pooled(
    model: Model,
    dictionary: Dictionary,
    prompts: Any,
    pool: Pool = "max",
    *,
    batch_size: int = 32,
    skipper: Skipper | None = None,
) -> Float[Tensor, "prompts width"]:
    """One value a latent for each prompt, from its sparse codes, with its sign: the largest in magnitude, the mean, or
    the last token's. Errors as `prompt_runs`, and for a last token that does not count."""
    if pool not in ("max", "mean", "last"):
        raise UnknownName(f"pool is 'max', 'mean' or 'last', not {pool!r}")
    parts, site, skipper = [], dictionary.site, skipper or dictionary.skipper(model)
    for run, counted in prompt_runs(model, dictionary, prompts, batch_size=batch_size, skipper=skipper):
        if pool == "last":
            skipper.check_last(model, run.tokens, {str(site): run[site]})
            parts.append(dictionary.encode(run.last(site)).dense().float().cpu())
            continue
        parts.append(pooled_run(dictionary, run, counted, pool))
    return torch.cat(parts)


def pooled_run(
    dictionary: Dictionary, run: Run, counted: Bool[Tensor, "batch pos"], pool: Literal["max", "mean"]
) -> Float[Tensor, "batch width"]:
    """One value a latent for each prompt of a run that captured the dictionary's site, over the tokens that count."""
    rows = counted.nonzero()[:, 0]
    codes = dictionary.encode(run[dictionary.site][counted])
    out = torch.zeros(len(run.tokens), dictionary.width, device=codes.values.device)
    place = (rows[:, None] * dictionary.width + codes.indices).flatten()
    values = codes.values.float().flatten()
    if pool == "mean":
        out.view(-1).scatter_reduce_(0, place, values, "sum")
        return (out / counted.sum(1, keepdim=True)).cpu()
    highest, lowest = (out.view(-1).scatter_reduce(0, place, values, how) for how in ("amax", "amin"))
    return torch.where(highest >= -lowest, highest, lowest).view_as(out).cpu()
