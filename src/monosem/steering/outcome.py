"""What a model does with some prompts, edited or not: the next token and the continuation."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..activations import Skipper
from ..dictionaries import Dictionary
from ..models import Model, Run, SiteLike, TokenBatch
from ..models.numbers import count
from ..models.running.generation import written
from ..models.tokens import texts_of
from ..progress import Meter
from ..results import Result, analysis
from .passes import Passes
from .reading import Readings
from .rows import EditSource


@dataclass(frozen=True)
class Outcome(Result):
    """What a model does with some prompts: the next-token logits and the continuations."""

    prompts: list[str]
    logits: Float[Tensor, "prompts vocab"]  # float32, on the CPU
    new: list[list[int]]  # token ids of each continuation; empty lists when none was asked for
    texts: list[str]
    perplexities: list[float]  # of each continuation under the unedited model; NaN when it is empty
    means: list[Float[Tensor, "d"] | None]  # of the site `read` over each continuation; None where no token counts
    left_out: list[int]  # tokens of each continuation that its mean leaves out: special ones and norm outliers

    @property
    def table(self) -> pd.DataFrame:
        """A row a prompt: the continuation, its perplexity and its distinct bigrams."""
        columns = {"prompt": self.prompts, "text": self.texts, "perplexity": self.perplexities}
        return pd.DataFrame(columns | {"distinct_2": [distinct(tokens) for tokens in self.new]})


@analysis
def outcome(
    model: Model,
    x: Any,
    edits: EditSource = (),
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
    read: SiteLike | Dictionary | None = None,
    batch_size: int = 128,
) -> Outcome:
    """Run the model over prompts in batches, next token and continuation, greedily unless a temperature is given.

    Args:
        x: a prompt or several, as for `Model.run`.
        edits: edits, or a function from the row numbers of a batch to edits, for rows that differ in latent or value.
        read: a site whose mean over each continuation's tokens is taken in the unedited model (`Outcome.means`),
            without special tokens and norm outliers; of a dictionary, its site, without what it was not trained on.

    Raises:
        BadInput: no prompt, or an empty one.
    """
    return outcomes(
        model,
        x,
        [edits],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        read=read,
        batch_size=batch_size,
        quiet=True,
    )[0]


def outcomes(
    model: Model,
    x: Any,
    arms: Sequence[EditSource],
    *,
    max_new_tokens: int | Sequence[int] = 20,
    temperature: float = 0.0,
    seed: int = 0,
    read: SiteLike | Dictionary | None = None,
    batch_size: int = 128,
    title: str = "arms",
    quiet: bool = False,
) -> list[Outcome]:
    """An outcome for each arm, as `outcome` gives it, several arms at a time: each is some more rows of one batch.

    Prompts of similar length run together, whatever their order. Layers before the first edit run once for all arms
    that look at the next token alone, and equal continuations are read once. Arms run one after the other, and their
    prompts in the given order, where an edit may need all rows at once (`by_row=False`), where an arm edits latents and
    something else at their place, where tokens are drawn, and inside `model.editing(...)`.

    Args:
        arms: edits of each, as for `outcome`.
        max_new_tokens: for all arms, or for each; 0 looks at the next token alone.
        batch_size: rows, which are arms × prompts, at a time.

    Raises:
        BadInput: no prompt, or an empty one. EditDidNotFire: an edit that reaches no token of any prompt.
    """
    tokens = model.tokens(x)
    prompts, rows = prompts_of(model, x, tokens), tokens.rows()
    readings = _readings(model, read)
    several = isinstance(max_new_tokens, list | tuple)
    lengths = [count(n, "max_new_tokens", 0) for n in (max_new_tokens if several else [max_new_tokens] * len(arms))]  # type: ignore[union-attr]
    with Meter(title, total=len(arms) * len(prompts), unit="row", quiet=quiet) as meter:
        made = Passes(model, rows, readings, temperature, seed, batch_size, meter)(arms, lengths)
    found = []
    for arm in made:
        own = [readings[text] for text in zip(rows, arm.new)]
        perplexities, means = [reading.perplexity for reading in own], [reading.mean for reading in own]
        texts = [written(model, row, new) for row, new in zip(rows, arm.new)]
        left_out = [reading.left_out for reading in own]
        found.append(Outcome(prompts, torch.stack(arm.logits), arm.new, texts, perplexities, means, left_out))
    return found


def _readings(model: Model, read: SiteLike | Dictionary | None) -> Readings:
    if read is None:
        return Readings(model, None)
    if isinstance(read, Dictionary):
        return Readings(model, read.site, read.skipper(model))
    site = model.site(read)
    return Readings(model, site, Skipper.of(model, [site]))


def prompts_of(model: Model, x: Any, tokens: TokenBatch) -> list[str]:
    """Each prompt as text: as given, else as its tokens spell it."""
    return texts_of(x) or [model.text(row, special=True) for row in tokens.rows()]


def distinct(tokens: Sequence[Hashable], n: int = 2) -> float:
    """Distinct n-grams over all n-grams (Li et al. 2016, NAACL, "distinct-n"): 1 is no repetition, near 0 is a loop.

    NaN when there are fewer than `n` tokens.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def logits_of(run: Run) -> Float[Tensor, "batch *pos vocab"]:
    """The logits of a run that was asked for them, in float32."""
    assert run.logits is not None
    return run.logits.float()
