"""B: which latents tell the concept apart, and which of them becomes the target.

The search ranks latents on one half of the pairs. The target is then chosen among the best of them by a causal test on
the same half: of the latents whose amplification makes the positive prompts likelier *relative to* the negative ones,
the one that does so most ("preference"). That detecting and steering are different abilities of a latent, and that
choosing by the second pays, is the lesson of Arad et al. 2025 (arXiv:2505.20063); the preference is this project's own
measure. The held-out half is only looked at afterwards.
"""

from typing import Any

import numpy as np
import torch

from ... import edits
from ...latents.contrast import Contrast, contrast
from ...metrics import next_token_loss
from ...models import Run, Site
from ...statistics import auroc_interval, bootstrap_mean, permutation_p
from ..context import Context

MINIMUM_AUROC = 0.7  # on the search half; a candidate below it is not considered while another reaches it
SHUFFLES = 2000
SCORE_MEANING = "difference times the share of pairs in which the positive prompt is above its partner."
EXAMPLES = 6  # of each candidate's, in the report


def make(context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config = context.config
    pairs, held_out = context.pairs
    search = contrast(
        context.model, context.dictionary, pairs.positive, pairs.negative, held_out=held_out, seed=config.seed
    )
    rows = _rows(context, search)
    target, reason = choose(rows, config.latent, config.primary_dose)
    chosen = next((row for row in rows if row["latent"] == target), None)
    return {
        "candidates": rows,
        "target": target,
        "reason": reason,
        "score_meaning": SCORE_MEANING,
        "preference": chosen["preference"] if chosen else None,
        "held_out": held_out_check(context, target),
        "all": _all_latents(search),
        "pairs": {"search": len(context.pairs[0].positive), "held_out": len(context.pairs[1].positive)},
    }


def choose(rows: list[dict[str, Any]], wanted: int | None, dose: float) -> tuple[int, str]:
    """The target latent and why, from what the search half says alone.

    Rule: among candidates with search AUROC of at least `MINIMUM_AUROC` (all, if none has), the highest preference.
    """
    if wanted is not None:
        return wanted, "The latent was given in the study's config; no choice was made."
    able = [row for row in rows if row["auroc"] >= MINIMUM_AUROC]
    best = max(able or rows, key=lambda row: row["preference"])
    rank = rows.index(best) + 1
    pool = (
        f"Of the {len(rows)} best candidates by score, {len(able)} tell the search half apart with AUROC of at least "
        f"{MINIMUM_AUROC:g}."
        if able
        else f"None of the {len(rows)} best candidates reaches a search AUROC of {MINIMUM_AUROC:g}; all stayed in."
    )
    sign = (
        "makes the positive prompts likelier, relative to the negative ones, most"
        if best["preference"] > 0
        else "disfavours the positive prompts least (none of them favours them)"
    )
    return best["latent"], (
        f"{pool} Amplifying latent {best['latent']} (rank {rank} by score) to {dose:g} x its maximum {sign}: "
        f"{best['preference']:+.3f} nats a token, on the search half. The held-out half had no part in the choice."
    )


def held_out_check(context: Context, target: int) -> dict[str, Any]:
    """The target on the half that nothing was chosen on: AUROC with its interval, permutation p."""
    _, held_out = context.pairs
    seed = context.config.seed
    positive, negative = (context.strongest(side)[:, [target]] for side in (held_out.positive, held_out.negative))
    area, low, high = auroc_interval(positive[:, 0], negative[:, 0])
    p, _ = permutation_p(positive, negative, paired=True, permutations=SHUFFLES, seed=seed)
    gain, gain_low, gain_high = bootstrap_mean(preferences(context, target, held_out.positive, held_out.negative))
    return {
        "positive": positive[:, 0].tolist(),
        "negative": negative[:, 0].tolist(),
        "prompts": {"positive": list(held_out.positive), "negative": list(held_out.negative)},
        "auroc": area,
        "auroc_low": low,
        "auroc_high": high,
        "p": float(p),
        "preference": gain,
        "preference_low": gain_low,
        "preference_high": gain_high,
    }


def preferences(context: Context, latent: int, positive: Any, negative: Any) -> list[float]:
    """By pair: how much likelier amplifying makes the positive prompt than the negative one, nats a token."""
    value = context.config.primary_dose * float(context.statistics.maxima[latent])
    edit = edits.clamp(context.dictionary, latent, value)
    gains = [
        (_losses(context, side) - _losses(context, side, edit)).tolist() for side in (list(positive), list(negative))
    ]
    return [up - down for up, down in zip(*gains)]


def findings(result: dict[str, Any]) -> list[str]:
    lines = [
        f"latent {row['latent']:>5}: score {row['score']:.2f}, AUROC {row['auroc']:.2f}, held out "
        f"{row['held_out_auroc']:.2f}, preference {row['preference']:+.3f}, "
        f"promotes {', '.join(map(repr, row['promoted'][:4]))}"
        for row in result["candidates"][:5]
    ]
    held = result["held_out"]
    return [
        *lines,
        f"target: latent {result['target']}. {result['reason']}",
        f"on {len(held['positive'])} held-out pairs: AUROC {held['auroc']:.2f} "
        f"[{held['auroc_low']:.2f}, {held['auroc_high']:.2f}], p = {held['p']:.4f}",
    ]


def _rows(context: Context, found: Contrast) -> list[dict[str, Any]]:
    """The best of the search with their preference and evidence, best score first."""
    search, _ = context.pairs
    rows = []
    for entry in found.table.head(context.config.candidates).to_dict("records"):
        latent = int(entry["latent"])
        known = {
            name: float(entry[name]) for name in ("difference", "score", "auroc", "p", "p_family", "held_out_auroc")
        }
        preference = float(np.mean(preferences(context, latent, search.positive, search.negative)))
        rows.append({"latent": latent, **known, "preference": preference, **described(context, latent)})
    return rows


def described(context: Context, latent: int) -> dict[str, Any]:
    """What is known about a latent: how often and how high it fires, the tokens it writes, examples from the index."""
    evidence = context.evidence(latent)
    promoted, suppressed = context.written_tokens(latent)
    examples = [] if evidence is None else [list(zip(e.tokens, e.activations)) for e in evidence.examples[:EXAMPLES]]
    return {
        "density": float(context.statistics.densities[latent]),
        "maximum": float(context.statistics.maxima[latent]),
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
