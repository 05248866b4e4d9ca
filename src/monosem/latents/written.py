"""The logit lens of all latents in one pass: what each promotes and suppresses, its moments, its strongest set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from ..dictionaries import Dictionary
from ..dictionaries.codes import latent_ids
from ..models import Model
from ..models.numbers import count
from ..results import Tabled, analysis
from .effects import logit_effects, logit_moments
from .token_sets import large_sets


@dataclass(frozen=True)
class Written(Tabled):
    """`table`, one row a latent.

    Columns: latent; promotes, suppresses (tokens, the strongest first); sd, skew, kurtosis of its direct effects
    (`effects.logit_moments`); set, the set of tokens that it moves most beside what the other latents do to it
    (`LargeSets.strongest`), effect (2 AUC - 1) and q over the latent's sets (`set_effects`), and unusual, standard
    deviations from the mean over latents. The last four are None and NaN for a model without a tokenizer.
    """

    ranked_by: ClassVar[str | None] = "unusual"
    either_way: ClassVar[bool] = True


@analysis
@torch.no_grad()
def written(
    model: Model,
    dictionary: Dictionary,
    latents: int | Sequence[int] | Tensor | None = None,
    *,
    tokens: int = 8,
    tell: Callable[[str], None] | None = None,
) -> Written:
    """What decoder rows write into the logits (`logit_effects`), for all latents: the vocabulary is gone through once.

    Args:
        tell: hears how far it is; an exception that it raises ends the work.

    Raises:
        BadInput: the dictionary has no direct path to the logits. Mismatch: it is of another model.
        UnknownName: no such latent.
    """
    dictionary.check(model)
    ids = torch.arange(dictionary.width) if latents is None else latent_ids(latents, dictionary.width)
    n = min(count(tokens, "tokens"), model.cfg.d_vocab)
    sets = large_sets(model)
    rows: list[tuple[Any, ...]] = []
    tested: list[tuple[Tensor, Tensor]] = []
    done = 0
    for effects in logit_effects(model, dictionary, ids):
        effects = effects.cpu()
        up, down = effects.topk(n).indices.tolist(), effects.topk(n, largest=False).indices.tolist()
        moments = logit_moments(effects).T.tolist()
        for latent, most, least, moment in zip(ids[done : done + len(effects)].tolist(), up, down, moments):
            spelled = [[model.str_token(token) for token in some] for some in (most, least)]
            rows.append((latent, *spelled, *moment))
        if sets.names:
            tested.append(sets.effects(effects))
        done += len(effects)
        if tell is not None:
            tell(f"{done:,} of {len(ids):,} latents")
    table = pd.DataFrame(rows, columns=["latent", "promotes", "suppresses", "sd", "skew", "kurtosis"])
    found: list[Any] = [(None, *[float("nan")] * 3)] * len(rows)
    if tested:
        found = sets.strongest(torch.cat([effect for effect, _ in tested]), torch.cat([p for _, p in tested]))
    return Written(table.join(pd.DataFrame(found, columns=["set", "effect", "q", "unusual"])))
