"""llamascopium 2.0.0b34 (OpenMOSS Language-Model-SAEs): `config.json` + `sae_weights.safetensors`.

    pre = x s_in W_E + b_E (times sigmoid(x s_in W_E_glu + b_E_glu))        y = (codes W_D + b_D) / s_out
    codes: pre where pre n > threshold (jumprelu), where pre n is among the k largest (topk); n = |W_D row|, or 1 where
    sparsity_include_decoder_norm is false

s = sqrt(d) / mean norm in the data (dataset-wise), 1 (inference), or of each token (token-wise). Codes of topk come out
times n, with unit decoder rows, so that the k largest are chosen as there; all others are in the file's own units.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...errors import BadFile, BadInput
from ...reading import read_object, read_safetensors, read_torch
from ..folds import fold_decoder_norm, fold_scale
from ..parts import DictionaryParts, check_shapes
from ..several_parts import SeveralParts
from .common import Format, Hints, Place, canonical, check_sizes, choice, flag, keys_of, number, site_or_none, take
from .llamascopium_several import SEVERAL, scale

CONFIG = "config.json"
_STEMS = ("sae_weights", "checkpoints/pruned", "checkpoints/final")
_NAMES = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D"}
_GLU = {"W_glu": "W_E_glu", "b_glu": "b_E_glu"}
_ACTIVATIONS = ["relu", "jumprelu", "topk"]
_NORMS = ["dataset-wise", "inference", "token-wise"]


def detect(place: Place) -> bool:
    file = _weights_file(place)
    return file is not None and (file.suffix == ".pt" or "encoder.weight" not in keys_of(file))


def _weights_file(place: Place) -> Path | None:
    """Where the tool itself looks for weights, in its order."""
    names = [f"{stem}.{ending}" for stem in _STEMS for ending in ("safetensors", "pt")]
    return next((place.path / name for name in names if place.has(CONFIG, name)), None)


def read(place: Place, hints: Hints) -> DictionaryParts | SeveralParts:
    """Raises `BadFile` for models of other kinds, and what selects over a batch; they are named."""
    path, file, held_in = place.path, place.path / CONFIG, _weights_file(place)
    assert held_in is not None
    cfg, held = read_object(file), _tensors(held_in)
    of = choice({"sae_type": "sae"} | cfg, "sae_type", ["sae", *SEVERAL], file)
    if str(cfg.get("act_fn")).startswith("batch"):
        raise BadFile(
            f"{path}: act_fn {cfg['act_fn']!r:.40} selects over a batch and stores no threshold; convert it first"
        )
    if of in SEVERAL:
        return SEVERAL[of](file, cfg, held, held_in, hints)
    kind = choice({"act_fn": "relu"} | cfg, "act_fn", _ACTIVATIONS, file)
    names = _NAMES | ({"b_dec": "b_D"} if flag(cfg, "use_decoder_bias", True, file) else {})
    names |= _GLU if flag(cfg, "use_glu_encoder", False, file) else {}
    W_D = held.get("W_D")
    d_out = W_D.shape[-1] if isinstance(W_D, Tensor) and W_D.ndim == 2 else 0
    weights = canonical(held, names, held_in, default={"b_dec": lambda width, d_in: torch.zeros(d_out)})
    check_sizes(cfg, {"d_model": weights.W_enc.shape[0]}, file)
    by_norm = flag(cfg, "sparsity_include_decoder_norm", True, file)
    if kind == "jumprelu":
        name = "activation_function.log_jumprelu_threshold"
        (log_threshold,) = take(held, [name], held_in)
        check_shapes({name: log_threshold}, {name: weights.b_enc.shape})
        threshold = log_threshold.double().exp()
        norm = weights.W_dec.norm(dim=-1) if by_norm else torch.ones_like(threshold)
        weights = replace(weights, threshold=threshold / torch.where(norm > 0, norm, 1))
        weights.check()
    elif kind == "topk" and by_norm:
        weights = fold_decoder_norm(weights)
    hook, out = cfg.get("hook_point_in"), cfg.get("hook_point_out", cfg.get("hook_point_in"))
    transcoder, mode = out != hook, choice({"norm_activation": "dataset-wise"} | cfg, "norm_activation", _NORMS, file)
    if mode == "dataset-wise":
        if hints.scale is not None:
            weights = fold_scale(weights, hints.scale)
        else:
            weights = fold_scale(weights, *(scale(held, cfg, name, held_in) for name in (hook, out)))
    elif hints.norm_scaling_factor is not None:
        raise BadInput(f"norm_scaling_factor was given, but {path} has norm_activation {mode!r}; leave it out")
    if mode == "token-wise" and transcoder:
        raise BadFile(f"{path}: a transcoder whose output is scaled by the output's own norm cannot be run without it")
    return DictionaryParts(
        weights.to(torch.float32),
        kind,
        k=number({"top_k": 50} | cfg, "top_k", file, int) if kind == "topk" else None,
        token_norm="constant_norm_rescale" if mode == "token-wise" else "none",
        site=site_or_none(hook),
        site_out=site_or_none(out) if transcoder else None,
        transcoder=transcoder,
        model_name=str(cfg.get("model_name") or ""),
        name=path.name,
        metadata={
            "original_form": {"format": "llamascopium", **cfg},
            "hook_name": hook,
            **({"hook_name_out": out} if transcoder else {}),
        },
    )


def _tensors(file: Path) -> Mapping[str, Tensor]:
    if file.suffix != ".pt":
        return read_safetensors(file)
    held = read_torch(file).get("sae")
    if not isinstance(held, dict):
        raise BadFile(f"{file} lacks the table 'sae' of tensors")
    return held


FORMAT = Format(detect, read, hints=("norm_scaling_factor",))
