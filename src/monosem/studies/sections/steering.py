"""D: the target latent amplified, in units of its own maximum and to plain values, beside its controls.

Controls are random latents at the same multiples of their own maxima. Baselines are the runners-up of section B,
several latents at once, and the difference of means added at every token, as long as what the target writes.
"""

import math
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from ...edits import clamp
from ...judges import judge
from ...statistics import wilson
from ...steering import compare
from ..arms import BASELINES, PARTS, Arm, measure
from ..context import Context
from ..directions import ANY
from .ablation import against_randoms, several

TRIES = 4  # test prompts that are run by themselves, to find one whose texts do not depend on the batch
ALL_DOSES = 3  # random latents whose next token is looked at at every dose, and that are continued at the highest


def make(context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config = context.config
    target, randoms = earlier["target"]["latent"], earlier["ablation"]["randoms"]
    arms = _arms_of(context, target, "target")
    for number, latent in enumerate(randoms):
        arms += _random_arms(context, latent, number)
    arms += _baselines(context, target, earlier["candidates"])
    measured = measure(context, arms, "D steering")
    baseline = [context.memory["baseline", part] for part in PARTS]
    primary = [arm for arm in measured if arm["dose"] == config.primary_dose]
    for arm in primary:
        if (odd := arm["test"].get("edited_perplexity")) is not None:
            arm["test"]["ratio"] = odd / arm["test"]["baseline_perplexity"]
    target_arm = next(arm for arm in primary if arm["kind"] == "target")
    return {
        "target": target,
        "randoms": randoms,
        "maximum": float(context.statistics.tops[target]),
        "maximum_source": context.statistics.source,
        "primary_dose": config.primary_dose,
        "reader": context.memory["reader"].facts,
        "baseline": [{"prompt": p, "text": t} for part in baseline for p, t in zip(part.prompts, part.texts)],
        "arms": measured,
        "alone": _alone(context, target_arm),
        "p": {part: against_randoms(primary, part) for part in PARTS},
        "p_concept": _p(primary, "concept_shift"),
        "p_ratio": _p(primary, "ratio"),
        "judged": _judged(context, measured),
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
    example = by_shift(primary)[0]
    return [
        *lines,
        f"concept score of the continuations {test['concept_shift']:+.2f} "
        f"[{test['concept_low']:+.2f}, {test['concept_high']:+.2f}] "
        "(0: like the negative prompts, 1: like the positive)",
        *_compared(result),
        *_said(result),
        f"perplexity {test['baseline_perplexity'] or 0:.1f} -> {test['edited_perplexity']:.1f}",
        f"e.g. {example['prompt']!r}",
        f"  before: {example['baseline_text']!r}",
        f"  after:  {example['edited_text']!r}",
    ]


def _judged(context: Context, arms: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the concept's judge, which does not read the model, says of the continuations of test prompts: a row an arm,
    random latents of a dose together."""
    if context.config.judge is None:
        return None
    by, rows = judge(context.config.judge), dict[str, dict[str, Any]]()
    for arm in arms:
        if "edited_labels" in arm["test"]:
            random = arm["kind"] == "random"
            label = f"random latents to {arm['dose']:g} x their maxima" if random else arm["label"]
            row = rows.setdefault(
                label, {"label": label, "kind": arm["kind"], "dose": arm["dose"], "labels": {}, "before": 0}
            )
            row["before"] += arm["test"]["baseline_labels"].get(by.positive, 0)
            for said, n in arm["test"]["edited_labels"].items():
                row["labels"][said] = row["labels"].get(said, 0) + n
    for row in rows.values():
        row["after"], row["n"] = row["labels"].get(by.positive, 0), sum(row["labels"].values())
        _, row["low"], row["high"] = wilson(row["after"], row["n"])
    return {"name": by.name, "positive": by.positive, "rows": list(rows.values())}


def _said(result: dict[str, Any]) -> list[str]:
    if not (held := result.get("judged")):
        return []
    at = [row for row in held["rows"] if row["dose"] == result["primary_dose"] and row["kind"] in ("target", "random")]
    counts = "; ".join(f"{row['label']}: {row['before']} -> {row['after']} of {row['n']}" for row in at)
    return [f"{held['name']} finds {held['positive']!r} in the continuations of {counts}"]


def by_shift(arm: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the test prompts, first that whose continuation moved furthest towards the concept."""
    return sorted(arm["rows"]["test"], key=_shift, reverse=True)


def _alone(context: Context, arm: dict[str, Any]) -> dict[str, Any]:
    """A test prompt whose texts come out the same when it is run by itself, as a command would; of some tried, the one
    that moved furthest. In 16 bits rounding depends on the batch, and with it which of two likely tokens is written."""
    edit = clamp(context.dictionary, arm["latent"], arm["value"])
    rows = by_shift(arm)
    for row in rows[:TRIES]:
        found = compare(context.model, row["prompt"], edit, max_new_tokens=context.config.max_new_tokens).rows[0]
        if all(found[name] == row[name] for name in ("baseline_text", "edited_text")):
            return {"prompt": row["prompt"], "same": True}
    return {"prompt": rows[0]["prompt"], "same": False}


def _compared(result: dict[str, Any]) -> list[str]:
    arms = [arm for arm in result["arms"] if arm["kind"] in BASELINES]
    known = [(arm["label"], arm["test"]["concept_shift"]) for arm in arms if arm["test"]["concept_shift"] is not None]
    return ["beside it: " + "; ".join(f"{label} {shift:+.2f}" for label, shift in known)] if known else []


def _p(arms: list[dict[str, Any]], key: str) -> float | None:
    target = next(arm for arm in arms if arm["kind"] == "target")
    value = target["test"].get(key)
    return None if value is None or math.isnan(value) else against_randoms(arms, "test", key)


def _shift(row: dict[str, Any]) -> float:
    if row["edited_concept"] is None or row["baseline_concept"] is None:
        return -math.inf
    shift = float(row["edited_concept"] - row["baseline_concept"])
    return -math.inf if math.isnan(shift) else shift


def _random_arms(context: Context, latent: int, number: int) -> list[Arm]:
    """The primary dose for every random latent, the first of them continued; the other doses for a few."""
    config = context.config
    wanted = config.random_continuations or config.random_latents
    written = {max(config.doses): min(ALL_DOSES, wanted), config.primary_dose: wanted}  # dose -> latents continued
    return [
        replace(arm, continued=("test",) if number < written.get(arm.dose or 0.0, 0) else ())
        for arm in _arms_of(context, latent, "random")
        if number < ALL_DOSES or arm.dose == config.primary_dose
    ]


def _arms_of(context: Context, latent: int, kind: str) -> list[Arm]:
    top, config = float(context.statistics.tops[latent]), context.config
    doses = [Arm(kind, f"latent {latent} to {dose:g} x max", latent, dose * top, dose) for dose in config.doses]
    times = [f" ({value / top:.2f} x max)" if top else "" for value in config.values]
    plain = [Arm(kind, f"latent {latent} to {v:g}{share}", latent, v) for v, share in zip(config.values, times)]
    return doses + plain


def _baselines(context: Context, target: int, candidates: dict[str, Any]) -> list[Arm]:
    """At the primary dose: the runners-up (test prompts), several latents that share the dose, the mean difference."""
    config, tops, dose = context.config, context.statistics.tops, context.config.primary_dose
    others = [latent for latent in candidates["order"] if latent != target][: config.runners_up]
    arms = [
        Arm("candidate", f"latent {i} to {dose:g} x max", i, dose * float(tops[i]), dose, continued=("test",))
        for i in others
    ]
    together = several(target, candidates, config.together)
    if len(together) > 1:
        share = dose / math.sqrt(len(together))  # so that all of them together write as much as one of them would
        parts = tuple((latent, share * float(tops[latent])) for latent in together)
        label = f"latents {', '.join(map(str, together))} to {share:.2g} x max each"
        arms.append(Arm("several", label, dose=dose, latents=parts))
    length = dose * float(context.statistics.maxima[target] * context.decoder_lengths[target])
    if context.dictionary.d_in == context.model.cfg.d_model and length:
        arms.append(Arm("direction", f"difference of means, length {length:.1f}", value=length, dose=dose))
        arms += [
            Arm("direction", f"direction {_short(name)}, length {length:.1f}", value=length, dose=dose, named=name)
            for name in config.directions
        ]
        if config.directions:  # what any direction of this length does
            label = f"a random direction, length {length:.1f}"
            arms.append(Arm("any direction", label, value=length, dose=dose, named=ANY))
    return arms


def _short(name: str) -> str:
    """A method, or the name of a file without its folder."""
    return PurePath(name).name
