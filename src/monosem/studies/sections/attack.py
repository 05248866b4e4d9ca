"""D: the target latent amplified, in units of its own maximum and to plain values, beside random latents."""

import math
from dataclasses import replace
from typing import Any

from ..arms import Arm, measure
from ..context import Context
from .defence import against_randoms


def make(context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config = context.config
    target, randoms = earlier["defence"]["target"], earlier["defence"]["randoms"]
    maxima = context.statistics.maxima
    arms = _arms_of(context, target, "target")
    for number, latent in enumerate(randoms):
        arms += _random_arms(context, latent, continued=number < config.random_continuations)
    measured = measure(context, arms, "D attack")
    baseline = context.memory["baseline"]
    primary = [arm for arm in measured if arm["dose"] == config.primary_dose]
    return {
        "target": target,
        "randoms": randoms,
        "maximum": float(maxima[target]),
        "maximum_source": context.statistics.source,
        "primary_dose": config.primary_dose,
        "reader_auroc": context.memory["reader"].held_out_auroc,
        "baseline": [{"prompt": p, "text": t} for p, t in zip(baseline.prompts, baseline.texts)],
        "arms": measured,
        "p": {part: against_randoms(primary, part) for part in ("test", "control")},
    }


def findings(result: dict[str, Any]) -> list[str]:
    primary = next(arm for arm in result["arms"] if arm["kind"] == "target" and arm["dose"] == result["primary_dose"])
    test, control = primary["test"], primary["control"]
    lines = [
        f"{primary['label']}: the next token changes on {test['changed']}/{test['n']} test and "
        f"{control['changed']}/{control['n']} control prompts, {test['texts_changed']}/{test['n']} continuations change"
    ]
    if test["concept_shift"] is None or test["edited_perplexity"] is None:
        return [*lines, "the amplified model wrote nothing that could be read"]
    example = max(primary["rows"]["test"], key=_shift)
    return [
        *lines,
        f"concept score of the continuations {test['concept_shift']:+.2f} "
        f"[{test['concept_low']:+.2f}, {test['concept_high']:+.2f}] "
        "(0: like the negative prompts, 1: like the positive)",
        f"perplexity {test['baseline_perplexity'] or 0:.1f} -> {test['edited_perplexity']:.1f}",
        f"e.g. {example['prompt']!r}",
        f"  before: {example['baseline_text']!r}",
        f"  after:  {example['edited_text']!r}",
    ]


def _shift(row: dict[str, Any]) -> float:
    if row["edited_concept"] is None or row["baseline_concept"] is None:
        return -math.inf
    return float(row["edited_concept"] - row["baseline_concept"])


def _random_arms(context: Context, latent: int, continued: bool) -> list[Arm]:
    """All doses for the random latents that are continued (in full at the primary and at the highest dose, to save
    time); the primary dose and the next token for the others."""
    config = context.config
    arms = _arms_of(context, latent, "random")
    if not continued:
        return [replace(arm, continued=False) for arm in arms if arm.dose == config.primary_dose]
    return [replace(arm, continued=arm.dose in (config.primary_dose, max(config.doses))) for arm in arms]


def _arms_of(context: Context, latent: int, kind: str) -> list[Arm]:
    top, config = float(context.statistics.maxima[latent]), context.config
    doses = [Arm(kind, f"latent {latent} to {dose:g} x max", latent, dose * top, dose) for dose in config.doses]
    times = [f" ({value / top:.2f} x max)" if top else "" for value in config.values]
    plain = [Arm(kind, f"latent {latent} to {v:g}{share}", latent, v) for v, share in zip(config.values, times)]
    return doses + plain
