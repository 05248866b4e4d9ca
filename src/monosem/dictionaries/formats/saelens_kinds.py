"""The two SAELens architectures whose codes are no function of a token's pre-activations, to and from our parts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadFile
from ..folds import fold_scale
from ..parts import DictionaryParts, DictionaryTensors, check_shapes
from ..temporal import PROJECTIONS
from .common import flag, number, take
from .saelens_config import CONFIG
from .saelens_weights import WEIGHTS

MOST_STEPS = 100_000
EPS = 1e-6  # SAELens adds it to the norm of what is predicted

Read = tuple[DictionaryTensors, int | None, dict[str, Any]]


@dataclass(frozen=True)
class Special:
    """read: tensors, config, folder and the scale of the input to tensors, k and options of our kind.
    write: the tensors of the file, and the entries of its config."""

    read: Callable[[dict[str, Tensor], dict[str, Any], Path, float], Read]
    write: Callable[[DictionaryParts], tuple[dict[str, Tensor], dict[str, Any]]]


def _read_pursuit(held: dict[str, Tensor], cfg: dict[str, Any], path: Path, scale: float) -> Read:
    """Its encoder is W_dec^T. Without apply_b_dec_to_input, b_dec is not added on decode either."""
    width, d_in = cfg["d_sae"], cfg["d_in"]
    check_shapes(held, {"W_dec": (width, d_in), "b_dec": (d_in,)})
    W_dec, b_dec = (t.double() for t in take(held, ["W_dec", "b_dec"], path / WEIGHTS))
    b_dec = b_dec / scale if cfg["apply_b_dec_to_input"] else torch.zeros_like(b_dec)
    steps = d_in if cfg.get("max_iterations") is None else number(cfg, "max_iterations", path / CONFIG, int)
    if steps > MOST_STEPS:
        raise BadFile(f"{path / CONFIG}: 'max_iterations' is {steps}; more than {MOST_STEPS:,} would not end")
    tolerance = cfg.get("residual_threshold", 1e-2)
    if type(tolerance) not in (int, float) or not 0 <= tolerance < float("inf"):
        raise BadFile(f"{path / CONFIG}: 'residual_threshold' must be a number from 0 on, not {tolerance!r:.80}")
    options = {"steps": steps, "tolerance": tolerance / scale}
    options["stop_at_repeat"] = flag(cfg, "stop_on_duplicate_support", True, path / CONFIG)
    return DictionaryTensors(W_dec.T, -b_dec @ W_dec.T, W_dec, b_dec), None, options


def _write_pursuit(parts: DictionaryParts) -> tuple[dict[str, Tensor], dict[str, Any]]:
    options = parts.options
    cfg = {"residual_threshold": options["tolerance"], "max_iterations": options["steps"]}
    cfg |= {"stop_on_duplicate_support": options["stop_at_repeat"], "apply_b_dec_to_input": True}
    return {"W_dec": parts.tensors.W_dec, "b_dec": parts.tensors.b_dec}, cfg


def _read_temporal(held: dict[str, Tensor], cfg: dict[str, Any], path: Path, scale: float) -> Read:
    width, d_in, file = cfg["d_sae"], cfg["d_in"], path / CONFIG
    told = {"n_heads": 8, "n_attn_layers": 1, "bottleneck_factor": 64} | cfg
    heads, layers, factor = (number(told, key, file, int) for key in ("n_heads", "n_attn_layers", "bottleneck_factor"))
    if layers > len(held):
        raise BadFile(f"{path / WEIGHTS} has {len(held)} tensors, too few for {layers} layers of attention")
    if width % (heads * factor):
        raise BadFile(f"{file}: d_sae {width} is no multiple of n_heads {heads} times bottleneck_factor {factor}")
    applied, tied = cfg["apply_b_dec_to_input"], flag(cfg, "tied_weights", True, file)
    expected: dict[str, tuple[int, ...]] = {"W_dec": (width, d_in), "b_dec": (d_in,), "W_enc": (d_in, width)}
    extra: dict[str, Tensor] = {}
    for ours, theirs in PROJECTIONS.items():
        rows = width // factor if ours in ("k", "q") else width
        for part, shape in (("weight", (rows, width)), ("bias", (rows,))):
            names = [f"attn_layers.{layer}.{theirs}.{part}" for layer in range(layers)]
            expected |= dict.fromkeys(names, shape)
            check_shapes({name: held[name] for name in names if name in held}, expected)
            extra[f"{ours}_{part}"] = torch.stack(take(held, names, path / WEIGHTS)).double()
    check_shapes(held, expected)
    W_dec, b_dec = (t.double() for t in take(held, ["W_dec", "b_dec"], path / WEIGHTS))
    W_enc = W_dec.T if tied else take(held, ["W_enc"], path / WEIGHTS)[0].double()
    out = b_dec if applied or not tied else torch.zeros_like(b_dec)
    weights = DictionaryTensors(W_enc / (4 * d_in), W_enc.new_zeros(width), W_dec, out)
    extra["b_in"] = (b_dec if applied else torch.zeros_like(b_dec)) / scale
    weights = DictionaryTensors.of(fold_scale(weights, scale).present() | extra)
    return weights, _places(cfg, width, file), {"heads": heads, "eps": EPS / scale}


def _places(cfg: dict[str, Any], width: int, path: Path) -> int:
    kind = cfg.get("sae_diff_type", "topk")
    if kind not in ("relu", "topk"):
        raise BadFile(f"{path}: unknown sae_diff_type {kind!r:.80}; known: relu, topk")
    if kind == "relu" or cfg.get("kval_topk") is None:
        return width
    return number(cfg, "kval_topk", path, int)


def _write_temporal(parts: DictionaryParts) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, (d_in, width) = parts.tensors, parts.tensors.W_enc.shape
    extra = tensors.extra
    held = {"W_enc": tensors.W_enc * (4 * d_in), "W_dec": tensors.W_dec, "b_dec": tensors.b_dec}
    for ours, theirs in PROJECTIONS.items():
        for part in ("weight", "bias"):
            stacked = extra[f"{ours}_{part}"]
            held |= {f"attn_layers.{i}.{theirs}.{part}": one for i, one in enumerate(stacked)}
    cfg = {"n_heads": parts.options["heads"], "n_attn_layers": len(extra["k_bias"])}
    cfg |= {"bottleneck_factor": width // extra["k_bias"].shape[1], "sae_diff_type": "topk", "kval_topk": parts.k}
    return held, cfg | {"tied_weights": False, "apply_b_dec_to_input": bool(extra["b_in"].any())}


SPECIAL = {
    "matching_pursuit": Special(_read_pursuit, _write_pursuit),
    "temporal": Special(_read_temporal, _write_temporal),
}
