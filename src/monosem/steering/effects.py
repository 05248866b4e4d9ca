"""What an edit does to a model: the next token and the continuation, with and without it."""

import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import Edit
from ..errors import BadInput
from ..files import write_json
from ..metrics import continuation_perplexity, kl
from ..models import Model, Run
from ..statistics import bootstrap_mean, wilson

# Edits for every prompt, or a function that makes them for the prompts of one batch (row numbers into the prompt list)
EditSource = Edit | Sequence[Edit] | Callable[[Sequence[int]], Sequence[Edit]]


@dataclass(frozen=True)
class Outcome:
    """What a model does with some prompts: the next-token logits and the continuations."""

    prompts: list[str]
    logits: Float[Tensor, "prompts vocab"]  # float32, on the CPU
    new: list[list[int]]  # token ids of each continuation; empty lists when none was asked for
    texts: list[str]
    perplexities: list[float]  # of each continuation under the unedited model; NaN when it is empty


@dataclass(frozen=True)
class Comparison:
    """With and without an edit, prompt by prompt (`table`) and together (`summary`)."""

    rows: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows).drop(columns=["top_before", "top_after"])

    @property
    def summary(self) -> dict[str, Any]:
        """Changed-rate with its Wilson 95 % interval, mean KL with a bootstrap interval, mean perplexities."""
        return summarise(self.rows)

    def top_tokens(self, row: int) -> pd.DataFrame:
        """The most probable next tokens of one prompt, before and after."""
        before, after = self.rows[row]["top_before"], self.rows[row]["top_after"]
        columns = ["token", "probability"]
        joined = [pd.DataFrame(before, columns=columns), pd.DataFrame(after, columns=columns)]
        return pd.concat(joined, axis=1, keys=["before", "after"])

    @classmethod
    def between(
        cls, model: Model, before: Outcome, after: Outcome, top: int = 5, config: dict[str, Any] | None = None
    ) -> "Comparison":
        """The comparison of two outcomes of the same prompts."""
        return cls(_rows(model, before, after, top), config or {})

    def save(self, path: str | os.PathLike[str]) -> None:
        write_json(path, {"config": self.config, "summary": self.summary, "rows": self.rows})


def outcome(
    model: Model,
    prompts: Sequence[str],
    edits: EditSource = (),
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
) -> Outcome:
    """Run the model over prompts in batches, next token and continuation, greedily unless a temperature is given.

    Raises:
        BadInput: no prompt, or an empty one.
    """
    if not prompts:
        raise BadInput("no prompts to compare; give at least one")
    logits, new, texts, perplexities = [], [], [], []
    for start in range(0, len(prompts), batch_size):
        rows = range(start, min(start + batch_size, len(prompts)))
        batch = [prompts[row] for row in rows]
        made = _edits_for(edits, rows)
        logits.append(logits_of(model.run(batch, edits=made, logits="last")).cpu())
        if max_new_tokens == 0:
            continue
        made = _edits_for(edits, rows)
        generated = model.generate(
            batch, edits=made, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed + start
        )
        new += generated.new
        texts += generated.texts
        perplexities += continuation_perplexity(model, generated.ids, generated.prompt.lengths).tolist()
    blank = [] if new else list(prompts)
    new, texts = new or [[] for _ in blank], texts or ["" for _ in blank]
    return Outcome(list(prompts), torch.cat(logits), new, texts, perplexities or [math.nan for _ in blank])


def compare(
    model: Model,
    edits: EditSource,
    prompts: Sequence[str],
    max_new_tokens: int = 20,
    top: int = 5,
    baseline: Outcome | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
) -> Comparison:
    """Each prompt with and without the edits: next token, KL, continuation, perplexity.

    KL is KL(unedited ‖ edited) of the next-token distribution, in nats. Perplexity of both continuations is that under
    the *unedited* model, so it says how odd the text would look to the model as it was (its own greedy text is low by
    construction).

    Args:
        edits: edits, or a function from the row numbers of a batch to edits, for rows that differ in latent or value.
        baseline: `outcome(model, prompts, ...)` of the unedited model, to share it between arms.
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    if baseline is None:
        baseline = outcome(model, prompts, (), batch_size=batch_size, **options)
    elif baseline.prompts != list(prompts):
        raise BadInput("the baseline was made with other prompts; make it with outcome(model, prompts)")
    edited = outcome(model, prompts, edits, batch_size=batch_size, **options)
    return Comparison.between(model, baseline, edited, top, {**options, "top": top, "model": model.name})


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of numbers from the rows of a comparison (any subset of them)."""
    changed = sum(row["changed"] for row in rows)
    _, low, high = wilson(changed, len(rows))
    mean, kl_low, kl_high = bootstrap_mean([row["kl"] for row in rows])
    texts = [row["baseline_text"] != row["edited_text"] for row in rows]
    return {
        "n": len(rows),
        "changed": changed,
        "changed_rate": changed / len(rows) if rows else math.nan,
        "changed_low": low,
        "changed_high": high,
        "kl": mean,
        "kl_low": kl_low,
        "kl_high": kl_high,
        "texts_changed": sum(texts),
        "baseline_perplexity": _geometric([row["baseline_perplexity"] for row in rows]),
        "edited_perplexity": _geometric([row["edited_perplexity"] for row in rows]),
        "distinct_2": _mean([row["distinct_2"] for row in rows]),
    }


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


def _rows(model: Model, before: Outcome, after: Outcome, top: int) -> list[dict[str, Any]]:
    divergence = kl(before.logits, after.logits).tolist()
    p, q = before.logits.softmax(-1), after.logits.softmax(-1)
    rows = []
    for i, prompt in enumerate(before.prompts):
        first, second = _top(model, p[i], top), _top(model, q[i], top)
        rows.append(
            {
                "prompt": prompt,
                "baseline_token": first[0][0],
                "baseline_probability": first[0][1],
                "edited_token": second[0][0],
                "edited_probability": second[0][1],
                "changed": bool(p[i].argmax() != q[i].argmax()),
                "kl": divergence[i],
                "baseline_text": before.texts[i],
                "edited_text": after.texts[i],
                "baseline_perplexity": before.perplexities[i],
                "edited_perplexity": after.perplexities[i],
                "distinct_2": distinct(after.new[i]),
                "top_before": first,
                "top_after": second,
            }
        )
    return rows


def _top(model: Model, probabilities: Float[Tensor, "vocab"], n: int) -> list[tuple[str, float]]:
    values, ids = probabilities.topk(min(n, len(probabilities)))
    return [(model.str_token(int(i)), float(v)) for v, i in zip(values, ids)]


def _geometric(values: Sequence[float]) -> float:
    logs = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan
