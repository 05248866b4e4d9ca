"""B: which latents tell the concept apart, and which of them the rule makes the target.

The search ranks latents on one half of the pairs. The target is then chosen among the best of them by a causal test on
the same half, the preference: by how much amplification makes the positive prompts likelier than the negative ones.
That detecting and steering are different abilities of a latent, and that choosing by the second pays, is the lesson of
Arad et al. 2025 (arXiv:2505.20063); preference and merit are this project's own measures. The held-out half is only
looked at afterwards.

The rule (fixed before any study was run). Merit, in nats a token, is

    the lower end of the preference's 95 % interval, over the pairs of the search half
    - coherence cost: by how much amplification makes the positive prompts themselves less likely (0 if it does not)
    - density cost: DENSITY_COST × share of tokens on which the latent is active in text at large

The target is the candidate with the highest merit among those whose AUROC on the search half is at least MINIMUM_AUROC
with its whole 95 % interval; with fewer pairs than that takes, among those that reach the best lower end there is.
"""

from typing import Any

import torch

from ... import edits
from ...activations import left_out_words
from ...latents.contrast import Contrast, contrast
from ...metrics import next_token_loss
from ...models import Run, Site
from ...statistics import bootstrap_mean
from ..context import Context

MINIMUM_AUROC = 0.7
DENSITY_COST = 2.0  # nats a token: 5 % of all tokens cost a tenth of a nat
EXAMPLES = 6  # of each candidate's, in the report
SEARCHED = ("difference", "score", "auroc", "auroc_low", "auroc_high", "p", "p_family")  # columns of the search
HELD_OUT_AREA = ("held_out_auroc", "held_out_low", "held_out_high")


