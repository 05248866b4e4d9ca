"""SAELens folders, version 6: `cfg.json` + `sae_weights.safetensors`."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import writable_folder, write_json
from ...models.places.sites import Site
from ..formats.common import site_or_none
from ..formats.saelens import CARD
from ..formats.saelens_config import ARCHITECTURES, CONFIG, TOKEN_NORMS
from ..formats.saelens_kinds import SPECIAL
from ..formats.saelens_weights import WEIGHTS
from ..parts import DictionaryParts
from .common import held_by, write_tensors

LAYOUT_VERSION = "6.0.0"  # SAELens reads files without a version as the older, flat layout
# (encoder kind, is it a transcoder, has it a skip connection) -> architecture to write
WRITTEN = {
    (kind, out, "skip" in name): name
    for name, (kind, out) in ARCHITECTURES.items()
    if kind != "batchtopk" and name != "gated"
}


def write(parts: DictionaryParts, folder: Path, dtype: torch.dtype) -> None:
    """Write the version 6 layout, readable by SAELens and by `read`.

    The folded weights are written, with `apply_b_dec_to_input: false` and no foldable normalisation: the same function
    as the original file, said more simply. A BatchTopK dictionary is a `jumprelu`, as SAELens itself saves it.

    Raises:
        BadInput: SAELens has no architecture for this dictionary, or the folder cannot be written to.
    """
    target, held = held_as(parts, folder, dtype)
    write_tensors(target / WEIGHTS, held, dtype)


def held_as(parts: DictionaryParts, folder: Path, dtype: torch.dtype) -> tuple[Path, dict[str, Tensor]]:
    """The tensors that the layout holds, after its config and card were written."""
    out, skip = parts.is_transcoder, parts.tensors.W_skip is not None
    kinds = [kind for kind, *rest in WRITTEN if rest == [out, skip]]
    parts = held_by("SAELens", parts, kinds, token_norms=TOKEN_NORMS)
    form = (parts.kind, out, skip)
    target, cfg = writable_folder(folder), _config(parts, WRITTEN[form], dtype)
    held = parts.tensors.present()
    if special := SPECIAL.get(parts.kind):
        held, own = special.write(parts)
        cfg |= own
    write_json(target / CONFIG, cfg)
    if parts.card:
        write_json(target / CARD, dict(parts.card))
    return target, held


def _config(parts: DictionaryParts, architecture: str, dtype: torch.dtype) -> dict[str, Any]:
    metadata = {"sae_lens_version": LAYOUT_VERSION, **json.loads(json.dumps(dict(parts.metadata), default=str))}
    metadata |= {"model_name": parts.model_name, **({"name": parts.name} if parts.name else {})}
    site = None if parts.site is None else Site.parse(parts.site)
    for suffix, place in {"": parts.site, "_out": parts.site_out if parts.is_transcoder else None}.items():
        if place is not None:
            metadata[f"hook_name{suffix}"] = Site.parse(place).hook_name
            if site_or_none(None, metadata.get(f"hf_hook_name{suffix}")) not in (None, Site.parse(place)):
                del metadata[f"hf_hook_name{suffix}"]  # it says another place than the caller
    flattens_z = parts.per_head and (site is None or site.name == "z")
    (d_in, width), d_out = parts.tensors.W_enc.shape, parts.tensors.W_dec.shape[1]
    cfg: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": width,
        "dtype": "float64" if dtype == torch.float64 else "float32",  # SAELens computes in it; weights may be narrower
        "device": "cpu",
        "architecture": architecture,
        "apply_b_dec_to_input": False,
        "normalize_activations": parts.token_norm,
        "reshape_activations": "hook_z" if flattens_z else "none",
        "metadata": metadata,
    }
    if parts.k is not None:
        cfg |= {"k": parts.k, "rescale_acts_by_decoder_norm": False}
    if parts.is_transcoder:
        cfg["d_out"] = d_out
    return cfg
