"""What the unedited model reads in continuations: their perplexity, and the mean of an activation over their tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..metrics import cross_entropy
from ..models import Model, Site
from .rows import chunks

UNEMBEDDED = 512  # tokens whose logits are held at once


@dataclass(frozen=True)
class Reading:
    """Of one text: exp of the mean loss of its continuation; the mean activation over it, where a site was given."""

    perplexity: float
    mean: Float[Tensor, "d"] | None


def readings(
    model: Model, texts: Sequence[tuple[list[int], list[int]]], site: Site | None, batch_size: int
) -> list[Reading]:
    """A reading of each (prompt, continuation), as token ids. Equal texts are read once; none is NaN."""
    distinct = list(dict.fromkeys((tuple(prompt), tuple(new)) for prompt, new in texts if new))
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], Reading] = {}
    for chunk in chunks([len(prompt) + len(new) for prompt, new in distinct], 1, batch_size):
        batch = [distinct[number] for number in chunk.prompts]
        found |= zip(batch, _read(model, batch, site))
    nothing = Reading(math.nan, None)
    return [found.get((tuple(prompt), tuple(new)), nothing) for prompt, new in texts]


def _read(model: Model, batch: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], site: Site | None) -> list[Reading]:
    last = Site("resid_post", model.cfg.n_layers - 1)
    tokens = model.tokens([[*prompt, *new] for prompt, new in batch]).to(model.device)
    run = model.run(tokens, capture={last, site or last}, logits=False)
    begins = torch.tensor([[len(prompt)] for prompt, _ in batch], device=model.device)
    new = tokens.mask & (tokens.positions >= begins)
    states, targets = run[last][:, :-1][new[:, 1:]], tokens.ids[new]
    losses = [
        cross_entropy(model.unembed(part), target)
        for part, target in zip(states.split(UNEMBEDDED), targets.split(UNEMBEDDED))
    ]
    lengths = [len(continuation) for _, continuation in batch]
    perplexities = [float(part.mean().exp()) for part in torch.cat(losses).split(lengths)]
    if site is None:
        return [Reading(perplexity, None) for perplexity in perplexities]
    means = [value[mask].flatten(1).float().mean(0).cpu() for value, mask in zip(run[site], new.to(run[site].device))]
    return [Reading(perplexity, mean) for perplexity, mean in zip(perplexities, means)]