def make(context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config = context.config
    pairs, held_out = context.pairs
    search = contrast(
        context.model, context.dictionary, pairs.positive, pairs.negative, held_out=held_out, seed=config.seed
    )
    rows = _rows(context, search)
    order = ranking(rows)
    return {
        "candidates": rows,
        "order": order,
        "target": order[0],
        "reason": reason(rows, order, config.primary_dose),
        "all": _all_latents(search),
        "tokens": search.config["tokens"],
        "pairs": {"search": len(pairs.positive), "held_out": len(held_out.positive)},
    }


def ranking(rows: list[dict[str, Any]]) -> list[int]:
    """The candidates by the rule, the target first, from what the search half says alone."""
    asked = needed(rows)
    ordered = sorted(rows, key=lambda row: (row["auroc_low"] >= asked, row["merit"]), reverse=True)
    return [row["latent"] for row in ordered]


def needed(rows: list[dict[str, Any]]) -> float:
    """What the lower end of a candidate's AUROC must reach."""
    return min(MINIMUM_AUROC, max(row["auroc_low"] for row in rows))


def reason(rows: list[dict[str, Any]], order: list[int], dose: float) -> str:
    asked, of = needed(rows), {row["latent"]: row for row in rows}
    best, able = of[order[0]], sum(row["auroc_low"] >= asked for row in rows)
    lower = "" if asked == MINIMUM_AUROC else f" (none reaches {MINIMUM_AUROC:g})"
    text = (
        f"Of {len(rows)} candidates, {able} tell the search half apart with an AUROC whose 95 % interval starts at "
        f"{asked:.2f} or higher{lower}. Of these latent {best['latent']} has the highest merit, {best['merit']:+.3f} "
        f"nats a token: amplified to {dose:g} x its maximum, it makes the positive prompts likelier than the negative "
        f"ones by {best['preference']:+.3f} (at least {best['preference_low']:+.3f} with 95 % confidence), less "
        f"{best['coherence_cost']:.3f} for coherence and {best['density_cost']:.3f} for density."
    )
    if best["preference_low"] <= 0:
        text += " That it favours the positive prompts at all is not certain."
    if len(order) > 1:
        text += f" Runner-up: latent {order[1]}, {of[order[1]]['merit']:+.3f}."
    return f"{text} The held-out half had no part in the choice."


def gains(context: Context, latent: int, prompts: Any) -> list[float]:
    """By prompt: how much likelier amplifying the latent makes it, nats a token."""
    value = context.config.primary_dose * float(context.statistics.tops[latent])
    edit = edits.clamp(context.dictionary, latent, value)
    known = list(prompts)
    gained: list[float] = (_losses(context, known) - _losses(context, known, edit)).tolist()
    return gained


def findings(result: dict[str, Any]) -> list[str]:
    rows = {row["latent"]: row for row in result["candidates"]}
    return [
        *(
            f"latent {latent:>5}: merit {rows[latent]['merit']:+.3f}, AUROC {_area(rows[latent], '')}, "
            f"held out {_area(rows[latent], 'held_out_')}, fires on {_shown(rows[latent]['fires_on'][:4])}"
            for latent in result["order"][:5]
        ),
        f"by the rule: latent {result['target']}. {result['reason']}",
        f"in these prompts: {left_out_words(result['tokens'])}",
    ]


def _area(row: dict[str, Any], where: str) -> str:
    low, high = ("held_out_low", "held_out_high") if where else ("auroc_low", "auroc_high")
    return f"{row[f'{where}auroc']:.2f} [{row[low]:.2f}, {row[high]:.2f}]"


def _shown(tokens: list[str]) -> str:
    return ", ".join(map(repr, tokens))


def _rows(context: Context, found: Contrast) -> list[dict[str, Any]]:
    """The best of the search with what the rule weighs and their evidence."""
    rows = []
    for entry in found.candidates(context.config.candidates).to_dict("records"):
        latent = int(entry["latent"])
        known = {name: float(entry[name]) for name in SEARCHED + HELD_OUT_AREA}
        rows.append({"latent": latent, **known, **_merit(context, latent), **described(context, latent)})
    return rows


def _merit(context: Context, latent: int) -> dict[str, float]:
    search, _ = context.pairs
    up, down = (gains(context, latent, side) for side in (search.positive, search.negative))
    preference, low, high = bootstrap_mean([a - b for a, b in zip(up, down)], seed=context.config.seed)
    gain = sum(up) / len(up)
    coherence, density = max(0.0, -gain), DENSITY_COST * float(context.statistics.usual[latent])
    return {
        "preference": preference,
        "preference_low": low,
        "preference_high": high,
        "gain": gain,  # of the positive prompts
        "coherence_cost": coherence,
        "density_cost": density,
        "merit": low - coherence - density,
    }


def described(context: Context, latent: int) -> dict[str, Any]:
    """What is known about a latent: how often and how high it fires, on which tokens, which tokens it writes, examples
    from the index."""
    evidence = context.evidence(latent)
    promoted, suppressed = context.written_tokens(latent)
    examples = [] if evidence is None else [list(zip(e.tokens, e.activations)) for e in evidence.examples[:EXAMPLES]]
    return {
        "density": float(context.statistics.densities[latent]),
        "maximum": float(context.statistics.maxima[latent]),
        "fires_on": context.fires_on(latent),
        "promoted": promoted,
        "suppressed": suppressed,
        "examples": examples,
    }


def _all_latents(search: Contrast) -> dict[str, list[float]]:
    return {name: search.table[name].tolist() for name in ("latent", "difference", "auroc")}


def _losses(context: Context, prompts: list[str], edit: edits.Edit | None = None) -> torch.Tensor:
    """Mean next-token loss of each prompt. The unedited run's is remembered, with the stream that edits start at."""
    model, key, begin = context.model, ("losses", *prompts), Site("resid_pre", context.dictionary.site.layer)
    if key not in context.memory:
        run = model.run(prompts, capture=begin if begin.layer else ())
        start = (begin, run[begin]) if begin.layer else None
        context.memory[key] = _mean_loss(run), start
    known, start = context.memory[key]
    return known if edit is None else _mean_loss(model.run(prompts, edits=[edit], start=start))


def _mean_loss(run: Run) -> torch.Tensor:
    assert run.logits is not None
    return next_token_loss(run.logits, run.tokens).nanmean(-1).cpu()
