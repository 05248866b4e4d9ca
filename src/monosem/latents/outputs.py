"""Whether a latent that is turned up makes the model say the tokens that its decoder row writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from ..dictionaries import Dictionary
from ..edits import add_latent
from ..errors import BadInput
from ..models import Model
from ..models.numbers import count
from ..results import Tabled, analysis
from .effects import extreme_tokens

PROMPT = "From my experience,"


@dataclass(frozen=True)
class OutputScores(Tabled):
    """`table`: latent; `score`; `before`, the same number of the unedited model; `token`, the likeliest of the latent's
    own tokens when it is turned up, its `probability` and (from 0) its `place` among all tokens."""

    ranked_by: ClassVar[str | None] = "score"


@analysis
@torch.no_grad()
def output_scores(
    model: Model,
    dictionary: Dictionary,
    latents: Sequence[int],
    *,
    prompt: str = PROMPT,
    times: float = 10.0,
    tokens: int = 20,
    batch_size: int = 64,
) -> OutputScores:
    """Output scores of Arad, Mueller & Belinkov (2025, arXiv:2505.20063): latents with low ones do not steer.

    At the last token of a neutral prompt, `times` the largest activation of any latent there is added to the latent.
    score = p · (1 - place / vocabulary) of the likeliest among the `tokens` that its row writes most (logit lens).

    Raises:
        BadInput: latents without a direct effect on the logits, or a prompt at whose end no latent fires. Mismatch: a
            dictionary of another model. UnknownName: no such latent.
    """
    dictionary.check(model)
    ids = torch.as_tensor(list(latents), dtype=torch.long)
    own = extreme_tokens(model, dictionary, ids, n=count(tokens, "tokens"))[0]
    clean = model.run(prompt, capture=dictionary.site, logits="last")
    most = float(dictionary.encode(clean.last(dictionary.site)).values.max())
    if most <= 0:
        raise BadInput(f"no latent of {dictionary.name} fires at the end of {prompt!r}: give another prompt=")
    assert clean.logits is not None
    rows = []
    for some, theirs in zip(ids.split(batch_size), own.split(batch_size)):
        edit = add_latent(dictionary, some, times * most, everywhere=True).at(positions=-1)
        edited = model.run([prompt] * len(some), edits=edit, logits="last").logits
        assert edited is not None
        after, before = (_said(logits, theirs) for logits in (edited, clean.logits.expand(len(some), -1)))
        for latent, token, p, place, score, plain in zip(some.tolist(), *after, before[-1]):
            rows.append((latent, score, plain, model.str_token(int(token)), p, int(place)))
    columns = ["latent", "score", "before", "token", "probability", "place"]
    return OutputScores(pd.DataFrame(rows, columns=columns), {"added": times * most})


def _said(logits: Tensor, tokens: Tensor) -> tuple[list[float], ...]:
    """Of each row: the likeliest of its tokens, its probability, how many tokens are likelier, and the score."""
    p = logits.double().softmax(-1).cpu()
    best, which = p.gather(1, tokens).max(1)
    places = (p > best[:, None]).sum(1)
    score = best * (1 - places / p.shape[1])
    return tuple(one.tolist() for one in (tokens.gather(1, which[:, None])[:, 0], best, places, score))
