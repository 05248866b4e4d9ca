"""Finding a direction from two sets of prompts."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import PromptPairs
from ..errors import BadInput, UnknownName
from ..latents import counted_tokens
from ..models import Model, Site, SiteLike
from ..statistics import auroc
from .direction import Direction

Pool = Literal["mean", "last"]


def fit(
    model: Model,
    positive: Sequence[str],
    negative: Sequence[str],
    site: SiteLike,
    method: Literal["dim"] = "dim",
    pool: Pool = "last",
    seed: int = 0,
) -> Direction:
    """The direction from the negative to the positive prompts at a site of the stream.

    `dim`: difference of class means (Marks & Tegmark 2023, arXiv:2310.06824), summed in float64. The provenance says
    how far to trust it: `stability` is the cosine of the directions of two random halves; `held_out_auroc` is how well
    the one half's direction tells the other half's prompts apart.

    Args:
        pool: read each prompt at its last token, or as the mean over its counted tokens (no special tokens, not the
            first).

    Raises:
        BadInput: a site that is not of the stream, fewer than two prompts a side. UnknownName: no such method or pool.
    """
    place = model.site(site)
    if method != "dim" or pool not in ("mean", "last"):
        raise UnknownName(f"method is 'dim' and pool 'mean' or 'last'; got {method!r} and {pool!r}")
    pairs = PromptPairs(positive, negative, paired=False)
    if min(len(pairs.positive), len(pairs.negative)) < 2:
        raise BadInput("a direction needs at least two prompts a side, to say how stable it is")
    sides = [_pooled(model, place, side, pool) for side in (pairs.positive, pairs.negative)]
    vector = sides[0].mean(0) - sides[1].mean(0)
    generator = torch.Generator().manual_seed(seed)
    halves = [side[torch.randperm(len(side), generator=generator)].chunk(2) for side in sides]
    first, second = (up.mean(0) - down.mean(0) for up, down in zip(*halves))
    provenance = {
        "method": method,
        "pool": pool,
        "prompts": {"positive": len(pairs.positive), "negative": len(pairs.negative)},
        "seed": seed,
        "stability": float(torch.nn.functional.cosine_similarity(first, second, dim=0)),
        "held_out_auroc": float(auroc((halves[0][1] @ first)[:, None], (halves[1][1] @ first)[:, None])),
    }
    return Direction(vector, place, model.name, provenance)


def _pooled(
    model: Model, site: Site, prompts: Sequence[str], pool: Pool, batch_size: int = 32
) -> Float[Tensor, "prompts d_model"]:
    parts = []
    for start in range(0, len(prompts), batch_size):
        run = model.run(list(prompts[start : start + batch_size]), capture=[site], logits=False)
        x = run[site]
        if x.ndim != 3 or x.shape[-1] != model.cfg.d_model:
            raise BadInput(f"{site} has shape {list(x.shape)}: a direction is fitted at a site of the stream")
        if pool == "last":
            parts.append(run.last(site).double().cpu())
            continue
        counted = counted_tokens(model, run.tokens)
        if not bool(counted.any(1).all()):
            raise BadInput("a prompt has no token that counts (the first token and special ones do not)")
        parts.append(((x.double() * counted[..., None]).sum(1) / counted.sum(1, keepdim=True)).cpu())
    return torch.cat(parts)
