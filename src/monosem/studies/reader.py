"""A concept score for continuations: where a text lies between the negative and the positive prompts.

The score is linear in the unedited model's activations at the dictionary's site, averaged over the tokens of the text,
along the difference of the means of the search half's positive and negative prompts (difference in means: Marks &
Tegmark 2023, arXiv:2310.06824). It is scaled so that the negative prompts have mean 0 and the positive ones mean 1.
How well it tells the held-out pairs apart is reported with it. It knows nothing of the dictionary, but it reads the
same activations: it says what the text is about as the model sees it, and is not a human judgement.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..latents.pooling import prompt_runs
from ..statistics import Interval, auroc_interval
from ..steering import Outcome
from .context import Context


@dataclass(frozen=True)
class Reader:
    direction: Float[Tensor, "d_model"]  # scaled, so that score = activation @ direction - offset
    offset: float
    held_out: Interval  # AUROC on the held-out pairs
    pairs: int  # how many these are

    def score(self, pooled: Float[Tensor, "texts d_model"]) -> Float[Tensor, "texts"]:
        return pooled @ self.direction - self.offset

    @property
    def facts(self) -> dict[str, float]:
        """How well it tells the held-out pairs apart."""
        return {"auroc": self.held_out.value, "low": self.held_out.low, "high": self.held_out.high, "pairs": self.pairs}

    def scores(self, outcome: Outcome) -> list[float]:
        """Score of each continuation, as the unedited model reads it after its prompt; NaN for an empty one."""
        return [math.nan if mean is None else float(self.score(mean)) for mean in outcome.means]


def fit(context: Context) -> Reader:
    """The reader of a study, fitted on the search half and checked on the held-out half."""
    search, held_out = context.pairs
    positive, negative = pooled(context, search.positive), pooled(context, search.negative)
    difference = positive.mean(0) - negative.mean(0)
    direction = difference / difference.square().sum().clamp_min(1e-12)
    offset = float(negative.mean(0) @ direction)
    up, down = (pooled(context, side) @ direction - offset for side in (held_out.positive, held_out.negative))
    return Reader(direction, offset, auroc_interval(up, down), len(up))


def pooled(context: Context, prompts: Sequence[str]) -> Float[Tensor, "prompts d_model"]:
    """Mean activation of each prompt over its counted tokens (see `latents.pooling`)."""
    site, size = context.dictionary.site, context.config.batch_size
    runs = prompt_runs(context.model, context.dictionary, prompts, batch_size=size)
    return torch.cat([_mean(run[site].float(), counted) for run, counted in runs]).cpu()


def _mean(x: Float[Tensor, "batch pos d"], counted: Tensor) -> Float[Tensor, "batch d"]:
    weight = counted.to(x.device).float()
    return torch.einsum("bpd,bp->bd", x, weight) / weight.sum(-1, keepdim=True).clamp_min(1)
