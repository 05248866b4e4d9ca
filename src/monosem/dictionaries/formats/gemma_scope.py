"""Gemma Scope 1 (`params.npz`) and 2 (`config.json` + `params.safetensors`): JumpReLU, on raw activations.

    codes = jumprelu(x w_enc + b_enc)        y = codes w_dec + b_dec (+ x affine_skip_connection)

The npz says no more than its tensors: model, site and layer stand in the path, which is the hub's
(`gemma-scope-2b-pt-res/.../layer_20/width_16k/average_l0_71`).
"""

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import BadFile, cause
from ...models.places.sites import Site
from ...reading import read_object, read_safetensors, regular_file
from ..folds import fold_scale
from ..parts import DictionaryParts
from .common import Format, Hints, Place, canonical, flag, module_site

ARRAYS, CONFIG, WEIGHTS = "params.npz", "config.json", "params.safetensors"
_NAMES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
_NAMES_2 = {name: name.lower() for name in _NAMES} | {"W_skip": "affine_skip_connection^T?"}
_HOOKS = {"res": "resid_post", "mlp": "mlp_out", "att": "z"}
_FOLDERS = {
    "resid_post": "output",
    "attn_out": "self_attn.o_proj.input",
    "mlp_out": "post_feedforward_layernorm.output",
}


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Gemma Scope 1. Raises `BadFile` for a file that is no archive of plain numbers."""
    file = place.path / ARRAYS if place.path.is_dir() else place.path
    where = file.parent.as_posix()
    held = {f"W{key[1:]}" if key[:2] == "w_" else key: value for key, value in _arrays(file).items()}
    weights = canonical(held, _NAMES, file, folds=False)
    factor = held.get("scaling_factor")
    if isinstance(factor, torch.Tensor) and not bool((factor == 1).all()):
        raise BadFile(f"{file}: its scaling_factor is not 1, and nothing says what it is for; refusing to guess")
    release = re.search(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)", where)
    layer, embeds = re.search(r"layer_(\d{1,9})(?![^/])", where), "/embedding" in where
    site = site_out = None
    if embeds:  # on the table's rows; the model multiplies these by sqrt(d_in) before it adds them to the stream
        root = weights.W_enc.shape[0] ** 0.5
        scaled = fold_scale(weights, 1 / root)
        site, weights = Site("embed"), replace(scaled, b_dec=weights.b_dec)
    elif release and layer and release[3] == "transcoders":
        site, site_out = Site("ln2_normalized", int(layer[1])), Site("mlp_out", int(layer[1]))
    elif release and layer:
        site = Site(_HOOKS[release[3]], int(layer[1]))
    model = f"google/gemma-2-{release[1]}{'-it' if release[2] == 'it' else ''}" if release else ""
    return DictionaryParts(
        weights,
        "jumprelu",
        site=site,
        site_out=site_out,
        transcoder=bool(release and release[3] == "transcoders"),
        model_name=model,
        name="/".join(file.parent.parts[-3:]) if layer else file.parent.name,
        metadata={"original_form": {"format": "gemma_scope", "embedding": embeds}},
    )


def _arrays(file: Path) -> dict[str, torch.Tensor]:
    try:
        with np.load(regular_file(file), allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except BadFile:
        raise
    except (OSError, ValueError, TypeError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise BadFile(f"{file} is truncated or no archive of plain numbers ({cause(error)})") from error
    except Exception as error:  # zlib and numpy's own parser, whatever the bytes lead them to
        raise BadFile(f"{file} is damaged ({cause(error)}); download it again") from error


def read_2(place: Place, hints: Hints) -> DictionaryParts:
    """Gemma Scope 2. Raises `BadFile` for dictionaries of several layers."""
    path, file = place.path, place.path / WEIGHTS
    held = read_safetensors(file)
    if any(held[name].ndim == 3 for name in ("w_enc", "w_dec") if name in held):
        raise BadFile(f"{path} is one layer of a dictionary of several; give the folder of all its layers")
    cfg = read_object(path / CONFIG) if place.has(CONFIG) else _guessed(path)
    if cfg.get("architecture", "jump_relu") != "jump_relu":
        raise BadFile(f"{path}: unknown architecture {cfg['architecture']!r:.80}; known: jump_relu")
    if flag(cfg, "affine_connection", False, path / CONFIG) and "affine_skip_connection" not in held:
        raise BadFile(f"{file} lacks the tensors affine_skip_connection, which {CONFIG} says it has")
    hook, out = (cfg.get(f"hf_hook_point_{side}") for side in ("in", "out"))
    site, site_out = module_site(hook), module_site(out)
    transcoder = out not in (None, hook)
    model = str(cfg.get("model_name") or "").replace("-v3", "-3")
    model = model.removesuffix("-pt") if "270m" in model else model
    return DictionaryParts(
        canonical(held, _NAMES_2, file, folds=False),
        "jumprelu",
        site=site,
        site_out=site_out if transcoder else site,
        transcoder=transcoder,
        model_name=f"google/{model}" if model and "google" not in model else model,
        name="/".join(path.parts[-2:]),
        metadata={
            "original_form": {"format": "gemma_scope_2", **cfg},
            "hf_hook_name": hook,
            **({"hf_hook_name_out": out} if transcoder else {}),
        },
    )


def _guessed(path: Path) -> dict[str, Any]:
    """Some repositories lack the config: the folders say the same."""
    where = path.as_posix()
    layer, release = re.search(r"layer_(\d{1,9})", path.name), re.search(r"gemma-scope-2-(\w+-(?:pt|it))", where)
    cfg: dict[str, Any] = {"model_name": f"google/gemma-3-{release[1]}"} if release else {}
    kind = next((kind for kind in ("transcoder", *_FOLDERS) if re.search(rf"/{kind}(_all|_layer)?[/_]", where)), None)
    if layer and kind == "transcoder":
        cfg["hf_hook_point_in"] = f"model.layers.{layer[1]}.pre_feedforward_layernorm.output"
        cfg["hf_hook_point_out"] = f"model.layers.{layer[1]}.post_feedforward_layernorm.output"
    elif layer and kind:
        cfg["hf_hook_point_in"] = f"model.layers.{layer[1]}.{_FOLDERS[kind]}"
    return cfg


FORMAT = Format(
    lambda place: place.has(ARRAYS) or (place.path.name == ARRAYS and place.path.is_file()),
    read,
)
FORMAT_2 = Format(lambda place: place.has(WEIGHTS), read_2)
