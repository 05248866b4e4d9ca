"""The arms of an intervention: the target latent beside random latents and the reconstruct-only arm."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import edits
from ..statistics import bootstrap_mean
from ..steering import Comparison, EditSource, outcomes, random_latents, summarise
from . import reader as reading
from .context import Context

TEXT_FIELDS = ("baseline_text", "edited_text", "baseline_perplexity", "edited_perplexity", "distinct_2")
TEXT_SUMMARY = ("texts_changed", "baseline_perplexity", "edited_perplexity", "distinct_2")


@dataclass(frozen=True)
class Arm:
    """One intervention on all openings of the study."""

    kind: str  # "target", "random" or "reconstruction"
    label: str
    latent: int | None = None
    value: float | None = None  # what the latent is clamped to, in its own units
    dose: float | None = None  # the same in units of the latent's maximum; None for a plain value
    continued: bool = True  # whether continuations are generated, or only the next token is looked at

    def edit(self, context: Context) -> edits.Edit:
        if self.latent is None or self.value is None:
            return edits.splice(context.dictionary)
        return edits.clamp(context.dictionary, self.latent, self.value)


def controls(context: Context, target: int, candidates: Sequence[int]) -> list[int]:
    """Random latents of similar density, never a candidate; the same ones in defence and attack."""
    config = context.config
    densities, n = context.statistics.densities, config.random_latents
    return random_latents(densities, target, n, exclude=candidates, seed=config.seed)


def measure(context: Context, arms: Sequence[Arm], title: str) -> list[dict[str, Any]]:
    """Every arm against the unedited model: rows (for arms with continuations) and summaries on test and control."""
    config, memory = context.config, context.memory
    reader = memory.get("reader") or memory.setdefault("reader", reading.fit(context))
    unedited: list[EditSource] = [] if "baseline" in memory else [()]
    lengths = [config.max_new_tokens if arm.continued else 0 for arm in arms]
    made = outcomes(
        context.model,
        context.openings,
        [*unedited, *(arm.edit(context) for arm in arms)],
        max_new_tokens=[config.max_new_tokens for _ in unedited] + lengths,
        read=context.dictionary.site,
        batch_size=config.batch_size,
        title=title,
        quiet=context.quiet,
    )
    if unedited:
        memory["baseline"], *made = made
    baseline = memory["baseline"]
    before = reader.scores(baseline)
    return [
        _measured(context, arm, Comparison.between(context.model, baseline, after), before, reader.scores(after))
        for arm, after in zip(arms, made)
    ]


def _measured(context: Context, arm: Arm, found: Comparison, old: list[float], new: list[float]) -> dict[str, Any]:
    rows = found.rows
    if arm.continued:
        for row, old_score, new_score in zip(rows, old, new):
            row |= {"baseline_concept": old_score, "edited_concept": new_score}
    cut = len(context.config.test)
    parts = {"test": rows[:cut], "control": rows[cut:]}
    shown = parts if arm.continued and arm.kind != "random" else {}
    return asdict(arm) | {name: _summary(part, arm.continued) for name, part in parts.items()} | {"rows": shown}


def _summary(rows: list[dict[str, Any]], continued: bool) -> dict[str, Any]:
    numbers = summarise(rows)
    if not continued:
        return {name: value for name, value in numbers.items() if name not in TEXT_SUMMARY}
    shifts = [row["edited_concept"] - row["baseline_concept"] for row in rows]
    mean, low, high = bootstrap_mean([shift for shift in shifts if not math.isnan(shift)])
    return numbers | {"concept_shift": mean, "concept_low": low, "concept_high": high}
