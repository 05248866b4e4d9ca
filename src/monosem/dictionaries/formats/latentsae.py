"""latentsae 0.2.0: sparsify's files for other functions; `sae_type` alone tells.

z = x - input_mean - b_dec        pre = relu(z encoder.weight^T + encoder.bias)
y = codes W_dec + b_dec + input_mean (+ (x - input_mean) W_skip^T)
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadFile
from ...reading import read_object, read_safetensors
from ..folds import at_least, fold_decoder_bias, fold_mean
from ..parts import DictionaryParts, DictionaryTensors
from .common import Format, Hints, Place, canonical, flag, number, scalar, take
from .sparsify import CONFIG, NAMES, WEIGHTS, check_size, sites

KINDS = {"TOPK": "topk", "ABSTOPK": "abstopk", "MATRYOSHKA": "topk", "BATCHTOPK": "jumptopk", "JUMPRELU": "jumptopk"}
NOT_READ = {
    "GATED": "it chooses latents by other pre-activations than those that it scales",
    "COSINE": "its pre-activations are cosines, times a power of the input's norm",
    "LISTA": "its latents inhibit each other",
}


def detect(place: Place) -> bool:
    return place.has(CONFIG, WEIGHTS) and "sae_type" in read_object(place.path / CONFIG)


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` for a `sae_type` whose function is not one of ours; it is named."""
    path, file, weights_file = place.path, place.path / CONFIG, place.path / WEIGHTS
    cfg, held = read_object(file), read_safetensors(weights_file)
    name = str(cfg["sae_type"]).upper()
    if name not in KINDS:
        why = f"is not read: {NOT_READ[name]}" if name in NOT_READ else f"is unknown; known: {', '.join(KINDS)}"
        raise BadFile(f"{path}: latentsae's sae_type {cfg['sae_type']!r:.40} {why}")
    weights = canonical(held, NAMES, weights_file, also=_further(cfg, name, file))
    check_size(cfg, weights.W_enc.shape, file)
    width = weights.W_enc.shape[1]
    weights = replace(weights, W_skip=_skip(held, cfg, path))
    k = _matryoshka_k(cfg, file) if name == "MATRYOSHKA" else number({"k": 32} | cfg, "k", file, int)
    kind, threshold = KINDS[name], None
    if name == "BATCHTOPK":  # kept where pre >= threshold, and no more than k
        threshold = torch.full_like(weights.b_enc, scalar(held, "batchtopk_threshold", weights_file))
        threshold = at_least(threshold)
    elif name == "JUMPRELU":
        threshold = take(held, ["log_threshold"], weights_file)[0].double().exp()
        k = number({"jumprelu_max_active": 512} | cfg, "jumprelu_max_active", file, int)
        kind, k = ("jumprelu", None) if k >= width else (kind, k)
    weights = fold_decoder_bias(replace(weights, threshold=threshold))
    weights.check()
    if flag(cfg, "mean_center", False, file):
        weights = _centred(weights, take(held, ["input_mean"], weights_file)[0].double(), weights_file)
    site = sites(path, transcode=False)[1]
    return DictionaryParts(
        weights.to(torch.float32),
        kind,
        k=k,
        site=site,
        site_out=site,
        name=path.name,
        metadata={"original_form": {"format": "latentsae", **cfg}, "hookpoint": path.name},
    )


def _further(cfg: Mapping[str, Any], name: str, path: Path) -> list[str]:
    """Tensors that belong to its options."""
    by_batch = name == "BATCHTOPK" or flag(cfg, "matryoshka_use_batchtopk", False, path)
    held = ["batchtopk_threshold"] * by_batch + ["log_threshold"] * (name == "JUMPRELU")
    held += ["input_mean"] * flag(cfg, "mean_center", False, path)
    skips = ["W_skip.weight", "W_skip_up.weight", "W_skip_down.weight"]
    return held + skips * flag(cfg, "use_skip", False, path)


def _matryoshka_k(cfg: Mapping[str, Any], path: Path) -> int:
    """Of its largest level."""
    last = str(cfg.get("matryoshka_ks", "")).rpartition(",")[2].strip()
    return number({"matryoshka_ks": int(last) if last.isdecimal() else last}, "matryoshka_ks", path, int)


def _skip(held: Mapping[str, Tensor], cfg: Mapping[str, Any], path: Path) -> Tensor | None:
    """The whole map, or a product of two of a lower rank."""
    if not flag(cfg, "use_skip", False, path / CONFIG):
        return None
    if "W_skip.weight" in held:
        return take(held, ["W_skip.weight"], path / WEIGHTS)[0].double()
    up, down = (t.double() for t in take(held, ["W_skip_up.weight", "W_skip_down.weight"], path / WEIGHTS))
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        raise BadFile(f"{path}: W_skip_up {list(up.shape)} and W_skip_down {list(down.shape)} cannot be multiplied")
    return up @ down


def _centred(weights: DictionaryTensors, mean: Tensor, path: Path) -> DictionaryTensors:
    """Input and output without the mean; the skip connection reads the input without it, too."""
    if mean.shape != weights.b_dec.shape:
        raise BadFile(f"{path}: input_mean has shape {list(mean.shape)}, expected {list(weights.b_dec.shape)}")
    folded = fold_mean(weights, mean)
    return folded if folded.W_skip is None else replace(folded, b_dec=folded.b_dec - folded.W_skip @ mean)


FORMAT = Format(detect, read)
