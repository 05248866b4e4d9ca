"""sparsify (eai-sparsify 1.3.3): `cfg.json` and `sae.safetensors` in a folder.

sparsify tells by the folder's name where a dictionary belongs (`layers.3.mlp`: a path of a module), so name it so. What
the format has no place for (site, model, name) is in the config under "monosem", which sparsify passes over.
"""

from pathlib import Path
from typing import Any

import torch

from ...files import writable_folder, write_json
from ...models.places.sites import Site
from ..formats.sparsify import CONFIG, OWN, WEIGHTS
from ..parts import DictionaryParts
from .common import held_by, write_tensors


def write(parts: DictionaryParts, folder: Path, dtype: torch.dtype) -> None:
    """Write it so that sparsify computes the same. A relu is a topk of all latents.

    Raises:
        BadInput: sparsify has no such dictionary (thresholds, signed codes, normalised tokens, another output width).
    """
    parts = held_by("sparsify", parts, ["topk", "groupmax", "relu"], square=True)
    weights, out = parts.tensors, parts.is_transcoder
    d_in, width = weights.W_enc.shape
    b_enc = weights.b_enc.double()
    if not out:  # sparsify subtracts b_dec from what it encodes
        b_enc = b_enc + weights.b_dec.double() @ weights.W_enc.double()
    tensors = {"encoder.weight": weights.W_enc.T, "encoder.bias": b_enc, "W_dec": weights.W_dec, "b_dec": weights.b_dec}
    if weights.W_skip is not None:
        tensors["W_skip"] = weights.W_skip
    norms = weights.W_dec.norm(dim=-1)
    cfg: dict[str, Any] = {
        "activation": "groupmax" if parts.kind == "groupmax" else "topk",
        "expansion_factor": max(1, width // d_in),
        "normalize_decoder": bool(((norms - 1).abs() < 1e-3).all()),
        "num_latents": width,
        "k": width if parts.kind == "relu" else parts.k,
        "multi_topk": False,
        "skip_connection": weights.W_skip is not None,
        "transcode": out,
        "d_in": d_in,
        **_trained(parts),
        OWN: {"name": parts.name, "model_name": parts.model_name, **_sites(parts)},
    }
    target = writable_folder(folder)
    write_tensors(target / WEIGHTS, tensors, dtype)
    write_json(target / CONFIG, cfg)


def _trained(parts: DictionaryParts) -> dict[str, Any]:
    """How it was trained, where a file of sparsify said it; it changes no codes."""
    form = parts.metadata.get("original_form")
    said = form if isinstance(form, dict) and form.get("format") == "sparsify" else {}
    return {key: said[key] for key in ("expansion_factor", "normalize_decoder", "multi_topk") if key in said}


def _sites(parts: DictionaryParts) -> dict[str, str]:
    places = {"site": parts.site, "site_out": parts.site_out}
    return {name: str(Site.parse(place)) for name, place in places.items() if place is not None}
