"""SAELens folders: `cfg.json` + `sae_weights.safetensors` (version 6; the flat config of older versions is read too).

What is on disk and what it means was taken from SAELens 6.54.12 (MIT); its training checkpoints are readable as well,
because their normalisation lies beside them in `activation_scaler.json` and `activation_whitening.safetensors`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...errors import BadFile, BadInput, did_you_mean
from ...files import replacing, writable_folder, write_json
from ...models.places.sites import Site
from ...reading import read_object, read_safetensors
from ..parts import DictionaryParts
from ..token_norms import TOKEN_NORMS
from .common import Format, Hints, Place, site_or_none
from .saelens_config import ARCHITECTURES, CONFIG, modern
from .saelens_kinds import SPECIAL
from .saelens_weights import WEIGHTS, folded, normalisation, stored, stream_scale

CARD = "card.json"
LAYOUT_VERSION = "6.0.0"  # SAELens reads files without a version as the older, flat layout

# (encoder kind, is it a transcoder, has it a skip connection) -> architecture to write
_WRITTEN = {
    (kind, out, "skip" in name): name
    for name, (kind, out) in ARCHITECTURES.items()
    if kind != "batchtopk" and name != "gated"
}
_OF_MODEL = ("model_from_pretrained_kwargs",)  # what the registry may know and stands in a config's metadata
# the parts of a config that folding changes; kept in metadata["original_form"]
_FORM = ("architecture", "apply_b_dec_to_input", "normalize_activations", "rescale_acts_by_decoder_norm", "dtype")


def detect(place: Place) -> bool:
    """By its files: sparsify and latentsae have a cfg.json too, beside sae.safetensors."""
    return place.has(CONFIG) and (place.has(WEIGHTS) or not place.has("sae.safetensors"))


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Read a folder and fold it into the canonical form.

    Raises:
        BadFile: missing or broken files, an unknown architecture, tensors of the wrong shape, or a normalisation whose
            scale is not in the folder (the message says how to give it).
    """
    path = place.path
    cfg = modern({**read_object(path / CONFIG), **hints.published}, path)
    cfg["metadata"] = {**cfg["metadata"], **{key: hints.published[key] for key in _OF_MODEL if key in hints.published}}
    if cfg["architecture"] not in ARCHITECTURES:
        near = did_you_mean(cfg["architecture"], ARCHITECTURES)
        raise BadFile(f"{path}: unknown architecture {cfg['architecture']!r}{near}; known: {', '.join(ARCHITECTURES)}")
    kind, transcoder = ARCHITECTURES[cfg["architecture"]]
    if transcoder and cfg["apply_b_dec_to_input"]:
        raise BadFile(
            f"{path}: apply_b_dec_to_input is true, but a transcoder's b_dec belongs to its output; fix {CONFIG}"
        )
    held, told = read_safetensors(path / WEIGHTS), hints.norm_scaling_factor
    k, options = cfg["k"] if kind in ("topk", "abstopk") else None, dict[str, Any]()
    if special := SPECIAL.get(kind):
        weights, k, options = special.read(held, cfg, path, stream_scale(cfg, path, told))
    else:
        weights = folded(stored(held, cfg, kind, transcoder, path), cfg, normalisation(cfg, path, told))
    metadata = dict(cfg["metadata"])
    metadata.setdefault("original_form", {key: cfg[key] for key in _FORM if key in cfg})
    norm = cfg["normalize_activations"]
    card = path / CARD
    return DictionaryParts(
        weights.to(torch.float32),
        kind,
        k=k,
        options=options,
        token_norm=norm if norm in TOKEN_NORMS else "none",
        site=site_or_none(metadata.get("hook_name"), metadata.get("hf_hook_name")),
        site_out=site_or_none(metadata.get("hook_name_out"), metadata.get("hf_hook_name_out")) if transcoder else None,
        transcoder=transcoder,
        per_head=cfg["reshape_activations"] == "hook_z",
        model_name=metadata.get("model_name") or "",
        name=str(metadata.pop("name", None) or path.name),
        metadata=metadata,
        card=read_object(card) if card.is_file() else {},
    )


def write(parts: DictionaryParts, folder: Path, dtype: torch.dtype) -> None:
    """Write the version 6 layout, readable by SAELens and by `read`.

    The folded weights are written, with `apply_b_dec_to_input: false` and no foldable normalisation: the same function
    as the original file, said more simply. A BatchTopK dictionary is a `jumprelu`, as SAELens itself saves it.

    Raises:
        BadInput: SAELens has no architecture for this dictionary, or the folder cannot be written to.
    """
    form = (parts.kind, parts.is_transcoder, parts.tensors.W_skip is not None)
    gated = parts.tensors.W_glu is not None
    if form not in _WRITTEN or gated:
        more = " with a skip connection" * form[2] + " with a gated linear unit" * gated
        raise BadInput(f"SAELens has no architecture for a {form[0]} {'transcoder' if form[1] else 'SAE'}{more}")
    target, cfg = writable_folder(folder), _config(parts, _WRITTEN[form], dtype)
    held = parts.tensors.present()
    if special := SPECIAL.get(parts.kind):
        held, own = special.write(parts)
        cfg |= own
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in held.items()}
    with replacing(target / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(target / CONFIG, cfg)
    if parts.card:
        write_json(target / CARD, dict(parts.card))


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


FORMAT = Format("a folder with cfg.json and sae_weights.safetensors", detect, read, write, ("norm_scaling_factor",))
