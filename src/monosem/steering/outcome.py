"""What a model does with some prompts, edited or not: the next token and the continuation."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import Edit
from ..metrics import continuation_perplexity
from ..models import Model, Run, TokenBatch
from ..models.tokens import texts_of
from ..results import Result, analysis

# Edits for every prompt, or a function that makes them for the prompts of one batch (row numbers into the prompt list)
EditSource = Edit | Sequence[Edit] | Callable[[Sequence[int]], Sequence[Edit]]


@dataclass(frozen=True)
class Outcome(Result):
    """What a model does with some prompts: the next-token logits and the continuations."""

    prompts: list[str]
    logits: Float[Tensor, "prompts vocab"]  # float32, on the CPU
    new: list[list[int]]  # token ids of each continuation; empty lists when none was asked for
    texts: list[str]
    perplexities: list[float]  # of each continuation under the unedited model; NaN when it is empty

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
    batch_size: int = 32,
) -> Outcome:
    """Run the model over prompts in batches, next token and continuation, greedily unless a temperature is given.

    Args:
        x: a prompt or several, as for `Model.run`.
        edits: edits, or a function from the row numbers of a batch to edits, for rows that differ in latent or value.

    Raises:
        BadInput: no prompt, or an empty one.
    """
    tokens = model.tokens(x)
    prompts = prompts_of(model, x, tokens)
    logits, new, texts, perplexities = [], [], [], []
    for start in range(0, len(prompts), batch_size):
        rows = range(start, min(start + batch_size, len(prompts)))
        batch = tokens[rows.start : rows.stop]
        batch_edits = _edits_for(edits, rows)
        logits.append(logits_of(model.run(batch, edits=batch_edits, logits="last")).cpu())
        if max_new_tokens == 0:
            continue
        batch_edits = _edits_for(edits, rows)
        generated = model.generate(
            batch, edits=batch_edits, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed + start
        )
        new += generated.new
        texts += generated.texts
        perplexities += continuation_perplexity(model, generated.ids, generated.prompt.lengths).tolist()
    blank = [] if new else list(prompts)
    new, texts = new or [[] for _ in blank], texts or ["" for _ in blank]
    return Outcome(prompts, torch.cat(logits), new, texts, perplexities or [math.nan for _ in blank])


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


def _edits_for(edits: EditSource, rows: Sequence[int]) -> list[Edit]:
    if isinstance(edits, Edit):
        return [edits]
    return list(edits(rows) if callable(edits) else edits)
