"""Bart Bussmann's BatchTopK and matryoshka_sae: a folder with `sae.pt` and `config.json`.

    pre = (x - b_dec) W_enc (+ b_enc: vanilla and jumprelu)        y = codes W_dec + b_dec

with `input_unit_norm`, x is layer-normalised as OpenAI's. A jumprelu does not subtract b_dec. BatchTopK of the first
repository stores no threshold and selects over the batch; the second's has one.
"""

from dataclasses import dataclass, replace

import torch

from ...errors import BadFile
from ...reading import read_object, read_torch
from ..folds import fold_decoder_bias
from ..parts import DictionaryParts
from .common import Format, Hints, Place, canonical, check_sizes, choice, flag, number, scalar, site_or_none, take

WEIGHTS, CONFIG = "sae.pt", "config.json"
_NAMES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_FIXED = {"tied_weights": False, "activation": "relu"}  # options of earlier commits


@dataclass(frozen=True)
class SaeType:
    kind: str
    biased: bool = False
    subtracts: bool = True


TYPES = {
    "vanilla": SaeType("relu", biased=True),
    "topk": SaeType("topk"),
    "jumprelu": SaeType("jumprelu", biased=True, subtracts=False),
    **dict.fromkeys(("batchtopk", "batch-topk", "global-matryoshka-topk"), SaeType("batchtopk")),
}


def detect(place: Place) -> bool:
    return place.has(WEIGHTS, CONFIG)


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` for an unknown sae_type, and for a BatchTopK without a threshold."""
    path, file, cfg_file = place.path, place.path / WEIGHTS, place.path / CONFIG
    cfg, held = read_object(cfg_file), read_torch(file)
    name = choice(cfg, "sae_type", TYPES, cfg_file)
    if other := {key: cfg[key] for key, value in _FIXED.items() if cfg.get(key, value) != value}:
        raise BadFile(f"{cfg_file}: {other} is not read; known: {_FIXED}")
    known = TYPES[name]
    weights = canonical(held, _NAMES, file, folds=False, also=("threshold", "jumprelu.log_threshold"))
    check_sizes(cfg, dict(zip(("act_size", "dict_size"), weights.W_enc.shape)), cfg_file)
    if not (known.biased or flag(cfg, "use_encoder_bias", False, cfg_file)):
        weights = replace(weights, b_enc=torch.zeros_like(weights.b_enc))
    kind, threshold = known.kind, None
    if kind == "jumprelu":
        threshold = take(held, ["jumprelu.log_threshold"], file)[0].double().exp()
    elif kind == "batchtopk":
        if "threshold" not in held:
            raise BadFile(f"{path}: this BatchTopK selects over the batch and stores no threshold; not read")
        value = scalar(held, "threshold", file)
        kind, threshold = ("jumprelu", torch.full_like(weights.b_enc, value)) if value >= 0 else ("relu", None)
    weights = replace(weights, threshold=threshold)
    weights.check()
    return DictionaryParts(
        (fold_decoder_bias(weights) if known.subtracts else weights).to(torch.float32),
        kind,
        k=number(cfg, "top_k", cfg_file, int) if kind == "topk" else None,
        token_norm="layer_norm" if flag(cfg, "input_unit_norm", False, cfg_file) else "none",
        site=site_or_none(cfg.get("hook_point")),
        model_name=str(cfg.get("model_name") or ""),
        name=path.name,
        metadata={"original_form": {"format": "bussmann", **cfg}},
    )


FORMAT = Format(detect, read)
