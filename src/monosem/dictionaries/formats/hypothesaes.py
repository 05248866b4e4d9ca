"""hypothesaes 2.0.1 and prefscope 0.1.0: a `.pt` file with `config` and `state_dict`, of the same tensors.

    pre = (x - input_bias) encoder.weight^T + neuron_bias        y = codes decoder.weight^T + input_bias

hypothesaes: topk, or relu(pre) where it is above one threshold (batch top-k). prefscope's `sae_type`: batchtopk keeps
signs (|pre| > threshold), simple-topk is an abstopk, jumprelu has a threshold a latent.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import BadFile
from ..folds import fold_decoder_bias
from ..parts import DictionaryParts, DictionaryTensors
from .common import Format, Hints, Place, canonical, check_sizes, choice, flag, number, scalar, take

_NAMES = {"W_enc": "encoder.weight^T", "b_enc": "neuron_bias", "W_dec": "decoder.weight^T", "b_dec": "input_bias"}
_ALSO = ("threshold", "steps_since_activation", "log_threshold")
_TYPES = {"batchtopk": "absjump", "simple-topk": "abstopk", "jumprelu": "jumprelu"}


def _contents(place: Place) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    held, cfg = place.state.get("state_dict"), place.state.get("config")
    return (held, cfg) if isinstance(held, dict) and isinstance(cfg, dict) and "neuron_bias" in held else ({}, {})


def detect(place: Place) -> bool:
    held, cfg = _contents(place)
    return bool(held) and "sae_type" not in cfg and "steps_since_activation" not in held


def detect_prefscope(place: Place) -> bool:
    held, _ = _contents(place)
    return bool(held) and not detect(place)


def read(place: Place, hints: Hints) -> DictionaryParts:
    """hypothesaes. Raises `BadFile` for a config without k."""
    (held, cfg), path = _contents(place), place.path
    weights = canonical(held, _NAMES, path, folds=False, also=_ALSO)
    if not flag(cfg, "use_batch_topk", False, path):
        return _parts(weights, "topk", number(cfg, "k_active_neurons", path, int), "hypothesaes", cfg, path)
    threshold = scalar(held, "threshold", path)
    if threshold < 0:
        return _parts(weights, "relu", None, "hypothesaes", cfg, path)
    weights = replace(weights, threshold=torch.full_like(weights.b_enc, threshold))
    return _parts(weights, "jumprelu", None, "hypothesaes", cfg, path)


def read_prefscope(place: Place, hints: Hints) -> DictionaryParts:
    """prefscope. Raises `BadFile` for another `sae_type`, or one that reads whitened inputs."""
    (held, cfg), path = _contents(place), place.path
    if (path.parent / "whiten.npz").is_file():
        raise BadFile(f"{path} reads inputs that whiten.npz whitens beforehand; not read")
    name = choice({"sae_type": "batchtopk"} | dict(cfg), "sae_type", _TYPES, path)
    weights, k = canonical(held, _NAMES, path, folds=False, also=_ALSO), None
    if name == "batchtopk":
        weights = replace(weights, threshold=torch.full_like(weights.b_enc, scalar(held, "threshold", path)))
    elif name == "jumprelu":
        weights = replace(weights, threshold=take(held, ["log_threshold"], path)[0].double().exp())
        weights.check()
    else:
        k = number(cfg, "k_active_neurons", path, int)
    return _parts(weights, _TYPES[name], k, "prefscope", cfg, path)


def _parts(
    weights: DictionaryTensors, kind: str, k: int | None, name: str, cfg: Mapping[str, Any], path: Path
) -> DictionaryParts:
    check_sizes(cfg, dict(zip(("input_dim", "m_total_neurons"), weights.W_enc.shape)), path)
    form = {"format": name, **{key: value for key, value in cfg.items() if isinstance(value, str | int | float | list)}}
    return DictionaryParts(
        fold_decoder_bias(weights).to(torch.float32), kind, k=k, name=path.stem, metadata={"original_form": form}
    )


FORMAT = Format(detect, read)
FORMAT_PREFSCOPE = Format(detect_prefscope, read_prefscope)
