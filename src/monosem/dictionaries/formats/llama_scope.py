"""Llama Scope (`hyperparams.json` + `checkpoints/final.safetensors`) and its R1-distill variant (arXiv 2410.20526).

    pre = s x encoder.weight^T + encoder.bias, s = sqrt(d) / mean norm of x        codes = pre where pre > threshold
    y = (codes decoder.weight^T + decoder.bias) / s

The threshold of the first is one number in units of raw activations (times s for `pre`); the second's are per latent,
in units of `pre`, and its files do not hold s.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import BadFile
from ...reading import read_object, read_safetensors
from ..folds import fold_scale
from ..parts import DictionaryParts
from .common import Format, Hints, Place, canonical, check_sizes, keys_of, number, site_or_none

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
CONFIG_R1, WEIGHTS_R1 = "config.json", "sae_weights.safetensors"
_NAMES = {
    "W_enc": "encoder.weight^T",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight^T",
    "b_dec": "decoder.bias",
}
MODEL = "meta-llama/Llama-3.1-8B"


def detect_r1(place: Place) -> bool:
    return place.has(CONFIG_R1, WEIGHTS_R1) and "encoder.weight" in keys_of(place.path / WEIGHTS_R1)


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` for a config without norms or threshold."""
    path, file = place.path, place.path / CONFIG
    cfg = read_object(file)
    scale_in, scale_out = scales(cfg, number(cfg, "d_model", file, int), file)
    threshold = cfg.get("jump_relu_threshold")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise BadFile(f"{file}: 'jump_relu_threshold' must be a number, not {threshold!r:.80}")
    held = read_safetensors(path / WEIGHTS)
    ours: dict[str, Any] = {"threshold": lambda width, d_in: torch.full((width,), threshold * scale_in)}
    weights = canonical(held, _NAMES, path / WEIGHTS, default=ours)
    check_sizes(cfg, dict(zip(("d_model", "d_sae"), weights.W_enc.shape)), file)
    return _parts(path, cfg, fold_scale(weights, scale_in, scale_out), "llama_scope")


def read_r1(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` where the scale is neither in the config nor given."""
    path, file = place.path, place.path / CONFIG_R1
    cfg = read_object(file)
    if hints.scale is not None:
        scale_in = scale_out = hints.scale
    else:
        scale_in, scale_out = scales(cfg, number(cfg, "d_model", file, int), file)
    held = read_safetensors(path / WEIGHTS_R1)
    weights = canonical(held, _NAMES | {"threshold": "log_jumprelu_threshold"}, path / WEIGHTS_R1)
    check_sizes(cfg, {"d_model": weights.W_enc.shape[0]}, file)
    assert weights.threshold is not None
    exact = weights.of(weights.present() | {"threshold": weights.threshold.exp()})
    return _parts(path, cfg, fold_scale(exact, scale_in, scale_out), "llama_scope_r1")


def scales(cfg: Mapping[str, Any], d_model: int, path: Path) -> tuple[float, float]:
    """What input and output are multiplied by: sqrt(d) / their mean norms in the data."""
    norms = cfg.get("dataset_average_activation_norm")
    if not isinstance(norms, dict) or "in" not in norms:
        raise BadFile(
            f"{path} lacks dataset_average_activation_norm, by which inputs are scaled; give "
            "load_dictionary(..., norm_scaling_factor=sqrt(d_in) / mean norm of its training activations)"
        )
    norms = {"out": norms["in"]} | norms
    return tuple(math.sqrt(d_model) / number(norms, side, path) for side in ("in", "out"))  # type: ignore[return-value]


def _parts(path: Path, cfg: Mapping[str, Any], weights: Any, name: str) -> DictionaryParts:
    hook, out = cfg.get("hook_point_in"), cfg.get("hook_point_out")
    transcoder = out not in (None, hook)
    kind = "jumprelu" if bool((weights.threshold >= 0).all()) else "jump"
    return DictionaryParts(
        weights.to(torch.float32),
        kind,
        site=site_or_none(hook),
        site_out=site_or_none(out) if transcoder else None,
        transcoder=transcoder,
        model_name=str(cfg.get("model_name") or MODEL),
        name=path.name,
        metadata={
            "original_form": {"format": name, **cfg},
            "hook_name": hook,
            **({"hook_name_out": out} if transcoder else {}),
        },
    )


FORMAT = Format(lambda place: place.has(CONFIG, WEIGHTS), read)
FORMAT_R1 = Format(
    detect_r1,
    read_r1,
    hints=("norm_scaling_factor",),
)
