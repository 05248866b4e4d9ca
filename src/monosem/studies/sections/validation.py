"""E: what else is known about the target latent: from Neuronpedia where possible, else our own page."""

import json
import urllib.error
import urllib.request
from typing import Any

from ...latents import page
from ..context import Context

NEURONPEDIA = "https://www.neuronpedia.org"
TIMEOUT_SECONDS = 5


def make(context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    target = earlier["target"]["latent"]
    public, why_not = neuronpedia(context.dictionary.metadata.get("neuronpedia_id"), target)
    name = None
    if context.index is not None:
        name = f"latent-{target}.html"
        page(context.index, target, dictionary=context.dictionary).save(context.folder / name)
    return {"latent": target, "neuronpedia": public, "why_not": why_not, "page": name}


def neuronpedia(identifier: str | None, latent: int) -> tuple[dict[str, Any] | None, str]:
    """The public entry of a latent, or None and the reason.

    Args:
        identifier: `model/source`, as SAELens stores it in `neuronpedia_id`.
    """
    if not identifier:
        return None, "this dictionary has no entry on Neuronpedia (its metadata name no neuronpedia_id)"
    address = f"{NEURONPEDIA}/api/feature/{identifier}/{latent}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as reply:
            entry = json.load(reply)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return None, f"Neuronpedia could not be reached ({' '.join(str(error).split())})"
    return {
        "page": f"{NEURONPEDIA}/{identifier}/{latent}",
        "explanations": [item.get("description", "") for item in entry.get("explanations") or []],
        "promoted": list(entry.get("pos_str") or [])[:10],
        "density": entry.get("frac_nonzero"),
        "maximum": entry.get("maxActApprox"),
    }, ""


def findings(result: dict[str, Any]) -> list[str]:
    if result["neuronpedia"]:
        described = "; ".join(result["neuronpedia"]["explanations"]) or "no explanation there"
        return [f"Neuronpedia on latent {result['latent']}: {described}"]
    own = f"our own page: {result['page']}" if result["page"] else "and the dictionary has no latent index"
    return [f"{result['why_not']}; {own}"]
