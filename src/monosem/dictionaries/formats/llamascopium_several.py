"""llamascopium 2.0.0b34's dictionaries of several sites: `sae_type` clt and crosscoder, and the scale of all its kinds.

clt: W_E [L, d, F], b_E [L, F], W_D.{t} [t + 1, F, d], b_D.{t} [d]:
    pre[s] = x[s] s_in[s] W_E[s] + b_E[s]        y[t] = (b_D[t] + sum over s <= t of codes[s] W_D[t][s]) / s_out[t]
crosscoder: W_E [L, d, F], b_E [L, F], W_D [L, F, d], b_D [L, d]:
    pre = sum over l of x[l] s[l] W_E[l] + b_E[l]        y[l] = (codes W_D[l] + b_D[l]) / s[l]

A clt's codes are chosen by pre n, as an SAE's; n is the norm of all that a latent writes. A crosscoder's n is of each
site alone: codes of jumprelu and topk then differ from site to site, and are refused.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadFile, BadInput
from ..several_parts import CrosscoderParts, CrossLayerParts, Facts
from .common import Hints, check_sizes, checked, choice, flag, number, scalar, site_or_none, take

NORM = "dataset_average_activation_norm"


def read_clt(
    path: Path, cfg: Mapping[str, Any], held: Mapping[str, Tensor], file: Path, hints: Hints
) -> CrossLayerParts:
    """Raises `BadFile` for what selects over a batch or over layers, and tensors that do not fit."""
    kind = choice({"act_fn": "relu"} | dict(cfg), "act_fn", ["relu", "jumprelu", "topk"], path)
    hooks, out = _hooks(cfg, "hook_points_in", path), _hooks(cfg, "hook_points_out", path)
    layers, d, width = _shape(held, file)
    check_sizes(cfg, {"d_model": d}, path)
    if not layers == len(hooks) == len(out):
        raise BadFile(f"{file}: W_E has {layers} layers, and {path} names {len(hooks)} and {len(out)} hooks")
    shapes: dict[str, tuple[int, ...]] = {"W_E": (layers, d, width), "b_E": (layers, width)}
    shapes |= {f"W_D.{t}": (t + 1, width, d) for t in range(layers)} | {f"b_D.{t}": (d,) for t in range(layers)}
    found = dict(zip(shapes, (tensor.double() for tensor in checked(held, shapes, file))))
    W_enc, b_enc = found["W_E"], found["b_E"]
    W_dec = [torch.stack([found[f"W_D.{t}"][s] for t in range(s, layers)], 1) for s in range(layers)]
    b_dec = torch.stack([found[f"b_D.{t}"] for t in range(layers)])
    norms = torch.stack([rows.flatten(1).norm(dim=-1) for rows in W_dec])
    norms = torch.where(norms > 0, norms, 1) if flag(cfg, "sparsity_include_decoder_norm", True, path) else norms**0
    threshold = None
    if kind == "jumprelu":
        name = "activation_function.log_jumprelu_threshold"
        (log_threshold,) = checked(held, {name: (layers, width)}, file)
        threshold = (log_threshold.double().exp() / norms).float()
    elif kind == "topk":  # the k largest are then chosen as there
        W_enc, b_enc = W_enc * norms[:, None], b_enc * norms
        W_dec = [rows / norm[:, None, None] for rows, norm in zip(W_dec, norms)]
    s_in, s_out = (_scales(held, cfg, names, file, path, hints) for names in (hooks, out))
    facts = Facts(
        kind,
        [site_or_none(hook) for hook in hooks],
        [site_or_none(hook) for hook in out],
        k=number({"top_k": 50} | dict(cfg), "top_k", path, int) if kind == "topk" else None,
        model_name=str(cfg.get("model_name") or ""),
        name=path.parent.name,
        metadata={"original_form": {"format": "llamascopium", **cfg}},
    )
    return CrossLayerParts(
        facts=facts,
        W_enc=(W_enc * s_in[:, None, None]).float(),
        b_enc=b_enc.float(),
        W_dec=[(rows / s_out[s:, None]).float() for s, rows in enumerate(W_dec)],
        b_dec=(b_dec / s_out[:, None]).float(),
        threshold=threshold,
    )


def read_crosscoder(
    path: Path, cfg: Mapping[str, Any], held: Mapping[str, Tensor], file: Path, hints: Hints
) -> CrosscoderParts:
    """Raises `BadFile` for codes that differ from site to site, and tensors that do not fit."""
    if (act := cfg.get("act_fn", "relu")) != "relu":
        raise BadFile(f"{path}: a crosscoder of act_fn {act!r:.40} has other codes at each site; known: relu")
    hooks, (sites, d, width) = _hooks(cfg, "hook_points", path), _shape(held, file)
    check_sizes(cfg, {"d_model": d}, path)
    if sites != len(hooks):
        raise BadFile(f"{file}: W_E has {sites} sites, and {path} names {len(hooks)} hooks")
    shapes = {"W_E": (sites, d, width), "b_E": (sites, width), "W_D": (sites, width, d), "b_D": (sites, d)}
    W_E, b_E, W_D, b_D = (tensor.double() for tensor in checked(held, shapes, file))
    s = _scales(held, cfg, hooks, file, path, hints)
    known = [site_or_none(hook) for hook in hooks]
    facts = Facts(
        "relu",
        known,
        known,
        model_name=str(cfg.get("model_name") or ""),
        name=path.parent.name,
        metadata={"original_form": {"format": "llamascopium", **cfg}},
    )
    W_dec = (W_D / s[:, None, None]).transpose(0, 1)
    made = {"W_enc": W_E * s[:, None, None], "b_enc": b_E.sum(0), "W_dec": W_dec, "b_dec": b_D / s[:, None]}
    return CrosscoderParts(facts=facts, **{name: tensor.float() for name, tensor in made.items()})


def _shape(held: Mapping[str, Tensor], file: Path) -> tuple[int, int, int]:
    (W,) = take(held, ["W_E"], file)
    if W.ndim != 3 or 0 in W.shape:
        raise BadFile(f"{file}: W_E has shape {list(W.shape)}, expected [site, d, width]")
    return W.shape[0], W.shape[1], W.shape[2]


def _hooks(cfg: Mapping[str, Any], name: str, path: Path) -> list[str]:
    hooks = cfg.get(name)
    if not isinstance(hooks, list) or not hooks or not all(isinstance(one, str) for one in hooks):
        raise BadFile(f"{path}: {name!r} must be a list of hooks, not {hooks!r:.80}")
    return hooks


def _scales(
    held: Mapping[str, Tensor], cfg: Mapping[str, Any], hooks: list[str], file: Path, path: Path, hints: Hints
) -> Tensor:
    if hints.norm_scaling_factor is not None:
        raise BadInput(f"norm_scaling_factor is one number, and {path} has a scale for each of {len(hooks)} sites")
    mode = choice(
        {"norm_activation": "dataset-wise"} | dict(cfg), "norm_activation", ["dataset-wise", "inference"], path
    )
    scales = [scale(held, cfg, hook, file) if mode == "dataset-wise" else 1.0 for hook in hooks]
    return torch.tensor(scales, dtype=torch.float64)


def scale(held: Mapping[str, Tensor], cfg: Mapping[str, Any], hook: Any, path: Path) -> float:
    """What activations at a hook are multiplied by. Raises `BadFile` where the file does not say."""
    if f"{NORM}.{hook}" not in held:
        raise BadFile(
            f"{path} lacks {NORM}.{hook}, by which activations are scaled; give "
            "load_dictionary(..., norm_scaling_factor=sqrt(d_in) / mean norm of its training activations)"
        )
    norm = scalar(held, f"{NORM}.{hook}", path)
    if norm <= 0:
        raise BadFile(f"{path}: {NORM}.{hook} is {norm:g}; a mean norm is above 0")
    return math.sqrt(number(cfg, "d_model", path, int)) / norm


SEVERAL = {"clt": read_clt, "crosscoder": read_crosscoder}
