"""Temporal SAEs as published (canrager/temporalSAEs): `conf.yaml` + `latest_ckpt.safetensors`, SAELens's `temporal`."""

import re
from typing import Any

import torch

from ...errors import BadFile
from ...models.places.sites import Site
from ...reading import read_safetensors, read_yaml
from ..parts import DictionaryParts
from .common import Format, Hints, Place, number
from .saelens_kinds import SPECIAL

CONFIG, WEIGHTS = "conf.yaml", "latest_ckpt.safetensors"
_RENAMED = {"D": "W_dec", "b": "b_dec", "E": "W_enc"}
_TOLD = ("n_heads", "n_attn_layers", "bottleneck_factor", "sae_diff_type", "kval_topk", "tied_weights")


def detect(place: Place) -> bool:
    return place.has(CONFIG, WEIGHTS)


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` for a config that lacks what is needed, or tensors that do not fit it."""
    path, file = place.path, place.path / CONFIG
    told: Any = read_yaml(file)
    sae = told.get("sae") if isinstance(told, dict) else None
    if not isinstance(sae, dict):
        raise BadFile(f"{file} lacks the table 'sae'")
    held = {_RENAMED.get(name, name): tensor for name, tensor in read_safetensors(path / WEIGHTS).items()}
    if "W_dec" not in held or held["W_dec"].ndim != 2:
        raise BadFile(f"{path / WEIGHTS} lacks the tensor D [width, d_in]")
    width, d_in = held["W_dec"].shape
    cfg = {"d_in": d_in, "d_sae": width, "apply_b_dec_to_input": True} | {key: sae[key] for key in _TOLD if key in sae}
    scale = number({"scaling_factor": 1.0} | sae, "scaling_factor", file)
    weights, k, options = SPECIAL["temporal"].read(held, cfg, path, scale)
    layer = re.search(r"layer_(\d{1,9})", path.as_posix())
    llm = told.get("llm")
    return DictionaryParts(
        weights.to(torch.float32),
        "temporal",
        k=k,
        options=options,
        site=Site("resid_post", int(layer[1])) if layer else None,
        model_name=str(llm.get("name") or "") if isinstance(llm, dict) else "",
        name=path.name,
        metadata={"original_form": {"format": "temporal_saes", **sae}},
    )


FORMAT = Format(detect, read)
