"""The arms of an intervention: the target latent beside its controls, on test and on control prompts."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import edits
from ..judges import Judge, judge
from ..metrics import kl
from ..models import Moment
from ..statistics import bootstrap_mean, finite
from ..steering import Comparison, EditSource, outcomes, random_latents, summarise
from . import reader as reading
from .context import Context
from .directions import named

PARTS = ("test", "control")
BASELINES = ("candidate", "several", "direction", "any direction")  # kinds of arms beside the target in steering
DIRECTIONS = 99  # random ones beside the target's in the ablation: p = 0.01 is the least that they can show
MOST_ROWS, FEWEST_DIRECTIONS = 1200, 19  # directions × prompts that are run for it; 19 make p = 0.05 possible
TEXT_SUMMARY = ("texts_changed", "baseline_perplexity", "edited_perplexity", "distinct_2")


@dataclass(frozen=True)
class Arm:
    """One intervention on all openings of the study."""

    kind: str  # "target", "random", "candidate", "several", "direction", "any direction", "reconstruction" or "nothing"
    label: str
    latent: int | None = None
    value: float | None = None  # what the latent is clamped to, in its own units; of a direction: its length
    dose: float | None = None  # the same in units of the latent's maximum; None for a plain value
    latents: tuple[tuple[int, float], ...] = ()  # of several: each with its value
    named: str = ""  # of a direction: which (`directions.named`); "": the reader's
    continued: tuple[str, ...] = PARTS  # the prompts that are continued; of others only the next token is looked at

    def edits(self, context: Context) -> list[edits.Edit]:
        """What is done, at the tokens that the dictionary was trained on."""
        dictionary = context.dictionary
        if self.kind == "nothing":
            return []
        if self.kind == "reconstruction":
            return [edits.splice(dictionary)]
        if self.kind in ("direction", "any direction"):
            assert self.value is not None
            direction = reader_of(context).direction if not self.named else named(context, self.named)
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


def along_others(
    context: Context, target: int, prompts: Sequence[int], candidates: Sequence[int]
) -> tuple[list[int], list[float]]:
    """What a change as large as the target's ablation does along other directions: decoder rows of random latents.

    At each token the ablation changes the activation by a vector; here one of the same length along the decoder row of
    another latent, whether or not that one is active there, is taken away instead. It tells whether the target's
    direction matters, or only how much is taken away.

    Args:
        prompts: numbers of the test prompts that are looked at. candidates: latents that are not drawn.

    Returns:
        The latents whose rows were drawn, and for each the mean KL of the next token over the prompts, in nats.
    """
    dictionary, config = context.dictionary, context.config
    others = [i for i in range(dictionary.width) if i not in {target, *candidates}]
    n = min(DIRECTIONS, max(MOST_ROWS // max(len(prompts), 1), FEWEST_DIRECTIONS), len(others)) if prompts else 0
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(config.seed))
    drawn = [others[i] for i in order[:n].tolist()]
    ablation = edits.ablate_latent(dictionary, target)
    rows = dictionary.decoder_rows(torch.tensor(drawn, dtype=torch.long)).float() if drawn else ()
    made = outcomes(
        context.model,
        [config.test[number] for number in prompts],
        [_along(ablation, row / row.norm().clamp_min(1e-12)) for row in rows],
        max_new_tokens=0,
        batch_size=config.batch_size,
        title="C ablation, as much along random directions",
        quiet=context.quiet,
    ) if drawn else []  # fmt: skip
    before = context.memory["baseline", "test"].logits[list(prompts)]
    means = [float(kl(before, after.logits).mean()) for after in made]
    return drawn, [finite(mean, f"the KL along latent {latent}") for latent, mean in zip(drawn, means)]


def _along(ablation: edits.Edit, direction: Tensor) -> edits.Edit:
    """The ablation with its change of each token turned into another direction (a unit vector), as long as it was."""

    def fn(x: Tensor, moment: Moment) -> Tensor:
        change = (ablation.fn(x, moment) - x.float()).flatten(2)
        return x.float() - (change.norm(dim=-1, keepdim=True) * direction).reshape(x.shape)

    label = f"{ablation.label}, along another direction"
    return edits.Edit(ablation.site, fn, label, by_row=True, dictionary=ablation.dictionary)


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
                if config.judge is not None:
                    row |= _labels(judge(config.judge), row)
        found.append(rows)
    return found


def _labels(by: Judge, row: dict[str, Any]) -> dict[str, str]:
    """What a judge that knows nothing of the model says of both continuations."""
    return {f"{when}_label": by(row["prompt"], row[f"{when}_text"]).label for when in ("baseline", "edited")}


def _judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """label -> continuations, before and after; the most frequent first."""
    counts = {when: Counter(row[f"{when}_label"] for row in rows).most_common() for when in ("baseline", "edited")}
    return {f"{when}_labels": dict(found) for when, found in counts.items()}


def _summary(rows: list[dict[str, Any]], continued: bool) -> dict[str, Any]:
    numbers = summarise(rows)
    if not continued:
        return {name: value for name, value in numbers.items() if name not in TEXT_SUMMARY}
    if rows and "edited_label" in rows[0]:
        numbers |= _judged(rows)
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
