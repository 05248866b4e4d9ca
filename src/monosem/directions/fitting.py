"""Methods that find a direction from two sets of prompts."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations import Skipper, SkipRule
from ..data import PromptPairs
from ..errors import BadInput, UnknownName
from ..models import Model, Site
from ..models.running.run import refuse_rows
from ..statistics import auroc

Pool = Literal["mean", "last"]
Side = Float[Tensor, "prompts d_model"]


def fitted(
    model: Model,
    positive: Sequence[str],
    negative: Sequence[str],
    site: Site,
    method: str,
    pool: Pool,
    seed: int,
    skip: SkipRule | None,
) -> tuple[Float[Tensor, "d_model"], dict[str, Any]]:
    """The vector and its provenance; see `Direction.fit`."""
    if method not in METHODS or pool not in ("mean", "last"):
        raise UnknownName(
            f"method is {' or '.join(map(repr, METHODS))} and pool 'mean' or 'last'; got {method!r} and {pool!r}"
        )
    pairs = PromptPairs(positive, negative, paired=False)
    if min(len(pairs.positive), len(pairs.negative)) < 2:
        raise BadInput("a direction needs at least two prompts a side, to say how stable it is")
    find, skipper = METHODS[method], Skipper.of(model, [site], skip)
    up, down = (_pooled(model, site, side, pool, skipper) for side in (pairs.positive, pairs.negative))
    generator = torch.Generator().manual_seed(seed)
    halves = [side[torch.randperm(len(side), generator=generator)].chunk(2) for side in (up, down)]
    first, second = (find(*half) for half in zip(*halves))
    return find(up, down), {
        "method": method,
        "pool": pool,
        "prompts": {"positive": len(pairs.positive), "negative": len(pairs.negative)},
        "seed": seed,
        **({"tokens": skipper.summary()} if pool == "mean" else {}),
        "stability": float(torch.nn.functional.cosine_similarity(first, second, dim=0)),
        "held_out_auroc": float(auroc((halves[0][1] @ first)[:, None], (halves[1][1] @ first)[:, None])),
    }


def difference_of_means(positive: Side, negative: Side) -> Float[Tensor, "d_model"]:
    """Marks & Tegmark 2023, arXiv:2310.06824."""
    return positive.mean(0) - negative.mean(0)


METHODS: dict[str, Callable[[Side, Side], Float[Tensor, "d_model"]]] = {"dim": difference_of_means}


def _pooled(
    model: Model, site: Site, prompts: Sequence[str], pool: Pool, skipper: Skipper, batch_size: int = 32
) -> Side:
    """One float64 row a prompt."""
    refuse_rows(model, "a fit")
    parts = []
    for start in range(0, len(prompts), batch_size):
        run = model.run(list(prompts[start : start + batch_size]), capture=[site], logits=False)
        x = run[site]
        if x.ndim != 3 or x.shape[-1] != model.cfg.d_model:
            raise BadInput(f"{site} has shape {list(x.shape)}: a direction is fitted at a site of the stream")
        if pool == "last":
            skipper.check_last(model, run.tokens, {str(site): x}, ("not finite", "outlier"))
            parts.append(run.last(site).double().cpu())
            continue
        counted = skipper.counted(run.tokens, {str(site): x})
        if not bool(counted.any(1).all()):
            raise BadInput("a prompt has no token that counts: all are first, special or outliers in norm")
        parts.append(((x.double() * counted[..., None]).sum(1) / counted.sum(1, keepdim=True)).cpu())
    return torch.cat(parts)
