"""A: what the dictionary is worth, and which latents the concept's prompts fire most."""

from typing import Any

from ..context import Context

SHOWN = 10

# metrics of a dictionary's card that the report shows -> what they are
QUALITY = {
    "l0": "latents a token",
    "fve": "variance explained",
    "cosine": "cosine",
    "ce_recovered": "loss recovered",
    "kl": "KL (nats)",
}


def make(context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    dictionary, model, config = context.dictionary, context.model, context.config
    return {
        "name": dictionary.name,
        "kind": dictionary.kind,
        "width": dictionary.width,
        "site": str(dictionary.site),
        "card": facts(dictionary.card),
        "quality": quality(dictionary.card),
        "statistics": context.statistics.source,
        "statistics_tokens": context.statistics.tokens,
        "model": {"name": model.name, "layers": model.cfg.n_layers, "d_model": model.cfg.d_model},
        "tokens": {side: _mean_length(context, prompts) for side, prompts in _sides(context).items()},
        "prompts": {side: len(prompts) for side, prompts in _sides(context).items()}
        | {"test": len(config.test), "control": len(config.control)},
        "top": _top(context),
    }


def findings(result: dict[str, Any]) -> list[str]:
    best = ", ".join(f"{row['latent']} ({row['active']:.0%})" for row in result["top"][:5])
    worth = [
        f"on {row['text']}: {row['l0']:.1f} latents a token, variance explained {row['fve']:.3f}, "
        f"loss recovered {row['ce_recovered']:.3f}"
        for row in result["quality"]
        if None not in (row["l0"], row["fve"], row["ce_recovered"])
    ]
    return [
        f"{result['name']}: {result['width']:,} latents at {result['site']} of {result['model']['name']}",
        *worth,
        f"strongest on the positive prompts: latents {best} (share of the prompts on which each is active)",
    ]


def quality(card: dict[str, Any]) -> list[dict[str, Any]]:
    """The card's held-out evaluations, one row a text; with the tokens that each number is from."""
    texts = {
        name: held for name, held in (card.get("held_out") or {}).items() if isinstance(held, dict) and "l0" in held
    }
    return [
        {"text": name, **{key: held.get(key) for key in QUALITY}, "tokens": held.get("tokens_read"), **silence(held)}
        for name, held in texts.items()
    ]


def silence(held: dict[str, Any]) -> dict[str, Any]:
    """The share of latents that never fired, and over how many tokens, as the card says it: the share over more tokens
    where that was measured by itself."""
    if held.get("silent") is not None:
        return {"silent": held["silent"], "silent_tokens": held.get("silent_tokens")}
    return {"silent": held.get("dead_fraction"), "silent_tokens": held.get("tokens_read")}


def facts(card: dict[str, Any]) -> dict[str, str]:
    """What else the card says, flat: `training: lr` -> `0.001`."""
    flat: dict[str, str] = {}
    for name, value in card.items():
        if isinstance(value, dict) and name != "held_out":
            flat |= {f"{name}: {inner}": text for inner, text in facts(value).items()}
        elif name != "held_out" and value is not None:
            flat[name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


def _sides(context: Context) -> dict[str, list[str]]:
    return {"positive": context.config.positive, "negative": context.config.negative}


def _mean_length(context: Context, prompts: list[str]) -> float:
    return float(context.model.tokens(prompts).lengths.float().mean())


def _top(context: Context) -> list[dict[str, Any]]:
    """Latents by mean over the positive prompts of their strongest activation on each; the negative side beside it."""
    sides = {side: context.strongest(prompts) for side, prompts in _sides(context).items()}
    order = sides["positive"].mean(0).argsort(descending=True)[:SHOWN].tolist()
    rows = []
    for latent in order:
        rows.append(
            {
                "latent": latent,
                "positive": float(sides["positive"][:, latent].mean()),
                "negative": float(sides["negative"][:, latent].mean()),
                "active": float((sides["positive"][:, latent] != 0).float().mean()),
                "density": float(context.statistics.densities[latent]),
                "fires_on": context.fires_on(latent, 6),
                "promoted": context.written_tokens(latent, 5)[0],
            }
        )
    return rows
