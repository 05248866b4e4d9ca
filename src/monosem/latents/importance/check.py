"""How far scores of latents can be trusted here: methods beside exact ablation of some of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...circuits.comparison import Check
from ...data import TokenPairs
from ...dictionaries import Dictionary
from ...errors import BadInput
from ...models import Model
from ...patching.scoring import MetricLike
from ...results import analysis
from .exact import exact_latents
from .scores import By, LatentScores, latent_scores
from .states import Other


@dataclass(frozen=True, eq=False, repr=False)
class LatentCheck(Check):
    """Some latents: what taking each away does, and what each method says.

    Attributes:
        exact: of these latents. estimates: method -> scores of all.
        index: flat indices of the latents. drawn: which were drawn at random, not for their size.
    """

    exact: LatentScores
    estimates: Mapping[str, LatentScores] = field(repr=False)
    index: Int[Tensor, "nodes"] = field(repr=False)
    drawn: Bool[Tensor, "nodes"] = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    things, label = "nodes", "node"

    @property
    def truth(self) -> Float[Tensor, "nodes"]:
        return self.exact.values.flatten()[self.index]

    @property
    def given(self) -> dict[str, Float[Tensor, "nodes"]]:
        return {name: scores.values.flatten()[self.index] for name, scores in self.estimates.items()}

    @property
    def of(self) -> str:
        return f"{self.exact.metric}, {self.exact.dictionary}"

    def rows(self) -> pd.DataFrame:
        return self.exact.rows_of(self.index).rename(columns={"score": "exact"})


@analysis
def check_latents(
    model: Model,
    pairs: TokenPairs,
    dictionary: Dictionary,
    methods: Sequence[str] = ("attribution", "integrated"),
    *,
    n: int = 60,
    metric: MetricLike | None = None,
    other: Other = "zero",
    by: By = "latent",
    steps: int = 10,
    seed: int = 0,
    quiet: bool = False,
) -> LatentCheck:
    """Score latents by several methods, take n of them away one by one, and set both side by side: half are the ones
    that the methods rank highest, the others are drawn from the rest.

        check = ms.latents.check_latents(model, pairs, sae)
        check.summary      # correlations, slope, share of equal signs
        check.plot()       # scatter with the diagonal; check.save("check.html")

    Args:
        methods: rows of `LATENT_METHODS`. Others as `latent_scores`.

    Raises:
        BadInput: no method, n below 2. Others as `latent_scores`.
    """
    listed = [methods] if isinstance(methods, str) else list(methods)
    if not listed or isinstance(n, bool) or n < 2:
        raise BadInput("check_latents needs one method at least, and n of 2 latents or more")
    about: dict[str, Any] = {"metric": metric, "other": other, "by": by, "quiet": quiet}
    given = {name: latent_scores(model, pairs, dictionary, name, steps=steps, **about) for name in listed}
    index, drawn = _sampled([*given.values()], n, seed)
    return LatentCheck(exact_latents(model, pairs, dictionary, index, **about), given, index, drawn)


def _sampled(given: Sequence[LatentScores], n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents taken in turn from the top of each method's ranking, then others at random."""
    present = given[0].index
    if len(present) < 2:
        raise BadInput("fewer than two latents are active at tokens that the dictionary was trained on")
    rankings = [present[one.values.flatten()[present].abs().argsort(descending=True, stable=True)] for one in given]
    top = list(dict.fromkeys(torch.stack(rankings, 1).flatten().tolist()))[: max(1, min(n, len(present)) // 2)]
    rest = torch.tensor(sorted({*present.tolist()} - {*top}), dtype=torch.long)
    draw = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[: n - len(top)]
    index = torch.cat([torch.tensor(top, dtype=torch.long), rest[draw]])
    return index, torch.arange(len(index)) >= len(top)
