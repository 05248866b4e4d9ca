"""B, second part: the target latent on the pairs that nothing was chosen on, and whether it follows the surface.

The latent is the rule's choice, or the one that was asked for: everything from here on is about it alone.
"""

from typing import Any

from torch import Tensor

from ...data import PromptPairs
from ...statistics import auroc_interval, bootstrap_mean, permutation_p
from ..context import Context
from ..surface import surface
from .candidates import described, gains

SHUFFLES = 2000
FEW_PAIRS = 5  # fewer held-out pairs than these say nothing: even an AUROC of 1.00 has 0.58 or less in its interval


def make(context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found, wanted = earlier["candidates"], context.config.latent
    latent = found["target"] if wanted is None else wanted
    row = next((row for row in found["candidates"] if row["latent"] == latent), None)
    return {
        "latent": latent,
        "reason": found["reason"] if latent == found["target"] else _asked_for(found, latent),
        "chosen": latent == found["target"],
        "described": row or described(context, latent),
        "held_out": held_out_check(context, latent),
        "surface": surface(context, latent),
    }


def held_out_check(context: Context, latent: int) -> dict[str, Any]:
    """The latent on the half that nothing was chosen on: AUROC with its interval, permutation p, preference."""
    _, held_out = context.pairs
    seed = context.config.seed
    positive, negative = _activations(context, held_out, latent)
    area, low, high = auroc_interval(positive[:, 0], negative[:, 0])
    known = context.split.known
    other = None if known is None else auroc_interval(*(side[:, 0] for side in _activations(context, known, latent)))
    p, _ = permutation_p(positive, negative, paired=True, permutations=SHUFFLES, seed=seed)
    up, down = (gains(context, latent, side) for side in (held_out.positive, held_out.negative))
    preference = bootstrap_mean([a - b for a, b in zip(up, down)], seed=seed)
    return {
        "pairs": len(up),
        "styles": None if known is None else list(dict.fromkeys(held_out.groups or ())),  # the search saw none of them
        "known": None if known is None or other is None else other._asdict() | {"pairs": len(known.positive)},
        "positive": positive[:, 0].tolist(),
        "negative": negative[:, 0].tolist(),
        "prompts": {"positive": list(held_out.positive), "negative": list(held_out.negative)},
        "auroc": area,
        "auroc_low": low,
        "auroc_high": high,
        "p": float(p),
        "p_floor": max(1 / (1 + SHUFFLES), 2.0 ** -len(up)),  # of so many pairs, and of so many shuffles
        "preference": preference.value,
        "preference_low": preference.low,
        "preference_high": preference.high,
    }


def _activations(context: Context, pairs: PromptPairs, latent: int) -> tuple[Tensor, Tensor]:
    """Of the latent on each prompt, [prompts, 1]: positive and negative."""
    positive, negative = (context.strongest(side)[:, [latent]] for side in (pairs.positive, pairs.negative))
    return positive, negative


def findings(result: dict[str, Any]) -> list[str]:
    held = result["held_out"]
    few = " (too few to say anything)" if held["pairs"] < FEW_PAIRS else ""
    return [
        f"latent {result['latent']}, fires on {', '.join(map(repr, result['described']['fires_on'][:6]))}",
        f"on {held['pairs']} held-out pairs{few}: AUROC {held['auroc']:.2f} "
        f"[{held['auroc_low']:.2f}, {held['auroc_high']:.2f}], p = {held['p']:.4f}",
        result["surface"]["said"],
    ]


def _asked_for(found: dict[str, Any], latent: int) -> str:
    order = found["order"]
    place = f"it comes {order.index(latent) + 1} of {len(order)}" if latent in order else "it is no candidate"
    return f"Latent {latent} was asked for. By the rule it would be latent {found['target']}; {place}."
