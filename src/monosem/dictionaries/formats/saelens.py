"""SAELens folders: `cfg.json` + `sae_weights.safetensors` (version 6; the flat config of older versions is read too).

What is on disk and what it means was taken from SAELens 6.54.12 (MIT); its training checkpoints are readable as well,
because their normalisation lies beside them in `activation_scaler.json` and `activation_whitening.safetensors`.
"""

from typing import Any

import torch
from torch import Tensor

from ...errors import BadFile, did_you_mean
from ...reading import read_object, read_safetensors
from ..parts import DictionaryParts
from .common import Format, Hints, Place, site_or_none
from .saelens_config import ARCHITECTURES, CONFIG, TOKEN_NORMS, modern
from .saelens_kinds import SPECIAL
from .saelens_weights import WEIGHTS, folded, normalisation, stored, stream_scale

CARD = "card.json"
LAYOUT_VERSION = "6.0.0"  # SAELens reads files without a version as the older, flat layout

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
    return read_held(place, hints, None)


def read_held(place: Place, hints: Hints, held: dict[str, Tensor] | None) -> DictionaryParts:
    """As `read`, of tensors that another file held."""
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
    held = read_safetensors(path / WEIGHTS) if held is None else held
    told = hints.norm_scaling_factor
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


FORMAT = Format(detect, read, hints=("norm_scaling_factor",))
