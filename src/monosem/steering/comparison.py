"""What an edit does to a model: the next token and the continuation of each prompt, with and without it."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..files import write_json
from ..metrics import kl
from ..models import Model
from ..results import Result, analysis
from ..statistics import bootstrap_mean, finite, wilson
from .outcome import Outcome, distinct, outcome, outcomes, prompts_of
from .rows import EditSource


@dataclass(frozen=True)
class Comparison(Result):
    """With and without an edit, prompt by prompt (`table`) and together (`summary`)."""

    ranked_by: ClassVar[str] = "kl"

    rows: list[dict[str, Any]]

    @property
    def table(self) -> pd.DataFrame:
        """A row a prompt: next token, continuation and perplexity, baseline and edited; KL; did the token change."""
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
    def between(cls, model: Model, before: Outcome, after: Outcome, *, top: int = 5) -> "Comparison":
        """The comparison of two outcomes of the same prompts."""
        return cls(_rows(model, before, after, top))

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """As any result; a .json file holds everything: config, summary and rows with the likeliest tokens."""
        if Path(path).suffix.lower() != ".json":
            return super().save(path, **plot)
        write_json(path, {"config": self.config, "summary": self.summary, "rows": self.rows})
        return Path(path)


@analysis
def compare(
    model: Model,
    x: Any,
    edits: EditSource,
    *,
    max_new_tokens: int = 20,
    top: int = 5,
    baseline: Outcome | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 128,
) -> Comparison:
    """Each prompt with and without the edits: next token, KL, continuation, perplexity.

    KL is KL(unedited ‖ edited) of the next-token distribution, in nats. Perplexity of both continuations is taken under
    the *unedited* model, so it says how odd the text would look to the model as it was (its own greedy text is low by
    construction). An edit of latents leaves alone what its dictionary was not trained on: after a prompt of nothing
    else, such as a single token, it begins with the first new token, and the KL is 0. Inside `model.editing(...)`
    "unedited" means with the edits of the block, in all of these.

    Args:
        x: a prompt or several, as for `Model.run`.
        edits: edits, or a function from the row numbers of a batch to edits, for rows that differ in latent or value.
        top: how many of the likeliest next tokens to keep.
        baseline: `outcome(model, x, ...)` of the unedited model, to share it between arms.

    Raises:
        BadInput: no prompt, an empty one, or a baseline of other prompts, another model or other settings.
    """
    x = list(x) if isinstance(x, Iterator) else x  # read twice
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    if baseline is None:
        baseline = outcome(model, x, (), batch_size=batch_size, **options)
    else:
        _check_baseline(baseline, prompts_of(model, x, model.tokens(x)), {"model": model.name, **options})
    edited = outcome(model, x, edits, batch_size=batch_size, **options)
    return Comparison.between(model, baseline, edited, top=top)


def _check_baseline(baseline: Outcome, prompts: list[str], asked: dict[str, Any]) -> None:
    if baseline.prompts != prompts:
        raise BadInput("the baseline was made with other prompts; make it with outcome(model, x)")
    for name, value in asked.items():
        if (held := baseline.config.get(name, value)) != value:
            raise BadInput(f"the baseline was made with {name}={held!r}, not {value!r}; make it with the same settings")


def comparisons(
    model: Model,
    x: Any,
    arms: Mapping[str, EditSource],
    *,
    max_new_tokens: int = 20,
    top: int = 5,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 128,
) -> dict[str, Comparison]:
    """`compare` for several edits at once, by name: {"off": edit, "+20": edit}. They share batches and the baseline.

    Raises:
        BadInput: no prompt, an empty one, or no arms.
    """
    if not arms:
        raise BadInput('comparisons needs edits by name, such as {"off": edit}')
    options: dict[str, Any] = {"temperature": temperature, "seed": seed, "batch_size": batch_size}
    plain, *edited = outcomes(model, x, [(), *arms.values()], max_new_tokens=max_new_tokens, quiet=True, **options)
    return {name: Comparison.between(model, plain, made, top=top) for name, made in zip(arms, edited)}


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
                "kl": finite(divergence[i], f"the KL of prompt {i} ({prompt[:40]!r})"),
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
