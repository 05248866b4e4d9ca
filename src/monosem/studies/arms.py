"""The arms of an intervention: the target latent beside its controls, on test and on control prompts."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from .. import edits
from ..statistics import bootstrap_mean
from ..steering import Comparison, EditSource, outcomes, random_latents, summarise
from . import reader as reading
from .context import Context

PARTS = ("test", "control")
TEXT_SUMMARY = ("texts_changed", "baseline_perplexity", "edited_perplexity", "distinct_2")


@dataclass(frozen=True)
class Arm:
    """One intervention on all openings of the study."""

    kind: str  # "target", "random", "candidate", "several", "direction", "reconstruction" or "nothing"
    label: str
    latent: int | None = None
    value: float | None = None  # what the latent is clamped to, in its own units; of a direction: its length
    dose: float | None = None  # the same in units of the latent's maximum; None for a plain value
    latents: tuple[tuple[int, float], ...] = ()  # of several: each with its value
    continued: tuple[str, ...] = PARTS  # the prompts that are continued; of others only the next token is looked at

    def edits(self, context: Context) -> list[edits.Edit]:
        """What is done, at the tokens that the dictionary was trained on."""
        dictionary = context.dictionary
        if self.kind == "nothing":
            return []
        if self.kind == "reconstruction":
            return [edits.splice(dictionary)]
        if self.kind == "direction":
            assert self.value is not None
            direction = reader_of(context).direction
            added = edits.add((dictionary.site, direction / direction.norm()), self.value)
            return [replace(added, dictionary=dictionary)]
        pairs = self.latents or ((self.latent, self.value),)
        return [edits.clamp(dictionary, latent, value) for latent, value in pairs]  # type: ignore[arg-type]


def reader_of(context: Context) -> reading.Reader:
    known: reading.Reader | None = context.memory.get("reader")
    return known or context.memory.setdefault("reader", reading.fit(context))


def controls(context: Context, target: int, candidates: Sequence[int]) -> tuple[list[int], dict[str, Any]]:
    """Random latents that are most like the target in activity where it is active on the test prompts, and in maximum.

    Never a candidate; the same ones in ablation and steering. Activity is the mean over these tokens of what the latent
    writes: its activation times the length of its decoder row. Where the target is silent on all test prompts, the
    tokens are all of theirs. The second result says how alike the latents are.
    """
    config, lengths = context.config, context.decoder_lengths
    codes = context.codes(config.test).abs()
    where = codes[:, target] > 0
    n = int(where.sum())
    activity = (codes[where] if n else codes).mean(0) * lengths
    written = context.statistics.maxima * lengths
    alike = torch.stack([activity, written])
    drawn = random_latents(alike, target, config.random_latents, exclude=candidates, seed=config.seed)
    return drawn, {
        "tokens": n,  # of the test prompts at which the target is active
        "target": float(activity[target]),
        "randoms": activity[drawn].tolist(),
        "active": int((activity[drawn] > 0).sum()),
        "maximum": float(written[target]),
        "maxima": written[drawn].tolist(),
    }


def measure(context: Context, arms: Sequence[Arm], title: str) -> list[dict[str, Any]]:
    """Every arm against the unedited model: rows (for arms with continuations) and summaries on test and control."""
    changes = [arm.edits(context) for arm in arms]
    parts = {part: _part(context, arms, changes, part, title) for part in PARTS}
    return [
        asdict(arm)
        | {part: _summary(rows[number], part in arm.continued) for part, rows in parts.items()}
        | {"kls": {part: [row["kl"] for row in rows[number]] for part, rows in parts.items()}}
        | {"changes": {part: [row["changed"] for row in rows[number]] for part, rows in parts.items()}}
        | {"rows": {part: parts[part][number] for part in arm.continued if arm.kind != "random"}}
        for number, arm in enumerate(arms)
    ]


def _part(
    context: Context, arms: Sequence[Arm], changes: Sequence[EditSource], part: str, title: str
) -> list[list[dict[str, Any]]]:
    """The rows of each arm on the prompts of one part."""
    config, reader = context.config, reader_of(context)
    unedited: list[EditSource] = [] if ("baseline", part) in context.memory else [()]
    lengths = [config.max_new_tokens if part in arm.continued else 0 for arm in arms]
    made = outcomes(
        context.model,
        config.test if part == "test" else config.control,
        [*unedited, *changes],
        max_new_tokens=[config.max_new_tokens for _ in unedited] + lengths,
        read=context.dictionary,
        batch_size=config.batch_size,
        title=f"{title}, {part} prompts",
        quiet=context.quiet,
    )
    if unedited:
        context.memory["baseline", part], *made = made
    baseline = context.memory["baseline", part]
    before = reader.scores(baseline)
    found = []
    for arm, after in zip(arms, made):
        rows = Comparison.between(context.model, baseline, after).rows
        if part in arm.continued:
            for row, old, new in zip(rows, before, reader.scores(after)):
                row |= {"baseline_concept": old, "edited_concept": new}
        found.append(rows)
    return found


def _summary(rows: list[dict[str, Any]], continued: bool) -> dict[str, Any]:
    numbers = summarise(rows)
    if not continued:
        return {name: value for name, value in numbers.items() if name not in TEXT_SUMMARY}
    shifts = [row["edited_concept"] - row["baseline_concept"] for row in rows]
    mean, low, high = bootstrap_mean([shift for shift in shifts if not math.isnan(shift)])
    _, odd_low, odd_high = bootstrap_mean([x for x in (math.log(row["edited_perplexity"]) for row in rows) if x == x])
    return numbers | {
        "concept_shift": mean,
        "concept_low": low,
        "concept_high": high,
        "perplexity_low": math.exp(odd_low),
        "perplexity_high": math.exp(odd_high),
    }
